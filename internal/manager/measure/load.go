package measure

import (
	"time"

	"baton/internal/model/cluster"
	"baton/internal/model/spec"
	"baton/internal/wire/agentapi"
)

// Load is what a service or a task had to do in a span of time.
type Load struct {
	// From and To are the span that the numbers are of: that which was asked for, in whole steps of what is remembered.
	From, To time.Time
	// Requests are those that ended, in Classes by the class of their status (0: the client went before there was one).
	Requests uint64
	Classes  [agentapi.RequestClasses]uint64
	// NoEndpoint, Unreached and Broken are those that failed between client and task.
	NoEndpoint, Unreached, Broken uint64
	Rate                          float64 // requests per second
	InFlight                      float64 // mean
	Received, Sent                uint64  // bytes of bodies
	Latency                       agentapi.Histogram

	// Tasks are those whose use is known now.
	Tasks int
	// CPU is the share of the reservation that ready tasks used; 0 without a reservation, and then Reserved is false.
	CPU      float64
	Reserved bool
	// CPUTask is how many cores a task used, in the mean; CPUUsed is that times Tasks.
	CPUTask, CPUUsed float64
	Memory           spec.Bytes // mean of a task
	NetReceived      uint64     // bytes over the tasks' own network
	NetSent          uint64

	// Samples are the reports of which all this is made. Zero: nothing is known, which is not the same as nothing happened.
	Samples uint64
	// Missing are the nodes that should report and have not of late.
	Missing int
}

// Quantile is the latency that a share p of the requests did not exceed.
func (l Load) Quantile(p float64) time.Duration { return l.Latency.Quantile(p) }

// Failed are the requests that failed between client and task.
func (l Load) Failed() uint64 { return l.NoEndpoint + l.Unreached + l.Broken }

func (s *sums) load(begin, end time.Time) Load {
	l := Load{
		From: begin, To: end, NoEndpoint: s[noEndpoint], Unreached: s[unreached], Broken: s[broken], Received: s[received], Sent: s[sent],
		NetReceived: s[netReceived], NetSent: s[netSent], Samples: s[reports],
	}
	copy(l.Classes[:], s[classes:])
	for _, n := range l.Classes {
		l.Requests += n
	}
	copy(l.Latency[:], s[latency:])
	if span := end.Sub(begin); span > 0 {
		l.Rate = float64(l.Requests) / span.Seconds()
		l.InFlight = float64(s[inflight]) / float64(span.Milliseconds())
	}
	if s[reservation] > 0 {
		l.CPU, l.Reserved = float64(s[cpuReserved])/float64(s[reservation]), true
	}
	if s[present] > 0 {
		l.CPUTask = float64(s[cpu]) / 1000 / float64(s[present])
		l.Memory = spec.Bytes(s[memory] / s[present] << 10)
	}
	return l
}

// Window is what a service had to do in a span of time. What happened less than Lag ago is not known in full: end before that.
func (k *Keeper) Window(id cluster.ID, from, to time.Time) Load {
	k.mu.Lock()
	defer k.mu.Unlock()
	l := Load{From: from, To: to}
	if svc := k.services[id]; svc != nil && from.Before(to) {
		r := &svc.rings[len(svc.rings)-1]
		for i := range svc.rings {
			if svc.rings[i].reaches(from) {
				r = &svc.rings[i]
				break
			}
		}
		s, begin, end := r.sum(from, to)
		l = s.load(begin, end)
		for _, t := range svc.tasks {
			if !t.seen.IsZero() && to.Sub(t.seen) <= silentMax {
				l.Tasks++
			}
		}
	}
	l.CPUUsed = l.CPUTask * float64(l.Tasks)
	l.Missing = k.silent(to)
	return l
}

// TaskWindow is what a task had to do. It is remembered for 5 minutes.
func (k *Keeper) TaskWindow(id cluster.ID, from, to time.Time) Load {
	k.mu.Lock()
	defer k.mu.Unlock()
	t := k.tasks[id]
	if t == nil || !from.Before(to) {
		return Load{From: from, To: to}
	}
	s, begin, end := t.ring.sum(from, to)
	l := s.load(begin, end)
	if to.Sub(t.seen) <= silentMax {
		l.Tasks = 1
	}
	l.CPUUsed = l.CPUTask * float64(l.Tasks)
	return l
}

// silent counts the nodes that should report and do not. It looks anew once a second: there may be many nodes, and many who ask.
func (k *Keeper) silent(at time.Time) int {
	if !k.missingAt.IsZero() && at.Sub(k.missingAt).Abs() < time.Second {
		return k.missing
	}
	n := 0
	for _, id := range k.cfg.Nodes() {
		if x := k.nodes[id]; x == nil || at.Sub(x.heard) > silentMax {
			n++
		}
	}
	k.missing, k.missingAt = n, at
	return n
}

// Total is what became of a service since the manager heard of it. It only grows, but InFlight.
type Total struct {
	Classes                       [agentapi.RequestClasses]uint64
	NoEndpoint, Unreached, Broken uint64
	Received, Sent                uint64
	Latency                       agentapi.Histogram
	Took                          time.Duration // the sum of the latencies
	Ended                         uint64        // tasks that failed
	InFlight                      int64         // now
}

// Totals are those of all services.
func (k *Keeper) Totals(now time.Time) map[cluster.ID]Total {
	k.mu.Lock()
	defer k.mu.Unlock()
	out := make(map[cluster.ID]Total, len(k.services))
	for id, svc := range k.services {
		s := &svc.total
		t := Total{NoEndpoint: s[noEndpoint], Unreached: s[unreached], Broken: s[broken], Received: s[received], Sent: s[sent], Took: time.Duration(s[took]) * time.Microsecond, Ended: svc.ended}
		copy(t.Classes[:], s[classes:])
		copy(t.Latency[:], s[latency:])
		out[id] = t
	}
	for _, n := range k.nodes {
		if now.Sub(n.heard) > silentMax {
			continue
		}
		for key, e := range n.edges {
			if t, ok := out[key.service]; ok {
				t.InFlight += e.inflight
				out[key.service] = t
			}
		}
	}
	return out
}

// InFlight are the requests that are with a task, and those with a service, now.
func (k *Keeper) InFlight(now time.Time) (tasks, services map[cluster.ID]int64) {
	k.mu.Lock()
	defer k.mu.Unlock()
	tasks, services = make(map[cluster.ID]int64), make(map[cluster.ID]int64)
	for _, n := range k.nodes {
		if now.Sub(n.heard) > silentMax {
			continue
		}
		for key, e := range n.edges {
			services[key.service] += e.inflight
			if !key.task.IsZero() {
				tasks[key.task] += e.inflight
			}
		}
	}
	return tasks, services
}

// TaskUses are what tasks used, as it was told last.
func (k *Keeper) TaskUses(now time.Time) []agentapi.TaskUse {
	k.mu.Lock()
	defer k.mu.Unlock()
	var out []agentapi.TaskUse
	for _, t := range k.tasks {
		if !t.seen.IsZero() && now.Sub(t.seen) <= silentMax {
			out = append(out, t.use)
		}
	}
	return out
}

// NodeUses are what nodes used, as it was told last, without their tasks.
func (k *Keeper) NodeUses(now time.Time) map[cluster.ID]agentapi.NodeUse {
	k.mu.Lock()
	defer k.mu.Unlock()
	out := make(map[cluster.ID]agentapi.NodeUse)
	for id, n := range k.nodes {
		if !n.used.IsZero() && now.Sub(n.used) <= silentMax {
			out[id] = n.use
		}
	}
	return out
}

// Size tells how many series there are, and what was left out.
func (k *Keeper) Size() (services, tasks, edges int, left LeftOut) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return len(k.services), len(k.tasks), k.edges, k.left
}
