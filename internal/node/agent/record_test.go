package agent

import (
	"testing"
	"time"

	"baton/internal/model/cluster"
	"baton/internal/model/spec"
)

// What nothing waits for is saved with what comes soon after it; what a start or a clean-up waits for is saved at once.
func TestSavesThatNothingWaitsForTravelTogether(t *testing.T) {
	r := &recorder{}
	l := ready(t, r, assigned(1, cluster.DesiredRun), assigned(2, cluster.DesiredRun))
	if r.count(ActStart) != 2 {
		t.Fatalf("acts: %+v, want two starts, for which nothing has to wait", r.acts)
	}
	saves := len(r.changes)
	running := func(n byte, at time.Time) {
		id := cluster.ID{15: n}
		l.Finish(Result{Task: id, Kind: ActStart, Probes: &spec.Probes{}}, at)
		l.See([]Observed{{Task: id, State: ContainerRunning, Started: at}}, at, id)
	}
	at := now.Add(recordEvery / 4)
	running(1, at)
	next := l.Step(at)
	if len(r.changes) != saves || next > recordEvery-recordEvery/4 {
		t.Fatalf("%d saves for a task that runs, next look after %s; want none yet, and one soon", len(r.changes)-saves, next)
	}
	running(2, at.Add(recordEvery/4))
	l.Step(at.Add(recordEvery / 4))
	l.Step(now.Add(recordEvery))
	if len(r.changes) != saves+1 || len(r.changes[saves].Tasks) != 2 {
		t.Fatalf("saves %+v, want one with both tasks", r.changes[saves:])
	}
	at = now.Add(recordEvery + time.Millisecond)
	l.See([]Observed{{Task: cluster.ID{15: 1}, State: ContainerExited, Exit: &cluster.Exit{Code: 1, At: at}}}, at, cluster.ID{15: 1})
	next = l.Step(at)
	if len(r.changes) != saves+2 || r.count(ActClean) != 0 || next > cleanAfter {
		t.Errorf("%d saves, acts %+v, next look after %s; want an end saved at once, and the clean-up to come", len(r.changes)-saves, r.acts, next)
	}
	if l.Step(at.Add(cleanAfter)); r.count(ActClean) != 1 {
		t.Errorf("acts %+v, want a clean-up after %s", r.acts, cleanAfter)
	}
}
