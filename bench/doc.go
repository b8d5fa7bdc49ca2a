// Command bench measures a real node and prints every number beside what it is compared with: ratios of one run, because absolute
// times mean little on somebody else's machine. `make bench` runs it; BENCH_QUICK=1 shrinks every size. It needs root, bin/baton's
// runtime in build/bundle/blob and the image web-v1 in build/out/images.
//
// It owns everything below /var/lib/baton-bench and /run/baton-bench, the cgroups below /baton-bench, and the node whose data
// directory is there. One bench runs at a time. What an earlier, killed run left is removed first; an interrupted one cleans up
// before it ends.
//
// docs/performance.md says how each number is measured and what it should be.
package main
