package agentapi

import (
	"math"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// The bounds are part of what versions tell each other: a change of them would add up counts of different buckets.
func TestLatencyBoundsStay(t *testing.T) {
	for bucket, want := range map[int]time.Duration{0: 500 * time.Microsecond, 1: 600 * time.Microsecond, 10: 3095868, 40: 734885784, 64: 58421102881} {
		if got, ok := LatencyBound(bucket); !ok || got != want {
			t.Errorf("bucket %d ends at %d, want %d", bucket, got, want)
		}
	}
	if _, ok := LatencyBound(LatencyBuckets - 1); ok {
		t.Error("the last bucket has a bound")
	}
}

// A quantile lies in the bucket of the true one: it is wrong by a factor of 1.2 at most.
func TestQuantileIsOffByOneStepAtMost(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var h Histogram
		all := rapid.SliceOfN(rapid.Int64Range(0, int64(50*time.Second)), 1, 300).Draw(t, "latencies")
		for _, d := range all {
			h[LatencyBucket(time.Duration(d))]++
		}
		slices.Sort(all)
		p := rapid.Float64Range(0, 1).Draw(t, "p")
		want := time.Duration(all[max(0, int(math.Ceil(p*float64(len(all))))-1)])
		got := h.Quantile(p)
		if float64(got) > float64(want)*1.2+float64(latencyMin) || float64(got) < float64(want)/1.2-float64(latencyMin) {
			t.Fatalf("p%g of %d latencies: %v, want %v", 100*p, len(all), got, want)
		}
		back, err := h.Sparse().Histogram()
		if err != nil || back != h {
			t.Fatalf("%v came back as %v, %v", h, back, err)
		}
	})
}

func TestQuantileAtTheEnds(t *testing.T) {
	var h Histogram
	if got := h.Quantile(0.5); got != 0 {
		t.Errorf("of nothing: %v", got)
	}
	h[LatencyBucket(time.Hour)]++
	if got := h.Quantile(0.99); got != latencyBounds[len(latencyBounds)-1] {
		t.Errorf("of an hour: %v", got)
	}
}

// What comes from outside may be anything.
func FuzzSparse(f *testing.F) {
	f.Add(uint64(3), uint64(1), uint64(65))
	f.Fuzz(func(t *testing.T, a, b, c uint64) {
		if _, err := (Sparse{a, b, c}).Histogram(); err == nil {
			t.Error("an odd number of values is a histogram")
		}
		if _, err := (Sparse{a, b}).Histogram(); (err == nil) != (a < LatencyBuckets) {
			t.Errorf("bucket %d: %v", a, err)
		}
	})
}
