package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	goruntime "runtime"
	"strconv"
	"strings"
	"sync"
	"time"

	"baton/internal/model/spec"
	"baton/internal/wire/agentapi"
)

const (
	// meterPause is between two samples of the processors. How busy a node is told over the last one or two of them.
	meterPause = 5 * time.Second
	// tick is the unit of /proc/stat, on all architectures that Linux calls USER_HZ 100 on.
	tick = 10 * time.Millisecond
)

// meter measures the machine. The samples are kept here only: no log holds them.
type meter struct {
	proc string // where the kernel tells

	mu          sync.Mutex
	older, last sample
}

// sample is how long the processors have worked, all of them together.
type sample struct {
	at   time.Time
	busy time.Duration
}

// run takes samples until ctx ends. A sample that cannot be read is left out: who asks is told why.
func (m *meter) run(ctx context.Context) {
	t := time.NewTicker(meterPause)
	defer t.Stop()
	for {
		if busy, err := m.busy(); err == nil {
			m.mu.Lock()
			m.older, m.last = m.last, sample{time.Now(), busy}
			m.mu.Unlock()
		}
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
	}
}

// usage is what the machine uses at this moment, without its tasks.
func (m *meter) usage(now time.Time) (agentapi.Usage, error) {
	busy, err := m.busy()
	if err != nil {
		return agentapi.Usage{}, err
	}
	u := agentapi.Usage{At: now, CPU: busy, Cores: spec.MilliCPU(goruntime.NumCPU() * 1000)}
	if u.Memory, u.MemorySize, err = m.memory(); err != nil {
		return u, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	from := m.older
	if from.at.IsZero() {
		from = m.last // the node has just begun
	}
	if span := now.Sub(from.at); !from.at.IsZero() && span > 0 && busy > from.busy {
		u.Busy = min(spec.MilliCPU(1000*(busy-from.busy)/span), u.Cores)
	}
	return u, nil
}

// busy reads how long the processors worked since the boot: neither idle, nor waiting for a disk, nor given to other machines.
func (m *meter) busy() (time.Duration, error) {
	b, err := os.ReadFile(filepath.Join(m.proc, "stat"))
	if err != nil {
		return 0, fmt.Errorf("the use of the processors: %w", err)
	}
	line, _, _ := strings.Cut(string(b), "\n")
	f := strings.Fields(line)
	// cpu user nice system idle iowait irq softirq steal; what guests use is in user already.
	if len(f) < 8 || f[0] != "cpu" {
		return 0, errors.New("the use of the processors: /proc/stat does not begin as it should")
	}
	var ticks uint64
	for _, i := range []int{1, 2, 3, 6, 7} {
		n, err := strconv.ParseUint(f[i], 10, 64)
		if err != nil {
			return 0, fmt.Errorf("the use of the processors: /proc/stat: %w", err)
		}
		ticks += n
	}
	return time.Duration(ticks) * tick, nil
}

// memory reads how much of the memory is in use.
func (m *meter) memory() (used, size spec.Bytes, err error) {
	b, err := os.ReadFile(filepath.Join(m.proc, "meminfo"))
	if err != nil {
		return 0, 0, fmt.Errorf("the use of the memory: %w", err)
	}
	values := make(map[string]spec.Bytes)
	for line := range strings.Lines(string(b)) {
		name, rest, _ := strings.Cut(line, ":")
		if f := strings.Fields(rest); len(f) == 2 && f[1] == "kB" {
			if n, err := strconv.ParseUint(f[0], 10, 53); err == nil {
				values[name] = spec.Bytes(n << 10)
			}
		}
	}
	size, free := values["MemTotal"], values["MemAvailable"]
	if size == 0 {
		return 0, 0, errors.New("the use of the memory: /proc/meminfo has no MemTotal")
	}
	return size - min(free, size), size, nil
}
