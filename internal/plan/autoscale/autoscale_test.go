package autoscale

import (
	"strings"
	"testing"
	"time"

	"baton/internal/model/spec"
)

var epoch = time.Date(2026, 3, 2, 12, 0, 0, 0, time.UTC)

// scaled is a policy with its defaults.
func scaled(least, most int, t spec.ScaleTarget, change ...func(*spec.Autoscale)) *spec.Autoscale {
	a := &spec.Autoscale{Min: least, Max: most, Target: t}
	for _, c := range change {
		c(a)
	}
	s := spec.Stack{Name: "s", Services: []spec.Service{{Name: "web", Image: "web", Replicas: 1, Autoscale: a, Resources: spec.Resources{
		Reservations: spec.Reservations{CPU: 500, Memory: 100 << 20},
	}}}}
	s.SetDefaults()
	if err := s.Validate(); err != nil {
		panic(err)
	}
	return a
}

// steady is an input after a long time of a constant load, of which set makes each sample.
func steady(a *spec.Autoscale, replicas int, set func(*Sample)) Input {
	in := Input{
		Spec: a, Bounds: a.Bounds(epoch), Replicas: replicas, Ready: replicas, Now: epoch,
		State: State{began: epoch.Add(-24 * time.Hour), needs: []need{{epoch.Add(-10 * time.Minute), replicas}}},
	}
	for at := epoch.Add(-Stable + Every); !at.After(epoch); at = at.Add(Every) {
		s := Sample{At: at, Span: Every, Ready: replicas, Counted: true}
		if set != nil {
			set(&s)
		}
		in.Samples = append(in.Samples, s)
	}
	return in
}

// rate gives samples so many requests per second, which take 50 ms each.
func rate(perSecond float64) func(*Sample) {
	return func(s *Sample) {
		s.Requests, s.InFlight, s.P95 = perSecond*s.Span.Seconds(), perSecond*0.05, 80*time.Millisecond
	}
}

type planCase struct {
	name   string
	in     Input
	want   int
	reason string // that it must contain; empty: none at all
}

func planCases() []planCase {
	rps := scaled(1, 20, spec.ScaleTarget{RPS: 80})
	both := scaled(1, 20, spec.ScaleTarget{RPS: 80, CPU: 0.5})
	cpu := scaled(1, 20, spec.ScaleTarget{CPU: 0.5})
	busy := func(v float64) func(*Sample) { return func(s *Sample) { s.Weighed, s.CPU = true, v } }
	with := func(in Input, f func(*Input)) Input { f(&in); return in }
	return []planCase{
		{"as wanted", steady(rps, 5, rate(400)), 5, ""},
		{"within the tolerance", steady(rps, 5, rate(430)), 5, ""},
		{"more", steady(rps, 5, rate(448)), 6, "448 req/s over 1m = 90 per replica of 5; target 80 → 6"},
		{"much more is one step", steady(scaled(1, 99, spec.ScaleTarget{RPS: 80}), 2, rate(8000)), 8, "one step towards 9"},
		{"more than max", steady(scaled(1, 6, spec.ScaleTarget{RPS: 80}), 5, rate(800)), 6, "which is max; 10 would be needed"},
		{"less", steady(rps, 10, rate(400)), 5, "400 req/s over 1m = 40 per replica of 10; target 80 → 5; no more than 5 were needed for 5m"},
		{"much less is one step", steady(rps, 16, rate(100)), 8, "one step towards 2"},
		{"less, but not for long", with(steady(rps, 10, rate(400)), func(in *Input) {
			in.State.needs = []need{{epoch.Add(-4 * time.Minute), 9}}
		}), 9, "no more than 9"},
		{"less, but it grew just now", with(steady(rps, 10, rate(400)), func(in *Input) { in.UpAt = epoch.Add(-4 * time.Minute) }), 10, ""},
		{"less, but it shrank just now", with(steady(rps, 10, rate(400)), func(in *Input) { in.DownAt = epoch.Add(-50 * time.Second) }), 10, ""},
		{"less, but in a rollout", with(steady(rps, 10, rate(400)), func(in *Input) { in.Moving, in.Ready = true, 12 }), 10, ""},
		{"more in a rollout", with(steady(rps, 5, rate(800)), func(in *Input) { in.Moving, in.Ready = true, 6 }), 10, "→ 10"},
		{"less, but a node is missing", with(steady(rps, 10, rate(400)), func(in *Input) { in.Samples[3].Partial = true }), 10, ""},
		{"less, but not known for long", with(steady(rps, 10, rate(400)), func(in *Input) { in.Samples = in.Samples[8:] }), 10, ""},
		{"no sample at all", with(steady(rps, 10, rate(400)), func(in *Input) { in.Samples = nil }), 10, ""},
		{"old samples", with(steady(rps, 10, rate(4000)), func(in *Input) { in.Now = epoch.Add(16 * time.Second) }), 10, ""},
		{"new leader", with(steady(rps, 10, rate(400)), func(in *Input) { in.State = State{} }), 10, ""},
		{"the highest target", steady(both, 4, func(s *Sample) { rate(500)(s); busy(0.9)(s) }), 8, "90 % cpu per replica of 4"},
		{"the other target", steady(both, 4, func(s *Sample) { rate(800)(s); busy(0.5)(s) }), 10, "→ 10"},
		{"unready tasks are no divisor", with(steady(cpu, 4, busy(0.9)), func(in *Input) { in.Replicas = 8 }), 8, ""},
		{"surge tasks do not count", with(steady(cpu, 5, busy(0.5)), func(in *Input) { in.Replicas, in.Moving = 4, true }), 5, "→ 5"},
		{"below the bounds", with(steady(rps, 2, rate(100)), func(in *Input) { in.Bounds = spec.Bounds{Min: 6, Max: 20, Why: `"0 18 * * 5" for 5h`} }), 6, `schedule "0 18 * * 5" for 5h: min 6`},
		{"above the bounds", with(steady(rps, 7, rate(700)), func(in *Input) { in.Bounds.Max = 3 }), 3, "max 3"},
		{"a jump that just came", with(steady(rps, 2, rate(100)), func(in *Input) { rate(600)(&in.Samples[len(in.Samples)-1]) }), 8, "605 req/s over 5s"},
		{"a jump that may be chance", with(steady(scaled(1, 9, spec.ScaleTarget{RPS: 0.3}), 1, rate(0.2)), func(in *Input) { rate(0.6)(&in.Samples[len(in.Samples)-1]) }), 1, ""},
		{"what piles up", with(steady(rps, 2, rate(170)), func(in *Input) { in.Samples[len(in.Samples)-1].InFlight = 800 }), 4, "→ 4"},
		{"a query", steady(scaled(1, 9, spec.ScaleTarget{Prometheus: &spec.PrometheusTarget{URL: "http://p", Query: "q", PerReplica: 10}}), 2, func(s *Sample) { s.Asked, s.Other = true, 41 }), 5, "the query gives 41; target 10 per replica → 5"},
		{"memory", with(steady(scaled(1, 9, spec.ScaleTarget{MemoryBytes: 50 << 20}), 2, func(s *Sample) { s.Weighed, s.Memory = true, 100<<20 }), func(in *Input) { in.Memory = 50 << 20 }), 4, "100 MiB memory per replica of 2"},
	}
}

func TestPlan(t *testing.T) {
	for _, tc := range planCases() {
		t.Run(tc.name, func(t *testing.T) {
			d := Plan(tc.in)
			if d.Replicas != tc.want || !strings.Contains(d.Reason, tc.reason) || (tc.reason == "") != (d.Reason == "") {
				t.Errorf("got %d because %q, want %d because %q\n%s", d.Replicas, d.Reason, tc.want, tc.reason, strings.Join(d.Looked, "\n"))
			}
		})
	}
}

func TestRestAndWake(t *testing.T) {
	a := scaled(0, 5, spec.ScaleTarget{RPS: 80}, func(a *spec.Autoscale) { a.Down.After = time.Minute })
	quiet := func(change ...func(*Input)) Input {
		in := steady(a, 1, nil)
		in.Since, in.Wanted, in.UpAt = epoch.Add(-time.Hour), epoch.Add(-61*time.Second), epoch.Add(-time.Hour)
		for _, c := range change {
			c(&in)
		}
		return in
	}
	for _, tc := range []struct {
		name   string
		in     Input
		want   int
		reason string
	}{
		{"unused", quiet(), 0, "nobody used it for 1m1s"},
		{"unused, with three tasks", quiet(func(in *Input) { in.Replicas, in.Ready = 3, 3 }), 0, "nobody used it"},
		{"without any measure", quiet(func(in *Input) { in.Samples = nil }), 0, "nobody used it"},
		{"used", quiet(func(in *Input) { in.Wanted = epoch.Add(-59 * time.Second) }), 1, ""},
		{"under way", quiet(func(in *Input) { in.Samples[11].InFlight = 0.1 }), 1, ""},
		{"a node that is silent", quiet(func(in *Input) { in.Silent = true }), 1, ""},
		{"signs are not known", quiet(func(in *Input) { in.Since = time.Time{} }), 1, ""},
		{"new leader", quiet(func(in *Input) { in.Since = epoch.Add(-59 * time.Second) }), 1, ""},
		{"woken just now", quiet(func(in *Input) { in.UpAt = epoch.Add(-59 * time.Second) }), 1, ""},
		{"not ready yet", quiet(func(in *Input) { in.Ready = 0 }), 1, ""},
		{"in a rollout", quiet(func(in *Input) { in.Moving = true }), 1, ""},
		{"its schedule wants one", quiet(func(in *Input) { in.Bounds.Min = 1 }), 1, ""},
		{"wanted again", quiet(func(in *Input) { in.Replicas, in.Ready, in.Wanted = 0, 0, epoch }), 1, "somebody wants it"},
		{"not wanted", quiet(func(in *Input) { in.Replicas, in.Ready, in.DownAt = 0, 0, epoch.Add(-time.Second) }), 0, ""},
		{"wanted before it rested", quiet(func(in *Input) {
			in.Replicas, in.Ready, in.DownAt, in.Wanted = 0, 0, epoch.Add(-time.Second), epoch.Add(-2*time.Second)
		}), 0, ""},
		{"its schedule wakes it", quiet(func(in *Input) { in.Replicas, in.Ready, in.Bounds.Min = 0, 0, 2 }), 2, "min 2"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			d := Plan(tc.in)
			if d.Replicas != tc.want || !strings.Contains(d.Reason, tc.reason) || (tc.reason == "") != (d.Reason == "") {
				t.Errorf("got %d because %q, want %d because %q", d.Replicas, d.Reason, tc.want, tc.reason)
			}
		})
	}
	if d := Plan(quiet(func(in *Input) { in.Replicas, in.Ready = 0, 0 })); !d.WakeAt.IsZero() {
		t.Errorf("a service that rests is looked at again at %v, want never", d.WakeAt)
	}
}

// TestLatency checks that a latency scales up only while that helps, and comes to rest.
func TestLatency(t *testing.T) {
	a := scaled(1, 64, spec.ScaleTarget{P95: 100 * time.Millisecond})
	run := func(replicas int, rounds int, p95 func(replicas int) time.Duration, inFlight func(replicas int) float64) []int {
		var state State
		var numbers []int
		var samples []Sample
		now := epoch
		var up, down time.Time
		for range rounds {
			samples = append(samples, Sample{At: now, Span: Every, Ready: replicas, Counted: true, Requests: 500, InFlight: inFlight(replicas), P95: p95(replicas)})
			if len(samples) > 20 {
				samples = samples[1:]
			}
			d := Plan(Input{Spec: a, Bounds: a.Bounds(now), Replicas: replicas, Ready: replicas, Samples: samples, UpAt: up, DownAt: down, State: state, Now: now})
			if d.Replicas > replicas {
				up = now
			} else if d.Replicas < replicas {
				down = now
			}
			state, replicas, now = d.State, d.Replicas, now.Add(Every)
			numbers = append(numbers, replicas)
		}
		return numbers
	}
	slow := func(int) time.Duration { return 400 * time.Millisecond }
	if got := run(2, 100, slow, func(int) float64 { return 40 }); got[99] > 8 {
		t.Errorf("a latency that more replicas do not better made 2 replicas %d, want at most two steps, to 8: %v", got[99], got)
	}
	crowded := func(n int) time.Duration { return time.Duration(800/n) * time.Millisecond }
	got := run(2, 400, crowded, func(n int) float64 { return 0.1 * float64(800/n) })
	if last := got[399]; last < 8 || last > 16 {
		t.Errorf("800 ms divided by the replicas came to rest at %d replicas, want 8 to 16: %v", last, got)
	}
	if turns(got) > 1 {
		t.Errorf("under a constant load the number turned %d times: %v", turns(got), got)
	}
	calls := 0
	elsewhere := func(int) time.Duration { // fast at first, then the database is slow; nothing more is under way
		if calls++; calls < 20 {
			return 50 * time.Millisecond
		}
		return 500 * time.Millisecond
	}
	if got := run(2, 100, elsewhere, func(int) float64 { return 40 }); got[99] != 2 {
		t.Errorf("what is slow without being busier went to %d replicas, want 2", got[99])
	}
}

// turns counts the changes of direction.
func turns(numbers []int) int {
	n, direction := 0, 0
	for i := 1; i < len(numbers); i++ {
		d := numbers[i] - numbers[i-1]
		if d == 0 {
			continue
		}
		if direction != 0 && d > 0 != (direction > 0) {
			n++
		}
		direction = d
	}
	return n
}
