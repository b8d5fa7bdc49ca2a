package consensus_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"baton/internal/manager/consensus"
	"baton/internal/manager/consensus/logtest"
	"baton/internal/manager/store"
	"baton/internal/model/cluster"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(crashDirEnv); dir != "" {
		crashChild(dir)
		return
	}
	goleak.VerifyTestMain(m)
}

// config is that of a small single voter.
func config(dir string) consensus.Config {
	return consensus.Config{Dir: dir, NodeID: "one", Store: store.New(), SegmentBytes: 1 << 20, DiskReserve: 1}
}

func open(t testing.TB, cfg consensus.Config) *consensus.Raft {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	log, err := consensus.Open(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeLog(t, log) })
	return log
}

func closeLog(t testing.TB, log interface{ Close() error }) {
	t.Helper()
	if err := log.Close(); err != nil {
		t.Error(err)
	}
}

func propose(t testing.TB, log consensus.Log, objects ...cluster.Object) store.Version {
	t.Helper()
	v, err := log.Propose(context.Background(), logtest.Put(objects...))
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// eventually polls until ok holds.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("it never came to this: %s", what)
		}
	}
}

func TestSuiteOnRaft(t *testing.T) {
	logtest.Run(t, func(t *testing.T) (consensus.Log, *store.Store) {
		cfg := config(t.TempDir())
		return open(t, cfg), cfg.Store
	})
}

func TestSuiteOnMemory(t *testing.T) {
	logtest.Run(t, func(t *testing.T) (consensus.Log, *store.Store) {
		s := store.New()
		m := consensus.NewMemory(s)
		t.Cleanup(func() { closeLog(t, m) })
		return m, s
	})
}

func TestReopenBringsEverythingBack(t *testing.T) {
	for _, snapshot := range []bool{false, true} {
		t.Run(fmt.Sprintf("snapshot=%v", snapshot), func(t *testing.T) {
			cfg := config(t.TempDir())
			cfg.TrailingEntries = 3
			log := open(t, cfg)
			for i := range 50 {
				propose(t, log, logtest.Node(fmt.Sprint(i)))
			}
			if snapshot {
				if err := log.Snapshot(); err != nil {
					t.Fatal(err)
				}
			}
			propose(t, log, logtest.Node("last"))
			want := cfg.Store.Snapshot()
			closeLog(t, log)
			cfg.Store = store.New()
			again := open(t, cfg)
			got := cfg.Store.Snapshot()
			if got.Hash() != want.Hash() || got.Version() != want.Version() {
				t.Fatalf("got version %d hash %x, want %d %x", got.Version(), got.Hash(), want.Version(), want.Hash())
			}
			if s := again.Status(); snapshot != (s.Snapshot > 0) {
				t.Errorf("snapshot index: got %d", s.Snapshot)
			}
			propose(t, again, logtest.Node("more"))
		})
	}
}

func TestSnapshotsComeByThemselvesAndAreFew(t *testing.T) {
	cfg := config(t.TempDir())
	cfg.SnapshotEntries, cfg.TrailingEntries, cfg.SnapshotEvery = 10, 5, 20*time.Millisecond
	log := open(t, cfg)
	var first uint64
	for round := 0; round < 4; round++ {
		for i := range 30 {
			propose(t, log, logtest.Node(fmt.Sprint(round, "-", i)))
		}
		eventually(t, "a newer snapshot", func() bool { return log.Status().Snapshot > first })
		first = log.Status().Snapshot
	}
	eventually(t, "at most two snapshots", func() bool {
		names, err := filepath.Glob(filepath.Join(cfg.Dir, "snapshots", "*-*-*"))
		return err == nil && len(names) <= 2
	})
}

func TestProposalsShareEntries(t *testing.T) {
	cfg := config(t.TempDir())
	log := open(t, cfg)
	before := log.Status().Last
	const n = 500
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			if _, err := log.Propose(context.Background(), logtest.Put(logtest.Node(fmt.Sprint(i)))); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if got := log.Status().Last - before; got > n/2 {
		t.Errorf("%d proposals took %d entries", n, got)
	}
	if got := cfg.Store.Snapshot().Count(cluster.KindNode); got != n {
		t.Errorf("got %d nodes, want %d", got, n)
	}
}

func TestDirectoryIsGuarded(t *testing.T) {
	cfg := config(t.TempDir())
	log := open(t, cfg)
	second := config(cfg.Dir)
	if _, err := consensus.Open(t.Context(), second); err == nil || !strings.Contains(err.Error(), "in use") {
		t.Fatalf("a second opening: got %v", err)
	}
	closeLog(t, log)
	other := config(cfg.Dir)
	other.NodeID = "two"
	if _, err := consensus.Open(t.Context(), other); err == nil || !strings.Contains(err.Error(), "belongs to one") {
		t.Fatalf("another node: got %v", err)
	}
	open(t, config(cfg.Dir))
}

func TestCloseDuringProposals(t *testing.T) {
	cfg := config(t.TempDir())
	log := open(t, cfg)
	var wg sync.WaitGroup
	var mu sync.Mutex
	acked := map[cluster.ID]bool{}
	for w := range 8 {
		wg.Go(func() {
			for i := 0; ; i++ {
				n := logtest.Node(fmt.Sprint(w, "-", i))
				if _, err := log.Propose(context.Background(), logtest.Put(n)); err != nil {
					return
				}
				mu.Lock()
				acked[n.ID] = true
				mu.Unlock()
			}
		})
	}
	time.Sleep(50 * time.Millisecond)
	closeLog(t, log)
	wg.Wait()
	cfg.Store = store.New()
	open(t, cfg)
	for id := range acked {
		if _, ok := store.Get[*cluster.Node](cfg.Store.Snapshot(), id); !ok {
			t.Fatalf("%s was acknowledged and is gone", id)
		}
	}
}
