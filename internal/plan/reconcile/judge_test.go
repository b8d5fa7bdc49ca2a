package reconcile

import (
	"slices"
	"testing"
	"time"

	"baton/internal/model/cluster"
	"baton/internal/model/spec"
)

// judged is a service with two revisions; the rollout from one to the other has begun and waits for its gates.
func judged(t *testing.T, replicas int, change func(*spec.UpdatePolicy)) *world {
	t.Helper()
	sp := web()
	sp.Update.Gates.ErrorRate = 0.01
	if change != nil {
		change(&sp.Update)
	}
	w := newWorld(sp, replicas, 2)
	w.settle(t, time.Minute)
	if w.in.Service.Rollout.State != cluster.RolloutCompleted {
		t.Fatalf("the first deployment is %s: it has nothing to be compared with", w.in.Service.Rollout.State)
	}
	sp.Image = "web:2"
	w.revise(sp)
	w.settle(t, time.Hour)
	return w
}

// by tells how many tasks of each revision are ready.
func (w *world) by() (old, fresh int) {
	for _, t := range w.in.Tasks {
		switch {
		case !running(t) || !t.Ready:
		case t.Revision == w.in.Service.Revision:
			fresh++
		default:
			old++
		}
	}
	return old, fresh
}

func (w *world) says(v Verdict) {
	v.Started = w.in.Service.Rollout.Started
	w.in.Verdict = v
}

func TestGatesKeepOldTasksUntilTheyPass(t *testing.T) {
	w := judged(t, 3, func(u *spec.UpdatePolicy) { u.Parallelism = 2 })
	if old, fresh := w.by(); old != 3 || fresh != 2 {
		t.Fatalf("an hour without a verdict: %d old and %d new tasks serve, want all 3 and the first batch of 2", old, fresh)
	}
	w.says(Verdict{Passed: true, Text: "no errors"})
	w.settle(t, time.Minute)
	if old, fresh := w.by(); old != 0 || fresh != 3 || w.in.Service.Rollout.State != cluster.RolloutCompleted || w.in.Service.Rollout.Judged != "no errors" {
		t.Fatalf("passed: %d old, %d new, rollout %+v", old, fresh, w.in.Service.Rollout)
	}
	if !slices.ContainsFunc(w.why, func(r Reason) bool { return r.Type == WhyJudged && r.Message == "no errors" }) {
		t.Errorf("no reason tells of it: %+v", w.why)
	}
}

func TestFailedGateKeepsWhatComesBack(t *testing.T) {
	for _, action := range []spec.FailureAction{spec.FailureRollback, spec.FailurePause} {
		w := judged(t, 1, func(u *spec.UpdatePolicy) { u.FailureAction = action })
		w.says(Verdict{Failed: true, Text: "error rate 2%"})
		w.settle(t, time.Hour)
		want := map[spec.FailureAction]cluster.RolloutState{spec.FailureRollback: cluster.RolloutFailed, spec.FailurePause: cluster.RolloutPaused}[action]
		if old, _ := w.by(); old != 1 || w.in.Service.Rollout.State != want || w.in.Service.Rollout.Reason != "error rate 2%" {
			t.Fatalf("%s: %d old tasks serve, want 1; rollout %+v", action, old, w.in.Service.Rollout)
		}
		tasks := len(w.in.Tasks)
		w.service(func(s *cluster.Service) {
			s.Previous, s.Revision = s.Revision, s.Previous
			s.Rollout = cluster.Rollout{From: s.Previous, To: s.Revision, State: cluster.RolloutUpdating, Started: w.in.Now, Undo: true}
		})
		w.settle(t, time.Minute)
		if _, fresh := w.by(); fresh != 1 || len(w.in.Tasks) != tasks || w.in.Service.Rollout.State != cluster.RolloutCompleted {
			t.Fatalf("%s: back: rollout %+v, tasks %s", action, w.in.Service.Rollout, show(w.in.Tasks))
		}
	}
}

func TestVerdictOfAnotherRolloutSaysNothing(t *testing.T) {
	w := judged(t, 1, nil)
	w.in.Verdict = Verdict{Started: w.in.Service.Rollout.Started.Add(-time.Second), Failed: true, Text: "old news"}
	w.settle(t, time.Hour)
	if old, fresh := w.by(); old != 1 || fresh != 1 || w.in.Service.Rollout.State != cluster.RolloutUpdating {
		t.Fatalf("%d old, %d new, rollout %+v", old, fresh, w.in.Service.Rollout)
	}
}

// What serves well for a while and then not is found out as long as the rollout goes on.
func TestGateFailsAfterItPassed(t *testing.T) {
	w := judged(t, 3, func(u *spec.UpdatePolicy) { u.Delay = time.Hour })
	w.says(Verdict{Passed: true, Text: "no errors"})
	w.settle(t, time.Minute)
	w.says(Verdict{Failed: true, Text: "error rate 2%"})
	w.settle(t, time.Minute)
	if w.in.Service.Rollout.State != cluster.RolloutFailed {
		t.Fatalf("rollout %+v", w.in.Service.Rollout)
	}
}

func TestGateWithActionContinue(t *testing.T) {
	w := judged(t, 2, func(u *spec.UpdatePolicy) { u.FailureAction = spec.FailureContinue })
	w.says(Verdict{Failed: true, Text: "error rate 2%"})
	w.settle(t, time.Hour)
	if old, fresh := w.by(); old != 0 || fresh != 2 || w.in.Service.Rollout.Reason != "error rate 2%" {
		t.Fatalf("%d old, %d new, rollout %+v", old, fresh, w.in.Service.Rollout)
	}
}
