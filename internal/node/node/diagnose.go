package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime/metrics"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/cgroups/v3"
	"golang.org/x/sys/unix"

	"baton/internal/model/cluster"
	"baton/internal/node/network"
	"baton/internal/wire/agentapi"
)

const (
	// waysMax bounds what a node tries at once, wayMax how long it tries.
	waysMax   = 256
	wayMax    = 2 * time.Second
	syncTries = 5
	syncBytes = 4 << 10 // about a small entry of a log
)

// Diagnose implements agentapi.NodeServices.
func (n *Node) Diagnose(ctx context.Context, ways []agentapi.Way) (agentapi.Diagnosis, error) {
	d := agentapi.Diagnosis{Began: time.Now()}
	var work sync.WaitGroup
	work.Go(func() { d.Tried = try(ctx, ways[:min(len(ways), waysMax)]) })
	d.Features = append(features(), cgroupFeature(cgroups.Mode()))
	d.ConnsUsed, d.ConnsMax = network.Connections()
	d.Process = process()
	var fs unix.Statfs_t
	err := unix.Statfs(n.cfg.Dir, &fs)
	if err == nil {
		d.DiskFree, d.DiskSize = fs.Bavail*uint64(fs.Bsize), fs.Blocks*uint64(fs.Bsize)
		d.Sync, err = syncTime(n.cfg.Dir)
	}
	work.Wait()
	d.Ended = time.Now()
	return d, err
}

// process measures this process. What the system does not tell stays zero.
func process() agentapi.Process {
	samples := []metrics.Sample{{Name: "/sched/goroutines:goroutines"}, {Name: "/gc/heap/live:bytes"}}
	metrics.Read(samples)
	p := agentapi.Process{Goroutines: samples[0].Value.Uint64(), Heap: samples[1].Value.Uint64()}
	if data, err := os.ReadFile("/proc/self/statm"); err == nil {
		var size, resident uint64
		if _, err := fmt.Sscan(string(data), &size, &resident); err == nil {
			p.Resident = resident * uint64(os.Getpagesize())
		}
	}
	if open, err := os.ReadDir("/proc/self/fd"); err == nil {
		p.Files = uint64(len(open))
	}
	var limit unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &limit) == nil {
		p.FilesMax = limit.Cur
	}
	return p
}

// syncTime measures how long a small write takes to reach the disk.
func syncTime(dir string) (_ time.Duration, err error) {
	f, err := os.CreateTemp(dir, "sync-*")
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if err := os.Remove(f.Name()); err != nil { // at once, so that nothing stays when the process is killed
		return 0, err
	}
	var took []time.Duration
	for range syncTries {
		begin := time.Now()
		if _, err := f.Write(make([]byte, syncBytes)); err != nil {
			return 0, err
		}
		if err := f.Sync(); err != nil {
			return 0, err
		}
		took = append(took, time.Since(begin))
	}
	slices.Sort(took)
	return took[len(took)/2], nil
}

// try opens each way and closes it again.
func try(ctx context.Context, ways []agentapi.Way) []agentapi.Tried {
	out := make([]agentapi.Tried, len(ways))
	var work sync.WaitGroup
	for i, w := range ways {
		work.Go(func() {
			d := net.Dialer{Timeout: wayMax}
			c, err := d.DialContext(ctx, "tcp", w.Address)
			out[i] = agentapi.Tried{Way: w, Open: err == nil, Refused: errors.Is(err, syscall.ECONNREFUSED)}
			if err != nil {
				out[i].Text = err.Error()
				return
			}
			_ = c.Close() // nothing was sent
		})
	}
	work.Wait()
	return out
}

func features() []agentapi.Feature {
	var out []agentapi.Feature
	for _, f := range network.Features() {
		o := agentapi.Feature{Name: f.Name, Optional: f.Instead != "", Instead: f.Instead}
		if f.Name == network.FeatureTUN {
			o.Mesh = cluster.MeshWireGuard
		}
		if f.Err != nil {
			o.Missing = f.Err.Error()
		}
		out = append(out, o)
	}
	return out
}

func cgroupFeature(mode cgroups.CGMode) agentapi.Feature {
	f := agentapi.Feature{Name: "cgroups v2"}
	switch mode {
	case cgroups.Unified:
	case cgroups.Unavailable:
		f.Missing = "no cgroups are mounted"
	default:
		f.Missing, f.Optional, f.Instead = "this machine has cgroups v1", true, "cgroups v1, without pressure and IO statistics"
	}
	return f
}
