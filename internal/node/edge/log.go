package edge

import (
	"net/http"
	"net/netip"
	"sync"
	"time"

	"baton/internal/model/spec"
)

// linesPerSecond bounds the access log: a node's log must not grow with its traffic.
const linesPerSecond = 5

// sampler lets a few events of each second through and counts the others.
type sampler struct {
	mu      sync.Mutex
	second  int64
	lines   int
	skipped int
}

// take reports whether an event is to be logged, and how many were not since the last one that was.
func (s *sampler) take(now time.Time) (skipped int, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n := now.Unix(); n != s.second {
		s.second, s.lines = n, 0
	}
	if s.lines >= linesPerSecond {
		s.skipped++
		return 0, false
	}
	s.lines++
	skipped, s.skipped = s.skipped, 0
	return skipped, true
}

// access logs a request that has ended. The query is left out: it may hold what only client and task should know.
func (e *Edge) access(r *http.Request, rec *recorder, x *exchange, service string, task netip.AddrPort, took time.Duration) {
	skipped, client := 0, r.RemoteAddr
	mode := spec.LogSampled
	if x.rule != nil && x.rule.policy != nil {
		mode = x.rule.policy.log
	}
	switch mode {
	case spec.LogOff:
		return
	case spec.LogFull:
	default:
		ok := false
		if skipped, ok = e.sampler.take(time.Now()); !ok {
			return
		}
	}
	if x.caller.proxied {
		client = x.caller.address.String()
	}
	args := []any{
		"method", r.Method, "host", r.Host, "path", r.URL.Path, "status", rec.status, "bytes", rec.bytes, "took", took,
		"client", client, "service", service,
	}
	if task.IsValid() {
		args = append(args, "task", task)
	}
	if x.err != nil {
		args = append(args, "err", x.err)
	}
	if skipped > 0 {
		args = append(args, "skipped", skipped)
	}
	e.cfg.Log.Info("request", args...)
}
