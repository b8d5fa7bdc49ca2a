package consensus_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/hashicorp/raft"

	"baton/internal/manager/consensus"
	"baton/internal/manager/consensus/logtest"
	"baton/internal/manager/store"
)

func TestThreeVotersTransferAndAgree(t *testing.T) {
	names := []string{"a", "b", "c"}
	var voters []raft.Server
	var transports []*raft.InmemTransport
	for _, n := range names {
		_, tr := raft.NewInmemTransport(raft.ServerAddress(n))
		transports = append(transports, tr)
		voters = append(voters, raft.Server{ID: raft.ServerID(n), Address: tr.LocalAddr()})
	}
	logs, stores := map[string]*consensus.Raft{}, map[string]*store.Store{}
	for i, n := range names {
		for j, other := range transports {
			if i != j {
				transports[i].Connect(other.LocalAddr(), other)
			}
		}
		cfg := config(t.TempDir())
		cfg.NodeID, cfg.Transport, cfg.Voters = n, func() (raft.Transport, error) { return transports[i], nil }, voters
		logs[n], stores[n] = open(t, cfg), cfg.Store
	}
	var leader string
	elected := func() bool {
		for n, l := range logs {
			if l.Status().Term.Leader {
				leader = n
				return true
			}
		}
		return false
	}
	eventually(t, "a leader is elected", elected)
	for i := range 20 {
		propose(t, logs[leader], logtest.Node(fmt.Sprint(i)))
	}
	next := names[0]
	if next == leader {
		next = names[1]
	}
	if err := logs[leader].Transfer(t.Context(), next); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the other one leads", func() bool { return logs[next].Status().Term.Leader })
	if _, err := logs[leader].Propose(context.Background(), logtest.Put(logtest.Node("x"))); !errors.Is(err, consensus.ErrNotLeader) {
		t.Errorf("the former leader: got %v", err)
	}
	v := propose(t, logs[next], logtest.Node("last"))
	want := stores[next].Snapshot()
	for n, s := range stores {
		eventually(t, n+" has it", func() bool { return s.Snapshot().Version() >= v })
		if got := s.Snapshot(); got.Hash() != want.Hash() {
			t.Errorf("%s has hash %x, want %x", n, got.Hash(), want.Hash())
		}
	}
}

func TestDamagedSnapshotDoesNotOpen(t *testing.T) {
	cfg := config(t.TempDir())
	cfg.TrailingEntries = 1
	log := open(t, cfg)
	for i := range 20 {
		propose(t, log, logtest.Node(fmt.Sprint(i)))
	}
	if err := log.Snapshot(); err != nil {
		t.Fatal(err)
	}
	closeLog(t, log)
	files, err := filepath.Glob(filepath.Join(cfg.Dir, "snapshots", "*", "state.bin"))
	if err != nil || len(files) != 1 {
		t.Fatalf("snapshots: %v, %v", files, err)
	}
	f, err := os.OpenFile(files[0], os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	writeAt(t, f, []byte{0xff}, 40)
	f.Close()
	cfg.Store = store.New()
	if _, err := consensus.Open(t.Context(), cfg); !errors.Is(err, consensus.ErrDamaged) {
		t.Fatalf("damaged: got %v", err)
	}
	if err := os.RemoveAll(filepath.Dir(files[0])); err != nil {
		t.Fatal(err)
	}
	if _, err := consensus.Open(t.Context(), cfg); !errors.Is(err, consensus.ErrDamaged) {
		t.Fatalf("missing: got %v", err)
	}
}
