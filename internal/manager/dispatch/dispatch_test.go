package dispatch

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"baton/internal/manager/consensus"
	"baton/internal/manager/store"
	"baton/internal/model/cluster"
	"baton/internal/model/spec"
	"baton/internal/wire/agentapi"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var start = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func id(kind byte, n int) cluster.ID { return cluster.ID{0: kind, 15: byte(n)} }

type plain struct{}

func (plain) Open(sealed []byte, _ cluster.Kind, _ cluster.ID) ([]byte, error) { return sealed, nil }

// world is a dispatcher that takes its turns in the test's goroutine, with two nodes and one service that has a secret.
type world struct {
	t      *testing.T
	st     *store.Store
	log    *consensus.Memory
	d      *Dispatcher
	cursor *store.Cursor
}

func newWorld(t *testing.T) *world {
	w := &world{t: t, st: store.New()}
	w.log = consensus.NewMemory(w.st)
	w.d = New(Config{Store: w.st, Log: w.log, Opener: plain{}, Logger: slog.New(slog.DiscardHandler), Now: func() time.Time { return start }})
	w.cursor = w.st.Changes(0, Watched())
	t.Cleanup(w.cursor.Close)
	w.put(
		&cluster.Settings{Meta: cluster.Meta{ID: cluster.SettingsID}, TaskPool: netip.MustParsePrefix("10.0.0.0/16")},
		&cluster.Node{Meta: cluster.Meta{ID: id('n', 1)}, Name: "n1", Subnet: netip.MustParsePrefix("10.0.0.0/22")}, &cluster.Node{Meta: cluster.Meta{ID: id('n', 2)}, Name: "n2"},
		&cluster.Service{Meta: cluster.Meta{ID: id('s', 1)}, Name: "web", StackName: "shop", Revision: id('r', 1)},
		&cluster.Secret{Meta: cluster.Meta{ID: id('k', 1)}, Name: "key", Number: 1, Sealed: []byte("hidden")},
		&cluster.Volume{Meta: cluster.Meta{ID: id('v', 1)}, Name: "data", Node: id('n', 1)},
		&cluster.Revision{
			Meta: cluster.Meta{ID: id('r', 1)}, Service: id('s', 1), Number: 1,
			Spec:    spec.Service{Name: "web", Secrets: []spec.FileRef{{Source: "key", Target: "/run/secrets/key"}}},
			Secrets: map[string]cluster.ID{"key": id('k', 1)}, Volumes: map[string]cluster.ID{"data": id('v', 1)},
		},
	)
	return w
}

func (w *world) put(list ...cluster.Object) {
	w.t.Helper()
	var t store.Txn
	for _, o := range list {
		t.Put(o)
	}
	if _, err := w.log.Propose(context.Background(), t); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) task(n, node int) *cluster.Task {
	return &cluster.Task{
		Meta: cluster.Meta{ID: id('t', n)}, Service: id('s', 1), Revision: id('r', 1), Node: id('n', node), Slot: n,
		Desired: cluster.DesiredRun, Observed: cluster.ObservedAssigned, Address: netip.AddrFrom4([4]byte{10, 0, 0, byte(n)}),
	}
}

func (w *world) stored(n int) *cluster.Task {
	w.t.Helper()
	task, ok := store.Get[*cluster.Task](w.st.Snapshot(), id('t', n))
	if !ok {
		w.t.Fatalf("task %d is not stored", n)
	}
	return cluster.Copy(task)
}

func (w *world) connect(node int) *Session {
	w.t.Helper()
	s, err := w.d.Connect(context.Background(), agentapi.Hello{Node: id('n', node)})
	if err != nil {
		w.t.Fatal(err)
	}
	w.follow()
	return s.(*Session)
}

func (w *world) follow() { w.d.Follow(w.cursor.Collect()) }

func (w *world) report(s *Session, r agentapi.Report) {
	w.t.Helper()
	if err := s.Send(context.Background(), r); err != nil {
		w.t.Fatal(err)
	}
	w.d.WriteReports(context.Background())
}

func TestFullThenDifferences(t *testing.T) {
	w := newWorld(t)
	w.put(w.task(1, 1), w.task(2, 2))
	s := w.connect(1)
	u, ok := s.Poll()
	if !ok || !u.Full || len(u.Assignments) != 1 || u.Assignments[0].Task.ID != id('t', 1) || u.Network == nil || u.Node == nil {
		t.Fatalf("got %+v, want everything, with the node's one task", u)
	}
	w.put(w.task(3, 1), w.task(4, 2))
	w.follow()
	if u, _ = s.Poll(); u.Full || len(u.Assignments) != 1 || u.Assignments[0].Task.ID != id('t', 3) {
		t.Errorf("got %+v, want only the new task", u)
	}
	w.follow()
	if u, ok = s.Poll(); ok {
		t.Errorf("got %+v although nothing changed", u)
	}
}

// Nodes get a service's ingress rules with it, and new ones when only they changed.
func TestIngressRulesReachTheNodes(t *testing.T) {
	w := newWorld(t)
	rules := func(n int, list ...spec.Ingress) {
		w.put(&cluster.Revision{
			Meta: cluster.Meta{ID: id('r', n)}, Service: id('s', 1), Number: n, Spec: spec.Service{Name: "web", Ingress: list},
		})
		svc, _ := store.Get[*cluster.Service](w.st.Snapshot(), id('s', 1))
		svc = cluster.Copy(svc)
		svc.Revision = id('r', n)
		w.put(svc)
		w.follow()
	}
	first := spec.Ingress{Host: "a.example", Path: "/", Port: 80}
	rules(2, first)
	s := w.connect(1)
	u, ok := s.Poll()
	if !ok || u.Network == nil || !reflect.DeepEqual(u.Network.Services[0].Ingress, []spec.Ingress{first}) {
		t.Fatalf("got %+v, want the rule with the service", u.Network)
	}
	rules(3, first)
	if u, _ := s.Poll(); u.Network != nil {
		t.Error("a new network state although the rules are the same")
	}
	second := spec.Ingress{Host: "b.example", Path: "/", Port: 80}
	rules(4, first, second)
	if u, _ = s.Poll(); u.Network == nil || !reflect.DeepEqual(u.Network.Services[0].Ingress, []spec.Ingress{first, second}) {
		t.Errorf("got %+v, want both rules", u.Network)
	}
}

func TestUnreadUpdatesAreMerged(t *testing.T) {
	w := newWorld(t)
	s := w.connect(1)
	w.put(w.task(1, 1), w.task(2, 1))
	w.follow()
	stop := w.stored(1)
	stop.Desired = cluster.DesiredStop
	var txn store.Txn
	txn.Put(stop)
	txn.Delete(w.stored(2))
	if _, err := w.log.Propose(context.Background(), txn); err != nil {
		t.Fatal(err)
	}
	w.follow()
	u, _ := s.Poll()
	if !u.Full || len(u.Assignments) != 1 || u.Assignments[0].Task.Desired != cluster.DesiredStop || u.Version != w.st.Snapshot().Version() {
		t.Errorf("got %+v, want one full update with the one task, to be stopped", u)
	}
	if len(u.Removed) != 1 || u.Removed[0] != id('t', 2) {
		t.Errorf("got removed %v, want task 2", u.Removed)
	}
}

func TestAckedIsTheLowestOfConnectedNodes(t *testing.T) {
	w := newWorld(t)
	if got := w.d.Acked(); got != 0 {
		t.Errorf("got %d with no node connected, want 0", got)
	}
	one, two := w.connect(1), w.connect(2)
	a, _ := one.Poll()
	w.report(one, agentapi.Report{Applied: a.Version})
	if got := w.d.Acked(); got >= a.Version {
		t.Errorf("got %d although the second node has not answered", got)
	}
	b, _ := two.Poll()
	w.report(two, agentapi.Report{Applied: b.Version})
	w.follow()
	for _, s := range []*Session{one, two} {
		if u, ok := s.Poll(); ok {
			w.report(s, agentapi.Report{Applied: u.Version})
		}
	}
	if got, want := w.d.Acked(), w.st.Snapshot().Version(); got != want {
		t.Errorf("got %d, want %d: both follow everything", got, want)
	}
	// What brings nothing for a node needs no answer from it.
	w.put(&cluster.Volume{Meta: cluster.Meta{ID: id('v', 9)}, Name: "other"})
	w.follow()
	if got, want := w.d.Acked(), w.st.Snapshot().Version(); got != want {
		t.Errorf("got %d, want %d", got, want)
	}
	ready := w.task(1, 1)
	ready.Observed, ready.Ready = cluster.ObservedRunning, true
	w.put(ready)
	w.follow()
	if got, want := w.d.Acked(), w.st.Snapshot().Version(); got >= want {
		t.Errorf("got %d before any node follows the new endpoint of version %d", got, want)
	}
	_ = two.Close()
	u, _ := one.Poll()
	w.report(one, agentapi.Report{Applied: u.Version})
	if got, want := w.d.Acked(), w.st.Snapshot().Version(); got != want {
		t.Errorf("got %d, want %d: a node that left does not count", got, want)
	}
}

func TestStatusesSurviveConflictsAndRepetition(t *testing.T) {
	w := newWorld(t)
	w.put(w.task(1, 1))
	s := w.connect(1)
	conflicts := 3
	w.log.SetFault(func(*store.Txn) consensus.Fault {
		if conflicts == 0 {
			return consensus.Fault{}
		}
		conflicts--
		return consensus.Fault{Refuse: store.ErrConflict}
	})
	status := func(o cluster.Observed) agentapi.Report {
		return agentapi.Report{Tasks: []cluster.Status{{Task: id('t', 1), Observed: o, Ready: o == cluster.ObservedRunning, At: start}}}
	}
	w.report(s, status(cluster.ObservedRunning))
	if got := w.stored(1); got.Observed != cluster.ObservedRunning || !got.Ready {
		t.Fatalf("got %s after conflicts, want running", got.Observed)
	}
	// An old status that is told again after a newer one, in one batch, does not hide it.
	if err := s.Send(context.Background(), status(cluster.ObservedFailed)); err != nil {
		t.Fatal(err)
	}
	w.report(s, status(cluster.ObservedStopping))
	if got := w.stored(1); got.Observed != cluster.ObservedFailed {
		t.Errorf("got %s, want failed", got.Observed)
	}
	other := w.connect(2)
	w.report(other, status(cluster.ObservedRunning))
	if got := w.stored(1); got.Observed != cluster.ObservedFailed {
		t.Errorf("another node moved the task to %s", got.Observed)
	}
}

func TestReportThatCannotBeWrittenEndsItsSession(t *testing.T) {
	w := newWorld(t)
	w.put(w.task(1, 1))
	s := w.connect(1)
	w.log.SetLeader(false)
	w.report(s, agentapi.Report{Tasks: []cluster.Status{{Task: id('t', 1), Observed: cluster.ObservedRunning}}})
	if err := s.Send(context.Background(), agentapi.Report{Applied: 1}); !errors.Is(err, ErrClosed) {
		t.Errorf("got %v, want a closed session: its agent must report anew", err)
	}
}

func TestSecretsGoOnlyWhereTheyAreUsed(t *testing.T) {
	w := newWorld(t)
	ended, pending := w.task(2, 2), w.task(3, 2)
	ended.Observed, ended.Desired = cluster.ObservedFailed, cluster.DesiredRemove
	pending.Observed = cluster.ObservedPending
	w.put(w.task(1, 1), ended, pending)
	one, two := w.connect(1), w.connect(2)
	u, _ := one.Poll()
	if len(u.Assignments) != 1 || len(u.Assignments[0].Files) != 1 || string(u.Assignments[0].Files[0].Content) != "hidden" {
		t.Errorf("got %+v, want the secret with the task", u.Assignments)
	}
	u, _ = two.Poll()
	if len(u.Assignments) != 1 || len(u.Assignments[0].Files) != 0 {
		t.Errorf("got %+v, want the ended task without files, and not the one that has no place yet", u.Assignments)
	}
}

func TestVolumeIsRemovedAfterItsLastUser(t *testing.T) {
	w := newWorld(t)
	vol, _ := store.Get[*cluster.Volume](w.st.Snapshot(), id('v', 1))
	gone := cluster.Copy(vol)
	gone.Removing = true
	w.put(w.task(1, 1), gone)
	s := w.connect(1)
	if u, _ := s.Poll(); len(u.RemoveVolumes) != 0 {
		t.Fatalf("volume %v is removed under a task", u.RemoveVolumes)
	}
	task := w.stored(1)
	task.Observed = cluster.ObservedComplete
	w.put(task)
	w.follow()
	if u, _ := s.Poll(); len(u.RemoveVolumes) != 1 || u.RemoveVolumes[0] != "data" {
		t.Fatalf("got %v, want the volume", u.RemoveVolumes)
	}
	w.report(s, agentapi.Report{VolumesRemoved: []string{"data"}})
	if _, ok := w.st.Snapshot().VolumeByName("data"); ok {
		t.Error("the volume is still stored")
	}
}

// What a node has of a volume that was given up there is deleted once no task there uses it; the volume stays.
func TestAbandonedVolumeIsDeletedWhereItWas(t *testing.T) {
	w := newWorld(t)
	old, _ := store.Get[*cluster.Volume](w.st.Snapshot(), id('v', 1))
	vol := cluster.Copy(old)
	vol.OnLoss, vol.Node, vol.Abandoned = spec.LossRecreate, id('n', 2), []cluster.ID{id('n', 1), id('n', 3)}
	first := w.task(1, 1)
	first.Leased = true
	w.put(first, vol)
	s := w.connect(1)
	u, _ := s.Poll()
	if len(u.RemoveVolumes) != 0 || len(u.Assignments) != 1 || !u.Assignments[0].Task.Leased {
		t.Fatalf("under a task: got %+v, want it leased and its volume kept", u)
	}
	task := w.stored(1)
	task.Observed = cluster.ObservedLost
	w.put(task)
	w.follow()
	if u, _ := s.Poll(); len(u.RemoveVolumes) != 1 || u.RemoveVolumes[0] != "data" {
		t.Fatalf("got %v, want the volume", u.RemoveVolumes)
	}
	w.report(s, agentapi.Report{VolumesRemoved: []string{"data"}})
	now, ok := store.Get[*cluster.Volume](w.st.Snapshot(), vol.ID)
	if !ok || now.Node != id('n', 2) || len(now.Abandoned) != 1 || now.Abandoned[0] != id('n', 3) {
		t.Errorf("after the report the volume is %+v, want node 3 alone still to delete it", now)
	}
}

func TestTaskThatCannotBeSentIsRejected(t *testing.T) {
	w := newWorld(t)
	s := w.connect(1)
	s.Poll()
	secret, _ := store.Get[*cluster.Secret](w.st.Snapshot(), id('k', 1))
	var txn store.Txn
	txn.Delete(secret)
	if _, err := w.log.Propose(t.Context(), txn); err != nil {
		t.Fatal(err)
	}
	w.put(w.task(1, 1))
	w.follow()
	w.d.WriteReports(t.Context())
	if task := w.stored(1); task.Observed != cluster.ObservedRejected || !strings.Contains(task.Reason, "secret key") {
		t.Errorf("got %s, %q; want it rejected for its secret", task.Observed, task.Reason)
	}
}

func TestNodeWithoutSubnetIsNotConfigured(t *testing.T) {
	w := newWorld(t)
	s := w.connect(2)
	if u, ok := s.Poll(); !ok || u.Node != nil {
		t.Errorf("got %+v, want no node config yet", u.Node)
	}
	node, _ := store.Get[*cluster.Node](w.st.Snapshot(), id('n', 2))
	c := cluster.Copy(node)
	c.Subnet = netip.MustParsePrefix("10.0.4.0/22")
	w.put(c)
	w.follow()
	if u, ok := s.Poll(); !ok || u.Node == nil || u.Node.Subnet != c.Subnet {
		t.Errorf("got %+v, want the subnet", u.Node)
	}
}

func TestVolumeOfAnEarlierNameIsRemovedToo(t *testing.T) {
	w := newWorld(t)
	vol, _ := store.Get[*cluster.Volume](w.st.Snapshot(), id('v', 1))
	gone := cluster.Copy(vol)
	gone.Removing = true
	w.put(gone)
	s := w.connect(1)
	s.Poll()
	w.report(s, agentapi.Report{VolumesRemoved: []string{"data"}})
	for n := 2; n < 4; n++ {
		w.put(&cluster.Volume{Meta: cluster.Meta{ID: id('v', n)}, Name: "data", Node: id('n', 1), Removing: true})
		w.follow()
		w.follow()
		if u, _ := s.Poll(); len(u.RemoveVolumes) != 1 || u.RemoveVolumes[0] != "data" {
			t.Fatalf("volume %d: got %v, want it told once", n, u.RemoveVolumes)
		}
		w.report(s, agentapi.Report{VolumesRemoved: []string{"data"}})
	}
}

func TestNewSessionEndsTheOldOne(t *testing.T) {
	w := newWorld(t)
	old := w.connect(1)
	w.connect(1)
	if _, err := old.Recv(context.Background()); !errors.Is(err, ErrClosed) {
		t.Errorf("got %v, want %v", err, ErrClosed)
	}
	if _, err := w.d.Connect(context.Background(), agentapi.Hello{Node: id('n', 9), Name: "stranger"}); err == nil {
		t.Error("a node that is no member may connect")
	}
}
