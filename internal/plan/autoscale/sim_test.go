package autoscale

import (
	"bytes"
	"container/heap"
	"flag"
	"fmt"
	"math"
	"math/rand"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/google/go-cmp/cmp"

	"baton/internal/model/spec"
)

var update = flag.Bool("update", false, "write the golden files")

// The simulated service: replicas with some workers each and one queue (M/G/k). A request takes 100 ms in the mean, log-normally
// spread; a new replica is ready after its start.
const (
	simTick    = 50 * time.Millisecond
	simWorkers = 10
	simService = 100 * time.Millisecond
	simStart   = 3 * time.Second
)

// bed is one simulation.
type bed struct {
	rng      *rand.Rand
	now      time.Time
	replicas int
	ready    int
	starting []time.Time // when each is ready
	queue    []time.Time // arrivals that wait
	busy     ends        // when each one under way ends, with its arrival
	times    []time.Duration
	ended    int
	areaBusy float64 // seconds of workers
	areaIn   float64 // seconds of requests under way
	areaCap  float64 // seconds of ready replicas
}

type ending struct{ at, came time.Time }
type ends []ending

func (e ends) Len() int           { return len(e) }
func (e ends) Less(i, j int) bool { return e[i].at.Before(e[j].at) }
func (e ends) Swap(i, j int)      { e[i], e[j] = e[j], e[i] }
func (e *ends) Push(x any)        { *e = append(*e, x.(ending)) }
func (e *ends) Pop() any          { last := (*e)[len(*e)-1]; *e = (*e)[:len(*e)-1]; return last }

// poisson draws a number of events of which mean are to be expected.
func (b *bed) poisson(mean float64) int {
	if mean > 50 {
		return max(0, int(math.Round(mean+math.Sqrt(mean)*b.rng.NormFloat64())))
	}
	n, p := 0, math.Exp(-mean)
	for x := b.rng.Float64(); x > p; x *= b.rng.Float64() {
		n++
	}
	return n
}

// tick lets a moment pass with so many requests per second.
func (b *bed) tick(rate float64) {
	b.now = b.now.Add(simTick)
	for range b.poisson(rate * simTick.Seconds()) {
		b.queue = append(b.queue, b.now)
	}
	for len(b.starting) > 0 && !b.starting[0].After(b.now) {
		b.ready++
		b.starting = b.starting[1:]
	}
	for len(b.busy) > 0 && !b.busy[0].at.After(b.now) {
		e := heap.Pop(&b.busy).(ending)
		b.times = append(b.times, e.at.Sub(e.came))
		b.ended++
	}
	for len(b.queue) > 0 && len(b.busy) < b.ready*simWorkers {
		const sigma = 0.5
		took := simService.Seconds() * math.Exp(sigma*b.rng.NormFloat64()-sigma*sigma/2)
		heap.Push(&b.busy, ending{at: b.now.Add(time.Duration(took * float64(time.Second))), came: b.queue[0]})
		b.queue = b.queue[1:]
	}
	b.areaBusy += float64(len(b.busy)) * simTick.Seconds()
	b.areaIn += float64(len(b.busy)+len(b.queue)) * simTick.Seconds()
	b.areaCap += float64(b.ready) * simTick.Seconds()
}

// sample is what was measured since the last one.
func (b *bed) sample(since time.Time) Sample {
	span := b.now.Sub(since)
	s := Sample{At: b.now, Span: span, Ready: b.ready, Counted: true, Weighed: b.areaCap > 0, Requests: float64(b.ended), InFlight: b.areaIn / span.Seconds()}
	if b.areaCap > 0 {
		s.CPU = b.areaBusy / (b.areaCap * simWorkers)
	}
	if len(b.times) > 0 {
		slices.Sort(b.times)
		s.P95 = b.times[len(b.times)*95/100]
	}
	b.times, b.ended, b.areaBusy, b.areaIn, b.areaCap = b.times[:0], 0, 0, 0, 0
	return s
}

// scale makes the number what was decided.
func (b *bed) scale(n int) {
	for ; b.replicas < n; b.replicas++ {
		b.starting = append(b.starting, b.now.Add(simStart))
	}
	for ; b.replicas > n; b.replicas-- {
		if len(b.starting) > 0 {
			b.starting = b.starting[:len(b.starting)-1]
		} else {
			b.ready--
		}
	}
}

// history is what a simulation came to.
type history struct {
	at      []time.Duration
	numbers []int
	needs   []int
	enough  []bool // within the tolerance
	p95     []time.Duration
}

// simulate runs a policy under a load: so many requests per second at a time.
func simulate(a *spec.Autoscale, perReplica float64, begin int, length time.Duration, load func(time.Duration) float64) history {
	b := &bed{rng: rand.New(rand.NewSource(7)), now: epoch, replicas: begin, ready: begin}
	var h history
	var in Input
	last, next := epoch, epoch.Add(Every)
	for b.now.Sub(epoch) < length {
		b.tick(load(b.now.Sub(epoch)))
		if b.now.Before(next) {
			continue
		}
		in.Samples = append(in.Samples, b.sample(last))
		if len(in.Samples) > 60 {
			in.Samples = in.Samples[1:]
		}
		last = b.now
		in.Spec, in.Bounds, in.Replicas, in.Ready, in.Now = a, a.Bounds(b.now), b.replicas, b.ready, b.now
		d := Plan(in)
		if d.Replicas > in.Replicas {
			in.UpAt = b.now
		} else if d.Replicas < in.Replicas {
			in.DownAt = b.now
		}
		b.scale(d.Replicas)
		in.State, next = d.State, d.WakeAt
		h.at, h.numbers = append(h.at, b.now.Sub(epoch)), append(h.numbers, d.Replicas)
		h.needs = append(h.needs, min(max(a.Min, 1, int(math.Ceil(load(b.now.Sub(epoch))/perReplica))), a.Max))
		h.enough = append(h.enough, 1.1*float64(d.Replicas)*perReplica >= load(b.now.Sub(epoch)))
		h.p95 = append(h.p95, in.Samples[len(in.Samples)-1].P95)
	}
	return h
}

// trace reads a load of one number a minute, in requests per second, and goes straight from one to the next.
func trace(t *testing.T, name string) (func(time.Duration) float64, time.Duration) {
	t.Helper()
	data, err := os.ReadFile("testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	var list []float64
	for _, f := range strings.Fields(string(data)) {
		v, err := strconv.ParseFloat(f, 64)
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, v)
	}
	return func(d time.Duration) float64 {
		i := min(int(d/time.Minute), len(list)-2)
		part := d.Minutes() - float64(i)
		return list[i]*(1-part) + list[i+1]*part
	}, time.Duration(len(list)-1) * time.Minute
}

// shape is a load with what must hold under it.
type shape struct {
	name   string
	length time.Duration
	load   func(time.Duration) float64
	// jump is when the load jumps: what it needs must be decided two evaluations after the first sample that has it whole.
	jump time.Duration
	// turns are at most, and mean over-provisioning: replicas divided by those that the target needs.
	turns int
	over  float64
	late  float64 // share of the evaluations with a p95 above 400 ms, at most
}

func shapes(t *testing.T) []shape {
	noise := rand.New(rand.NewSource(3))
	var noisy []float64
	for range 3600 {
		noisy = append(noisy, max(0, 160*(1+0.25*noise.NormFloat64())))
	}
	days, dayLength := trace(t, "day.txt")
	sales, saleLength := trace(t, "sale.txt")
	since := func(at time.Duration, before, after float64) func(time.Duration) float64 {
		return func(d time.Duration) float64 {
			if d < at {
				return before
			}
			return after
		}
	}
	return []shape{
		{"constant", 30 * time.Minute, since(0, 0, 300), 0, 0, 1.1, 0.02},
		{"step", 20 * time.Minute, since(5*time.Minute, 80, 320), 5 * time.Minute, 1, 1.4, 0.05},
		{"spike of 10", 20 * time.Minute, func(d time.Duration) float64 {
			if d >= 5*time.Minute && d < 8*time.Minute {
				return 800
			}
			return 80
		}, 5 * time.Minute, 1, 3.7, 0.08},
		{"ramp", 30 * time.Minute, func(d time.Duration) float64 { return 40 + 20*d.Minutes() }, 0, 0, 1.1, 0.02},
		{"diurnal", 2 * time.Hour, func(d time.Duration) float64 { return 250 - 200*math.Cos(2*math.Pi*d.Hours()) }, 0, 3, 1.2, 0.02},
		{"noisy", time.Hour, func(d time.Duration) float64 { return noisy[min(int(d/time.Second), len(noisy)-1)] }, 0, 2, 1.4, 0.02},
		{"on and off", 30 * time.Minute, func(d time.Duration) float64 {
			if int(d.Minutes())%4 < 2 {
				return 320
			}
			return 40
		}, 0, 0, 1.8, 0.03},
		{"a shop's day", dayLength, days, 0, 10, 1.3, 0.02},
		{"a sale begins", saleLength, sales, 0, 1, 1.4, 0.03},
	}
}

// TestSimulations runs the policies of the documentation under every load.
func TestSimulations(t *testing.T) {
	var out bytes.Buffer
	w := tabwriter.NewWriter(&out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "load\ttarget\tevaluations to the need\tturns\tchanges\treplicas/need\tp95 above 400 ms\tmost")
	for _, s := range shapes(t) {
		for _, p := range []struct {
			name   string
			target spec.ScaleTarget
			per    float64 // requests per second that one replica is to have: each takes 100 ms, and 25 ms in the mean until a tick sees its end
		}{
			{"rps 60", spec.ScaleTarget{RPS: 60}, 60},
			{"inflight 6", spec.ScaleTarget{InFlight: 6}, 48},
			{"cpu 60%", spec.ScaleTarget{CPU: 0.6}, 48},
		} {
			h := simulate(scaled(1, 40, p.target), p.per, max(1, int(math.Ceil(s.load(0)/p.per))), s.length, s.load)
			reach := h.reach(s)
			fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%d\t%.2f\t%.1f %%\t%d\n", s.name, p.name, reach, turns(h.numbers), len(slices.Compact(slices.Clone(h.numbers)))-1, h.over(), 100*h.late(), slices.Max(h.numbers))
			h.check(t, s, p.name, reach)
		}
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	golden(t, "testdata/simulations.golden", out.Bytes())
}

// reach is how many evaluations it took, from the first whose sample has the jump whole.
func (h history) reach(s shape) string {
	if s.jump == 0 {
		return "-"
	}
	n := 0
	for i := range h.at {
		if i == 0 || h.at[i-1] < s.jump {
			continue
		}
		n++
		if h.enough[i] {
			return strconv.Itoa(n)
		}
	}
	return "never"
}

func (h history) over() float64 {
	have, need := 0.0, 0.0
	for i := 1; i < len(h.at); i++ {
		d := (h.at[i] - h.at[i-1]).Seconds()
		have, need = have+d*float64(h.numbers[i]), need+d*float64(h.needs[i])
	}
	return have / need
}

func (h history) late() float64 {
	n := 0
	for _, p := range h.p95 {
		if p > 400*time.Millisecond {
			n++
		}
	}
	return float64(n) / float64(len(h.p95))
}

func (h history) check(t *testing.T, s shape, policy, reach string) {
	t.Helper()
	if n, err := strconv.Atoi(reach); s.jump > 0 && policy != "cpu 60%" && (err != nil || n > 2) {
		t.Errorf("%s, %s: the need was decided after %s evaluations, want 2 at most", s.name, policy, reach)
	}
	if n := turns(h.numbers); n > s.turns {
		t.Errorf("%s, %s: %d turns, want at most %d: %v", s.name, policy, n, s.turns, slices.Compact(slices.Clone(h.numbers)))
	}
	if over := h.over(); over > s.over || over < 0.9 {
		t.Errorf("%s, %s: %.2f times the need, want 0.9 to %.2f", s.name, policy, over, s.over)
	}
	if late := h.late(); late > s.late {
		t.Errorf("%s, %s: %.1f %% of the evaluations saw a p95 above 400 ms, want at most %.1f %%", s.name, policy, 100*late, 100*s.late)
	}
}

func golden(t *testing.T, file string, got []byte) {
	t.Helper()
	if *update {
		if err := os.WriteFile(file, got, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatalf("%v; run go test -update", err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("%s differs (-want +got); run go test -update if the change is meant:\n%s", file, diff)
	}
}
