// Command web is the server that Baton's end-to-end tests run in containers. It
// answers over HTTP, echoes over TCP, and can be told to misbehave.
//
//	GET  /                        version, host name and address, one per line
//	GET  /healthz /ready /live    200, or 503 after the switch below
//	POST /admin/{health,ready,live}?ok=false   turn one of them off (or on)
//	GET  /slow?ms=N               answers after N milliseconds
//	GET  /file?path=P             content of a file
//	GET  /env                     the environment, sorted
//	GET  /stats                   requests served, as JSON
//	POST /exit?code=N             ends the process at once
//	POST /eat?mb=N                allocates and keeps N MiB
//	GET  /ws                      a WebSocket that echoes
//	POST /echo.Echo/Stream        a gRPC stream that echoes
//
// Each setting is a flag and an environment variable: -port/PORT (8080),
// -echo-port/ECHO_PORT (7777, 0 for none), -version/VERSION (dev),
// -start-delay/START_DELAY (0s; not listening before), -drain/DRAIN (30s),
// and for GET / alone -errors/ERRORS (0: percent answered with 500) and
// -delay/DELAY (0s).
//
// At SIGTERM it accepts nothing more, finishes the requests in flight, and
// exits with 0, or with 1 when they take longer than the drain time.
//
// With -health URL it makes one request instead, and exits with 0 when the
// answer is 200: a container's own health check, for images without a shell.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"sync"
	"syscall"
	"time"
)

// healthTimeout bounds a -health request.
const healthTimeout = 5 * time.Second

type config struct {
	port       string
	echoPort   string
	version    string
	startDelay time.Duration
	drain      time.Duration
	errors     float64 // percent
	delay      time.Duration
	health     string
}

func main() {
	c, err := parse(os.Args[1:], os.Getenv)
	if err != nil {
		fmt.Fprintln(os.Stderr, "web:", err)
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	if c.health != "" {
		err = checkHealth(ctx, c.health)
	} else {
		err = serve(ctx, c)
	}
	if err != nil {
		slog.Error("web ends", "err", err)
		os.Exit(1)
	}
}

func parse(args []string, env func(string) string) (config, error) {
	c := config{startDelay: 0, drain: 30 * time.Second}
	for _, d := range []struct {
		key string
		to  *time.Duration
	}{{"START_DELAY", &c.startDelay}, {"DRAIN", &c.drain}, {"DELAY", &c.delay}} {
		text := env(d.key)
		if text == "" {
			continue
		}
		v, err := time.ParseDuration(text)
		if err != nil {
			return c, fmt.Errorf("environment %s: %w", d.key, err)
		}
		*d.to = v
	}
	if text := env("ERRORS"); text != "" {
		v, err := strconv.ParseFloat(text, 64)
		if err != nil {
			return c, fmt.Errorf("environment ERRORS: %w", err)
		}
		c.errors = v
	}
	or := func(key, fallback string) string {
		if v := env(key); v != "" {
			return v
		}
		return fallback
	}
	fs := flag.NewFlagSet("web", flag.ContinueOnError)
	fs.StringVar(&c.port, "port", or("PORT", "8080"), "HTTP port")
	fs.StringVar(&c.echoPort, "echo-port", or("ECHO_PORT", "7777"), "TCP echo port, 0 for none")
	fs.StringVar(&c.version, "version", or("VERSION", "dev"), "version to answer with")
	fs.DurationVar(&c.startDelay, "start-delay", c.startDelay, "wait before listening")
	fs.DurationVar(&c.drain, "drain", c.drain, "time for requests in flight at the end")
	fs.Float64Var(&c.errors, "errors", c.errors, "percent of GET / that are answered with 500")
	fs.DurationVar(&c.delay, "delay", c.delay, "wait before GET / is answered")
	fs.StringVar(&c.health, "health", "", "request this URL and exit with 0 if the answer is 200")
	err := fs.Parse(args)
	return c, err
}

// serve runs until ctx ends and the requests in flight are answered.
func serve(ctx context.Context, c config) error {
	select {
	case <-ctx.Done():
		return nil
	case <-time.After(c.startDelay):
	}
	web, err := net.Listen("tcp", ":"+c.port)
	if err != nil {
		return err
	}
	var echo net.Listener
	if c.echoPort != "0" {
		if echo, err = net.Listen("tcp", ":"+c.echoPort); err != nil {
			return errors.Join(err, web.Close())
		}
	}
	return run(ctx, c, web, echo)
}

func run(ctx context.Context, c config, web, echo net.Listener) error {
	a := newApp(c.version)
	a.errors, a.delay = c.errors, c.delay
	srv := &http.Server{Handler: a.handler(), ReadHeaderTimeout: 10 * time.Second, Protocols: new(http.Protocols)}
	srv.Protocols.SetHTTP1(true)
	srv.Protocols.SetUnencryptedHTTP2(true) // for gRPC
	slog.Info("web starts", "version", c.version, "addr", web.Addr().String())
	var wg sync.WaitGroup
	defer wg.Wait()
	if echo != nil {
		e := &echoServer{}
		wg.Go(func() { e.serve(echo) })
		defer e.close(echo)
	}
	failed := make(chan error, 1)
	wg.Go(func() { failed <- srv.Serve(web) })
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
	}
	slog.Info("web stops", "version", c.version)
	end, cancel := context.WithTimeout(context.Background(), c.drain)
	defer cancel()
	if err := srv.Shutdown(end); err != nil {
		return errors.Join(fmt.Errorf("requests in flight after %v: %w", c.drain, err), srv.Close())
	}
	return nil
}

// echoServer sends back what it gets.
type echoServer struct {
	mu     sync.Mutex
	conns  map[net.Conn]bool
	closed bool
	wg     sync.WaitGroup
}

func (e *echoServer) serve(l net.Listener) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		if !e.add(conn) {
			conn.Close()
			return
		}
		e.wg.Go(func() {
			defer e.remove(conn)
			// An error means that the client is gone or that we close.
			_, _ = io.Copy(conn, conn)
		})
	}
}

func (e *echoServer) add(conn net.Conn) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return false
	}
	if e.conns == nil {
		e.conns = map[net.Conn]bool{}
	}
	e.conns[conn] = true
	return true
}

func (e *echoServer) remove(conn net.Conn) {
	conn.Close()
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.conns, conn)
}

// close ends all connections and waits for their goroutines.
func (e *echoServer) close(l net.Listener) {
	l.Close()
	e.mu.Lock()
	e.closed = true
	var open []net.Conn
	for c := range e.conns {
		open = append(open, c)
	}
	e.mu.Unlock()
	for _, c := range open {
		c.Close()
	}
	e.wg.Wait()
}

func checkHealth(ctx context.Context, url string) error {
	ctx, cancel := context.WithTimeout(ctx, healthTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("%s answers %s", url, res.Status)
	}
	return nil
}
