package consensus_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"baton/internal/manager/consensus"
	"baton/internal/manager/consensus/logtest"
	"baton/internal/manager/store"
	"baton/internal/model/cluster"
)

// salvaged reads the log in dir into a new store.
func salvaged(t *testing.T, dir string, key []byte) (*store.Store, consensus.Salvaged) {
	t.Helper()
	s := store.New()
	found, err := consensus.Salvage(dir, key, s)
	if err != nil {
		t.Fatal(err)
	}
	return s, found
}

func TestSalvageAndRebuild(t *testing.T) {
	cfg := config(t.TempDir())
	cfg.Key = bytes.Repeat([]byte{7}, consensus.KeyBytes)
	log := open(t, cfg)
	for i := range 5 {
		propose(t, log, logtest.Node(fmt.Sprint("before-", i)))
	}
	if err := log.Snapshot(); err != nil {
		t.Fatal(err)
	}
	for i := range 5 {
		propose(t, log, logtest.Node(fmt.Sprint("after-", i)))
	}
	if _, err := consensus.Salvage(cfg.Dir, cfg.Key, store.New()); err == nil || !strings.Contains(err.Error(), "in use by another process") {
		t.Errorf("while the log is open: got %v, want a refusal", err)
	}
	want := cfg.Store.Snapshot().Hash()
	closeLog(t, log)
	if _, err := consensus.Salvage(cfg.Dir, bytes.Repeat([]byte{8}, consensus.KeyBytes), store.New()); err == nil {
		t.Error("the log was read with another key")
	}
	s, found := salvaged(t, cfg.Dir, cfg.Key)
	if got := s.Snapshot().Hash(); got != want {
		t.Fatalf("what was read has the hash %x, want %x", got, want)
	}
	if len(found.Members) != 1 || found.Members[0].ID != cfg.NodeID || found.At.IsZero() || found.Last < uint64(s.Snapshot().Version()) {
		t.Errorf("found %+v", found)
	}

	// The state goes on elsewhere, far ahead, as the log of another node.
	at := s.Snapshot().Version() + 1<<32
	var txn store.Txn
	txn.Put(logtest.Node("changed"))
	s.Apply(at, []store.Txn{txn})
	next := config(filepath.Join(t.TempDir(), "log"))
	next.Key, next.NodeID = cfg.Key, "another"
	if err := consensus.Rebuild(next.Dir, next.NodeID, next.Key, s.Snapshot()); err != nil {
		t.Fatal(err)
	}
	if err := consensus.Rebuild(next.Dir, next.NodeID, next.Key, s.Snapshot()); err == nil {
		t.Error("a log was overwritten")
	}
	if s, found := salvaged(t, next.Dir, next.Key); s.Snapshot().Count(cluster.KindNode) != 11 || found.Last != uint64(at) { // before it ever ran
		t.Errorf("a log that was just rebuilt: %d objects, up to entry %d", s.Snapshot().Count(cluster.KindNode), found.Last)
	}
	if _, err := consensus.Salvage(t.TempDir(), next.Key, store.New()); err == nil || !strings.Contains(err.Error(), "it is empty") {
		t.Errorf("an empty directory: got %v", err)
	}
	again := open(t, next)
	if got := next.Store.Snapshot().Hash(); got != s.Snapshot().Hash() {
		t.Errorf("the rebuilt log has the hash %x, want %x", got, s.Snapshot().Hash())
	}
	propose(t, again, logtest.Node("later"))
	if v := next.Store.Snapshot().Version(); v <= at {
		t.Errorf("a write after it has the version %d, want more than %d", v, at)
	}
	closeLog(t, again)
	if s, _ := salvaged(t, next.Dir, next.Key); s.Snapshot().Count(cluster.KindNode) != 12 {
		t.Errorf("%d objects at last, want 12", s.Snapshot().Count(cluster.KindNode))
	}
	if left, err := filepath.Glob(next.Dir + ".*"); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	if info, err := os.Stat(next.Dir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("the directory: %v, %v", info.Mode(), err)
	}
}
