// Package agent makes a node run what the managers assigned to it.
//
// It owns the node's side of a session, the state of every task on the node between what is wanted and what is seen, and
// the probes. What it needs of the machine it asks of interfaces that it defines itself (Executor, Network, Volumes, Files, Logs, Record).
//
//	Update ──▶ want ┐
//	                ├─▶ Step (pure) ─▶ actions ─▶ one worker per task ─▶ Executor, Network, Volumes
//	Observe ─▶ have ┘                    │
//	                                     └─▶ Status ─▶ Report
//
// A Record keeps what is wanted and what came of it, so that a node which finds no manager runs its tasks again; what ends
// meanwhile gets a stand-in (docs/node-record.md).
//
// Invariants: no task is started that may have run before; nothing is started or cleaned up before the record knows of it, unless
// that cannot be written; at most one action per task runs at a time; a status only moves forward (cluster.Task.Advance on the
// manager's side refuses the rest); a version is acknowledged only after Network.Apply returned for it; containers are left
// alone when the agent stops, and found again by Observe.
//
// Concurrency: Agent.Run owns one loop goroutine that holds all state (Loop, which has no clock and no goroutines). Workers, probes, the session's reader and writer and
// the executor's event reader are its children; they talk to it over channels only, and Run returns after all of them.
package agent
