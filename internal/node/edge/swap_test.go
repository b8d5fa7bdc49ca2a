package edge

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"net/netip"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func TestSpread(t *testing.T) {
	const n, requests = 3, 1500
	var counts [n]atomic.Int64
	tasks := startTasks(t, n, func(i int) http.Handler {
		return http.HandlerFunc(func(http.ResponseWriter, *http.Request) { counts[i].Add(1) })
	})
	e := newEdge(t)
	e.Apply(anyHost(tasks...))
	at, _ := serve(t, e)
	c := newClient(t)
	for range requests {
		if code, _, _ := get(t, c, "http://"+at+"/"); code != http.StatusOK {
			t.Fatalf("got %d", code)
		}
	}
	sigma := math.Sqrt(requests * (1.0 / n) * (1 - 1.0/n))
	for i := range counts {
		if got := float64(counts[i].Load()); math.Abs(got-requests/n) > 5*sigma {
			t.Errorf("task %d had %v of %d requests, want %d within %.0f", i, got, requests, requests/n, 5*sigma)
		}
	}
}

// Tasks come and go under load, each stopped as soon as the edge says that it has nothing in flight: no request is lost.
func TestSwapUnderLoad(t *testing.T) {
	const n, swaps, clients = 4, 60, 6
	echo := func(int) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.Copy(w, r.Body) })
	}
	tasks := startTasks(t, n, echo)
	e := newEdge(t)
	e.Apply(anyHost(tasks...))
	at, _ := serve(t, e)

	ctx, cancel := context.WithCancel(t.Context())
	var done sync.WaitGroup
	var served atomic.Int64
	for i := range clients {
		c := newClient(t)
		done.Go(func() {
			for k := 0; ctx.Err() == nil; k++ {
				if err := postOne(c, "http://"+at+"/", fmt.Sprintf("%d-%d-%s", i, k, strings.Repeat("x", k%5000))); err != nil {
					t.Error(err)
					return
				}
				served.Add(1)
			}
		})
	}
	for i := range swaps {
		leaving := i % n
		rest := append(append([]*task{}, tasks[:leaving]...), tasks[leaving+1:]...)
		e.Apply(anyHost(rest...))
		until(t, "the requests in flight", func() bool { return e.Connections(tasks[leaving].address) == 0 })
		tasks[leaving].stop()
		before := served.Load()
		until(t, "some traffic", func() bool { return served.Load() >= before+5 || t.Failed() })
		tasks[leaving] = startTask(t, tasks[leaving].address.String(), tasks[leaving].port, echo(0))
		e.Apply(anyHost(tasks...))
	}
	cancel()
	done.Wait()
	t.Logf("%d requests over %d swaps", served.Load(), swaps)
	e.Apply(anyHost())
	until(t, "the endpoints that nobody uses to be forgotten", func() bool {
		e.mu.Lock()
		defer e.mu.Unlock()
		return len(e.backends) == 0
	})
}

func postOne(c *http.Client, url, body string) error {
	res, err := c.Post(url, "text/plain", strings.NewReader(body))
	if err != nil {
		return err
	}
	defer res.Body.Close()
	got, err := io.ReadAll(res.Body)
	if err != nil {
		return err
	}
	if res.StatusCode != http.StatusOK || string(got) != body {
		return fmt.Errorf("got %d and %d bytes, want 200 and %d bytes", res.StatusCode, len(got), len(body))
	}
	return nil
}

// counting counts the open connections of a task.
func counting(open *atomic.Int64) func(*http.Server) {
	return func(s *http.Server) {
		s.ConnState = func(_ net.Conn, s http.ConnState) {
			switch s {
			case http.StateNew:
				open.Add(1)
			case http.StateClosed:
				open.Add(-1)
			}
		}
	}
}

// keepIdle takes the end off idle connections, so that only the edge's will closes them.
func keepIdle(e *Edge) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, b := range e.backends {
		b.http1.IdleConnTimeout, b.http2.IdleConnTimeout = 0, 0
	}
}

// Once a task that left was seen without requests, none comes: that is when it is stopped.
func TestNoRequestComesAfterTheLast(t *testing.T) {
	tasks := []*task{
		{address: netip.MustParseAddr("10.0.0.1"), port: 80}, {address: netip.MustParseAddr("10.0.0.2"), port: 80},
	}
	e := newEdge(t)
	e.Apply(anyHost(tasks...))
	var stopped [2]atomic.Bool
	ctx, cancel := context.WithCancel(t.Context())
	var done sync.WaitGroup
	for range 4 {
		done.Go(func() {
			for ctx.Err() == nil {
				b := e.acquire(requestFor("a.example", "/"), nil)
				if b == nil {
					t.Error("no endpoint although one is always there")
					return
				}
				if stopped[b.address.Addr().As4()[3]-1].Load() {
					t.Errorf("a request for %s, which is stopped", b.address)
					cancel()
				}
				e.release(b)
			}
		})
	}
	end := time.Now().Add(2 * time.Second) // enough for a thousand turns, and a bound on a busy machine
	for i := 0; i < 3000 && ctx.Err() == nil && time.Now().Before(end); i++ {
		e.Apply(anyHost(tasks[1-i%2]))
		until(t, "the last request", func() bool { return e.Connections(tasks[i%2].address) == 0 })
		stopped[i%2].Store(true)
		runtime.Gosched()
		stopped[i%2].Store(false)
		e.Apply(anyHost(tasks...))
	}
	cancel()
	done.Wait()
}

// A task that leaves has its idle connections closed at once, and the last one after its request: a drain waits for them.
func TestConnectionsOfLeavingTasksAreClosed(t *testing.T) {
	hold, held := make(chan struct{}), make(chan struct{})
	var open atomic.Int64
	k := startTask(t, "127.0.1.1", 0, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/hold" {
			close(held)
			<-hold
		}
	}), counting(&open))
	e := newEdge(t)
	e.Apply(anyHost(k))
	keepIdle(e)
	at, _ := serve(t, e)
	c := newClient(t)
	get(t, c, "http://"+at+"/")
	e.Apply(anyHost())
	until(t, "the idle connection to close", func() bool { return open.Load() == 0 })
	e.Apply(anyHost(k))
	keepIdle(e)
	get(t, c, "http://"+at+"/")
	ended := make(chan int, 1)
	go func() {
		res, err := c.Get("http://" + at + "/hold")
		if err != nil {
			ended <- 0
			return
		}
		res.Body.Close()
		ended <- res.StatusCode
	}()
	<-held
	e.Apply(anyHost())
	if n := e.Connections(k.address); n != 1 {
		t.Errorf("%d in flight, want 1: a drain would not wait", n)
	}
	close(hold)
	if code := <-ended; code != http.StatusOK {
		t.Errorf("the request under way got %d, want 200", code)
	}
	until(t, "no request in flight", func() bool { return e.Connections(k.address) == 0 })
	until(t, "no open connection", func() bool { return open.Load() == 0 })
}

// One endpoint refuses connections: every request, with or without a body, is served by the other.
func TestUnreachableEndpointIsPassedBy(t *testing.T) {
	tasks := startTasks(t, 2, func(int) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.Copy(w, r.Body) })
	})
	tasks[0].stop()
	e := newEdge(t)
	e.Apply(anyHost(tasks...))
	at, _ := serve(t, e)
	c := newClient(t)
	for i := range 40 {
		e.mu.Lock()
		for _, b := range e.backends {
			b.avoid.Store(0) // so that the dead one is chosen every other time
		}
		e.mu.Unlock()
		if err := postOne(c, "http://"+at+"/", fmt.Sprint("body ", i)); err != nil {
			t.Fatal(err)
		}
	}
	tasks[1].stop()
	if code, _, _ := get(t, c, "http://"+at+"/"); code != http.StatusBadGateway {
		t.Errorf("all endpoints down: got %d, want 502", code)
	}
}

// A request that reached a task is never sent again: it may have done its work there.
func TestSentRequestIsNotRepeated(t *testing.T) {
	var calls atomic.Int64
	tasks := startTasks(t, 2, func(int) http.Handler {
		return http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			calls.Add(1)
			_, _ = io.Copy(io.Discard, r.Body)
			panic(http.ErrAbortHandler)
		})
	})
	e := newEdge(t)
	e.Apply(anyHost(tasks...))
	at, _ := serve(t, e)
	c := newClient(t)
	res, err := c.Post("http://"+at+"/", "text/plain", bytes.NewReader([]byte("order")))
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if res.StatusCode != http.StatusBadGateway || calls.Load() != 1 {
		t.Errorf("got %d after %d calls, want 502 after 1", res.StatusCode, calls.Load())
	}
}

// When the edge stops, requests under way end well, new ones are refused.
func TestStopLetsRequestsEnd(t *testing.T) {
	hold, held := make(chan struct{}), make(chan struct{})
	k := startTask(t, "127.0.1.1", 0, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		close(held)
		<-hold
		_, _ = io.WriteString(w, "done")
	}))
	e := newEdge(t)
	e.Apply(anyHost(k))
	at, stop := serve(t, e)
	c := newClient(t)
	body := make(chan string, 1)
	go func() {
		res, err := c.Get("http://" + at + "/")
		if err != nil {
			body <- err.Error()
			return
		}
		defer res.Body.Close()
		b, _ := io.ReadAll(res.Body)
		body <- string(b)
	}()
	<-held
	stopped := make(chan struct{})
	go func() {
		stop()
		close(stopped)
	}()
	until(t, "the port to close", func() bool {
		conn, err := net.DialTimeout("tcp", at, time.Second)
		if err == nil {
			conn.Close()
		}
		return err != nil
	})
	close(hold)
	if got := <-body; got != "done" {
		t.Errorf("got %q, want the answer", got)
	}
	<-stopped
}
