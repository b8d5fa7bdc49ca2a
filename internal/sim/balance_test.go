package sim

import (
	"testing"
	"time"

	"baton/internal/manager/store"
	"baton/internal/model/cluster"
	"baton/internal/model/spec"
)

// quietWorld is a cluster without faults whose user deploys one service of six tasks.
func quietWorld(seed uint64, prepare func(w *World)) *World {
	w := New(Config{Seed: seed})
	w.users.w, w.users.files = w, make(map[string]spec.Stack)
	prepare(w)
	w.after(2*time.Second, "user deploys", func() {
		web := spec.Service{Name: "web", Image: "web:1", Replicas: 6}
		w.users.deploy("s1", spec.Stack{Name: "s1", Services: []spec.Service{web}})
	})
	return w
}

func (w *World) set(n *node, to cluster.Availability) {
	_ = w.users.write(func(snap store.Snapshot) (t store.Txn, err error) {
		old, _ := store.Get[*cluster.Node](snap, n.id)
		c := cluster.Copy(old)
		c.Availability = to
		t.Put(c)
		return t, nil
	})
}

// serving counts the ready tasks on each node.
func (w *World) serving() map[cluster.ID]int {
	out := make(map[cluster.ID]int)
	for t := range store.All[*cluster.Task](w.store.Snapshot()) {
		if t.Endpoint() {
			out[t.Node]++
		}
	}
	return out
}

func TestLoadIsLevelAfterANodeReturns(t *testing.T) {
	for seed := uint64(1); seed <= 40; seed++ {
		w := quietWorld(seed, func(w *World) {
			w.after(time.Second, "drain", func() { w.set(w.nodes[1], cluster.NodeDrain) })
			w.after(time.Minute, "activate", func() { w.set(w.nodes[1], cluster.NodeActive) })
		})
		least := 6
		w.until(w.now.Add(30*time.Second), func() bool { return false })
		w.until(w.now.Add(15*time.Minute), func() bool {
			sum := 0
			for _, n := range w.serving() {
				sum += n
			}
			least = min(least, sum)
			return false
		})
		if w.err != nil {
			t.Fatalf("seed %d: %v", seed, w.err)
		}
		got := w.serving()
		low, high := 6, 0
		for _, n := range w.nodes {
			low, high = min(low, got[n.id]), max(high, got[n.id])
		}
		if high-low > 1 || least < 6 {
			t.Errorf("seed %d: between %d and %d tasks on a node, never fewer than %d of 6 ready", seed, low, high, least)
		}
	}
}

func TestNodeWhereNothingStartsFailsNoDeployment(t *testing.T) {
	for seed := uint64(1); seed <= 40; seed++ {
		w := quietWorld(seed, func(w *World) { w.nodes[1].useless = true })
		w.until(w.now.Add(time.Minute), func() bool { return false })
		if w.err != nil {
			t.Fatalf("seed %d: %v", seed, w.err)
		}
		failed, ready := 0, 0
		for task := range store.All[*cluster.Task](w.store.Snapshot()) {
			switch {
			case task.Observed == cluster.ObservedRejected:
				failed++
			case task.Endpoint():
				ready++
			}
		}
		if ready != 6 || failed > 4 {
			t.Errorf("seed %d: %d of 6 ready, %d failed", seed, ready, failed)
		}
	}
}
