package reconcile

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"baton/internal/model/cluster"
	"baton/internal/model/spec"
)

// asTarget reports whether a task is what the slot is to have, wherever it runs.
func (p *planner) asTarget(s *slot, t *cluster.Task) bool {
	return p.same(t.Revision, s.target) && (!s.moving || p.current(t))
}

// classify sorts the slot's live tasks.
func (p *planner) classify(s *slot) {
	s.fit, s.other, s.leaving = nil, nil, nil
	for _, t := range s.tasks {
		at := p.place(t)
		displaced := s.node.IsZero() && (at == placeLeave || at == placeAway || p.succeeded(s, t))
		switch {
		case going(t):
			s.leaving = append(s.leaving, t)
		case running(t) && !displaced && p.asTarget(s, t):
			s.fit = append(s.fit, t)
		case running(t):
			s.other = append(s.other, t)
		}
	}
	slices.SortStableFunc(s.fit, p.better)
	slices.SortStableFunc(s.other, p.better)
}

// succeeded reports whether another task is being started to take the place of t, only to even out the load. When that one
// ends, is not ready in time, or its node goes silent or is drained, t is as good as before.
func (p *planner) succeeded(s *slot, t *cluster.Task) bool {
	return slices.ContainsFunc(s.tasks, func(u *cluster.Task) bool {
		at := p.place(u)
		return u.Moved && u.Replaces == t.ID && running(u) && p.same(u.Revision, t.Revision) && (at == placeFine || at == placeSilent) && p.timely(u)
	})
}

// moveMax bounds the wait for a moved task where its service has no deadline.
const moveMax = 10 * time.Minute

// timely reports whether a task that is to take over from one that serves is ready, or may still become so: a move that
// never ends would keep its service from everything else that waits for it to be as wanted.
func (p *planner) timely(t *cluster.Task) bool {
	if t.Ready {
		return true
	}
	limit := moveMax
	if d := p.spec(t.Revision).Update.Deadline; d > 0 {
		limit = d
	}
	at := t.Created.Add(limit)
	p.wake(at)
	return at.After(p.in.Now)
}

// better orders tasks by how much they are worth: serving ones first, then the further ones, then the older ones.
func (p *planner) better(a, b *cluster.Task) int {
	return cmp.Or(value(p.ready(b))-value(p.ready(a)), int(b.Observed)-int(a.Observed))
}

func value(b bool) int {
	if b {
		return 1
	}
	return 0
}

// ready reports whether the task serves: its probes pass and its node can be heard.
func (p *planner) ready(t *cluster.Task) bool { return running(t) && t.Ready && p.reachable(t) }

// trim takes leaving tasks further, and leaves the slot at most one task that is as it should be and one that is not.
func (p *planner) trim(s *slot) {
	p.classify(s)
	for _, t := range s.leaving {
		p.leave(s, t, "")
	}
	for i, t := range s.fit {
		if i > 0 {
			p.leave(s, t, "the slot has another task")
		}
	}
	for i, t := range s.other {
		// One that never got a node has nothing to hand over.
		if i > 0 || t.Node.IsZero() {
			p.leave(s, t, "the slot has another task")
		}
	}
	p.classify(s)
}

// converge brings a wanted slot closer to one task of its target.
func (p *planner) converge(s *slot) {
	p.trim(s)
	if len(s.fit) > 0 {
		p.handOff(s, s.fit[0])
		return
	}
	p.refill(s)
}

// handOff lets go of what the slot's good task replaces, once that task has proven itself.
func (p *planner) handOff(s *slot, keep *cluster.Task) {
	if keep.Observed == cluster.ObservedPending && keep.Reason != "" {
		p.wait("slot %d: %s", s.slot, keep.Reason)
	}
	for _, t := range s.other {
		if p.keepsOld(s, t) {
			continue
		}
		if p.stopFirst(s) || p.proven(s, keep, t) {
			p.leave(s, t, p.successor(s, t, keep))
		}
	}
}

func (p *planner) successor(s *slot, old, keep *cluster.Task) string {
	switch {
	case p.asTarget(s, old):
		return fmt.Sprintf("task %s took its place on another node", keep.ID.Short())
	case p.same(old.Revision, keep.Revision):
		return fmt.Sprintf("restarted as task %s", keep.ID.Short())
	}
	return fmt.Sprintf("replaced by task %s of the wanted revision", keep.ID.Short())
}

// proven reports whether keep may take over from old: at once when only the node differs, else after the monitor time.
func (p *planner) proven(s *slot, keep, old *cluster.Task) bool {
	if !p.ready(keep) {
		return false
	}
	if p.asTarget(s, old) {
		return true
	}
	at := keep.ReadySince.Add(p.policy.Monitor)
	p.wake(at)
	return !at.After(p.in.Now)
}

// stopFirst reports whether the slot must be empty before it gets a new task.
func (p *planner) stopFirst(s *slot) bool {
	if p.in.Exclusive {
		return true
	}
	sp := p.spec(s.target)
	if p.roll.Undo && s.moving {
		return sp.Rollback.Order == spec.StopFirst
	}
	return sp.Update.Order == spec.StopFirst
}

// makesRoom is why a task goes before its successor is made.
const makesRoom = "its slot gets a new task, stop-first"

// refill gives the slot a new task if its past, its policy and the order of replacement allow.
func (p *planner) refill(s *slot) {
	past := p.past(s)
	if !p.usable(s) {
		p.wait("%s: its node takes no new tasks", p.title(s))
		return
	}
	if s.target == p.svc.Revision && p.hold {
		p.wait("%s", p.in.Blocked)
		return
	}
	if past.over {
		if past.good {
			for _, t := range s.other {
				p.leave(s, t, "the wanted revision completed in this slot")
			}
			return
		}
		p.wait("slot %d: %s", s.slot, past.why)
		if past.fresh {
			p.why(WhyGiveUp, s, past.last.ID, past.last.Node, "%s", past.why)
		}
		return
	}
	if past.at.After(p.in.Now) {
		p.wake(past.at)
		p.wait("slot %d: starts again at %s after %d failures in a row", s.slot, past.at.UTC().Format(time.RFC3339), past.failures)
		if past.fresh {
			p.why(WhyBackoff, s, past.last.ID, past.last.Node, "%s; it is replaced at %s (%d failures in a row)",
				past.last.End(), past.at.UTC().Format(time.RFC3339), past.failures)
		}
		return
	}
	if p.stopFirst(s) {
		if waits, _ := p.unprepared(s); waits != "" && s.moving {
			p.wait("%s", waits)
			return
		}
		for _, t := range s.other {
			p.leave(s, t, makesRoom)
		}
		p.classify(s)
	}
	if !p.room(s) {
		return
	}
	p.fill(s, past)
}

// room reports whether the slot may have one more live task.
func (p *planner) room(s *slot) bool {
	live := 0
	for _, t := range append(slices.Clone(s.other), s.leaving...) {
		if p.in.Exclusive || p.reachable(t) {
			live++
		}
	}
	if p.stopFirst(s) {
		return live == 0
	}
	return live < 2
}

// fill creates the slot's new task and says what it is for.
func (p *planner) fill(s *slot, past past) {
	var before *cluster.Task
	switch {
	case len(s.other) > 0:
		before = s.other[0]
	case len(s.leaving) > 0:
		before = s.leaving[len(s.leaving)-1]
	case len(s.tasks) > 0:
		before = slices.MaxFunc(s.tasks, func(a, b *cluster.Task) int { return cmp.Or(a.Ended.Compare(b.Ended), compareAge(a, b)) })
	}
	if before == nil {
		p.create(s, s.target, past.failures, cluster.ID{})
		p.why(WhyCreate, s, cluster.ID{}, s.node, "the service wants this task")
		return
	}
	p.create(s, s.target, past.failures, before.ID)
	message := before.End()
	switch {
	case before.Observed.Terminal() && ownEnd(before):
	case !p.asTarget(s, before):
		message = "the task is outdated"
	case p.place(before) == placeLeave:
		message = "its node is being drained"
	case p.place(before) == placeAway:
		message = "its node does not answer"
	}
	p.why(WhyReplace, s, before.ID, before.Node, "%s", message)
}

// past is what a slot's earlier tasks mean for the next one.
type past struct {
	last     *cluster.Task // newest of the target, nil: none
	failures int           // in a row
	at       time.Time     // when the next task may start
	over     bool          // the policy wants no further task
	good     bool          // with over: the last one completed as it should
	fresh    bool          // the end was not seen before
	why      string
}

// past looks at the newest task that was as the slot wants it.
func (p *planner) past(s *slot) past {
	var last *cluster.Task
	for _, t := range s.tasks {
		if p.asTarget(s, t) && !running(t) {
			last = t
		}
	}
	if last == nil {
		return past{}
	}
	out := past{last: last, fresh: last.Desired == cluster.DesiredRun}
	switch {
	case last.Observed == cluster.ObservedLost && last.StopSince.IsZero() && last.DrainSince.IsZero():
		out.failures = last.Failures
		return out
	case !ownEnd(last):
		return out
	}
	next := last.Succession(p.spec(s.target).Restart)
	out.failures, out.at, out.over, out.good, out.why = next.Failures, next.At, next.Over, next.Good, next.Why
	if s.moving && last.Ended.Before(p.roll.Started) && !out.good {
		return past{last: last} // what ended before a rollout began, it tries anew
	}
	return out
}

// wait notes why the service waits; the first reason stands for all.
func (p *planner) wait(format string, args ...any) {
	if p.waiting == "" {
		p.waiting = fmt.Sprintf(format, args...)
	}
}
