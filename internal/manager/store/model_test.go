package store

import (
	"maps"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"baton/internal/model/cluster"
)

// model is the store as one would first think of it: a map, and names found by looking at everything.
type model struct {
	objects map[key]cluster.Object
	version Version
}

func (m *model) apply(at Version, txns []Txn) []bool {
	ok := make([]bool, len(txns))
	for i := range txns {
		if next, good := m.try(at, &txns[i]); good {
			m.objects, ok[i] = next, true
		}
	}
	m.version = at
	return ok
}

func (m *model) try(at Version, t *Txn) (map[key]cluster.Object, bool) {
	next := maps.Clone(m.objects)
	for _, o := range t.ops {
		k := key{o.Kind, o.ID}
		var have Version
		if old := m.objects[k]; old != nil {
			have = old.GetMeta().Version
		}
		if have != o.Want {
			return nil, false
		}
		switch o.Code {
		case opPut:
			obj, err := Unmarshal(o.Kind, o.Data)
			if err != nil {
				return nil, false
			}
			obj.GetMeta().Version = at
			next[k] = obj
		case opDelete:
			delete(next, k)
		}
	}
	seen := map[label]bool{}
	for _, o := range next {
		l, labelled := labelOf(o)
		l.id = cluster.ID{}
		if labelled && seen[l] {
			return nil, false
		}
		seen[l] = true
	}
	return next, true
}

func (m *model) pick(t *rapid.T, k cluster.Kind, ids []cluster.ID) cluster.Object {
	o := cluster.New(k)
	o.GetMeta().ID = rapid.SampledFrom(ids).Draw(t, "id")
	if stored := m.objects[key{k, o.GetMeta().ID}]; stored != nil {
		o = stored.Clone()
	}
	if rapid.IntRange(0, 9).Draw(t, "stale") == 0 {
		o.GetMeta().Version = Version(rapid.IntRange(0, 5).Draw(t, "version"))
	}
	return o
}

func (m *model) txn(t *rapid.T, ids []cluster.ID) (txn Txn) {
	for range rapid.IntRange(1, 4).Draw(t, "operations") {
		k := rapid.SampledFrom([]cluster.Kind{cluster.KindTask, cluster.KindNode, cluster.KindService}).Draw(t, "kind")
		o := m.pick(t, k, ids)
		switch v := o.(type) {
		case *cluster.Task:
			v.Service, v.Node = rapid.SampledFrom(ids).Draw(t, "service"), rapid.SampledFrom(ids).Draw(t, "node")
			v.Observed = cluster.Observed(rapid.IntRange(1, 10).Draw(t, "observed"))
		case *cluster.Node:
			v.Name = rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "name")
		case *cluster.Service:
			v.Stack, v.Name = rapid.SampledFrom(ids[:2]).Draw(t, "stack"), rapid.SampledFrom([]string{"a", "b"}).Draw(t, "name")
		}
		switch c := rapid.IntRange(0, 9).Draw(t, "code"); {
		case c < 6:
			txn.Put(o)
		case c < 8 && o.GetMeta().Version > 0:
			txn.Delete(o)
		default:
			txn.Check(o)
		}
	}
	return txn
}

// follower keeps a copy of the state from the deltas of a cursor alone.
type follower struct {
	c    *Cursor
	have map[key]cluster.Object
}

func (f *follower) catchUp() {
	d := f.c.Collect()
	if d.Full {
		f.have = map[key]cluster.Object{}
	}
	for _, o := range d.Changed {
		f.have[key{o.Kind(), o.GetMeta().ID}] = o
	}
	for _, r := range d.Deleted {
		delete(f.have, key{r.Kind, r.ID})
	}
}

func TestStoreBehavesAsTheModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s, twin := newStore(newTables(), rapid.SampledFrom([]int{2, 20, 1000}).Draw(t, "history")), New()
		m := &model{objects: map[key]cluster.Object{}}
		all := []cluster.ID{id(1), id(2), id(3), id(4)}
		f := &follower{c: s.Changes(0, Filter{})}
		defer f.c.Close()
		byNode := &follower{c: s.Changes(0, Filter{Kinds: []cluster.Kind{cluster.KindTask}, Node: all[0]})}
		defer byNode.c.Close()
		for range rapid.IntRange(1, 25).Draw(t, "entries") {
			txns := []Txn{m.txn(t, all)}
			if rapid.Bool().Draw(t, "two") {
				txns = append(txns, m.txn(t, all))
			}
			at := m.version + Version(rapid.IntRange(1, 3).Draw(t, "gap"))
			data, err := EncodeTxns(txns)
			if err != nil {
				t.Fatal(err)
			}
			decoded, err := DecodeTxns(data)
			if err != nil {
				t.Fatal(err)
			}
			errs := s.Apply(at, txns)
			twin.Apply(at, decoded)
			for i, ok := range m.apply(at, txns) {
				if ok != (errs[i] == nil) {
					t.Fatalf("transaction %d: the model says %v, the store %v", i, ok, errs[i])
				}
			}
			check(t, s.Snapshot(), m, all)
			if s.Snapshot().Hash() != twin.Snapshot().Hash() {
				t.Fatal("the bytes of the log gave another state")
			}
			if rapid.Bool().Draw(t, "read") {
				f.catchUp()
				byNode.catchUp()
				checkFollowers(t, s.Snapshot(), f, byNode, all[0])
			}
		}
	})
}

func check(t *rapid.T, s Snapshot, m *model, all []cluster.ID) {
	total := 0
	for k := cluster.Kind(1); k <= cluster.KindMax; k++ {
		total += s.Count(k)
	}
	if total != len(m.objects) {
		t.Fatalf("got %d objects, want %d", total, len(m.objects))
	}
	states := map[cluster.Observed]int{}
	for k, want := range m.objects {
		got, ok := s.Lookup(k.kind, k.id)
		if !ok || got.GetMeta().Version != want.GetMeta().Version {
			t.Fatalf("%s %s: got %v, want %v", k.kind, k.id, got, want)
		}
		if l, labelled := labelOf(want); labelled {
			if o, ok := s.ByName(k.kind, l.parent, l.name); !ok || o.GetMeta().ID != k.id {
				t.Fatalf("%s %q: got %v", k.kind, l.name, o)
			}
		}
		if task, ok := want.(*cluster.Task); ok {
			states[task.Observed]++
		}
	}
	for o := cluster.ObservedPending; o <= cluster.ObservedLost; o++ {
		if s.TaskCount(o) != states[o] || len(ids(s.TasksByState(o))) != states[o] {
			t.Fatalf("%s tasks: got %d, want %d", o, s.TaskCount(o), states[o])
		}
	}
	for _, owner := range all {
		service, node := 0, 0
		for _, o := range m.objects {
			if task, ok := o.(*cluster.Task); ok {
				if task.Service == owner {
					service++
				}
				if task.Node == owner {
					node++
				}
			}
		}
		if a, b := len(ids(s.TasksByService(owner))), len(ids(s.TasksByNode(owner))); a != service || b != node {
			t.Fatalf("tasks of %s: got %d and %d, want %d and %d", owner, a, b, service, node)
		}
	}
	if err := s.Verify(); err != nil {
		t.Fatal(err)
	}
}

func checkFollowers(t *rapid.T, s Snapshot, f, byNode *follower, node cluster.ID) {
	count := 0
	for k, o := range f.have {
		if got, ok := s.Lookup(k.kind, k.id); !ok || got != o {
			t.Fatalf("the reader has %v where the store has %v", o, got)
		}
	}
	for k := cluster.Kind(1); k <= cluster.KindMax; k++ {
		count += s.Count(k)
	}
	if count != len(f.have) {
		t.Fatalf("the reader has %d objects, the store %d", len(f.have), count)
	}
	want := ids(s.TasksByNode(node))
	for k := range byNode.have {
		if !slices.Contains(want, k.id) {
			t.Fatalf("the node's reader still has %s", k.id)
		}
	}
	if len(want) != len(byNode.have) {
		t.Fatalf("the node's reader has %d tasks, want %d", len(byNode.have), len(want))
	}
}
