package fence

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// fenceEnv makes this binary the process.
const fenceEnv = "BATON_FENCE_TEST"

func TestMain(m *testing.M) {
	if os.Getenv(fenceEnv) != "" {
		os.Exit(Main(os.Args[1:]))
	}
	os.Exit(m.Run())
}

func newFence(t *testing.T) *Fence {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv(fenceEnv, "1")
	dir := filepath.Join(t.TempDir(), "fence")
	t.Cleanup(func() { // its process ends with the directory
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return New(dir, self)
}

// task is a process that runs for long, in a directory that looks like a cgroup of the first version.
type task struct {
	group string
	cmd   *exec.Cmd
	ended chan struct{}
}

func newTask(t *testing.T) *task {
	t.Helper()
	k := &task{group: t.TempDir(), cmd: exec.Command("sleep", "300"), ended: make(chan struct{})}
	if err := k.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { _ = k.cmd.Wait(); close(k.ended) }()
	t.Cleanup(func() { _ = k.cmd.Process.Kill(); <-k.ended })
	if err := os.WriteFile(filepath.Join(k.group, "cgroup.procs"), []byte(strconv.Itoa(k.cmd.Process.Pid)+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return k
}

// runs reports whether the task still runs after d.
func (k *task) runs(d time.Duration) bool {
	select {
	case <-k.ended:
		return false
	case <-time.After(d):
		return true
	}
}

const long = 20 * time.Second // for what happens at once on a machine that is not busy

func TestLeaseOverEndsTheGuardedOnly(t *testing.T) {
	f, in, out := newFence(t), newTask(t), newTask(t)
	if err := f.Renew(t.Context(), time.Hour); err != nil {
		t.Fatal(err)
	}
	for range 2 { // it is idempotent
		if err := f.Guard(t.Context(), "a", []string{in.group}); err != nil {
			t.Fatal(err)
		}
	}
	if !in.runs(2 * lookEvery) {
		t.Fatal("a task with a lease was ended")
	}
	if err := f.Renew(t.Context(), 4*lookEvery); err != nil {
		t.Fatal(err)
	}
	if !in.runs(lookEvery) {
		t.Error("the task was ended before its lease was over")
	}
	if in.runs(long) {
		t.Error("the task runs on without a lease")
	}
	if !out.runs(2 * lookEvery) {
		t.Error("a task that is not under the fence was ended")
	}
}

func TestNothingKnownIsNoLease(t *testing.T) {
	f, k := newFence(t), newTask(t)
	if err := f.Renew(t.Context(), time.Hour); err != nil {
		t.Fatal(err)
	}
	if err := f.Guard(t.Context(), "a", []string{k.group}); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(f.dir, untilFile), []byte("soon"), 0o600); err != nil {
		t.Fatal(err)
	}
	if k.runs(long) {
		t.Error("the task runs on, though nobody knows until when it may")
	}
}

func TestUnguardedTaskIsLeftAlone(t *testing.T) {
	f, k, other := newFence(t), newTask(t), newTask(t)
	if err := f.Renew(t.Context(), time.Hour); err != nil {
		t.Fatal(err)
	}
	for id, k := range map[string]*task{"a": k, "b": other} {
		if err := f.Guard(t.Context(), id, []string{k.group}); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		if err := f.Unguard(t.Context(), "a"); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Renew(t.Context(), -time.Second); err != nil {
		t.Fatal(err)
	}
	if other.runs(long) {
		t.Fatal("the other task runs on without a lease")
	}
	if !k.runs(lookEvery) {
		t.Error("a task that was taken out was ended")
	}
}

// Whoever kills the process: the next renewal starts another one, and one is enough.
func TestProcessIsOneAndComesBack(t *testing.T) {
	f, k := newFence(t), newTask(t)
	if err := f.Renew(t.Context(), time.Hour); err != nil {
		t.Fatal(err)
	}
	if err := f.Guard(t.Context(), "a", []string{k.group}); err != nil {
		t.Fatal(err)
	}
	first := processes(t, f.dir)
	if err := New(f.dir, f.program).Renew(t.Context(), time.Hour); err != nil { // as the next baton does
		t.Fatal(err)
	}
	if again := processes(t, f.dir); len(first) != 1 || fmt.Sprint(again) != fmt.Sprint(first) {
		t.Fatalf("processes %v, after a restart of baton %v", first, again)
	}
	if err := unix.Kill(first[0], unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(long)
	for len(processes(t, f.dir)) > 0 && time.Now().Before(deadline) {
		time.Sleep(10 * time.Millisecond)
	}
	if err := f.Renew(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	if k.runs(long) {
		t.Error("the task runs on without a lease after the process was killed and started again")
	}
}

func TestGuardNeedsACgroup(t *testing.T) {
	if err := newFence(t).Guard(t.Context(), "a", nil); err == nil {
		t.Error("a task without a cgroup is guarded: nothing could end it")
	}
}

// processes are those whose argument is dir; zombies have none.
func processes(t *testing.T, dir string) []int {
	t.Helper()
	all, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	var pids []int
	for _, path := range all {
		b, err := os.ReadFile(path)
		if err != nil || !strings.HasSuffix(string(b), "\x00"+dir+"\x00") {
			continue
		}
		if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path))); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}
