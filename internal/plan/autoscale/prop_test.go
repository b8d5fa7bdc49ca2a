package autoscale

import (
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"baton/internal/model/spec"
)

// drawPolicy draws a policy with targets that a test can give a load for.
func drawPolicy(t *rapid.T) *spec.Autoscale {
	least := rapid.IntRange(0, 5).Draw(t, "min")
	target := spec.ScaleTarget{RPS: rapid.Float64Range(1, 200).Draw(t, "rps")}
	if rapid.Bool().Draw(t, "with inflight") {
		target.InFlight = rapid.Float64Range(0.5, 50).Draw(t, "inflight")
	}
	if rapid.Bool().Draw(t, "with cpu") {
		target.CPU = rapid.Float64Range(0.1, 1).Draw(t, "cpu")
	}
	return scaled(least, least+rapid.IntRange(1, 200).Draw(t, "more"), target, func(a *spec.Autoscale) {
		a.Down.After = time.Duration(rapid.IntRange(5, 600).Draw(t, "after")) * time.Second
		if rapid.Bool().Draw(t, "steps") {
			a.Up.Step = spec.ScaleStep{Percent: rapid.IntRange(1, 400).Draw(t, "up")}
			a.Down.Step = spec.ScaleStep{Count: rapid.IntRange(1, 5).Draw(t, "down")}
		}
	})
}

// drawInput draws whatever a leader may find.
func drawInput(t *rapid.T) Input {
	a := drawPolicy(t)
	replicas := rapid.IntRange(0, 250).Draw(t, "replicas")
	in := Input{
		Spec: a, Bounds: a.Bounds(epoch), Replicas: replicas, Ready: rapid.IntRange(0, replicas+3).Draw(t, "ready"), Now: epoch,
		Moving: rapid.Bool().Draw(t, "moving"), UpAt: past(t, "up"), DownAt: past(t, "down"), Wanted: past(t, "wanted"), Since: past(t, "since"),
		State: State{began: past(t, "began")},
	}
	n := a.Max
	for at := past(t, "first need"); n > 0 && at.Before(epoch) && len(in.State.needs) < 5; at = at.Add(30 * time.Second) {
		in.State.needs = append(in.State.needs, need{at, n})
		n -= rapid.IntRange(1, n).Draw(t, "less")
	}
	for at := epoch.Add(-time.Duration(rapid.IntRange(0, 90).Draw(t, "of")) * time.Second); !at.After(epoch); at = at.Add(Every) {
		in.Samples = append(in.Samples, Sample{
			At: at, Span: Every, Ready: rapid.IntRange(0, 20).Draw(t, "then"), Counted: rapid.Bool().Draw(t, "counted"), Weighed: rapid.Bool().Draw(t, "weighed"),
			Requests: rapid.Float64Range(0, 50_000).Draw(t, "requests"), InFlight: rapid.Float64Range(0, 1000).Draw(t, "under way"),
			CPU: rapid.Float64Range(0, 2).Draw(t, "use"), Partial: rapid.Float64Range(0, 1).Draw(t, "partial") > 0.95,
		})
	}
	return in
}

func past(t *rapid.T, name string) time.Time {
	return epoch.Add(-time.Duration(rapid.IntRange(0, 900).Draw(t, name)) * time.Second)
}

// TestAlways checks what holds for every input: bounds, steps, the windows after a change, reasons, bounded memory.
func TestAlways(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		in := drawInput(t)
		d := Plan(in)
		outside := in.Replicas < in.Bounds.Min || in.Replicas > in.Bounds.Max
		switch {
		case d.Replicas < in.Bounds.Min || d.Replicas > in.Bounds.Max:
			t.Fatalf("%d replicas are outside of %d to %d", d.Replicas, in.Bounds.Min, in.Bounds.Max)
		case (d.Reason == "") != (d.Replicas == in.Replicas):
			t.Fatalf("from %d to %d because %q", in.Replicas, d.Replicas, d.Reason)
		case d.Replicas < in.Replicas && !outside && in.Now.Sub(in.UpAt) < in.Spec.Down.After:
			t.Fatalf("from %d to %d only %s after it grew", in.Replicas, d.Replicas, in.Now.Sub(in.UpAt))
		case d.Replicas < in.Replicas && !outside && in.Moving:
			t.Fatalf("from %d to %d in a rollout", in.Replicas, d.Replicas)
		case d.Replicas > in.Replicas && !outside && d.Replicas > in.Replicas+in.Spec.Up.Step.Of(in.Replicas):
			t.Fatalf("from %d to %d is more than a step", in.Replicas, d.Replicas)
		case d.Replicas > 0 && d.Replicas < in.Replicas-in.Spec.Down.Step.Of(in.Replicas) && !outside:
			t.Fatalf("from %d to %d is more than a step", in.Replicas, d.Replicas)
		case len(d.State.needs) > in.Spec.Max+max(in.Bounds.Max, in.Replicas)+1:
			t.Fatalf("%d results are remembered", len(d.State.needs))
		case !d.WakeAt.IsZero() && !d.WakeAt.After(in.Now):
			t.Fatalf("it is to be looked at again at %v, and now is %v", d.WakeAt, in.Now)
		}
		if !slices.IsSortedFunc(d.State.needs, func(a, b need) int { return b.n - a.n }) {
			t.Fatalf("what is remembered does not fall: %v", d.State.needs)
		}
	})
}

// TestMoreLoadNeverFewer checks that a greater load never gives a smaller number.
func TestMoreLoadNeverFewer(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		in := drawInput(t)
		more := in
		more.Samples = slices.Clone(in.Samples)
		factor := rapid.Float64Range(1, 20).Draw(t, "factor")
		for i := range more.Samples {
			s := &more.Samples[i]
			s.Requests, s.InFlight, s.CPU = s.Requests*factor, s.InFlight*factor, s.CPU*factor
		}
		if a, b := Plan(in), Plan(more); b.Replicas < a.Replicas {
			t.Fatalf("%d replicas (%s), and %d (%s) for %.1f times the load", a.Replicas, a.Reason, b.Replicas, b.Reason, factor)
		}
	})
}

// TestConstantLoadComesToRest checks that under a constant load the number goes one way only, and then stays.
func TestConstantLoadComesToRest(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a := drawPolicy(t)
		load := rapid.Float64Range(0.1, 5000).Draw(t, "load")
		in := Input{Spec: a, Replicas: max(1, a.Clamp(rapid.IntRange(1, 25).Draw(t, "replicas"))), Now: epoch}
		in.Ready = in.Replicas
		numbers := []int{in.Replicas}
		for range 4 * int((a.Down.After+10*Stable)/Every) {
			in.Now = in.Now.Add(Every)
			in.Bounds = a.Bounds(in.Now)
			in.Samples = append(in.Samples, Sample{
				At: in.Now, Span: Every, Ready: in.Ready, Counted: true, Weighed: true, Requests: load * Every.Seconds(), InFlight: load * 0.05, CPU: load / float64(100*in.Ready),
			})
			if len(in.Samples) > 20 {
				in.Samples = in.Samples[1:]
			}
			d := Plan(in)
			if d.Replicas > in.Replicas {
				in.UpAt = in.Now
			} else if d.Replicas < in.Replicas {
				in.DownAt = in.Now
			}
			in.Replicas, in.Ready, in.State = d.Replicas, d.Replicas, d.State
			numbers = append(numbers, d.Replicas)
		}
		if n := turns(numbers); n > 0 {
			t.Fatalf("%d turns under a constant load: %v", n, slices.Compact(numbers))
		}
		tail := numbers[len(numbers)*3/4:]
		if slices.Min(tail) != slices.Max(tail) {
			t.Fatalf("it does not come to rest: %v", slices.Compact(numbers))
		}
	})
}
