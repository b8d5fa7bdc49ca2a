package reconcile

import (
	"slices"
	"testing"
	"time"

	"baton/internal/model/cluster"
	"baton/internal/model/spec"
)

func TestFirstDeploymentStartsEverySlotAtOnce(t *testing.T) {
	w := newWorld(web(), 3, 2)
	if p := w.plan(t); len(p.Create) != 3 {
		t.Fatalf("created %d tasks, want 3", len(p.Create))
	}
	w.settle(t, time.Minute)
	st := w.in.Service.Status
	if !st.Converged || st.Ready != 3 || st.Updated != 3 || w.in.Service.Rollout.State != cluster.RolloutCompleted {
		t.Fatalf("got %+v, rollout %+v", st, w.in.Service.Rollout)
	}
}

func TestScaleDownRemovesHighestSlots(t *testing.T) {
	w := newWorld(web(), 5, 2)
	w.settle(t, time.Minute)
	w.service(func(s *cluster.Service) { s.Replicas = 2 })
	p := w.plan(t)
	var slots []int
	for _, r := range p.Why {
		slots = append(slots, r.Slot)
	}
	if slices.Sort(slots); !slices.Equal(slots, []int{3, 4, 5}) {
		t.Fatalf("slots %v leave, want 3 4 5", slots)
	}
	w.settle(t, time.Minute)
	if st := w.in.Service.Status; !st.Converged || st.Ready != 2 {
		t.Fatalf("got %+v", st)
	}
}

func TestBackoffSequence(t *testing.T) {
	w := newWorld(web(), 1, 1)
	w.settle(t, time.Minute)
	want := []time.Duration{0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300}
	for i, seconds := range want {
		w.in.Now = w.in.Now.Add(time.Second)
		task := w.one(t, 1)
		w.end(task.ID, cluster.ObservedFailed, 1)
		ended := w.in.Now
		p := w.plan(t)
		if seconds > 0 {
			if len(p.Create) != 0 || p.WakeAt.Sub(ended) != seconds*time.Second {
				t.Fatalf("failure %d: created %d, wakes after %s, want %ds", i+1, len(p.Create), p.WakeAt.Sub(ended), seconds)
			}
			w.in.Now = p.WakeAt.Add(-time.Nanosecond)
			if p = w.plan(t); len(p.Create) != 0 {
				t.Fatalf("failure %d: replaced too early", i+1)
			}
			w.in.Now = w.in.Now.Add(time.Nanosecond)
			p = w.plan(t)
		}
		if len(p.Create) != 1 || p.Create[0].Failures != i+1 {
			t.Fatalf("failure %d: got %+v", i+1, p.Create)
		}
		w.work()
	}
	w.in.Now = w.in.Now.Add(time.Minute) // ran well: all is forgotten
	w.end(w.one(t, 1).ID, cluster.ObservedFailed, 1)
	if p := w.plan(t); len(p.Create) != 1 || p.Create[0].Failures != 1 {
		t.Fatalf("after a good run: got %+v", p.Create)
	}
}

func TestRestartPolicy(t *testing.T) {
	tests := []struct {
		name      string
		condition spec.RestartCondition
		attempts  int
		as        cluster.Observed
		ends      int
		restarts  bool
		converged bool
	}{
		{"any after success", spec.RestartAny, 0, cluster.ObservedComplete, 1, true, false},
		{"on-failure after success", spec.RestartOnFailure, 0, cluster.ObservedComplete, 1, false, true},
		{"on-failure after failure", spec.RestartOnFailure, 0, cluster.ObservedFailed, 1, true, false},
		{"none after success", spec.RestartNone, 0, cluster.ObservedComplete, 1, false, true},
		{"none after failure", spec.RestartNone, 0, cluster.ObservedFailed, 1, false, false},
		{"rejected counts as failure", spec.RestartOnFailure, 0, cluster.ObservedRejected, 1, true, false},
		{"last attempt", spec.RestartAny, 2, cluster.ObservedFailed, 2, true, false},
		{"attempts used up", spec.RestartAny, 2, cluster.ObservedFailed, 3, false, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			sp := web()
			sp.Restart.Condition, sp.Restart.MaxAttempts, sp.Restart.Delay = tt.condition, tt.attempts, 0
			w := newWorld(sp, 1, 1)
			var p Plan
			for i := range tt.ends {
				w.plan(t)
				w.work()
				w.in.Now = w.in.Now.Add(time.Second)
				w.end(w.one(t, 1).ID, tt.as, 1)
				if i == tt.ends-1 {
					p = w.plan(t)
				}
			}
			if got := len(p.Create) == 1; got != tt.restarts || p.Status.Converged != tt.converged {
				t.Fatalf("restarts %v, want %v; status %+v, want converged %v", got, tt.restarts, p.Status, tt.converged)
			}
		})
	}
}

func TestStartFirstHandOff(t *testing.T) {
	w := newWorld(web(), 1, 1)
	w.settle(t, time.Minute)
	old := w.one(t, 1)
	next := web()
	next.Image = "web:2"
	w.revise(next)
	p := w.plan(t)
	if len(p.Create) != 1 || len(p.Stop) != 0 {
		t.Fatalf("begins with %d new and %d stops, want the new one only", len(p.Create), len(p.Stop))
	}
	w.place()
	if p = w.plan(t); len(p.Stop) != 0 {
		t.Fatalf("stops the old task before the new one is ready: %+v", p.Stop)
	}
	w.work()
	readied := w.in.Now
	p = w.plan(t)
	if want := readied.Add(5 * time.Second); len(p.Stop) != 0 || !p.WakeAt.Equal(want) {
		t.Fatalf("within the monitor time: stops %+v, wakes %s, want %s", p.Stop, p.WakeAt, want)
	}
	w.in.Now = p.WakeAt
	p = w.plan(t)
	if len(p.Stop) != 1 || p.Stop[0].Task != old.ID || p.Stop[0].To != cluster.DesiredDrain {
		t.Fatalf("after the monitor time: %+v, want the old one drained", p.Stop)
	}
	drain := w.in.Now
	w.update(old.ID, func(t *cluster.Task) { t.Drained = true })
	if p = w.plan(t); len(p.Stop) != 0 || !p.WakeAt.Equal(drain.Add(5*time.Second)) {
		t.Fatalf("not acknowledged: %+v, wakes %s", p.Stop, p.WakeAt)
	}
	w.in.Acked = w.version
	if p = w.plan(t); len(p.Stop) != 1 || p.Stop[0].To != cluster.DesiredStop {
		t.Fatalf("acknowledged and drained: %+v, want stop", p.Stop)
	}
	w.settle(t, time.Minute)
	if r := w.in.Service.Rollout; r.State != cluster.RolloutCompleted || !w.in.Service.Status.Converged {
		t.Fatalf("got rollout %+v, status %+v", r, w.in.Service.Status)
	}
}

func TestDrainBounds(t *testing.T) {
	w := newWorld(web(), 1, 1)
	w.settle(t, time.Minute)
	w.service(func(s *cluster.Service) { s.Replicas = 0 })
	w.in.Acked = 0
	p := w.plan(t)
	drain := w.in.Now
	if !p.WakeAt.Equal(drain.Add(5 * time.Second)) {
		t.Fatalf("wakes after %s, want 5s", p.WakeAt.Sub(drain))
	}
	w.in.Now = p.WakeAt
	if p = w.plan(t); len(p.Stop) != 0 || !p.WakeAt.Equal(drain.Add(10*time.Second)) {
		t.Fatalf("with connections open: %+v, wakes after %s, want the drain deadline", p.Stop, p.WakeAt.Sub(drain))
	}
	w.in.Now = p.WakeAt
	if p = w.plan(t); len(p.Stop) != 1 || p.Stop[0].To != cluster.DesiredStop {
		t.Fatalf("at the deadline: %+v, want stop", p.Stop)
	}
}

func TestStopFirst(t *testing.T) {
	sp := web()
	sp.Update.Order = spec.StopFirst
	w := newWorld(sp, 1, 1)
	w.settle(t, time.Minute)
	sp.Image = "web:2"
	w.revise(sp)
	if p := w.plan(t); len(p.Create) != 0 || len(p.Stop) != 1 {
		t.Fatalf("got %d new and %d stops, want the stop first", len(p.Create), len(p.Stop))
	}
	for range 10 {
		p := w.plan(t)
		if len(p.Create) > 0 {
			for _, task := range w.in.Tasks {
				if task.Revision != w.in.Service.Revision && !task.Observed.Terminal() {
					t.Fatalf("the old task is %s when the new one is made", task.Observed)
				}
			}
		}
		w.work()
	}
	w.settle(t, time.Minute)
	if !w.in.Service.Status.Converged {
		t.Fatalf("got %+v", w.in.Service.Status)
	}
}

func TestParallelismAndDelay(t *testing.T) {
	sp := web()
	sp.Update.Parallelism, sp.Update.Delay = 2, 20*time.Second
	w := newWorld(sp, 5, 2)
	w.settle(t, time.Minute)
	sp.Image = "web:2"
	w.revise(sp)
	var batches []time.Time
	for range 400 {
		p := w.plan(t)
		if len(p.Create) > 2 {
			t.Fatalf("moves %d slots at once, want 2", len(p.Create))
		}
		if len(p.Create) > 0 {
			batches = append(batches, w.in.Now)
		}
		before := w.version
		w.work()
		if w.version == before {
			if p.WakeAt.IsZero() || w.in.Service.Rollout.State == cluster.RolloutCompleted {
				break
			}
			w.in.Now = p.WakeAt
		}
	}
	if len(batches) != 3 {
		t.Fatalf("%d batches, want 3", len(batches))
	}
	for i, at := range batches[1:] {
		if gap := at.Sub(batches[i]); gap < 25*time.Second {
			t.Errorf("batch %d came %s after the one before, want monitor and delay", i+2, gap)
		}
	}
}

func TestRolloutFailure(t *testing.T) {
	tests := []struct {
		name   string
		action spec.FailureAction
		ratio  float64
		want   cluster.RolloutState
	}{
		{"rollback", spec.FailureRollback, 0, cluster.RolloutFailed},
		{"pause", spec.FailurePause, 0, cluster.RolloutPaused},
		{"continue", spec.FailureContinue, 0, cluster.RolloutUpdating},
		{"tolerated", spec.FailureRollback, 0.5, cluster.RolloutUpdating},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			sp := web()
			w := newWorld(sp, 3, 2)
			w.settle(t, time.Minute)
			sp.Image, sp.Update.FailureAction, sp.Update.MaxFailureRatio = "web:bad", tt.action, tt.ratio
			bad := w.revise(sp)
			p := w.plan(t)
			slot := p.Create[0].Slot
			w.place()
			for _, task := range w.live(slot) {
				if task.Revision == bad {
					w.end(task.ID, cluster.ObservedFailed, 1)
				}
			}
			p = w.plan(t)
			if got := w.in.Service.Rollout; got.State != tt.want || got.Failures != 1 {
				t.Fatalf("got %+v, want %s", got, tt.want)
			}
			if w.in.Service.Status.Ready != 3 {
				t.Fatalf("%d ready, want the 3 old ones", w.in.Service.Status.Ready)
			}
			if frozen := tt.want != cluster.RolloutUpdating; frozen && len(p.Create) != 0 {
				t.Fatalf("a frozen rollout creates %+v", p.Create)
			}
		})
	}
}

func TestFrozenRolloutHealsOldTasks(t *testing.T) {
	w := newWorld(web(), 2, 2)
	w.settle(t, time.Minute)
	old := w.in.Service.Revision
	sp := web()
	sp.Image = "web:bad"
	bad := w.revise(sp)
	p := w.plan(t)
	slot := p.Create[0].Slot
	for _, task := range w.live(slot) {
		if task.Revision == bad {
			w.place()
			w.end(task.ID, cluster.ObservedFailed, 1)
		}
	}
	w.plan(t)
	for s := 1; s <= 2; s++ {
		w.in.Now = w.in.Now.Add(time.Second)
		w.end(w.one(t, s).ID, cluster.ObservedFailed, 137)
		p = w.plan(t)
		if len(p.Create) != 1 || p.Create[0].Revision != old {
			t.Fatalf("slot %d: got %+v, want a task of the old revision", s, p.Create)
		}
		w.work()
	}
}

func TestRollbackKeepsOldTasks(t *testing.T) {
	w := newWorld(web(), 3, 2)
	w.settle(t, time.Minute)
	good := w.in.Service.Revision
	before := map[cluster.ID]bool{}
	for _, task := range w.in.Tasks {
		before[task.ID] = true
	}
	sp := web()
	sp.Image = "web:bad"
	bad := w.revise(sp)
	w.plan(t)
	w.place()
	w.service(func(s *cluster.Service) {
		s.Previous, s.Revision = bad, good
		s.Rollout = cluster.Rollout{From: bad, To: good, State: cluster.RolloutUpdating, Started: w.in.Now, Undo: true}
	})
	p := w.plan(t)
	if len(p.Create) != 0 {
		t.Fatalf("the rollback starts %d tasks although the old ones still run", len(p.Create))
	}
	w.settle(t, time.Minute)
	for slot := 1; slot <= 3; slot++ {
		if task := w.one(t, slot); !before[task.ID] {
			t.Errorf("slot %d was restarted without need", slot)
		}
	}
	if w.in.Service.Rollout.State != cluster.RolloutCompleted {
		t.Errorf("got %+v", w.in.Service.Rollout)
	}
}

func TestFirstDeploymentIsPatient(t *testing.T) {
	w := newWorld(web(), 1, 1)
	w.plan(t)
	w.place()
	for range 8 {
		w.end(w.one(t, 1).ID, cluster.ObservedFailed, 1)
		p := w.plan(t)
		if w.in.Service.Rollout.State != cluster.RolloutUpdating {
			t.Fatalf("gave up after %s: %+v", w.in.Now.Sub(start), w.in.Service.Rollout)
		}
		if len(p.Create) == 0 {
			w.in.Now = p.WakeAt
			w.plan(t)
		}
		w.place()
	}
	w.in.Now = start.Add(10 * time.Minute)
	w.plan(t)
	if r := w.in.Service.Rollout; r.State != cluster.RolloutFailed {
		t.Fatalf("at the deadline: %+v", r)
	}
}

func TestFirstDeploymentGivesUpOnRejection(t *testing.T) {
	w := newWorld(web(), 1, 1)
	for range 3 {
		p := w.plan(t)
		if len(p.Create) == 0 {
			w.in.Now = p.WakeAt
			w.plan(t)
		}
		w.place()
		w.update(w.one(t, 1).ID, func(t *cluster.Task) {
			t.Observed, t.Ended, t.Reason = cluster.ObservedRejected, w.in.Now, "no such image"
		})
	}
	w.plan(t)
	if r := w.in.Service.Rollout; r.State != cluster.RolloutFailed || r.Reason != "web/1 was rejected: no such image" {
		t.Fatalf("got %+v", r)
	}
}

func TestPolicyChangeReplacesNoTask(t *testing.T) {
	w := newWorld(web(), 2, 1)
	w.in.Revisions[w.in.Service.Revision].Hash = "same"
	w.settle(t, time.Minute)
	sp := web()
	sp.Restart.Condition = spec.RestartNone
	w.in.Revisions[w.revise(sp)].Hash = "same"
	p := w.plan(t)
	if len(p.Create)+len(p.Stop) != 0 || w.in.Service.Rollout.State != cluster.RolloutCompleted || !p.Status.Converged {
		t.Fatalf("got %+v", p)
	}
}

func TestBlockedDelaysFirstTasksOnly(t *testing.T) {
	w := newWorld(web(), 2, 1)
	w.in.Blocked = "waits for db to be healthy"
	if p := w.plan(t); len(p.Create) != 0 || p.Status.Waiting != w.in.Blocked {
		t.Fatalf("got %+v", p)
	}
	w.in.Blocked = ""
	w.settle(t, time.Minute)
	w.in.Blocked = "waits for db to be healthy"
	w.end(w.one(t, 1).ID, cluster.ObservedFailed, 1)
	if p := w.plan(t); len(p.Create) != 1 {
		t.Fatalf("a restart waits for the dependency: %+v", p)
	}
}

func TestNodeTroubles(t *testing.T) {
	tests := []struct {
		name    string
		change  func(*cluster.Node)
		after   time.Duration
		creates int
		lost    bool
	}{
		{"unknown for a moment", func(n *cluster.Node) { n.State = cluster.NodeUnknown }, 2 * time.Second, 0, false},
		{"unknown for long", func(n *cluster.Node) { n.State = cluster.NodeUnknown }, 3 * time.Second, 1, false},
		{"down", func(n *cluster.Node) { n.State = cluster.NodeDown }, 0, 1, true},
		{"draining", func(n *cluster.Node) { n.Availability = cluster.NodeDrain }, 0, 1, false},
		{"paused", func(n *cluster.Node) { n.Availability = cluster.NodePause }, 0, 0, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(web(), 1, 2)
			w.settle(t, time.Minute)
			task := w.one(t, 1)
			w.node(int(task.Node[15]), tt.change)
			w.in.Now = w.in.Now.Add(tt.after)
			p := w.plan(t)
			lost := len(p.Stop) == 1 && p.Stop[0].Lost
			if len(p.Create) != tt.creates || lost != tt.lost {
				t.Fatalf("got %d new, lost %v: %+v", len(p.Create), lost, p)
			}
			if tt.creates == 0 {
				return
			}
			w.settle(t, 30*time.Second)
			if now := w.one(t, 1); now.Node == task.Node || w.in.Service.Status.Ready != 1 {
				t.Fatalf("not moved: %s", show(w.in.Tasks))
			}
		})
	}
}

func TestReturningNodeLosesSurplus(t *testing.T) {
	w := newWorld(web(), 1, 2)
	w.settle(t, time.Minute)
	task := w.one(t, 1)
	w.node(int(task.Node[15]), func(n *cluster.Node) { n.State = cluster.NodeUnknown })
	w.in.Now = w.in.Now.Add(4 * time.Second)
	w.plan(t)
	w.node(int(task.Node[15]), func(n *cluster.Node) { n.State = cluster.NodeReady })
	w.settle(t, time.Minute)
	if now := w.one(t, 1); now.ID != task.ID || !w.in.Service.Status.Converged {
		t.Fatalf("the serving task should stay: %s", show(w.in.Tasks))
	}
}

func TestExclusiveWaitsForLostNode(t *testing.T) {
	w := newWorld(web(), 1, 2)
	w.in.Exclusive = true
	w.settle(t, time.Minute)
	task := w.one(t, 1)
	w.node(int(task.Node[15]), func(n *cluster.Node) { n.State = cluster.NodeUnknown })
	w.in.Now = w.in.Now.Add(time.Minute)
	if p := w.plan(t); len(p.Create) != 0 {
		t.Fatal("a second writer is started while the first may still run")
	}
	w.node(int(task.Node[15]), func(n *cluster.Node) { n.State = cluster.NodeDown })
	if p := w.plan(t); len(p.Create) != 1 {
		t.Fatal("no replacement once the node is down")
	}
}

func TestGlobalFollowsNodes(t *testing.T) {
	sp := web()
	sp.Mode = spec.Global
	w := newWorld(sp, 0, 3)
	w.settle(t, time.Minute)
	if st := w.in.Service.Status; st.Desired != 3 || !st.Converged {
		t.Fatalf("got %+v", st)
	}
	w.node(2, func(n *cluster.Node) { n.Availability = cluster.NodeDrain })
	w.settle(t, time.Minute)
	if st := w.in.Service.Status; st.Desired != 2 || !st.Converged {
		t.Fatalf("after a drain: %+v %s", st, show(w.in.Tasks))
	}
}

func TestRestartReplacesEveryTask(t *testing.T) {
	w := newWorld(web(), 3, 2)
	w.settle(t, time.Minute)
	old := map[cluster.ID]bool{}
	for _, task := range w.in.Tasks {
		old[task.ID] = true
	}
	w.in.Now = w.in.Now.Add(time.Second)
	w.service(func(s *cluster.Service) { s.RestartAt = w.in.Now })
	if p := w.plan(t); len(p.Create) != 1 {
		t.Fatalf("restarts %d slots at once, want 1", len(p.Create))
	}
	w.settle(t, time.Minute)
	for slot := 1; slot <= 3; slot++ {
		if old[w.one(t, slot).ID] {
			t.Errorf("slot %d was not restarted", slot)
		}
	}
	if !w.in.Service.Status.Converged {
		t.Errorf("got %+v", w.in.Service.Status)
	}
}

func TestRemoval(t *testing.T) {
	w := newWorld(web(), 3, 2)
	w.settle(t, time.Minute)
	w.service(func(s *cluster.Service) { s.Removing = true })
	if p := w.plan(t); len(p.Stop) != 3 || p.Done {
		t.Fatalf("got %+v", p)
	}
	w.settle(t, time.Minute)
	if p := w.plan(t); !p.Done || len(w.in.Tasks) != 0 {
		t.Fatalf("left: %s", show(w.in.Tasks))
	}
}

func TestHistoryIsBounded(t *testing.T) {
	w := newWorld(web(), 1, 1)
	for range 20 {
		w.settle(t, time.Second)
		w.in.Now = w.in.Now.Add(2 * time.Minute)
		w.end(w.one(t, 1).ID, cluster.ObservedFailed, 1)
		w.plan(t)
	}
	if got := len(w.in.Tasks); got != historyDefault+1 {
		t.Fatalf("%d tasks are stored, want %d", got, historyDefault+1)
	}
}
