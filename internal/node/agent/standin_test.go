package agent

import (
	"errors"
	"log/slog"
	"net/netip"
	"testing"
	"time"

	"baton/internal/model/cluster"
	"baton/internal/model/spec"
	"baton/internal/wire/agentapi"
)

// one is a running, ready task with a restart policy, as the record of its node has it.
func one() Remembered {
	as := assigned(1, cluster.DesiredRun)
	as.Task.Service, as.Task.Slot = cluster.ID{15: 200}, 1
	as.Spec.Restart = spec.RestartPolicy{Condition: spec.RestartAny, Delay: time.Second, DelayMax: time.Minute, ResetAfter: time.Minute}
	return Remembered{Assignment: as, Status: cluster.Status{Task: as.Task.ID, Observed: cluster.ObservedRunning, Ready: true, Started: now}}
}

// balancing is a network state with task 1 as an endpoint, and one of another node.
func balancing() *agentapi.NetworkState {
	return &agentapi.NetworkState{
		Services: []agentapi.Service{{ID: cluster.ID{15: 200}, Endpoints: []agentapi.Endpoint{
			{Task: cluster.ID{15: 1}, Address: netip.AddrFrom4([4]byte{10, 0, 0, 1})}, {Task: cluster.ID{15: 90}},
		}}},
		Members: []agentapi.Member{{Task: cluster.ID{15: 1}, Address: netip.AddrFrom4([4]byte{10, 0, 0, 1})}},
	}
}

// booted is the loop of a node that has just booted and finds no manager, with what it remembers.
func booted(r *recorder, tasks ...Remembered) *Loop {
	l := NewLoop(r, slog.New(slog.DiscardHandler))
	r.loop = l
	l.Recall(Memory{Tasks: tasks, Node: &agentapi.NodeConfig{}, Network: balancing()})
	l.See(nil, now)
	l.Step(now)
	return l
}

// settle lets the network follow, cleans what is to be cleaned and steps until nothing more happens at that time.
func settle(r *recorder, l *Loop, at time.Time) {
	d := &r.done
	for range 20 {
		l.Step(at)
		for ; d.network < len(r.network); d.network++ {
			l.NetworkDone(NetworkResult{Config: r.network[d.network].Config, Version: r.network[d.network].Version}, at)
		}
		for ; d.acts < len(r.acts); d.acts++ {
			if a := r.acts[d.acts]; a.Kind == ActClean || a.Kind == ActStop {
				l.Finish(Result{Task: a.Task, Kind: a.Kind}, at)
				l.See(nil, at)
			}
		}
	}
}

func started(r *recorder) (list []cluster.ID) {
	for _, a := range r.acts {
		if a.Kind == ActStart {
			list = append(list, a.Task)
		}
	}
	return list
}

func TestNodeWithoutManagersRunsItsTasksAgain(t *testing.T) {
	r := &recorder{}
	l := booted(r, one())
	l.Step(now.Add(cutOffMin - time.Millisecond))
	if len(r.network)+len(r.acts) > 0 {
		t.Fatalf("acted on its record while a manager may still answer: %+v, %+v", r.network, r.acts)
	}
	at := now.Add(cutOffMin)
	settle(r, l, at)
	heir := heirOf(cluster.ID{15: 1})
	if got := started(r); len(got) != 1 || got[0] != heir {
		t.Fatalf("started %v, want the stand-in %s, and never the task that ran before", got, heir)
	}
	if st := r.network[len(r.network)-1].State; len(st.Services[0].Endpoints) != 1 || st.Members[0].Task != heir {
		t.Errorf("network shows %+v, want no endpoint here while the stand-in is not ready, and its membership", st)
	}
	l.Finish(Result{Task: heir, Kind: ActStart, Probes: &spec.Probes{}}, at)
	l.See([]Observed{{Task: heir, State: ContainerRunning, Started: at}}, at)
	settle(r, l, at)
	st := r.network[len(r.network)-1].State
	if e := st.Services[0].Endpoints; len(e) != 2 || e[0].Task != heir && e[1].Task != heir {
		t.Errorf("endpoints %+v, want the ready stand-in among them", e)
	}
}

func TestStandInsFollowTheRestartPolicy(t *testing.T) {
	r := &recorder{}
	l := booted(r, one())
	at := now.Add(cutOffMin)
	settle(r, l, at)
	first := started(r)[0]
	fail := func(id cluster.ID) {
		l.Finish(Result{Task: id, Kind: ActStart, Probes: &spec.Probes{}}, at)
		l.See([]Observed{{Task: id, State: ContainerExited, Started: at, Exit: &cluster.Exit{Code: 1, At: at}}}, at)
		settle(r, l, at)
	}
	fail(first)
	if n := len(started(r)); n != 1 {
		t.Fatalf("%d starts, want the second in a row to wait", n)
	}
	settle(r, l, at.Add(time.Second))
	got := started(r)
	if len(got) != 2 || got[1] != heirOf(first) {
		t.Fatalf("started %v, want a second stand-in after the delay of the policy", got)
	}
	report, _ := l.Outbox().Collect()
	if len(report.StandIns) != 1 || report.StandIns[0].For.Task != (cluster.ID{15: 1}) || report.StandIns[0].Status.Task != got[1] || report.StandIns[0].Failures != 2 {
		t.Errorf("reports %+v, want the last stand-in, for the task that managers know", report.StandIns)
	}
	for _, s := range report.Tasks {
		if s.Task == (cluster.ID{15: 1}) {
			t.Errorf("the end %+v is reported by itself: a manager would replace the task that is stood in for", s)
		}
	}
}

func TestPolicyThatWantsNoMoreTasksGetsNone(t *testing.T) {
	r := &recorder{}
	job := one()
	job.Assignment.Spec.Restart.Condition = spec.RestartNone
	settle(r, booted(r, job), now.Add(cutOffMin))
	if got := started(r); len(got) != 0 {
		t.Errorf("started %v", got)
	}
}

func TestManagerDecidesOnStandIns(t *testing.T) {
	heir := heirOf(cluster.ID{15: 1})
	prepare := func() (*recorder, *Loop) {
		r := &recorder{}
		l := booted(r, one())
		settle(r, l, now.Add(cutOffMin))
		l.Finish(Result{Task: heir, Kind: ActStart, Probes: &spec.Probes{}}, now.Add(cutOffMin))
		l.See([]Observed{{Task: heir, State: ContainerRunning, Started: now}}, now.Add(cutOffMin))
		settle(r, l, now.Add(cutOffMin))
		// The manager's word is old: it still counts on the first task.
		l.Outbox().Resend()
		l.Take(agentapi.Update{Version: 5, Full: true, Node: &agentapi.NodeConfig{}, Network: balancing(), Assignments: []agentapi.Assignment{one().Assignment}})
		settle(r, l, now.Add(cutOffMin))
		if r.count(ActStop) > 0 {
			t.Fatal("the stand-in is stopped before a manager has decided on it")
		}
		if report, _ := l.Outbox().Collect(); len(report.StandIns) != 1 {
			t.Fatalf("reports %+v, want the stand-in", report)
		}
		return r, l
	}
	t.Run("taken over", func(t *testing.T) {
		r, l := prepare()
		as := one().Assignment
		as.Task = cluster.Copy(as.Task)
		as.Task.ID, as.Task.Observed = heir, cluster.ObservedRunning
		l.Take(agentapi.Update{Version: 6, Assignments: []agentapi.Assignment{as}})
		settle(r, l, now.Add(cutOffMin))
		if r.count(ActStop) > 0 {
			t.Error("it is stopped")
		}
		if report, _ := l.Outbox().Collect(); len(report.StandIns) != 0 || len(report.Tasks) != 2 {
			t.Errorf("reports %+v, want both tasks by themselves from now on", report)
		}
	})
	t.Run("refused", func(t *testing.T) {
		r, l := prepare()
		l.Take(agentapi.Update{Version: 6, Removed: []cluster.ID{heir}})
		settle(r, l, now.Add(cutOffMin))
		if r.count(ActStop) != 1 || r.last().Kind != ActForget {
			t.Errorf("did %+v, want the stand-in stopped and forgotten", r.acts)
		}
		if report, _ := l.Outbox().Collect(); len(report.Tasks) == 0 || report.Tasks[0].Task != (cluster.ID{15: 1}) || report.Tasks[0].Observed != cluster.ObservedFailed {
			t.Errorf("reports %+v, want the end of the first task", report)
		}
	})
}

func TestPlaceOfARefusedStandInIsFreeOnlyOnceItIsGone(t *testing.T) {
	r := &recorder{}
	l := booted(r, one())
	at := now.Add(cutOffMin)
	settle(r, l, at)
	other := assigned(7, cluster.DesiredRun)
	other.Task.Address = one().Assignment.Task.Address
	l.Take(agentapi.Update{Version: 5, Full: true, Node: &agentapi.NodeConfig{}, Network: &agentapi.NetworkState{}, Assignments: []agentapi.Assignment{other}})
	settle(r, l, at)
	if got := started(r); len(got) != 1 {
		t.Fatalf("started %v: the address is in use", got)
	}
	heir := heirOf(cluster.ID{15: 1})
	l.Take(agentapi.Update{Version: 6, Removed: []cluster.ID{heir}})
	l.Finish(Result{Task: heir, Kind: ActStart, Err: errors.New("broken off")}, at)
	l.See(nil, at)
	settle(r, l, at.Add(retryMax))
	if got := started(r); len(got) != 2 || got[1] != (cluster.ID{15: 7}) {
		t.Errorf("started %v, want the task that has the address now", got)
	}
}

func TestTaskThatWasReplacedGetsNoStandIn(t *testing.T) {
	r := &recorder{}
	ended, next := one(), one()
	ended.Status.Observed, ended.Status.At = cluster.ObservedFailed, now
	next.Assignment.Task = cluster.Copy(next.Assignment.Task)
	next.Assignment.Task.ID, next.Assignment.Task.Created = cluster.ID{15: 2}, now
	next.Status.Task = cluster.ID{15: 2}
	settle(r, booted(r, ended, next), now.Add(cutOffMin))
	if got := started(r); len(got) != 1 || got[0] != heirOf(cluster.ID{15: 2}) {
		t.Errorf("started %v, want a stand-in for the newer task of the slot alone", got)
	}
}

func TestWhatTheRecordMustKnowWaitsForIt(t *testing.T) {
	r := &recorder{}
	l := ready(t, r)
	r.loop = nil // from here on nothing is recorded by itself
	l.Take(agentapi.Update{Version: 2, Assignments: []agentapi.Assignment{assigned(1, cluster.DesiredRun)}})
	l.Step(now)
	if len(r.acts) != 0 {
		t.Fatalf("did %+v before the record knows of the task", r.acts)
	}
	l.Recorded(nil, now)
	if l.Step(now); r.count(ActStart) != 1 {
		t.Fatalf("did %+v, want the start", r.acts)
	}
	id := cluster.ID{15: 1}
	l.Finish(Result{Task: id, Kind: ActStart, Probes: &spec.Probes{}}, now)
	l.See([]Observed{{Task: id, State: ContainerExited, Exit: &cluster.Exit{}}}, now)
	if l.Step(now); r.count(ActClean) != 0 {
		t.Fatal("cleaned up before the record knows of the end")
	}
	l.Recorded(errors.New("no space left on device"), now)
	l.Step(now)
	l.Recorded(errors.New("no space left on device"), now)
	if l.Step(now); r.count(ActClean) != 1 {
		t.Error("a record that cannot be written holds the clean-up up")
	}
	report, _ := l.Outbox().Collect()
	if n := len(report.Notes); n != 1 || report.Notes[0].Type != "node.record-failed" {
		t.Errorf("notes %+v, want one of the record", report.Notes)
	}
	r.changes = nil
	l.Step(now.Add(retryMax))
	if len(r.changes) != 1 || len(r.changes[0].Tasks) != 1 || r.changes[0].Network == nil {
		t.Errorf("saves %+v, want everything again after a while", r.changes)
	}
}

func TestRecordThatIsBehindDoesNotRunATaskTwice(t *testing.T) {
	r := &recorder{}
	old := one()
	old.Status = cluster.Status{Task: old.Status.Task, Observed: cluster.ObservedPreparing}
	l := booted(r, old)
	as := old.Assignment
	as.Task = cluster.Copy(as.Task)
	as.Task.Observed = cluster.ObservedRunning
	l.Take(agentapi.Update{Version: 5, Full: true, Node: &agentapi.NodeConfig{}, Network: balancing(), Assignments: []agentapi.Assignment{as}})
	settle(r, l, now)
	if got := started(r); len(got) != 0 {
		t.Errorf("started %v, which ran before", got)
	}
	r = &recorder{}
	settle(r, booted(r, old), now.Add(cutOffMin))
	if got := started(r); len(got) != 1 || got[0] == old.Status.Task {
		t.Errorf("started %v, want a stand-in: the task may have run", got)
	}
}
