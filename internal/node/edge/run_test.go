package edge

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"baton/internal/wire/agentapi"
)

// The port is open while there are rules, and only then.
func TestListensOnlyWithRules(t *testing.T) {
	k := startTask(t, "127.0.1.1", 0, says("hello"))
	var listener atomic.Pointer[string]
	e := New(Config{
		Log: slog.New(slog.DiscardHandler),
		Listen: func(ctx context.Context) (net.Listener, error) {
			l, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
			if err == nil {
				at := l.Addr().String()
				listener.Store(&at)
			}
			return l, err
		},
	})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		e.Run(ctx)
	}()
	e.Apply(agentapi.NetworkState{})
	if listener.Load() != nil {
		t.Error("it listens without rules")
	}
	for range 3 {
		listener.Store(nil)
		e.Apply(anyHost(k))
		until(t, "the port to open", func() bool { return listener.Load() != nil })
		at := *listener.Load()
		if _, body, _ := get(t, newClient(t), "http://"+at+"/"); body != "hello" {
			t.Errorf("got %q", body)
		}
		e.Apply(anyHost()) // a rule without endpoints is a rule
		if code, _, _ := get(t, newClient(t), "http://"+at+"/"); code != http.StatusServiceUnavailable {
			t.Errorf("got %d, want 503", code)
		}
		e.Apply(agentapi.NetworkState{})
		until(t, "the port to close", func() bool {
			c, err := net.DialTimeout("tcp", at, time.Second)
			if err == nil {
				c.Close()
			}
			return err != nil
		})
	}
	cancel()
	<-done
}

// A port that something else has is said once and tried again.
func TestPortThatIsTaken(t *testing.T) {
	k := startTask(t, "127.0.1.1", 0, says("hello"))
	var tries, told atomic.Int64
	opened := make(chan string, 1)
	e := New(Config{
		Log:    slog.New(slog.DiscardHandler),
		Failed: func(error) { told.Add(1) },
		Listen: func(ctx context.Context) (net.Listener, error) {
			if tries.Add(1) < 3 {
				return nil, errors.New("address already in use")
			}
			l, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
			if err == nil {
				opened <- l.Addr().String()
			}
			return l, err
		},
	})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		e.Run(ctx)
	}()
	e.Apply(anyHost(k))
	until(t, "a first try", func() bool { return tries.Load() > 0 })
	e.Apply(anyHost(k)) // each change of the network tries again at once
	if _, body, _ := get(t, newClient(t), "http://"+<-opened+"/"); body != "hello" {
		t.Errorf("got %q", body)
	}
	if n := told.Load(); n != 1 {
		t.Errorf("told %d times, want once", n)
	}
	e.Apply(agentapi.NetworkState{})
	cancel()
	<-done
}

// Clients cannot take all of the process' files: connections above the limit wait, requests above theirs are refused.
func TestLimits(t *testing.T) {
	hold, held := make(chan struct{}), make(chan struct{}, 1)
	k := startTask(t, "127.0.1.1", 0, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/hold" {
			held <- struct{}{}
			<-hold
		}
	}))
	e := newEdge(t, func(c *Config) { c.ConnectionsMax, c.RequestsMax = 2, 1 })
	e.Apply(anyHost(k))
	at, _ := serve(t, e)
	ended := make(chan error, 1)
	first, second := newClient(t), newClient(t)
	go func() {
		res, err := first.Get("http://" + at + "/hold")
		if err == nil {
			res.Body.Close()
		}
		ended <- err
	}()
	<-held
	if code, _, h := get(t, second, "http://"+at+"/"); code != http.StatusServiceUnavailable || h.Get("Retry-After") == "" {
		t.Errorf("a second request got %d, want 503", code)
	}
	// Two connections are open now, the second one idle.
	third := newClient(t)
	answered := make(chan int, 1)
	go func() {
		res, err := third.Get("http://" + at + "/")
		if err != nil {
			answered <- 0
			return
		}
		res.Body.Close()
		answered <- res.StatusCode
	}()
	select {
	case code := <-answered:
		t.Errorf("a third connection got %d, want it to wait", code)
	case <-time.After(50 * time.Millisecond): // that nothing happens cannot be awaited otherwise
	}
	close(hold)
	if err := <-ended; err != nil {
		t.Error(err)
	}
	first.CloseIdleConnections()
	if code := <-answered; code != http.StatusOK {
		t.Errorf("the third got %d once there was room, want 200", code)
	}
}
