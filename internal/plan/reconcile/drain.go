package reconcile

import (
	"cmp"
	"slices"

	"baton/internal/model/cluster"
)

// empty lets go of everything in a slot that is not wanted.
func (p *planner) empty(s *slot) {
	reason := "the service was scaled down"
	switch {
	case p.svc.Removing:
		reason = "the service is being removed"
	case !s.node.IsZero():
		reason = "its node is not to run the service any more"
	}
	for _, t := range slices.Clone(s.tasks) {
		if !t.Observed.Terminal() {
			p.leave(s, t, reason)
		}
	}
}

// leave takes a task one step further on its way out: run, drain, stop. A task that serves no traffic skips drain, and one
// that was never placed is forgotten, for nobody would ever report its end.
func (p *planner) leave(s *slot, t *cluster.Task, reason string) {
	if t.Observed == cluster.ObservedPending {
		p.forget(s, t)
		return
	}
	switch t.Desired {
	case cluster.DesiredRun:
		if served(t) {
			p.change(s, t, Change{To: cluster.DesiredDrain, Reason: reason})
			p.why(WhyDrain, s, t.ID, t.Node, "%s", reason)
			p.wake(p.in.Now.Add(p.limits.AckMax))
			return
		}
		p.change(s, t, Change{To: cluster.DesiredStop, Reason: reason})
		p.why(WhyStop, s, t.ID, t.Node, "%s", reason)
	case cluster.DesiredDrain:
		if why, ok := p.drained(t); ok {
			p.change(s, t, Change{To: cluster.DesiredStop, Reason: why})
			p.why(WhyStop, s, t.ID, t.Node, "%s", why)
		}
	}
}

// served reports whether load balancers may know the task. One that was ready once may still have connections.
func served(t *cluster.Task) bool {
	return t.Observed == cluster.ObservedRunning && t.Address.IsValid() && (t.Ready || !t.ReadySince.IsZero())
}

// drained reports whether a draining task may be stopped, and why. Otherwise it notes when to look again.
func (p *planner) drained(t *cluster.Task) (string, bool) {
	if t.Observed != cluster.ObservedRunning {
		return "it is stopping by itself", true
	}
	ackMax := t.DrainSince.Add(p.limits.AckMax)
	acked := t.Version <= p.in.Acked
	late := !ackMax.After(p.in.Now)
	deadline := t.DrainSince.Add(p.spec(t.Revision).Container.DrainDeadline)
	over := !deadline.After(p.in.Now)
	if !acked && !late {
		p.wake(ackMax)
		return "", false
	}
	if !t.Drained && !over {
		p.wake(deadline)
		return "", false
	}
	switch {
	case !acked:
		return "drained; not every node acknowledged in " + p.limits.AckMax.String(), true
	case !t.Drained:
		return "drain deadline passed with connections open", true
	}
	return "drained", true
}

// tidy lets nodes clean up after ended tasks, and forgets those beyond the history.
func (p *planner) tidy() {
	for _, s := range p.order {
		var ended []*cluster.Task
		for _, t := range slices.Clone(s.tasks) {
			if !t.Observed.Terminal() {
				continue
			}
			if t.Desired < cluster.DesiredRemove {
				t = p.change(s, t, Change{To: cluster.DesiredRemove})
			}
			ended = append(ended, t)
		}
		slices.SortStableFunc(ended, func(a, b *cluster.Task) int { return cmp.Or(b.Ended.Compare(a.Ended), compareAge(b, a)) })
		for i, t := range ended {
			old := !s.wanted && !t.Ended.Add(p.limits.HistoryAge).After(p.in.Now)
			switch {
			case p.svc.Removing || i >= p.limits.History || old:
				p.forget(s, t)
			case !s.wanted:
				p.wake(t.Ended.Add(p.limits.HistoryAge))
			}
		}
	}
}
