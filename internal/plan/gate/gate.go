package gate

import (
	"fmt"
	"math"
	"time"

	"baton/internal/model/spec"
)

const (
	// Alpha is the chance that one test fails a revision that is as good as it should be, over the whole of a rollout.
	Alpha = 1.0 / 400
	// sure is the chance that one test passes a revision early that is worse than it should be; at the end of the baking it would pass
	// anyway, unless it fails.
	sure = 1.0 / 20
	// FewestRequests of the new revision are needed to judge it by them.
	FewestRequests = 100
	// slow is the share of requests that may be slower than the 95th percentile.
	slow = 0.05
	// rounding is how exact bounds are: 1 part of so many.
	rounding = 1000
	// deviations widen the stable revision's quantile to its upper confidence bound.
	deviations = 3
)

// Counts are what became of the requests of one revision in an interval.
type Counts struct {
	Requests uint64
	Errors   uint64   // answered with 5xx, or failed between client and task
	Latency  []uint64 // by bucket; all of one State have the same buckets
}

func (c *Counts) add(o Counts) {
	c.Requests += o.Requests
	c.Errors += min(o.Errors, o.Requests)
	if len(c.Latency) < len(o.Latency) {
		c.Latency = append(c.Latency, make([]uint64, len(o.Latency)-len(c.Latency))...)
	}
	for i, n := range o.Latency {
		c.Latency[i] += n
	}
}

// Accumulate adds to sum what came since before; both only grow, unless who counts began anew: then it is nothing.
func Accumulate(sum *Counts, now, before Counts) {
	if now.Requests < before.Requests || now.Errors < before.Errors || len(now.Latency) < len(before.Latency) {
		return
	}
	d := Counts{Requests: now.Requests - before.Requests, Errors: now.Errors - before.Errors, Latency: append([]uint64(nil), now.Latency...)}
	for i, n := range before.Latency {
		d.Latency[i] -= min(n, d.Latency[i])
	}
	sum.add(d)
}

// State is the evidence so far. The zero State is none.
type State struct {
	fresh, stable Counts
	relative      [len(ratios)]float64 // log-likelihood ratios of the errors against the stable revision's
}

// The alternatives that the tests weigh against the null hypothesis: so many times as many errors, or slow requests, as are allowed. Few
// alternatives cost little: each halving of the weight is some 0.7 of the 6 that ln(1/Alpha) is.
var ratios = [...]float64{1.5, 2, 4, 12}

// The alternatives that speak for a revision.
var better = [...]float64{0.6, 0.3, 0.01}

// Add adds an interval: what the new and the stable revision had in the same time.
func (s *State) Add(fresh, stable Counts) {
	s.fresh.add(fresh)
	s.stable.add(stable)
	if fresh.Requests == 0 || stable.Requests == 0 {
		return // errors of a time in which only one had requests compare with nothing
	}
	q := float64(fresh.Requests) / float64(fresh.Requests+stable.Requests)
	for i, r := range ratios {
		total := math.Log(r*q + 1 - q)
		s.relative[i] += float64(min(fresh.Errors, fresh.Requests))*(math.Log(r)-total) - float64(min(stable.Errors, stable.Requests))*total
	}
}

// Outcome is what the tests say.
type Outcome int

// The outcomes.
const (
	Open   Outcome = iota // not enough is known
	Passed                // as good as it should be, for sure
	Failed                // worse, for sure
)

// Verdict is an outcome with its numbers.
type Verdict struct {
	Outcome Outcome
	Few     bool   // too few requests to judge by
	Text    string // what was compared
}

// Bounds gives the upper bound of a bucket of latencies.
type Bounds func(bucket int) time.Duration

// Judge tells what the evidence says of the new revision.
func (s *State) Judge(g spec.Gates, bounds Bounds) Verdict {
	if s.fresh.Requests < FewestRequests {
		return Verdict{Few: true, Text: fmt.Sprintf("%d requests are too few to judge by, %d are needed", s.fresh.Requests, FewestRequests)}
	}
	v := Verdict{Outcome: Passed}
	for _, test := range []func(spec.Gates, Bounds) (Outcome, string){s.errors, s.latency} {
		outcome, text := test(g, bounds)
		switch {
		case text == "":
			continue // not asked for
		case outcome == Failed:
			return Verdict{Outcome: Failed, Text: text}
		case outcome == Open:
			v.Outcome = Open
		}
		if v.Text != "" {
			v.Text += "; "
		}
		v.Text += text
	}
	return v
}

func (s *State) errors(g spec.Gates, _ Bounds) (Outcome, string) {
	if g.ErrorRate <= 0 {
		return Passed, ""
	}
	text := fmt.Sprintf("error rate %s of %d requests, limit %s, stable %s of %d", percent(s.fresh.Errors, s.fresh.Requests), s.fresh.Requests,
		percentOf(g.ErrorRate), percent(s.stable.Errors, s.stable.Requests), s.stable.Requests)
	x, n := float64(s.fresh.Errors), float64(s.fresh.Requests)
	worse := s.stable.Requests == 0 || mixture(s.relative[:]) >= 1/Alpha
	return outcome(x, n, g.ErrorRate, worse), text
}

func (s *State) latency(g spec.Gates, bounds Bounds) (Outcome, string) {
	limit, first := g.P95, 0
	if g.P95Stable > 0 {
		q, ok := upper(s.stable.Latency)
		if !ok {
			return Open, "p95: the stable revision has too few requests to compare with"
		}
		limit = time.Duration(float64(bounds(q)) * g.P95Stable)
	}
	if limit <= 0 {
		return Passed, ""
	}
	// Of the bucket that has the limit in it nobody knows which requests are slower: none of them counts. A limit that is a bound but for
	// rounding is that bound: 1.2 times one is the next.
	for first < len(s.fresh.Latency) && bounds(first) < limit-limit/rounding {
		first++
	}
	first++
	var x, n uint64
	for i, c := range s.fresh.Latency {
		n += c
		if i >= first {
			x += c
		}
	}
	if n < FewestRequests {
		return Open, fmt.Sprintf("p95: %d answers are too few to judge by", n)
	}
	text := fmt.Sprintf("%s of %d answers slower than %s, limit 5%%", percent(x, n), n, limit.Round(100*time.Microsecond))
	if g.P95Stable > 0 {
		text += fmt.Sprintf(" (%gx the stable p95)", g.P95Stable)
	}
	return outcome(float64(x), float64(n), slow, true), text
}

// outcome tests x of n against a share p0. worse is what else must hold to fail.
func outcome(x, n, p0 float64, worse bool) Outcome {
	ratio := func(p float64) float64 { return x*math.Log(p/p0) + (n-x)*math.Log((1-p)/(1-p0)) }
	var above, below []float64
	for _, r := range ratios {
		above = append(above, ratio(min(p0*r, (1+p0)/2)))
	}
	for _, r := range better {
		below = append(below, ratio(p0*r))
	}
	switch {
	case worse && mixture(above) >= 1/Alpha:
		return Failed
	case mixture(below) >= 1/sure:
		return Passed
	}
	return Open
}

// mixture is the mean of likelihood ratios that are given by their logarithms.
func mixture(logs []float64) float64 {
	sum := 0.0
	for _, l := range logs {
		sum += math.Exp(min(l, 700))
	}
	return sum / float64(len(logs))
}

// upper is the bucket of the upper confidence bound of the 95th percentile: that of the order statistic which lies above it with some
// 99.9 %, by the normal approximation of the binomial distribution. With too few requests there is none.
func upper(latency []uint64) (int, bool) {
	n := uint64(0)
	for _, c := range latency {
		n += c
	}
	if n < FewestRequests {
		return 0, false
	}
	rank := float64(n)*(1-slow) + deviations*math.Sqrt(float64(n)*slow*(1-slow))
	sum := uint64(0)
	last := 0
	for i, c := range latency {
		if c > 0 {
			last = i
		}
		if sum += c; float64(sum) >= rank {
			return i, true
		}
	}
	return last, true // the bound is above all that was seen: the slowest one stands for it
}

func percent(n, of uint64) string {
	if of == 0 {
		return "0%"
	}
	return percentOf(float64(n) / float64(of))
}

func percentOf(share float64) string { return fmt.Sprintf("%.3g%%", 100*share) }
