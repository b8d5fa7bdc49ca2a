// Package store holds the state of the cluster in memory: one table per kind of object, the indexes over them, the
// optimistic transactions that change them, immutable snapshots, a feed of changes, and the form in which all of it is
// written to disk. It has no domain logic, no clock and no randomness: it is the replicated state machine.
//
// # Tables
//
// Every table and index is a copy-on-write B-tree. The writer owns one set of trees; each Apply ends by publishing a
// copy, which shares every node that did not change.
//
//	rows[kind]     id                          → object, hash of its stored form
//	links[rel]     owner, order, id            tasks by service (order: slot) and by node, volumes by stack,
//	                                           events by stack, release, service, task, node and all (order: time)
//	labels         kind, parent, name, number  → id     the unique keys, and the ordered lists of a parent's children
//	states         observed state              → number of tasks
//
// The unique keys, in labels:
//
//	node, stack, volume    (name)              network, service   (stack, name)
//	secret, config         (stack, name, number)
//	release                (stack, number)     revision           (service, number)
//
// # A transaction in the log
//
// One log entry carries the transactions of one group commit, as deterministic CBOR:
//
//	entry  = [ txn, … ]
//	txn    = [ op, … ]
//	op     = [ code, kind, id (16 bytes), expected version, object or null ]
//	code   = 1 put · 2 delete · 3 check
//
// The object inside a put is its CBOR map with version left out: the version is the index of the entry. Times are
// RFC 3339 text in UTC with nanoseconds. Unknown map keys are ignored, so a field may be added.
//
// # A snapshot on disk
//
//	"BATONSNP" | format 2 bytes | version 8 | objects 8          integers big-endian
//	{ kind 1 | hash 8 | version uvarint | length uvarint | object as CBOR } …   ordered by kind, then id
//	0 | SHA-256 over everything before it, 32 bytes
//
// # Invariants
//
// A transaction is applied whole or not at all. An object's version is the index that wrote it last, and only grows. Two
// stores that applied the same entries have the same Hash. What a snapshot returns is shared by everyone and read-only:
// clone before changing (Snapshot.Verify finds offenders).
//
// # Concurrency
//
// A Store may be used by any number of goroutines; Apply calls must come in the order of their versions. Snapshots are
// values that never change and need no lock. A Cursor belongs to one goroutine. Nothing here starts a goroutine.
package store
