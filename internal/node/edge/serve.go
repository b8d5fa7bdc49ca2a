package edge

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"
)

const (
	headerTimeout = 10 * time.Second // for a client to send its header
	keepAlive     = 2 * time.Minute  // for a client's next request
	headerMax     = 64 << 10
	streamsMax    = 250 // requests at once on one HTTP/2 connection

	// linger is how long idle connections stay open once a listener is given up. Each request that comes on them until then is
	// answered, and its connection closed with the answer; a request never meets a closing connection.
	linger = 5 * time.Second
	// stopGrace is how long requests may go on when the node's process ends.
	stopGrace = 3 * time.Second
	// closeGrace is how long requests may go on when the last rule has gone, or the listener fails.
	closeGrace = 30 * time.Second

	retryMin = time.Second // after the port could not be opened: doubles up to retryMax
	retryMax = 30 * time.Second
)

// Run listens while there are rules, until ctx ends.
func (e *Edge) Run(ctx context.Context) {
	var serving sync.WaitGroup
	defer serving.Wait()
	serving.Go(func() { e.pulse(ctx) })
	var ended chan error // of what listens now; nil: nothing does
	stop := func() {}
	wait, tries := time.Duration(0), 0
	for {
		rules := e.table.Load().rules > 0
		switch {
		case !rules:
			stop()
			stop, ended, wait, tries = func() {}, nil, 0, 0
		case ended == nil:
			l, err := e.cfg.Listen(ctx)
			if err != nil {
				tries++
				wait = min(retryMin<<min(tries-1, 6), retryMax)
				e.listenFailed(ctx, err, tries, wait)
				break
			}
			e.cfg.Log.Info("ingress rules are served", "address", l.Addr())
			wait, tries = 0, 0
			quit, done := make(chan struct{}), make(chan error, 1)
			stop, ended = func() {
				close(quit)
				_ = l.Close() // at once, so that the port is free should rules come back
			}, done
			serving.Go(func() { done <- e.ServeUntil(ctx, quit, closeGrace, l) })
		}
		var retry <-chan time.Time
		if wait > 0 {
			retry = time.After(wait)
		}
		select {
		case <-ctx.Done():
			return
		case <-e.changed:
		case <-retry:
		case err := <-ended:
			e.cfg.Log.Error("the ingress port was closed; it is opened again", "err", err)
			stop, ended, wait = func() {}, nil, 0
		}
	}
}

func (e *Edge) listenFailed(ctx context.Context, err error, tries int, wait time.Duration) {
	if ctx.Err() != nil {
		return
	}
	e.cfg.Log.Warn("the ingress port cannot be opened", "err", err, "again", wait)
	if tries == 1 && e.cfg.Failed != nil {
		e.cfg.Failed(err)
	}
}

// Serve answers requests on a listener until ctx ends, then gives those under way a little time to end. It closes the
// listener.
func (e *Edge) Serve(ctx context.Context, l net.Listener) error {
	return e.ServeUntil(ctx, nil, closeGrace, l)
}

// ServeUntil is Serve that stops also when quit is closed: nothing is accepted any more, connections end with their next answer, idle
// ones after a few seconds, and requests under way have grace to end, WebSockets among them, unless ctx ends meanwhile.
func (e *Edge) ServeUntil(ctx context.Context, quit <-chan struct{}, grace time.Duration, l net.Listener) error {
	return e.serveUntil(ctx, quit, grace, l, nil)
}

// serveUntil serves with TLS if it gets a configuration for it.
func (e *Edge) serveUntil(ctx context.Context, quit <-chan struct{}, grace time.Duration, l net.Listener, secure *tls.Config) error {
	base, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	inside := presence{max: e.cfg.RequestsMax}
	srv := e.server(base, quit, &inside)
	limited := newLimited(l, e.cfg.ConnectionsMax)
	serve := func() error { return srv.Serve(limited) }
	if secure != nil {
		srv.TLSConfig = secure
		srv.Protocols.SetUnencryptedHTTP2(false)
		srv.Protocols.SetHTTP2(true)
		serve = func() error { return srv.ServeTLS(limited, "", "") }
	}
	failed := make(chan error, 1)
	go func() { failed <- serve() }()
	var err error
	running := true
	select {
	case err = <-failed:
		running = false
	case <-quit:
		_ = l.Close() // not Shutdown yet: it drops requests that come in this moment
		select {
		case <-time.After(linger):
		case <-ctx.Done():
		}
	case <-ctx.Done():
	}
	limit, done := context.WithTimeout(base, grace)
	defer done()
	defer context.AfterFunc(ctx, func() { time.AfterFunc(stopGrace, done) })()
	if srv.Shutdown(limit) == nil {
		inside.wait(limit) // tunnels, of which the server knows no more
	}
	cancel()        // ends the tunnels that are left
	_ = srv.Close() // of the connections that are left
	inside.wait(context.WithoutCancel(ctx))
	if running {
		err = <-failed
	}
	if isClosed(quit) || ctx.Err() != nil {
		return nil
	}
	return fmt.Errorf("serve ingress: %w", err)
}

// isClosed reports whether a channel was closed on which nothing is sent; a nil one was not.
func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// server answers with e; base ends what it must not wait for.
func (e *Edge) server(base context.Context, quit <-chan struct{}, inside *presence) *http.Server {
	srv := &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if !inside.enter() {
				w.Header().Set("Retry-After", "1")
				http.Error(w, "too many requests are under way", http.StatusServiceUnavailable)
				return
			}
			defer inside.leave()
			e.answer(&recorder{ResponseWriter: w, leaving: quit}, r)
		}),
		BaseContext:       func(net.Listener) context.Context { return base },
		Protocols:         new(http.Protocols),
		HTTP2:             &http.HTTP2Config{MaxConcurrentStreams: streamsMax},
		ReadHeaderTimeout: headerTimeout,
		IdleTimeout:       keepAlive,
		MaxHeaderBytes:    headerMax,
		ErrorLog:          slog.NewLogLogger(e.cfg.Log.Handler(), slog.LevelDebug),
	}
	srv.Protocols.SetHTTP1(true)
	srv.Protocols.SetUnencryptedHTTP2(true)
	return srv
}

// presence counts who is inside and lets others wait until nobody is.
type presence struct {
	mu    sync.Mutex
	n     int
	max   int
	empty chan struct{} // closed once n is zero; nil: nobody waits
}

// enter reports whether there was room.
func (p *presence) enter() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.n >= p.max {
		return false
	}
	p.n++
	return true
}

func (p *presence) leave() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.n--; p.n == 0 && p.empty != nil {
		close(p.empty)
		p.empty = nil
	}
}

// wait returns when nobody is inside or ctx ends.
func (p *presence) wait(ctx context.Context) {
	p.mu.Lock()
	if p.n == 0 {
		p.mu.Unlock()
		return
	}
	if p.empty == nil {
		p.empty = make(chan struct{})
	}
	empty := p.empty
	p.mu.Unlock()
	select {
	case <-empty:
	case <-ctx.Done():
	}
}
