package node

import (
	"context"
	"sync"
	"time"

	"baton/internal/model/cluster"
	"baton/internal/wire/agentapi"
)

// useMax bounds the reading of what tasks use.
const useMax = 3 * time.Second

// reporter remembers what of the edge's counts was told.
type reporter struct {
	mu   sync.Mutex
	told map[told]counts
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
}

// news are the series that changed since the last call and those with requests in flight; all of them with full.
func (r *reporter) news(all []agentapi.RequestMeasure, full bool) []agentapi.RequestMeasure {
	r.mu.Lock()
	defer r.mu.Unlock()
	before := r.told
	r.told = make(map[told]counts, len(all))
	var out []agentapi.RequestMeasure
	for _, m := range all {
		key, now := told{m.Service, m.Task, m.Since}, counts{m.Requests(), m.InFlight}
		if last, ok := before[key]; full || !ok || last != now || m.InFlight > 0 {
			out = append(out, m)
		}
		r.told[key] = now
	}
	return out
}

// Measure is the node's load for the i-th report of a session.
func (n *Node) Measure(ctx context.Context, i int) (agentapi.Measures, bool) {
	full := i%agentapi.FullEvery == 0
	m := agentapi.Measures{At: time.Now(), Full: full, Requests: n.reporter.news(n.edge.Measures(), full)}
	if i%agentapi.UseEvery == 0 {
		ctx, cancel := context.WithTimeout(ctx, useMax)
		defer cancel()
		u, err := n.Usage(ctx)
		if err != nil {
			n.cfg.Logger.Debug("what the node uses cannot be read", "err", err)
		} else {
			m.Use = nodeUse(u)
		}
	}
	return m, full || m.Use != nil || len(m.Requests) > 0
}

func nodeUse(u agentapi.Usage) *agentapi.NodeUse {
	out := &agentapi.NodeUse{CPU: u.CPU, Cores: uint64(u.Cores), Memory: uint64(u.Memory), MemorySize: uint64(u.MemorySize)}
	for _, s := range u.Tasks {
		out.Tasks = append(out.Tasks, agentapi.TaskUse{
			Task: s.Task, CPU: s.CPU, Memory: s.Memory, MemoryLimit: s.MemoryLimit, Received: s.Received, Sent: s.Sent,
		})
	}
	return out
}
