package cluster

import (
	"cmp"
	"fmt"
	"time"

	"baton/internal/model/spec"
)

// Succession is what the end of a task means for its place. Managers and nodes both go by it: a node that is cut off from
// its managers runs what ended again by the same rule.
type Succession struct {
	Failures int       // in a row, this end included
	At       time.Time // when the next task may start
	Over     bool      // the policy wants no further task
	Good     bool      // with Over: the task completed as it should
	Why      string    // with Over: one sentence
}

// Succession applies a restart policy to an ended task that nobody had told to go.
func (t *Task) Succession(policy spec.RestartPolicy) Succession {
	out := Succession{Failures: t.Failures + 1}
	if policy.ResetAfter > 0 && !t.Started.IsZero() && t.Ended.Sub(t.Started) >= policy.ResetAfter {
		out.Failures = 1 // it ran well
	}
	out.At = t.Ended.Add(Backoff(policy, out.Failures))
	complete := t.Observed == ObservedComplete
	switch {
	case policy.Condition == spec.RestartNone || policy.Condition == spec.RestartOnFailure && complete:
		out.Over, out.Good, out.Why = true, complete, t.End()+"; its restart policy is "+string(policy.Condition)
	case policy.MaxAttempts > 0 && out.Failures > policy.MaxAttempts:
		out.Over, out.Why = true, fmt.Sprintf("%s; its restart policy allows %d attempts", t.End(), policy.MaxAttempts)
	}
	return out
}

// Backoff is how long after its end a task is replaced, when it was the failures-th in a row to end: not at all after the
// first, then the policy's Delay, doubling up to DelayMax.
func Backoff(policy spec.RestartPolicy, failures int) time.Duration {
	if failures <= 1 || policy.Delay <= 0 {
		return 0
	}
	d := policy.Delay
	for range failures - 2 {
		if policy.DelayMax > 0 && d >= policy.DelayMax {
			break
		}
		if d > d*2 { // overflow
			break
		}
		d *= 2
	}
	if policy.DelayMax > 0 {
		d = min(d, policy.DelayMax)
	}
	return d
}

// End says how a task ended, in half a sentence: "exited with code 1", "was killed for memory (OOM)".
func (t *Task) End() string {
	switch {
	case !t.Observed.Terminal():
		return "is " + t.Observed.String()
	case t.Observed == ObservedLost:
		return "was lost: " + cmp.Or(t.Reason, "its node is gone")
	case t.Observed == ObservedRejected:
		return "was rejected: " + cmp.Or(t.Reason, "its node cannot run it")
	case t.Exit == nil:
		return cmp.Or(t.Reason, "ended as "+t.Observed.String())
	case t.Exit.OOM:
		return "was killed for memory (OOM)"
	case t.Observed == ObservedFailed && t.Reason != "":
		return "failed: " + t.Reason // the node knows best: a probe that gave up, say
	case t.Exit.Unknown:
		return "ended unseen, its exit code is unknown"
	case t.Exit.Signal != "":
		return "was killed by " + t.Exit.Signal
	}
	return fmt.Sprintf("exited with code %d", t.Exit.Code)
}
