package measure

import (
	"fmt"
	"math"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"baton/internal/model/cluster"
	"baton/internal/wire/agentapi"
)

func id(kind byte, n int) cluster.ID { return cluster.ID{kind, 14: byte(n >> 8), 15: byte(n)} }

// world is a cluster of which a Keeper is told.
type world struct {
	*Keeper
	tasks    map[cluster.ID]Task
	services map[cluster.ID]bool
	nodes    []cluster.ID
	now      time.Time
}

func newWorld(change ...func(*Config)) *world {
	w := &world{tasks: make(map[cluster.ID]Task), services: map[cluster.ID]bool{id('s', 1): true}, now: time.Unix(1_700_000_000, 0)}
	cfg := Config{
		Task:    func(id cluster.ID) (Task, bool) { t, ok := w.tasks[id]; return t, ok },
		Service: func(id cluster.ID) bool { return w.services[id] },
		Nodes:   func() []cluster.ID { return w.nodes },
	}
	for _, c := range change {
		c(&cfg)
	}
	w.Keeper = New(cfg)
	return w
}

// task makes a task of the first service.
func (w *world) task(n, node int) cluster.ID {
	w.tasks[id('t', n)] = Task{Service: id('s', 1), Node: id('n', node), CPU: 500, Ready: true}
	return id('t', n)
}

func (w *world) pass(d time.Duration) { w.now = w.now.Add(d) }

// series is what an edge says of a task.
func (w *world) series(task cluster.ID, since time.Time, ok uint64) agentapi.RequestMeasure {
	var h agentapi.Histogram
	h[agentapi.LatencyBucket(10*time.Millisecond)] = ok
	return agentapi.RequestMeasure{
		Service: id('s', 1), Task: task, Since: since.UnixNano(), Classes: [agentapi.RequestClasses]uint64{2: ok}, Latency: h.Sparse(),
	}
}

func (w *world) report(node int, full bool, list ...agentapi.RequestMeasure) {
	w.Take(id('n', node), agentapi.Measures{At: w.now, Full: full, Requests: list}, w.now)
}

// all is everything that is remembered of the first service.
func (w *world) all() Load {
	return w.Window(id('s', 1), w.now.Add(-5*time.Hour), w.now.Add(time.Nanosecond))
}

// edgeModel is an edge that counts: what it has counted for each task in its present process.
type edgeModel struct {
	began  time.Time
	counts map[int]uint64
	sent   map[int]uint64 // as the last report that arrived said
	since  map[int]time.Time
}

// Whatever is lost, late, restarted or said twice, the service has exactly the requests of all reports that arrived, in every
// ring, and nothing twice.
func TestCountsAreExact(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld()
		edges := make([]*edgeModel, 3)
		want := uint64(0) // that arrived
		begin := func() *edgeModel {
			return &edgeModel{began: w.now, counts: map[int]uint64{}, sent: map[int]uint64{}, since: map[int]time.Time{}}
		}
		for i := range edges {
			edges[i] = begin()
			w.report(i, true)
		}
		for i := range 4 {
			w.task(i, 1)
		}
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			w.pass(time.Duration(rapid.IntRange(0, 5000).Draw(t, "ms")) * time.Millisecond)
			n := rapid.IntRange(0, len(edges)-1).Draw(t, "node")
			e := edges[n]
			switch rapid.IntRange(0, 6).Draw(t, "what") {
			case 0:
				edges[n] = begin() // killed: what it had not told is lost
			case 1:
				delete(w.tasks, id('t', rapid.IntRange(0, 3).Draw(t, "gone"))) // its counts stay with the service
			case 2, 3: // a report
				full := rapid.Bool().Draw(t, "full")
				var list []agentapi.RequestMeasure
				for k, c := range e.counts {
					if full || c != e.sent[k] {
						list = append(list, w.series(id('t', k), e.since[k], c))
						want += c - e.sent[k]
						e.sent[k] = c
					}
				}
				w.report(n, full, list...)
			default:
				k := rapid.IntRange(0, 3).Draw(t, "task")
				if e.counts[k] == 0 {
					e.since[k] = w.now.Add(time.Duration(n*4 + k)) // no two at the same nanosecond
				}
				e.counts[k] += rapid.Uint64Range(1, 1000).Draw(t, "requests")
			}
		}
		if got := w.Totals(w.now)[id('s', 1)]; got.Classes[2] != want || got.Latency.Count() != want {
			t.Fatalf("total %d of %d", got.Classes[2], want)
		}
		for _, back := range []time.Duration{9 * time.Minute, 50 * time.Minute, 5 * time.Hour} {
			l := w.Window(id('s', 1), w.now.Add(-back), w.now.Add(time.Nanosecond))
			if l.Requests != want || l.Latency.Count() != want {
				t.Fatalf("the last %v have %d of %d", back, l.Requests, want)
			}
		}
	})
}

// A gap is no peak: what a node tells after it is spread over it.
func TestAGapIsNoPeak(t *testing.T) {
	w := newWorld()
	task, began := w.task(1, 1), w.now
	w.report(1, true, w.series(task, began, 0))
	w.pass(2 * time.Minute)
	w.report(1, true, w.series(task, began, 1200))
	for at := began; at.Before(w.now); at = at.Add(20 * time.Second) {
		if l := w.Window(id('s', 1), at, at.Add(20*time.Second)); math.Abs(l.Rate-10) > 0.5 {
			t.Errorf("after %v: %.1f requests/s, want 10", at.Sub(began), l.Rate)
		}
	}
}

// What an edge has counted for long before a manager hears of it is not of now; from then on all counts.
func TestOldCountsAreNotNew(t *testing.T) {
	w := newWorld()
	old, young := w.task(1, 1), w.task(2, 1)
	began := w.now.Add(-time.Hour)
	w.report(1, true, w.series(old, began, 1_000_000), w.series(young, w.now.Add(-10*time.Second), 50))
	if l := w.all(); l.Requests != 50 {
		t.Errorf("%d requests, want those of the young series", l.Requests)
	}
	w.pass(2 * time.Second)
	w.report(1, false, w.series(old, began, 1_000_007))
	if l := w.all(); l.Requests != 57 {
		t.Errorf("%d requests, want 57", l.Requests)
	}
	// Fewer than before with the same beginning cannot be: nothing goes backwards.
	w.report(1, false, w.series(old, began, 3))
	w.report(1, false, w.series(old, began, 1_000_009))
	if l := w.all(); l.Requests != 59 {
		t.Errorf("%d requests, want 59", l.Requests)
	}
	// A report that a newer one has overtaken says nothing, not even what there no longer is.
	late := agentapi.Measures{At: w.now.Add(-time.Second), Full: true}
	w.Take(id('n', 1), late, w.now)
	w.report(1, false, w.series(old, began, 1_000_010))
	if l := w.all(); l.Requests != 60 {
		t.Errorf("%d requests, want 60", l.Requests)
	}
	if _, _, _, left := w.Size(); left.Senseless != 1 {
		t.Errorf("left out: %+v", left)
	}
}

// Rates, requests in flight, processors and memory are means over the window, of the tasks that run.
func TestLoad(t *testing.T) {
	w := newWorld()
	w.nodes = []cluster.ID{id('n', 1), id('n', 2)}
	a, b, began := w.task(1, 1), w.task(2, 1), w.now
	report := func(i int) {
		r := w.series(a, began, uint64(i)*20)
		r.InFlight, r.Broken = 4, uint64(i)
		m := agentapi.Measures{At: w.now, Full: true, Requests: []agentapi.RequestMeasure{r}}
		if i%3 == 0 {
			used := w.now.Sub(began)
			m.Use = &agentapi.NodeUse{Cores: 2000, Memory: 7, Tasks: []agentapi.TaskUse{
				{Task: a, CPU: used / 2, Memory: 100 << 20, Received: uint64(i)}, {Task: b, CPU: used / 4, Memory: 300 << 20},
				{Task: id('t', 99), CPU: used}, // nobody knows it
			}}
		}
		w.Take(id('n', 1), m, w.now)
	}
	for i := range 91 {
		report(i)
		w.pass(2 * time.Second)
	}
	from := began.Add(time.Minute)
	l := w.Window(id('s', 1), from, from.Add(time.Minute))
	near := func(what string, got, want float64) {
		t.Helper()
		if math.Abs(got-want) > want*0.02 {
			t.Errorf("%s: %g, want %g", what, got, want)
		}
	}
	near("rate", l.Rate, 10)
	near("requests", float64(l.Requests), 600)
	near("failed", float64(l.Failed()), 30)
	near("in flight", l.InFlight, 4)
	if p := l.Quantile(0.95); p < 10*time.Millisecond/12*10 || p > 12*time.Millisecond {
		t.Errorf("p95: %v, want 10 ms or a factor of 1.2 beside it", p)
	}
	near("cpu of the reservation", l.CPU, 0.75)
	near("cores of a task", l.CPUTask, 0.375)
	near("memory", float64(l.Memory), 200<<20)
	if !l.Reserved || l.To.Sub(l.From) != time.Minute || l.Samples == 0 {
		t.Errorf("window: %+v", l)
	}
	now := w.Window(id('s', 1), w.now.Add(-time.Minute), w.now)
	near("cores of all", now.CPUUsed, 0.75)
	if now.Tasks != 2 || now.Missing != 1 {
		t.Errorf("%d tasks, %d nodes missing; want 2 and 1", now.Tasks, now.Missing)
	}
	k := w.TaskWindow(b, w.now.Add(-time.Minute), w.now)
	near("cores of one", k.CPUTask, 0.25)
	if k.Requests != 0 || len(w.TaskUses(w.now)) != 2 || w.NodeUses(w.now)[id('n', 1)].Memory != 7 {
		t.Errorf("of one task: %+v", k)
	}
	if tasks, services := w.InFlight(w.now); tasks[a] != 4 || services[id('s', 1)] != 4 {
		t.Errorf("in flight: %v %v", tasks, services)
	}
	w.pass(time.Minute)
	if tasks, _ := w.InFlight(w.now); len(tasks) != 0 || w.Totals(w.now)[id('s', 1)].InFlight != 0 || len(w.NodeUses(w.now))+len(w.TaskUses(w.now)) != 0 {
		t.Error("a node that is silent counts")
	}
	if l := w.Window(id('s', 1), w.now.Add(-time.Minute), w.now); l.Missing != 2 || l.Tasks != 0 {
		t.Errorf("all are silent: %d missing, %d tasks", l.Missing, l.Tasks)
	}
}

// The number of series is bounded; what there is no room for is counted, and room comes back when others go.
func TestSeriesAreBoundedAndForgotten(t *testing.T) {
	w := newWorld(func(c *Config) { c.ServicesMax, c.TasksMax, c.EdgesMax = 1, 2, 3 })
	w.services[id('s', 2)] = true
	var list []agentapi.RequestMeasure
	for i := range 5 {
		list = append(list, w.series(w.task(i, 1), w.now, 1))
	}
	other := w.series(cluster.ID{}, w.now, 1)
	other.Service = id('s', 2)
	broken := w.series(id('t', 1), w.now, 1)
	broken.Latency = agentapi.Sparse{1}
	w.report(1, true, append([]agentapi.RequestMeasure{other, broken}, list...)...)
	services, tasks, edges, left := w.Size()
	if services != 1 || tasks > 2 || edges != 3 || left.Edges != 3 || left.Senseless != 1 {
		t.Errorf("%d services, %d tasks, %d edges, left out %+v", services, tasks, edges, left)
	}
	clear(w.tasks)
	clear(w.services)
	w.Forget(func(cluster.ID) bool { return true }, w.now.Add(edgeKept))
	if services, tasks, edges, _ := w.Size(); services+tasks != 0 || edges != 3 {
		t.Errorf("%d services, %d tasks, %d edges are kept", services, tasks, edges)
	}
	w.Forget(func(cluster.ID) bool { return true }, w.now.Add(edgeKept+1))
	if _, _, edges, _ := w.Size(); edges != 0 {
		t.Errorf("%d edges of ended tasks are kept", edges)
	}
	w.report(1, true, w.series(id('t', 1), w.now, 1))
	w.Forget(func(cluster.ID) bool { return false }, w.now)
	if services, tasks, edges, _ := w.Size(); services+tasks+edges != 0 || w.all().Samples != 0 {
		t.Errorf("%d services, %d tasks, %d edges are kept", services, tasks, edges)
	}
	// A full report without a series makes room for others.
	w = newWorld(func(c *Config) { c.EdgesMax = 1 })
	a, b := w.series(w.task(1, 1), w.now, 1), w.series(w.task(2, 1), w.now, 1)
	w.report(1, true, a)
	w.report(1, true, b)
	w.report(1, true, b)
	if _, _, edges, left := w.Size(); edges != 1 || left.Edges != 1 {
		t.Errorf("%d edges, left out %+v", edges, left)
	}
	w.Ended(id('s', 1))
	if got := w.Totals(w.now)[id('s', 1)].Ended; got != 1 {
		t.Errorf("%d tasks failed", got)
	}
}

// The memory that a service and a task take, once all their slots are in use: what the limits of a Keeper are made of.
func TestMemoryOfSeries(t *testing.T) {
	size := func(busy bool) (service, task int) {
		w := newWorld()
		k, began := w.task(1, 1), w.now
		var h agentapi.Histogram
		for i := range 20 {
			h[15+i] = 500
		}
		for i := range uint64(6 * time.Hour / agentapi.MeasureEvery) {
			used := w.now.Sub(began)
			m := agentapi.Measures{At: w.now, Full: i == 0}
			if busy {
				m.Requests = []agentapi.RequestMeasure{{Service: id('s', 1), Task: k, Since: began.UnixNano(), Classes: [6]uint64{2: 9800 * i, 4: 150 * i, 5: 50 * i},
					Received: i << 20, Sent: i << 24, InFlight: 30, Broken: i, Latency: scaled(h, i)}}
			}
			if i%agentapi.UseEvery == 0 {
				m.Use = &agentapi.NodeUse{Tasks: []agentapi.TaskUse{{Task: k, CPU: used / 3, Memory: 500 << 20, Received: i << 21, Sent: i << 22}}}
			}
			w.Take(id('n', 1), m, w.now)
			w.pass(agentapi.MeasureEvery)
		}
		of := func(r *ring) (n int) {
			for _, p := range r.packed {
				n += 24 + (cap(p)+15)/16*16 // as the allocator rounds
			}
			return n
		}
		for i := range w.Keeper.services[id('s', 1)].rings {
			service += of(&w.Keeper.services[id('s', 1)].rings[i])
		}
		return service, of(&w.Keeper.tasks[k].ring)
	}
	for _, c := range []struct {
		busy                bool
		serviceMax, taskMax int
	}{{false, 50_000, 2_300}, {true, 120_000, 5_000}} {
		service, task := size(c.busy)
		t.Logf("busy %v: %d bytes a service, %d a task", c.busy, service, task)
		if service > c.serviceMax || task > c.taskMax {
			t.Errorf("busy %v: %d bytes a service, %d a task; at most %d and %d", c.busy, service, task, c.serviceMax, c.taskMax)
		}
	}
}

// BenchmarkTake is a report of a node with ten tasks, every one of them with requests from here, of a cluster of 1,000 nodes.
func BenchmarkTake(b *testing.B) {
	w := newWorld()
	const nodes = 1000
	var reports [nodes]agentapi.Measures
	for n := range nodes {
		w.services[id('s', n)] = true
		use := &agentapi.NodeUse{}
		for i := range 10 {
			k := n*10 + i
			task := cluster.ID{'t', 13: byte(k >> 16), 14: byte(k >> 8), 15: byte(k)}
			w.tasks[task] = Task{Service: id('s', n), Node: id('n', n), CPU: 100, Ready: true}
			use.Tasks = append(use.Tasks, agentapi.TaskUse{Task: task})
			r := w.series(task, w.now, 0)
			r.Service = id('s', n)
			reports[n].Requests = append(reports[n].Requests, r)
		}
		reports[n].Use, reports[n].Full = use, true
	}
	var h agentapi.Histogram
	for i := range 20 {
		h[10+i] = 1
	}
	total := uint64(0)
	i := 0
	for b.Loop() {
		n := i % nodes
		if n == 0 {
			w.pass(2 * time.Second)
			total++
		}
		m := reports[n]
		m.At = w.now
		m.Requests = slices.Clone(m.Requests)
		for j := range m.Requests {
			m.Requests[j].Classes[2] = 20 * total
			m.Requests[j].Latency = scaled(h, total)
		}
		for j := range m.Use.Tasks {
			m.Use.Tasks[j].CPU, m.Use.Tasks[j].Memory = time.Duration(total)*time.Second/10, 100<<20
		}
		w.Take(id('n', n), m, w.now)
		i++
	}
	services, tasks, edges, _ := w.Size()
	b.ReportMetric(0, fmt.Sprintf("%d-services-%d-tasks-%d-edges", services, tasks, edges))
}

func scaled(h agentapi.Histogram, by uint64) agentapi.Sparse {
	for i := range h {
		h[i] *= by
	}
	return h.Sparse()
}

// While one process of an edge takes over from another, both have requests of a task, and each counts once.
func TestTwoProcessesOfAnEdge(t *testing.T) {
	w := newWorld()
	task, began := w.task(1, 1), w.now
	w.report(1, true)
	for i := uint64(1); i <= 5; i++ {
		w.pass(2 * time.Second)
		w.report(1, i == 3, w.series(task, began, 10*i), w.series(task, began.Add(time.Second), 3*i))
	}
	w.pass(2 * time.Second)
	w.report(1, true, w.series(task, began.Add(time.Second), 20)) // the first one has ended
	if l := w.all(); l.Requests != 70 {
		t.Errorf("%d requests, want 50 and 20", l.Requests)
	}
}
