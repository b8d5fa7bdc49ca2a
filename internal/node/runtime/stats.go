package runtime

import (
	"context"
	"fmt"
	"time"

	v1 "github.com/containerd/cgroups/v3/cgroup1/stats"
	v2 "github.com/containerd/cgroups/v3/cgroup2/stats"
	"github.com/containerd/typeurl/v2"

	"baton/internal/model/cluster"
	"baton/internal/model/spec"
)

// Stats is what a task uses now.
type Stats struct {
	At  time.Time
	CPU time.Duration // processor time since the start
	// Throttled is how long the task was held back by its CPU limit.
	Throttled   time.Duration
	Memory      spec.Bytes // without the page cache that the kernel can take back at once
	MemoryLimit spec.Bytes // zero: none
	PIDs        int64
}

// noLimit is the value from which a cgroup v1 memory limit means none.
const noLimit = 1 << 60

// Stats reads a running task's use.
func (r *Runtime) Stats(ctx context.Context, id cluster.ID) (Stats, error) {
	c, err := r.client.LoadContainer(ctx, id.String())
	if err != nil {
		return Stats{}, fmt.Errorf("stats of task %s: %w", id.Short(), err)
	}
	t, err := c.Task(ctx, nil)
	if err != nil {
		return Stats{}, fmt.Errorf("stats of task %s: it is not running: %w", id.Short(), err)
	}
	m, err := t.Metrics(ctx)
	if err != nil {
		return Stats{}, fmt.Errorf("stats of task %s: %w", id.Short(), err)
	}
	v, err := typeurl.UnmarshalAny(m.Data)
	if err != nil {
		return Stats{}, fmt.Errorf("stats of task %s: %w", id.Short(), err)
	}
	s, err := statsOf(v)
	if err != nil {
		return Stats{}, fmt.Errorf("stats of task %s: %w", id.Short(), err)
	}
	s.At = m.Timestamp.AsTime()
	return s, nil
}

// statsOf reads the metrics of either cgroup version.
func statsOf(metrics any) (Stats, error) {
	switch m := metrics.(type) {
	case *v1.Metrics:
		s := Stats{
			CPU:       time.Duration(m.GetCPU().GetUsage().GetTotal()),
			Throttled: time.Duration(m.GetCPU().GetThrottling().GetThrottledTime()),
			PIDs:      int64(m.GetPids().GetCurrent()),
		}
		use, limit := m.GetMemory().GetUsage().GetUsage(), m.GetMemory().GetUsage().GetLimit()
		s.Memory = spec.Bytes(use - min(use, m.GetMemory().GetTotalInactiveFile()))
		if limit < noLimit {
			s.MemoryLimit = spec.Bytes(limit)
		}
		return s, nil
	case *v2.Metrics:
		s := Stats{
			CPU:       time.Duration(m.GetCPU().GetUsageUsec()) * time.Microsecond,
			Throttled: time.Duration(m.GetCPU().GetThrottledUsec()) * time.Microsecond,
			PIDs:      int64(m.GetPids().GetCurrent()),
		}
		use, limit := m.GetMemory().GetUsage(), m.GetMemory().GetUsageLimit()
		s.Memory = spec.Bytes(use - min(use, m.GetMemory().GetInactiveFile()))
		if limit < noLimit {
			s.MemoryLimit = spec.Bytes(limit)
		}
		return s, nil
	}
	return Stats{}, fmt.Errorf("unknown metrics %T", metrics)
}
