package reconcile

import (
	"testing"
	"time"

	"baton/internal/model/cluster"
	"baton/internal/model/spec"
)

// A change of policies alone replaces no task, so that slots whose task completed have nothing to move.
func TestPolicyChangeOfCompletedSlots(t *testing.T) {
	job := web()
	job.Restart.Condition = spec.RestartOnFailure
	w := newWorld(job, 3, 2)
	w.in.Revisions[w.in.Service.Revision].Hash = "same"
	w.settle(t, time.Minute)
	for _, task := range w.in.Tasks {
		w.end(task.ID, cluster.ObservedComplete, 0)
	}
	w.settle(t, time.Minute)
	job.Update.Monitor = 2 * time.Second
	w.in.Revisions[w.revise(job)].Hash = "same"
	tasks := len(w.in.Tasks)
	w.settle(t, time.Minute)
	if got := w.in.Service.Rollout.State; got != cluster.RolloutCompleted || len(w.in.Tasks) != tasks {
		t.Errorf("rollout is %s with %d tasks, want completed with the %d there were", got, len(w.in.Tasks), tasks)
	}
}

// A job that goes back to a revision that completed before has nothing to move either, one slot at a time or all at once.
func TestRollbackOfCompletedSlots(t *testing.T) {
	job := web()
	job.Restart.Condition = spec.RestartOnFailure
	job.Update.Delay, job.Rollback.Delay = time.Second, time.Second
	w := newWorld(job, 3, 2)
	first := w.in.Service.Revision
	complete := func() {
		w.settle(t, time.Minute)
		for _, task := range w.in.Tasks {
			if !task.Observed.Terminal() {
				w.end(task.ID, cluster.ObservedComplete, 0)
			}
		}
		w.settle(t, time.Minute)
	}
	complete()
	w.revise(job)
	complete()
	w.in.Now = w.in.Now.Add(time.Minute)
	w.service(func(s *cluster.Service) {
		s.Previous, s.Revision = s.Revision, first
		s.Rollout = cluster.Rollout{From: s.Previous, To: first, State: cluster.RolloutUpdating, Started: w.in.Now, Undo: true}
	})
	w.settle(t, time.Minute)
	if got := w.in.Service.Rollout.State; got != cluster.RolloutCompleted {
		t.Errorf("rollout is %s after a minute, want completed", got)
	}
}
