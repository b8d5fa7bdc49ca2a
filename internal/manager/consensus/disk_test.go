package consensus_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/raft-wal/metadb"
	"github.com/hashicorp/raft-wal/types"
	"golang.org/x/sys/unix"

	"baton/internal/manager/consensus"
	"baton/internal/manager/consensus/logtest"
	"baton/internal/manager/store"
	"baton/internal/model/cluster"
)

// smallDisk mounts a file system of the size, in MiB, and takes it away again.
func smallDisk(t *testing.T, mib int) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("a full disk needs a mount, and that needs root")
	}
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%dm", mib)); err != nil {
		t.Fatalf("mount tmpfs: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
	return dir
}

// fill writes a file that leaves no space, and returns its path.
func fill(t *testing.T, dir string) string {
	t.Helper()
	path := filepath.Join(dir, "filler")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	block := make([]byte, 1<<16)
	for err == nil {
		_, err = f.Write(block)
	}
	for err = nil; err == nil; {
		_, err = f.Write(block[:512])
	}
	if !errors.Is(err, unix.ENOSPC) {
		t.Fatal(err)
	}
	return path
}

func TestFullDiskRefusesAndRecovers(t *testing.T) {
	for _, c := range []struct {
		name    string
		reserve uint64
	}{
		{"refused before, by the reserve", 4 << 20},
		{"met by the log itself", 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			disk := smallDisk(t, 24)
			cfg := config(filepath.Join(disk, "log"))
			cfg.SegmentBytes, cfg.DiskReserve = 256<<10, c.reserve
			log := open(t, cfg)
			acked := writeUntilRefused(t, log, disk)
			if err := os.Remove(filepath.Join(disk, "filler")); err != nil {
				t.Fatal(err)
			}
			eventually(t, "writes pass again", func() bool {
				_, err := log.Propose(context.Background(), logtest.Put(logtest.Node(cluster.NewID(nil).String())))
				return err == nil
			})
			eventually(t, "the status is good", func() bool { return log.Status().Refusing == nil })
			closeLog(t, log)
			cfg.Store = store.New()
			open(t, cfg)
			for _, name := range acked {
				if _, ok := cfg.Store.Snapshot().NodeByName(name); !ok {
					t.Fatalf("%s was acknowledged and is gone", name)
				}
			}
		})
	}
}

// writeUntilRefused writes, fills the disk, writes until that is refused, and returns the names that were acknowledged.
func writeUntilRefused(t *testing.T, log *consensus.Raft, disk string) (acked []string) {
	t.Helper()
	write := func() error {
		n := logtest.Node(cluster.NewID(nil).String())
		n.Description.Kernel = strings.Repeat("x", 30_000)
		_, err := log.Propose(context.Background(), logtest.Put(n))
		if err == nil {
			acked = append(acked, n.Name)
		}
		return err
	}
	for range 20 {
		if err := write(); err != nil {
			t.Fatal(err)
		}
	}
	fill(t, disk)
	for end := time.Now().Add(20 * time.Second); ; {
		err := write()
		switch {
		case errors.Is(err, consensus.ErrDiskFull):
			if !strings.Contains(err.Error(), disk) || !strings.Contains(err.Error(), "free some space") {
				t.Errorf("the error names no place or no mend: %v", err)
			}
			eventually(t, "the status says that writes are refused", func() bool { return log.Status().Refusing != nil })
			return acked
		case err != nil && !errors.Is(err, consensus.ErrNotLeader) && !errors.Is(err, consensus.ErrUnknown):
			t.Fatalf("on a full disk: got %v", err)
		case time.Now().After(end):
			t.Fatalf("writes go on on a full disk; the last error is %v", err)
		}
	}
}

func TestStalledDiskIsReportedAndLeadershipLeft(t *testing.T) {
	cfg := config(t.TempDir())
	cfg.StallMax = 20 * time.Millisecond
	var stall atomic.Bool
	release := make(chan struct{})
	cfg.Faults(func() error {
		if stall.Load() {
			<-release
		}
		return nil
	})
	log := open(t, cfg)
	stall.Store(true)
	ctx, cancel := context.WithCancel(context.Background())
	answered := make(chan error, 1)
	go func() {
		_, err := log.Propose(ctx, logtest.Put(logtest.Node("stuck")))
		answered <- err
	}()
	eventually(t, "the stall is seen", func() bool { s := log.Status(); return s.Stalled && !s.Term.Leader })
	if _, err := log.Propose(context.Background(), logtest.Put(logtest.Node("b"))); !errors.Is(err, consensus.ErrDiskStalled) {
		t.Errorf("a proposal while the disk stalls: got %v", err)
	}
	cancel()
	if err := <-answered; !errors.Is(err, consensus.ErrUnknown) || !errors.Is(err, context.Canceled) {
		t.Errorf("the cancelled one: got %v, want that its outcome is unknown", err)
	}
	stall.Store(false)
	close(release)
	eventually(t, "it leads again", func() bool { s := log.Status(); return !s.Stalled && s.Term.Leader })
	propose(t, log, logtest.Node("after"))
}

func TestFailedWriteReopensTheLog(t *testing.T) {
	cfg := config(t.TempDir())
	var broken atomic.Bool
	cfg.Faults(func() error {
		if broken.Swap(false) {
			return unix.EIO
		}
		return nil
	})
	log := open(t, cfg)
	propose(t, log, logtest.Node("before"))
	broken.Store(true)
	if _, err := log.Propose(context.Background(), logtest.Put(logtest.Node("during"))); !errors.Is(err, consensus.ErrUnknown) || !errors.Is(err, unix.EIO) {
		t.Fatalf("got %v, want an unknown outcome that names the disk's error", err)
	}
	eventually(t, "writes pass again", func() bool {
		_, err := log.Propose(context.Background(), logtest.Put(logtest.Node("after")))
		return err == nil || errors.Is(err, store.ErrExists)
	})
	want := cfg.Store.Snapshot().Hash()
	closeLog(t, log)
	cfg.Store = store.New()
	open(t, cfg)
	if got := cfg.Store.Snapshot().Hash(); got != want {
		t.Fatalf("after a restart: hash %x, want %x", got, want)
	}
}

// TestKillDuringRotation puts the list of segments back to what it was before the last rotation, as a kill leaves it.
func TestKillDuringRotation(t *testing.T) {
	for _, torn := range []bool{false, true} {
		t.Run(fmt.Sprintf("index torn=%v", torn), func(t *testing.T) {
			cfg := config(t.TempDir())
			cfg.SegmentBytes = 16 << 10
			log := open(t, cfg)
			for i := 0; len(segments(t, cfg.Dir)) < 3; i++ {
				n := logtest.Node(fmt.Sprint(i))
				n.Description.Kernel = strings.Repeat("x", 500)
				propose(t, log, n)
			}
			closeLog(t, log)
			unrotate(t, cfg.Dir, torn)
			cfg.Store = store.New()
			again := open(t, cfg)
			if cfg.Store.Snapshot().Count(cluster.KindNode) == 0 {
				t.Error("everything is gone")
			}
			for i := range 60 {
				n := logtest.Node(fmt.Sprint("after-", i))
				n.Description.Kernel = strings.Repeat("x", 500)
				propose(t, again, n)
			}
			want := cfg.Store.Snapshot().Hash()
			closeLog(t, again)
			cfg.Store = store.New()
			open(t, cfg)
			if got := cfg.Store.Snapshot().Hash(); got != want {
				t.Fatalf("after another restart: hash %x, want %x", got, want)
			}
		})
	}
}

func unrotate(t *testing.T, dir string, torn bool) {
	t.Helper()
	meta := new(metadb.BoltMetaDB)
	state, err := meta.Load(filepath.Join(dir, "wal"))
	if err != nil {
		t.Fatal(err)
	}
	state.Segments = state.Segments[:len(state.Segments)-1]
	tail := &state.Segments[len(state.Segments)-1]
	tail.SealTime, tail.MaxIndex, tail.IndexStart = time.Time{}, 0, 0
	if err := errors.Join(meta.CommitState(types.PersistentState(state)), meta.Close()); err != nil {
		t.Fatal(err)
	}
	all := segments(t, dir)
	if err := os.Remove(all[len(all)-1]); err != nil {
		t.Fatal(err)
	}
	if !torn {
		return
	}
	path := all[len(all)-2]
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	writeAt(t, f, make([]byte, 8), (usedBytes(t, path)+7)/8*8-8) // the commit that ends the segment
}
