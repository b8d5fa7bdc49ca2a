package edge

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"sync"
	"time"

	"baton/internal/model/cluster"
	"baton/internal/wire/agentapi"
)

// The limits of a service that names none, and how often its managers hear that it is wanted.
const (
	holdWait     = 30 * time.Second
	holdRequests = 100
	wakeEvery    = time.Second
	wokenMax     = 4096 // services of which it is remembered when they were said to be wanted
)

var (
	errHeldFull = errors.New("too many requests wait for the service to start")
	errHeldLong = errors.New("the service was not ready in time")
)

// hold is how the requests for a service that may rest wait.
type hold struct {
	service cluster.ID
	wait    time.Duration
	max     int
}

func newHold(s *agentapi.Service) *hold {
	if !s.Holds {
		return nil
	}
	h := &hold{service: s.ID, wait: s.HoldWait, max: s.HoldRequests}
	if h.wait <= 0 {
		h.wait = holdWait
	}
	if h.max <= 0 {
		h.max = holdRequests
	}
	return h
}

// holder keeps requests whose service has no endpoint, in order of arrival. Nothing of their bodies is read meanwhile, so what
// waits takes its header (headerMax), its goroutine and what the kernel buffers of its connection.
type holder struct {
	wake func(cluster.ID)

	mu     *sync.Mutex
	queues map[cluster.ID][]*waiter
	woken  map[cluster.ID]time.Time // when wake was last called
}

// waiter is one request that waits. turn gives a token when it is to look again.
type waiter struct{ turn chan struct{} }

func (w *waiter) notify() {
	select {
	case w.turn <- struct{}{}:
	default:
	}
}

func newHolder(wake func(cluster.ID)) holder {
	if wake == nil {
		wake = func(cluster.ID) {}
	}
	return holder{wake: wake, mu: new(sync.Mutex), queues: make(map[cluster.ID][]*waiter), woken: make(map[cluster.ID]time.Time)}
}

// want says that a service is wanted, about once a second whoever says it.
func (h holder) want(service cluster.ID) {
	now := time.Now()
	h.mu.Lock()
	news := now.Sub(h.woken[service]) >= wakeEvery
	if len(h.woken) > wokenMax {
		clear(h.woken)
	}
	if news {
		h.woken[service] = now
	}
	h.mu.Unlock()
	if news {
		h.wake(service)
	}
}

// enter adds a request to the queue of its service; nil when that is full.
func (h holder) enter(s *hold) *waiter {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.queues[s.service]) >= s.max {
		return nil
	}
	w := &waiter{turn: make(chan struct{}, 1)}
	h.queues[s.service] = append(h.queues[s.service], w)
	return w
}

// leave takes a request out of the queue. Then the next one looks: so they go one after the other, in order of arrival.
func (h holder) leave(s *hold, w *waiter) {
	h.mu.Lock()
	defer h.mu.Unlock()
	q := slices.DeleteFunc(h.queues[s.service], func(o *waiter) bool { return o == w })
	if len(q) == 0 {
		delete(h.queues, s.service)
		return
	}
	h.queues[s.service] = q
	q[0].notify()
}

// waiting reports whether requests wait for the service.
func (h holder) waiting(s *hold) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.queues[s.service]) > 0
}

// first reports whether a request is the first of its queue.
func (h holder) first(s *hold, w *waiter) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	q := h.queues[s.service]
	return len(q) > 0 && q[0] == w
}

// look makes the first request of each queue look at the table, which is new.
func (h holder) look() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, q := range h.queues {
		q[0].notify()
	}
}

// await finds an endpoint for a request, and waits for one if its service may rest.
func (e *Edge) await(req *http.Request, tried []*backend) (*backend, error) {
	r := e.table.Load().find(req.Host, req.URL.Path)
	if r == nil || r.hold == nil {
		if b := e.acquire(req, tried); b != nil {
			return b, nil
		}
		return nil, errNoEndpoint
	}
	e.held.want(r.hold.service)
	if !e.held.waiting(r.hold) { // else it would overtake
		if b := e.acquire(req, tried); b != nil {
			return b, nil
		}
	}
	if len(tried) > 0 {
		return nil, errNoEndpoint // there are endpoints, and none could be reached
	}
	w := e.held.enter(r.hold)
	if w == nil {
		return nil, errHeldFull
	}
	defer e.held.leave(r.hold, w)
	return e.wait(req, r.hold, w)
}

// wait is await for a request in the queue. It ends with the client.
func (e *Edge) wait(req *http.Request, h *hold, w *waiter) (*backend, error) {
	ctx, cancel := context.WithTimeoutCause(req.Context(), h.wait, errHeldLong)
	defer cancel()
	tick := time.NewTicker(wakeEvery)
	defer tick.Stop()
	for {
		// Also before the first wait: the endpoint may have come between the look and the queue.
		if e.held.first(h, w) {
			if b := e.acquire(req, nil); b != nil {
				return b, nil
			}
			if r := e.table.Load().find(req.Host, req.URL.Path); r == nil || r.hold == nil {
				return nil, errNoEndpoint // it is held no longer
			}
		}
		select {
		case <-w.turn:
		case <-tick.C:
			e.held.want(h.service)
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// pulse says again and again which services have requests under way, so that none of them is put to rest.
func (e *Edge) pulse(ctx context.Context) {
	tick := time.NewTicker(wakeEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		for r := range e.table.Load().all() {
			if r.hold != nil && slices.ContainsFunc(r.backends, func(b *backend) bool { return b.inflight.Load() > 0 }) {
				e.held.want(r.hold.service)
			}
		}
	}
}
