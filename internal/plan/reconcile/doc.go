// Package reconcile decides what should happen to the tasks of one service: how many there are, which are replaced after
// they ended and when, how a rollout moves slots from one revision to another, and how a task leaves the load balancers
// before it is stopped.
//
// All of that is one pure function, Reconcile, of the service, its tasks, the nodes and the time. There is no separate
// restart supervisor, updater or drainer that could disagree with it. The caller stores the Plan in one transaction, then
// asks again when something changed or when Plan.WakeAt comes.
//
// Invariants: planning on the result of a plan at the same time gives an empty plan. A slot has at most one task that is
// wanted and one that it replaces or is replaced by. A task that was an endpoint gets its stop signal only once every
// connected node acknowledged that it left the load balancers, or Limits.AckMax passed. In start-first order nothing that
// is ready is drained before what replaces it is ready.
//
// What it will not do: choose nodes (package schedule), give ids and addresses (the caller, package ipam), decide what a
// failed rollout means for the rest of the stack (package release).
//
// Concurrency: no goroutines, no clock, no randomness, no logging; inputs are read only.
package reconcile
