package agent

import (
	"strings"
	"testing"
	"time"

	"baton/internal/model/cluster"
	"baton/internal/model/spec"
	"baton/internal/wire/agentapi"
)

func leased(n byte) agentapi.Assignment {
	as := assigned(n, cluster.DesiredRun)
	as.Task.Leased = true
	as.Spec = &spec.Service{Container: spec.Container{StopGracePeriod: time.Minute}}
	return as
}

func TestLeasedTaskStartsOnceTheLeaderConfirms(t *testing.T) {
	r := &recorder{}
	l := ready(t, r, leased(1), assigned(2, cluster.DesiredRun))
	if r.count(ActStart) != 1 || r.last().Task != (cluster.ID{15: 2}) {
		t.Fatalf("before a confirmation: %+v, want the start of task 2 alone", r.acts)
	}
	l.Take(agentapi.Update{Version: 2, Confirmed: now.Add(-agentapi.LeaseMax)})
	l.Step(now)
	if r.count(ActStart) != 1 {
		t.Fatal("a confirmation that is too old started the task")
	}
	l.Take(agentapi.Update{Version: 3, Confirmed: now})
	l.Step(now)
	if r.count(ActStart) != 2 || r.last().Task != (cluster.ID{15: 1}) {
		t.Fatalf("after a confirmation: %+v, want the start of task 1, too", r.acts)
	}
}

// runningLeased is a loop with a leased task and another one, both running, at the time now.
func runningLeased(t *testing.T, r *recorder) *Loop {
	t.Helper()
	l := ready(t, r, leased(1), assigned(2, cluster.DesiredRun))
	l.Take(agentapi.Update{Version: 2, Confirmed: now})
	l.Step(now)
	for n := byte(1); n <= 2; n++ {
		l.Finish(Result{Task: cluster.ID{15: n}, Kind: ActStart, Probes: &spec.Probes{}}, now)
	}
	l.See([]Observed{
		{Task: cluster.ID{15: 1}, State: ContainerRunning, Started: now}, {Task: cluster.ID{15: 2}, State: ContainerRunning, Started: now},
	}, now)
	l.Step(now)
	return l
}

func TestLeaseOverEndsTheTask(t *testing.T) {
	r := &recorder{}
	l := runningLeased(t, r)
	const renewed = 5 * time.Second
	l.Take(agentapi.Update{Version: 3, Confirmed: now.Add(renewed)})
	l.Take(agentapi.Update{Version: 4, Confirmed: now}) // an older word changes nothing
	before := now.Add(renewed + agentapi.LeaseMax - time.Millisecond)
	if next := l.Step(before); next > time.Millisecond {
		t.Errorf("just before the end it looks again after %s", next)
	}
	if r.count(ActStop) > 0 {
		t.Fatalf("ended before its lease was over: %+v", r.acts)
	}
	l.Step(now.Add(renewed + agentapi.LeaseMax))
	if r.count(ActStop) != 1 || r.last().Task != (cluster.ID{15: 1}) || r.last().Grace > leaseGrace {
		t.Fatalf("after the end of the lease: %+v, want a quick stop of task 1 alone", r.acts)
	}
	report, _ := l.Outbox().Collect()
	found := false
	for _, n := range report.Notes {
		found = found || n.Type == "task.lease-ended" && strings.Contains(n.Message, "not been confirmed")
	}
	if !found {
		t.Errorf("no note tells of it: %+v", report.Notes)
	}
}

// The agent and the fence are done before the managers may start another task.
func TestLeasesEndBeforeNodesAreDown(t *testing.T) {
	const look = time.Second // of the fence, with room for a busy machine
	if agentapi.LeaseMax+leaseGrace > agentapi.FenceMax || agentapi.FenceMax+2*look > agentapi.DownMin {
		t.Errorf("agent: %s and %s, fence: %s, managers: %s", agentapi.LeaseMax, leaseGrace, agentapi.FenceMax, agentapi.DownMin)
	}
}

// While a node is cut off, a leased task has no stand-in: the managers may have started another one elsewhere.
func TestLeasedTaskHasNoStandIn(t *testing.T) {
	r := &recorder{}
	l := runningLeased(t, r)
	l.Cut(now)
	at := now.Add(cutOffMin + time.Second)
	l.See([]Observed{
		{Task: cluster.ID{15: 1}, State: ContainerExited, Exit: &cluster.Exit{Code: 1, At: at}},
		{Task: cluster.ID{15: 2}, State: ContainerExited, Exit: &cluster.Exit{Code: 1, At: at}},
	}, at)
	settle(r, l, at)
	if l.tasks[heirOf(cluster.ID{15: 1})] != nil {
		t.Error("the leased task has a stand-in")
	}
	if l.tasks[heirOf(cluster.ID{15: 2})] == nil {
		t.Error("the other task has none")
	}
}

// A node that boots without managers does not run what it had a lease for.
func TestBootedNodeStartsNoLeasedTask(t *testing.T) {
	r := &recorder{}
	l := booted(r, Remembered{Assignment: leased(1), Status: cluster.Status{Task: cluster.ID{15: 1}, Observed: cluster.ObservedAssigned}})
	settle(r, l, now.Add(time.Minute))
	if r.count(ActStart) > 0 {
		t.Errorf("started: %+v", r.acts)
	}
}
