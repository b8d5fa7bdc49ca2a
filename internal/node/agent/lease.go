package agent

import (
	"context"
	"time"

	"baton/internal/wire/agentapi"
)

// leaseGrace is how long a task may take to stop once its lease is over.
const leaseGrace = time.Second

// leased reports whether the task runs under a lease.
func (t *task) leased() bool { return t.want != nil && t.want.Task.Leased }

// Confirmed notes that the leader has confirmed a heartbeat that this node sent at that time.
func (l *Loop) Confirmed(sent time.Time) {
	if sent.After(l.leased) {
		l.leased = sent
	}
}

// leaseEnd is when the node's lease ends. An agent that has just begun goes by its own beginning: what the one before it knew, the fence
// still does.
func (l *Loop) leaseEnd() time.Time {
	if l.leased.Before(l.born) {
		return l.born.Add(agentapi.LeaseMax)
	}
	return l.leased.Add(agentapi.LeaseMax)
}

// mayStartLeased reports whether the leader has confirmed the node's lease, and it has not ended.
func (l *Loop) mayStartLeased(now time.Time) bool {
	return now.Before(l.leased.Add(agentapi.LeaseMax))
}

// endLeases ends the leased tasks once the lease is over.
func (l *Loop) endLeases(now time.Time) {
	if now.Before(l.leaseEnd()) {
		return
	}
	for _, t := range l.sorted() {
		if !t.leased() || t.local.LeaseEnded || t.local.Status.Observed.Terminal() || t.have == nil || t.have.State != ContainerRunning {
			continue
		}
		t.local.LeaseEnded = true
		if t.local.Kill == "" {
			t.local.Kill = "its lease is over: its node has not been confirmed by the leader for " + agentapi.LeaseMax.String() + ", so another one may be started elsewhere"
		}
		l.note(t.id, "task.lease-ended", t.local.Kill, now)
	}
}

// untilLeaseEnds is the time until leased tasks must end.
func (l *Loop) untilLeaseEnds(now time.Time) time.Duration {
	if wait := l.leaseEnd().Sub(now); wait > 0 {
		return min(wait, observeEvery)
	}
	return observeEvery
}

// renew takes a confirmation to the fence.
func (a *Agent) renew(ctx context.Context, sent time.Time) {
	if sent.IsZero() {
		return
	}
	if err := a.cfg.Fence.Renew(ctx, agentapi.FenceMax-time.Since(sent)); err != nil {
		a.cfg.Log.Error("the leases of tasks could not be renewed; they will be ended", "err", err)
	}
}
