package gate

import (
	"flag"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"baton/internal/model/spec"
)

// deployments is how many of two equal revisions are simulated; 2,000 take a minute and a half.
var deployments = flag.Int("deployments", 200, "simulated deployments of equal revisions")

// revision is what a simulated one answers with.
type revision struct {
	errors float64       // share
	median time.Duration // of a log-normal latency
}

const (
	buckets = 66
	rate    = 200 // requests per second of the service
	spread  = 0.5 // of the logarithm of the latency: the 95th percentile is 2.3 times the median
)

func bound(i int) time.Duration {
	return time.Duration(float64(500*time.Microsecond) * math.Pow(1.2, float64(i)))
}

// serve draws an interval of two seconds in which the revision gets a share of the requests.
func (r revision) serve(rng *rand.Rand, share float64) Counts {
	c := Counts{Latency: make([]uint64, buckets)}
	for range 2 * rate {
		if rng.Float64() >= share {
			continue
		}
		c.Requests++
		if rng.Float64() < r.errors {
			c.Errors++
		}
		d := float64(r.median) * math.Exp(spread*rng.NormFloat64())
		b := 0
		for b < buckets-1 && float64(bound(b)) < d {
			b++
		}
		c.Latency[b]++
	}
	return c
}

// rollout judges every two seconds for at most a span and tells the first outcome, and when it came.
func rollout(rng *rand.Rand, g spec.Gates, share float64, fresh, stable revision, span time.Duration, past bool) (Verdict, time.Duration) {
	var s State
	var v Verdict
	for at := 2 * time.Second; at <= span; at += 2 * time.Second {
		s.Add(fresh.serve(rng, share), stable.serve(rng, 1-share))
		v = s.Judge(g, bound)
		if v.Outcome == Failed || v.Outcome == Passed && !past {
			return v, at
		}
	}
	return v, span
}

var (
	gates  = spec.Gates{ErrorRate: 0.01, P95Stable: 1.2}
	good   = revision{0.001, 20 * time.Millisecond}
	shares = []float64{0.2, 1.0 / 3, 0.5}
)

func TestBadRevisionsFailWithinAMinute(t *testing.T) {
	for name, bad := range map[string]revision{
		"2% errors":       {0.02, good.median},
		"10% errors":      {0.1, good.median},
		"three times p95": {good.errors, 3 * good.median},
	} {
		for _, share := range shares {
			const runs = 50
			var took []time.Duration
			for seed := range uint64(runs) {
				v, at := rollout(rand.New(rand.NewPCG(seed, 1)), gates, share, bad, good, 5*time.Minute, true)
				if v.Outcome != Failed {
					t.Fatalf("%s, share %.2f: outcome %v after 5 min: %s", name, share, v.Outcome, v.Text)
				}
				took = append(took, at)
			}
			slices.Sort(took)
			t.Logf("%-16s share %.2f: median %v, longest of %d %v", name, share, took[runs/2], runs, took[runs-1])
			if took[runs/2] >= time.Minute {
				t.Errorf("%s, share %.2f: the median took %v, want less than 1 min", name, share, took[runs/2])
			}
		}
	}
}

// Looking every two seconds for ten minutes must not make a false alarm of revisions that are alike.
func TestEqualRevisionsAreNotRolledBack(t *testing.T) {
	runs := *deployments
	for name, both := range map[string]revision{
		"few errors": good, "just below the limit": {0.0095, good.median}, "both above the limit": {0.03, good.median},
	} {
		failed := 0
		for seed := range uint64(runs) {
			share := shares[seed%uint64(len(shares))]
			if v, _ := rollout(rand.New(rand.NewPCG(seed, 2)), gates, share, both, both, 2*time.Minute, true); v.Outcome == Failed {
				failed++
			}
		}
		t.Logf("%-20s %d of %d rolled back", name, failed, runs)
		if failed*100 > runs {
			t.Errorf("%s: %d of %d equal revisions were rolled back, want 1%% at most", name, failed, runs)
		}
	}
}

func TestGoodRevisionPassesEarly(t *testing.T) {
	for _, share := range shares {
		v, at := rollout(rand.New(rand.NewPCG(1, 3)), gates, share, revision{0, good.median}, good, time.Minute, false)
		if v.Outcome != Passed || at > 40*time.Second {
			t.Errorf("share %.2f: outcome %v after %v: %s", share, v.Outcome, at, v.Text)
		}
	}
}

func TestFewRequestsAreNoVerdict(t *testing.T) {
	var s State
	s.Add(Counts{Requests: FewestRequests - 1, Errors: FewestRequests - 1}, Counts{Requests: 1000})
	if v := s.Judge(gates, bound); !v.Few || v.Outcome != Open {
		t.Errorf("99 requests: %+v", v)
	}
}

func TestAbsoluteLatency(t *testing.T) {
	g := spec.Gates{P95: 100 * time.Millisecond}
	for median, want := range map[time.Duration]Outcome{20 * time.Millisecond: Passed, 200 * time.Millisecond: Failed} {
		if v, _ := rollout(rand.New(rand.NewPCG(1, 4)), g, 0.5, revision{0, median}, good, time.Minute, false); v.Outcome != want {
			t.Errorf("median %v: outcome %v, want %v: %s", median, v.Outcome, want, v.Text)
		}
	}
}

// Without a stable revision that has requests, only the limit counts.
func TestErrorsWithoutAStableRevision(t *testing.T) {
	g := spec.Gates{ErrorRate: 0.01}
	var s State
	s.Add(Counts{Requests: 1000, Errors: 100}, Counts{})
	if v := s.Judge(g, bound); v.Outcome != Failed {
		t.Errorf("10%% errors: %+v", v)
	}
}
