// Package schedule chooses nodes for tasks and says why.
//
// A View holds what the choice depends on, kept up to date object by object: free processor time and memory, host ports,
// tasks per service, the place of volumes, labels, recent failures. Assign places a Group, the tasks of one revision, and
// charges each placement to the View at once, so that the next choice sees it.
//
// Invariants: no node is charged beyond its capacity; every constraint, platform, host port, volume place and replica limit
// holds for every placement; equal View, Group and random source give equal placements. Rebalance proposes moves of running tasks,
// each of which makes the cluster more even by a margin, so that they come to an end.
//
// What it will not do: carry out moves, decide how many there are (package reconcile), reserve for the future.
//
// Concurrency: no goroutines, no locks, no clock; a View belongs to one caller, the one serial scheduler on the leader.
package schedule
