package rpc

import (
	"context"
	"errors"
	"net"
	"testing"
	"testing/synctest"
	"time"
)

// A client that finds its connection dropped again and again does not connect again without a pause, and gives up when it is told to.
func TestConnectionsArePaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dials := 0
		dial := paced(func(context.Context) (net.Conn, error) {
			dials++
			return nil, net.ErrClosed
		})
		began := time.Now()
		for range 11 {
			if _, err := dial(t.Context(), ""); !errors.Is(err, net.ErrClosed) {
				t.Fatal(err)
			}
		}
		if took := time.Since(began); took != 10*redialMin {
			t.Errorf("11 connections in %v, want the first at once and a pause of %v before each other one", took, redialMin)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := dial(ctx, ""); !errors.Is(err, context.Canceled) || dials != 11 {
			t.Errorf("%v after %d connections, want the pause broken off", err, dials)
		}
		time.Sleep(time.Second)
		began = time.Now()
		if _, err := dial(t.Context(), ""); !errors.Is(err, net.ErrClosed) || time.Since(began) != 0 {
			t.Errorf("%v after %v, want no pause after a long time", err, time.Since(began))
		}
	})
}
