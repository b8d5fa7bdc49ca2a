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
