package edge

import (
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"baton/internal/model/spec"
)

// limitedClients is how many clients of a rule are told apart at once, in each of two generations: about 3 MB in all. With more of them the
// ones not seen for longest are forgotten, and begin with a full burst.
const limitedClients = 8 << 10

// limiter bounds how often each client is served.
type limiter struct {
	limit spec.RateLimit

	mu         sync.Mutex
	fresh, old map[clientKey]*rate.Limiter
}

// clientKey is an address, or the beginning of a header's value: a long one must take no more memory.
type clientKey struct {
	address netip.Addr
	header  string
}

// headerKeyMax is how much of a header's value counts.
const headerKeyMax = 128

func newLimiter(l spec.RateLimit) *limiter {
	return &limiter{limit: l, fresh: make(map[clientKey]*rate.Limiter), old: make(map[clientKey]*rate.Limiter)}
}

// take counts a request. It returns how long its client must wait, zero when it is served.
func (l *limiter) take(r *http.Request, client netip.Addr, now time.Time) time.Duration {
	at := l.of(l.key(r, client)).ReserveN(now, 1)
	wait := at.DelayFrom(now)
	if wait > 0 {
		at.CancelAt(now) // who is refused has not been served
	}
	return wait
}

func (l *limiter) key(r *http.Request, client netip.Addr) clientKey {
	if l.limit.Header != "" {
		if v := r.Header.Get(l.limit.Header); v != "" {
			return clientKey{header: strings.Clone(v[:min(len(v), headerKeyMax)])}
		}
	}
	if client.Is6() { // whoever has one address of a /64 has all of them
		n, _ := client.Prefix(64)
		client = n.Addr()
	}
	return clientKey{address: client}
}

func (l *limiter) of(key clientKey) *rate.Limiter {
	l.mu.Lock()
	defer l.mu.Unlock()
	if b := l.fresh[key]; b != nil {
		return b
	}
	if len(l.fresh) >= limitedClients {
		l.old, l.fresh = l.fresh, make(map[clientKey]*rate.Limiter)
	}
	b := l.old[key]
	if b == nil {
		b = rate.NewLimiter(rate.Limit(l.limit.Rate), l.limit.Burst)
	}
	l.fresh[key] = b
	return b
}

// limiters are those of an edge by rule: a new table must not give every client a new burst.
type limiters map[limiterKey]*limiter

type limiterKey struct {
	rule  string
	limit spec.RateLimit
}

// limiter implements sources.
func (s *source) limiter(g *spec.Ingress) *limiter {
	if g.RateLimit == nil {
		return nil
	}
	key := limiterKey{g.Key(), *g.RateLimit}
	l := s.edge.limits[key]
	if l == nil {
		l = newLimiter(*g.RateLimit)
		s.edge.limits[key] = l
	}
	s.limits[key] = true
	return l
}
