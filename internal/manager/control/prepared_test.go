package control

import (
	"testing"
	"time"

	"baton/internal/manager/store"
	"baton/internal/model/cluster"
	"baton/internal/model/spec"
)

// TestStopFirstStaysWhereItsImageWasPrepared makes another node look better in the meantime: it has the new image already,
// and more room.
func TestStopFirstStaysWhereItsImageWasPrepared(t *testing.T) {
	w := newWorld(t, 3)
	sp := spec.Service{Name: "web", Image: "web:1", Replicas: 1}
	sp.Update.Order, sp.Rollback.Order = spec.StopFirst, spec.StopFirst
	w.deploy(spec.Stack{Name: "shop", Services: []spec.Service{sp}})
	w.work(time.Minute)
	var was cluster.ID
	for task := range store.All[*cluster.Task](w.st.Snapshot()) {
		was = task.Node
	}
	for n := range store.All[*cluster.Node](w.st.Snapshot()) {
		if n.ID != was {
			better := cluster.Copy(n)
			better.Description.Images = []string{"web:2"}
			better.Description.CPU *= 4
			w.put(better)
		}
	}
	sp.Image = "web:2"
	w.deploy(spec.Stack{Name: "shop", Services: []spec.Service{sp}})
	w.work(time.Minute)
	found := false
	for task := range store.All[*cluster.Task](w.st.Snapshot()) {
		if task.Endpoint() {
			found = true
			if task.Node != was {
				t.Error("it is not on the node where its image was prepared")
			}
		}
	}
	if !found {
		t.Error("nothing runs")
	}
}

// TestRestartThatPullsStaysWhereItPulled restarts tasks of the same revision, stop-first: only their own nodes have pulled anew.
func TestRestartThatPullsStaysWhereItPulled(t *testing.T) {
	w := newWorld(t, 3)
	sp := spec.Service{Name: "web", Image: "web:1", Replicas: 1, Pull: spec.PullAlways}
	sp.Update.Order, sp.Rollback.Order = spec.StopFirst, spec.StopFirst
	w.deploy(spec.Stack{Name: "shop", Services: []spec.Service{sp}})
	w.work(time.Minute)
	was := w.tasks("web")[0]
	for n := range store.All[*cluster.Node](w.st.Snapshot()) {
		if n.ID != was.Node {
			better := cluster.Copy(n)
			better.Description.Images = []string{"web:1"}
			better.Description.CPU *= 4
			w.put(better)
		}
	}
	w.now = w.now.Add(time.Minute)
	w.change("web", func(s *cluster.Service) { s.RestartAt = w.now })
	w.work(time.Minute)
	now := w.tasks("web")
	if len(now) != 1 || now[0].ID == was.ID {
		t.Fatalf("%d tasks, want the one that was restarted", len(now))
	}
	if now[0].Node != was.Node {
		t.Error("it is not on the node that pulled its image anew")
	}
}
