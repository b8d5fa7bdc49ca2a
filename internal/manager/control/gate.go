package control

import (
	"fmt"
	"time"

	"baton/internal/model/cluster"
	"baton/internal/model/spec"
	"baton/internal/plan/gate"
	"baton/internal/plan/reconcile"
)

// Requests tells what became of the requests of tasks.
type Requests interface {
	// Task is what a task had since it was heard of; false when nothing was told of it.
	Task(id cluster.ID) (gate.Counts, bool)
	// Bound is the upper bound of a bucket of latencies.
	Bound(bucket int) time.Duration
	Lag() time.Duration
}

// judgeEvery is how often a rollout's requests are looked at: as often as they are told.
const judgeEvery = 2 * time.Second

// judging is what the engine remembers of a rollout that is judged by traffic. A leader that is lost takes it along: the next one begins to
// gather anew, and the old tasks stay until it is done.
type judging struct {
	started time.Time // of the rollout
	state   gate.State
	last    map[cluster.ID]gate.Counts
	looked  time.Time
	verdict gate.Verdict
}

// judge tells what the gates say of a service's rollout, and when to look again; nothing when it has none.
func (e *Engine) judge(in *reconcile.Input) (wake time.Time) {
	svc := in.Service
	if svc.Rollout.State != cluster.RolloutUpdating || !reconcile.Gated(svc, in.Revisions) {
		delete(e.gates, svc.ID)
		return wake
	}
	j := e.gates[svc.ID]
	if j == nil || !j.started.Equal(svc.Rollout.Started) {
		j = &judging{started: svc.Rollout.Started, last: make(map[cluster.ID]gate.Counts)}
		e.gates[svc.ID] = j
	}
	if !e.scaler.on {
		in.Verdict = reconcile.Verdict{Started: j.started, Passed: true, Text: "a preview shows what happens when the gates let it"}
		return wake
	}
	update := in.Revisions[svc.Revision].Spec.Update
	if in.Now.Sub(j.looked) >= judgeEvery {
		j.looked = in.Now
		e.gather(j, in)
		j.verdict = gate.Verdict{Few: true, Text: "no requests are measured"}
		if r := e.scaler.sources.Requests; r != nil {
			j.verdict = j.state.Judge(update.Gates, r.Bound)
		}
	}
	in.Verdict = e.verdict(j, in, update)
	return j.looked.Add(judgeEvery)
}

// gather adds what the tasks of both revisions had since the last look.
func (e *Engine) gather(j *judging, in *reconcile.Input) {
	var fresh, stable gate.Counts
	if e.scaler.sources.Requests == nil {
		return
	}
	for _, t := range in.Tasks {
		now, ok := e.scaler.sources.Requests.Task(t.ID)
		if !ok || t.Observed.Terminal() {
			continue
		}
		before, known := j.last[t.ID]
		j.last[t.ID] = now
		switch {
		case !known && t.Created.Before(j.started):
			// What it had so far is of the time before.
		case t.Revision == in.Service.Revision:
			gate.Accumulate(&fresh, now, before)
		default:
			gate.Accumulate(&stable, now, before)
		}
	}
	j.state.Add(fresh, stable)
}

// verdict is what follows for the rollout: a failure at once, a pass once it is sure or the new tasks have baked.
func (e *Engine) verdict(j *judging, in *reconcile.Input, update spec.UpdatePolicy) reconcile.Verdict {
	out := reconcile.Verdict{Started: j.started}
	if j.verdict.Outcome == gate.Failed {
		out.Failed, out.Text = true, "its requests fail the gate: "+j.verdict.Text
		return out
	}
	since, ready := in.Now, false
	for _, t := range in.Tasks {
		if t.Revision == in.Service.Revision && t.Ready && !t.Observed.Terminal() {
			ready = true
			if t.ReadySince.Before(since) {
				since = t.ReadySince
			}
		}
	}
	if since.Before(j.started) {
		since = j.started // it was paused, and resumed
	}
	if !ready {
		return out
	}
	lag := time.Duration(0)
	if r := e.scaler.sources.Requests; r != nil {
		lag = r.Lag()
	}
	over := in.Now.Sub(since) >= update.Bake+lag
	switch {
	case j.verdict.Outcome == gate.Passed:
		out.Passed, out.Text = true, "its requests pass the gate: "+j.verdict.Text
	case over && j.verdict.Few:
		out.Passed, out.Text = true, fmt.Sprintf("judged by health alone after %s: %s", update.Bake, j.verdict.Text)
	case over:
		out.Passed, out.Text = true, fmt.Sprintf("nothing spoke against it for %s: %s", update.Bake, j.verdict.Text)
	}
	return out
}
