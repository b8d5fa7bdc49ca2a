// Package cluster holds the objects that the store keeps: nodes, stacks, releases, services, revisions, tasks, networks,
// volumes, secrets, configs and events, with their ids and versions, and the state machine of a task.
//
// Objects are plain structs, encoded as JSON on the public API and as CBOR in the log and between nodes. What comes out of
// the store is shared and read-only: Clone before changing.
//
// Invariants: an object's Version only grows; Desired and Observed of a task only move forward (Task.Advance is the one
// place that moves them); revisions, releases, secrets and configs never change their content once stored.
//
// Concurrency: values only; nothing here starts a goroutine.
package cluster
