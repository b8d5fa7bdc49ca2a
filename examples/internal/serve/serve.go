// Package serve is what the example programs share: an HTTP server that a balancer can take out of rotation without a lost
// request, and the probe that an image without a shell uses as its health check.
//
// Invariants: Run returns only after every request that was accepted has been answered or the grace has passed; a connection
// older than Config.ConnAge is told to close with its next answer, so that a client moves on to another replica by itself.
//
// Concurrency: Run owns the goroutine it starts and waits for it.
package serve

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"time"
)

// Config describes a server.
type Config struct {
	// Addr is the address to listen on, such as ":8080". Ignored when Listener is set.
	Addr string
	// Listener to serve on; Run closes it.
	Listener net.Listener
	Handler  http.Handler
	Log      *slog.Logger
	// Grace is how long requests in flight may take after the context ended; default 25 s. Keep it below the service's
	// stop_grace_period, or the kill comes first.
	Grace time.Duration
	// ConnAge is how long a connection is kept alive; default 5 s. Balancing is per connection, so a client that held one
	// for ever would see one replica only, and would hold up the draining of that replica until the deadline.
	ConnAge time.Duration
}

// The limits of every server of the examples.
const (
	graceDefault      = 25 * time.Second
	connAgeDefault    = 5 * time.Second
	readHeaderTimeout = 5 * time.Second
	readTimeout       = 30 * time.Second
	idleTimeout       = 60 * time.Second
	headerBytesMax    = 64 << 10
)

type connStartKey struct{}

// Run serves until ctx ends and then finishes the requests in flight. It returns nil after a clean end, and an error when it
// could not listen or when requests were still running after the grace.
func Run(ctx context.Context, c Config) error {
	if c.Grace <= 0 {
		c.Grace = graceDefault
	}
	if c.ConnAge <= 0 {
		c.ConnAge = connAgeDefault
	}
	l := c.Listener
	if l == nil {
		var err error
		if l, err = net.Listen("tcp", c.Addr); err != nil {
			return fmt.Errorf("listen on %s: %w", c.Addr, err)
		}
	}
	srv := &http.Server{
		Handler:           closeOld(c.Handler, c.ConnAge),
		ReadHeaderTimeout: readHeaderTimeout,
		ReadTimeout:       readTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    headerBytesMax,
		ErrorLog:          slog.NewLogLogger(c.Log.Handler(), slog.LevelWarn),
		ConnContext: func(ctx context.Context, _ net.Conn) context.Context {
			return context.WithValue(ctx, connStartKey{}, time.Now())
		},
	}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(l) }()
	c.Log.Info("serving", "address", l.Addr().String())

	select {
	case err := <-served:
		return fmt.Errorf("serve %s: %w", l.Addr(), err)
	case <-ctx.Done():
	}
	c.Log.Info("stopping: finishing the requests in flight", "grace", c.Grace)
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), c.Grace)
	defer cancel()
	err := srv.Shutdown(stop)
	if err != nil {
		err = errors.Join(fmt.Errorf("requests still running after %v: %w", c.Grace, err), srv.Close())
	}
	<-served // Serve has returned: ErrServerClosed, or the accept error that Shutdown caused
	return err
}

func closeOld(next http.Handler, age time.Duration) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if start, ok := r.Context().Value(connStartKey{}).(time.Time); ok && time.Since(start) > age {
			w.Header().Set("Connection", "close")
		}
		next.ServeHTTP(w, r)
	})
}

const (
	probeTimeout = 2 * time.Second
	probeBodyMax = 512
)

// Probe asks url once and returns nil for a status from 200 to 299. It is what `-health URL` of the programs runs.
func Probe(ctx context.Context, url string) error {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return fmt.Errorf("health check: %w", err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return fmt.Errorf("health check: %w", err)
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(resp.Body, probeBodyMax))
	if err != nil {
		return fmt.Errorf("health check of %s: read the answer: %w", url, err)
	}
	if resp.StatusCode < 200 || resp.StatusCode > 299 {
		return fmt.Errorf("health check of %s: %s: %s", url, resp.Status, body)
	}
	return nil
}
