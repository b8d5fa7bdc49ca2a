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
