package store

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"baton/internal/model/cluster"
)

func dump(t testing.TB, s Snapshot) []byte {
	t.Helper()
	var b bytes.Buffer
	n, err := s.WriteTo(&b)
	if err != nil || n != int64(b.Len()) {
		t.Fatalf("wrote %d of %d bytes, %v", n, b.Len(), err)
	}
	return b.Bytes()
}

func sample(t testing.TB) *Store {
	s := New()
	mustApply(t, s, putAll(task(1, 9, 60), task(2, 9, 0), &cluster.Node{Meta: meta(60), Name: "n"}))
	mustApply(t, s, putAll(&cluster.Secret{Meta: meta(3), Name: "pw", Number: 1, Sealed: []byte("x")}, &cluster.Event{Meta: meta(4), Task: id(1)}))
	update(t, s, 1, func(o *cluster.Task) { o.Reason = "why" })
	return s
}

func TestRestoreBringsTheSameState(t *testing.T) {
	s := sample(t)
	want := s.Snapshot()
	r := New()
	mustApply(t, r, putAll(task(7, 9, 0)))
	c := r.Changes(r.Snapshot().Version(), Filter{})
	defer c.Close()
	if err := r.Restore(bytes.NewReader(dump(t, want))); err != nil {
		t.Fatal(err)
	}
	got := r.Snapshot()
	if got.Hash() != want.Hash() || got.Version() != want.Version() {
		t.Fatalf("got version %d, hash %x; want %d, %x", got.Version(), got.Hash(), want.Version(), want.Hash())
	}
	if err := got.Verify(); err != nil {
		t.Error(err)
	}
	if n := len(ids(got.TasksByService(id(9)))); n != 2 {
		t.Errorf("tasks by service: got %d, want 2", n)
	}
	if d := c.Collect(); !d.Full || len(d.Changed) != 5 {
		t.Errorf("a cursor over the restore: got full %v with %d objects", d.Full, len(d.Changed))
	}
	// Both go on alike.
	mustApply(t, s, putAll(task(8, 9, 60)))
	mustApply(t, r, putAll(task(8, 9, 60)))
	if s.Snapshot().Hash() != r.Snapshot().Hash() {
		t.Error("the hashes part afterwards")
	}
}

func TestDamagedSnapshotsReplaceNothing(t *testing.T) {
	good := dump(t, sample(t).Snapshot())
	s := New()
	mustApply(t, s, putAll(task(7, 9, 0)))
	before := s.Snapshot().Hash()
	check := func(what string, data []byte) {
		t.Helper()
		if err := s.Restore(bytes.NewReader(data)); !errors.Is(err, ErrCorrupt) {
			t.Fatalf("%s: got %v", what, err)
		}
		if s.Snapshot().Hash() != before {
			t.Fatalf("%s: the state was replaced", what)
		}
	}
	for n := range good {
		check("cut short", good[:n])
	}
	for i := range good {
		if i == 8 || i == 9 {
			continue // the format, which has an error of its own
		}
		bad := bytes.Clone(good)
		bad[i] ^= 0x10
		check("one bit wrong", bad)
	}
	newer := bytes.Clone(good)
	newer[9]++
	if err := s.Restore(bytes.NewReader(newer)); err == nil || !strings.Contains(err.Error(), "format 3") {
		t.Errorf("a newer format: got %v", err)
	}
}

func FuzzRestore(f *testing.F) {
	f.Add(dump(f, sample(f).Snapshot()))
	f.Add([]byte(dumpMagic))
	f.Fuzz(func(t *testing.T, data []byte) {
		s := New()
		if err := s.Restore(bytes.NewReader(data)); err != nil && s.Snapshot().Version() != 0 {
			t.Fatalf("an error replaced the state: %v", err)
		}
	})
}

func FuzzDecodeTxns(f *testing.F) {
	txn := putAll(task(1, 9, 0), &cluster.Node{Meta: meta(2), Name: "n"})
	stored := task(3, 9, 0)
	stored.Version = 4
	txn.Delete(stored)
	entry, err := EncodeTxns([]Txn{txn, {}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(entry)
	f.Fuzz(func(t *testing.T, data []byte) {
		txns, err := DecodeTxns(data)
		if err != nil {
			if !errors.Is(err, ErrMalformed) {
				t.Fatalf("got %v", err)
			}
			return
		}
		a, b := New(), New()
		errs := a.Apply(1, txns)
		again, err := EncodeTxns(txns)
		if err != nil {
			t.Fatal(err)
		}
		twice, err := DecodeTxns(again)
		if err != nil {
			t.Fatalf("its own bytes do not decode: %v", err)
		}
		for i, err := range b.Apply(1, twice) {
			if (err == nil) != (errs[i] == nil) {
				t.Fatalf("transaction %d: %v, then %v", i, errs[i], err)
			}
		}
		if a.Snapshot().Hash() != b.Snapshot().Hash() {
			t.Fatal("two stores differ after the same entry")
		}
	})
}
