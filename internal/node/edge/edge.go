// Package edge serves a node's L7 ingress: HTTP requests go by host and path to a ready task of a service, wherever it runs.
//
// It owns the routing table, the connections to the tasks, how many requests each task has in flight, what came of all requests
// (Measures), the certificates of hosts (tls.go), what rules do with a request on its way (rule.go), and the requests that wait for the first
// task of a service that rests (hold.go). The table follows
// the same network state as the node's other load balancers and is replaced as a whole, so a request is routed by one state.
// The edge listens only while there are rules.
//
// Invariants: when Apply has returned, no request goes to an address that the new state does not have, and every request that
// still is with such an address counts in Connections until its last byte: a drain may wait for it. A request is sent to
// another endpoint only while nothing of it was sent to the first and its body was not read. Headers by which a client could pose as somebody
// else, or smuggle a request past the rules, never reach a task. A rule with TLS is served over TLS only, and no host with the certificate of
// another one.
//
// A task that leaves keeps the requests it has, WebSockets and streams among them; its idle connections are closed at once,
// because an open one would hold up its drain.
//
// Concurrency: everything may be called at once. Run owns the listener and returns after all requests ended.
package edge

import (
	"context"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/http/httputil"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"baton/internal/model/cluster"
	"baton/internal/wire/agentapi"
)

// Config is what an edge is made of.
type Config struct {
	// Listen opens the port on which the rules are served.
	Listen func(ctx context.Context) (net.Listener, error)
	// Failed is told when the port cannot be opened, once until it can again; may be nil.
	Failed func(error)
	// ConnectionsMax and RequestsMax bound the clients' connections and the requests under way, so that the edge never takes all
	// the files that the node's process may open. Further connections wait, further requests get 503. Zero: 8192 and 16384.
	ConnectionsMax, RequestsMax int
	// Wake is told, about once a second, of each service with Holds for which requests wait or are under way; may be nil. It must not block.
	Wake func(service cluster.ID)
	Log  *slog.Logger
}

// The default limits of an edge. A request takes one more connection, to its task.
const (
	connectionsMax = 8 << 10
	requestsMax    = 16 << 10
)

// Edge routes requests to tasks.
type Edge struct {
	cfg      Config
	table    atomic.Pointer[table]
	proxy    *httputil.ReverseProxy
	sampler  sampler
	counters counters
	held     holder
	limits   limiters      // of Apply
	changed  chan struct{} // the table was replaced

	certificates atomic.Pointer[certificates]

	mu       sync.Mutex // of Apply, and of backends
	backends map[netip.AddrPort]*backend
}

// New makes an edge without rules.
func New(cfg Config) *Edge {
	if cfg.ConnectionsMax == 0 {
		cfg.ConnectionsMax = connectionsMax
	}
	if cfg.RequestsMax == 0 {
		cfg.RequestsMax = requestsMax
	}
	e := &Edge{cfg: cfg, changed: make(chan struct{}, 1), backends: make(map[netip.AddrPort]*backend), limits: make(limiters)}
	e.counters.of = make(map[series]*counter)
	e.held = newHolder(cfg.Wake)
	e.table.Store(newTable(nil, nil))
	e.follow(agentapi.NetworkState{})
	e.proxy = e.newProxy()
	return e
}

// Apply makes new requests follow s. Requests under way stay where they are.
func (e *Edge) Apply(s agentapi.NetworkState) {
	e.mu.Lock()
	defer e.mu.Unlock()
	from := &source{edge: e, now: time.Now(), used: make(map[netip.AddrPort]bool), counters: make(map[*counter]bool), limits: make(map[limiterKey]bool)}
	next := newTable(s.Services, from)
	used := from.used
	maps.DeleteFunc(e.limits, func(k limiterKey, _ *limiter) bool { return !from.limits[k] })
	e.follow(s)
	e.counters.keep(from.counters, from.now)
	for address, b := range e.backends {
		if used[address] {
			b.gone.Store(false)
		}
	}
	e.table.Store(next)
	e.held.look()
	// After the table: a request that finds its endpoint gone must find a newer table than the one it came from.
	for address, b := range e.backends {
		if used[address] {
			continue
		}
		b.gone.Store(true)
		b.closeIdle()
		if b.inflight.Load() == 0 {
			delete(e.backends, address)
		}
	}
	select {
	case e.changed <- struct{}{}:
	default:
	}
}

// source gives the table that Apply makes its backends and counters, and remembers which it gave.
type source struct {
	edge     *Edge
	now      time.Time
	used     map[netip.AddrPort]bool
	counters map[*counter]bool
	limits   map[limiterKey]bool
}

// backend implements sources. The address of a task that left may be another one's now.
func (s *source) backend(at netip.AddrPort, service, task cluster.ID) *backend {
	s.used[at] = true
	b := s.edge.backends[at]
	if b == nil {
		b = newBackend(at)
		s.edge.backends[at] = b
	}
	n := s.edge.counters.get(service, task, s.now)
	s.counters[n] = true
	b.counter.Store(n)
	return b
}

// counter implements sources.
func (s *source) counter(service cluster.ID) *counter {
	n := s.edge.counters.get(service, cluster.ID{}, s.now)
	s.counters[n] = true
	return n
}

// Connections counts the requests that are with the tasks of an address, also those that left the table.
func (e *Edge) Connections(address netip.Addr) int {
	e.mu.Lock()
	defer e.mu.Unlock()
	n := int64(0)
	for a, b := range e.backends {
		if a.Addr() == address {
			n += b.inflight.Load()
		}
	}
	return int(n)
}

// acquire chooses an endpoint for a request, other than those tried, and counts the request there. It returns nil when there
// is none. The caller releases it.
func (e *Edge) acquire(req *http.Request, tried []*backend) *backend {
	for {
		r := e.table.Load().find(req.Host, req.URL.Path)
		if r == nil {
			return nil
		}
		b := r.sticky.of(exchangeOf(req).cookie)
		if b == nil || slices.Contains(tried, b) {
			b = r.pick(tried, time.Now())
		}
		if b == nil {
			return nil
		}
		b.inflight.Add(1)
		// Either this sees that Apply took the endpoint away, or Connections sees the request.
		if !b.gone.Load() {
			return b
		}
		e.release(b) // there is a newer table
	}
}

// release ends a request's stay with an endpoint.
func (e *Edge) release(b *backend) {
	if b.inflight.Add(-1) > 0 || !b.gone.Load() {
		return
	}
	b.closeIdle()
	e.mu.Lock()
	defer e.mu.Unlock()
	if b.gone.Load() && b.inflight.Load() == 0 && e.backends[b.address] == b {
		delete(e.backends, b.address)
	}
}
