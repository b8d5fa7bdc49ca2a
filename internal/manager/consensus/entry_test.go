package consensus

import (
	"errors"
	"testing"

	"github.com/hashicorp/raft"

	"baton/internal/manager/store"
	"baton/internal/model/cluster"
	"log/slog"
)

func entry(t testing.TB, names ...string) []byte {
	t.Helper()
	var txn store.Txn
	for _, n := range names {
		txn.Put(&cluster.Node{Meta: cluster.Meta{ID: cluster.NewID(nil)}, Name: n})
	}
	data, err := encodeEntry(nil, []store.Txn{txn})
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func FuzzDecodeEntry(f *testing.F) {
	f.Add(entry(f, "a", "b"))
	f.Add([]byte{entryClear, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, data []byte) {
		if _, err := decodeEntry(nil, data); err != nil && !errors.Is(err, ErrDamaged) {
			t.Fatalf("got %v", err)
		}
	})
}

func TestDamagedEntryStopsTheMachine(t *testing.T) {
	m := &machine{store: store.New(), log: slog.New(slog.DiscardHandler)}
	bad := entry(t, "b")
	bad[len(bad)-1] ^= 1
	logs := []*raft.Log{
		{Index: 2, Type: raft.LogCommand, Data: entry(t, "a")},
		{Index: 3, Type: raft.LogCommand, Data: bad},
		{Index: 4, Type: raft.LogCommand, Data: entry(t, "c")},
	}
	res := m.ApplyBatch(logs)
	if errs, ok := res[0].([]error); !ok || errs[0] != nil {
		t.Errorf("before the damage: got %v", res[0])
	}
	for i, r := range res[1:] {
		if err, ok := r.(error); !ok || !errors.Is(err, ErrDamaged) {
			t.Errorf("entry %d: got %v, want that the log is damaged", i+3, r)
		}
	}
	if m.failure() == nil || m.store.Snapshot().Version() != 2 {
		t.Errorf("the store is at %d, want 2 and a failure", m.store.Snapshot().Version())
	}
	if _, err := m.Snapshot(); err == nil {
		t.Error("a snapshot of a stopped machine was allowed")
	}
}

func TestReplayedEntriesAreSkipped(t *testing.T) {
	m := &machine{store: store.New(), log: slog.New(slog.DiscardHandler)}
	l := &raft.Log{Index: 2, Type: raft.LogCommand, Data: entry(t, "a")}
	m.Apply(l)
	want := m.store.Snapshot().Hash()
	m.Apply(l)
	if got := m.store.Snapshot().Hash(); got != want {
		t.Error("an entry was applied twice")
	}
}
