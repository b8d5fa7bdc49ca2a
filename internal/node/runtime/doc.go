// Package runtime runs the containers of a node. It implements agent.Executor on containerd and runc, which it brings along as pinned binaries.
//
// # Processes
//
//	baton ── starts or adopts ──▶ containerd ── starts ──▶ shim (one per task) ── runc ──▶ the container
//	                                                        └──▶ logger (one per task; our own executable)
//
// containerd is private to the node: its own root, state, sockets, configuration, runc root and cgroup. It is in a session of its own, so
// that neither our death nor its own takes a container along.
//
// # Layout
//
//	DataDir/containerd/root     containerd's images and snapshots, kept over reboots
//	DataDir/containerd/containerd.log
//	DataDir/containerd/lock     locked by the baton process that owns the data directory
//	DataDir/tasks/TASK/         a task's record (package-private; see records) and its /etc files
//	DataDir/logs/TASK/log, log.1, log.2…
//	                            a task's output: "TIME STREAM F|P TEXT\n" per line, TIME in UTC with nine digits, P for a part of a line
//	DataDir/logs/TASK/lock      locked while the task's logger is alive
//	DataDir/logs/TASK/closed    there once the output has ended
//	RunDir/                     what this boot needs: containerd-HASH.toml, c.sock, state/, s/ (shim sockets), runc/, fifo/, boot
//
// # Invariants
//
// A task's container is named by the task's id, and made at most once: a task that ran never runs again. An exit code that was seen
// once is on disk and never changes. Before a containerd starts, the shims are asked for the exits that it would lose. What is
// not in a container's record is made in an order that makes every prefix of it removable by Remove, and swept by New.
//
// # Concurrency
//
// All methods may be called from any goroutine; those that change one task wait for each other. Two goroutines belong to a Runtime, the
// supervisor of containerd and the reader of its events; Close waits for both. No lock is held over I/O but the per-task ones, which
// can be given up.
package runtime
