package reconcile

import (
	"testing"
	"time"

	"baton/internal/model/cluster"
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
