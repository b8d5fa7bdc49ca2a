package edge

import (
	"context"
	"errors"
	"io"
	"math"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"sync/atomic"
	"time"

	"baton/internal/model/spec"
)

var (
	errBodyLimit = errors.New("the body is larger than the rule allows")
	errTimeout   = errors.New("the request took longer than the rule allows")
)

// policy is what a rule does with a request besides leading it to a task. It does not change; nil: nothing.
type policy struct {
	redirect          *url.URL
	code              int
	request, response *spec.HeaderChange
	body              int64 // zero: no limit
	timeout           spec.RuleTimeout
	limiter           *limiter // nil: no limit
	allow, trusted    []netip.Prefix
	protocol          spec.Protocol
	log               spec.AccessLog
}

// newPolicy compiles a rule's keys. What a manager has let through and cannot be read makes the rule refuse all requests: a rule must not be
// open because its network could not be read.
func newPolicy(k *spec.RuleKeys, limits *limiter) *policy {
	if !k.Further() {
		return nil
	}
	p := &policy{
		request: k.RequestHeaders, response: k.ResponseHeaders, body: int64(k.BodyLimit), limiter: limits, protocol: k.Protocol, log: k.AccessLog,
		allow: prefixes(k.Allow), trusted: prefixes(k.Trusted),
	}
	if k.Timeout != nil {
		p.timeout = *k.Timeout
	}
	if k.Redirect != nil {
		p.code = k.Redirect.Code
		if p.redirect, _ = url.Parse(k.Redirect.URL); p.redirect == nil {
			p.redirect = new(url.URL) // to the same place on this host
		}
	}
	return p
}

// prefixes leaves out what is no network: for allow and trusted alike fewer is the safe side. A list never becomes empty by that.
func prefixes(list []string) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range list {
		if n, err := netip.ParsePrefix(s); err == nil {
			out = append(out, n)
		}
	}
	if len(list) > 0 && len(out) == 0 {
		out = append(out, netip.Prefix{}) // contains nothing
	}
	return out
}

func within(list []netip.Prefix, a netip.Addr) bool {
	a = a.Unmap().WithZone("")
	return slices.ContainsFunc(list, func(n netip.Prefix) bool { return n.Contains(a) })
}

// admit answers a request that goes to no task, and reports whether it may go to one.
func (p *policy) admit(w http.ResponseWriter, r *http.Request, client netip.Addr, now time.Time) bool {
	switch {
	case len(p.allow) > 0 && !within(p.allow, client):
		http.Error(w, "this address is not allowed here", http.StatusForbidden)
		return false
	case p.limiter != nil:
		if wait := p.limiter.take(r, client, now); wait > 0 {
			w.Header().Set("Retry-After", strconv.Itoa(int(math.Ceil(wait.Seconds()))))
			http.Error(w, "too many requests", http.StatusTooManyRequests)
			return false
		}
	}
	switch {
	case p.redirect != nil:
		w.Header().Set("Location", p.location(r.URL))
		w.WriteHeader(p.code)
		return false
	case p.body > 0 && r.ContentLength > p.body:
		bodyTooLarge(w, r)
		return false
	}
	return true
}

// bodyTooLarge also ends an HTTP/1 connection: the client still sends.
func bodyTooLarge(w http.ResponseWriter, r *http.Request) {
	if r.ProtoMajor == 1 {
		w.Header().Set("Connection", "close")
	}
	http.Error(w, "the body is larger than is taken here", http.StatusRequestEntityTooLarge)
}

// location is where a redirect sends a request for u.
func (p *policy) location(u *url.URL) string {
	to := *p.redirect
	if to.Path == "" {
		to.Path, to.RawPath = u.Path, u.RawPath
	}
	if to.RawQuery == "" {
		to.RawQuery = u.RawQuery
	}
	return to.String()
}

// change applies a rule's changes to a header.
func change(h http.Header, c *spec.HeaderChange) {
	if c == nil {
		return
	}
	for _, name := range c.Remove {
		h.Del(name)
	}
	for name, v := range c.Set {
		h.Set(name, v)
	}
	for name, v := range c.Add {
		h.Add(name, v)
	}
}

// bounded is a request's body that ends with an error after so many bytes.
type bounded struct {
	io.ReadCloser
	left int64
	over *atomic.Bool
}

// Read implements io.Reader. It reads one byte more than is allowed, to tell a body of just that size from a larger one.
func (b *bounded) Read(p []byte) (int, error) {
	if int64(len(p)) > b.left+1 {
		p = p[:b.left+1]
	}
	n, err := b.ReadCloser.Read(p)
	if int64(n) > b.left {
		n = int(b.left)
		b.over.Store(true)
		err = errBodyLimit
	}
	b.left -= int64(n)
	return n, err
}

// clock ends a request that takes longer than its rule allows.
type clock struct {
	cancel context.CancelCauseFunc
	limit  spec.RuleTimeout
	header *time.Timer
	idle   atomic.Pointer[time.Timer]
	total  *time.Timer
}

// start begins to count for a request; nil when its rule has no bound.
func (p *policy) start(ctx context.Context) (context.Context, *clock) {
	if p == nil || p.timeout == (spec.RuleTimeout{}) {
		return ctx, nil
	}
	ctx, cancel := context.WithCancelCause(ctx)
	c := &clock{cancel: cancel, limit: p.timeout}
	if d := p.timeout.Total; d > 0 {
		c.total = c.after(d)
	}
	return ctx, c
}

func (c *clock) after(d time.Duration) *time.Timer {
	return time.AfterFunc(d, func() { c.cancel(errTimeout) })
}

// sent is called when the request goes to a task, answered once that task has sent its header.
func (c *clock) sent() {
	if c != nil && c.limit.Header > 0 && c.header == nil {
		c.header = c.after(c.limit.Header)
	}
}

// answered: a tunnel has no bodies whose bytes are seen, so it is never idle.
func (c *clock) answered(tunnel bool) {
	if c == nil {
		return
	}
	if c.header != nil {
		c.header.Stop()
	}
	if c.limit.Idle > 0 && !tunnel {
		c.idle.Store(c.after(c.limit.Idle))
	}
}

// moved is called when bytes of a body passed.
func (c *clock) moved() {
	if c == nil {
		return
	}
	if t := c.idle.Load(); t != nil {
		t.Reset(c.limit.Idle)
	}
}

// stop ends the counting, with the request.
func (c *clock) stop() {
	if c == nil {
		return
	}
	for _, t := range []*time.Timer{c.header, c.total, c.idle.Load()} {
		if t != nil {
			t.Stop()
		}
	}
	c.cancel(nil)
}

// exchangeOf is what the edge knows of a request that forward passed on.
func exchangeOf(r *http.Request) *exchange { return r.Context().Value(exchangeKey{}).(*exchange) }

func withExchange(ctx context.Context, x *exchange) context.Context {
	return context.WithValue(ctx, exchangeKey{}, x)
}

// forward does with a request what its rule says.
func (e *Edge) forward(rec *recorder, r *http.Request, x *exchange) {
	ctx := withExchange(r.Context(), x)
	x.cookie = x.rule.sticky.value(r)
	if p := x.rule.policy; p != nil {
		x.caller = callerOf(r, p.trusted)
		if !p.admit(rec, r, x.caller.address, time.Now()) {
			return
		}
		ctx, x.clock = p.start(ctx)
		defer x.clock.stop()
		if p.body > 0 && r.Body != nil && r.Body != http.NoBody {
			limited := *r
			limited.Body = &bounded{ReadCloser: r.Body, left: p.body, over: &x.over}
			r = &limited
		}
	}
	e.proxy.ServeHTTP(rec, r.WithContext(ctx))
}

// transport is the way to the task that has the request.
func (x *exchange) transport(req *http.Request) http.RoundTripper {
	h2 := isGRPC(req)
	if p := x.rule.policy; p != nil {
		switch p.protocol {
		case spec.ProtocolHTTP:
			h2 = false
		case spec.ProtocolH2C, spec.ProtocolGRPC:
			h2 = req.Header.Get("Upgrade") == "" // there are no such tunnels in HTTP/2 without TLS
		}
	}
	if h2 {
		return x.backend.http2
	}
	return x.backend.http1
}

// amend changes a task's answer as the rule says.
func amend(res *http.Response) error {
	x := exchangeOf(res.Request)
	if p := x.rule.policy; p != nil {
		change(res.Header, p.response)
	}
	x.rule.sticky.answer(res.Header, x.cookie, x.backend, res.Request.Header.Get("X-Forwarded-Proto") == "https")
	return nil
}
