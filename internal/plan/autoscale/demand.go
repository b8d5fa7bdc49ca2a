package autoscale

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
)

// demand is how many replicas a target wants.
type demand struct {
	name string
	// up is what the fast look at the load asks for, down what the stable window does.
	up, down float64
	other    bool // it is known without any task
	// how and calmly say what was seen, without the result.
	how, calmly string
}

// text is the reason for n replicas by the fast look, calm by the stable window.
func (d demand) text(n int) string { return fmt.Sprintf("%s → %d", d.how, n) }
func (d demand) calm(n int) string { return fmt.Sprintf("%s → %d", d.calmly, n) }

// confidence is how many standard deviations of its count a short look at the load may be above the truth.
const confidence = 2

// measure works out what each target wants, as far as its measure is known.
func (p *planner) measure() {
	t := p.Spec.Target
	p.Samples = arrivals(p.Samples)
	if t.RPS > 0 {
		p.rate(t.RPS)
	}
	if t.InFlight > 0 {
		p.inFlight(t.InFlight)
	}
	if t.P95 > 0 {
		p.latency()
	}
	if t.CPU > 0 {
		p.weighed("cpu", t.CPU, share, func(s Sample) float64 { return s.CPU })
	}
	if p.Memory > 0 {
		p.weighed("memory", p.Memory, megabytes, func(s Sample) float64 { return s.Memory })
	}
	if t.Prometheus != nil {
		p.asked(t.Prometheus.PerReplica)
	}
	for _, d := range p.demands {
		p.d.Looked = append(p.d.Looked, d.text(int(math.Ceil(d.up-rounding))))
	}
}

// rate is the demand of requests per second: the highest of what the stable window, the fast one and the last sample say, the latter
// two as far as that cannot be chance.
func (p *planner) rate(target float64) {
	perSecond := func(s Sample) float64 { return s.Requests / s.Span.Seconds() }
	p.counted("req/s", target, perSecond, func(d *demand, show func(float64, time.Duration) string) {
		quick := p.within(p.Spec.Up.Window)
		if v, span, _ := mean(quick, counts, perSecond); v*likely(quick) > d.up {
			d.up, d.how = v*likely(quick), show(v, span)
		}
		last := p.Samples[len(p.Samples)-1:]
		if v := perSecond(last[0]); last[0].Counted && v*likely(last) > d.up {
			d.up, d.how = v*likely(last), show(v, last[0].Span)
		}
	})
}

// inFlight is the demand of requests under way. What waits because there were too few replicas for a moment would ask for a multiple of what
// the load needs, and be gone by the time they are there. So a jump counts by Little's law: what comes per second times what a request took
// while there was room, and what has piled up spread over the time in which it is to be worked off. When requests have become
// slower, and not only wait, the median of the stable window shows it.
func (p *planner) inFlight(target float64) {
	under := func(s Sample) float64 { return s.InFlight }
	p.counted("under way", target, under, func(d *demand, show func(float64, time.Duration) string) {
		if v := median(p.within(Stable), under); v < d.up {
			d.up, d.how = v, show(v, Stable)
		}
		quick := p.within(p.Spec.Up.Window)
		last := quick[len(quick)-1:]
		for _, list := range [][]Sample{quick, last} {
			v, span, ok := mean(list, counts, under)
			if !ok {
				continue
			}
			comes, _, _ := mean(list, counts, func(s Sample) float64 { return s.Requests / s.Span.Seconds() })
			if took := p.d.State.took; took > 0 && comes > 0 {
				flow := comes * took
				v = min(v, flow+max(0, v-flow)*took/workOff.Seconds())
			}
			if v > d.up {
				d.up, d.how = v, show(v, span)
			}
		}
		if s := last[0]; s.Counted && s.Requests >= latencyRequests && s.InFlight <= target*float64(p.Ready)*(1+p.Spec.Tolerance) {
			p.d.State.took = s.InFlight / (s.Requests / s.Span.Seconds())
		}
	})
}

// workOff is the time in which what has piled up is to be worked off.
const workOff = 15 * time.Second

// counted adds the demand of a number that belongs to the whole service: the stable window's, which sharpen may raise or lower.
func (p *planner) counted(name string, target float64, value func(Sample) float64, sharpen func(*demand, func(float64, time.Duration) string)) {
	slow, span, ok := mean(p.within(Stable), counts, value)
	if _, _, fresh := mean(p.within(p.Spec.Up.Window), counts, value); !ok || !fresh {
		return
	}
	show := func(v float64, span time.Duration) string {
		return fmt.Sprintf("%s %s over %s = %s per replica of %d; target %s", number(v), name, seconds(span), number(v/float64(max(p.Ready, 1))), p.Ready, number(target))
	}
	d := demand{name: name, up: slow, down: slow / target, how: show(slow, span), calmly: show(slow, span)}
	sharpen(&d, show)
	d.up /= target
	p.demands = append(p.demands, d)
}

// arrivals gives samples the requests that came in place of those that ended. Where a service is at its limit, requests end no faster
// than it works, and faster than they come while it works off what has piled up.
func arrivals(list []Sample) []Sample {
	out := append([]Sample(nil), list...)
	for i := 1; i < len(out); i++ {
		s, before := &out[i], list[i-1]
		if between := (s.Span + before.Span).Seconds() / 2; s.Counted && before.Counted && between > 0 {
			s.Requests = max(0, s.Requests+(s.InFlight-before.InFlight)/between*s.Span.Seconds())
		}
	}
	return out
}

// median is the middle of the samples that were counted.
func median(list []Sample, value func(Sample) float64) float64 {
	var values []float64
	for _, s := range list {
		if s.Counted {
			values = append(values, value(s))
		}
	}
	if len(values) == 0 {
		return 0
	}
	slices.Sort(values)
	return values[len(values)/2]
}

// likely is the share of a count that is there for sure: requests that come by themselves vary by the root of their number.
func likely(list []Sample) float64 {
	n := 0.0
	for _, s := range list {
		if s.Counted {
			n += max(s.Requests, s.InFlight)
		}
	}
	if n <= 0 {
		return 0
	}
	return max(0, 1-confidence/math.Sqrt(n))
}

// weighed is the demand of a number that each ready task has.
func (p *planner) weighed(name string, target float64, show func(float64) string, value func(Sample) float64) {
	total := func(s Sample) float64 { return value(s) * float64(s.Ready) }
	known := func(s Sample) bool { return s.Weighed && s.Ready > 0 }
	fast, span, ok := mean(p.within(p.Spec.Up.Window), known, total)
	slow, slowSpan, _ := mean(p.within(Stable), known, total)
	if !ok {
		return
	}
	how := func(v float64, span time.Duration) string {
		return fmt.Sprintf("%s %s per replica of %d over %s; target %s", show(v/float64(max(p.Ready, 1))), name, p.Ready, seconds(span), show(target))
	}
	p.demands = append(p.demands, demand{name: name, up: fast / target, down: slow / target, how: how(fast, span), calmly: how(slow, slowSpan)})
}

// asked is the demand of a Prometheus query.
func (p *planner) asked(target float64) {
	answered := func(s Sample) bool { return s.Asked && s.Other >= 0 }
	value := func(s Sample) float64 { return s.Other }
	fast, _, ok := mean(p.within(p.Spec.Up.Window), answered, value)
	slow, _, _ := mean(p.within(Stable), answered, value)
	if !ok {
		return
	}
	how := func(v float64) string {
		return fmt.Sprintf("the query gives %s; target %s per replica", number(v), number(target))
	}
	p.demands = append(p.demands, demand{name: "prometheus", up: fast / target, down: slow / target, other: true, how: how(fast), calmly: how(slow)})
}

func counts(s Sample) bool { return s.Counted }

// mean is the mean of a value over the samples that know it, weighted by their spans.
func mean(list []Sample, known func(Sample) bool, value func(Sample) float64) (v float64, span time.Duration, ok bool) {
	for _, s := range list {
		if known(s) && s.Span > 0 {
			v += value(s) * s.Span.Seconds()
			span += s.Span
		}
	}
	if span == 0 {
		return 0, 0, false
	}
	return v / span.Seconds(), span, true
}

// number writes a number as people read it.
func number(v float64) string {
	if v >= 10 || v == math.Trunc(v) {
		return strconv.FormatFloat(math.Round(v), 'f', -1, 64)
	}
	return strconv.FormatFloat(v, 'f', 1, 64)
}

func share(v float64) string     { return number(100*v) + " %" }
func megabytes(v float64) string { return number(v/(1<<20)) + " MiB" }

// seconds is 1m30s, 5m or 2h.
func seconds(d time.Duration) string {
	if d >= time.Second {
		d = d.Round(time.Second)
	}
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}
