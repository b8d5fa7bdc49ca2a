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
