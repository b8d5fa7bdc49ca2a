package store

import (
	"context"
	"slices"
	"sort"

	"baton/internal/model/cluster"
)

// change is one object written or removed.
type change struct {
	kind cluster.Kind
	id   cluster.ID
	node cluster.ID     // of a task
	gone cluster.Object // the last state of a removed object
}

// batch is what one call of Apply changed: versions in (before, at].
type batch struct {
	before, at Version
	changes    []change
}

func (b *batch) put(o, old cluster.Object) {
	node := nodeOf(o)
	b.changes = append(b.changes, change{kind: o.Kind(), id: o.GetMeta().ID, node: node})
	if old != nil {
		// The node it left must hear of it too.
		if was := nodeOf(old); was != node {
			b.changes = append(b.changes, change{kind: o.Kind(), id: o.GetMeta().ID, node: was})
		}
	}
}

func (b *batch) remove(old cluster.Object) {
	b.changes = append(b.changes, change{kind: old.Kind(), id: old.GetMeta().ID, node: nodeOf(old), gone: old})
}

func nodeOf(o cluster.Object) cluster.ID {
	if t, ok := o.(*cluster.Task); ok {
		return t.Node
	}
	return cluster.ID{}
}

// history is the last batches, oldest first, bounded by the number of their changes.
type history struct {
	batches []batch
	changes int
	max     int
	floor   Version // versions up to here are no longer covered
}

func (h *history) add(b batch) {
	h.batches = append(h.batches, b)
	h.changes += len(b.changes)
	drop := 0
	for h.changes > h.max && drop < len(h.batches) {
		h.changes -= len(h.batches[drop].changes)
		h.floor = h.batches[drop].at
		drop++
	}
	// Readers may hold the old slice, so what is dropped cannot be cleared; it goes when append next moves the rest.
	h.batches = h.batches[drop:]
}

// since returns the batches that changed anything after v. The slice is never written to again.
func (h *history) since(v Version) []batch {
	i := sort.Search(len(h.batches), func(i int) bool { return h.batches[i].at > v })
	return h.batches[i:len(h.batches):len(h.batches)]
}

// Filter chooses what a cursor sees.
type Filter struct {
	// Kinds to see; none means all.
	Kinds []cluster.Kind
	// Node, when set, limits tasks to those of this node. Other kinds are not affected. A task that leaves the node is
	// reported as deleted.
	Node cluster.ID
}

// Ref names an object that is gone.
type Ref struct {
	Kind cluster.Kind
	ID   cluster.ID
	// Last is the object before it was removed; nil when it is not known any more. For a task that left the filter's node it
	// is the task as it is now.
	Last cluster.Object
}

// Delta is what changed between two versions: the latest state of each object, once, in the order of its first change.
type Delta struct {
	// Full means that the reader knows nothing, or was away for too long: Changed is everything there is, and what the
	// reader has beside it is gone. Deleted is empty then.
	Full    bool
	Changed []cluster.Object // shared, read-only
	// Deleted may name objects that the reader never saw: they came and went between two reads.
	Deleted  []Ref
	Snapshot Snapshot // the state after the changes
}

// Empty reports whether there is nothing to do.
func (d Delta) Empty() bool { return !d.Full && len(d.Changed) == 0 && len(d.Deleted) == 0 }

// Version is where to resume: Changes(d.Version(), filter) continues after d.
func (d Delta) Version() Version { return d.Snapshot.Version() }

// Cursor follows the changes of a store. It is level-triggered: however many writes happened, one Collect brings the
// latest state of each object that changed. A reader that does not read costs nothing but its place in a list, and one for
// which nothing changes never falls behind. A cursor belongs to one goroutine, which closes it:
//
//	c := s.Changes(0, store.Filter{Kinds: []cluster.Kind{cluster.KindTask}})
//	defer c.Close()
//	for {
//		d, err := c.Next(ctx)
//		if err != nil {
//			return err
//		}
//		…
//	}
type Cursor struct {
	s     *Store
	kinds [cluster.KindMax + 1]bool
	node  cluster.ID
	wake  chan struct{} // one token while dirty

	// Guarded by s.mu.
	dirty  bool
	full   bool
	since  Version // while dirty: everything up to here is known
	seen   Version // nothing up to here is reported, even by a replica that is still behind it
	closed bool
}

// Changes returns a cursor that reports what changes after version from, which is the version of a Delta or Snapshot of
// this store or of another replica. From zero, or from further back than the store remembers, the first Delta is full.
func (s *Store) Changes(from Version, want Filter) *Cursor {
	c := &Cursor{s: s, node: want.Node, wake: make(chan struct{}, 1), since: from, seen: from}
	for _, k := range want.Kinds {
		c.kinds[k] = true
	}
	if len(want.Kinds) == 0 {
		for k := range c.kinds {
			c.kinds[k] = true
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	c.full = from == 0 || from < s.history.floor
	if c.full || len(s.history.since(from)) > 0 {
		c.mark(from)
	}
	s.cursors.add(c)
	return c
}

// Wait returns a channel that gives one token while there may be something to Collect.
func (c *Cursor) Wait() <-chan struct{} {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	if c.dirty {
		c.signal()
	}
	return c.wake
}

// Collect returns what changed since the last Collect; it never blocks, and the result may be empty.
func (c *Cursor) Collect() Delta {
	d, batches := c.take()
	if d.Full {
		c.collectAll(&d)
		return d
	}
	c.collect(&d, batches)
	return d
}

// Next waits until something changed and collects it. It returns the context's error, or ErrClosed.
func (c *Cursor) Next(ctx context.Context) (Delta, error) {
	for {
		c.s.mu.Lock()
		closed := c.closed
		c.s.mu.Unlock()
		if closed {
			return Delta{}, ErrClosed
		}
		select {
		case <-ctx.Done():
			return Delta{}, ctx.Err()
		case <-c.Wait():
		}
		if d := c.Collect(); !d.Empty() {
			return d, nil
		}
	}
}

// Close takes the cursor off the store's list. It may be called more than once.
func (c *Cursor) Close() {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	if !c.closed {
		c.closed = true
		c.s.cursors.remove(c)
	}
}

// take makes the cursor clean and returns what it has to look at.
func (c *Cursor) take() (d Delta, batches []batch) {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	d.Snapshot = c.s.Snapshot()
	select {
	case <-c.wake:
	default:
	}
	if !c.dirty {
		return d, nil
	}
	since := max(c.since, c.seen)
	d.Full = c.full || since < c.s.history.floor
	if !d.Full {
		batches = c.s.history.since(since)
	}
	c.dirty, c.full = false, false
	return d, batches
}

func (c *Cursor) collectAll(d *Delta) {
	for k, rows := range d.Snapshot.t.rows {
		switch {
		case !c.kinds[k]:
		case cluster.Kind(k) == cluster.KindTask && !c.node.IsZero():
			for t := range d.Snapshot.TasksByNode(c.node) {
				d.Changed = append(d.Changed, t)
			}
		default:
			d.Changed = slices.Grow(d.Changed, rows.Len())
			rows.Scan(func(r row) bool {
				d.Changed = append(d.Changed, r.obj)
				return true
			})
		}
	}
}

func (c *Cursor) collect(d *Delta, batches []batch) {
	done := make(map[key]int) // index+1 into Deleted, or 0
	for i := range batches {
		for j := range batches[i].changes {
			ch := &batches[i].changes[j]
			if !c.wants(ch) {
				continue
			}
			k := key{ch.kind, ch.id}
			if at, ok := done[k]; ok {
				if at > 0 && ch.gone != nil {
					d.Deleted[at-1].Last = ch.gone
				}
				continue
			}
			o, ok := d.Snapshot.Lookup(ch.kind, ch.id)
			if ok && (c.node.IsZero() || ch.kind != cluster.KindTask || nodeOf(o) == c.node) {
				done[k] = 0
				d.Changed = append(d.Changed, o)
				continue
			}
			if !ok {
				o = ch.gone
			}
			d.Deleted = append(d.Deleted, Ref{Kind: ch.kind, ID: ch.id, Last: o})
			done[k] = len(d.Deleted)
		}
	}
}

func (c *Cursor) wants(ch *change) bool {
	return c.kinds[ch.kind] && (ch.kind != cluster.KindTask || c.node.IsZero() || ch.node == c.node)
}

// mark notes that something after version before may concern the cursor. The store's lock is held.
func (c *Cursor) mark(before Version) {
	if !c.dirty {
		c.dirty, c.since = true, before
	}
	c.signal()
}

// signal never blocks: the channel holds one token, and one is enough.
func (c *Cursor) signal() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}
