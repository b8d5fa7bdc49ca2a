package control

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"baton/internal/manager/store"
	"baton/internal/model/cluster"
	"baton/internal/model/spec"
	"baton/internal/plan/schedule"
)

func balanced(t *testing.T, sp spec.Service) (*world, cluster.ID) {
	t.Helper()
	w := newWorld(t, 2)
	w.engine.Balance()
	w.deploy(spec.Stack{Name: "shop", Services: []spec.Service{sp}})
	w.work(2 * time.Minute)
	late := &cluster.Node{
		Meta: cluster.Meta{ID: cluster.NewID(nil)}, Name: "late", State: cluster.NodeReady, StateSince: w.now, Availability: cluster.NodeActive,
		Description: cluster.NodeDescription{OS: "linux", Arch: "amd64", CPU: 4000, Memory: 8 << 30},
	}
	w.put(late)
	return w, late.ID
}

// on counts the tasks that run on a node.
func (w *world) on(node cluster.ID) (n int) {
	for t := range w.st.Snapshot().TasksByNode(node) {
		if t.Endpoint() {
			n++
		}
	}
	return n
}

func TestNewNodeGetsItsShare(t *testing.T) {
	w, late := balanced(t, spec.Service{Name: "web", Image: "web:1", Replicas: 6})
	w.work(balanceSteady - 10*time.Second)
	if got := w.on(late); got != 0 {
		t.Fatalf("%d tasks on a node that came just now", got)
	}
	w.work(10 * time.Minute)
	if got := w.on(late); got != 2 {
		t.Fatalf("%d tasks on the new node, want 2", got)
	}
	moved := 0
	for task := range store.All[*cluster.Task](w.st.Snapshot()) {
		if task.Moved {
			moved++
		}
		// The new task was ready before the old one was told to go.
		for next := range store.All[*cluster.Task](w.st.Snapshot()) {
			if next.Moved && next.Replaces == task.ID && (task.DrainSince.IsZero() || next.ReadySince.IsZero() || task.DrainSince.Before(next.ReadySince)) {
				t.Errorf("ready at %s, its predecessor drained at %s", next.ReadySince, task.DrainSince)
			}
		}
	}
	if moved != 2 {
		t.Errorf("%d moves, want 2", moved)
	}
	told := false
	for ev := range store.All[*cluster.Event](w.st.Snapshot()) {
		told = told || ev.Type == "task.moved" && strings.HasPrefix(ev.Message, "moved from n") && strings.HasSuffix(ev.Message, "late has 0")
	}
	if !told {
		t.Error("no event says from where and why")
	}
}

func TestWhatMayNotBeMovedStays(t *testing.T) {
	stopFirst := spec.Service{Name: "web", Image: "web:1", Replicas: 6}
	stopFirst.Update.Order = spec.StopFirst
	for _, c := range []struct {
		name string
		spec spec.Service
	}{
		{"stop-first", stopFirst},
		{"pack", spec.Service{Name: "web", Image: "web:1", Replicas: 6, Placement: spec.Placement{Strategy: spec.StrategyPack}}},
		{"job", spec.Service{Name: "web", Image: "web:1", Replicas: 6, Restart: spec.RestartPolicy{Condition: spec.RestartOnFailure}}},
		{"directory of the node", spec.Service{Name: "web", Image: "web:1", Replicas: 6, Mounts: []spec.Mount{{Kind: spec.MountBind, Source: "/srv", Target: "/data"}}}},
		{"volume without a name", spec.Service{Name: "web", Image: "web:1", Replicas: 6, Mounts: []spec.Mount{{Kind: spec.MountVolume, Target: "/data"}}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			w, late := balanced(t, c.spec)
			w.work(10 * time.Minute)
			if got := w.on(late); got != 0 {
				t.Errorf("%d tasks on the new node", got)
			}
		})
	}
}

func TestManyServicesMoveWithinTheBudget(t *testing.T) {
	w := newWorld(t, 2)
	w.engine.Balance()
	file := spec.Stack{Name: "shop"}
	for i := range 5 {
		file.Services = append(file.Services, spec.Service{Name: fmt.Sprintf("s%d", i), Image: "web:1", Replicas: 4})
	}
	w.deploy(file)
	w.work(2 * time.Minute)
	w.put(&cluster.Node{
		Meta: cluster.Meta{ID: cluster.NewID(nil)}, Name: "late", State: cluster.NodeReady, StateSince: w.now.Add(-time.Hour), Availability: cluster.NodeActive,
		Description: cluster.NodeDescription{OS: "linux", Arch: "amd64", CPU: 4000, Memory: 8 << 30},
	})
	w.now = w.now.Add(balanceSteady + balanceEvery)
	for d, ok := w.next(); ok; d, ok = w.next() {
		w.engine.Done(d, w.apply(d.Txn))
	}
	moved := map[cluster.ID]int{}
	for task := range store.All[*cluster.Task](w.st.Snapshot()) {
		if task.Moved {
			moved[task.Service]++
		}
	}
	if len(moved) != balanceInCluster {
		t.Errorf("moves by service %v, want one in each of %d", moved, balanceInCluster)
	}
}

// TestAskedForMovesWaitForNothing compares what is planned, what is left on the way and what is done.
func TestAskedForMovesWaitForNothing(t *testing.T) {
	w, late := balanced(t, spec.Service{Name: "web", Image: "web:1", Replicas: 6})
	w.work(time.Second)
	planned, err := PlanBalance(w.st.Fork(), w.now, false)
	if err != nil || len(planned.Moves) != 2 || planned.Moves[0].To != "late" {
		t.Fatalf("planned %+v, %v, want two moves to the new node", planned, err)
	}
	if left, err := PlanBalance(w.st.Fork(), w.now, true); err != nil || len(left.Moves) != 0 {
		t.Fatalf("left %+v, %v, and nobody asked", left, err)
	}
	settings, _ := w.st.Snapshot().Settings()
	asked := cluster.Copy(settings)
	asked.RebalanceAt = w.now
	w.put(asked)
	if left, err := PlanBalance(w.st.Fork(), w.now, true); err != nil || len(left.Moves) != 2 {
		t.Fatalf("left %+v, %v, want both", left, err)
	}
	w.work(balanceSteady / 2)
	if got := w.on(late); got != 2 {
		t.Errorf("%d tasks on the new node half a minute after somebody asked, want 2", got)
	}
	if left, err := PlanBalance(w.st.Fork(), w.now, true); err != nil || len(left.Moves)+left.UnderWay != 0 {
		t.Errorf("left %+v, %v, want nothing", left, err)
	}
	if again, err := PlanBalance(w.st.Fork(), w.now, false); err != nil || len(again.Moves) != 0 {
		t.Errorf("planned again: %+v, %v", again, err)
	}
}

// TestEveryServiceIsLookedAtAndThenNone has more services than are looked at once, of which the last one is uneven.
func TestEveryServiceIsLookedAtAndThenNone(t *testing.T) {
	w := newWorld(t, 2)
	w.engine.Balance()
	file := spec.Stack{Name: "shop"}
	for i := range 2*balanceLook + balanceLook/2 {
		file.Services = append(file.Services, spec.Service{Name: fmt.Sprintf("s%03d", i), Image: "web:1"})
	}
	w.deploy(file)
	w.work(5 * time.Minute)
	looks := 0
	for w.engine.WakeAt().After(w.now) && looks < 10 {
		w.now = w.engine.WakeAt()
		if d, ok := w.next(); ok {
			w.engine.Done(d, w.apply(d.Txn))
		}
		looks++
	}
	if looks == 10 {
		t.Error("it looks again and again, and nothing changes")
	}
	all := 0
	for range store.All[*cluster.Service](w.st.Snapshot()) {
		all++
	}
	w.engine.balance.from, w.engine.balance.again = cluster.ID{}, true
	seen, more := 0, true
	for rounds := 0; more && rounds < 10; rounds++ {
		var due, later []schedule.Group
		due, later, more = w.engine.movable(w.now, time.Time{})
		seen += len(due) + len(later)
	}
	if more || seen != all {
		t.Errorf("looked at %d of %d services, more %v", seen, all, more)
	}
}
