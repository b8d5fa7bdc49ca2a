package reconcile

import (
	"testing"
	"time"

	"pgregory.net/rapid"

	"baton/internal/model/cluster"
	"baton/internal/model/spec"
)

// history draws what happens to a service: the user, the nodes, the tasks and the clock, in any order.
type history struct {
	*world
	t *rapid.T
	// split is true once a node was out of reach: what was told to it in vain may come back, beyond the slot's bound.
	split bool
	sp    spec.Service
}

func newHistory(t *rapid.T) *history {
	sp := web()
	sp.Update.Order = rapid.SampledFrom([]spec.UpdateOrder{spec.StartFirst, spec.StartFirst, spec.StopFirst}).Draw(t, "order")
	sp.Update.Parallelism = rapid.IntRange(0, 3).Draw(t, "parallelism")
	sp.Update.Delay = rapid.SampledFrom([]time.Duration{0, 7 * time.Second}).Draw(t, "delay")
	sp.Update.MaxFailureRatio = rapid.SampledFrom([]float64{0, 0.5}).Draw(t, "ratio")
	sp.Update.FailureAction = rapid.SampledFrom([]spec.FailureAction{spec.FailureRollback, spec.FailurePause, spec.FailureContinue}).Draw(t, "action")
	sp.Rollback = sp.Update
	if sp.Update.Order == spec.StartFirst && rapid.Bool().Draw(t, "gated") {
		sp.Update.Gates.ErrorRate = 0.01
	}
	if rapid.IntRange(0, 4).Draw(t, "global") == 0 {
		sp.Mode = spec.Global
	}
	h := &history{world: newWorld(sp, rapid.IntRange(0, 5).Draw(t, "replicas"), 3), t: t, sp: sp}
	h.manual = true
	return h
}

// step lets one thing happen.
func (h *history) step() {
	t := h.t
	switch rapid.IntRange(0, 22).Draw(t, "what") {
	case 22:
		h.in.Verdict = Verdict{
			Started: h.in.Service.Rollout.Started, Text: "by its requests",
			Passed: rapid.Bool().Draw(t, "passed"), Failed: rapid.Bool().Draw(t, "failed"),
		}
	case 20, 21:
		h.prepare(rapid.SampledFrom([]cluster.Prepared{
			{Present: true}, {Present: true}, {Reason: "no registry"}, {Reason: "no such image", Rejected: true},
		}).Draw(t, "image"))
	case 0:
		h.service(func(s *cluster.Service) { s.Replicas = rapid.IntRange(0, 6).Draw(t, "scale") })
	case 1:
		if len(h.in.Revisions) < 8 {
			h.sp.Image += "x"
			h.revise(h.sp)
		}
	case 2:
		h.service(func(s *cluster.Service) {
			if !s.Previous.IsZero() {
				s.Previous, s.Revision = s.Revision, s.Previous
				s.Rollout = cluster.Rollout{From: s.Previous, To: s.Revision, State: cluster.RolloutUpdating, Started: h.in.Now, Undo: true}
			}
		})
	case 3:
		h.service(func(s *cluster.Service) { s.RestartAt = h.in.Now })
	case 4, 5:
		n := rapid.IntRange(1, 3).Draw(t, "node")
		state := rapid.SampledFrom([]cluster.NodeState{cluster.NodeReady, cluster.NodeUnknown, cluster.NodeDown}).Draw(t, "state")
		av := rapid.SampledFrom([]cluster.Availability{cluster.NodeActive, cluster.NodePause, cluster.NodeDrain}).Draw(t, "availability")
		h.split = h.split || state != cluster.NodeReady
		h.node(n, func(n *cluster.Node) { n.State, n.Availability = state, av })
	case 6, 7:
		h.in.Acked = cluster.Version(rapid.Uint64Range(0, uint64(h.version)).Draw(t, "acked"))
	case 8:
		h.in.Blocked = rapid.SampledFrom([]string{"", "waits for db"}).Draw(t, "blocked")
	case 9:
		h.work()
	case 10, 11, 12:
		h.in.Now = h.in.Now.Add(rapid.SampledFrom([]time.Duration{time.Millisecond, time.Second, 6 * time.Second, time.Minute, 11 * time.Minute}).Draw(t, "pass"))
	default:
		h.report()
	}
}

// report lets one task come further, or fail.
func (h *history) report() {
	h.place()
	if len(h.in.Tasks) == 0 {
		return
	}
	task := h.in.Tasks[rapid.IntRange(0, len(h.in.Tasks)-1).Draw(h.t, "task")]
	n := h.in.Nodes.Nodes[task.Node]
	if n == nil || n.State != cluster.NodeReady || task.Observed.Terminal() {
		return
	}
	switch rapid.IntRange(0, 5).Draw(h.t, "report") {
	case 0:
		h.end(task.ID, rapid.SampledFrom([]cluster.Observed{cluster.ObservedComplete, cluster.ObservedFailed, cluster.ObservedRejected}).Draw(h.t, "end"), 1)
	case 1:
		h.update(task.ID, func(t *cluster.Task) { t.Ready = false })
	case 2:
		if task.Desired == cluster.DesiredDrain {
			h.update(task.ID, func(t *cluster.Task) { t.Drained = true })
		}
	default:
		if task.Desired >= cluster.DesiredStop {
			h.end(task.ID, cluster.ObservedFailed, 143)
		} else {
			h.ready(task.ID)
		}
	}
}

// check plans once and holds the plan against the promises of the package.
func (h *history) check() {
	before := h.in
	p := h.plan(h.t)
	old := make(map[cluster.ID]*cluster.Task)
	for _, t := range before.Tasks {
		old[t.ID] = t
	}
	for _, c := range p.Stop {
		h.checkStop(before, old[c.Task], c)
	}
	for _, id := range p.Delete {
		if t := old[id]; !t.Node.IsZero() && !t.Observed.Terminal() && h.in.Nodes.Nodes[t.Node] != nil && h.in.Nodes.Nodes[t.Node].State != cluster.NodeDown {
			h.t.Fatalf("forgets a task that may have a process: %s", show([]*cluster.Task{t}))
		}
	}
	for _, c := range p.Create {
		h.checkCreate(before, old, c)
	}
	h.checkSlots(before, p)
}

func (h *history) checkStop(before Input, t *cluster.Task, c Change) {
	roll := h.in.Service.Rollout
	if c.Reason == makesRoom && t.Observed == cluster.ObservedRunning && roll.State == cluster.RolloutUpdating && roll == before.Service.Rollout {
		for _, want := range Images(before) {
			n := before.Nodes.Nodes[t.Node]
			if want.Node == t.Node && n.State == cluster.NodeReady && n.Availability != cluster.NodeDrain && !prepared(n, want.Revision, want.Since).Present {
				h.t.Fatalf("makes room in a slot whose node has no image yet: %s", show([]*cluster.Task{t}))
			}
		}
	}
	if c.To != cluster.DesiredStop || t.Observed != cluster.ObservedRunning || c.Lost {
		return
	}
	switch t.Desired {
	case cluster.DesiredRun:
		if t.Ready && t.Address.IsValid() {
			h.t.Fatalf("stops an endpoint without draining it: %s", show([]*cluster.Task{t}))
		}
	case cluster.DesiredDrain:
		waited := before.Now.Sub(t.DrainSince)
		if t.Version > before.Acked && waited < 5*time.Second {
			h.t.Fatalf("stops an endpoint %s after its drain without acknowledgement", waited)
		}
		if !t.Drained && waited < 10*time.Second {
			h.t.Fatalf("stops a task with open connections %s after its drain", waited)
		}
	}
}

// checkCreate holds a new task against the back-off of the one it replaces.
func (h *history) checkCreate(before Input, old map[cluster.ID]*cluster.Task, c *cluster.Task) {
	t := old[c.Replaces]
	if t == nil || !ownEnd(t) || t.Revision != c.Revision || c.Failures == 0 || t.Created.Before(before.Service.RestartAt) {
		return
	}
	policy := h.in.Revisions[t.Revision].Spec.Restart
	if wait := before.Now.Sub(t.Ended); wait < cluster.Backoff(policy, c.Failures) {
		h.t.Fatalf("replaces a task after %s, its %d failures ask for %s", wait, c.Failures, cluster.Backoff(policy, c.Failures))
	}
}

// checkSlots holds each slot against its bound, and its readiness against what it was before the plan.
func (h *history) checkSlots(before Input, p Plan) {
	type state struct{ run, live, readyBefore, readyAfter int }
	slots := make(map[key]*state)
	at := func(t *cluster.Task) *state {
		k := key{slot: t.Slot}
		if t.Slot == 0 {
			k.node = t.Node
		}
		if slots[k] == nil {
			slots[k] = &state{}
		}
		return slots[k]
	}
	reached := func(t *cluster.Task) bool {
		n := h.in.Nodes.Nodes[t.Node]
		return t.Node.IsZero() || n.State == cluster.NodeReady
	}
	for _, t := range before.Tasks {
		if running(t) && t.Ready && reached(t) {
			at(t).readyBefore++
		}
	}
	for _, t := range h.in.Tasks {
		s := at(t)
		if !t.Observed.Terminal() {
			s.live++
		}
		if running(t) {
			s.run++
			if t.Ready && reached(t) {
				s.readyAfter++
			}
		}
	}
	startFirst := h.sp.Update.Order == spec.StartFirst
	for k, s := range slots {
		if s.run > 2 || s.live > 2 && !h.split {
			h.t.Fatalf("slot %d has %d tasks wanted and %d live: %s", k.slot, s.run, s.live, show(h.in.Tasks))
		}
		kept := k.slot > 0 && k.slot <= h.in.Service.Replicas && h.sp.Mode == spec.Replicated
		if startFirst && kept && s.readyBefore > 0 && s.readyAfter == 0 {
			h.t.Fatalf("slot %d served and the plan ends that: %+v\n%s", k.slot, p, show(h.in.Tasks))
		}
	}
}

func TestHistories(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		h := newHistory(t)
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			h.step()
			h.check()
		}
	})
}

// TestConvergence lets any history end, heals everything and expects that all that is wanted is there, in bounded time.
func TestConvergence(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		h := newHistory(t)
		for range rapid.IntRange(1, 40).Draw(t, "steps") {
			h.step()
			h.check()
		}
		h.converge()
	})
}

// converge heals everything and expects that all that is wanted is there, in bounded time.
func (h *history) converge() {
	t := h.t
	for n := 1; n <= 3; n++ {
		h.node(n, func(n *cluster.Node) { n.State, n.Availability = cluster.NodeReady, cluster.NodeActive })
	}
	h.in.Blocked, h.manual, h.passes = "", false, true
	healed := h.in.Now
	if h.in.Service.Rollout.State == cluster.RolloutFailed || h.in.Service.Rollout.State == cluster.RolloutPaused {
		// As an operator resumes it.
		h.service(func(s *cluster.Service) {
			s.Rollout.State, s.Rollout.Failures, s.Rollout.Started = cluster.RolloutUpdating, 0, h.in.Now
		})
	}
	h.settle(t, 30*time.Minute)
	// What happened before may still end the rollout once; after another resume nothing is left that could.
	if h.in.Service.Rollout.State != cluster.RolloutCompleted {
		h.service(func(s *cluster.Service) {
			s.Rollout.State, s.Rollout.Failures, s.Rollout.Started = cluster.RolloutUpdating, 0, h.in.Now
		})
		h.settle(t, 30*time.Minute)
	}
	st := h.in.Service.Status
	if !st.Converged || st.Ready != st.Desired || st.Updated != st.Desired {
		t.Fatalf("%s after all healed: %+v, rollout %+v\n%s", h.in.Now.Sub(healed), st, h.in.Service.Rollout, show(h.in.Tasks))
	}
	if h.in.Service.Rollout.State == cluster.RolloutCompleted && st.Waiting != "" {
		t.Fatalf("converged and waiting: %+v", st)
	}
}

func TestBackoffDoublesUpToItsMaximum(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		policy := spec.RestartPolicy{
			Delay:    time.Duration(rapid.Int64Range(1, int64(time.Minute)).Draw(t, "delay")),
			DelayMax: time.Duration(rapid.Int64Range(int64(time.Minute), int64(time.Hour)).Draw(t, "max")),
		}
		if cluster.Backoff(policy, 0) != 0 || cluster.Backoff(policy, 1) != 0 {
			t.Fatal("the first failure waits")
		}
		want := policy.Delay
		for n := 2; n < 100; n++ {
			if got := cluster.Backoff(policy, n); got != want {
				t.Fatalf("after %d failures: %s, want %s", n, got, want)
			}
			want = min(want*2, policy.DelayMax)
		}
	})
}
