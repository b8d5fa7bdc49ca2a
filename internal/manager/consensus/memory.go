package consensus

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"baton/internal/manager/store"
)

// Fault is what Memory does to one proposal instead of simply committing it.
type Fault struct {
	// Delay before anything else. In a synctest bubble it costs no real time; a single-threaded simulation leaves it zero.
	Delay time.Duration
	// Refuse, when not nil, is returned and nothing is applied.
	Refuse error
	// Unknown answers ErrUnknown; the transaction is applied when Applied is set.
	Unknown bool
	Applied bool
}

// Memory is a log of one copy in memory, with no goroutine: Propose applies before it returns. It leads from the start.
type Memory struct {
	mu     sync.Mutex
	store  *store.Store
	terms  terms
	leader bool
	closed bool
	fault  func(*store.Txn) Fault
}

var _ Log = (*Memory)(nil)

// NewMemory returns a log that applies to s and leads term 1.
func NewMemory(s *store.Store) *Memory {
	return &Memory{store: s, leader: true, terms: newTerms(Term{Leader: true, Number: 1})}
}

// SetFault makes f decide what happens to each proposal; nil ends that. f is called outside any lock, and must not
// propose itself.
func (m *Memory) SetFault(f func(t *store.Txn) Fault) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.fault = f
}

// SetLeader takes leadership away or gives it back, in a new term. To take and give at once is a new election won.
func (m *Memory) SetLeader(leader bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed || m.leader == leader {
		return
	}
	m.leader = leader
	next := Term{Leader: leader, Number: m.terms.last.Number}
	if leader {
		next.Number++
	}
	m.terms.set(next)
}

// FaultRates are the probabilities of faults, each in [0,1].
type FaultRates struct {
	Refuse, UnknownApplied, UnknownDropped float64
	DelayMax                               time.Duration
}

// RandomFaults returns a fault function for SetFault that draws from rng. It is as reproducible as the order of proposals.
func RandomFaults(rng *rand.Rand, rates FaultRates) func(*store.Txn) Fault {
	var mu sync.Mutex
	return func(*store.Txn) (f Fault) {
		mu.Lock()
		defer mu.Unlock()
		if rates.DelayMax > 0 {
			f.Delay = time.Duration(rng.Int64N(int64(rates.DelayMax)))
		}
		switch p := rng.Float64(); {
		case p < rates.Refuse:
			f.Refuse = ErrNotLeader
		case p < rates.Refuse+rates.UnknownApplied:
			f.Unknown, f.Applied = true, true
		case p < rates.Refuse+rates.UnknownApplied+rates.UnknownDropped:
			f.Unknown = true
		}
		return f
	}
}

// Propose implements Log.
func (m *Memory) Propose(ctx context.Context, t store.Txn) (store.Version, error) {
	if err := admit(&t); err != nil {
		return 0, err
	}
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	m.mu.Lock()
	fault := m.fault
	m.mu.Unlock()
	var f Fault
	if fault != nil {
		f = fault(&t)
	}
	if f.Delay > 0 {
		timer := time.NewTimer(f.Delay)
		defer timer.Stop()
		select {
		case <-ctx.Done():
			return 0, ctx.Err()
		case <-timer.C:
		}
	}
	if f.Refuse != nil {
		return 0, f.Refuse
	}
	return m.commit(t, f)
}

var errInjected = errors.New("injected fault")

func (m *Memory) commit(t store.Txn, f Fault) (store.Version, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case m.closed:
		return 0, ErrClosed
	case !m.leader:
		return 0, ErrNotLeader
	case f.Unknown && !f.Applied:
		return 0, unknown(errInjected)
	}
	at := m.store.Snapshot().Version() + 1
	err := m.store.Apply(at, []store.Txn{t})[0]
	switch {
	case f.Unknown:
		return 0, unknown(errInjected)
	case err != nil:
		return 0, err
	}
	return at, nil
}

// Barrier implements Log.
func (m *Memory) Barrier(ctx context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case m.closed:
		return ErrClosed
	case !m.leader:
		return ErrNotLeader
	}
	return ctx.Err()
}

// Leadership implements Log.
func (m *Memory) Leadership() <-chan Term { return m.terms.ch }

// Transfer implements Log. There is nobody to transfer to.
func (m *Memory) Transfer(_ context.Context, to string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return ErrClosed
	}
	return noPeer(to)
}

// Close ends the log; the store stays.
func (m *Memory) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.closed {
		m.closed, m.leader = true, false
		close(m.terms.ch)
	}
	return nil
}

func noPeer(to string) error {
	if to == "" {
		return fmt.Errorf("transfer leadership: %w: add a manager first", ErrNoPeer)
	}
	return fmt.Errorf("transfer leadership to %q: %w of that name: list the managers with `baton node ls`", to, ErrNoPeer)
}
