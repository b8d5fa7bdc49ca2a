package node

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"baton/internal/model/cluster"
	"baton/internal/wire/agentapi"
)

// tracked plays the node's network.
type tracked struct {
	mu    sync.Mutex
	woken []cluster.ID
	used  map[netip.Addr]bool
	err   error
	asked []netip.Addr
}

func (t *tracked) Woken() ([]cluster.ID, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.woken, nil
}

// set changes what the network shows.
func (t *tracked) set(woken []cluster.ID, used map[netip.Addr]bool, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.woken, t.used, t.err = woken, used, err
}

func (t *tracked) Used(addresses []netip.Addr) (map[netip.Addr]bool, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.asked = addresses
	return t.used, t.err
}

// TestWakener checks who is told of when.
func TestWakener(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		self, elsewhere := cluster.ID{1}, cluster.ID{2}
		rests, busy, always := cluster.ID{10}, cluster.ID{11}, cluster.ID{12}
		here, there := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.1.1")
		net := &tracked{}
		var mu sync.Mutex
		var told []cluster.ID
		w := &wakener{self: self, network: net, tell: func(id cluster.ID) {
			mu.Lock()
			defer mu.Unlock()
			told = append(told, id)
		}, log: slog.New(slog.DiscardHandler)}
		w.follow(agentapi.NetworkState{Services: []agentapi.Service{
			{ID: rests, Holds: true},
			{ID: busy, Holds: true, Endpoints: []agentapi.Endpoint{{Node: self, Address: here}, {Node: elsewhere, Address: there}}},
			{ID: always, Endpoints: []agentapi.Endpoint{{Node: self, Address: netip.MustParseAddr("10.0.0.2")}}},
		}})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { w.run(ctx); close(done) }()
		pass := func(d time.Duration) []cluster.ID {
			mu.Lock()
			told = nil
			mu.Unlock()
			time.Sleep(d)
			synctest.Wait()
			mu.Lock()
			defer mu.Unlock()
			return slices.Clone(told)
		}
		if got := pass(10 * time.Second); len(got) > 0 {
			t.Errorf("without any use %v were told of", got)
		}
		if want := []netip.Addr{here}; !slices.Equal(net.asked, want) {
			t.Errorf("the connections of %v were looked at, want %v", net.asked, want)
		}
		net.set([]cluster.ID{rests}, nil, nil)
		if got := pass(wokenEvery); !slices.Equal(got, []cluster.ID{rests}) {
			t.Errorf("%v were told of, want %v at once", got, rests)
		}
		if got := pass(5 * time.Second); len(got) != 5 {
			t.Errorf("in 5 s it was told %d times that a service is wanted, want once a second", len(got))
		}
		net.set(nil, map[netip.Addr]bool{here: true}, nil)
		if got := pass(4 * time.Second); len(got) != 2 || got[0] != busy {
			t.Errorf("%v were told of, want the service with connections twice in 4 s", got)
		}
		net.set(nil, nil, errors.New("broken"))
		if got := pass(4 * time.Second); len(got) != 2 || got[0] != busy {
			t.Errorf("with unknown connections %v were told of, want the service with a task here", got)
		}
		cancel()
		<-done
	})
}
