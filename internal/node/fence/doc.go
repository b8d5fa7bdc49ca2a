// Package fence ends tasks whose lease is over, also when the agent that should do it is dead: managers start another task in the place of
// a leased one once its node is down, and there must never be two.
//
// A process of its own (Main, cmd/baton-fence) does it. It is started with the first task under the fence, outlives baton, and ends when
// no task is left. What it knows is in a directory on tmpfs, which does not outlive the machine's running either:
//
//	DIR/until       the time until which the tasks may run, in nanoseconds of the clock that counts suspension too
//	DIR/tasks/<id>  the task's cgroup directories, one per line
//	DIR/lock        held by the process
//	DIR/log         what it says
//	DIR/door        held by the process to decide that nobody needs it, and by who brings a task
//
// Invariants: a missing or unreadable time has passed; a task is under the fence before its first process exists, and until its last one
// is gone.
//
// What it cannot do: keep a machine that was suspended from running a task for the moment until it looks again (a quarter of a second).
//
// The process imports the standard library and x/sys only, so that it stays small. Files are read by versions of baton other than the
// one that wrote them.
//
// Concurrency: a Fence may be used by several goroutines; one process of baton has it.
package fence
