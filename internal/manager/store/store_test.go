package store

import (
	"errors"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"baton/internal/model/cluster"
	"baton/internal/model/spec"
)

func id(n byte) cluster.ID { return cluster.ID{15: n, 0: n * 37} }

func meta(n byte) cluster.Meta {
	return cluster.Meta{ID: id(n), Created: time.Unix(1700000000, 123456789).UTC()}
}

func task(n, service, node byte) *cluster.Task {
	t := &cluster.Task{Meta: meta(n), Service: id(service), Desired: cluster.DesiredRun, Observed: cluster.ObservedPending, Slot: int(n)}
	if node != 0 {
		t.Node = id(node)
	}
	return t
}

func putAll(objects ...cluster.Object) Txn {
	var t Txn
	for _, o := range objects {
		t.Put(o)
	}
	return t
}

// mustApply applies the transactions at the next version and fails the test if one is refused.
func mustApply(t testing.TB, s *Store, txns ...Txn) {
	t.Helper()
	for i, err := range s.Apply(s.Snapshot().Version()+1, txns) {
		if err != nil {
			t.Fatalf("transaction %d: %v", i, err)
		}
	}
}

func get[T cluster.Object](t testing.TB, s *Store, id cluster.ID) T {
	t.Helper()
	o, ok := Get[T](s.Snapshot(), id)
	if !ok {
		t.Fatalf("%s %s is not stored", kindOf[T](), id)
	}
	return o
}

func ids[T cluster.Object](seq func(func(T) bool)) (out []cluster.ID) {
	for o := range seq {
		out = append(out, o.GetMeta().ID)
	}
	return out
}

func TestTxnIsAllOrNothing(t *testing.T) {
	s := New()
	mustApply(t, s, putAll(task(1, 9, 0)))
	before := s.Snapshot()
	var txn Txn
	txn.Put(task(2, 9, 0))
	stale := cluster.Copy(get[*cluster.Task](t, s, id(1)))
	stale.Version = 7
	txn.Put(stale)
	errs := s.Apply(2, []Txn{txn})
	var conflict *ConflictError
	if !errors.As(errs[0], &conflict) || !errors.Is(errs[0], ErrConflict) {
		t.Fatalf("got %v, want a conflict", errs[0])
	}
	if want := (ConflictError{Kind: cluster.KindTask, ID: id(1), Want: 7, Have: 1}); *conflict != want {
		t.Fatalf("got %+v, want %+v", *conflict, want)
	}
	after := s.Snapshot()
	if after.Count(cluster.KindTask) != 1 || after.t.sum != before.t.sum {
		t.Fatalf("a refused transaction left %d tasks", after.Count(cluster.KindTask))
	}
}

func TestTxnsOfOneEntryAreSerial(t *testing.T) {
	s := New()
	mustApply(t, s, putAll(task(1, 9, 0)))
	a, b := cluster.Copy(get[*cluster.Task](t, s, id(1))), cluster.Copy(get[*cluster.Task](t, s, id(1)))
	a.Reason, b.Reason = "a", "b"
	errs := s.Apply(5, []Txn{putAll(a), putAll(b), putAll(task(2, 9, 0))})
	if errs[0] != nil || !errors.Is(errs[1], ErrConflict) || errs[2] != nil {
		t.Fatalf("got %v, want only the second refused", errs)
	}
	if got := get[*cluster.Task](t, s, id(1)); got.Reason != "a" || got.Version != 5 {
		t.Fatalf("got %q at %d, want a at 5", got.Reason, got.Version)
	}
}

func TestCheckGuardsAndAbsence(t *testing.T) {
	s := New()
	mustApply(t, s, putAll(task(1, 9, 0)))
	stored := get[*cluster.Task](t, s, id(1))
	for _, c := range []struct {
		name  string
		check cluster.Object
		want  error
	}{
		{"at its version", stored, nil},
		{"stale", &cluster.Task{Meta: cluster.Meta{ID: id(1), Version: 9}}, ErrConflict},
		{"absent and wanted absent", &cluster.Task{Meta: cluster.Meta{ID: id(3)}}, nil},
		{"present and wanted absent", &cluster.Task{Meta: cluster.Meta{ID: id(1)}}, ErrConflict},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := s.Fork()
			var txn Txn
			txn.Check(c.check)
			txn.Put(task(2, 9, 0))
			if err := f.Apply(2, []Txn{txn})[0]; !errors.Is(err, c.want) {
				t.Fatalf("got %v, want %v", err, c.want)
			}
		})
	}
}

func TestPutCapturesTheObject(t *testing.T) {
	s := New()
	o := task(1, 9, 0)
	txn := putAll(o)
	o.Reason = "changed after Put"
	mustApply(t, s, txn)
	if got := get[*cluster.Task](t, s, id(1)).Reason; got != "" {
		t.Fatalf("got reason %q, want none", got)
	}
}

func TestLaterOperationReplacesEarlier(t *testing.T) {
	s := New()
	mustApply(t, s, putAll(task(1, 9, 0)))
	o := cluster.Copy(get[*cluster.Task](t, s, id(1)))
	var txn Txn
	txn.Check(o)
	o.Reason = "one"
	txn.Put(o)
	o.Reason = "two"
	txn.Put(o)
	txn.Check(o)
	if txn.Len() != 1 {
		t.Fatalf("got %d operations, want 1", txn.Len())
	}
	mustApply(t, s, txn)
	if got := get[*cluster.Task](t, s, id(1)).Reason; got != "two" {
		t.Fatalf("got %q, want two", got)
	}
}

func TestUniqueKeys(t *testing.T) {
	stack, service := id(100), id(101)
	cases := []struct {
		name string
		a, b cluster.Object
		want bool // refused
	}{
		{"node name", &cluster.Node{Meta: meta(1), Name: "n"}, &cluster.Node{Meta: meta(2), Name: "n"}, true},
		{"stack name", &cluster.Stack{Meta: meta(1), Name: "n"}, &cluster.Stack{Meta: meta(2), Name: "n"}, true},
		{"service in stack", &cluster.Service{Meta: meta(1), Stack: stack, Name: "n"}, &cluster.Service{Meta: meta(2), Stack: stack, Name: "n"}, true},
		{"service in another stack", &cluster.Service{Meta: meta(1), Stack: stack, Name: "n"}, &cluster.Service{Meta: meta(2), Stack: id(9), Name: "n"}, false},
		{"volume name", &cluster.Volume{Meta: meta(1), Stack: stack, Name: "n"}, &cluster.Volume{Meta: meta(2), Name: "n"}, true},
		{"network in stack", &cluster.Network{Meta: meta(1), Stack: stack, Name: "n"}, &cluster.Network{Meta: meta(2), Stack: stack, Name: "n"}, true},
		{"secret version", &cluster.Secret{Meta: meta(1), Name: "n", Number: 1}, &cluster.Secret{Meta: meta(2), Name: "n", Number: 1}, true},
		{"secret, next version", &cluster.Secret{Meta: meta(1), Name: "n", Number: 1}, &cluster.Secret{Meta: meta(2), Name: "n", Number: 2}, false},
		{"config version", &cluster.Config{Meta: meta(1), Name: "n", Number: 1}, &cluster.Config{Meta: meta(2), Name: "n", Number: 1}, true},
		{"release number", &cluster.Release{Meta: meta(1), Stack: stack, Number: 1}, &cluster.Release{Meta: meta(2), Stack: stack, Number: 1}, true},
		{"revision number", &cluster.Revision{Meta: meta(1), Service: service, Number: 1}, &cluster.Revision{Meta: meta(2), Service: service, Number: 1}, true},
		{"revision of another service", &cluster.Revision{Meta: meta(1), Service: service, Number: 1}, &cluster.Revision{Meta: meta(2), Service: id(9), Number: 1}, false},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			s := New()
			mustApply(t, s, putAll(c.a))
			if err := s.Apply(2, []Txn{putAll(c.b)})[0]; errors.Is(err, ErrExists) != c.want {
				t.Fatalf("one after the other: got %v, want refused %v", err, c.want)
			}
			if err := New().Apply(1, []Txn{putAll(c.a, c.b)})[0]; errors.Is(err, ErrExists) != c.want {
				t.Fatalf("in one transaction: got %v, want refused %v", err, c.want)
			}
		})
	}
}

func TestKeysChangeHandsInOneTransaction(t *testing.T) {
	a, b := &cluster.Node{Meta: meta(1), Name: "a"}, &cluster.Node{Meta: meta(2), Name: "b"}
	fresh := func() (*Store, *cluster.Node, *cluster.Node) {
		s := New()
		mustApply(t, s, putAll(a, b))
		return s, cluster.Copy(get[*cluster.Node](t, s, id(1))), cluster.Copy(get[*cluster.Node](t, s, id(2)))
	}
	owner := func(s *Store, name string) cluster.ID {
		n, ok := s.Snapshot().NodeByName(name)
		if !ok {
			t.Fatalf("no node %q", name)
		}
		return n.ID
	}
	t.Run("swap", func(t *testing.T) {
		s, x, y := fresh()
		x.Name, y.Name = "b", "a"
		mustApply(t, s, putAll(x, y))
		if owner(s, "a") != id(2) || owner(s, "b") != id(1) {
			t.Fatal("the names were not swapped")
		}
	})
	t.Run("taken before the delete", func(t *testing.T) {
		s, x, y := fresh()
		x.Name = "b"
		txn := putAll(x)
		txn.Delete(y)
		mustApply(t, s, txn)
		if _, ok := s.Snapshot().NodeByName("a"); ok || owner(s, "b") != id(1) {
			t.Fatal("the name did not move")
		}
	})
}

func TestQueries(t *testing.T) {
	s := New()
	stack := id(50)
	service := &cluster.Service{Meta: meta(51), Stack: stack, Name: "web"}
	events := []*cluster.Event{
		{Meta: meta(71), At: time.Unix(30, 0), Service: service.ID, Task: id(1)},
		{Meta: meta(72), At: time.Unix(10, 0), Service: service.ID},
		{Meta: meta(73), At: time.Unix(20, 0), Service: service.ID, Node: id(60)},
	}
	mustApply(t, s, putAll(
		&cluster.Stack{Meta: meta(50), Name: "shop"}, service,
		&cluster.Service{Meta: meta(52), Stack: stack, Name: "api"},
		&cluster.Release{Meta: meta(53), Stack: stack, Number: 2}, &cluster.Release{Meta: meta(54), Stack: stack, Number: 1},
		&cluster.Volume{Meta: meta(55), Stack: stack, Name: "shop_data"},
		&cluster.Secret{Meta: meta(56), Stack: stack, Name: "pw", Number: 1}, &cluster.Secret{Meta: meta(57), Stack: stack, Name: "pw", Number: 2},
		task(3, 51, 60), task(1, 51, 0), task(2, 51, 60), events[0], events[1], events[2]))
	snap := s.Snapshot()
	check := func(what string, got []cluster.ID, want ...cluster.ID) {
		t.Helper()
		if !slices.Equal(got, want) {
			t.Errorf("%s: got %v, want %v", what, got, want)
		}
	}
	check("tasks by service, by slot", ids(snap.TasksByService(service.ID)), id(1), id(2), id(3))
	check("tasks without a node", ids(snap.TasksByNode(cluster.ID{})), id(1))
	check("services by name", ids(snap.ServicesByStack(stack)), id(52), id(51))
	check("releases by number", ids(snap.ReleasesByStack(stack)), id(54), id(53))
	check("volumes", ids(snap.VolumesByStack(stack)), id(55))
	check("events of the service", ids(snap.EventsBy(service.ID)), id(72), id(73), id(71))
	check("events, newest first", ids(snap.EventsByNewest(service.ID)), id(71), id(73), id(72))
	check("events of the node", ids(snap.EventsBy(id(60))), id(73))
	check("all events", ids(snap.EventsBy(cluster.ID{})), id(72), id(73), id(71))
	if pw, ok := snap.SecretByName(stack, "pw"); !ok || pw.Number != 2 {
		t.Errorf("newest secret: got %v", pw)
	}
	if _, ok := snap.SecretByName(stack, "p"); ok {
		t.Error("a prefix of a name found a secret")
	}
	if o, ok := snap.ByNumber(cluster.KindSecret, stack, "pw", 1); !ok || o.GetMeta().ID != id(56) {
		t.Errorf("secret by number: got %v", o)
	}
	if n := snap.TaskCount(cluster.ObservedPending); n != 3 {
		t.Errorf("pending tasks: got %d, want 3", n)
	}
	text := id(2).String()
	check("prefix", snap.FindByPrefix(cluster.KindTask, text[:7]), id(2))
	check("no such prefix", snap.FindByPrefix(cluster.KindTask, "l-o"))
}

func TestPrefixesFindEveryTask(t *testing.T) {
	s := New()
	var txn Txn
	var all []cluster.ID
	for range 200 {
		x := &cluster.Task{Meta: cluster.Meta{ID: cluster.NewID(nil)}}
		all = append(all, x.ID)
		txn.Put(x)
	}
	mustApply(t, s, txn)
	for n := range 27 {
		for _, want := range all {
			got := s.Snapshot().FindByPrefix(cluster.KindTask, want.String()[:n])
			if len(got) < PrefixMatchMax && !slices.Contains(got, want) {
				t.Fatalf("prefix of %d of %s: got %v", n, want, got)
			}
		}
	}
}

func TestRoundTripIsLossless(t *testing.T) {
	at := time.Date(2026, 3, 29, 1, 30, 0, 987654321, time.FixedZone("x", 3600))
	objects := []cluster.Object{
		&cluster.Task{
			Meta: cluster.Meta{ID: id(1), Created: at}, Service: id(2), Node: id(3), Slot: 4, Desired: cluster.DesiredStop,
			Observed: cluster.ObservedFailed, Address: netip.MustParseAddr("10.1.2.3"), Reason: "bad \xff\xfe bytes",
			Exit: &cluster.Exit{Code: 137, Signal: "SIGKILL", OOM: true, At: at}, Started: at, StopSince: at.Add(1),
		},
		&cluster.Node{Meta: meta(2), Name: "n", Subnet: netip.MustParsePrefix("10.1.0.0/16"), Labels: map[string]string{"b": "1", "a": "2"}},
		&cluster.Secret{Meta: meta(3), Name: "pw", Sealed: []byte{1, 2}, Digest: []byte{3}},
		&cluster.Service{Meta: meta(4), Name: "web", Rollout: cluster.Rollout{Started: at}, RestartAt: at},
		&cluster.Revision{Meta: meta(5), Spec: spec.Service{
			Name: "web", Container: spec.Container{Entrypoint: []string{"/x"}, StopGracePeriod: 10 * time.Second},
			Update: spec.UpdatePolicy{MaxFailureRatio: 0.25}, Probes: spec.Probes{Ready: &spec.Probe{TCP: &spec.TCPProbe{Port: 80}}},
		}},
		&cluster.Settings{Meta: cluster.Meta{ID: cluster.SettingsID}, TaskPool: netip.MustParsePrefix("10.0.0.0/8")},
	}
	s := New()
	mustApply(t, s, putAll(objects...))
	for _, want := range objects {
		got, ok := s.Snapshot().Lookup(want.Kind(), want.GetMeta().ID)
		if !ok {
			t.Fatalf("%s is gone", want.Kind())
		}
		want.GetMeta().Version = 1
		if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})); diff != "" {
			t.Errorf("%s (-want +got):\n%s", want.Kind(), diff)
		}
	}
	if err := s.Snapshot().Verify(); err != nil {
		t.Fatal(err)
	}
}

func TestVerifyFindsAnObjectChangedInPlace(t *testing.T) {
	s := New()
	mustApply(t, s, putAll(task(1, 9, 0)))
	get[*cluster.Task](t, s, id(1)).Reason = "scribbled"
	if err := s.Snapshot().Verify(); err == nil {
		t.Fatal("a changed object was not found")
	}
}

func TestSnapshotsAndForksAreIndependent(t *testing.T) {
	s := New()
	mustApply(t, s, putAll(task(1, 9, 0)))
	old, fork := s.Snapshot(), s.Fork()
	mustApply(t, s, putAll(task(2, 9, 0)))
	mustApply(t, fork, putAll(task(3, 9, 0)), putAll(task(4, 9, 0)))
	for _, c := range []struct {
		name string
		snap Snapshot
		want int
	}{{"old", old, 1}, {"store", s.Snapshot(), 2}, {"fork", fork.Snapshot(), 3}} {
		if got := len(ids(c.snap.TasksByService(id(9)))); got != c.want || c.snap.Count(cluster.KindTask) != c.want {
			t.Errorf("%s: got %d tasks, want %d", c.name, got, c.want)
		}
	}
}

func TestApplyAtAnOldVersionPanics(t *testing.T) {
	s := New()
	mustApply(t, s, putAll(task(1, 9, 0)))
	defer func() {
		if recover() == nil {
			t.Fatal("no panic")
		}
	}()
	s.Apply(1, nil)
}
