package reconcile

import (
	"fmt"
	"maps"
	"net/netip"
	"testing"
	"time"

	"baton/internal/model/cluster"
	"baton/internal/model/spec"
)

// world is a service on a few nodes, with an executor that does as it is told.
type world struct {
	in      Input
	version cluster.Version
	ids     int
	// history of what planning did, for assertions
	why []Reason
	// manual leaves it to the test to say what nodes have of the images that are wanted; else they have them at once.
	manual bool
	// passes makes the gates pass whatever is judged.
	passes bool
}

type fataler interface {
	Helper()
	Fatalf(format string, args ...any)
}

var start = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func id(kind byte, n int) cluster.ID { return cluster.ID{0: kind, 14: byte(n >> 8), 15: byte(n)} }

// web is a usual service spec.
func web() spec.Service {
	policy := spec.UpdatePolicy{Order: spec.StartFirst, Parallelism: 1, Monitor: 5 * time.Second, Deadline: 10 * time.Minute, FailureAction: spec.FailureRollback}
	return spec.Service{
		Name: "web", Image: "web:1", Mode: spec.Replicated,
		Container: spec.Container{DrainDeadline: 10 * time.Second},
		Restart:   spec.RestartPolicy{Condition: spec.RestartAny, Delay: time.Second, DelayMax: 5 * time.Minute, ResetAfter: time.Minute},
		Update:    policy, Rollback: policy,
	}
}

func newWorld(sp spec.Service, replicas, nodes int) *world {
	w := &world{}
	w.in = Input{
		Service:   &cluster.Service{Meta: cluster.Meta{ID: id('s', 1)}, Name: sp.Name, Replicas: replicas},
		Revisions: make(map[cluster.ID]*cluster.Revision),
		Nodes:     NodeView{Nodes: make(map[cluster.ID]*cluster.Node)},
		Now:       start,
	}
	for i := 1; i <= nodes; i++ {
		n := &cluster.Node{Meta: cluster.Meta{ID: id('n', i)}, Name: fmt.Sprintf("n%d", i), Availability: cluster.NodeActive, State: cluster.NodeReady}
		w.in.Nodes.Nodes[n.ID] = n
		w.in.Nodes.Eligible = append(w.in.Nodes.Eligible, n.ID)
	}
	w.revise(sp)
	return w
}

// revise makes the spec the wanted revision.
func (w *world) revise(sp spec.Service) cluster.ID {
	n := len(w.in.Revisions) + 1
	r := &cluster.Revision{Meta: cluster.Meta{ID: id('r', n)}, Service: w.in.Service.ID, Number: n, Spec: sp}
	w.in.Revisions[r.ID] = r
	svc := cluster.Copy(w.in.Service)
	svc.Previous, svc.Revision = svc.Revision, r.ID
	w.in.Service = svc
	return r.ID
}

func (w *world) service(change func(*cluster.Service)) {
	w.in.Service = cluster.Copy(w.in.Service)
	change(w.in.Service)
}

func (w *world) node(n int, change func(*cluster.Node)) {
	c := cluster.Copy(w.in.Nodes.Nodes[id('n', n)])
	change(c)
	c.StateSince = w.in.Now
	nodes := make(map[cluster.ID]*cluster.Node)
	for k, v := range w.in.Nodes.Nodes {
		nodes[k] = v
	}
	nodes[c.ID] = c
	w.in.Nodes.Nodes = nodes
}

// plan reconciles, once more when nodes have got images that the first plan waits for, and returns all that was decided.
func (w *world) plan(t fataler) Plan {
	t.Helper()
	p := w.once(t)
	if w.manual || !w.prepare(cluster.Prepared{Present: true}) {
		return p
	}
	q := w.once(t)
	q.Create, q.Stop, q.Delete, q.Why = append(p.Create, q.Create...), append(p.Stop, q.Stop...), append(p.Delete, q.Delete...), append(p.Why, q.Why...)
	if q.Rollout == nil {
		q.Rollout = p.Rollout
	}
	return q
}

// prepare makes every node that is to have an image say so, and reports whether that is news.
func (w *world) prepare(as cluster.Prepared) (news bool) {
	for _, want := range Images(w.in) {
		as.Revision, as.Since = want.Revision, want.Since
		old := w.in.Nodes.Nodes[want.Node]
		if old == nil || len(old.Prepared) > 0 && old.Prepared[0] == as {
			continue
		}
		c := cluster.Copy(old)
		c.Prepared = []cluster.Prepared{as}
		nodes := maps.Clone(w.in.Nodes.Nodes)
		nodes[c.ID] = c
		w.in.Nodes.Nodes, news = nodes, true
	}
	return news
}

// once reconciles once, checks that the result is a fixed point, stores it and gives new tasks ids, nodes and addresses.
func (w *world) once(t fataler) Plan {
	t.Helper()
	if w.passes {
		w.in.Verdict = Verdict{Started: w.in.Service.Rollout.Started, Passed: true, Text: "good"}
	}
	p := Reconcile(w.in)
	after := Apply(w.in, p)
	if again := Reconcile(after); !again.Empty(after.Service) {
		t.Fatalf("not a fixed point:\nfirst  %+v\nsecond %+v\nrollout %+v, then %+v\ntasks before %s\nafter %s", p, again, w.in.Service.Rollout, again.Rollout, show(w.in.Tasks), show(after.Tasks))
	}
	w.in = after
	for i, task := range w.in.Tasks {
		w.version = max(w.version, task.Version)
		if i >= len(w.in.Tasks)-len(p.Create) {
			w.ids++
			task.ID = id('t', w.ids) // Apply made it; nobody else has seen it
		}
	}
	w.version = max(w.version, w.in.Service.Version)
	w.why = append(w.why, p.Why...)
	return p
}

// update changes one task, as a node's report does.
func (w *world) update(task cluster.ID, change func(*cluster.Task)) {
	for i, t := range w.in.Tasks {
		if t.ID == task {
			own := cluster.Copy(t)
			change(own)
			w.version++
			own.Version = w.version
			w.in.Tasks[i] = own
		}
	}
}

// place gives pending tasks an allowed node, in turn.
func (w *world) place() {
	var usable []cluster.ID
	for _, n := range w.in.Nodes.Eligible {
		node := w.in.Nodes.Nodes[n]
		if node != nil && node.State == cluster.NodeReady && node.Availability == cluster.NodeActive {
			usable = append(usable, n)
		}
	}
	for i, t := range w.in.Tasks {
		if t.Observed == cluster.ObservedPending && len(usable) > 0 {
			w.update(t.ID, func(t *cluster.Task) {
				t.Observed, t.Node, t.Address = cluster.ObservedAssigned, usable[i%len(usable)], netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)})
			})
		}
	}
}

// work lets every reachable node do what is wanted of its tasks, completely.
func (w *world) work() {
	w.place()
	for _, t := range w.in.Tasks {
		n := w.in.Nodes.Nodes[t.Node]
		if n == nil || n.State != cluster.NodeReady || t.Observed.Terminal() {
			continue
		}
		switch {
		case t.Desired == cluster.DesiredRun && !t.Ready:
			w.ready(t.ID)
		case t.Desired == cluster.DesiredDrain && !t.Drained:
			w.update(t.ID, func(t *cluster.Task) { t.Drained = true })
		case t.Desired >= cluster.DesiredStop:
			w.end(t.ID, cluster.ObservedFailed, 143)
		}
	}
	w.in.Acked = w.version
}

func (w *world) ready(task cluster.ID) {
	w.update(task, func(t *cluster.Task) {
		if !t.Address.IsValid() {
			t.Address = netip.MustParseAddr("10.0.0.9")
		}
		if t.Started.IsZero() {
			t.Started = w.in.Now
		}
		t.Observed, t.Ready, t.ReadySince = cluster.ObservedRunning, true, w.in.Now
	})
}

func (w *world) end(task cluster.ID, as cluster.Observed, code int) {
	w.update(task, func(t *cluster.Task) {
		t.Observed, t.Ready, t.Ended = as, false, w.in.Now
		t.Exit = &cluster.Exit{Code: code, At: w.in.Now}
	})
}

// settle plans and works until the plan is empty and nothing is left to do, moving time on to each WakeAt within limit.
func (w *world) settle(t fataler, limit time.Duration) {
	t.Helper()
	until := w.in.Now.Add(limit)
	for range 2000 {
		before := w.version
		p := w.plan(t)
		w.work()
		if w.version != before {
			w.in.Now = w.in.Now.Add(10 * time.Millisecond)
			continue
		}
		if p.WakeAt.IsZero() || p.WakeAt.After(until) {
			return
		}
		w.in.Now = p.WakeAt
	}
	t.Fatalf("does not settle: service %+v\ntasks %s", w.in.Service, show(w.in.Tasks))
}

// live lists the slot's tasks that are wanted to run.
func (w *world) live(slot int) []*cluster.Task {
	var out []*cluster.Task
	for _, t := range w.in.Tasks {
		if t.Slot == slot && running(t) {
			out = append(out, t)
		}
	}
	return out
}

func (w *world) one(t *testing.T, slot int) *cluster.Task {
	t.Helper()
	live := w.live(slot)
	if len(live) != 1 {
		t.Fatalf("slot %d: got %d tasks that should run, want 1: %s", slot, len(live), show(w.in.Tasks))
	}
	return live[0]
}

func show(tasks []*cluster.Task) string {
	s := ""
	for _, t := range tasks {
		s += fmt.Sprintf("\n  %x slot %d rev %d node %d %s/%s ready=%v failures=%d v%d", t.ID[12:], t.Slot, t.Revision[15], t.Node[15], t.Desired, t.Observed, t.Ready, t.Failures, t.Version)
	}
	return s
}
