package agent

import (
	"testing"
	"time"

	"pgregory.net/rapid"

	"baton/internal/model/cluster"
	"baton/internal/model/spec"
	"baton/internal/wire/agentapi"
)

var now = time.Unix(1_800_000_000, 0)

func wanted(d cluster.Desired) *agentapi.Assignment {
	return &agentapi.Assignment{
		Task: &cluster.Task{Desired: d, Observed: cluster.ObservedAssigned, Reason: "because"},
		Spec: &spec.Service{Container: spec.Container{StopGracePeriod: 7 * time.Second}},
	}
}

func running() *Observed { return &Observed{State: ContainerRunning, PID: 1, Started: now} }

func exited(code int, signal string) *Observed {
	return &Observed{State: ContainerExited, Exit: &cluster.Exit{Code: code, Signal: signal, At: now}}
}

func at(o cluster.Observed) Local { return Local{Status: cluster.Status{Observed: o}} }

func TestStep(t *testing.T) {
	attached := func(o cluster.Observed) Local { l := at(o); l.Attached = true; return l }
	for _, c := range []struct {
		name   string
		view   TaskView
		want   ActionKind // "" for none
		state  cluster.Observed
		reason string
	}{
		{"a new task is started", TaskView{Want: wanted(cluster.DesiredRun), Local: at(cluster.ObservedAssigned)}, ActStart, 0, ""},
		{"a created container is started", TaskView{Want: wanted(cluster.DesiredRun), Have: &Observed{State: ContainerCreated}, Local: at(cluster.ObservedPreparing)}, ActStart, 0, ""},
		{"a busy task is left alone", TaskView{Want: wanted(cluster.DesiredRun), Local: Local{Busy: true}}, "", 0, ""},
		{"a retry waits", TaskView{Want: wanted(cluster.DesiredRun), Local: Local{RetryAt: now.Add(1), Status: cluster.Status{Observed: cluster.ObservedPreparing}}}, "", 0, ""},
		{"a running container is adopted", TaskView{Want: wanted(cluster.DesiredRun), Have: running(), Local: at(cluster.ObservedRunning)}, ActAdopt, 0, ""},
		{"a started task is running", TaskView{Want: wanted(cluster.DesiredRun), Have: running(), Local: attached(cluster.ObservedPreparing)}, ActMark, cluster.ObservedRunning, ""},
		{"a vanished container has failed", TaskView{Want: wanted(cluster.DesiredRun), Local: at(cluster.ObservedRunning)}, ActMark, cluster.ObservedFailed, "its container is gone: the machine restarted, or somebody removed it"},
		{"an exit with 0 is complete", TaskView{Want: wanted(cluster.DesiredRun), Have: exited(0, ""), Local: at(cluster.ObservedRunning)}, ActMark, cluster.ObservedComplete, "exited with code 0"},
		{"an exit with 3 has failed", TaskView{Want: wanted(cluster.DesiredRun), Have: exited(3, ""), Local: at(cluster.ObservedRunning)}, ActMark, cluster.ObservedFailed, "exited with code 3"},
		{"a signal is named", TaskView{Want: wanted(cluster.DesiredRun), Have: exited(137, "SIGKILL"), Local: at(cluster.ObservedRunning)}, ActMark, cluster.ObservedFailed, "killed by SIGKILL, exit code 137"},
		{"OOM is named", TaskView{Want: wanted(cluster.DesiredRun), Have: exited(137, "SIGKILL"), Local: Local{OOM: true, Status: cluster.Status{Observed: cluster.ObservedRunning}}}, ActMark, cluster.ObservedFailed, "out of memory: the kernel killed it at its memory limit (OOM), exit code 137"},
		{"a stopped task is complete whatever its code", TaskView{Want: wanted(cluster.DesiredStop), Have: exited(143, "SIGTERM"), Local: at(cluster.ObservedStopping)}, ActMark, cluster.ObservedComplete, "because"},
		{"stopping is told first", TaskView{Want: wanted(cluster.DesiredStop), Have: running(), Local: attached(cluster.ObservedRunning)}, ActMark, cluster.ObservedStopping, ""},
		{"then the process is stopped", TaskView{Want: wanted(cluster.DesiredStop), Have: running(), Local: attached(cluster.ObservedStopping)}, ActStop, 0, ""},
		{"a task that never started is complete at once", TaskView{Want: wanted(cluster.DesiredStop), Local: at(cluster.ObservedPreparing)}, ActMark, cluster.ObservedComplete, "because"},
		{"an ended task is cleaned", TaskView{Want: wanted(cluster.DesiredRun), Have: exited(1, ""), Local: at(cluster.ObservedFailed)}, ActClean, 0, ""},
		{"not before its replacement had time to start", TaskView{Want: wanted(cluster.DesiredRun), Have: exited(1, ""), Local: Local{Status: cluster.Status{Observed: cluster.ObservedFailed, At: now.Add(1 - cleanAfter)}}}, "", 0, ""},
		{"a completed one at once", TaskView{Want: wanted(cluster.DesiredStop), Have: exited(0, ""), Local: Local{Status: cluster.Status{Observed: cluster.ObservedComplete, At: now}}}, ActClean, 0, ""},
		{"and then left alone", TaskView{Want: wanted(cluster.DesiredRun), Local: Local{Cleaned: true, Status: cluster.Status{Observed: cluster.ObservedFailed}}}, "", 0, ""},
		{"an unwanted running container is stopped", TaskView{Have: running(), Local: at(cluster.ObservedRunning)}, ActStop, 0, ""},
		{"an unwanted exited container is cleaned", TaskView{Have: exited(0, ""), Local: Local{Cleaned: true}}, ActClean, 0, ""},
		{"an unwanted clean task is forgotten", TaskView{Local: Local{Cleaned: true}}, ActForget, 0, ""},
		{"a task whose liveness failed is stopped", TaskView{Want: wanted(cluster.DesiredRun), Have: running(), Local: Local{Kill: "no answer", Attached: true, Status: cluster.Status{Observed: cluster.ObservedStopping, Reason: "no answer"}}}, ActStop, 0, ""},
		{"and has failed for that reason", TaskView{Want: wanted(cluster.DesiredRun), Have: exited(0, ""), Local: Local{Kill: "no answer", Status: cluster.Status{Observed: cluster.ObservedStopping}}}, ActMark, cluster.ObservedFailed, "no answer"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := Step([]TaskView{c.view}, now)
			if c.want == "" {
				if len(got) != 0 {
					t.Fatalf("got %+v, want no action", got)
				}
				return
			}
			if len(got) != 1 || got[0].Kind != c.want {
				t.Fatalf("got %+v, want %s", got, c.want)
			}
			if c.want == ActMark && (got[0].Status.Observed != c.state || got[0].Status.Reason != c.reason) {
				t.Fatalf("got %s %q, want %s %q", got[0].Status.Observed, got[0].Status.Reason, c.state, c.reason)
			}
		})
	}
}

func TestProbedTaskIsReadyOnlyOnceItsProbePassed(t *testing.T) {
	v := TaskView{Want: wanted(cluster.DesiredRun), Have: running(), Local: Local{Attached: true, Probed: true, Status: cluster.Status{Observed: cluster.ObservedPreparing}}}
	steps := []struct {
		passed, ready bool
		state         cluster.Observed
	}{
		{false, false, cluster.ObservedStarting},
		{true, true, cluster.ObservedRunning},
		{true, false, cluster.ObservedRunning}, // out of balancing, still running
		{true, true, cluster.ObservedRunning},
	}
	for i, s := range steps {
		v.Local.Passed, v.Local.Ready = s.passed, s.ready
		got := Step([]TaskView{v}, now)
		if len(got) != 1 || got[0].Status.Observed != s.state || got[0].Status.Ready != s.ready {
			t.Fatalf("step %d: got %+v, want %s ready %v", i, got, s.state, s.ready)
		}
		v.Local.Status = got[0].Status
		if again := Step([]TaskView{v}, now); len(again) != 0 {
			t.Fatalf("step %d: not at rest: %+v", i, again)
		}
	}
}

// TestStepComesToRest runs random tasks on a machine that does what it is told, and checks that no task goes on forever,
// moves backwards or is ready without running.
func TestStepComesToRest(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		v := TaskView{Local: at(cluster.ObservedAssigned)}
		if rapid.Bool().Draw(t, "wanted") {
			v.Want = wanted(cluster.Desired(rapid.IntRange(int(cluster.DesiredRun), int(cluster.DesiredRemove)).Draw(t, "desired")))
		}
		v.Have = rapid.SampledFrom([]*Observed{nil, {State: ContainerCreated}, running(), exited(0, ""), exited(2, "")}).Draw(t, "have")
		v.Local.Status.Observed = cluster.Observed(rapid.IntRange(int(cluster.ObservedAssigned), int(cluster.ObservedLost)).Draw(t, "observed"))
		v.Local.Attached = rapid.Bool().Draw(t, "attached")
		v.Local.Cleaned = rapid.Bool().Draw(t, "cleaned")
		for range 12 {
			got := Step([]TaskView{v}, now)
			if len(got) == 0 {
				return
			}
			switch a := got[0]; a.Kind {
			case ActStart:
				v.Have, v.Local.Attached = running(), true
			case ActAdopt:
				v.Local.Attached = true
			case ActStop:
				v.Have = exited(0, "")
			case ActClean:
				v.Have, v.Local.Cleaned, v.Local.Attached = nil, true, false
			case ActForget:
				return
			case ActMark:
				if a.Status.Observed < v.Local.Status.Observed {
					t.Fatalf("from %s back to %s", v.Local.Status.Observed, a.Status.Observed)
				}
				if a.Status.Ready && a.Status.Observed != cluster.ObservedRunning {
					t.Fatalf("ready while %s", a.Status.Observed)
				}
				v.Local.Status = a.Status
			}
		}
		t.Fatalf("no rest after 12 steps: %+v", v)
	})
}

func TestVerdictCountsConsecutiveAnswers(t *testing.T) {
	p := &spec.Probe{Failures: 3, Successes: 2, StartPeriod: 10 * time.Second}
	v := verdict{probe: p, since: now}
	answer := func(pass bool, after time.Duration) { v.observe(pass, now.Add(after)) }
	for range 5 {
		answer(false, time.Second)
	}
	if v.failures != 0 {
		t.Errorf("failures within the start period count: %d", v.failures)
	}
	answer(true, 2*time.Second)
	if v.ok {
		t.Error("one pass is enough although two are asked")
	}
	answer(true, 3*time.Second)
	if !v.ok || !v.passed {
		t.Error("two passes are not enough")
	}
	answer(false, 4*time.Second)
	answer(false, 4*time.Second)
	answer(true, 4*time.Second)
	answer(false, 4*time.Second)
	answer(false, 4*time.Second)
	if !v.ok || v.failed() {
		t.Error("failures that are not consecutive add up")
	}
	answer(false, 4*time.Second)
	if v.ok || !v.failed() {
		t.Error("three failures in a row, after the first pass and within the start period, do not count")
	}
}

func TestCleanUpThatAStartAwaitsIsNotPutOff(t *testing.T) {
	dead := TaskView{ID: cluster.ID{15: 1}, Want: wanted(cluster.DesiredRun), Have: exited(1, ""), Local: Local{Status: cluster.Status{Observed: cluster.ObservedFailed, At: now}}}
	dead.Want.Volumes = map[string]string{"data": "shop_data"}
	dead.Last = dead.Want
	next := TaskView{ID: cluster.ID{15: 2}, Want: wanted(cluster.DesiredRun), Local: at(cluster.ObservedAssigned)}
	if got := Step([]TaskView{dead, next}, now); len(got) != 1 || got[0].Kind != ActStart {
		t.Errorf("actions %+v, want a start alone", got)
	}
	next.Want.Volumes = dead.Want.Volumes
	if got := Step([]TaskView{dead, next}, now); len(got) != 1 || got[0].Kind != ActClean {
		t.Errorf("actions %+v, want the volume of the start freed at once", got)
	}
}
