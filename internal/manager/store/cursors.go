package store

import (
	"slices"

	"baton/internal/model/cluster"
)

// cursorSet finds the cursors that a batch concerns. Cursors on the tasks of one node are found by the node, so that
// ten thousand agents cost nothing when one task changes.
type cursorSet struct {
	all    []*Cursor                // in the order of registration: who is woken first never depends on a map
	byNode map[cluster.ID][]*Cursor // those with a node, which see tasks by it alone
}

func (cs *cursorSet) add(c *Cursor) {
	if c.node.IsZero() || c.seesOthers() {
		cs.all = append(cs.all, c)
	}
	if !c.node.IsZero() && c.kinds[cluster.KindTask] {
		if cs.byNode == nil {
			cs.byNode = make(map[cluster.ID][]*Cursor)
		}
		cs.byNode[c.node] = append(cs.byNode[c.node], c)
	}
}

func (cs *cursorSet) remove(c *Cursor) {
	is := func(o *Cursor) bool { return o == c }
	cs.all = slices.DeleteFunc(cs.all, is)
	if left := slices.DeleteFunc(cs.byNode[c.node], is); len(left) > 0 {
		cs.byNode[c.node] = left
	} else {
		delete(cs.byNode, c.node)
	}
}

// each calls f with every cursor, some twice.
func (cs *cursorSet) each(f func(*Cursor)) {
	for _, c := range cs.all {
		f(c)
	}
	for _, list := range cs.byNode {
		for _, c := range list {
			f(c)
		}
	}
}

func (cs *cursorSet) notify(b *batch) {
	var kinds [cluster.KindMax + 1]bool
	for i := range b.changes {
		ch := &b.changes[i]
		kinds[ch.kind] = true
		if ch.kind != cluster.KindTask || len(cs.byNode) == 0 {
			continue
		}
		for _, c := range cs.byNode[ch.node] {
			if b.at > c.seen {
				c.mark(b.before)
			}
		}
	}
	for _, c := range cs.all {
		if b.at > c.seen && c.concerned(&kinds) {
			c.mark(b.before)
		}
	}
}

// concerned reports whether a change of any of the kinds, found without looking at nodes, may matter to the cursor.
func (c *Cursor) concerned(kinds *[cluster.KindMax + 1]bool) bool {
	for k, changed := range kinds {
		if changed && c.kinds[k] && (cluster.Kind(k) != cluster.KindTask || c.node.IsZero()) {
			return true
		}
	}
	return false
}

func (c *Cursor) seesOthers() bool {
	for k, want := range c.kinds {
		if want && cluster.Kind(k) != cluster.KindTask {
			return true
		}
	}
	return false
}
