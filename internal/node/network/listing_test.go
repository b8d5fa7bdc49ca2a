package network

import (
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vishvananda/netns"

	"baton/internal/model/cluster"
	"baton/internal/node/agent"
	"baton/internal/wire/agentapi"
)

// Callers that come while the table is walked share the next walk; none gets one that began before it asked.
func TestListingIsShared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const callers = 20
		var walks, asked atomic.Int32
		hold := make(chan struct{})
		l := &listing{list: func(_ netns.NsHandle, want []flowFilter) ([]flow, error) {
			walks.Add(1)
			asked.Add(int32(len(want)))
			<-hold
			var out []flow
			for _, w := range want {
				out = append(out, flow{reply: tuple{source: w.replySource}, protocol: protoTCP, tcpState: tcpEstablished})
			}
			return out, nil
		}}
		var wg sync.WaitGroup
		ask := func(i int) {
			wg.Go(func() {
				a := netip.AddrFrom4([4]byte{10, 0, 0, byte(i)})
				got, err := l.flows(0, flowFilter{replySource: a})
				if err != nil || len(got) != 1 || got[0].reply.source != a {
					t.Errorf("caller %d got %v, %v; want its own flow and no other", i, got, err)
				}
			})
		}
		ask(0)
		synctest.Wait() // it walks
		for i := 1; i < callers; i++ {
			ask(i)
		}
		synctest.Wait() // they wait
		if n := walks.Load(); n != 1 {
			t.Errorf("%d walks while one is under way, want 1", n)
		}
		close(hold)
		wg.Wait()
		if walks.Load() != 2 || asked.Load() != callers {
			t.Errorf("%d walks for %d filters, want 2 for %d", walks.Load(), asked.Load(), callers)
		}
	})
}

// A round that gathers begins after the time for that, with all who came meanwhile.
func TestListingGathers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var walks atomic.Int32
		l := &listing{gather: gatherMax, list: func(netns.NsHandle, []flowFilter) ([]flow, error) {
			walks.Add(1)
			return nil, nil
		}}
		began := time.Now()
		var wg sync.WaitGroup
		for i := range 5 {
			wg.Go(func() {
				time.Sleep(time.Duration(i) * gatherMax / 6)
				if _, err := l.flows(0, flowFilter{}); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if walks.Load() != 1 || time.Since(began) != gatherMax {
			t.Errorf("%d walks after %s, want 1 after %s", walks.Load(), time.Since(began), gatherMax)
		}
	})
}

// An address is given again only when nothing of its last holder's connections is tracked any more.
func TestAttachWaitsForAddress(t *testing.T) {
	gone, address := cluster.NewID(nil), netip.MustParseAddr("10.9.0.5")
	n := &Network{
		node:    agentapi.NodeConfig{Subnet: netip.MustParsePrefix("10.9.0.0/24")},
		leaving: map[cluster.ID]netip.Addr{gone: address},
	}
	_, err := n.Attach(t.Context(), agent.Attachment{Task: cluster.NewID(nil), Address: address})
	if err == nil || !strings.Contains(err.Error(), gone.Short()) {
		t.Errorf("attach = %v, want it refused for task %s", err, gone.Short())
	}
}
