package node

import (
	"cmp"
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"baton/internal/model/cluster"
	"baton/internal/node/agent"
	"baton/internal/wire/agentapi"
)

const (
	// toldMax bounds the series that all nodes together tell in the time of one report: about 25 MB/s for a cluster, however many of
	// its nodes take requests for however many tasks. A node's share is never less than toldMin.
	toldMax = 200_000
	toldMin = 50
)

// reporter remembers what of the edge's counts was told.
type reporter struct {
	mu   sync.Mutex
	told map[told]counts
	turn uint64
}

// told is a series that was told.
type told struct {
	service, task cluster.ID
	since         int64
}

// counts are what shows that a series changed: how many requests had ended, and how many were in flight.
type counts struct {
	ended    uint64
	inflight int64
	turn     uint64 // when it was told
}

// news are the series that changed since they were told and those with requests in flight, limit at most, those first that were told
// longest ago; all of them with full.
func (r *reporter) news(all []agentapi.RequestMeasure, full bool, limit int) []agentapi.RequestMeasure {
	r.mu.Lock()
	defer r.mu.Unlock()
	before := r.told
	r.told = make(map[told]counts, len(all))
	r.turn++
	var out []agentapi.RequestMeasure
	for _, m := range all {
		last, ok := before[key(&m)]
		if full || !ok || last.ended != m.Requests() || last.inflight != m.InFlight || m.InFlight > 0 {
			out = append(out, m)
		}
		if ok {
			r.told[key(&m)] = last
		}
	}
	if !full && len(out) > limit {
		slices.SortStableFunc(out, func(a, b agentapi.RequestMeasure) int {
			return cmp.Compare(before[key(&a)].turn, before[key(&b)].turn)
		})
		out = out[:limit]
	}
	for i := range out {
		r.told[key(&out[i])] = counts{out[i].Requests(), out[i].InFlight, r.turn}
	}
	return out
}

func key(m *agentapi.RequestMeasure) told { return told{m.Service, m.Task, m.Since} }

// counted is a network that remembers how many nodes there are.
type counted struct {
	agent.Network
	peers *atomic.Int64
}

// Apply implements agent.Network.
func (c counted) Apply(ctx context.Context, s agentapi.NetworkState) error {
	c.peers.Store(int64(len(s.Peers)))
	return c.Network.Apply(ctx, s)
}

// Measure is the node's load for the i-th report of a session.
func (n *Node) Measure(ctx context.Context, i int) (agentapi.Measures, bool) {
	all, err := n.edge.Measures(ctx)
	limit := max(toldMin, toldMax/max(1, int(n.peers.Load())))
	full := err == nil && (i == 0 || i%agentapi.FullEvery == 0 && len(all) <= limit)
	m := agentapi.Measures{At: time.Now(), Full: full}
	if err == nil {
		m.Requests = n.reporter.news(all, full, limit)
	} else {
		n.cfg.Logger.Warn("what the edge counted is told later", "err", err)
	}
	if i%agentapi.UseEvery == 0 {
		if m.Use, err = n.use(m.At); err != nil {
			n.cfg.Logger.Debug("what the node uses cannot be read", "err", err)
		}
	}
	return m, full || m.Use != nil || len(m.Requests) > 0
}

// use is what the machine and its tasks use.
func (n *Node) use(now time.Time) (*agentapi.NodeUse, error) {
	u, err := n.meter.usage(now)
	if err != nil {
		return nil, err
	}
	list, err := n.runtime.Uses()
	if err != nil {
		return nil, err
	}
	out := &agentapi.NodeUse{CPU: u.CPU, Cores: uint64(u.Cores), Memory: uint64(u.Memory), MemorySize: uint64(u.MemorySize)}
	for _, s := range list {
		out.Tasks = append(out.Tasks, agentapi.TaskUse{
			Task: s.Task, CPU: s.CPU, Memory: uint64(s.Memory), MemoryLimit: uint64(s.MemoryLimit), Received: s.Received, Sent: s.Sent,
		})
	}
	return out, nil
}
