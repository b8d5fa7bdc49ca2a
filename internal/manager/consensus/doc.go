// Package consensus orders transactions: what Propose reports as committed is on the disks of a majority of the managers,
// survives kill -9 at any moment, and is applied to every manager's store in the same order. It owns the log on disk and
// its snapshots, and knows nothing of what the transactions mean.
//
// Raft is the real log, on hashicorp/raft and raft-wal; Memory is one copy in memory for simulations and for tests of
// other packages. Both pass the suite in logtest. Without running a log, Salvage reads all that is in one, and Rebuild makes
// one that begins with a given state and has one voter.
//
// # On disk
//
//	DIR/lock                     held while a process has the log open
//	DIR/wal/wal-meta.db          terms, votes, and the list of segments
//	DIR/wal/*.wal                segments of a fixed size, allocated in advance
//	DIR.new                      a log that Rebuild has not finished
//	DIR/snapshots/TERM-INDEX-MS  the last two snapshots: meta.json, state.bin (layout in package store)
//
// A log entry carries the transactions of one group commit:
//
//	format 1 byte (1) | CRC-32C of what follows, 4 bytes big-endian | transactions (layout in package store)
//	format 1 byte (2) | salt 16 bytes | counter 8 bytes | AES-256-GCM of the transactions
//
// The second form is used when there is a key; a snapshot's state.bin is then a stream of encrypted chunks (vault.writer).
//
// # Invariants
//
// An error that is not ErrUnknown means that the transaction was not and will not be applied. After ErrUnknown it may
// have been applied, or may still be: read after a Barrier. Entries are applied exactly once to a store, in the order of
// their index, also when the log is reopened under a running store. A leader is announced only after everything before
// its term is applied.
//
// # Concurrency
//
// All methods may be called by any number of goroutines. Leadership has one reader. Close waits for every goroutine that
// Open started.
package consensus
