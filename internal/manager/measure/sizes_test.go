package measure

import (
	"math"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"baton/internal/wire/agentapi"
)

// Quantiles are those of the uses themselves, at most a bucket too high, and the peak is never below the highest use.
func TestUses(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		values := rapid.SliceOfN(rapid.Float64Range(0.0001, 500), 1, 200).Draw(t, "values")
		u, now := uses{first: 0.001}, time.Unix(1_800_000_000, 0)
		for _, v := range values {
			u.add(v, now)
		}
		slices.Sort(values)
		for _, p := range []float64{0.5, 0.95, 1} {
			want := values[int(math.Ceil(p*float64(len(values))))-1]
			if got := u.quantile(p); got < want*(1-1e-9) || got > max(0.001, want*sizeStep*(1+1e-9)) {
				t.Fatalf("quantile %v of %v is %v, want %v or a tenth more", p, values, got, want)
			}
		}
		if most := values[len(values)-1]; u.peak(now) < most*(1-1e-9) {
			t.Fatalf("peak %v of %v", u.peak(now), values)
		}
	})
}

// What was used long ago counts less and less, and in the end not at all.
func TestUsesAreForgotten(t *testing.T) {
	u, now := uses{first: 0.001}, time.Unix(1_800_000_000, 0)
	for range 100 {
		u.add(8, now)
	}
	for range 26 * 24 {
		now = now.Add(time.Hour)
		u.add(1, now)
		if u.at.IsZero() || math.IsInf(float64(u.weights[0]), 0) {
			t.Fatal("weights overflow")
		}
	}
	if p := u.peak(now); p > 1.1 {
		t.Errorf("the peak is %v, want that of the last weeks: 1", p)
	}
	if q := u.quantile(0.5); q > 1.1 {
		t.Errorf("the median is %v, want 1", q)
	}
}

// The size of a service is made of what its tasks report, and recommends no less memory than any of them used.
func TestSize(t *testing.T) {
	w := newWorld()
	task := w.task(1, 1)
	var used time.Duration
	report := func(cores float64, memory uint64) {
		w.pass(6 * time.Second)
		used += time.Duration(cores * 6 * float64(time.Second))
		w.Take(id('n', 1), agentapi.Measures{At: w.now, Use: &agentapi.NodeUse{Tasks: []agentapi.TaskUse{{Task: task, CPU: used, Memory: memory}}}}, w.now)
	}
	for range sizeSamples {
		report(0.1, 100<<20)
	}
	if s, ok := w.Used(id('s', 1), w.now); ok {
		t.Errorf("size %+v of %d uses: the first report only begins one", s, sizeSamples-1)
	}
	report(2, 200<<20)
	for range 100 {
		report(0.1, 100<<20)
	}
	s, ok := w.Used(id('s', 1), w.now)
	if !ok {
		t.Fatal("nothing is known")
	}
	if s.CPU95 < 100 || s.CPU95 > 110 || s.CPUPeak < 2000 || s.CPUPeak > 2200 || s.CPU < 115 || s.CPU > 130 {
		t.Errorf("%+v: want a tenth of a processor used and a bit more recommended, with a peak of two", s)
	}
	if s.MemoryMedian < 100<<20 || s.MemoryMedian > 110<<20 || s.MemoryPeak != 200<<20 || s.Memory != 230<<20 {
		t.Errorf("%+v: want 100 MiB used, and 15 %% above the peak of 200 recommended", s)
	}
	if _, ok := w.Used(id('s', 2), w.now); ok {
		t.Error("the size of an unknown service is known")
	}
}
