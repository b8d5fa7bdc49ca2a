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

// recorder are hands that only note what they are told.
type recorder struct {
	acts          []Action
	network       []NetworkWork
	volumes       []string
	changes       []Change
	pulls, broken []agentapi.ImageWant
	done          struct{ acts, network int } // by settle
	loop          *Loop                       // when set, everything is recorded at once
}

var _ Hands = (*recorder)(nil)

func (r *recorder) Act(_ cluster.ID, _ *agentapi.Assignment, a Action) func() {
	r.acts = append(r.acts, a)
	return func() {}
}
func (r *recorder) Probe(Probing) func()         { return func() {} }
func (r *recorder) Count(cluster.ID, netip.Addr) {}
func (r *recorder) FollowNetwork(w NetworkWork)  { r.network = append(r.network, w) }
func (r *recorder) RemoveVolume(name string)     { r.volumes = append(r.volumes, name) }
func (r *recorder) Look(cluster.ID)              {}
func (r *recorder) Prepare(w agentapi.ImageWant) func() {
	r.pulls = append(r.pulls, w)
	return func() { r.broken = append(r.broken, w) }
}
func (r *recorder) Record(c Change) {
	r.changes = append(r.changes, c)
	if r.loop != nil {
		r.loop.Recorded(nil, now)
	}
}
func (r *recorder) last() (a Action) { return r.acts[len(r.acts)-1] }
func (r *recorder) count(kind ActionKind) (n int) {
	for _, a := range r.acts {
		if a.Kind == kind {
			n++
		}
	}
	return n
}

func assigned(n byte, d cluster.Desired) agentapi.Assignment {
	return agentapi.Assignment{
		Task: &cluster.Task{
			Meta: cluster.Meta{ID: cluster.ID{15: n}}, Desired: d, Observed: cluster.ObservedAssigned, Address: netip.AddrFrom4([4]byte{10, 0, 0, n}),
		},
		Spec: &spec.Service{},
	}
}

// ready is a loop with its network configured, at version 1.
func ready(t *testing.T, r *recorder, list ...agentapi.Assignment) *Loop {
	t.Helper()
	l := NewLoop(r, slog.New(slog.DiscardHandler))
	r.loop = l
	l.See(nil, now)
	l.Take(agentapi.Update{Version: 1, Full: true, Node: &agentapi.NodeConfig{}, Network: &agentapi.NetworkState{}, Assignments: list})
	l.Step(now)
	l.NetworkDone(NetworkResult{Config: r.network[0].Config}, now)
	l.Step(now)
	l.NetworkDone(NetworkResult{Version: r.network[1].Version}, now)
	if l.Step(now); l.net.done != 1 {
		t.Fatalf("network at version %d, want 1", l.net.done)
	}
	return l
}

func TestEndedTaskHoldsUpOnlyItsOwnPlace(t *testing.T) {
	r := &recorder{}
	l := ready(t, r, assigned(1, cluster.DesiredRun))
	one := cluster.ID{15: 1}
	l.Finish(Result{Task: one, Kind: ActStart, Probes: &spec.Probes{}}, now)
	l.See([]Observed{{Task: one, State: ContainerRunning, Started: now}}, now)
	l.Step(now)
	l.See([]Observed{{Task: one, State: ContainerExited, Exit: &cluster.Exit{Code: 1}}}, now)
	same := assigned(3, cluster.DesiredRun)
	same.Task.Address = netip.AddrFrom4([4]byte{10, 0, 0, 1})
	l.Take(agentapi.Update{Version: 2, Assignments: []agentapi.Assignment{assigned(2, cluster.DesiredRun)}})
	l.Step(now)
	l.Take(agentapi.Update{Version: 3, Assignments: []agentapi.Assignment{same}})
	l.Step(now)
	started := func(n byte) bool {
		for _, a := range r.acts {
			if a.Kind == ActStart && a.Task == (cluster.ID{15: n}) {
				return true
			}
		}
		return false
	}
	if r.count(ActClean) != 1 || !started(2) {
		t.Errorf("got %+v, want the ended task cleaned and the one with another address started", r.acts)
	}
	l.Finish(Result{Task: one, Kind: ActClean, Err: errors.New("busy")}, now)
	l.See([]Observed{{Task: one, State: ContainerExited, Exit: &cluster.Exit{Code: 1}}}, now)
	if l.Step(now); started(3) {
		t.Error("a task was given an address that is not free on this machine yet")
	}
	later := now.Add(retryMin)
	l.Step(later)
	l.Finish(Result{Task: one, Kind: ActClean}, later)
	l.See(nil, later)
	if l.Step(later); !started(3) {
		t.Error("the address is free and its task does not start")
	}
}

func TestStartThatIsGivenUpIsCleanedAtOnce(t *testing.T) {
	r := &recorder{}
	l := ready(t, r, assigned(1, cluster.DesiredRun))
	l.Finish(Result{Task: cluster.ID{15: 1}, Kind: ActStart, Err: &RejectError{Reason: "no such image"}}, now)
	l.See(nil, now)
	l.Step(now) // the record hears of the end first
	if l.Step(now); r.last().Kind != ActClean {
		t.Errorf("got %+v, want the clean-up now", r.acts)
	}
}

func TestNewOrderDoesNotWaitForTheOldOnesRetry(t *testing.T) {
	r := &recorder{}
	l := ready(t, r, assigned(1, cluster.DesiredRun))
	for try := range 6 {
		at := now.Add(time.Duration(try) * time.Hour)
		l.Step(at)
		l.Finish(Result{Task: cluster.ID{15: 1}, Kind: ActStart, Err: &PullError{Err: errors.New("no registry")}}, at)
		l.See(nil, at)
	}
	at := now.Add(5 * time.Hour)
	l.Take(agentapi.Update{Version: 2, Assignments: []agentapi.Assignment{assigned(1, cluster.DesiredStop)}})
	if l.Step(at); r.last().Kind != ActClean {
		t.Errorf("got %+v, want the clean-up now", r.last())
	}
}

func TestCleanUpThatDoesNotWorkIsTold(t *testing.T) {
	r := &recorder{}
	l := ready(t, r, assigned(1, cluster.DesiredStop))
	at := now
	for range stuckTries + 2 {
		l.Finish(Result{Task: cluster.ID{15: 1}, Kind: ActClean, Err: errors.New("device or resource busy")}, at)
		l.See(nil, at)
		at = at.Add(retryMax)
		l.Step(at)
	}
	report, _ := l.Outbox().Collect()
	if len(report.Notes) != 1 || report.Notes[0].Type != "task.stuck" {
		t.Errorf("got notes %+v, want one task.stuck", report.Notes)
	}
}

func TestVersionsSeenWhileConfiguringAreAcknowledged(t *testing.T) {
	r := &recorder{}
	l := ready(t, r)
	l.Take(agentapi.Update{Version: 2, Node: &agentapi.NodeConfig{}})
	l.Step(now)
	l.Take(agentapi.Update{Version: 3, Assignments: []agentapi.Assignment{assigned(1, cluster.DesiredRun)}})
	l.Step(now)
	l.NetworkDone(NetworkResult{Config: r.network[2].Config}, now)
	l.Step(now)
	if report, _ := l.Outbox().Collect(); report.Applied != 3 {
		t.Errorf("acknowledged %d, want 3", report.Applied)
	}
}

func TestNothingIsAcknowledgedBeforeTheFirstStateIsApplied(t *testing.T) {
	r := &recorder{}
	l := NewLoop(r, slog.New(slog.DiscardHandler))
	l.See(nil, now)
	l.Take(agentapi.Update{Version: 1, Full: true, Node: &agentapi.NodeConfig{}, Network: &agentapi.NetworkState{}})
	l.Step(now)
	l.NetworkDone(NetworkResult{Config: r.network[0].Config}, now)
	l.Step(now)
	l.NetworkDone(NetworkResult{Version: 1, Err: errors.New("netlink")}, now)
	l.Step(now)
	if report, _ := l.Outbox().Collect(); report.Applied != 0 {
		t.Errorf("acknowledged %d, want nothing", report.Applied)
	}
}

func TestProbeIntervalHasAFloor(t *testing.T) {
	for _, p := range []spec.Probe{{StartInterval: 1}, {Interval: 1}, {}} {
		v := verdict{probe: &p}
		if got := v.interval(); got < intervalMin {
			t.Errorf("%+v asks every %s, at least %s", p, got, intervalMin)
		}
	}
}
