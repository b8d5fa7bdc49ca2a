package bubble

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"baton/internal/manager/store"
	"baton/internal/model/cluster"
)

func containsWord(s, word string) bool { return strings.Contains(s, word) }

// check looks at what must hold at any time.
func (w *World) check() {
	w.t.Helper()
	where := make(map[cluster.ID]string)
	writers := make(map[string]string)
	for _, m := range w.all {
		for _, c := range m.box.running() {
			if other, twice := where[c.task]; twice {
				w.t.Fatalf("seed %d, after %s: task %s runs on %s and on %s", w.cfg.Seed, time.Since(w.begun), c.task.Short(), other, m.name)
			}
			where[c.task] = m.name
			for _, v := range c.writes {
				if other, twice := writers[v]; twice {
					w.t.Fatalf("seed %d, after %s: volume %s has two writers, on %s and on %s", w.cfg.Seed, time.Since(w.begun), v, other, m.name)
				}
				writers[v] = m.name
			}
		}
	}
	w.checkScale()
	// Equal index, equal state.
	hashes := make(map[store.Version]uint64)
	for _, m := range w.managers() {
		s := m.manager.Store().Snapshot()
		if h, ok := hashes[s.Version()]; ok && h != s.Hash() {
			w.t.Fatalf("seed %d, after %s: managers differ at version %d", w.cfg.Seed, time.Since(w.begun), s.Version())
		}
		hashes[s.Version()] = s.Hash()
	}
}

// Run lets faults happen and then waits until the cluster is as it should be.
func (w *World) Run() {
	w.t.Helper()
	ctx, cancel := context.WithCancel(w.t.Context())
	defer cancel()
	w.swarm(ctx)
	healed := time.Now()
	w.mu.Lock()
	w.calm = healed
	w.mu.Unlock()
	w.eventually("the cluster converges", w.cfg.Calm, w.restless)
	w.check()
	w.log.Info("converged", "after", time.Since(healed))
	w.wakes()
	w.kept()
}

// kept checks that no acknowledged write is lost.
func (w *World) kept() {
	w.t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.acked) == 0 {
		w.t.Fatalf("seed %d: no write was acknowledged", w.cfg.Seed)
	}
	for _, m := range w.managers() {
		snap := m.manager.Store().Snapshot()
		for _, a := range w.acked {
			if _, ok := store.Get[*cluster.Config](snap, a.id); !ok {
				w.t.Fatalf("seed %d: a write that was acknowledged at version %d is lost on %s", w.cfg.Seed, a.at, m.name)
			}
		}
	}
}

// restless says why the cluster is not at rest.
func (w *World) restless() error {
	if w.leader() == nil {
		return errors.New("nobody leads")
	}
	snap := w.snapshot()
	for _, m := range w.managers() {
		if v := m.manager.Store().Snapshot().Version(); v != snap.Version() {
			return fmt.Errorf("manager %s is at version %d of %d", m.name, v, snap.Version())
		}
	}
	for n := range store.All[*cluster.Node](snap) {
		if n.State != cluster.NodeReady {
			return fmt.Errorf("node %s is %s", n.Name, n.State)
		}
	}
	for s := range store.All[*cluster.Service](snap) {
		// Crashes within the monitor time fail a rollout, as they should; with no release to go back to, it rests there.
		failed := s.Rollout.State == cluster.RolloutFailed && s.Status.Running == s.Status.Desired
		if !s.Removing && !s.Status.Converged && !failed {
			return fmt.Errorf("service %s/%s: %+v, rollout %+v", s.StackName, s.Name, s.Status, s.Rollout)
		}
	}
	if err := scaledRight(snap); err != nil {
		return err
	}
	return w.sameOnBoxes(snap)
}

// sameOnBoxes compares what is stored with what runs and is balanced to.
func (w *World) sameOnBoxes(snap store.Snapshot) error {
	want := make(map[cluster.ID]bool)
	endpoints := 0
	for t := range store.All[*cluster.Task](snap) {
		if t.Live() {
			want[t.ID] = true
		}
		if t.Endpoint() {
			endpoints++
		}
	}
	runs := 0
	for _, m := range w.all {
		for _, c := range m.box.running() {
			if !want[c.task] {
				return fmt.Errorf("%s runs %s, which is not wanted", m.name, c.task.Short())
			}
			runs++
		}
		m.box.mu.Lock()
		shown := 0
		for _, s := range m.box.network.Services {
			shown += len(s.Endpoints)
		}
		m.box.mu.Unlock()
		if shown != endpoints {
			return fmt.Errorf("%s balances to %d endpoints, of %d", m.name, shown, endpoints)
		}
	}
	if runs != len(want) {
		return fmt.Errorf("%d containers run, %d tasks are live", runs, len(want))
	}
	return nil
}

// Names lists the faults.
func Names() []string {
	var out []string
	for _, f := range faults {
		out = append(out, f.name)
	}
	slices.Sort(out)
	return out
}
