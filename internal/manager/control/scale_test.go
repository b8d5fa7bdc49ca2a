package control

import (
	"strings"
	"testing"
	"time"

	"baton/internal/manager/store"
	"baton/internal/model/cluster"
	"baton/internal/model/spec"
)

// meter measures what a test says: a constant rate of a service.
type meter struct {
	rate   float64
	silent bool
	last   time.Time // when the service was wanted last
	since  time.Time
}

func (m *meter) Window(_ cluster.ID, from, to time.Time) Load {
	if m.silent {
		return Load{}
	}
	return Load{Counts: 1, Requests: m.rate * to.Sub(from).Seconds(), InFlight: m.rate / 20, P95: 60 * time.Millisecond}
}

func (m *meter) Wanted(cluster.ID) (last, since time.Time) { return m.last, m.since }

// autoscaled is a world with one service, of 80 requests per second and replica.
func autoscaled(t *testing.T, least, most int, change ...func(*spec.Autoscale)) (*world, *meter, spec.Stack) {
	w, m := newWorld(t, 3), &meter{}
	m.since = w.now
	w.engine.Autoscale(Sources{Measures: m, Wants: m})
	a := &spec.Autoscale{Min: least, Max: most, Target: spec.ScaleTarget{RPS: 80}}
	for _, c := range change {
		c(a)
	}
	file := spec.Stack{Name: "shop", Services: []spec.Service{{Name: "web", Image: "web", Replicas: 1, Autoscale: a}}}
	w.deploy(file)
	w.work(20 * time.Second)
	return w, m, file
}

// after lets time pass in which something may be due.
func (w *world) after(d time.Duration) {
	w.t.Helper()
	end := w.now.Add(d)
	w.work(d)
	w.now = end
	w.work(0)
}

func (w *world) scaledBecause() (list []string) {
	for e := range store.All[*cluster.Event](w.st.Snapshot()) {
		if e.Type == "service.scaled" {
			list = append(list, e.Message)
		}
	}
	return list
}

func (w *world) wantReplicas(n int, when string) {
	w.t.Helper()
	s := w.service("web")
	if s.Replicas != n || s.Status.Ready != n {
		w.t.Fatalf("%s: %d replicas are wanted and %d ready, want %d; %q", when, s.Replicas, s.Status.Ready, n, w.scaledBecause())
	}
}

func TestScaleFollowsLoad(t *testing.T) {
	w, m, file := autoscaled(t, 1, 10)
	w.wantReplicas(1, "without load")
	m.rate = 300
	w.after(15 * time.Second)
	w.wantReplicas(4, "under 300 requests per second")
	if list := w.scaledBecause(); len(list) == 0 || !strings.Contains(strings.Join(list, "\n"), "per replica of") {
		t.Errorf("the events are %q, want one that says how it was decided", list)
	}
	version := w.st.Snapshot().Version()
	w.after(10 * time.Minute)
	if got := w.st.Snapshot().Version(); got != version {
		t.Errorf("under a constant load the store went from version %d to %d", version, got)
	}
	file.Services[0].Image = "web:2" // a redeployment keeps the number that the load asks for
	w.deploy(file)
	if got := w.service("web").Replicas; got != 4 {
		t.Errorf("after a redeployment %d replicas are wanted, want 4", got)
	}
	w.after(3 * time.Minute)
	w.wantReplicas(4, "after a redeployment")
	m.silent = true
	w.after(20 * time.Minute)
	w.wantReplicas(4, "without measures")
	m.silent, m.rate = false, 70
	w.after(4 * time.Minute)
	w.wantReplicas(4, "four minutes after the load went")
	w.after(6 * time.Minute)
	w.wantReplicas(1, "ten minutes after the load went")
}

// TestScaleByHand checks that a number set by hand stays, over deployments and loads, until autoscaling is told to go on.
func TestScaleByHand(t *testing.T) {
	w, m, file := autoscaled(t, 1, 10)
	w.change("web", func(s *cluster.Service) { s.Replicas, s.Scaled = 5, true })
	m.rate = 800
	w.after(time.Minute)
	w.wantReplicas(5, "by hand")
	file.Services[0].Image = "web:2"
	w.deploy(file)
	w.after(3 * time.Minute)
	w.wantReplicas(5, "by hand, after a redeployment")
	w.change("web", func(s *cluster.Service) { s.Scaled = false })
	w.after(30 * time.Second)
	w.wantReplicas(10, "by its load again")
}

func TestScaleBounds(t *testing.T) {
	w, _, file := autoscaled(t, 1, 10)
	a := *file.Services[0].Autoscale
	a.Min = 3
	file.Services[0].Autoscale = &a
	w.deploy(file)
	if got := w.service("web").Replicas; got != 3 {
		t.Errorf("a deployment with min 3 wants %d replicas, want 3", got)
	}
	six := 6
	at := w.now.Add(10 * time.Minute).UTC()
	b := a
	file.Services[0].Autoscale = &b
	b.Schedule = []spec.ScaleWindow{{Cron: at.Format("4 15 * * *"), For: time.Hour, Min: &six}}
	w.deploy(file)
	w.after(8 * time.Minute)
	w.wantReplicas(3, "before its schedule")
	w.after(2 * time.Minute)
	w.wantReplicas(6, "at its schedule")
}

// TestRestsAndWakes checks that a service rests when nobody has used it, wakes at once, and that a new leader, which does not know whether
// somebody used it, lets it be for as long.
func TestRestsAndWakes(t *testing.T) {
	w, m, file := autoscaled(t, 0, 5, func(a *spec.Autoscale) { a.Down.After = time.Minute })
	m.last = w.now
	w.after(50 * time.Second)
	w.wantReplicas(1, "used 50 s ago")
	w.after(20 * time.Second)
	w.wantReplicas(0, "used more than a minute ago")
	version := w.st.Snapshot().Version()
	w.after(30 * time.Minute)
	if got := w.st.Snapshot().Version(); got != version {
		t.Errorf("while it rests the store went from version %d to %d", version, got)
	}
	w.now = w.now.Add(time.Second)
	m.last = w.now
	w.engine.MarkWanted(w.now)
	w.work(0)
	w.wantReplicas(1, "at once when wanted")

	w.after(30 * time.Second)
	w.engine = NewEngine(nil, 1)
	w.engine.Autoscale(Sources{Measures: m, Wants: m})
	w.cursor.Close()
	w.cursor = w.st.Changes(0, store.Filter{})
	m.last, m.since = time.Time{}, w.now
	w.after(50 * time.Second)
	w.wantReplicas(1, "with a new leader")
	w.after(30 * time.Second)
	w.wantReplicas(0, "with a leader that has known for a minute")

	file.Services = append(file.Services, spec.Service{
		Name: "job", Image: "job", Replicas: 1, DependsOn: []spec.Dependency{{Service: "web", Condition: spec.DependHealthy, Required: true}},
	})
	w.deploy(file)
	w.after(time.Minute)
	for s := range store.All[*cluster.Service](w.st.Snapshot()) {
		if s.Name == "job" && s.Status.Ready != 1 {
			t.Errorf("a service that depends on one that rests waits: %q", s.Status.Waiting)
		}
	}
}
