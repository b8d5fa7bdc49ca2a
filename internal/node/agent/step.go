package agent

import (
	"cmp"
	"fmt"
	"time"

	"baton/internal/model/cluster"
	"baton/internal/wire/agentapi"
)

// ActionKind is what a worker is to do for a task.
type ActionKind string

// The actions.
const (
	ActStart  ActionKind = "start"  // pull, prepare, attach, start
	ActStop   ActionKind = "stop"   // stop signal, grace, kill
	ActClean  ActionKind = "clean"  // container, network place and files go; logs stay
	ActForget ActionKind = "forget" // logs and the memory of the task go
	ActAdopt  ActionKind = "adopt"  // find the network place of a container that runs already
	ActMark   ActionKind = "mark"   // the status changes; nothing to do on the machine
)

// Action is one thing to do for one task.
type Action struct {
	Kind   ActionKind
	Task   cluster.ID
	Grace  time.Duration  // ActStop
	Status cluster.Status // ActMark
	// Refreshed is true with ActStart when the image was asked for a moment ago, and need not be again.
	Refreshed bool
}

// Local is what the agent itself remembers of a task between two steps.
type Local struct {
	Status cluster.Status
	// Busy is true while a worker acts; the task is then left alone.
	Busy bool
	// Attached is true once this agent made or found the task's network place.
	Attached bool
	// Cleaned is true once nothing but the logs is left.
	Cleaned bool
	// RetryAt delays the next action after an error.
	RetryAt time.Time
	// Kill, when set, says why the agent itself ends the task: its liveness probe.
	Kill string
	// LeaseEnded is true when that is because its lease is over.
	LeaseEnded bool
	// OOM is true when the kernel reported killing a process of the task for memory.
	OOM bool
	// Probed is true when the task has a probe that decides its readiness; Passed and Ready are that probe's word.
	Probed, Passed, Ready bool
	// Idle is true when a draining task was seen without open connections after the load balancers left it.
	Idle bool
}

// TaskView is one task as Step sees it: what is wanted (nil: nothing any more), what is seen (nil: no container), what is
// remembered.
type TaskView struct {
	ID    cluster.ID
	Want  *agentapi.Assignment
	Have  *Observed
	Local Local
	// Last is what was wanted of it last, also when nothing is any more; nil: this agent never knew.
	Last *agentapi.Assignment
	// Standing is true for a stand-in that no manager has decided on.
	Standing bool
	// Barred is true for a leased task while its node has no lease: it must not start.
	Barred bool
	// Unsure is true while the agent goes by its record alone.
	Unsure bool
}

// Step decides what to do next for every task. It is pure: the same views and time give the same actions, and a step after
// all of its actions succeeded gives none.
func Step(tasks []TaskView, now time.Time) []Action {
	var out []Action
	left := leftOf(tasks, func(t TaskView) bool {
		return t.Want == nil || t.Want.Task.Observed.Terminal() || t.Local.Status.Observed.Terminal()
	})
	// A stand-in may have been refused already: its place may be promised to another task, which waits until it is gone.
	standing := leftOf(tasks, func(t TaskView) bool { return t.Standing })
	held := func(t TaskView) bool { return left.holds(t.Want) || !t.Standing && standing.holds(t.Want) }
	awaited := false // a clean-up
	for _, t := range tasks {
		if a, ok := stepTask(t, now); ok && a.Kind == ActStart && held(t) {
			awaited = true
		}
	}
	for _, t := range tasks {
		if t.Local.Busy {
			continue
		}
		a, ok := stepTask(t, now)
		if ok && a.Kind != ActMark && now.Before(t.Local.RetryAt) {
			continue // the last try went wrong
		}
		if ok && a.Kind == ActStart && t.Barred {
			continue // the next confirmation wakes the loop
		}
		if ok && a.Kind == ActStart && held(t) {
			continue // its clean-up wakes the loop
		}
		if ok && a.Kind == ActClean && !awaited && untilClean(t, now) > 0 {
			continue
		}
		if ok {
			a.Task = t.ID
			out = append(out, a)
		}
	}
	return out
}

// cleanAfter is how long a task that failed is left before it is cleaned up: its replacement goes first, which would
// otherwise start on the same cores at the same time.
const cleanAfter = time.Second

// untilClean is how long the clean-up of a task is still put off, zero or less when it is not.
func untilClean(t TaskView, now time.Time) time.Duration {
	if t.Want == nil || t.Local.Status.Observed != cluster.ObservedFailed || t.Have == nil || t.Have.State != ContainerExited {
		return 0
	}
	return t.Local.Status.At.Add(cleanAfter).Sub(now)
}

func stepTask(t TaskView, now time.Time) (Action, bool) {
	if t.Want == nil {
		return stepUnwanted(t)
	}
	status := t.Local.Status
	if status.Observed.Terminal() {
		if t.Have != nil && t.Have.State == ContainerRunning {
			// It was given up with its node, which is back.
			return Action{Kind: ActStop, Grace: t.Want.Spec.Container.StopGracePeriod}, true
		}
		// A start that an earlier agent left under way may show a container after the clean-up.
		return Action{Kind: ActClean}, !t.Local.Cleaned || t.Have != nil
	}
	if status.Observed == cluster.ObservedStopping && t.Want.Task.Desired < cluster.DesiredStop && t.Local.Kill == "" {
		// An earlier agent began to end it; what it knew of the cause is in the status.
		t.Local.Kill = cmp.Or(status.Reason, "its node was ending it")
	}
	if t.Have != nil && t.Have.State == ContainerExited {
		return mark(t, ended(t, now))
	}
	running := t.Have != nil && t.Have.State == ContainerRunning
	if t.Want.Task.Desired >= cluster.DesiredStop || t.Local.Kill != "" {
		return stepStop(t, running, now)
	}
	if !running {
		return stepStart(t, now)
	}
	if !t.Local.Attached {
		return Action{Kind: ActAdopt}, true
	}
	return mark(t, alive(t, now))
}

// stepUnwanted removes whatever is left of a task that the managers no longer know.
func stepUnwanted(t TaskView) (Action, bool) {
	switch {
	case t.Have != nil && t.Have.State == ContainerRunning:
		grace := graceDefault
		if t.Last != nil {
			grace = t.Last.Spec.Container.StopGracePeriod
		}
		return Action{Kind: ActStop, Grace: grace}, true
	case t.Have != nil || !t.Local.Cleaned:
		return Action{Kind: ActClean}, true
	}
	return Action{Kind: ActForget}, true
}

func stepStop(t TaskView, running bool, now time.Time) (Action, bool) {
	status := t.Local.Status
	if !running {
		// Stopped before its process ever ran, or its container is gone without a trace.
		status.Observed, status.Ready, status.At = cluster.ObservedComplete, false, now
		status.Reason = t.Want.Task.Reason
		if t.Local.Kill != "" {
			status.Observed, status.Reason = cluster.ObservedFailed, t.Local.Kill
		}
		return mark(t, status)
	}
	if status.Observed != cluster.ObservedStopping {
		status.Observed, status.Ready, status.At = cluster.ObservedStopping, false, now
		status.Reason = t.Local.Kill
		return mark(t, status)
	}
	grace := t.Want.Spec.Container.StopGracePeriod
	if t.Local.LeaseEnded {
		grace = min(grace, leaseGrace)
	}
	return Action{Kind: ActStop, Grace: grace}, true
}

func stepStart(t TaskView, now time.Time) (Action, bool) {
	status := t.Local.Status
	if status.Observed >= cluster.ObservedRunning || (status.Observed == cluster.ObservedStarting && t.Have == nil && !status.Started.IsZero()) {
		status.Observed, status.Ready, status.At = cluster.ObservedFailed, false, now
		status.Exit = &cluster.Exit{Code: -1, Unknown: true, At: now}
		status.Reason = "its container is gone: the machine restarted, or somebody removed it"
		return mark(t, status)
	}
	if t.Want.Task.Desired != cluster.DesiredRun {
		return stepStop(t, false, now) // draining before it ever ran
	}
	if t.Unsure && status.Observed >= cluster.ObservedPreparing {
		// It may have run, and the managers may know that; what runs now must be another task.
		status.Observed, status.Ready, status.At = cluster.ObservedFailed, false, now
		status.Exit = &cluster.Exit{Code: -1, Unknown: true, At: now}
		status.Reason = "its node went down while it was being started"
		return mark(t, status)
	}
	return Action{Kind: ActStart}, true
}

// mark wraps a status that differs from the remembered one.
func mark(t TaskView, s cluster.Status) (Action, bool) {
	l := t.Local.Status
	same := s.Observed == l.Observed && s.Ready == l.Ready && s.Drained == l.Drained && s.Reason == l.Reason
	return Action{Kind: ActMark, Status: s}, !same
}

// alive is the status of a task whose process runs.
func alive(t TaskView, now time.Time) cluster.Status {
	s := t.Local.Status
	s.Observed, s.Ready = cluster.ObservedRunning, true
	if t.Local.Probed {
		s.Ready = t.Local.Ready
		if !t.Local.Passed && t.Local.Status.Observed < cluster.ObservedRunning {
			s.Observed = cluster.ObservedStarting
		}
	}
	if s.Started.IsZero() {
		s.Started = t.Have.Started
	}
	s.Drained = s.Drained || t.Local.Idle
	s.At, s.Reason = now, ""
	if s.Observed == cluster.ObservedRunning && !s.Ready {
		s.Reason = "its ready probe does not pass"
	}
	return s
}

// ended is the status of a task whose process has ended.
func ended(t TaskView, now time.Time) cluster.Status {
	s := t.Local.Status
	exit := *t.Have.Exit
	exit.OOM = exit.OOM || (t.Local.OOM && exit.Code == codeKilled)
	s.Exit, s.Ready, s.At = &exit, false, now
	if s.Started.IsZero() {
		s.Started = t.Have.Started
	}
	s.Observed, s.Reason = cluster.ObservedFailed, DescribeExit(exit)
	switch {
	case t.Local.Kill != "":
		s.Reason = t.Local.Kill
	case t.Want.Task.Desired >= cluster.DesiredStop:
		s.Observed, s.Reason = cluster.ObservedComplete, t.Want.Task.Reason
	case exit.Code == 0 && !exit.Unknown && !exit.OOM:
		s.Observed = cluster.ObservedComplete
	}
	return s
}

// codeKilled is the exit code of a process that ended by SIGKILL: 128 + 9.
const codeKilled = 137

// graceDefault is the grace of a task whose spec is not known any more.
const graceDefault = 10 * time.Second

// DescribeExit tells in one sentence how a process ended.
func DescribeExit(e cluster.Exit) string {
	switch {
	case e.OOM:
		return fmt.Sprintf("out of memory: the kernel killed it at its memory limit (OOM), exit code %d", e.Code)
	case e.Unknown:
		return "ended unseen, its exit code is not known: the machine restarted, or its shim was killed"
	case e.Signal != "":
		return fmt.Sprintf("killed by %s, exit code %d", e.Signal, e.Code)
	}
	return fmt.Sprintf("exited with code %d", e.Code)
}
