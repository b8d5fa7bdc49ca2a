package server

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"baton/internal/manager/store"
	"baton/internal/model/cluster"
	"baton/internal/wire/agentapi"
)

// slowNode answers after a while, or never.
type slowNode struct {
	agentapi.NodeServices
	after time.Duration
}

func (n slowNode) Usage(ctx context.Context) (agentapi.Usage, error) {
	select {
	case <-time.After(n.after):
		return agentapi.Usage{Cores: 2000}, nil
	case <-ctx.Done():
		return agentapi.Usage{}, ctx.Err()
	}
}

// A node that hangs costs the others nothing but a few seconds, and is named.
func TestUsageOfNodesThatHang(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const count = 3 * askMax // of the nodes, one in three hangs
		s := &Server{cfg: Config{Store: store.New(), Nodes: func(id cluster.ID) (agentapi.NodeServices, bool) {
			if id[0]%3 == 0 {
				return slowNode{after: time.Hour}, true
			}
			return slowNode{after: time.Millisecond}, true
		}}}
		var nodes []*cluster.Node
		for i := range byte(count) {
			nodes = append(nodes, &cluster.Node{Meta: cluster.Meta{ID: cluster.ID{i}}, Name: "n" + string('a'+rune(i))})
		}
		began := time.Now()
		got := s.usage(t.Context(), nodes)
		if took := time.Since(began); took > 2*usageWait {
			t.Errorf("it took %s", took)
		}
		for i, u := range got {
			hangs := i%3 == 0
			if hangs != (u.err != nil) || !hangs && u.Cores != 2000 {
				t.Errorf("node %d: %+v, %v", i, u.Usage, u.err)
			}
			if hangs && !strings.Contains(u.err.Error(), "node "+nodes[i].Name+" does not answer") {
				t.Errorf("node %d: %v", i, u.err)
			}
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if u := s.usage(ctx, nodes[:1]); !errors.Is(u[0].err, context.Canceled) {
			t.Errorf("a client that is gone: %v", u[0].err)
		}
	})
}
