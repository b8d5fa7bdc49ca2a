package store

import (
	"bytes"
	"cmp"
	"math"
	"strings"

	"github.com/tidwall/btree"

	"baton/internal/model/cluster"
)

// row is one stored object. The id is repeated here so that searching a table does not touch the objects.
type row struct {
	id  cluster.ID
	sum uint64 // hash of kind, id, version and stored form; their sum over all rows is the state hash
	obj cluster.Object
}

func rowLess(a, b row) bool { return bytes.Compare(a.id[:], b.id[:]) < 0 }

// relation names an index over links.
type relation uint8

const (
	taskService  relation = iota // owner: service; order: slot
	taskNode                     // owner: node, zero for tasks without one
	volumeStack                  // owner: stack
	eventSubject                 // owner: stack, release, service, task or node, zero for all; order: time
	relationMax
)

// link says that an object belongs to an owner. It holds no pointer, so that an update which moves nothing leaves the
// index alone.
type link struct {
	owner cluster.ID
	order int64
	id    cluster.ID
}

func linkLess(a, b link) bool {
	if c := bytes.Compare(a.owner[:], b.owner[:]); c != 0 {
		return c < 0
	}
	if a.order != b.order {
		return a.order < b.order
	}
	return bytes.Compare(a.id[:], b.id[:]) < 0
}

// linkSet is the links of one object: at most six, for an event.
type linkSet struct {
	n  int
	at [6]struct {
		rel  relation
		link link
	}
}

func (l *linkSet) add(rel relation, owner cluster.ID, order int64, id cluster.ID) {
	l.at[l.n].rel, l.at[l.n].link = rel, link{owner: owner, order: order, id: id}
	l.n++
}

func linksOf(o cluster.Object) (set linkSet) {
	switch v := o.(type) {
	case *cluster.Task:
		set.add(taskService, v.Service, int64(v.Slot), v.ID)
		set.add(taskNode, v.Node, 0, v.ID)
	case *cluster.Volume:
		set.add(volumeStack, v.Stack, 0, v.ID)
	case *cluster.Event:
		at := v.At.UnixNano()
		set.add(eventSubject, cluster.ID{}, at, v.ID)
		for _, owner := range [...]cluster.ID{v.Stack, v.Release, v.Service, v.Task, v.Node} {
			if !owner.IsZero() {
				set.add(eventSubject, owner, at, v.ID)
			}
		}
	}
	return set
}

// label is a unique key and who has it.
type label struct {
	kind   cluster.Kind
	parent cluster.ID
	name   string
	number int
	id     cluster.ID
}

func labelLess(a, b label) bool {
	if a.kind != b.kind {
		return a.kind < b.kind
	}
	if c := bytes.Compare(a.parent[:], b.parent[:]); c != 0 {
		return c < 0
	}
	if c := strings.Compare(a.name, b.name); c != 0 {
		return c < 0
	}
	return cmp.Less(a.number, b.number)
}

func (l label) sameKey(m label) bool {
	return l.kind == m.kind && l.parent == m.parent && l.name == m.name && l.number == m.number
}

// labelOf returns the unique key of an object; tasks, events and settings have none.
func labelOf(o cluster.Object) (label, bool) {
	l := label{kind: o.Kind(), id: o.GetMeta().ID}
	switch v := o.(type) {
	case *cluster.Node:
		l.name = v.Name
	case *cluster.Stack:
		l.name = v.Name
	case *cluster.Service:
		l.parent, l.name = v.Stack, v.Name
	case *cluster.Volume:
		l.name = v.Name
	case *cluster.Registry:
		l.name = v.Host
	case *cluster.Network:
		l.parent, l.name = v.Stack, v.Name
	case *cluster.Secret:
		l.parent, l.name, l.number = v.Stack, v.Name, v.Number
	case *cluster.Config:
		l.parent, l.name, l.number = v.Stack, v.Name, v.Number
	case *cluster.Release:
		l.parent, l.number = v.Stack, v.Number
	case *cluster.Revision:
		l.parent, l.number = v.Service, v.Number
	default:
		return label{}, false
	}
	return l, true
}

// tables is one state: the writer's own, or a published one that never changes again.
type tables struct {
	version cluster.Version
	rows    [cluster.KindMax + 1]*btree.BTreeG[row]
	links   [relationMax]*btree.BTreeG[link]
	labels  *btree.BTreeG[label]
	states  [cluster.ObservedLost + 1]int
	sum     uint64
}

func newTables() *tables {
	opts := btree.Options{NoLocks: true} // the writer holds the store's lock, readers have their own copy
	t := &tables{labels: btree.NewBTreeGOptions(labelLess, opts)}
	for k := range t.rows {
		t.rows[k] = btree.NewBTreeGOptions(rowLess, opts)
	}
	for r := range t.links {
		t.links[r] = btree.NewBTreeGOptions(linkLess, opts)
	}
	return t
}

// dirt marks the trees that changed since they were published.
type dirt struct {
	rows   [cluster.KindMax + 1]bool
	links  [relationMax]bool
	labels bool
}

// publish returns an immutable state equal to t, given the one published before.
func (t *tables) publish(before *tables, d *dirt) *tables {
	next := *before
	next.version, next.states, next.sum = t.version, t.states, t.sum
	for k, dirty := range d.rows {
		if dirty {
			next.rows[k] = t.rows[k].Copy()
		}
	}
	for r, dirty := range d.links {
		if dirty {
			next.links[r] = t.links[r].Copy()
		}
	}
	if d.labels {
		next.labels = t.labels.Copy()
	}
	*d = dirt{}
	return &next
}

// copy returns an independent state; only the owner of t may call it.
func (t *tables) copy() *tables {
	next := *t
	for k := range t.rows {
		next.rows[k] = t.rows[k].Copy()
	}
	for r := range t.links {
		next.links[r] = t.links[r].Copy()
	}
	next.labels = t.labels.Copy()
	return &next
}

func (t *tables) get(k cluster.Kind, id cluster.ID) (row, bool) { return t.rows[k].Get(row{id: id}) }

// set stores r in place of old (its obj nil for a new one) and keeps every index in step.
func (t *tables) set(r, old row, d *dirt) {
	k := r.obj.Kind()
	t.rows[k].Set(r)
	d.rows[k] = true
	t.sum += r.sum - old.sum
	t.count(r.obj, 1)
	next := linksOf(r.obj)
	nextLabel, labelled := labelOf(r.obj)
	if old.obj != nil {
		t.count(old.obj, -1)
		if prev := linksOf(old.obj); prev != next {
			t.unlink(&prev, d)
			t.link(&next, d)
		}
		if prev, _ := labelOf(old.obj); labelled && prev != nextLabel {
			t.unlabel(prev, d)
			t.labels.Set(nextLabel)
			d.labels = true
		}
		return
	}
	t.link(&next, d)
	if labelled {
		t.labels.Set(nextLabel)
		d.labels = true
	}
}

// remove takes a stored row away.
func (t *tables) remove(old row, d *dirt) {
	k := old.obj.Kind()
	t.rows[k].Delete(old)
	d.rows[k] = true
	t.sum -= old.sum
	t.count(old.obj, -1)
	links := linksOf(old.obj)
	t.unlink(&links, d)
	if l, ok := labelOf(old.obj); ok {
		t.unlabel(l, d)
	}
}

// unlabel gives a key free, unless an earlier operation of the same transaction has given it to another object.
func (t *tables) unlabel(l label, d *dirt) {
	if owner, ok := t.labels.Get(l); ok && owner.id == l.id {
		t.labels.Delete(l)
		d.labels = true
	}
}

func (t *tables) link(set *linkSet, d *dirt) {
	for _, e := range set.at[:set.n] {
		t.links[e.rel].Set(e.link)
		d.links[e.rel] = true
	}
}

func (t *tables) unlink(set *linkSet, d *dirt) {
	for _, e := range set.at[:set.n] {
		t.links[e.rel].Delete(e.link)
		d.links[e.rel] = true
	}
}

func (t *tables) count(o cluster.Object, by int) {
	if task, ok := o.(*cluster.Task); ok && int(task.Observed) < len(t.states) {
		t.states[task.Observed] += by
	}
}

// owned calls yield with the ids linked to owner, in their order, until it returns false.
func (t *tables) owned(rel relation, owner cluster.ID, yield func(cluster.ID) bool) {
	t.links[rel].Ascend(link{owner: owner, order: math.MinInt64}, func(l link) bool {
		return l.owner == owner && yield(l.id)
	})
}

// ownedNewest is owned in the opposite order.
func (t *tables) ownedNewest(rel relation, owner cluster.ID, yield func(cluster.ID) bool) {
	last := link{owner: owner, order: math.MaxInt64}
	for i := range last.id {
		last.id[i] = 0xff
	}
	t.links[rel].Descend(last, func(l link) bool { return l.owner == owner && yield(l.id) })
}
