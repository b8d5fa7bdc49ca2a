package reconcile

import (
	"strings"
	"testing"
	"time"

	"baton/internal/model/cluster"
	"baton/internal/model/spec"
)

// updating is a settled stop-first service of one task that is to move to another revision, on a node whose images the test
// decides on.
func updating(t *testing.T, change func(sp *spec.Service)) *world {
	t.Helper()
	sp := web()
	sp.Update.Order, sp.Rollback.Order = spec.StopFirst, spec.StopFirst
	w := newWorld(sp, 1, 1)
	w.settle(t, time.Minute)
	w.in.Now = w.in.Now.Add(time.Hour)
	change(&sp)
	w.revise(sp)
	w.manual = true
	return w
}

// kept checks that the old task runs and nothing else was made.
func (w *world) kept(t *testing.T, p Plan) {
	t.Helper()
	if len(p.Stop) != 0 || len(p.Create) != 0 || w.one(t, 1).Revision == w.in.Service.Revision {
		t.Fatalf("stops %+v, creates %+v; want the old task kept", p.Stop, p.Create)
	}
}

func TestNothingStopsBeforeItsSuccessorsImageIsThere(t *testing.T) {
	w := updating(t, func(sp *spec.Service) { sp.Image = "web:2" })
	w.kept(t, w.plan(t))
	if want := Images(w.in); len(want) != 1 || want[0].Node != id('n', 1) || want[0].Revision != w.in.Service.Revision {
		t.Fatalf("images %+v, want the new one on the task's node", want)
	}
	if got := w.in.Service.Status.Waiting; !strings.Contains(got, "waits for image web:2 on node n1") {
		t.Errorf("it waits and says %q", got)
	}
	w.prepare(cluster.Prepared{Reason: "registry r cannot be reached"})
	w.kept(t, w.plan(t))
	if got := w.in.Service.Status.Waiting; !strings.Contains(got, "registry r cannot be reached") {
		t.Errorf("it waits and says %q", got)
	}
	w.in.Now = w.in.Now.Add(5 * time.Minute)
	w.kept(t, w.plan(t))
	w.prepare(cluster.Prepared{Present: true})
	if p := w.plan(t); len(p.Stop) != 1 {
		t.Fatalf("got %+v, want the old task told to go", p)
	}
	w.settle(t, time.Minute)
	if !w.in.Service.Status.Converged {
		t.Errorf("got %+v", w.in.Service.Status)
	}
}

func TestImageThatCannotBeHadFailsTheRolloutWithNothingStopped(t *testing.T) {
	for name, c := range map[string]struct {
		have cluster.Prepared
		wait time.Duration
		why  string
	}{
		"rejected":         {cluster.Prepared{Rejected: true, Reason: "the registry does not have it"}, 0, "the registry does not have it"},
		"out of reach":     {cluster.Prepared{Reason: "registry r cannot be reached"}, 10 * time.Minute, "registry r cannot be reached"},
		"nothing is heard": {cluster.Prepared{}, 10 * time.Minute, "waits for image"},
	} {
		t.Run(name, func(t *testing.T) {
			w := updating(t, func(sp *spec.Service) { sp.Image = "web:2" })
			w.kept(t, w.plan(t))
			w.prepare(c.have)
			if c.wait > 0 {
				p := w.plan(t)
				w.kept(t, p)
				if p.WakeAt.IsZero() || p.WakeAt.Sub(w.in.Now) > c.wait {
					t.Fatalf("looks again at %s, want it by the deadline", p.WakeAt)
				}
				w.in.Now = w.in.Now.Add(c.wait)
			}
			w.kept(t, w.plan(t))
			if roll := w.in.Service.Rollout; roll.State != cluster.RolloutFailed || !strings.Contains(roll.Reason, c.why) {
				t.Errorf("rollout %+v, want it failed because of %q", roll, c.why)
			}
		})
	}
}

func TestOnlyWhatANodeMayLackIsWaitedFor(t *testing.T) {
	for name, c := range map[string]struct {
		change func(sp *spec.Service)
		waits  bool
	}{
		"the same image":                       {func(sp *spec.Service) { sp.Container.Env = []string{"A=1"} }, false},
		"the same image, pulled for each task": {func(sp *spec.Service) { sp.Container.Env, sp.Pull = []string{"A=1"}, spec.PullAlways }, true},
		"start-first":                          {func(sp *spec.Service) { sp.Image, sp.Update.Order = "web:2", spec.StartFirst }, false},
	} {
		t.Run(name, func(t *testing.T) {
			w := updating(t, c.change)
			w.plan(t)
			if got := len(Images(w.in)) > 0; got != c.waits {
				t.Errorf("waits for an image: %v, want %v", got, c.waits)
			}
		})
	}
}

func TestPulledForAnEarlierRolloutDoesNotCount(t *testing.T) {
	w := updating(t, func(sp *spec.Service) { sp.Pull = spec.PullAlways })
	w.plan(t)
	w.prepare(cluster.Prepared{Present: true})
	w.settle(t, time.Minute)
	w.in.Now = w.in.Now.Add(time.Hour)
	w.service(func(s *cluster.Service) { s.RestartAt = w.in.Now })
	if p := w.plan(t); len(p.Stop) != 0 {
		t.Fatalf("got %+v, want the image asked for anew before the restart", p)
	}
	asked := w.in
	asked.Now = time.Time{} // who tells the nodes needs no clock
	if want := Images(asked); len(want) != 1 || !want[0].Since.Equal(w.in.Now) {
		t.Fatalf("images %+v, want it for the restart", want)
	}
	w.prepare(cluster.Prepared{Present: true})
	if p := w.plan(t); len(p.Stop) != 1 {
		t.Errorf("got %+v, want the restart", p)
	}
}

func TestTaskThatMustLeaveItsNodeDoesNotWait(t *testing.T) {
	w := updating(t, func(sp *spec.Service) { sp.Image = "web:2" })
	w.node(1, func(n *cluster.Node) { n.Availability = cluster.NodeDrain })
	if p := w.plan(t); len(p.Stop) != 1 {
		t.Errorf("got %+v, want the task to go", p)
	}
}
