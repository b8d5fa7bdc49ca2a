package consensus

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
	wal "github.com/hashicorp/raft-wal"
	"golang.org/x/sys/unix"
)

// errRefused marks writes that never reached the disk because an earlier one failed.
var errRefused = errors.New("the log met a disk error")

// diskLog stands between raft and its files. It times every write, and after a failed one lets nothing through any more:
// raft-wal keeps entries of a failed write in memory and would go on from a wrong place.
type diskLog struct {
	dir    string
	wal    *wal.WAL
	broken chan struct{} // closed at the first failure

	mu  sync.Mutex
	err error

	since     atomic.Int64 // unix nanoseconds of the start of the write under way, or zero
	last, max atomic.Int64

	before func() error // a test's fault, before each write of entries
}

var (
	_ raft.LogStore          = (*diskLog)(nil)
	_ raft.MonotonicLogStore = (*diskLog)(nil)
	_ raft.StableStore       = (*diskLog)(nil)
)

func newDiskLog(dir string, w *wal.WAL) *diskLog {
	return &diskLog{dir: dir, wal: w, broken: make(chan struct{})}
}

// failure is the first error, or nil.
func (d *diskLog) failure() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.err
}

func (d *diskLog) fail(err error) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.err == nil {
		d.err = diskError(d.dir, err)
		close(d.broken)
	}
	return err
}

// StoreLog implements raft.LogStore.
func (d *diskLog) StoreLog(l *raft.Log) error { return d.StoreLogs([]*raft.Log{l}) }

// StoreLogs implements raft.LogStore.
func (d *diskLog) StoreLogs(logs []*raft.Log) error {
	if d.failure() != nil {
		return errRefused
	}
	start := time.Now()
	d.since.Store(start.UnixNano())
	defer func() {
		took := int64(time.Since(start))
		d.since.Store(0)
		d.last.Store(took)
		d.max.Store(max(d.max.Load(), took))
	}()
	if d.before != nil {
		if err := d.before(); err != nil {
			return d.fail(err)
		}
	}
	if err := d.wal.StoreLogs(logs); err != nil {
		return d.fail(err)
	}
	return nil
}

// DeleteRange implements raft.LogStore.
func (d *diskLog) DeleteRange(first, last uint64) error {
	if d.failure() != nil {
		return errRefused
	}
	if err := d.wal.DeleteRange(first, last); err != nil {
		return d.fail(err)
	}
	return nil
}

// FirstIndex implements raft.LogStore.
func (d *diskLog) FirstIndex() (uint64, error) { return d.wal.FirstIndex() }

// LastIndex implements raft.LogStore.
func (d *diskLog) LastIndex() (uint64, error) { return d.wal.LastIndex() }

// GetLog implements raft.LogStore.
func (d *diskLog) GetLog(index uint64, l *raft.Log) error { return d.wal.GetLog(index, l) }

// IsMonotonic implements raft.MonotonicLogStore.
func (d *diskLog) IsMonotonic() bool { return d.wal.IsMonotonic() }

// Set implements raft.StableStore.
func (d *diskLog) Set(k, v []byte) error { return d.stable(func() error { return d.wal.Set(k, v) }) }

// keyTerm is under what raft stores its current term.
const keyTerm = "CurrentTerm"

// SetUint64 implements raft.StableStore. Raft panics when it cannot write its term, which would end the whole process for
// a full disk. So a broken log lets it go on with a term that is only in memory: with no vote and no entry written, nothing
// can come of it before the log is closed.
func (d *diskLog) SetUint64(k []byte, v uint64) error {
	err := d.stable(func() error { return d.wal.SetUint64(k, v) })
	if string(k) == keyTerm {
		return nil
	}
	return err
}

// Get implements raft.StableStore.
func (d *diskLog) Get(k []byte) ([]byte, error) { return d.wal.Get(k) }

// GetUint64 implements raft.StableStore.
func (d *diskLog) GetUint64(k []byte) (uint64, error) { return d.wal.GetUint64(k) }

// stable writes a vote. Without it on disk, raft does not give the vote.
func (d *diskLog) stable(write func() error) error {
	if d.failure() != nil {
		return errRefused
	}
	if err := write(); err != nil {
		return d.fail(err)
	}
	return nil
}

func (d *diskLog) times() (last, longest, writing time.Duration) {
	if since := d.since.Load(); since != 0 {
		writing = time.Since(time.Unix(0, since))
	}
	return time.Duration(d.last.Load()), time.Duration(d.max.Load()), writing
}

// watchDisk notices a write that does not come back. Raft itself would lead on: its heartbeats do not touch the disk.
func (r *Raft) watchDisk(ctx context.Context) {
	tick := time.NewTicker(max(r.cfg.StallMax/4, time.Millisecond))
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		r.mu.Lock()
		c := r.core
		r.mu.Unlock()
		var writing time.Duration
		if c != nil {
			_, _, writing = c.disk.times()
		}
		stalled := writing > r.cfg.StallMax
		if r.stalled.Swap(stalled) == stalled {
			continue
		}
		if stalled {
			r.cfg.Logger.Error("the disk does not answer; writes are refused", "dir", r.cfg.Dir, "for", writing)
		} else {
			r.cfg.Logger.Info("the disk answers again", "dir", r.cfg.Dir)
		}
		r.announce()
	}
}

// diskError names the directory and the mend when there is no space.
func diskError(dir string, err error) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return fmt.Errorf("%w: %s: %w: free some space, writing goes on by itself then", ErrDiskFull, dir, err)
	}
	return err
}

// freeSpace tells whether the log may grow. It asks the file system now and then.
type freeSpace struct {
	dir     string
	reserve uint64

	mu      sync.Mutex
	checked time.Time
	free    uint64
}

func (f *freeSpace) check() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if now := time.Now(); now.Sub(f.checked) >= freeSpaceEvery {
		var st unix.Statfs_t
		if err := unix.Statfs(f.dir, &st); err != nil {
			return fmt.Errorf("free space of %s: %w", f.dir, err)
		}
		f.free, f.checked = st.Bavail*uint64(st.Bsize), now
	}
	if f.free < f.reserve {
		return fmt.Errorf("%w: %s has %d MiB left and %d MiB are kept in reserve: free some space, writing goes on by itself then",
			ErrDiskFull, f.dir, f.free>>20, f.reserve>>20)
	}
	return nil
}

func (f *freeSpace) bytes() uint64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.free
}
