package reconcile

import (
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"baton/internal/model/cluster"
	"baton/internal/model/spec"
)

// moving is a settled service of two tasks, of which the first is being moved to the third node.
func moving(t *testing.T) (w *world, old, next cluster.ID) {
	t.Helper()
	w = newWorld(web(), 2, 3)
	w.settle(t, time.Minute)
	old, next = w.one(t, 1).ID, id('m', 1)
	task := cluster.Copy(w.one(t, 1))
	task.ID, task.Node, task.Replaces, task.Moved = next, id('n', 3), old, true
	task.Observed, task.Ready, task.Created = cluster.ObservedAssigned, false, w.in.Now
	w.in.Tasks = append(w.in.Tasks, task)
	return w, old, next
}

func (w *world) task(id cluster.ID) *cluster.Task {
	for _, t := range w.in.Tasks {
		if t.ID == id {
			return t
		}
	}
	return nil
}

func TestMovedTaskTakesOverOnceItIsReady(t *testing.T) {
	w, old, next := moving(t)
	if p := w.plan(t); len(p.Stop)+len(p.Create) != 0 {
		t.Fatalf("got %+v, want both kept until the new one is ready", p)
	}
	w.ready(next)
	p := w.plan(t)
	if len(p.Stop) != 1 || p.Stop[0].Task != old || p.Stop[0].To != cluster.DesiredDrain {
		t.Fatalf("got %+v, want the older one drained", p)
	}
	w.settle(t, time.Minute)
	if got := w.one(t, 1); got.ID != next {
		t.Errorf("%s is left, want the new one", got.ID)
	}
}

func TestMoveThatFailsLeavesTheOlderTask(t *testing.T) {
	cases := map[string]func(w *world, next cluster.ID){
		"fails":           func(w *world, next cluster.ID) { w.end(next, cluster.ObservedFailed, 1) },
		"node down":       func(w *world, _ cluster.ID) { w.node(3, func(n *cluster.Node) { n.State = cluster.NodeDown }) },
		"node is drained": func(w *world, _ cluster.ID) { w.node(3, func(n *cluster.Node) { n.Availability = cluster.NodeDrain }) },
		"node is silent": func(w *world, _ cluster.ID) {
			w.node(3, func(n *cluster.Node) { n.State = cluster.NodeUnknown })
			w.in.Now = w.in.Now.Add(time.Minute)
		},
		"is not ready in time": func(w *world, _ cluster.ID) {
			p := w.plan(t)
			if p.WakeAt.IsZero() || p.WakeAt.After(w.in.Now.Add(web().Update.Deadline)) {
				t.Errorf("looks again at %s", p.WakeAt)
			}
			w.in.Now = w.in.Now.Add(web().Update.Deadline)
		},
	}
	for name, change := range cases {
		t.Run(name, func(t *testing.T) {
			w, old, next := moving(t)
			change(w, next)
			if p := w.plan(t); len(p.Create) != 0 {
				t.Errorf("creates %+v", p.Create)
			}
			if got := w.task(old); got.Desired != cluster.DesiredRun {
				t.Errorf("the older one is to %s", got.Desired)
			}
			if got := w.task(next); got != nil && running(got) {
				t.Error("the new one is wanted still")
			}
		})
	}
}

// move begins to move a task when the service is as it is wanted, as the control loop does, and reports whether it did.
func (h *history) move() bool {
	s := h.in.Service
	if h.sp.Mode == spec.Global || h.sp.Update.Order == spec.StopFirst || !s.Status.Converged || s.Rollout.State != cluster.RolloutCompleted {
		return false
	}
	live := slices.DeleteFunc(slices.Clone(h.in.Tasks), func(t *cluster.Task) bool { return t.Observed.Terminal() })
	if len(live) == 0 {
		return false
	}
	task := cluster.Copy(live[rapid.IntRange(0, len(live)-1).Draw(h.t, "moved")])
	to := id('n', rapid.IntRange(1, 3).Draw(h.t, "to"))
	if to == task.Node || h.in.Nodes.Nodes[to].State != cluster.NodeReady || h.in.Nodes.Nodes[to].Availability != cluster.NodeActive {
		return false
	}
	h.ids++
	h.version++
	task.Replaces, task.Moved, task.ID = task.ID, true, id('t', h.ids)
	task.Version, task.Created, task.Node = h.version, h.in.Now, to
	task.Observed, task.Ready, task.Started, task.ReadySince = cluster.ObservedAssigned, false, time.Time{}, time.Time{}
	h.in.Tasks = append(h.in.Tasks, task)
	return true
}

// TestHistoriesWithMoves lets anything happen in the midst of moves, holds every plan against the promises of the package and
// expects that all is well in the end.
func TestHistoriesWithMoves(t *testing.T) {
	moves := 0
	rapid.Check(t, func(t *rapid.T) {
		h := newHistory(t)
		h.settle(t, time.Hour)
		for range rapid.IntRange(1, 40).Draw(t, "steps") {
			switch rapid.IntRange(0, 3).Draw(t, "move") {
			case 0:
				if h.move() {
					moves++
				}
			default:
				h.step()
			}
			h.check()
		}
		h.converge()
	})
	if moves == 0 {
		t.Error("no history has a move")
	}
}
