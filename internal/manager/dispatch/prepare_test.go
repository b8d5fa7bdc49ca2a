package dispatch

import (
	"testing"

	"baton/internal/manager/store"
	"baton/internal/model/cluster"
	"baton/internal/model/spec"
	"baton/internal/wire/agentapi"
)

// rolling makes the service move from its revision to another image, stop-first.
func (w *world) rolling() {
	w.t.Helper()
	svc, _ := store.Get[*cluster.Service](w.st.Snapshot(), id('s', 1))
	svc = cluster.Copy(svc)
	svc.Previous, svc.Revision = svc.Revision, id('r', 2)
	svc.Rollout = cluster.Rollout{From: svc.Previous, To: svc.Revision, State: cluster.RolloutUpdating, Started: start}
	old := w.task(1, 1)
	old.Observed, old.Ready = cluster.ObservedRunning, true
	w.put(svc, old, &cluster.Revision{
		Meta: cluster.Meta{ID: id('r', 2)}, Service: svc.ID, Number: 2,
		Spec: spec.Service{Name: "web", Image: "web:2", Pull: spec.PullAlways, Update: spec.UpdatePolicy{Order: spec.StopFirst}},
	})
}

func TestNodeIsToldWhichImagesRolloutsWaitFor(t *testing.T) {
	w := newWorld(t)
	s, other := w.connect(1), w.connect(2)
	if u, _ := s.Poll(); u.Prepare == nil || len(u.Prepare.Images) != 0 {
		t.Errorf("a new session is told %+v, want an empty list: the agent may have an old one", u.Prepare)
	}
	other.Poll()
	w.rolling()
	w.follow()
	u, _ := s.Poll()
	if u.Prepare == nil || len(u.Prepare.Images) != 1 {
		t.Fatalf("told %+v, want the new image", u.Prepare)
	}
	if im := u.Prepare.Images[0]; im.Image != "web:2" || im.Revision != id('r', 2) || im.Policy != spec.PullAlways || !im.Since.Equal(start) {
		t.Errorf("told %+v", im)
	}
	if u, _ := other.Poll(); u.Prepare != nil {
		t.Errorf("a node without a task of the service is told %+v", u.Prepare)
	}
	w.follow()
	if u, ok := s.Poll(); ok && u.Prepare != nil {
		t.Errorf("told again: %+v", u.Prepare)
	}
	gone := w.stored(1)
	gone.Desired = cluster.DesiredStop
	w.put(gone)
	w.follow()
	if u, _ := s.Poll(); u.Prepare == nil || len(u.Prepare.Images) != 0 {
		t.Errorf("told %+v, want nothing more to wait for", u.Prepare)
	}
}

func TestWhatCameOfImagesIsStoredOnce(t *testing.T) {
	w := newWorld(t)
	w.rolling()
	s := w.connect(1)
	failed := cluster.Prepared{Revision: id('r', 2), Since: start, Rejected: true, Reason: "the registry does not have it"}
	for range 3 {
		w.report(s, agentapi.Report{Prepared: &agentapi.PreparedImages{Images: []cluster.Prepared{failed}}})
	}
	node, _ := store.Get[*cluster.Node](w.st.Snapshot(), id('n', 1))
	if len(node.Prepared) != 1 || node.Prepared[0].Reason != failed.Reason {
		t.Errorf("stored %+v", node.Prepared)
	}
	ready := cluster.Prepared{Revision: id('r', 2), Since: start, Present: true}
	// Two reports that are written together: the newer one counts.
	for _, p := range []cluster.Prepared{failed, ready} {
		if err := s.Send(t.Context(), agentapi.Report{Prepared: &agentapi.PreparedImages{Images: []cluster.Prepared{p}}}); err != nil {
			t.Fatal(err)
		}
	}
	w.d.writeAll(t.Context(), w.d.split(w.d.waiting(nil)))
	node, _ = store.Get[*cluster.Node](w.st.Snapshot(), id('n', 1))
	if len(node.Prepared) != 1 || !node.Prepared[0].Present {
		t.Errorf("stored %+v, want the newest word", node.Prepared)
	}
	count := make(map[string]int)
	for e := range store.All[*cluster.Event](w.st.Snapshot()) {
		count[e.Type]++
	}
	if count["image.failed"] != 1 || count["image.ready"] != 1 {
		t.Errorf("events %v, want one for each that is news", count)
	}
}

func TestCredentialsGoOnlyWithWhatIsToBePulled(t *testing.T) {
	w := newWorld(t)
	w.rolling()
	w.put(
		&cluster.Registry{Meta: cluster.Meta{ID: id('g', 1)}, Host: "docker.io", Username: "me", Sealed: []byte("hunter2")},
		&cluster.Registry{Meta: cluster.Meta{ID: id('g', 2)}, Host: "other.example", Username: "me", Sealed: []byte("else")},
	)
	leaving := w.task(3, 1)
	leaving.Desired = cluster.DesiredStop
	fresh := w.task(4, 1)
	fresh.Revision = id('r', 2)
	w.put(leaving, fresh)
	s := w.connect(1)
	u, _ := s.Poll()
	for _, a := range u.Assignments {
		if a.Task.ID == leaving.ID && a.Auth != nil {
			t.Error("a task that is to stop brings credentials")
		}
		if a.Task.ID == fresh.ID && (a.Auth == nil || a.Auth.Password != "hunter2" || a.Auth.Host != "docker.io") {
			t.Errorf("a task to be started brings %v", a.Auth)
		}
	}
	if im := u.Prepare.Images; len(im) != 1 || im[0].Auth == nil || im[0].Auth.Password != "hunter2" {
		t.Errorf("images %+v, want the credentials of their registry", im)
	}
	r, _ := w.st.Snapshot().RegistryByHost("docker.io")
	r = cluster.Copy(r)
	r.Sealed = []byte("hunter3")
	w.put(r)
	w.follow()
	if u, _ := s.Poll(); u.Prepare == nil || u.Prepare.Images[0].Auth.Password != "hunter3" {
		t.Errorf("after another login: told %+v", u.Prepare)
	}
}
