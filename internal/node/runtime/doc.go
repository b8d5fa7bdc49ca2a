// Package runtime runs the containers of a node. It implements agent.Executor on containerd and runc, which it brings along as pinned binaries.
//
// # Processes
//
//	baton ── starts or adopts ──▶ containerd ── starts ──▶ shim (up to eight tasks) ── runc ──▶ the container
//	  └───── starts or adopts ──▶ logger (one per node; package logger), which reads what shims write
//
// containerd is private to the node: its own root, state, sockets, configuration, runc root and cgroup. It is in a session of its own, so
// that neither our death nor its own takes a container along.
//
// # Shims
//
// Tasks share shims, because a shim of its own would be half of what a small task costs: 5 MB, and a third of the CPU time of a start.
// The price is that a shim that dies takes all of its tasks along. Two rules bound it: a shim serves at most eight tasks, of whichever
// services; and a task is never started in the one shim that has all others of its service and revision, so that a service with two
// tasks or more on a node keeps some of them. (What is removed may leave the rest together: tasks do not move.) Within these, a task goes
// where the fewest of its own are, then where the most are in all. A shim ends with its last task.
//
// A group of tasks is called by the one that founded it, in each container's labels and OCI spec; only the founder starts the shim
// (package shim), so a shim's command line tells its group. Who is where is read from the labels whenever a runtime begins. A shim that
// ends just when a task is to join it fails that start, which is repeated with a group of its own.
//
// # Layout
//
//	DataDir/containerd/root     containerd's images and snapshots, kept over reboots
//	DataDir/containerd/containerd.log
//	DataDir/containerd/lock     locked by the baton process that owns the data directory
//	DataDir/tasks/TASK/         a task's record (package-private; see records) and its /etc files
//	DataDir/logs/TASK/log, log.1, log.2…
//	                            a task's output: "TIME STREAM F|P TEXT\n" per line, TIME in UTC with nine digits, P for a part of a line
//	DataDir/logs/TASK/lock      locked while the logger keeps the task's output
//	DataDir/logs/TASK/closed    there once the output has ended
//	RunDir/                     what this boot needs: containerd-HASH.toml, c.sock, state/, s/ (shim sockets), runc/, boot,
//	                            fifo/ (of tasks' outputs and of execs), l.sock, l.lock, logger.log (of the logger)
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
