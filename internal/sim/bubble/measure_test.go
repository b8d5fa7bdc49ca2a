package bubble

import (
	"errors"
	"fmt"
	"math"
	"testing"
	"testing/synctest"
	"time"

	"baton/internal/manager/store"
	"baton/internal/model/cluster"
)

// Every manager knows the load of all nodes, to the last request, whichever manager a node is connected to. A new leader
// knows what happened under the one before, and one that was cut off learns what it missed.
func TestLoadIsKnownToEveryManager(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := New(t, Config{Seed: 1, Workers: 6})
		defer w.Close()
		w.deploy(t.Context(), "shop")
		task := w.oneTask()
		began, total := time.Now(), uint64(0)
		requests := func(seconds int) {
			for range seconds {
				for i, m := range w.all {
					n := uint64(i + 1)
					m.load.request(task.Service, task.ID, began, n)
					total += n
				}
				time.Sleep(time.Second)
			}
		}
		requests(30)
		w.agree("all managers know all", task.Service, total)
		leader := w.leader()
		calm := w.isolate(leader, true, true)
		requests(30)
		w.eventually("another one leads", time.Minute, func() error {
			for _, m := range w.managers() {
				if m != leader && m.manager.Log().Status().Term.Leader {
					return nil
				}
			}
			return fmt.Errorf("none does")
		})
		calm()
		w.agree("all managers know all, also the one that was cut off", task.Service, total)
		requests(60)
		per := float64(len(w.all)*(len(w.all)+1)) / 2
		for _, m := range w.managers() {
			now := time.Now().Add(-10 * time.Second)
			l := m.manager.Measures().Window(task.Service, now.Add(-40*time.Second), now)
			if math.Abs(l.Rate-per) > per/10 || l.Missing != 0 || math.Abs(l.CPUTask-0.5) > 0.05 || l.Tasks == 0 {
				t.Errorf("%s: %.1f requests/s, want %.0f; %d tasks at %.2f cores, %d nodes missing", m.name, l.Rate, per, l.Tasks, l.CPUTask, l.Missing)
			}
		}
		w.all[0].kill()
		if err := w.all[0].start(false); err != nil {
			t.Fatal(err)
		}
		requests(10)
		time.Sleep(10 * time.Second)
		for _, m := range w.managers() {
			got := m.manager.Measures().Totals(time.Now())[task.Service].Classes[2]
			if restarted := m == w.all[0]; restarted == (got == total) || got > total {
				t.Errorf("%s, restarted %v: %d requests of %d", m.name, restarted, got, total)
			}
		}
	})
}

// A task that fails counts once, with every manager, and not again with one that starts later.
func TestFailuresAreCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := New(t, Config{Seed: 1, Workers: 3})
		defer w.Close()
		w.deploy(t.Context(), "shop")
		task := w.oneTask()
		for _, m := range w.all {
			m.box.crash(task.ID)
		}
		ended := func(m *machine) uint64 { return m.manager.Measures().Totals(time.Now())[task.Service].Ended }
		w.eventually("all count it", time.Minute, func() error {
			for _, m := range w.managers() {
				if n := ended(m); n != 1 {
					return fmt.Errorf("%s counts %d", m.name, n)
				}
			}
			return nil
		})
		m := w.managers()[1]
		m.kill()
		if err := m.start(false); err != nil {
			t.Fatal(err)
		}
		time.Sleep(20 * time.Second)
		for _, o := range w.managers() {
			if n := ended(o); o == m && n != 0 || o != m && n != 1 {
				t.Errorf("%s, restarted %v, counts %d", o.name, o == m, n)
			}
		}
	})
}

// oneTask waits for a task that runs.
func (w *World) oneTask() (task *cluster.Task) {
	w.t.Helper()
	w.eventually("a task runs", time.Minute, func() error {
		snap := w.snapshot()
		for k := range store.All[*cluster.Task](snap) {
			rev, ok := store.Get[*cluster.Revision](snap, k.Revision)
			lasts := ok && rev.Spec.Autoscale == nil // others may be scaled away
			if lasts && k.Observed == cluster.ObservedRunning && k.Slot == 1 && k.Desired == cluster.DesiredRun {
				task = k
				return nil
			}
		}
		return errors.New("none")
	})
	return task
}

// agree waits until all managers know as many requests of a service.
func (w *World) agree(what string, service cluster.ID, total uint64) {
	w.t.Helper()
	w.eventually(what, 30*time.Second, func() error {
		for _, m := range w.managers() {
			if got := m.manager.Measures().Totals(time.Now())[service]; got.Classes[2] != total || got.Latency.Count() != total {
				return fmt.Errorf("%s knows of %d requests, of %d", m.name, got.Classes[2], total)
			}
		}
		return nil
	})
}
