package edge

import (
	"context"
	"errors"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"baton/internal/model/cluster"
	"baton/internal/wire/agentapi"
)

const (
	// seriesMax bounds how many tasks are counted apart; the requests of more count with their services'. One takes 0.7 KB.
	seriesMax = 4096
	// seriesKept is how long the counts of a task that left, or of a service without rules, are told of: longer than two full reports, so
	// that every manager has the last of them.
	seriesKept = 5 * time.Minute
)

// counter counts the requests to one task, or to a service as far as no task had them. It is only added to.
type counter struct {
	service, task cluster.ID
	since         int64

	inflight, took                atomic.Int64
	classes                       [agentapi.RequestClasses]atomic.Uint64
	noEndpoint, unreached, broken atomic.Uint64
	received, sent                atomic.Uint64
	latency                       [agentapi.LatencyBuckets]atomic.Uint64
	left                          time.Time // when no table had it any more; zero: one has
}

type series struct{ service, task cluster.ID }

// counters are all counters of an edge.
type counters struct {
	mu    sync.Mutex
	of    map[series]*counter
	tasks int // of them those of tasks
	last  int64
}

// get is the counter of a task or, when task is zero or there are too many, that of its service.
func (c *counters) get(service, task cluster.ID, now time.Time) *counter {
	c.mu.Lock()
	defer c.mu.Unlock()
	key := series{service, task}
	if n := c.of[key]; n != nil {
		return n
	}
	if !task.IsZero() {
		if c.tasks >= seriesMax {
			return c.make(series{service: service}, now)
		}
		c.tasks++
	}
	return c.make(key, now)
}

// make returns the counter of key and makes it if there is none. The caller holds the lock.
func (c *counters) make(key series, now time.Time) *counter {
	n := c.of[key]
	if n == nil {
		// Two that follow each other must differ, also when the clock was set back.
		c.last = max(c.last+1, now.UnixNano())
		n = &counter{service: key.service, task: key.task, since: c.last}
		c.of[key] = n
	}
	return n
}

// keep marks the counters that no table uses, and forgets those that were not used for long.
func (c *counters) keep(used map[*counter]bool, now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, n := range c.of {
		switch {
		case used[n]:
			n.left = time.Time{}
		case n.left.IsZero():
			n.left = now
		}
	}
}

// measures is what all counters say, sorted. Those that left long ago and have no request are forgotten.
func (c *counters) measures(now time.Time) []agentapi.RequestMeasure {
	c.mu.Lock()
	list := make([]*counter, 0, len(c.of))
	for key, n := range c.of {
		if !n.left.IsZero() && now.Sub(n.left) > seriesKept && n.inflight.Load() == 0 {
			delete(c.of, key)
			if !key.task.IsZero() {
				c.tasks--
			}
			continue
		}
		list = append(list, n)
	}
	c.mu.Unlock()
	var out []agentapi.RequestMeasure
	for _, n := range list {
		if m := n.measure(); m.InFlight > 0 || m.Requests() > 0 {
			out = append(out, m)
		}
	}
	slices.SortFunc(out, func(a, b agentapi.RequestMeasure) int {
		if d := slices.Compare(a.Service[:], b.Service[:]); d != 0 {
			return d
		}
		return slices.Compare(a.Task[:], b.Task[:])
	})
	return out
}

func (n *counter) measure() agentapi.RequestMeasure {
	m := agentapi.RequestMeasure{
		Service: n.service, Task: n.task, Since: n.since, NoEndpoint: n.noEndpoint.Load(), Unreached: n.unreached.Load(), Broken: n.broken.Load(),
		InFlight: n.inflight.Load(), Received: n.received.Load(), Sent: n.sent.Load(), Took: time.Duration(n.took.Load()),
	}
	for i := range m.Classes {
		m.Classes[i] = n.classes[i].Load()
	}
	var h agentapi.Histogram
	for i := range h {
		h[i] = n.latency[i].Load()
	}
	m.Latency = h.Sparse()
	return m
}

// Measures is what was counted so far: cumulative, sorted by service and task, without series that never had a request.
func (e *Edge) Measures() []agentapi.RequestMeasure { return e.counters.measures(time.Now()) }

// counted makes the exchange count with n from now on. A request is in flight with one counter at a time.
func (x *exchange) counted(n *counter) {
	if n == x.counter {
		return
	}
	n.inflight.Add(1)
	if x.counter != nil {
		x.counter.inflight.Add(-1)
	}
	x.counter = n
}

// ended counts a request that has ended.
func (x *exchange) ended(r *http.Request, rec *recorder, start time.Time, took time.Duration) {
	n := x.counter
	if n == nil {
		return // no rule leads anywhere
	}
	n.inflight.Add(-1)
	n.received.Add(x.received.Load())
	n.sent.Add(uint64(rec.bytes))
	status := rec.status
	if status == 0 && x.status == http.StatusSwitchingProtocols {
		status = x.status // a tunnel's header does not pass the recorder
	}
	class := status / 100
	if class >= agentapi.RequestClasses {
		class = 5 // a status that HTTP does not know is a fault of the task
	}
	n.classes[class].Add(1)
	gone := r.Context().Err() != nil
	var unsent *dialError
	switch {
	case errors.Is(x.err, errNoEndpoint):
		n.noEndpoint.Add(1)
	case gone: // whatever went wrong then, the client did not wait for it
	case errors.As(x.err, &unsent):
		n.unreached.Add(1)
	case x.err != nil || x.cut.Load():
		n.broken.Add(1)
	}
	if x.header.IsZero() {
		return
	}
	if x.stream {
		took = x.header.Sub(start)
	}
	n.latency[agentapi.LatencyBucket(took)].Add(1)
	n.took.Add(int64(took))
}

// answer notes that a task has begun to answer, and watches how its body ends.
func (x *exchange) answer(req *http.Request, res *http.Response) {
	x.header, x.status = time.Now(), res.StatusCode
	x.stream = isGRPC(req) || strings.HasPrefix(res.Header.Get("Content-Type"), "text/event-stream")
	x.clock.answered(res.StatusCode == http.StatusSwitchingProtocols)
	if res.StatusCode == http.StatusSwitchingProtocols {
		x.stream = true // and its body must stay one that can be written
		return
	}
	res.Body = &watched{ReadCloser: res.Body, x: x}
}

// watched is an answer's body that tells when the task broke it off.
type watched struct {
	io.ReadCloser
	x *exchange
}

// Read implements io.Reader.
func (w *watched) Read(p []byte) (int, error) {
	n, err := w.ReadCloser.Read(p)
	w.x.clock.moved()
	if err != nil && err != io.EOF && !errors.Is(err, context.Canceled) {
		w.x.cut.Store(true)
	}
	return n, err
}
