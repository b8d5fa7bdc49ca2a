package bubble

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"baton/internal/manager/stacks"
	"baton/internal/manager/store"
	"baton/internal/model/cluster"
	"baton/internal/model/spec"
	"baton/internal/plan/release"
	"baton/internal/wire/transport"
	"baton/internal/wire/transport/memnet"
)

// Config says what a World is like. Zero fields mean the defaults.
type Config struct {
	Seed              uint64
	Managers, Workers int           // default 3 and 100
	Faults            time.Duration // how long faults happen; default 60 s
	Calm              time.Duration // how long convergence may take after that; default 4 min: a number may take two steps down, a minute apart, after the stable window
	Log               *slog.Logger  // default: none
	// Kinds limits the faults to those of these names; default: all.
	Kinds []string
}

// World is a simulated cluster.
type World struct {
	t     *testing.T
	cfg   Config
	rng   *rand.Rand
	net   *memnet.Network
	log   *slog.Logger
	all   []*machine
	begun time.Time

	mu    sync.Mutex
	acked []written           // writes that were acknowledged
	calm  time.Time           // from when on the load is constant; zero: not yet
	busy  map[cluster.ID]bool // services with a load
}

// written is an acknowledged write: a config that must not be lost.
type written struct {
	id cluster.ID
	at store.Version
}

// New makes the machines and forms the cluster.
func New(t *testing.T, cfg Config) *World {
	t.Helper()
	cfg = cfg.withDefaults()
	w := &World{t: t, cfg: cfg, rng: rand.New(rand.NewPCG(cfg.Seed, 1)), log: cfg.Log, begun: time.Now(), busy: make(map[cluster.ID]bool)}
	var mu sync.Mutex
	jitter := rand.New(rand.NewPCG(cfg.Seed, 2))
	w.net = memnet.New(func(from, to string) time.Duration {
		if from == to {
			return 20 * time.Microsecond
		}
		mu.Lock()
		defer mu.Unlock()
		return 200*time.Microsecond + time.Duration(jitter.Int64N(int64(time.Millisecond)))
	})
	for i := range cfg.Managers + cfg.Workers {
		role := transport.RoleManager
		if i >= cfg.Managers {
			role = transport.RoleWorker
		}
		w.make(i, role)
	}
	w.form()
	return w
}

func (c Config) withDefaults() Config {
	if c.Managers == 0 {
		c.Managers = 3
	}
	if c.Workers == 0 {
		c.Workers = 100
	}
	if c.Faults == 0 {
		c.Faults = time.Minute
	}
	if c.Calm == 0 {
		c.Calm = 4 * time.Minute
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return c
}

// make makes a machine that is switched off.
func (w *World) make(i int, role string) {
	m := &machine{w: w, name: fmt.Sprintf("10.0.%d.%d", i/200, 1+i%200), role: role, box: newBox(), record: newBoxRecord()}
	m.dir = filepath.Join(w.t.TempDir(), m.name)
	copy(m.id[:], fmt.Appendf(nil, "machine %07d", i))
	var err error
	if m.creds, err = transport.OpenFiles(filepath.Join(m.dir, "identity")); err != nil {
		w.t.Fatal(err)
	}
	w.all = append(w.all, m)
}

// form founds the cluster on the first machine and lets the others join.
func (w *World) form() {
	w.t.Helper()
	founder := w.all[0]
	if err := founder.start(false); err != nil {
		w.t.Fatal(err)
	}
	for _, m := range w.all[1:] {
		if err := m.enter(w.t.Context(), founder); err != nil {
			w.t.Fatal(err)
		}
		if err := m.start(m.role == transport.RoleManager); err != nil {
			w.t.Fatal(err)
		}
	}
	w.eventually("the cluster has formed", time.Minute, func() error {
		ready, voters := 0, 0
		for n := range store.All[*cluster.Node](w.snapshot()) {
			if n.State == cluster.NodeReady && n.Subnet.IsValid() {
				ready++
			}
		}
		members, err := founder.manager.Log().Members()
		for _, m := range members {
			if m.Voter {
				voters++
			}
		}
		if ready != len(w.all) || voters != w.cfg.Managers {
			return fmt.Errorf("%d of %d nodes are ready, %d of %d managers vote, %v", ready, len(w.all), voters, w.cfg.Managers, err)
		}
		return nil
	})
}

// Close ends everything.
func (w *World) Close() {
	for _, m := range w.all {
		if m.up {
			w.net.Reset(m.name)
			m.end()
		}
	}
}

// managers are those that run.
func (w *World) managers() []*machine {
	var out []*machine
	for _, m := range w.all[:w.cfg.Managers] {
		if m.manager != nil {
			out = append(out, m)
		}
	}
	return out
}

// leader is a manager that leads, nil while there is none.
func (w *World) leader() *machine {
	for _, m := range w.managers() {
		if m.manager.Log().Status().Term.Leader {
			return m
		}
	}
	return nil
}

// snapshot is the newest state that any manager has.
func (w *World) snapshot() store.Snapshot {
	var best store.Snapshot
	for i, m := range w.managers() {
		if s := m.manager.Store().Snapshot(); i == 0 || s.Version() > best.Version() {
			best = s
		}
	}
	return best
}

// eventually waits in simulated time.
func (w *World) eventually(what string, limit time.Duration, check func() error) {
	w.t.Helper()
	deadline := time.Now().Add(limit)
	for {
		err := check()
		if err == nil {
			return
		}
		if !time.Now().Before(deadline) {
			w.t.Fatalf("seed %d, after %s: not within %s: %s: %v", w.cfg.Seed, time.Since(w.begun).Round(time.Second), limit, what, err)
		}
		time.Sleep(200 * time.Millisecond)
	}
}

// propose writes through a random manager, as any client of the API may; what build decides is decided again after a conflict.
func (w *World) propose(ctx context.Context, build func(store.Snapshot) (store.Txn, error)) (store.Version, error) {
	list := w.managers()
	if len(list) == 0 {
		return 0, errors.New("no manager runs")
	}
	m := list[w.rng.IntN(len(list))].manager
	ctx, cancel := context.WithTimeout(ctx, 8*time.Second)
	defer cancel()
	var err error
	for range 8 {
		var t store.Txn
		if t, err = build(m.Store().Snapshot()); err != nil {
			return 0, err
		}
		var v store.Version
		if v, err = m.Log().Propose(ctx, t); !errors.Is(err, store.ErrConflict) {
			return v, err
		}
	}
	return 0, err
}

// write stores a new config; once that is acknowledged, it must never be lost.
func (w *World) write(ctx context.Context) {
	c := &cluster.Config{Meta: cluster.Meta{ID: cluster.NewID(nil), Created: time.Now()}, Name: fmt.Sprintf("c%d", w.rng.Uint64()), Number: 1}
	v, err := w.propose(ctx, func(store.Snapshot) (store.Txn, error) {
		var t store.Txn
		o := cluster.Copy(c)
		t.Put(o)
		return t, nil
	})
	if err != nil {
		w.log.Info("write", "err", err)
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.acked = append(w.acked, written{c.ID, v})
}

// deploy deploys a stack of a few services whose image or number of replicas is new.
func (w *World) deploy(ctx context.Context, name string) {
	s := spec.Stack{Name: name}
	for i := range 3 {
		v := spec.Service{
			Name: string(rune('a' + i)), Image: fmt.Sprintf("app:%d", w.rng.IntN(4)), Mode: spec.Replicated, Replicas: 1 + w.rng.IntN(20),
		}
		if i == 0 { // one with a volume that only one task may write
			v.Replicas = 1
			v.Mounts = []spec.Mount{{Kind: spec.MountVolume, Source: "data", Target: "/data"}}
			s.Volumes = []spec.Volume{{Name: "data", SingleWriter: true}}
			if w.rng.IntN(2) == 0 {
				s.Volumes[0].OnLoss = spec.LossRecreate
			}
		}
		v.Autoscale = scaled[i]
		s.Services = append(s.Services, v)
	}
	s.SetDefaults()
	for i := range s.Services {
		s.Services[i].Update.Monitor, s.Services[i].Rollback.Monitor = 500*time.Millisecond, 500*time.Millisecond
		s.Services[i].Update.Parallelism = 4
	}
	if err := s.Validate(); err != nil {
		w.t.Fatal(err)
	}
	_, err := w.propose(ctx, func(snap store.Snapshot) (store.Txn, error) {
		var t store.Txn
		d, err := release.Deploy(release.DeployInput{
			View: stacks.View{Snap: snap}, Want: s, IDs: func() cluster.ID { return cluster.NewID(nil) }, Now: time.Now(),
		})
		for _, o := range d.Put {
			t.Put(o)
		}
		return t, err
	})
	w.log.Info("deploy", "stack", name, "err", err)
}

func sameID(a, b cluster.ID) int { return bytes.Compare(a[:], b[:]) }
