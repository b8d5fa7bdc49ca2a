package store

import (
	"context"
	"errors"
	"slices"
	"testing"

	"baton/internal/model/cluster"
)

func changedIDs(d Delta) (out []cluster.ID) {
	for _, o := range d.Changed {
		out = append(out, o.GetMeta().ID)
	}
	return out
}

func deletedIDs(d Delta) (out []cluster.ID) {
	for _, r := range d.Deleted {
		out = append(out, r.ID)
	}
	return out
}

func woken(c *Cursor) bool {
	select {
	case <-c.Wait():
		return true
	default:
		return false
	}
}

func update(t testing.TB, s *Store, n byte, change func(*cluster.Task)) {
	t.Helper()
	o := cluster.Copy(get[*cluster.Task](t, s, id(n)))
	change(o)
	mustApply(t, s, putAll(o))
}

func remove(t testing.TB, s *Store, o cluster.Object) {
	t.Helper()
	var txn Txn
	txn.Delete(o)
	mustApply(t, s, txn)
}

func TestCursorCoalesces(t *testing.T) {
	s := New()
	mustApply(t, s, putAll(task(1, 9, 0), task(2, 9, 0)))
	c := s.Changes(0, Filter{})
	defer c.Close()
	if d := c.Collect(); !d.Full || len(d.Changed) != 2 {
		t.Fatalf("first: got full %v with %d objects", d.Full, len(d.Changed))
	}
	if woken(c) {
		t.Fatal("woken although nothing changed")
	}
	for range 10 {
		update(t, s, 1, func(o *cluster.Task) { o.Failures++ })
	}
	mustApply(t, s, putAll(task(3, 9, 0)))
	remove(t, s, get[*cluster.Task](t, s, id(2)))
	remove(t, s, get[*cluster.Task](t, s, id(3)))
	if !woken(c) {
		t.Fatal("not woken")
	}
	d := c.Collect()
	if d.Full || !slices.Equal(changedIDs(d), []cluster.ID{id(1)}) || !slices.Equal(deletedIDs(d), []cluster.ID{id(3), id(2)}) {
		t.Fatalf("got full %v, changed %v, deleted %v", d.Full, changedIDs(d), deletedIDs(d))
	}
	if got := d.Changed[0].(*cluster.Task).Failures; got != 10 {
		t.Errorf("got the state after %d changes, want the latest", got)
	}
	for _, r := range d.Deleted {
		if r.Last == nil || r.Last.GetMeta().ID != r.ID {
			t.Errorf("the last state of %s: got %v", r.ID, r.Last)
		}
	}
	if again := c.Collect(); !again.Empty() {
		t.Errorf("again: got %+v, want nothing", again)
	}
}

func TestCursorFilters(t *testing.T) {
	s := New()
	c := s.Changes(s.Snapshot().Version(), Filter{Kinds: []cluster.Kind{cluster.KindNode}})
	defer c.Close()
	c.Collect()
	mustApply(t, s, putAll(task(1, 9, 0)))
	if woken(c) {
		t.Fatal("a task woke a cursor on nodes")
	}
	mustApply(t, s, putAll(&cluster.Node{Meta: meta(2), Name: "n"}, task(3, 9, 0)))
	if d := c.Collect(); !slices.Equal(changedIDs(d), []cluster.ID{id(2)}) {
		t.Fatalf("got %v", changedIDs(d))
	}
}

func TestCursorOfANode(t *testing.T) {
	s := New()
	mustApply(t, s, putAll(task(1, 9, 60), task(2, 9, 61), task(3, 9, 0)))
	c := s.Changes(0, Filter{Kinds: []cluster.Kind{cluster.KindTask, cluster.KindSecret}, Node: id(60)})
	defer c.Close()
	if d := c.Collect(); !d.Full || !slices.Equal(changedIDs(d), []cluster.ID{id(1)}) {
		t.Fatalf("first: got %v", changedIDs(d))
	}
	update(t, s, 2, func(o *cluster.Task) { o.Reason = "x" })
	if woken(c) {
		t.Fatal("a task of another node woke it")
	}
	update(t, s, 3, func(o *cluster.Task) { o.Node = id(60) })
	mustApply(t, s, putAll(&cluster.Secret{Meta: meta(5), Name: "pw"}))
	if d := c.Collect(); !slices.Equal(changedIDs(d), []cluster.ID{id(3), id(5)}) {
		t.Fatalf("assigned: got %v", changedIDs(d))
	}
	update(t, s, 3, func(o *cluster.Task) { o.Node = id(61) })
	if d := c.Collect(); len(d.Changed) != 0 || !slices.Equal(deletedIDs(d), []cluster.ID{id(3)}) {
		t.Fatalf("moved away: got changed %v, deleted %v", changedIDs(d), deletedIDs(d))
	}
}

func TestCursorResumesAndFallsBehind(t *testing.T) {
	s := newStore(newTables(), 4)
	mustApply(t, s, putAll(task(1, 9, 0)))
	at := s.Snapshot().Version()
	quiet := s.Changes(at, Filter{Kinds: []cluster.Kind{cluster.KindNode}})
	defer quiet.Close()
	update(t, s, 1, func(o *cluster.Task) { o.Reason = "x" })
	resumed := s.Changes(at, Filter{})
	defer resumed.Close()
	if d := resumed.Collect(); d.Full || !slices.Equal(changedIDs(d), []cluster.ID{id(1)}) {
		t.Fatalf("resumed: got full %v, %v", d.Full, changedIDs(d))
	}
	for range 10 {
		update(t, s, 1, func(o *cluster.Task) { o.Failures++ })
	}
	if d := resumed.Collect(); !d.Full {
		t.Error("a reader that fell behind got no full delta")
	}
	late := s.Changes(at, Filter{})
	defer late.Close()
	if d := late.Collect(); !d.Full {
		t.Error("an old version got no full delta")
	}
	mustApply(t, s, putAll(&cluster.Node{Meta: meta(2), Name: "n"}))
	if d := quiet.Collect(); d.Full || !slices.Equal(changedIDs(d), []cluster.ID{id(2)}) {
		t.Errorf("a cursor for which nothing had changed: got full %v, %v", d.Full, changedIDs(d))
	}
}

func TestCursorAheadOfItsReplicaWaits(t *testing.T) {
	s := New()
	mustApply(t, s, putAll(task(1, 9, 0)))
	c := s.Changes(3, Filter{})
	defer c.Close()
	update(t, s, 1, func(o *cluster.Task) { o.Reason = "at 2" })
	update(t, s, 1, func(o *cluster.Task) { o.Reason = "at 3" })
	if woken(c) {
		t.Fatal("woken by what it knows")
	}
	mustApply(t, s, putAll(task(2, 9, 0)))
	if d := c.Collect(); d.Full || !slices.Equal(changedIDs(d), []cluster.ID{id(2)}) {
		t.Fatalf("got full %v, %v", d.Full, changedIDs(d))
	}
}

func TestCursorNext(t *testing.T) {
	s := New()
	c := s.Changes(0, Filter{})
	if d, err := c.Next(t.Context()); err != nil || !d.Full {
		t.Fatalf("got %+v, %v", d, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.Next(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: got %v", err)
	}
	go s.Apply(1, []Txn{putAll(task(1, 9, 0))})
	if d, err := c.Next(t.Context()); err != nil || len(d.Changed) != 1 {
		t.Errorf("got %+v, %v", d, err)
	}
	c.Close()
	c.Close()
	if _, err := c.Next(t.Context()); !errors.Is(err, ErrClosed) {
		t.Errorf("closed: got %v", err)
	}
	if len(s.cursors.all)+len(s.cursors.byNode) != 0 {
		t.Error("a closed cursor is still on the list")
	}
}
