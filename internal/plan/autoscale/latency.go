package autoscale

import (
	"fmt"
	"time"
)

// A latency is no demand: twice the load does not double it, and more replicas do not shorten what one request takes. So it
// counts like this:
//
//   - Above the target (and the tolerance), with more under way per replica, or more cpu, than when the target was met last: half of what
//     is missing is added (200 ms where 100 are wanted: half as many again), twice as many at most.
//   - Then nothing more until these replicas are ready and a fast window has passed.
//   - If two such steps did not make it a tenth better, more replicas are not what it lacks: no further step until the target is met once, or
//     for ten minutes.
//   - Below the target it asks for as many replicas as keep what is under way per replica at 80 % of the most at which the target
//     was met. So it never undoes what it has just done.
//   - Fewer than 20 requests are no percentile. They ask for nothing more; fewer than 20 in the stable window for nothing at all.
const (
	latencyRequests = 20
	latencyDamping  = 2
	latencyMost     = 2.0
	latencyGrowth   = 1.2
	latencyBetter   = 0.9
	latencyTries    = 2
	latencyPause    = 10 * time.Minute
	latencyRoom     = 0.8
)

// latency is what is remembered of a latency target.
type latency struct {
	calm        float64 // the most under way per replica with which the target was met
	inFlight    float64 // under way per replica when it was met last, and cpu
	cpu         float64
	met         bool
	stepped     time.Time // last step up
	before      time.Duration
	futile      int // steps in a row that did not help
	outstanding bool
}

func (p *planner) latency() {
	fast, slow := p.within(p.Spec.Up.Window), p.within(Stable)
	many, few := requests(fast), requests(slow)
	if len(slow) == 0 || !slow[len(slow)-1].Counted {
		return
	}
	ready := float64(max(p.Ready, 1))
	now, span, _ := mean(fast, counts, func(s Sample) float64 { return s.InFlight })
	calmly, slowSpan, _ := mean(slow, counts, func(s Sample) float64 { return s.InFlight })
	cpu, _, _ := mean(fast, func(s Sample) bool { return s.Weighed }, func(s Sample) float64 { return s.CPU })
	p95 := percentile(fast)
	d := demand{name: "p95", how: p.latencyText(p95, span), calmly: p.latencyText(percentile(slow), slowSpan)}
	m := &p.d.State.p95
	switch {
	case few < latencyRequests: // nothing to judge
	case many < latencyRequests:
		d.down = float64(p.Replicas)
	case p95 <= p.Spec.Target.P95:
		m.met, m.futile, m.outstanding = true, 0, false
		m.inFlight, m.cpu, m.calm = now/ready, cpu, max(m.calm, now/ready)
	case float64(p95) > float64(p.Spec.Target.P95)*(1+p.Spec.Tolerance):
		m.calm = min(m.calm, latencyBetter*now/ready)
		d.up = p.latencyStep(p95, now/ready, cpu)
		d.down = float64(p.Replicas)
	default:
		d.down = float64(p.Replicas)
	}
	if few >= latencyRequests && d.down == 0 {
		d.down = float64(p.Replicas)
		if m.calm > 0 {
			d.down = min(d.down, calmly/(latencyRoom*m.calm))
		}
	}
	d.up = max(d.up, 0)
	if d.up > float64(p.Replicas) {
		m.stepped, m.before, m.outstanding = p.Now, p95, true
	}
	p.demands = append(p.demands, d)
}

// latencyStep is the number of replicas that a latency above the target asks for, zero for none.
func (p *planner) latencyStep(p95 time.Duration, inFlight, cpu float64) float64 {
	m := &p.d.State.p95
	if m.met && inFlight < latencyGrowth*m.inFlight && cpu <= latencyGrowth*m.cpu {
		return 0 // no busier than when it was fast: something else is slow
	}
	if m.outstanding {
		if p.Ready < p.Replicas || p.Now.Sub(m.stepped) < p.Spec.Up.Window+Every {
			return 0
		}
		m.outstanding = false
		if float64(p95) > latencyBetter*float64(m.before) {
			m.futile++
		} else {
			m.futile = 0
		}
	}
	if m.futile >= latencyTries {
		if p.Now.Sub(m.stepped) < latencyPause {
			return 0
		}
		m.futile = latencyTries - 1
	}
	missing := float64(p95)/float64(p.Spec.Target.P95) - 1
	// At least one more: the tolerance for demands is not meant for this one.
	return float64(p.Replicas) * max(min(1+missing/latencyDamping, latencyMost), 1+1.01*p.Spec.Tolerance)
}

func (p *planner) latencyText(p95 time.Duration, span time.Duration) string {
	return fmt.Sprintf("p95 %s over %s with %d ready; target %s", millis(p95), seconds(span), p.Ready, millis(p.Spec.Target.P95))
}

func millis(d time.Duration) string {
	if d >= time.Second {
		return d.Round(10 * time.Millisecond).String()
	}
	return d.Round(time.Millisecond).String()
}

func requests(list []Sample) float64 {
	sum := 0.0
	for _, s := range list {
		if s.Counted {
			sum += s.Requests
		}
	}
	return sum
}

// percentile is the mean of the samples' percentiles, weighted by their requests: near enough for windows of like load.
func percentile(list []Sample) time.Duration {
	sum, n := 0.0, 0.0
	for _, s := range list {
		if s.Counted && s.Requests > 0 {
			sum += float64(s.P95) * s.Requests
			n += s.Requests
		}
	}
	if n == 0 {
		return 0
	}
	return time.Duration(sum / n)
}
