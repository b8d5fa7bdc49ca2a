package measure

import (
	"testing"
	"time"

	"baton/internal/model/cluster"
)

// What tasks answered themselves with 5xx is told apart from what failed between client and task.
func TestRequestedAndTaskTotals(t *testing.T) {
	w := newWorld()
	began := w.now
	task := w.task(1, 1)
	w.report(1, true)
	if _, ok := w.TaskTotal(task); ok {
		t.Error("something is told of a task that nothing was told of")
	}
	// Longer than any ring of a task remembers.
	for round := range uint64(200) {
		w.pass(2 * time.Second)
		r := w.series(task, began, 10*(round+1))
		r.Classes[5], r.Unreached, r.Broken = 3*(round+1), round+1, round+1
		w.report(1, false, r)
	}
	got, ok := w.TaskTotal(task)
	want := cluster.Requested{Requests: 2600, Unreached: 200, Broken: 200, Errors: 200}
	if !ok || got.Requested() != want {
		t.Errorf("got %+v, want %+v", got.Requested(), want)
	}
	if n := got.Latency.Count(); n != 2000 {
		t.Errorf("%d latencies, want 2000", n)
	}
	delete(w.tasks, task)
	w.Forget(func(cluster.ID) bool { return true }, w.now)
	if _, ok := w.TaskTotal(task); ok {
		t.Error("a task that is gone is remembered")
	}
}
