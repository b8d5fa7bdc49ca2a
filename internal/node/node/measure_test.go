package node

import (
	"testing"

	"baton/internal/model/cluster"
	"baton/internal/wire/agentapi"
)

// What did not change is not told again, except in full reports; requests in flight are, as long as they are.
func TestReporterTellsNews(t *testing.T) {
	var r reporter
	of := func(task byte, since int64, ended uint64, inflight int64) agentapi.RequestMeasure {
		return agentapi.RequestMeasure{Service: cluster.ID{1}, Task: cluster.ID{task}, Since: since, Classes: [agentapi.RequestClasses]uint64{2: ended}, InFlight: inflight}
	}
	for i, step := range []struct {
		all  []agentapi.RequestMeasure
		full bool
		want int
	}{
		{[]agentapi.RequestMeasure{of(1, 1, 5, 0), of(2, 1, 0, 1)}, true, 2},
		{[]agentapi.RequestMeasure{of(1, 1, 5, 0), of(2, 1, 0, 1)}, false, 1}, // still in flight
		{[]agentapi.RequestMeasure{of(1, 1, 5, 0), of(2, 1, 1, 0)}, false, 1}, // ended
		{[]agentapi.RequestMeasure{of(1, 1, 5, 0), of(2, 1, 1, 0)}, false, 0},
		{[]agentapi.RequestMeasure{of(1, 2, 5, 0), of(2, 1, 1, 0)}, false, 1}, // begun anew
		{[]agentapi.RequestMeasure{of(1, 2, 5, 2), of(2, 1, 1, 0)}, false, 1},
		{[]agentapi.RequestMeasure{of(1, 2, 5, 0), of(2, 1, 1, 0)}, false, 1}, // it went to another task
		{[]agentapi.RequestMeasure{of(1, 2, 5, 0), of(2, 1, 1, 0), of(3, 9, 0, 1)}, true, 3},
	} {
		if got := r.news(step.all, step.full, 10); len(got) != step.want {
			t.Errorf("step %d: %d series, want %d: %+v", i, len(got), step.want, got)
		}
	}
}

// With more news than a report may have, every series gets its turn: none waits for longer than all of them take.
func TestReporterTakesTurns(t *testing.T) {
	var r reporter
	const series, limit = 25, 10
	last := make(map[cluster.ID]uint64)
	for round := range uint64(30) {
		var all []agentapi.RequestMeasure
		for i := range byte(series) {
			all = append(all, agentapi.RequestMeasure{Task: cluster.ID{i}, Classes: [agentapi.RequestClasses]uint64{2: round + 1}})
		}
		got := r.news(all, false, limit)
		if len(got) != limit {
			t.Fatalf("round %d: %d series", round, len(got))
		}
		for _, m := range got {
			last[m.Task] = round + 1
		}
		for i := range byte(series) {
			if waits := round + 1 - last[cluster.ID{i}]; waits > series/limit {
				t.Errorf("round %d: series %d has waited for %d", round, i, waits)
			}
		}
	}
}
