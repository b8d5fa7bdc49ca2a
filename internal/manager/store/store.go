package store

import (
	"fmt"
	"sync"
	"sync/atomic"

	"baton/internal/model/cluster"
)

// Version is the log index of a write.
type Version = cluster.Version

// HistoryMax is how many changes a store remembers for its cursors, about 4 MB of them. A reader that is further behind
// reads everything anew.
const HistoryMax = 1 << 16

// Store is the state of the cluster. Make one with New.
type Store struct {
	published atomic.Pointer[tables]

	mu      sync.Mutex // guards all below; held for the time of one Apply
	work    *tables
	dirt    dirt
	scratch []byte

	history history
	cursors cursorSet
}

// New returns an empty store at version 0.
func New() *Store { return newStore(newTables(), HistoryMax) }

func newStore(work *tables, historyMax int) *Store {
	s := &Store{work: work}
	s.published.Store(work.copy())
	s.history.max = historyMax
	s.history.floor = work.version
	return s
}

// Snapshot returns the current state. It costs nothing, never changes and never blocks anyone.
func (s *Store) Snapshot() Snapshot { return Snapshot{t: s.published.Load()} }

// Fork returns an independent store at the same state, for trying out what a transaction would do. It has no history:
// cursors on it start with a full read.
func (s *Store) Fork() *Store {
	s.mu.Lock()
	defer s.mu.Unlock()
	return newStore(s.work.copy(), s.history.max)
}

// Entry is the transactions of one log entry.
type Entry struct {
	At   Version
	Txns []Txn
}

// Apply applies the transactions of one log entry, in order, and returns one error per transaction: nil, *ConflictError,
// *ExistsError or ErrMalformed. A transaction with an error changed nothing; the others are not affected. All objects written
// get the version at, which must be higher than that of every Apply before (else it panics). The result depends on nothing
// but the state and the transactions.
func (s *Store) Apply(at Version, txns []Txn) []error {
	return s.ApplyEntries([]Entry{{At: at, Txns: txns}})[0]
}

// ApplyEntries is Apply for several entries at once. Readers see only the state after the last, which makes it cheaper
// than one Apply for each.
func (s *Store) ApplyEntries(entries []Entry) [][]error {
	s.mu.Lock()
	defer s.mu.Unlock()
	results := make([][]error, len(entries))
	b := batch{before: s.work.version}
	for i, e := range entries {
		if e.At <= s.work.version {
			panic(fmt.Sprintf("store: apply of version %d on version %d", e.At, s.work.version))
		}
		results[i] = make([]error, len(e.Txns))
		for j := range e.Txns {
			results[i][j] = s.applyTxn(e.At, &e.Txns[j], &b)
		}
		s.work.version = e.At
	}
	b.at = s.work.version
	s.published.Store(s.work.publish(s.published.Load(), &s.dirt))
	if len(b.changes) > 0 {
		s.history.add(b)
		s.cursors.notify(&b)
	}
	return results
}

// step is one operation of a transaction that passed its checks.
type step struct {
	old row            // obj is nil when nothing is stored
	new cluster.Object // nil for a delete or check
	op  *op
}

// applyTxn checks everything first, so that what follows cannot fail half-way.
func (s *Store) applyTxn(at Version, t *Txn, b *batch) error {
	steps := make([]step, len(t.ops))
	for i := range t.ops {
		o := &t.ops[i]
		old, _ := s.work.get(o.Kind, o.ID)
		var have Version
		if old.obj != nil {
			have = old.obj.GetMeta().Version
		}
		if have != o.Want {
			return &ConflictError{Kind: o.Kind, ID: o.ID, Want: o.Want, Have: have}
		}
		steps[i] = step{old: old, op: o}
		if o.Code != opPut {
			continue
		}
		obj, err := Unmarshal(o.Kind, o.Data)
		if err != nil {
			return err
		}
		if m := obj.GetMeta(); m.ID != o.ID {
			return fmt.Errorf("%w: %s %s carries the id %s", ErrMalformed, o.Kind, o.ID.Short(), m.ID.Short())
		}
		obj.GetMeta().Version = at
		steps[i].new = obj
	}
	if err := s.checkLabels(steps); err != nil {
		return err
	}
	for i := range steps {
		s.commit(at, &steps[i], b)
	}
	return nil
}

func (s *Store) commit(at Version, st *step, b *batch) {
	switch st.op.Code {
	case opPut:
		r := row{id: st.op.ID, obj: st.new, sum: sumOf(&s.scratch, st.op.Kind, st.op.ID, at, st.op.Data)}
		s.work.set(r, st.old, &s.dirt)
		b.put(st.new, st.old.obj)
	case opDelete:
		s.work.remove(st.old, &s.dirt)
		b.remove(st.old.obj)
	}
}

// checkLabels refuses a second owner of a unique key. Within the transaction a key may change hands: what is deleted or
// renamed by it gives its key free, in whatever order the operations come.
func (s *Store) checkLabels(steps []step) error {
	var taken map[label]cluster.ID // keys written by this transaction
	for i := range steps {
		if steps[i].new == nil {
			continue
		}
		l, ok := labelOf(steps[i].new)
		if !ok {
			continue
		}
		if steps[i].old.obj != nil {
			if old, _ := labelOf(steps[i].old.obj); old == l {
				continue
			}
		}
		k := l
		k.id = cluster.ID{}
		if other, ok := taken[k]; ok {
			return existsError(l, other)
		}
		if taken == nil {
			taken = make(map[label]cluster.ID)
		}
		taken[k] = l.id
		if owner, ok := s.work.labels.Get(l); ok && !freed(steps, owner) {
			return existsError(l, owner.id)
		}
	}
	return nil
}

// freed reports whether the transaction takes the key away from its owner.
func freed(steps []step, owner label) bool {
	for i := range steps {
		st := &steps[i]
		if st.op.Kind != owner.kind || st.op.ID != owner.id {
			continue
		}
		if st.op.Code == opDelete {
			return true
		}
		if st.new != nil {
			l, _ := labelOf(st.new)
			return !l.sameKey(owner)
		}
	}
	return false
}

func existsError(l label, owner cluster.ID) error {
	return &ExistsError{Kind: l.kind, Parent: l.parent, Name: l.name, Number: l.number, ID: owner}
}
