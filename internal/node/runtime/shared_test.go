package runtime_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"baton/internal/model/cluster"
	"baton/internal/node/agent"
	"baton/internal/node/runtime"
)

// socketOf is the address of the shim that a task lives in, as its bundle tells.
func socketOf(t *testing.T, n *node, id cluster.ID) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(runtime.RunDir(n.dir), "state/io.containerd.runtime.v2.task/baton", id.String(), "bootstrap.json"))
	if err != nil {
		t.Fatal(err)
	}
	var boot struct{ Address string }
	if err := json.Unmarshal(b, &boot); err != nil {
		t.Fatal(err)
	}
	return boot.Address
}

// shimPID is the process id of the shim of a group.
func shimPID(t *testing.T, n *node, founder cluster.ID) int {
	t.Helper()
	pids := n.processes("containerd-shim-runc-v2", runtime.RunDir(n.dir), founder.String())
	if len(pids) != 1 {
		t.Fatalf("%d shims of group %s, want 1", len(pids), founder)
	}
	return pids[0]
}

// four starts four tasks of one service: two in each of two shims, founded by the first two.
func four(t *testing.T, n *node) (ids []cluster.ID) {
	t.Helper()
	for range 4 {
		ids = append(ids, n.mustStart(container("sleep")))
	}
	for _, id := range ids {
		n.waitOutput(id, "ready")
	}
	a, b := socketOf(t, n, ids[0]), socketOf(t, n, ids[1])
	in := map[string]int{}
	for _, id := range ids {
		in[socketOf(t, n, id)]++
	}
	if a == b || in[a] != 2 || in[b] != 2 {
		t.Fatalf("four tasks of a service are in shims as %v, want two in each of two", in)
	}
	if socketOf(t, n, ids[2]) == b {
		ids[2], ids[3] = ids[3], ids[2] // so that 0 and 2 live together, and 1 and 3
	}
	return ids
}

func TestSharedShims(t *testing.T) {
	n := start(t)
	t.Run("the founder goes first", func(t *testing.T) { sharedTheFounderGoesFirst(t, n) })
	t.Run("a killed shim", func(t *testing.T) { sharedAKilledShim(t, n) })
	t.Run("a shim that ends before it is joined", func(t *testing.T) { sharedAShimThatEnds(t, n) })
	t.Run("known again", func(t *testing.T) { sharedKnownAgain(t, n) })
	t.Run("exits while all are away", func(t *testing.T) { sharedExitsWhileAllAreAway(t, n) })
	t.Run("memory runs out for one", func(t *testing.T) { sharedMemoryRunsOutForOne(t, n) })
	n.empty()
}

// The shim, whose working directory was the founder's, serves on when that is removed.
func sharedTheFounderGoesFirst(t *testing.T, n *node) {
	ids := four(t, n)
	shim := shimPID(t, n, ids[0])
	if err := n.Remove(t.Context(), ids[0]); err != nil {
		t.Fatal(err)
	}
	if got := shimPID(t, n, ids[0]); got != shim || n.observed(ids[2]).State != agent.ContainerRunning {
		t.Fatalf("the shim is process %d, was %d; the other task is %+v", got, shim, n.observed(ids[2]))
	}
	if code, out, err := n.Exec(t.Context(), ids[2], []string{"/probe", "exit", "4"}); err != nil || code != 4 {
		t.Errorf("exec = %d, %q, %v; want 4", code, out, err)
	}
	if s := n.stats(ids[2]); s.PIDs == 0 {
		t.Errorf("stats = %+v", s)
	}
	late := n.mustStart(container("exit", "6"))
	if socketOf(t, n, late) != socketOf(t, n, ids[2]) {
		t.Error("a new task did not join the shim with the most room for its service")
	}
	if e := n.waitExit(late); e.Code != 6 {
		t.Errorf("exit = %+v, want 6", e)
	}
	if err := n.Stop(t.Context(), ids[2], 30*time.Second); err != nil {
		t.Fatal(err)
	}
	if e := n.waitExit(ids[2]); e.Code != 0 {
		t.Errorf("exit = %+v, want the handler's 0", e)
	}
	n.empty()
}

func sharedAKilledShim(t *testing.T, n *node) {
	ids := four(t, n)
	n.kill(shimPID(t, n, ids[0]))
	for _, i := range []int{0, 2} {
		if e := n.waitExit(ids[i]); !e.Unknown || !strings.Contains(agent.DescribeExit(e), "shim was killed") {
			t.Errorf("task %d: exit = %+v (%s), want it unknown with the cause", i, e, agent.DescribeExit(e))
		}
	}
	for _, i := range []int{1, 3} {
		if o := n.observed(ids[i]); o.State != agent.ContainerRunning {
			t.Errorf("task %d of another shim = %+v, want it running", i, o)
		}
	}
	again := n.mustStart(container("sleep"))
	if s := socketOf(t, n, again); s == socketOf(t, n, ids[1]) {
		t.Error("the replacement lives with all the others that are left")
	}
	n.empty()
}

// The shim has gone when the next task is to join it, and nobody has noticed.
func sharedAShimThatEnds(t *testing.T, n *node) {
	ids := four(t, n)
	n.kill(shimPID(t, n, ids[0]))
	n.kill(shimPID(t, n, ids[1]))
	id := n.mustStart(container("exit", "9"))
	if e := n.waitExit(id); e.Code != 9 {
		t.Errorf("exit = %+v, want 9", e)
	}
	n.empty()
}

// A new runtime knows who lives where: it fills the shims that there are, and ends none that serves.
func sharedKnownAgain(t *testing.T, n *node) {
	ids := four(t, n)
	if err := n.Remove(t.Context(), ids[0]); err != nil {
		t.Fatal(err)
	}
	n.restart()
	id := n.mustStart(container("sleep"))
	if socketOf(t, n, id) != socketOf(t, n, ids[2]) {
		t.Error("after a restart a new task did not join the shim of the one whose founder is gone")
	}
	for _, id := range []cluster.ID{ids[1], ids[2], ids[3], id} {
		if o := n.observed(id); o.State != agent.ContainerRunning {
			t.Errorf("%s = %+v, want it running", id, o)
		}
	}
	n.empty()
}

// Nobody asks while containerd is down; the shims know how each of their tasks ended.
func sharedExitsWhileAllAreAway(t *testing.T, n *node) {
	ids := four(t, n)
	main := map[cluster.ID]int{}
	for _, id := range ids {
		main[id] = n.observed(id).PID
	}
	daemon := n.containerd()
	if err := n.Close(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	n.Runtime = nil
	n.kill(daemon)
	for _, i := range []int{0, 1, 2} {
		if err := unix.Kill(main[ids[i]], unix.SIGUSR1); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the process is gone", func() bool { return unix.Kill(main[ids[i]], 0) != nil })
	}
	n.open()
	for i, id := range ids {
		if i == 3 {
			if o := n.observed(id); o.State != agent.ContainerRunning || o.PID != main[id] {
				t.Errorf("the task that lives on = %+v", o)
			}
			continue
		}
		if e := n.waitExit(id); e.Code != 7 || e.Unknown {
			t.Errorf("task %d: exit = %+v, want 7", i, e)
		}
	}
	n.empty()
}

func sharedMemoryRunsOutForOne(t *testing.T, n *node) {
	ids := four(t, n)
	c := container("eat", "200")
	c.Spec.Resources.Limits.Memory = 32 << 20
	greedy := n.mustStart(c)
	if !slices.ContainsFunc(ids, func(id cluster.ID) bool { return socketOf(t, n, id) == socketOf(t, n, greedy) }) {
		t.Fatal("the greedy task has a shim of its own")
	}
	if e := n.waitExit(greedy); !e.OOM {
		t.Errorf("exit = %+v, want it out of memory", e)
	}
	for _, id := range ids {
		if o := n.observed(id); o.State != agent.ContainerRunning {
			t.Errorf("a task beside it = %+v, want it running", o)
		}
	}
	n.empty()
}
