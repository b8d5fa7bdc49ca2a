package runtime

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	v1 "github.com/containerd/cgroups/v3/cgroup1/stats"
	v2 "github.com/containerd/cgroups/v3/cgroup2/stats"
	tasksapi "github.com/containerd/containerd/api/services/tasks/v1"
	tasktypes "github.com/containerd/containerd/api/types/task"
	"github.com/containerd/typeurl/v2"

	"baton/internal/model/cluster"
	"baton/internal/model/spec"
)

// Stats is what a task uses now.
type Stats struct {
	Task cluster.ID
	At   time.Time
	CPU  time.Duration // processor time since the start
	// Throttled is how long the task was held back by its CPU limit.
	Throttled   time.Duration
	Memory      spec.Bytes // without the page cache that the kernel can take back at once
	MemoryLimit spec.Bytes // zero: none
	PIDs        int64
	// Received and Sent are bytes over the task's own network; zero with that of the host.
	Received, Sent uint64
}

// noLimit is the value from which a cgroup v1 memory limit means none.
const noLimit = 1 << 60

// StatsOfAll reads what every running task uses, in one question to containerd. A task that ends meanwhile is left out.
func (r *Runtime) StatsOfAll(ctx context.Context) ([]Stats, error) {
	list, err := r.client.TaskService().List(ctx, &tasksapi.ListTasksRequest{})
	if err != nil {
		return nil, fmt.Errorf("list the running tasks: %w", err)
	}
	pids := make(map[string]uint32, len(list.Tasks))
	for _, p := range list.Tasks {
		if p.Status == tasktypes.Status_RUNNING {
			pids[p.ID] = p.Pid
		}
	}
	got, err := r.client.TaskService().Metrics(ctx, &tasksapi.MetricsRequest{})
	if err != nil {
		return nil, fmt.Errorf("measure the running tasks: %w", err)
	}
	host, _ := os.Readlink("/proc/self/ns/net") // unknown: no task has the host's network
	var out []Stats
	for _, m := range got.Metrics {
		pid, running := pids[m.ID]
		id, err := cluster.ParseID(m.ID)
		if err != nil || !running {
			continue
		}
		v, err := typeurl.UnmarshalAny(m.Data)
		if err != nil {
			return nil, fmt.Errorf("stats of task %s: %w", id.Short(), err)
		}
		s, err := statsOf(v)
		if err != nil {
			return nil, fmt.Errorf("stats of task %s: %w", id.Short(), err)
		}
		s.Task, s.At = id, m.Timestamp.AsTime()
		if own, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", pid)); err == nil && own != host {
			if b, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/dev", pid)); err == nil {
				s.Received, s.Sent = traffic(string(b))
			}
		}
		out = append(out, s)
	}
	return out, nil
}

// traffic adds up the bytes of all interfaces but the loopback, from a /proc/PID/net/dev.
func traffic(dev string) (received, sent uint64) {
	for line := range strings.Lines(dev) {
		name, rest, ok := strings.Cut(line, ":")
		f := strings.Fields(rest)
		if !ok || strings.TrimSpace(name) == "lo" || len(f) < 9 {
			continue
		}
		in, err := strconv.ParseUint(f[0], 10, 64)
		if err != nil {
			continue // a headline
		}
		out, err := strconv.ParseUint(f[8], 10, 64)
		if err != nil {
			continue
		}
		received, sent = received+in, sent+out
	}
	return received, sent
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
