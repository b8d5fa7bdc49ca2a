package consensus

import (
	"context"
	"errors"
	"fmt"

	"baton/internal/manager/store"
)

// Log is the seam between those who decide and the replicated store:
//
//	version, err := log.Propose(ctx, txn)
//	switch {
//	case err == nil:                           // committed, and the local store is at version or later
//	case errors.Is(err, store.ErrConflict):    // read again, decide again
//	case errors.Is(err, consensus.ErrUnknown): // Barrier, then look whether it happened
//	default:                                   // refused; nothing happened
//	}
type Log interface {
	// Propose commits a transaction and returns the version that the objects written by it now have; the local store has
	// applied it. Errors: those of store.Apply, ErrNotLeader, ErrTooLarge, ErrDiskFull, ErrDiskStalled, ErrClosed, the
	// context's own when the transaction was never handed on, and ErrUnknown.
	Propose(ctx context.Context, t store.Txn) (store.Version, error)
	// Barrier returns once the local store has everything that was committed, by anyone, before the call. It needs to be
	// the leader.
	Barrier(ctx context.Context) error
	// Leadership gives the current term at once and then each change; a slow reader sees only the latest. The channel is
	// the same at each call, for one reader, and is closed with the log.
	Leadership() <-chan Term
	// Transfer hands leadership to another manager, or to the best one when to is empty.
	Transfer(ctx context.Context, to string) error
}

// Term says whether this manager leads.
type Term struct {
	Leader bool
	Number uint64 // grows with each election; two terms of one leader differ in it
}

// Limits.
const (
	// EntryBytesMax is how much of queued transactions is put into one log entry. Larger entries delay heartbeats.
	EntryBytesMax = 256 << 10
	// TxnBytesMax is the size of the largest transaction; one above EntryBytesMax gets an entry of its own.
	TxnBytesMax = 4 << 20
	// InFlightBytesMax is how much may be on its way to the disks at a time.
	InFlightBytesMax = 16 << 20
	// QueueMax is how many proposals wait for their turn; further callers wait in Propose.
	QueueMax = 1024
)

// The errors of a log. All but ErrUnknown mean that nothing happened.
var (
	ErrNotLeader   = errors.New("this manager is not the leader")
	ErrTooLarge    = errors.New("transaction is too large")
	ErrEmpty       = errors.New("transaction is empty")
	ErrClosed      = errors.New("log is closed")
	ErrDiskFull    = errors.New("disk is full")
	ErrDiskStalled = errors.New("disk does not answer")
	// ErrDamaged means that a committed entry cannot be read. Nothing after it is applied.
	ErrDamaged = errors.New("log is damaged")
	// ErrUnknown means that the transaction was handed on and its outcome was not seen: it may or may not be applied.
	ErrUnknown = errors.New("outcome unknown")
	// ErrNoLeader means that no leader was found in time: a majority of the managers is not reachable, or they are electing.
	ErrNoLeader = errors.New("no leader")
	// ErrNoPeer means that there is no other manager to lead.
	ErrNoPeer = errors.New("no other manager")
)

// unknown wraps the reason why an outcome was not seen.
func unknown(cause error) error { return fmt.Errorf("%w: %w", ErrUnknown, cause) }

// admit checks what can be known of a transaction before it is handed on.
func admit(t *store.Txn) error {
	switch {
	case t.Empty():
		return ErrEmpty
	case t.Size() > TxnBytesMax || t.Len() > store.OpsMax:
		return fmt.Errorf("%w: %d operations of %d bytes, at most %d and %d: split it", ErrTooLarge, t.Len(), t.Size(), store.OpsMax, TxnBytesMax)
	}
	return nil
}

// terms is a channel that always holds the latest value not yet read. Its methods are called under the owner's lock.
type terms struct {
	ch   chan Term
	last Term
}

func newTerms(first Term) terms {
	t := terms{ch: make(chan Term, 1), last: first}
	t.ch <- first
	return t
}

// set never blocks: it takes an unread value back first, and only the owner sends.
func (t *terms) set(now Term) {
	if now == t.last {
		return
	}
	t.last = now
	select {
	case <-t.ch:
	default:
	}
	t.ch <- now
}
