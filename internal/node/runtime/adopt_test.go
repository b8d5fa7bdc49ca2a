package runtime_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"baton/internal/model/cluster"
	"baton/internal/node/agent"
	"baton/internal/node/runtime"
)

// agentCommand makes the test binary an agent of its own, which a test can kill.
const agentCommand = "__agent"

// agentMain is an agent that starts containers until it is killed, and prints the id of each before it starts it, and "ok" after.
func agentMain(args []string) int {
	var cfg runtime.Config
	dir, bin := args[0], args[1]
	base = filepath.Dir(bin)
	cfg, err := config(dir)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	r, err := runtime.New(context.Background(), cfg)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	n, _ := strconv.Atoi(args[2])
	var wg sync.WaitGroup
	for range n {
		wg.Go(func() {
			c := container("sleep")
			fmt.Println(c.Task.ID)
			if err := r.Start(context.Background(), c); err != nil {
				fmt.Fprintln(os.Stderr, err)
			}
		})
	}
	wg.Wait()
	fmt.Println("ok")
	select {}
}

// spawn runs such an agent over the node's data directory.
func (n *node) spawn(containers int) (cmd *exec.Cmd, out *bufio.Scanner) {
	n.t.Helper()
	self, err := os.Executable()
	if err != nil {
		n.t.Fatal(err)
	}
	cmd = exec.Command(self, agentCommand, n.dir, filepath.Join(base, "bin"), strconv.Itoa(containers))
	cmd.Stderr = os.Stderr
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		n.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return cmd, bufio.NewScanner(pipe)
}

// processes are the process ids whose command line contains all of what.
func (n *node) processes(what ...string) (pids []int) {
	es, _ := filepath.Glob("/proc/[0-9]*/cmdline")
next:
	for _, e := range es {
		b, _ := os.ReadFile(e)
		for _, w := range what {
			if !strings.Contains(string(b), w) {
				continue next
			}
		}
		if pid, err := strconv.Atoi(strings.Split(e, "/")[2]); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}

// containerd is the process id of the node's containerd.
func (n *node) containerd() int {
	n.t.Helper()
	var pids []int
	eventually(n.t, "one containerd runs", func() bool { // a child of it has its command line until it is another program
		pids = n.processes("--config", runtime.RunDir(n.dir)+"/containerd-")
		return len(pids) == 1
	})
	return pids[0]
}

func (n *node) kill(pid int) {
	n.t.Helper()
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		n.t.Fatal(err)
	}
}

func TestRestartOfRuntime(t *testing.T) {
	n := start(t)
	id := n.mustStart(container("sleep"))
	n.waitOutput(id, "ready")
	before, daemon := n.observed(id), n.containerd()
	n.restart()
	after := n.observed(id)
	if after.State != agent.ContainerRunning || after.PID != before.PID || !after.Started.Equal(before.Started) {
		t.Errorf("after a restart = %+v, before = %+v", after, before)
	}
	if got := n.containerd(); got != daemon {
		t.Errorf("containerd is process %d, was %d: want it adopted", got, daemon)
	}
	if _, err := runtime.New(t.Context(), mustConfig(t, n.dir)); err == nil || !strings.Contains(err.Error(), "in use by another baton") {
		t.Errorf("a second runtime over the same directory: err = %v", err)
	}
	if err := n.Stop(t.Context(), id, 30*time.Second); err != nil {
		t.Fatal(err)
	}
	if e := n.waitExit(id); e.Code != 0 {
		t.Errorf("exit = %+v", e)
	}
	n.empty()
}

func mustConfig(t *testing.T, dir string) runtime.Config {
	cfg, err := config(dir)
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

func TestKilledContainerd(t *testing.T) {
	n := start(t)
	ctx, cancel := context.WithCancel(t.Context())
	events := make(chan agent.Event, 100)
	var reading sync.WaitGroup
	reading.Go(func() {
		for e := range n.Events(ctx) {
			events <- e
		}
	})
	defer reading.Wait()
	defer cancel()
	lives, ends, fails := n.mustStart(container("sleep")), n.mustStart(container("after", "50", "0")), n.mustStart(container("exit", "3"))
	n.waitOutput(lives, "ready")
	before := n.observed(lives).PID
	n.waitExit(fails)
	daemon := n.containerd()
	// Frozen, it does not see the end of tasks; killed then, it has lost them.
	late := n.mustStart(container("after", "300", "44"))
	if err := unix.Kill(daemon, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	time.Sleep(time.Second)
	n.kill(daemon)
	eventually(t, "containerd is back", func() bool {
		o, err := n.Observe(t.Context())
		return err == nil && len(o) == 4 && n.containerd() != daemon
	})
	for id, want := range map[cluster.ID]int{ends: 0, fails: 3, late: 44} {
		if e := n.waitExit(id); e.Code != want || e.Unknown {
			t.Errorf("exit = %+v, want %d", e, want)
		}
	}
	if o := n.observed(lives); o.State != agent.ContainerRunning || o.PID != before {
		t.Errorf("the running task = %+v, want process %d still", o, before)
	}
	restarted := false
	eventually(t, "the restart is told", func() bool {
		for {
			select {
			case e := <-events:
				restarted = restarted || e.Kind == agent.EventRestarted
			default:
				return restarted
			}
		}
	})
	// The same containerd client goes on, events included.
	id := n.mustStart(container("after", "500", "5"))
	deadline := time.After(waitMax)
	for seen := false; !seen; {
		select {
		case e := <-events:
			seen = e.Kind == agent.EventExited && e.Task == id
		case <-deadline:
			t.Fatal("no event of the exit after the restart")
		}
	}
	if err := n.Stop(t.Context(), lives, 30*time.Second); err != nil {
		t.Fatal(err)
	}
	if e := n.waitExit(lives); e.Code != 0 {
		t.Errorf("exit = %+v: want the handler's 0", e)
	}
	n.empty()
}

// A task that is told to end while containerd is away ends by its handler all the same.
func TestStopOverRestart(t *testing.T) {
	n := start(t)
	c := container("sleep")
	c.Spec.Container.StopSignal = "SIGUSR1"
	id := n.mustStart(c)
	n.waitOutput(id, "ready")
	n.kill(n.containerd())
	eventually(t, "it stops", func() bool { return n.Stop(t.Context(), id, 30*time.Second) == nil })
	if e := n.waitExit(id); e.Code != 7 {
		t.Errorf("exit = %+v, want 7", e)
	}
	n.empty()
}

func TestKilledBoth(t *testing.T) {
	n := start(t)
	if err := n.Close(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	n.Runtime = nil
	cmd, out := n.spawn(2)
	var ids []cluster.ID
	for out.Scan() && out.Text() != "ok" {
		id, err := cluster.ParseID(out.Text())
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, id)
	}
	for _, id := range ids {
		n.waitOutput(id, "ready")
	}
	n.kill(n.containerd())
	n.kill(cmd.Process.Pid)
	_ = cmd.Wait()
	// One task ends while nobody looks, by the signal that its handler answers with 7.
	first := shimChild(t, n, ids[0])
	if err := unix.Kill(first, unix.SIGUSR1); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the process is gone", func() bool { return unix.Kill(first, 0) != nil })
	n.open()
	if e := n.waitExit(ids[0]); e.Code != 7 || e.Unknown {
		t.Errorf("exit = %+v, want 7", e)
	}
	if o := n.observed(ids[1]); o.State != agent.ContainerRunning {
		t.Errorf("the other task = %+v, want it running", o)
	}
	n.empty()
}

// shimChild is the process id of a task's main process, from the record of its shim.
func shimChild(t *testing.T, n *node, id cluster.ID) int {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(runtime.RunDir(n.dir), "state/io.containerd.runtime.v2.task/baton", id.String(), "init.pid"))
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(string(b))
	if err != nil {
		t.Fatal(err)
	}
	return pid
}

// An agent that is killed at any moment of a start leaves nothing that cannot be used or removed.
func TestKilledMidStart(t *testing.T) {
	n := start(t)
	if err := n.Close(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	n.Runtime = nil
	for round := range 4 {
		cmd, out := n.spawn(4)
		var ids []cluster.ID
		for range 4 {
			if !out.Scan() {
				t.Fatal("the agent ended by itself")
			}
			id, err := cluster.ParseID(out.Text())
			if err != nil {
				t.Fatal(err)
			}
			ids = append(ids, id)
		}
		time.Sleep(time.Duration(rand.IntN(400)) * time.Millisecond)
		if round%2 == 1 {
			n.kill(n.containerd())
		}
		n.kill(cmd.Process.Pid)
		_ = cmd.Wait()
		n.open()
		for _, id := range ids {
			c := container("sleep")
			c.Task.ID = id
			// containerd may still be undoing what the dead agent asked for; an agent tries again, too.
			eventually(t, "it starts", func() bool {
				err := n.Start(t.Context(), c)
				if re := (*agent.RejectError)(nil); errors.As(err, &re) {
					t.Fatalf("start: %v", err)
				}
				return err == nil
			})
			if o := n.observed(id); o == nil || o.State != agent.ContainerRunning {
				b, _ := json.Marshal(o)
				t.Errorf("round %d: after a repeated start = %s, want it running", round, b)
			}
		}
		n.empty()
		if err := n.Close(t.Context(), true); err != nil {
			t.Fatal(err)
		}
		n.Runtime = nil
	}
}

func TestRemoveAll(t *testing.T) {
	n := start(t)
	id := n.mustStart(container("stubborn"))
	n.waitOutput(id, "ready")
	pid := n.observed(id).PID
	if err := n.Close(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	n.Runtime = nil
	for range 2 {
		if err := runtime.RemoveAll(t.Context(), n.dir, ""); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "the task is gone, and collected by the machine's first process", func() bool { return unix.Kill(pid, 0) != nil })
	if left := n.processes(runtime.RunDir(n.dir)); len(left) > 0 {
		t.Errorf("processes %v are left", left)
	}
	if left := n.processes(n.dir); len(left) > 0 {
		t.Errorf("processes %v are left", left)
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(mounts), n.dir) || strings.Contains(string(mounts), runtime.RunDir(n.dir)) {
		t.Errorf("mounts are left:\n%s", mounts)
	}
	if _, err := os.Stat(runtime.RunDir(n.dir)); err == nil {
		t.Error("the run directory is left")
	}
}
