package autoscale

import (
	"fmt"
	"math"
	"time"

	"baton/internal/model/spec"
)

const (
	// Every is the time between two evaluations, EveryRising that after the demand grew.
	Every       = 5 * time.Second
	EveryRising = 2 * time.Second
	// Stable is the window for going down, and the time between two steps down.
	Stable = time.Minute
	// staleAfter is the age at which the newest sample says nothing any more.
	staleAfter = 15 * time.Second
	// coveredMin is the share of the stable window that samples must cover for going down.
	coveredMin = 0.75
	// WantedFor is how long a sign that somebody wants a resting service counts.
	WantedFor = 3 * time.Second
)

// Sample is what was measured of a service in a span of time.
type Sample struct {
	At   time.Time // its end
	Span time.Duration
	// Ready is how many tasks were ready.
	Ready int
	// Requests ended in it; InFlight were under way on average; 95 of 100 took P95 at most. Counted is false when nothing counted them.
	Counted  bool
	Requests float64
	InFlight float64
	P95      time.Duration
	// CPU is the share used of what a task reserved, Memory its bytes; means over the ready tasks. Weighed is false when nothing measured them.
	Weighed bool
	CPU     float64
	Memory  float64
	// Other is the result of the Prometheus query; Asked is false when there was none.
	Asked bool
	Other float64
	// Partial is true when nodes were missing: there may be more load than this.
	Partial bool
}

// Input is all that a decision follows from.
type Input struct {
	Spec   *spec.Autoscale
	Bounds spec.Bounds // at Now
	// Memory is the target of bytes per task; zero: none.
	Memory float64
	// Replicas are wanted now, Ready are ready, a rollout's additional ones included.
	Replicas, Ready int
	// Moving is true during a rollout.
	Moving bool
	// Samples are of the last minute or more, oldest first.
	Samples []Sample
	// Wanted is the last sign that somebody uses or wants the service, Since the time from which on such signs would be known. Silent is
	// true while there are nodes whose signs would not arrive. Zero Since: signs are not known at all.
	Wanted, Since time.Time
	Silent        bool
	// UpAt and DownAt are the last changes in each direction.
	UpAt, DownAt time.Time
	State        State
	Now          time.Time
}

// State is what one evaluation leaves for the next. It may be lost: then nothing goes down for a while.
type State struct {
	// needs are the results of earlier evaluations, as far as no later one was as high: falling, so at most Max of them.
	needs []need
	began time.Time
	last  float64 // demand of the last evaluation
	took  float64 // seconds that a request took when there was room for it
	p95   latency
}

type need struct {
	at time.Time
	n  int
}

// Decision is what is to be.
type Decision struct {
	Replicas int
	// Reason says why Replicas differs from the input's; empty when it does not.
	Reason string
	// Looked has a line for each target, as it stands.
	Looked []string
	// WakeAt is when to ask again; zero: only when something changes.
	WakeAt time.Time
	State  State
}

// planner is one evaluation.
type planner struct {
	Input
	d       Decision
	demands []demand
	rising  bool // the demand grew
}

// Plan decides how many tasks there are to be now.
func Plan(in Input) Decision {
	p := &planner{Input: in, d: Decision{Replicas: in.Replicas, State: in.State.copy()}}
	if p.d.State.began.IsZero() {
		p.d.State.began = in.Now
	}
	p.measure()
	switch {
	case p.bounded():
	case in.Replicas == 0:
		p.wake()
	case p.rest():
	default:
		p.follow()
	}
	p.again()
	return p.d
}

func (s State) copy() State {
	s.needs = append([]need(nil), s.needs...)
	return s
}

func (p *planner) change(n int, format string, args ...any) {
	p.d.Replicas, p.d.Reason = n, fmt.Sprintf(format, args...)
}

// bounded brings the number within its bounds at once: what a schedule asks for must be there at its time.
func (p *planner) bounded() bool {
	why := "x-autoscale"
	if p.Bounds.Why != "" {
		why = "schedule " + p.Bounds.Why
	}
	switch {
	case p.Replicas < p.Bounds.Min:
		p.change(p.Bounds.Min, "%s: min %d", why, p.Bounds.Min)
	case p.Replicas > p.Bounds.Max:
		p.change(p.Bounds.Max, "%s: max %d", why, p.Bounds.Max)
	default:
		return false
	}
	return true
}

// wake starts a service that rests.
func (p *planner) wake() {
	if !p.Wanted.IsZero() && p.Now.Sub(p.Wanted) <= WantedFor && p.Wanted.After(p.DownAt) {
		p.change(min(1, p.Bounds.Max), "somebody wants it: a request or a connection waits")
		return
	}
	for _, d := range p.demands {
		if d.other && d.up > 0 {
			n := min(p.capped(d.up), p.Spec.Up.Step.Of(0))
			p.change(n, "%s", d.text(n))
			return
		}
	}
}

// rest reports whether nobody has used the service for long enough, and lets it rest.
func (p *planner) rest() bool {
	idle := p.Now.Sub(later(p.Wanted, p.Since))
	after := p.Spec.Down.After
	if p.Bounds.Min > 0 || p.Since.IsZero() || p.Silent || p.Moving || p.Ready == 0 || idle < after || p.Now.Sub(p.UpAt) < after {
		return false
	}
	for _, s := range p.Samples {
		if s.Counted && (s.Requests > 0 || s.InFlight > 0) && p.Now.Sub(s.At) < after {
			return false
		}
	}
	for _, d := range p.demands {
		if d.other && d.up > 0 {
			return false
		}
	}
	p.change(0, "nobody used it for %s", seconds(idle))
	return true
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

// follow goes after the load.
func (p *planner) follow() {
	if len(p.demands) == 0 || p.stale() {
		p.remember(p.Replicas) // what is not known holds the number for as long as what is
		return
	}
	up, down := p.demands[0], p.demands[0]
	for _, d := range p.demands[1:] {
		if d.up > up.up {
			up = d
		}
		if d.down > down.down {
			down = d
		}
	}
	p.rising = up.up > rising*p.State.last
	p.d.State.last = up.up
	if up.up > float64(p.Replicas)*(1+p.Spec.Tolerance) && p.capped(up.up) > p.Replicas {
		p.remember(p.capped(up.up))
		p.rise(up)
		return
	}
	fewer := p.Replicas
	if down.down < float64(p.Replicas)*(1-p.Spec.Tolerance) && !p.partial() {
		fewer = min(p.Replicas, max(p.capped(down.down), p.capped(up.up)))
	}
	p.remember(fewer)
	p.fall(down)
}

// rising is how much more demand than at the evaluation before counts as growing.
const rising = 1.1

func (p *planner) rise(d demand) {
	need := p.capped(d.up)
	n := min(need, p.Replicas+p.Spec.Up.Step.Of(p.Replicas))
	reason := d.text(n)
	switch {
	case n < need:
		reason += fmt.Sprintf(", one step towards %d", need)
	case n < int(math.Ceil(d.up)):
		reason += fmt.Sprintf(", which is max; %d would be needed", int(math.Ceil(d.up)))
	}
	p.change(n, "%s", reason)
}

// fall makes one step down, if fewer have been enough for long enough.
func (p *planner) fall(d demand) {
	after := p.Spec.Down.After
	need := p.d.State.needs[0].n // the highest of what is remembered
	if need >= p.Replicas || p.Moving || p.partial() || !p.covered() ||
		p.Now.Sub(p.d.State.began) < after || p.Now.Sub(p.UpAt) < after || p.Now.Sub(p.DownAt) < Stable {
		return
	}
	n := max(need, p.Replicas-p.Spec.Down.Step.Of(p.Replicas))
	reason := d.calm(n)
	if n > need {
		reason += fmt.Sprintf(", one step towards %d", need)
	}
	p.change(n, "%s; no more than %d were needed for %s", reason, need, seconds(after))
}

// remember adds the result of this evaluation to those of the last `after`, of which only the highest matters.
func (p *planner) remember(n int) {
	s := &p.d.State
	for len(s.needs) > 0 && p.Now.Sub(s.needs[0].at) > p.Spec.Down.After {
		s.needs = s.needs[1:]
	}
	for len(s.needs) > 0 && s.needs[len(s.needs)-1].n <= n {
		s.needs = s.needs[:len(s.needs)-1]
	}
	s.needs = append(s.needs, need{p.Now, n})
}

// capped is a demand as a number of replicas within the bounds. Only rest goes below one.
func (p *planner) capped(demand float64) int {
	n := p.Bounds.Max
	if demand < float64(n) {
		n = int(math.Ceil(demand - rounding))
	}
	return min(max(n, p.Bounds.Min, 1), max(p.Bounds.Max, 1))
}

// rounding keeps 240/80 from being a little more than 3.
const rounding = 1e-9

// stale reports whether the newest sample says nothing about now.
func (p *planner) stale() bool {
	return len(p.Samples) == 0 || p.Now.Sub(p.Samples[len(p.Samples)-1].At) > staleAfter
}

// partial reports whether a sample of the stable window missed a node: then there may be more load than is known.
func (p *planner) partial() bool {
	for _, s := range p.within(Stable) {
		if s.Partial {
			return true
		}
	}
	return false
}

// covered reports whether the samples of the stable window are enough to go down by.
func (p *planner) covered() bool {
	var sum time.Duration
	for _, s := range p.within(Stable) {
		sum += s.Span
	}
	return sum >= time.Duration(coveredMin*float64(Stable))
}

// within are the samples that ended in the last d.
func (p *planner) within(d time.Duration) []Sample {
	i := len(p.Samples)
	for i > 0 && p.Now.Sub(p.Samples[i-1].At) < d {
		i--
	}
	return p.Samples[i:]
}

// again says when to ask next.
func (p *planner) again() {
	at := p.Now.Add(Every)
	t := p.Spec.Target
	switch {
	case p.d.Replicas == 0 && p.d.Reason == "" && t.Prometheus == nil, t == (spec.ScaleTarget{}) && p.Spec.Min > 0:
		at = p.Bounds.Until
	case p.rising || p.d.Replicas > p.Replicas:
		at = p.Now.Add(EveryRising)
	}
	if u := p.Bounds.Until; !u.IsZero() && (at.IsZero() || u.Before(at)) {
		at = u
	}
	p.d.WakeAt = at
}
