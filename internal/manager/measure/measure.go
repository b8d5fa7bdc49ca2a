// Package measure keeps what services and tasks have to do: requests, latencies, processors, memory and network.
//
// It owns the recent history of a cluster's load, in memory only, as every manager has it for itself. Nodes report cumulative
// counts (agentapi.Measures); the difference to a node's report before is what happened since. It is kept in rings of falling resolution,
// and is forgotten with its service or task.
//
//	service   2 s for 10 minutes, 15 s for 1 hour, 2 minutes for 6 hours; sums since the manager heard of it
//	          how often its tasks used how much, the last days most (sizes.go)
//	task      10 s for 5 minutes; sums since the manager heard of it; what it used last
//	node      the last counts of each series of its edge; what it used last
//
// A slot of a ring is one packed vector of sums (sums.go): nothing, 30 bytes with tasks only, about 100 with requests.
//
// Invariants: what is remembered adds up to what was reported, to the last request; counts never go backwards, whatever
// restarts; the number of series is bounded, and what was left out is counted. A report that comes late is spread evenly over the time
// since the one before, so that a gap is no peak.
//
// It has no clock: the time is given. All methods may be called at once.
package measure

import (
	"sync"
	"time"

	"baton/internal/model/cluster"
	"baton/internal/model/spec"
	"baton/internal/wire/agentapi"
)

// Task is what the cluster knows of a task that runs.
type Task struct {
	Service, Node cluster.ID
	CPU           spec.MilliCPU // reserved
	Ready         bool
}

// Config is what a Keeper is made of. The functions are required; they must not call the Keeper.
type Config struct {
	// Task finds a task that has not ended, Service whether there is one.
	Task    func(cluster.ID) (Task, bool)
	Service func(cluster.ID) bool
	// Nodes are those that should report.
	Nodes func() []cluster.ID
	// ServicesMax, TasksMax and EdgesMax bound the series: of services, of tasks, and of what the nodes' edges count. Zero: 5,000,
	// 100,000 and 200,000.
	ServicesMax, TasksMax, EdgesMax int
}

const (
	servicesMax = 5_000   // 50 KB each with tasks only, 120 KB with many requests all the time (TestMemoryOfSeries)
	tasksMax    = 100_000 // 2 KB each, 5 KB with many requests
	edgesMax    = 200_000 // 0.3 KB each

	// Lag is how old what happened may be until it is known everywhere: a report, and its way through another manager.
	Lag = 2*agentapi.MeasureEvery + time.Second
	// silentMax is when a node's last word counts no more.
	silentMax = (agentapi.UseEvery + 2) * agentapi.MeasureEvery
	// edgeKept is how long after it was told last a series of a task that ended is kept, so that it is not taken for a new one if it is
	// told again: longer than edges keep it.
	edgeKept = 15 * time.Minute
	// sinceMax is how far back counts are believed that a series had before its node was heard of.
	sinceMax = time.Minute
)

// LeftOut are the series that there was no room for, and the reports that made no sense, since the start.
type LeftOut struct{ Services, Tasks, Edges, Senseless uint64 }

// Keeper keeps measures.
type Keeper struct {
	cfg Config

	mu       sync.Mutex
	services map[cluster.ID]*service
	tasks    map[cluster.ID]*task
	nodes    map[cluster.ID]*node
	edges    int // series of all nodes
	left     LeftOut

	missing   int // nodes that were silent at missingAt; zero: count them
	missingAt time.Time
}

type service struct {
	rings [len(serviceRings)]ring
	total sums
	tasks map[cluster.ID]*task
	ended uint64
	sizes sizes
}

type task struct {
	service cluster.ID
	ring    ring
	total   []byte // packed sums of its requests
	use     agentapi.TaskUse
	seen    time.Time // when use was told; zero: it was not
}

// series is what one process counts: while one takes over from another, both have requests of the same task.
type series struct {
	service, task cluster.ID
	since         int64
}

// edge is what a node's edge has counted for a series.
type edge struct {
	counts   []byte // packed
	inflight int64
	heard    time.Time
}

type node struct {
	at          time.Time // of its last report, by its own clock
	heard, used time.Time // when it reported last, and its use
	full        bool      // it has told all of its series once
	edges       map[series]edge
	use         agentapi.NodeUse // without its tasks
}

// New makes a Keeper that knows nothing.
func New(cfg Config) *Keeper {
	for _, d := range []struct {
		limit *int
		or    int
	}{{&cfg.ServicesMax, servicesMax}, {&cfg.TasksMax, tasksMax}, {&cfg.EdgesMax, edgesMax}} {
		if *d.limit == 0 {
			*d.limit = d.or
		}
	}
	return &Keeper{cfg: cfg, services: make(map[cluster.ID]*service), tasks: make(map[cluster.ID]*task), nodes: make(map[cluster.ID]*node)}
}

// Take takes a node's report.
func (k *Keeper) Take(id cluster.ID, m agentapi.Measures, now time.Time) {
	k.mu.Lock()
	defer k.mu.Unlock()
	n := k.nodes[id]
	if n == nil {
		n = &node{edges: make(map[series]edge)}
		k.nodes[id] = n
	}
	if m.At.Before(n.at) && n.at.Sub(m.At) < sinceMax {
		return // it came by way of another manager, and a newer one was faster
	}
	n.at = m.At
	if now.Before(n.heard) {
		now = n.heard // the clock was set back: what follows must not
	}
	if now.Sub(n.heard) > silentMax {
		k.missingAt = time.Time{}
	}
	told := make(map[series]bool, len(m.Requests))
	for i := range m.Requests {
		r := &m.Requests[i]
		told[series{r.Service, r.Task, r.Since}] = true
		k.takeRequests(n, r, m.At, now)
	}
	if m.Full {
		for s := range n.edges {
			if !told[s] {
				delete(n.edges, s)
				k.edges--
			}
		}
		n.full = true
	}
	n.heard = now
	if m.Use != nil {
		k.takeUse(id, n, m.Use, now)
	}
}

// takeRequests adds what one series of a node's edge has counted since the node's report before.
func (k *Keeper) takeRequests(n *node, r *agentapi.RequestMeasure, at, now time.Time) {
	counts, err := requests(r)
	if err != nil {
		k.left.Senseless++
		return
	}
	key := series{r.Service, r.Task, r.Since}
	last, known := n.edges[key]
	if !known && k.edges >= k.cfg.EdgesMax {
		k.left.Edges++
		return
	}
	packed := counts.pack()
	from, age := n.heard, at.Sub(time.Unix(0, r.Since))
	switch {
	case known:
		var before sums
		before.unpack(last.counts)
		if !counts.minus(&before) {
			k.left.Senseless++ // older than what is known: had it its way, the difference would count twice
			return
		}
	case n.full: // all that it has, it has counted since the report before
	case age > sinceMax:
		counts = sums{} // how much of it is of now, nobody knows
	default:
		from = now.Add(-max(0, age))
	}
	if from.IsZero() || from.After(now) {
		from = now
	}
	if !known {
		k.edges++
	}
	n.edges[key] = edge{counts: packed, inflight: max(0, r.InFlight), heard: now}
	busy := now.Sub(from)
	if known && last.inflight > 0 {
		busy = now.Sub(last.heard) // a node with many series tells some of them less often
	}
	counts[inflight] = uint64(max(0, r.InFlight)) * uint64(busy.Milliseconds())
	counts[reports] = 1
	k.add(r.Service, r.Task, &counts, from, now)
}

// takeUse adds what the tasks of a node have used since it was told before.
func (k *Keeper) takeUse(id cluster.ID, n *node, u *agentapi.NodeUse, now time.Time) {
	for _, x := range u.Tasks {
		known, ok := k.cfg.Task(x.Task)
		if !ok || known.Node != id {
			continue // it has ended meanwhile; or it is no task of this node
		}
		t := k.task(x.Task, known.Service)
		if t == nil {
			continue
		}
		before, since := t.use, t.seen
		t.use, t.seen = x, now
		span := now.Sub(since)
		if since.IsZero() || span <= 0 || x.CPU < before.CPU {
			continue // there is nothing to compare it with
		}
		var s sums
		s[cpu] = uint64((x.CPU - before.CPU).Microseconds())
		s[memory] = x.Memory >> 10 * uint64(span.Milliseconds())
		s[present] = uint64(span.Milliseconds())
		if known.CPU > 0 && known.Ready {
			s[cpuReserved], s[reservation] = s[cpu], uint64(known.CPU)*uint64(span.Milliseconds())
		}
		s[netReceived], s[netSent] = x.Received-min(before.Received, x.Received), x.Sent-min(before.Sent, x.Sent)
		s[reports] = 1
		k.add(known.Service, x.Task, &s, since, now)
		if svc := k.services[known.Service]; svc != nil {
			svc.sizes.add((x.CPU-before.CPU).Seconds()/span.Seconds(), x.Memory, now)
		}
	}
	n.use, n.used = *u, now
	n.use.Tasks = nil
}

// add adds sums to a service and, unless it is zero or has ended, to a task.
func (k *Keeper) add(id, of cluster.ID, s *sums, from, to time.Time) {
	svc := k.service(id)
	if svc == nil {
		return
	}
	svc.total.add(s)
	for i := range svc.rings {
		svc.rings[i].add(s, from, to)
	}
	if of.IsZero() {
		return
	}
	if t, ok := k.cfg.Task(of); ok && t.Service == id {
		if t := k.task(of, id); t != nil {
			t.ring.add(s, from, to)
			t.count(s)
		}
	}
}

// service is the series of a service; nil when there is none such, or no room.
func (k *Keeper) service(id cluster.ID) *service {
	svc := k.services[id]
	if svc != nil || !k.cfg.Service(id) {
		return svc
	}
	if len(k.services) >= k.cfg.ServicesMax {
		k.left.Services++
		return nil
	}
	svc = &service{tasks: make(map[cluster.ID]*task)}
	for i, r := range serviceRings {
		svc.rings[i] = newRing(r)
	}
	k.services[id] = svc
	return svc
}

// task is the series of a task; nil when there is no room.
func (k *Keeper) task(id, of cluster.ID) *task {
	t := k.tasks[id]
	if t != nil {
		return t
	}
	svc := k.service(of)
	if svc == nil {
		return nil
	}
	if len(k.tasks) >= k.cfg.TasksMax {
		k.left.Tasks++
		return nil
	}
	t = &task{service: of, ring: newRing(taskRing)}
	k.tasks[id], svc.tasks[id] = t, t
	return t
}

// lives reports whether anything may yet be counted for a series.
func (k *Keeper) lives(s series) bool {
	if s.task.IsZero() {
		return k.cfg.Service(s.service)
	}
	_, ok := k.cfg.Task(s.task)
	return ok
}

// Ended counts a task of a service that failed.
func (k *Keeper) Ended(id cluster.ID) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if svc := k.service(id); svc != nil {
		svc.ended++
	}
}

// Forget forgets services and tasks that are gone, nodes that are not known, and what these counted of tasks that ended long ago.
func (k *Keeper) Forget(known func(node cluster.ID) bool, now time.Time) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for id := range k.services {
		if !k.cfg.Service(id) {
			delete(k.services, id)
		}
	}
	for id, t := range k.tasks {
		if _, ok := k.cfg.Task(id); ok {
			continue
		}
		delete(k.tasks, id)
		if svc := k.services[t.service]; svc != nil {
			delete(svc.tasks, id)
		}
	}
	k.missingAt = time.Time{}
	for id, n := range k.nodes {
		if !known(id) {
			k.edges -= len(n.edges)
			delete(k.nodes, id)
			continue
		}
		for s, e := range n.edges {
			if now.Sub(e.heard) > edgeKept && !k.lives(s) {
				delete(n.edges, s)
				k.edges--
			}
		}
	}
}
