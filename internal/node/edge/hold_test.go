package edge

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"baton/internal/model/cluster"
	"baton/internal/model/spec"
	"baton/internal/wire/agentapi"
)

// resting is a service without endpoints that holds its requests.
func resting(wait time.Duration, requests int, tasks ...*task) agentapi.NetworkState {
	port := uint16(1)
	if len(tasks) > 0 {
		port = tasks[0].port
	}
	s := service(1, []spec.Ingress{{Path: "/", Port: port}}, tasks...)
	s.Holds, s.HoldWait, s.HoldRequests = true, wait, requests
	return agentapi.NetworkState{Services: []agentapi.Service{s}}
}

// wakes counts calls of Wake.
type wakes struct {
	mu sync.Mutex
	at []time.Time
}

func (w *wakes) wake(id cluster.ID) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if id != (cluster.ID{0: 's', 15: 1}) {
		panic(id)
	}
	w.at = append(w.at, time.Now())
}

func (w *wakes) count() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.at)
}

func (e *Edge) queued() (n int) {
	e.held.mu.Lock()
	defer e.held.mu.Unlock()
	for _, q := range e.held.queues {
		n += len(q)
	}
	return n
}

// TestHeldUntilReady checks that requests for a service that rests wait, wake it, and are answered in order of arrival.
func TestHeldUntilReady(t *testing.T) {
	var w wakes
	e := newEdge(t, func(c *Config) { c.Wake = w.wake })
	e.Apply(resting(waitMax, 10))
	address, _ := serve(t, e)
	var mu sync.Mutex
	var order []string
	const n = 8
	answers := make(chan string, n)
	for i := range n {
		go func() {
			res, err := http.Post("http://"+address+fmt.Sprintf("/%d", i), "text/plain", strings.NewReader("body"))
			if err != nil {
				answers <- err.Error()
				return
			}
			defer res.Body.Close()
			b, _ := io.ReadAll(res.Body)
			answers <- string(b)
		}()
		until(t, "a request to be held", func() bool { return e.queued() == i+1 })
	}
	if got := w.count(); got < 1 {
		t.Errorf("the service was woken %d times", got)
	}
	k := startTask(t, "127.0.1.1", 0, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		mu.Lock()
		order = append(order, r.URL.Path)
		mu.Unlock()
		b, _ := io.ReadAll(r.Body)
		_, _ = rw.Write(b)
	}))
	e.Apply(resting(waitMax, 10, k))
	for range n {
		if got := <-answers; got != "body" {
			t.Errorf("a held request was answered %q", got)
		}
	}
	if e.queued() != 0 {
		t.Errorf("%d requests are still held", e.queued())
	}
	if len(order) != n {
		t.Errorf("the task got %v", order)
	}
	http.DefaultClient.CloseIdleConnections()
}

// TestHeldInOrder checks that the queue is left one after the other.
func TestHeldInOrder(t *testing.T) {
	h := newHolder(nil)
	s := &hold{max: 5}
	var list []*waiter
	for range 3 {
		list = append(list, h.enter(s))
	}
	h.look()
	for i, w := range list {
		select {
		case <-w.turn:
		default:
			t.Fatalf("it is not the turn of request %d", i)
		}
		for _, o := range list[i+1:] {
			select {
			case <-o.turn:
				t.Fatalf("a request was told to look before request %d was gone", i)
			default:
			}
		}
		h.leave(s, w)
	}
}

func TestHeldIsBounded(t *testing.T) {
	e := newEdge(t)
	e.Apply(resting(waitMax, 2))
	address, _ := serve(t, e)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			req, _ := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address, nil)
			if res, err := http.DefaultClient.Do(req); err == nil {
				_ = res.Body.Close()
				t.Errorf("a request that nobody answered has status %d", res.StatusCode)
			}
		})
	}
	until(t, "two requests to be held", func() bool { return e.queued() == 2 })
	status, body, header := get(t, newClient(t), "http://"+address)
	if status != http.StatusServiceUnavailable || header.Get("Retry-After") == "" || !strings.Contains(body, "too many requests wait") {
		t.Errorf("past the bound: %d %q, Retry-After %q", status, body, header.Get("Retry-After"))
	}
	cancel() // the clients go
	wg.Wait()
	until(t, "the queue to forget clients that went", func() bool { return e.queued() == 0 })
}

func TestHeldNotForever(t *testing.T) {
	e := newEdge(t)
	e.Apply(resting(50*time.Millisecond, 2))
	address, _ := serve(t, e)
	status, body, header := get(t, newClient(t), "http://"+address)
	if status != http.StatusServiceUnavailable || header.Get("Retry-After") == "" || !strings.Contains(body, "not ready in time") {
		t.Errorf("after the wait: %d %q, Retry-After %q", status, body, header.Get("Retry-After"))
	}
}

// TestHeldNoMore checks that what waits is refused at once when the service stops holding, as when somebody scales it to zero.
func TestHeldNoMore(t *testing.T) {
	e := newEdge(t)
	e.Apply(resting(waitMax, 2))
	address, _ := serve(t, e)
	got := make(chan int, 1)
	go func() {
		res, err := http.Get("http://" + address)
		if err != nil {
			got <- 0
			return
		}
		_ = res.Body.Close()
		got <- res.StatusCode
	}()
	until(t, "the request to be held", func() bool { return e.queued() == 1 })
	e.Apply(anyHost())
	if status := <-got; status != http.StatusServiceUnavailable {
		t.Errorf("got status %d, want 503", status)
	}
	http.DefaultClient.CloseIdleConnections()
}

// TestWakesAreFew checks that a service is said to be wanted once a second, however many requests there are, and as long as one is under
// way.
func TestWakesAreFew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var w wakes
		e := newEdge(t, func(c *Config) { c.Wake = w.wake })
		e.Apply(resting(0, 0, &task{}))
		for range 1000 {
			e.held.want(cluster.ID{0: 's', 15: 1})
			time.Sleep(5 * time.Millisecond)
		}
		if got := w.count(); got != 5 {
			t.Errorf("1000 requests in 5 s woke the service %d times, want 5", got)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { e.pulse(ctx); close(done) }()
		before := w.count()
		time.Sleep(10 * time.Second)
		if got := w.count() - before; got != 0 {
			t.Errorf("with nothing under way it was said to be wanted %d times", got)
		}
		b := e.acquire(requestFor("any", "/"), nil)
		time.Sleep(10*time.Second + time.Millisecond)
		if got := w.count() - before; got < 9 || got > 11 {
			t.Errorf("in 10 s with a request under way it was said to be wanted %d times, want 10", got)
		}
		e.release(b)
		cancel()
		<-done
	})
}
