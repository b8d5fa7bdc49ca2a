package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// What an idle node may use.
const (
	batonMemoryMax = 60.0 // MB
	idleCPUMax     = 1.0  // percent of a core
	perTaskMax     = 3.0  // MB, of everything but the container's own processes
)

// usage is what one process has and uses.
type usage struct {
	pid      int
	name     string
	rss, pss float64       // MB; a page that k processes share counts 1/k in pss
	cpu      time.Duration // so far
}

// usages reads the processes of the node: baton, containerd, shims and loggers.
func (m *machine) usages() ([]usage, error) {
	pids, err := m.group.procs()
	if err != nil {
		return nil, err
	}
	var out []usage
	for _, pid := range pids {
		u := usage{pid: pid, name: program(pid)}
		cmdline, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if err != nil || u.name == "" {
			continue // gone meanwhile
		}
		switch {
		case pid == m.server.Process.Pid:
			u.name = "baton"
		case bytes.Contains(cmdline, []byte("logger")):
			u.name = "logger"
		case strings.HasPrefix(u.name, "containerd-shim"):
			u.name = "shim"
		}
		if u.rss, u.pss, err = memory(pid); err != nil {
			continue
		}
		if u.cpu, err = processCPU(pid); err != nil {
			continue
		}
		out = append(out, u)
	}
	return out, nil
}

// memory reads a process's resident and proportional set in MB.
func memory(pid int) (rss, pss float64, err error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		return 0, 0, err
	}
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		kib, _ := strconv.ParseFloat(f[1], 64)
		switch f[0] {
		case "Rss:":
			rss = kib * 1024 / 1e6
		case "Pss:":
			pss = kib * 1024 / 1e6
		}
	}
	return rss, pss, nil
}

// tick is the unit of the times in /proc/PID/stat, on every architecture.
const tick = 10 * time.Millisecond

// processCPU is the time that a process has used, threads that ended included, but no children.
func processCPU(pid int) (time.Duration, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	// The second field is the name in parentheses, which may hold spaces.
	f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	if len(f) < 13 {
		return 0, fmt.Errorf("/proc/%d/stat has %d fields", pid, len(f))
	}
	user, err1 := strconv.ParseInt(f[11], 10, 64)
	system, err2 := strconv.ParseInt(f[12], 10, 64)
	return time.Duration(user+system) * tick, errors.Join(err1, err2)
}

// idle watches the node, which has n containers at rest, for a while.
func (b *bench) idle(ctx context.Context) error {
	n := b.size.idle
	if err := b.under.start(ctx, n); err != nil {
		return err
	}
	if err := sleep(ctx, b.size.calm); err != nil {
		return err
	}
	before, err := b.under.m.usages()
	if err != nil {
		return err
	}
	began := time.Now()
	if err := sleep(ctx, b.size.watch); err != nil {
		return err
	}
	took := time.Since(began)
	after, err := b.under.m.usages()
	if err != nil {
		return err
	}
	was := make(map[int]time.Duration)
	for _, u := range before {
		was[u.pid] = u.cpu
	}
	type sum struct {
		count         int
		rss, pss, cpu float64
	}
	sums := make(map[string]*sum)
	for _, u := range after {
		s := sums[u.name]
		if s == nil {
			s = &sum{}
			sums[u.name] = s
		}
		s.count++
		s.rss, s.pss = s.rss+u.rss, s.pss+u.pss
		if cpu, known := was[u.pid]; known {
			s.cpu += 100 * float64(u.cpu-cpu) / float64(took)
		}
	}
	for _, name := range []string{"baton", "containerd", "shim", "logger"} {
		s := sums[name]
		if s == nil {
			continue
		}
		switch name {
		case "baton":
			b.table.below("baton, RSS", s.rss, batonMemoryMax, "MB")
			b.table.below("baton, CPU", s.cpu, idleCPUMax, "% of a core")
		case "containerd":
			b.table.told("containerd, RSS and CPU", fmt.Sprintf("%s MB, %s %%", number(s.rss), number(s.cpu)))
		default:
			b.table.told(fmt.Sprintf("%s, each of %d: RSS, PSS, CPU", name, s.count), fmt.Sprintf("%s MB, %s MB, %s %%",
				number(s.rss/float64(s.count)), number(s.pss/float64(s.count)), number(s.cpu/float64(s.count))))
		}
	}
	var each float64
	for _, name := range []string{"shim", "logger"} {
		if s := sums[name]; s != nil {
			each += s.pss / float64(n)
		}
	}
	b.table.below("per container, PSS of shim and logger", each, perTaskMax, "MB")
	return nil
}

// sleep waits, unless the run is over.
func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(d):
		return nil
	}
}
