package control

import (
	"strings"
	"testing"
	"time"

	"baton/internal/manager/store"
	"baton/internal/model/cluster"
	"baton/internal/model/spec"
)

// cached deploys a service with a volume of its own, and returns the volume with its name.
func (w *world) cached(loss spec.OnLoss) *cluster.Volume {
	w.t.Helper()
	cache := service("cache", 1)
	cache.Mounts = []spec.Mount{{Kind: spec.MountVolume, Source: "data", Target: "/data"}}
	w.deploy(spec.Stack{Name: "a", Services: []spec.Service{cache}, Volumes: []spec.Volume{{Name: "data", OnLoss: loss}}})
	w.work(time.Minute)
	return w.volume()
}

func (w *world) volume() *cluster.Volume {
	for v := range store.All[*cluster.Volume](w.st.Snapshot()) {
		return v
	}
	return nil
}

// judge writes a node's state.
func (w *world) judge(id cluster.ID, s cluster.NodeState) {
	w.t.Helper()
	n, ok := store.Get[*cluster.Node](w.st.Snapshot(), id)
	if !ok {
		w.t.Fatal("the node is gone")
	}
	c := cluster.Copy(n)
	c.State, c.StateSince = s, w.now
	w.put(c)
	w.work(time.Minute)
}

// place is the node of the only task that is wanted; zero: it has none.
func (w *world) place() cluster.ID {
	w.t.Helper()
	tasks := w.tasks("cache")
	if len(tasks) != 1 {
		w.t.Fatalf("%d tasks are wanted", len(tasks))
	}
	return tasks[0].Node
}

func TestVolumeOfALostNodeBeginsElsewhere(t *testing.T) {
	w := newWorld(t, 2)
	first := w.cached(spec.LossRecreate).Node
	if first.IsZero() || w.place() != first {
		t.Fatal("the task does not run where its volume is")
	}
	w.judge(first, cluster.NodeUnknown)
	if w.volume().Node != first {
		t.Fatal("given up before the node's leases are over")
	}
	w.judge(first, cluster.NodeDown)
	second := w.volume().Node
	if second.IsZero() || second == first || w.place() != second {
		t.Fatalf("the volume is on %s, its task on %s; want both on the other node than %s", second, w.place(), first)
	}
	if v := w.volume(); len(v.Abandoned) != 1 || v.Abandoned[0] != first {
		t.Errorf("what is left is known on %v, want on the lost node", v.Abandoned)
	}
	told := false
	for e := range store.All[*cluster.Event](w.st.Snapshot()) {
		told = told || e.Type == "volume.given-up" && strings.Contains(e.Message, "n") && e.Node == first
	}
	if !told {
		t.Error("no event tells of it")
	}

	// While the node that is back still has what was left, it is no place for the volume.
	w.judge(first, cluster.NodeReady)
	w.judge(second, cluster.NodeDown)
	if v := w.volume(); !v.Node.IsZero() || len(v.Abandoned) != 2 {
		t.Fatalf("volume %+v is on a node where what was left of it is", v)
	}
	if reason := w.tasks("cache")[0].Reason; !strings.Contains(reason, "1 still has what was left of volume a_data") {
		t.Errorf("the task waits with the reason %q", reason)
	}
	c := cluster.Copy(w.volume())
	c.Abandoned = []cluster.ID{second} // as reported by the first
	w.put(c)
	w.work(time.Minute)
	if w.place() != first {
		t.Error("the task does not run on the node that has deleted what was left")
	}
}

func TestVolumeWaitsForItsNodeUnlessToldOtherwise(t *testing.T) {
	for _, loss := range []spec.OnLoss{"", spec.LossWait} {
		w := newWorld(t, 2)
		first := w.cached(loss).Node
		w.judge(first, cluster.NodeDown)
		if v := w.volume(); v.Node != first || len(v.Abandoned) > 0 {
			t.Errorf("on loss %q: the volume was given up", loss)
		}
	}
}

// A node that was removed takes its volumes with it.
func TestVolumesOfARemovedNode(t *testing.T) {
	for _, removing := range []bool{false, true} {
		w := newWorld(t, 2)
		v := w.cached(spec.LossRecreate)
		if removing {
			c := cluster.Copy(v)
			c.Removing = true
			w.put(c)
			s := cluster.Copy(w.service("cache"))
			s.Removing = true
			w.put(s)
			w.work(time.Minute)
		}
		node, _ := store.Get[*cluster.Node](w.st.Snapshot(), v.Node)
		var txn store.Txn
		txn.Delete(node)
		if err := w.apply(txn); err != nil {
			t.Fatal(err)
		}
		w.work(time.Minute)
		switch now := w.volume(); {
		case removing && now != nil:
			t.Errorf("a volume that is to be removed waits for a node that is gone: %+v", now)
		case !removing && (now == nil || now.Node == v.Node || now.Node.IsZero() || len(now.Abandoned) > 0):
			t.Errorf("the volume did not begin elsewhere: %+v", now)
		}
	}
}

// A task that was started without a lease may go on wherever its node is: only once one with a lease has its place may the volume be
// given up.
func TestVolumeIsGivenUpOnlyWhenItsWriterHasALease(t *testing.T) {
	w := newWorld(t, 2)
	first := w.cached(spec.LossWait).Node
	w.cached(spec.LossRecreate) // the task stays as it is
	if v := w.volume(); !v.Leased() || v.Held || w.tasks("cache")[0].Leased {
		t.Fatalf("volume %+v, task leased: %t; want the volume to wait for a task with a lease", v, w.tasks("cache")[0].Leased)
	}
	w.judge(first, cluster.NodeDown)
	if w.volume().Node != first {
		t.Fatal("given up while a task without a lease may still run")
	}
	w.judge(first, cluster.NodeReady)
	if v := w.volume(); w.place() != first || !w.tasks("cache")[0].Leased || !v.Held {
		t.Fatalf("volume %+v, task leased: %t; want a new task, with a lease", v, w.tasks("cache")[0].Leased)
	}
	w.judge(first, cluster.NodeDown)
	if w.volume().Node == first {
		t.Error("not given up, though its writer has a lease")
	}
	w.cached(spec.LossWait)
	if w.volume().Held {
		t.Error("a volume that waits is held")
	}
}
