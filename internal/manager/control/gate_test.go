package control

import (
	"strings"
	"testing"
	"time"

	"baton/internal/manager/store"
	"baton/internal/model/cluster"
	"baton/internal/model/spec"
	"baton/internal/plan/gate"
)

// traffic gives every task so many requests per second since it became ready; of those of the newest image some fail.
type traffic struct {
	w    *world
	rate float64
	bad  float64
}

func (r *traffic) Task(id cluster.ID) (gate.Counts, bool) {
	t, ok := store.Get[*cluster.Task](r.w.st.Snapshot(), id)
	if !ok || t.ReadySince.IsZero() {
		return gate.Counts{}, false
	}
	n := r.rate * r.w.now.Sub(t.ReadySince).Seconds()
	c := gate.Counts{Requests: uint64(n), Latency: []uint64{uint64(n)}}
	if rev, _ := store.Get[*cluster.Revision](r.w.st.Snapshot(), t.Revision); strings.HasSuffix(rev.Spec.Image, "bad") {
		c.Errors = uint64(n * r.bad)
	}
	return c, true
}

func (*traffic) Bound(int) time.Duration { return time.Millisecond }
func (*traffic) Lag() time.Duration      { return 5 * time.Second }

func (r *traffic) Requested(_ cluster.ID, from, to time.Time) (cluster.Requested, string) {
	return cluster.Requested{Requests: uint64(r.rate * to.Sub(from).Seconds()), Broken: 2}, ""
}

// judgedWorld has a service whose rollouts are judged, at a feature level.
func judgedWorld(t *testing.T, level cluster.Level, rate float64) (*world, *traffic, func(image string)) {
	w := newWorld(t, 2)
	settings := &cluster.Settings{}
	for s := range store.All[*cluster.Settings](w.st.Snapshot()) {
		settings = cluster.Copy(s)
	}
	settings.Level = level
	w.put(settings)
	r := &traffic{w: w, rate: rate, bad: 0.02}
	w.engine.Autoscale(Sources{Requests: r, Counts: r})
	deploy := func(image string) {
		v := service("web", 2)
		v.Image, v.Ingress = image, []spec.Ingress{{Path: "/", Port: 80}}
		v.Update.Gates = spec.Gates{ErrorRate: 0.01}
		w.deploy(spec.Stack{Name: "shop", Services: []spec.Service{v}})
	}
	deploy("web:1")
	w.work(time.Minute)
	if s := w.service("web"); s.Rollout.State != cluster.RolloutCompleted {
		t.Fatalf("first deployment: %+v", s.Rollout)
	}
	return w, r, deploy
}

func (w *world) events(kind string) (list []*cluster.Event) {
	for e := range store.All[*cluster.Event](w.st.Snapshot()) {
		if e.Type == kind {
			list = append(list, e)
		}
	}
	return list
}

func TestBadRequestsRollBackTheRelease(t *testing.T) {
	w, _, deploy := judgedWorld(t, cluster.LevelTraffic, 100)
	began := w.now
	deploy("web:bad")
	w.work(2 * time.Minute)
	failed := w.events("rollout.failed")
	if len(failed) != 1 || !strings.Contains(failed[0].Message, "error rate 2%") || failed[0].At.Sub(began) > time.Minute {
		t.Fatalf("events %+v", failed)
	}
	if len(w.events("release.rolled-back")) != 1 {
		t.Error("the release was not rolled back")
	}
	s := w.service("web")
	if rev, _ := store.Get[*cluster.Revision](w.st.Snapshot(), s.Revision); rev.Spec.Image != "web:1" || s.Status.Ready != 2 || s.Rollout.State != cluster.RolloutCompleted {
		t.Errorf("service %+v, image %s", s, rev.Spec.Image)
	}
}

func TestGoodRequestsLetARolloutGoOn(t *testing.T) {
	w, _, deploy := judgedWorld(t, cluster.LevelTraffic, 100)
	began := w.now
	deploy("web:2")
	w.work(2 * time.Minute)
	judged := w.events("rollout.judged")
	if len(judged) != 1 || !strings.Contains(judged[0].Message, "pass the gate") || judged[0].At.Sub(began) > 30*time.Second {
		t.Fatalf("events %+v", judged)
	}
	if s := w.service("web"); s.Rollout.State != cluster.RolloutCompleted || s.Status.Updated != 2 {
		t.Errorf("rollout %+v, status %+v", s.Rollout, s.Status)
	}
}

func TestFewRequestsAreJudgedByHealthAlone(t *testing.T) {
	w, _, deploy := judgedWorld(t, cluster.LevelTraffic, 0.1)
	began := w.now
	deploy("web:bad")
	w.work(3 * time.Minute)
	judged := w.events("rollout.judged")
	if len(judged) != 1 || !strings.Contains(judged[0].Message, "judged by health alone after 1m0s: ") || judged[0].At.Sub(began) < time.Minute {
		t.Fatalf("events %+v", judged)
	}
}

func TestEndedReleaseIsCounted(t *testing.T) {
	for level, want := range map[cluster.Level]int{cluster.LevelTraffic: 1, cluster.LevelAutoscale: 0} {
		w, _, deploy := judgedWorld(t, level, 100)
		deploy("web:2")
		w.work(2 * time.Minute)
		counted := w.events("release.counted")
		if len(counted) != want {
			t.Fatalf("level %d: events %+v", level, counted)
		}
		if want == 0 {
			continue
		}
		rel, _ := store.Get[*cluster.Release](w.st.Snapshot(), counted[0].Release)
		if rel.Traffic == nil || rel.Traffic.Failed() != 2 || rel.Traffic.Requests == 0 || rel.Traffic.To.Sub(rel.Ended) != 5*time.Second ||
			!strings.Contains(counted[0].Message, "2 failed because of it") {
			t.Errorf("release %+v, traffic %+v: %s", rel, rel.Traffic, counted[0].Message)
		}
	}
}
