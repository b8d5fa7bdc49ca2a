// Package release decides what changes when a stack is deployed, rolled back or removed, and how far a release has come.
//
// Deploy compares the wanted stack with what is stored and returns the objects to put, in one transaction, together with a
// Diff that `plan` and `up` show. Progress looks at the services' rollouts and ends the release: complete, failed, or rolled
// back as a whole, with its configs and secrets, to the last release that completed.
//
// Invariants: deploying what is deployed returns nothing to put. A rollback goes only to a release that completed. A
// release that itself is a rollback is never rolled back by itself, so that two bad releases cannot chase each other.
// Releases, revisions and the rest of what is stored are never changed in content.
//
// Concurrency: no goroutines, no clock, no randomness, no logging; inputs are read only.
package release
