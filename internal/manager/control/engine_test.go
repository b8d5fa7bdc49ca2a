package control

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"baton/internal/manager/consensus"
	"baton/internal/manager/stacks"
	"baton/internal/manager/store"
	"baton/internal/model/cluster"
	"baton/internal/model/spec"
	"baton/internal/plan/release"
)

// world is a store with an engine and nodes that do at once what they are told.
type world struct {
	t      testing.TB
	st     *store.Store
	engine *Engine
	cursor *store.Cursor
	now    time.Time
}

func newWorld(t testing.TB, nodes int) *world {
	w := &world{t: t, st: store.New(), engine: NewEngine(nil, 1), now: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)}
	w.cursor = w.st.Changes(0, store.Filter{})
	t.Cleanup(w.cursor.Close)
	w.put(&cluster.Settings{
		Meta: cluster.Meta{ID: cluster.SettingsID}, TaskPool: netip.MustParsePrefix("10.0.0.0/16"),
		ServicePool: netip.MustParsePrefix("10.1.0.0/24"), NodeBits: 28,
	})
	for i := range nodes {
		w.put(&cluster.Node{
			Meta: cluster.Meta{ID: cluster.NewID(nil)}, Name: fmt.Sprintf("n%d", i+1), State: cluster.NodeReady, Availability: cluster.NodeActive,
			Description: cluster.NodeDescription{OS: "linux", Arch: "amd64", CPU: 4000, Memory: 8 << 30},
		})
	}
	return w
}

func (w *world) put(list ...cluster.Object) {
	w.t.Helper()
	var t store.Txn
	for _, o := range list {
		t.Put(o)
	}
	if err := w.apply(t); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) apply(t store.Txn) error {
	return w.st.Apply(w.st.Snapshot().Version()+1, []store.Txn{t})[0]
}

// merge tells the engine what changed.
func (w *world) merge() {
	w.t.Helper()
	if err := w.engine.Merge(w.cursor.Collect()); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) next() (Decision, bool) {
	w.t.Helper()
	w.merge()
	d, ok, err := w.engine.Next(w.now, w.st.Snapshot().Version())
	if err != nil {
		w.t.Fatal(err)
	}
	return d, ok
}

// work lets engine and nodes act until nothing moves and nothing is due within limit.
func (w *world) work(limit time.Duration) {
	w.t.Helper()
	nodes := &preview{fork: w.st, engine: w.engine, acting: make(map[cluster.ID]bool)}
	changes := w.st.Changes(0, store.Filter{Kinds: []cluster.Kind{cluster.KindTask}})
	defer changes.Close()
	for end := w.now.Add(limit); ; {
		for d, ok := w.next(); ok; d, ok = w.next() {
			w.engine.Done(d, w.apply(d.Txn))
		}
		nodes.now = w.now
		nodes.follow(changes.Collect())
		moved, err := nodes.nodes()
		if err != nil {
			w.t.Fatal(err)
		}
		got := false
		for st := range store.All[*cluster.Stack](w.st.Snapshot()) {
			nodes.stack = st.ID
			had, err := nodes.images()
			if err != nil {
				w.t.Fatal(err)
			}
			got = got || had
		}
		if moved || got {
			continue
		}
		at := w.engine.WakeAt()
		if at.IsZero() || at.After(end) {
			return
		}
		w.now = later(w.now, at)
	}
}

func (w *world) deploy(file spec.Stack) release.Deployment {
	w.t.Helper()
	file.SetDefaults()
	if err := file.Validate(); err != nil {
		w.t.Fatal(err)
	}
	w.now = w.now.Add(time.Second)
	d, err := release.Deploy(release.DeployInput{
		View: stacks.View{Snap: w.st.Snapshot()}, Want: file, IDs: func() cluster.ID { return cluster.NewID(nil) }, Now: w.now,
	})
	if err != nil {
		w.t.Fatal(err)
	}
	if len(d.Put) > 0 {
		w.put(d.Put...)
	}
	return d
}

func (w *world) service(name string) *cluster.Service {
	w.t.Helper()
	for s := range store.All[*cluster.Service](w.st.Snapshot()) {
		if s.Name == name {
			return s
		}
	}
	w.t.Fatalf("there is no service %s", name)
	return nil
}

// tasks lists the tasks of a service that are wanted.
func (w *world) tasks(name string) (out []*cluster.Task) {
	for t := range w.st.Snapshot().TasksByService(w.service(name).ID) {
		if t.Desired == cluster.DesiredRun && !t.Observed.Terminal() {
			out = append(out, t)
		}
	}
	return out
}

func (w *world) change(name string, f func(*cluster.Service)) {
	s := cluster.Copy(w.service(name))
	f(s)
	w.put(s)
}

func service(name string, replicas int) spec.Service {
	return spec.Service{Name: name, Image: name + ":1", Replicas: replicas}
}

func TestRefusedDecisionGivesBackWhatItTook(t *testing.T) {
	w := newWorld(t, 1)
	web := service("web", 2)
	web.Resources.Reservations.CPU = 2000
	web.Ports = nil
	w.deploy(spec.Stack{Name: "s", Services: []spec.Service{web}})
	// Far more refusals than the node has addresses (14) or processors (two tasks' worth).
	for i := 0; i < 40; i++ {
		d, ok := w.next()
		if !ok {
			w.now = w.engine.WakeAt() // refused so often that it is left alone for a while
			continue
		}
		if len(d.created) == 0 {
			w.engine.Done(d, w.apply(d.Txn))
			continue
		}
		w.engine.Done(d, store.ErrConflict)
	}
	w.work(time.Minute)
	if s := w.service("web"); !s.Status.Converged {
		t.Errorf("got %+v, want converged", s.Status)
	}
}

func TestRefusedServiceAddressIsFreeAgain(t *testing.T) {
	w := newWorld(t, 1)
	w.deploy(spec.Stack{Name: "s", Services: []spec.Service{service("web", 1)}})
	// More refusals than the pool has addresses (254).
	for refused := 0; refused < 300; {
		d, ok := w.next()
		switch {
		case !ok:
			w.now = w.engine.WakeAt()
		case !d.address.IsValid():
			w.engine.Done(d, w.apply(d.Txn))
		default:
			refused++
			w.engine.Done(d, store.ErrConflict)
		}
	}
	w.work(time.Minute)
	if s := w.service("web"); !s.Status.Converged {
		t.Errorf("got %+v, want converged", s.Status)
	}
}

func TestRefusedSubjectDoesNotHoldUpOthers(t *testing.T) {
	for name, refusal := range map[string]error{"conflict": store.ErrConflict, "too large": consensus.ErrTooLarge} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, 1)
			w.deploy(spec.Stack{Name: "s", Services: []spec.Service{service("a", 1), service("b", 1)}})
			bad := min(w.service("a").ID.String(), w.service("b").ID.String())
			good := "a"
			if w.service("a").ID.String() == bad {
				good = "b"
			}
			for range 10 * conflictsMax {
				d, ok := w.next()
				if !ok {
					break
				}
				if d.key.id.String() == bad {
					w.engine.Done(d, refusal)
					continue
				}
				w.engine.Done(d, w.apply(d.Txn))
			}
			if len(w.tasks(good)) == 0 {
				t.Errorf("service %s has no task while another one's transaction is refused", good)
			}
			if at := w.engine.WakeAt(); !at.After(w.now) {
				t.Errorf("wakes at %v, want after a pause", at)
			}
		})
	}
}

func TestLargeServiceIsStoppedInParts(t *testing.T) {
	w := newWorld(t, 1)
	w.deploy(spec.Stack{Name: "s", Services: []spec.Service{service("web", 1)}})
	w.work(time.Minute)
	one := w.tasks("web")[0]
	const many = 2*moveMax + 10
	for from := 2; from <= many; from += 1000 {
		var list []cluster.Object
		for slot := from; slot < min(from+1000, many+1); slot++ {
			c := cluster.Copy(one)
			c.Meta, c.Slot, c.Address = cluster.Meta{ID: cluster.NewID(nil)}, slot, netip.Addr{}
			list = append(list, c)
		}
		w.put(list...)
	}
	var moved, parts int
	for d, ok := w.next(); ok; d, ok = w.next() {
		if n := d.Txn.Size(); n > consensus.TxnBytesMax/2 {
			t.Fatalf("%s: a transaction of %d bytes, at most %d fit", d.About, n, consensus.TxnBytesMax)
		}
		w.engine.Done(d, w.apply(d.Txn))
		parts++
		moved = 0
		for task := range w.st.Snapshot().TasksByService(w.service("web").ID) {
			if task.Desired > cluster.DesiredRun {
				moved++
			}
		}
	}
	if moved != many-1 || parts < 3 {
		t.Errorf("%d tasks told to leave in %d parts, want %d in 3 or more", moved, parts, many-1)
	}
}

func TestPendingTasksArePlacedWhenRoomAppears(t *testing.T) {
	w := newWorld(t, 1)
	big, small := service("big", 1), service("small", 1)
	big.Resources.Reservations.CPU, small.Resources.Reservations.CPU = 3000, 3000
	w.deploy(spec.Stack{Name: "a", Services: []spec.Service{big}})
	w.work(time.Minute)
	w.deploy(spec.Stack{Name: "b", Services: []spec.Service{small}})
	w.work(time.Minute)
	got := w.tasks("small")
	if len(got) != 1 || got[0].Observed != cluster.ObservedPending || !strings.Contains(got[0].Reason, "cpu") && !strings.Contains(got[0].Reason, "CPU") {
		t.Fatalf("got %+v, want one pending task that names the processors", got)
	}
	w.change("big", func(s *cluster.Service) { s.Replicas = 0 })
	w.work(time.Minute)
	if got := w.tasks("small"); len(got) != 1 || !got[0].Ready {
		t.Errorf("got %+v, want a ready task", got)
	}
}

func TestGlobalTaskWaitsForRoomOnItsNode(t *testing.T) {
	w := newWorld(t, 1)
	big, each := service("big", 1), service("each", 0)
	each.Mode = spec.Global
	big.Resources.Reservations.CPU, each.Resources.Reservations.CPU = 3000, 3000
	w.deploy(spec.Stack{Name: "a", Services: []spec.Service{big}})
	w.work(time.Minute)
	w.deploy(spec.Stack{Name: "b", Services: []spec.Service{each}})
	w.work(time.Minute)
	if got := w.tasks("each"); len(got) != 1 || got[0].Observed != cluster.ObservedPending || got[0].Reason == "" || got[0].Address.IsValid() {
		t.Fatalf("got %+v, want one pending task with a reason", got)
	}
	w.change("big", func(s *cluster.Service) { s.Replicas = 0 })
	w.work(time.Minute)
	if got := w.tasks("each"); len(got) != 1 || !got[0].Ready || !got[0].Address.IsValid() {
		t.Errorf("got %+v, want a ready task", got)
	}
}

func TestAddressesRunOutAndComeBack(t *testing.T) {
	w := newWorld(t, 1)
	w.deploy(spec.Stack{Name: "a", Services: []spec.Service{service("web", 20)}})
	w.work(time.Minute)
	ready := 0
	for _, task := range w.tasks("web") {
		if task.Ready {
			ready++
		}
	}
	if ready == 0 || ready >= 16 {
		t.Fatalf("%d tasks are ready in a subnet of 16 addresses", ready)
	}
	w.change("web", func(s *cluster.Service) { s.Replicas = 2 })
	w.work(time.Minute)
	w.change("web", func(s *cluster.Service) { s.Replicas = ready })
	w.work(time.Minute)
	if s := w.service("web"); !s.Status.Converged {
		t.Errorf("got %+v, want converged again", s.Status)
	}
}

func TestSingleWriterVolumeKeepsOneWriter(t *testing.T) {
	w := newWorld(t, 3)
	db := service("db", 1)
	db.Mounts = []spec.Mount{{Kind: spec.MountVolume, Source: "data", Target: "/data"}}
	w.deploy(spec.Stack{Name: "a", Services: []spec.Service{db}, Volumes: []spec.Volume{{Name: "data"}}})
	w.work(time.Minute)
	w.change("db", func(s *cluster.Service) { s.Replicas = 3 })
	w.work(time.Minute)
	placed := 0
	for _, task := range w.tasks("db") {
		if task.Observed != cluster.ObservedPending {
			placed++
		} else if !strings.Contains(task.Reason, "one at a time") {
			t.Errorf("reason %q does not name the volume's rule", task.Reason)
		}
	}
	if placed != 1 {
		t.Errorf("%d tasks write to the volume, want 1", placed)
	}
}

func TestDependenciesHoldBackAndRestart(t *testing.T) {
	w := newWorld(t, 2)
	db, web := service("db", 0), service("web", 1)
	web.DependsOn = []spec.Dependency{{Service: "db", Condition: spec.DependHealthy, Restart: true, Required: true}}
	file := spec.Stack{Name: "a", Services: []spec.Service{db, web}}
	w.deploy(file)
	w.work(time.Minute)
	if got, waiting := w.tasks("web"), w.service("web").Status.Waiting; len(got) != 0 || !strings.Contains(waiting, "db") {
		t.Fatalf("got %d tasks and %q, want none, waiting for db", len(got), waiting)
	}
	w.change("db", func(s *cluster.Service) { s.Replicas, s.Scaled = 1, true })
	w.work(time.Minute)
	first := w.tasks("web")
	if len(first) != 1 || !first[0].Ready {
		t.Fatalf("got %+v, want a ready task once db is healthy", first)
	}
	file.Services[0].Image = "db:2"
	w.deploy(file)
	w.work(time.Minute)
	if got := w.tasks("web"); len(got) != 1 || got[0].ID == first[0].ID {
		t.Errorf("web was not restarted after db was updated")
	}
}

func TestRemovedStackLeavesNothing(t *testing.T) {
	w := newWorld(t, 2)
	w.deploy(spec.Stack{Name: "a", Services: []spec.Service{service("web", 3), service("api", 2)}})
	w.work(time.Minute)
	snap := w.st.Snapshot()
	st, _ := snap.StackByName("a")
	gone := cluster.Copy(st)
	gone.Removing = true
	w.put(gone)
	for _, name := range []string{"web", "api"} {
		w.change(name, func(s *cluster.Service) { s.Removing = true })
	}
	w.work(time.Minute)
	for _, k := range []cluster.Kind{
		cluster.KindStack, cluster.KindRelease, cluster.KindService, cluster.KindRevision, cluster.KindTask, cluster.KindNetwork,
	} {
		if n := w.st.Snapshot().Count(k); n != 0 {
			t.Errorf("%d objects of kind %s are left", n, k)
		}
	}
}

func TestEventsAreBounded(t *testing.T) {
	w := newWorld(t, 1)
	const more = eventsSlack + 100
	var txn store.Txn
	for i := range eventsMax + more {
		at := w.now.Add(time.Duration(i) * time.Millisecond)
		txn.Put(&cluster.Event{Meta: cluster.Meta{ID: cluster.NewID(nil), Created: at}, At: at, Type: "test"})
		if txn.Len() == 1000 || i == eventsMax+more-1 {
			if err := w.apply(txn); err != nil {
				t.Fatal(err)
			}
			txn = store.Txn{}
		}
	}
	w.work(time.Second)
	if n := w.st.Snapshot().Count(cluster.KindEvent); n != eventsMax {
		t.Errorf("%d events are kept, want %d", n, eventsMax)
	}
	for e := range w.st.Snapshot().EventsBy(cluster.ID{}) {
		if first := w.now.Add(more * time.Millisecond); e.At.Before(first.Add(-time.Millisecond)) {
			t.Errorf("the oldest event kept is of %s, want the newest to stay", e.At)
		}
		break
	}
}

// A node's stand-in takes the address of the task that ended, in one transaction: whichever comes first in the change, the
// address must not be given away.
func TestAddressStaysWithTheStandIn(t *testing.T) {
	for _, heir := range []cluster.ID{{0: 1}, {0: 255, 1: 255}} {
		for _, first := range []bool{true, false} {
			w := newWorld(t, 1)
			w.deploy(spec.Stack{Name: "shop", Services: []spec.Service{{Name: "web", Image: "web:1", Replicas: 1}}})
			w.work(time.Minute)
			var old *cluster.Task
			for o := range store.All[*cluster.Task](w.st.Snapshot()) {
				old = cluster.Copy(o)
			}
			next := cluster.Copy(old)
			next.Meta, next.Replaces = cluster.Meta{ID: heir, Created: w.now}, old.ID
			old.Observed, old.Ended = cluster.ObservedFailed, w.now
			if first {
				w.put(old, next)
			} else {
				w.put(next, old)
			}
			w.merge()
			if err := w.engine.nodes[old.Node].Take(old.Address); err == nil {
				t.Errorf("address %s of stand-in %s is free", old.Address, heir.Short())
			}
		}
	}
}
