package consensus_test

import (
	"bufio"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"baton/internal/manager/consensus"
	"baton/internal/manager/consensus/logtest"
	"baton/internal/manager/store"
	"baton/internal/model/cluster"
)

// crashDirEnv makes the test binary a child that writes to the log in a directory until it is killed.
const crashDirEnv = "BATON_TEST_CRASH_DIR"

// crashChild prints the name of each node once it is acknowledged.
func crashChild(dir string) {
	cfg := config(dir)
	cfg.SegmentBytes, cfg.SnapshotEntries, cfg.TrailingEntries, cfg.SnapshotEvery = 64<<10, 40, 5, 10*time.Millisecond
	log, err := consensus.Open(context.Background(), cfg)
	if err != nil {
		fmt.Println("error", err)
		os.Exit(1)
	}
	fmt.Println("open")
	for range 4 {
		go func() {
			for {
				n := logtest.Node(cluster.NewID(nil).String())
				n.Description.Kernel = strings.Repeat("x", rand.IntN(2000))
				if _, err := log.Propose(context.Background(), logtest.Put(n)); err != nil {
					fmt.Println("error", err)
					os.Exit(1)
				}
				os.Stdout.WriteString("ack " + n.Name + "\n")
			}
		}()
	}
	select {}
}

func TestKillLosesNothingAcknowledged(t *testing.T) {
	dir := t.TempDir()
	acked := map[string]bool{}
	const rounds = 20
	for round := range rounds {
		for _, name := range killOnce(t, dir, time.Duration(rand.IntN(60))*time.Millisecond) {
			acked[name] = true
		}
		if round%5 != 4 {
			continue
		}
		cfg := config(dir)
		cfg.SegmentBytes = 64 << 10
		log := open(t, cfg)
		for name := range acked {
			if _, ok := cfg.Store.Snapshot().NodeByName(name); !ok {
				t.Fatalf("round %d: %s was acknowledged and is gone", round, name)
			}
		}
		closeLog(t, log)
	}
	if len(acked) < rounds {
		t.Fatalf("only %d acknowledged writes in %d rounds test nothing", len(acked), rounds)
	}
}

// killOnce runs a child, kills it some time after it opened, and returns what it acknowledged.
func killOnce(t *testing.T, dir string, after time.Duration) (acked []string) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), crashDirEnv+"="+dir)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	guard := time.AfterFunc(20*time.Second, func() { cmd.Process.Kill() })
	defer guard.Stop()
	opened := false
	for lines := bufio.NewScanner(out); lines.Scan(); {
		switch line := lines.Text(); {
		case line == "open":
			opened = true
			defer time.AfterFunc(after, func() { cmd.Process.Kill() }).Stop()
		case strings.HasPrefix(line, "ack "):
			acked = append(acked, line[4:])
		case strings.HasPrefix(line, "error"):
			t.Errorf("the child says: %s", line)
		}
	}
	cmd.Wait() // killed: its error is wanted
	if !opened {
		t.Fatal("the child did not open the log")
	}
	return acked
}

// segments returns the log's files, oldest first.
func segments(t *testing.T, dir string) []string {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, "wal", "*.wal"))
	if err != nil || len(names) == 0 {
		t.Fatalf("segments: %v, %v", names, err)
	}
	return names
}

// usedBytes is where the zeros that fill a segment begin.
func usedBytes(t *testing.T, path string) int64 {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return int64(len(strings.TrimRight(string(data), "\x00")))
}

func TestTornTails(t *testing.T) {
	for _, c := range []struct {
		name string
		// damage is done to the last segment, whose used part ends at end.
		damage func(t *testing.T, f *os.File, end int64)
		lost   bool // the last write may be gone: what it wrote is not on the disk
	}{
		{"an entry without its commit", func(t *testing.T, f *os.File, end int64) {
			// A frame of type entry, 64 bytes long, of which half was written.
			frame := append([]byte{1, 0, 0, 0, 64, 0, 0, 0}, []byte(strings.Repeat("\xaa", 32))...)
			writeAt(t, f, frame, end+(8-end%8)%8)
		}, false},
		{"the last commit cut off", func(t *testing.T, f *os.File, end int64) {
			if err := f.Truncate(end - 6); err != nil {
				t.Fatal(err)
			}
		}, true},
		{"the last entry garbled", func(t *testing.T, f *os.File, end int64) {
			writeAt(t, f, []byte("garbage!"), end-24)
		}, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg := config(t.TempDir())
			log := open(t, cfg)
			for i := range 10 {
				propose(t, log, logtest.Node(fmt.Sprint(i)))
			}
			closeLog(t, log)
			all := segments(t, cfg.Dir)
			path := all[len(all)-1]
			f, err := os.OpenFile(path, os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			c.damage(t, f, usedBytes(t, path))
			f.Close()
			cfg.Store = store.New()
			again := open(t, cfg)
			want := 10
			if c.lost {
				want = 9
			}
			if got := cfg.Store.Snapshot().Count(cluster.KindNode); got < want {
				t.Errorf("got %d nodes, want %d", got, want)
			}
			propose(t, again, logtest.Node("after"))
		})
	}
}

func writeAt(t *testing.T, f *os.File, data []byte, at int64) {
	t.Helper()
	if _, err := f.WriteAt(data, at); err != nil {
		t.Fatal(err)
	}
}
