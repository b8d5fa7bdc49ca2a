package cluster

import (
	"testing"
	"time"

	"pgregory.net/rapid"
)

func TestAdvanceOnlyMovesForward(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		task := &Task{Meta: Meta{ID: NewID(nil)}, Observed: ObservedPending, Desired: DesiredRun}
		for range rapid.IntRange(1, 30).Draw(t, "reports") {
			before := *task
			s := Status{
				Observed: Observed(rapid.IntRange(int(ObservedPending), int(ObservedLost)).Draw(t, "observed")),
				Ready:    rapid.Bool().Draw(t, "ready"),
				At:       time.Unix(1, 0),
			}
			changed, err := task.Advance(s)
			if task.Observed < before.Observed {
				t.Fatalf("went back from %s to %s", before.Observed, task.Observed)
			}
			if before.Observed.Terminal() && task.Observed != before.Observed {
				t.Fatalf("left the final state %s for %s", before.Observed, task.Observed)
			}
			if err != nil && (changed || *task != before) {
				t.Fatalf("a refused report changed the task: %v", err)
			}
			if task.Ready && task.Observed != ObservedRunning {
				t.Fatalf("ready while %s", task.Observed)
			}
		}
	})
}

func TestWantOnlyMovesForward(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		task := &Task{Desired: DesiredRun}
		for range rapid.IntRange(1, 10).Draw(t, "wants") {
			before := task.Desired
			d := Desired(rapid.IntRange(int(DesiredRun), int(DesiredRemove)).Draw(t, "desired"))
			moved := task.Want(d, "", time.Unix(1, 0))
			if task.Desired < before || moved != (d > before) {
				t.Fatalf("from %s wanting %s: got %s, moved %v", before, d, task.Desired, moved)
			}
		}
	})
}

func TestIDTextRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var id ID
		copy(id[:], rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "id"))
		text, _ := id.MarshalText()
		var back ID
		if err := back.UnmarshalText(text); err != nil || back != id {
			t.Fatalf("%q came back as %v, %v", text, back, err)
		}
	})
}
