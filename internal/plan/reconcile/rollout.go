package reconcile

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"baton/internal/model/cluster"
	"baton/internal/model/spec"
)

// rollout starts a rollout when the wanted revision changed or a restart was asked for, judges the one under way, and says
// for each slot which revision it is to have now. It returns the slots that have not begun to move.
func (p *planner) rollout() (candidates []*slot) {
	p.begin()
	p.policy = p.rev.Spec.Update
	if p.roll.Undo {
		p.policy = p.rev.Spec.Rollback
	}
	p.judge()
	p.verdict()
	// Only the first tasks of a revision wait for other services, and those of a rollback do not.
	p.hold = p.in.Blocked != "" && p.roll.State == cluster.RolloutUpdating && p.roll.LastBatch.IsZero() &&
		!p.roll.Undo && !p.same(p.roll.From, p.roll.To)
	for _, s := range p.order {
		switch {
		case !s.wanted:
		case p.enters(s):
			s.target, s.moving = p.svc.Revision, true
		default:
			s.target, s.queued = p.oldRevision(s), true
			candidates = append(candidates, s)
		}
	}
	return candidates
}

// trimAll trims every wanted slot and returns the candidates, with those slots added whose only new task was trimmed away.
func (p *planner) trimAll(candidates []*slot) []*slot {
	for _, s := range p.order {
		if !s.wanted {
			continue
		}
		p.trim(s)
		if !s.queued && !p.enters(s) {
			s.target, s.moving, s.queued = p.oldRevision(s), false, true
			candidates = append(candidates, s)
		}
	}
	return candidates
}

// inflight counts the slots that have begun to move and are neither done nor failed.
func (p *planner) inflight() int {
	n := 0
	for _, s := range p.order {
		if !s.wanted || !s.moving || p.moved(s) {
			continue
		}
		if failed, _ := p.failed(s); !failed {
			n++
		}
	}
	return n
}

// begin replaces the rollout's record when there is something new to roll out.
func (p *planner) begin() {
	var from cluster.ID
	switch {
	case p.roll.To != p.svc.Revision:
		from = cmpID(p.svc.Previous, p.roll.To)
		if p.initial() && p.roll.State != cluster.RolloutCompleted {
			from = cluster.ID{} // no revision ever came up: this is still the first deployment
		}
	case p.since.After(p.roll.Started):
		from = p.svc.Revision
	default:
		return
	}
	p.roll = cluster.Rollout{From: from, To: p.svc.Revision, State: cluster.RolloutUpdating, Started: p.in.Now}
	p.why(WhyRollout, nil, cluster.ID{}, cluster.ID{}, "moving to revision %d", p.rev.Number)
}

func cmpID(a, b cluster.ID) cluster.ID {
	if a.IsZero() {
		return b
	}
	return a
}

// initial reports whether the rollout is the service's first deployment: there is nothing to keep alive meanwhile.
func (p *planner) initial() bool { return p.roll.From.IsZero() }

// settled reports whether the rollout has reached every slot: it is complete, or failed and was to carry on regardless.
func (p *planner) settled() bool {
	return p.roll.State == cluster.RolloutCompleted ||
		p.roll.State == cluster.RolloutFailed && p.policy.FailureAction == spec.FailureContinue
}

// frozen reports whether no further slot may move.
func (p *planner) frozen() bool {
	return p.roll.State == cluster.RolloutPaused || p.roll.State == cluster.RolloutFailed && !p.settled()
}

// fresh reports whether a task was made for this rollout.
func (p *planner) fresh(t *cluster.Task) bool {
	return p.current(t) && !t.Created.Before(p.roll.Started)
}

// enters reports whether the slot has begun to move, or has no reason to wait for its turn.
func (p *planner) enters(s *slot) bool {
	if p.settled() || p.initial() {
		return true
	}
	if slices.ContainsFunc(s.tasks, func(t *cluster.Task) bool { return running(t) && p.current(t) }) {
		return true
	}
	if p.frozen() {
		return false
	}
	if len(s.tasks) == 0 {
		return true // a new slot: nothing is lost by starting it right
	}
	if slices.ContainsFunc(s.tasks, func(t *cluster.Task) bool { return ownEnd(t) && p.fresh(t) }) {
		return true
	}
	if last := newestEnd(s); last != nil && ownEnd(last) && p.current(last) && !slices.ContainsFunc(s.tasks, running) {
		return true // only policies changed: what ended here was as it is wanted
	}
	if p.completed(s) {
		return true
	}
	if slices.ContainsFunc(s.tasks, running) {
		return false
	}
	if p.hold {
		return false
	}
	// Stopped to make room (stop-first), or empty after that: its move is under way.
	last := newestEnd(s)
	return slices.ContainsFunc(s.tasks, going) || !ownEnd(last) && last.Observed != cluster.ObservedLost
}

// completed reports whether nothing runs in the slot and the wanted revision completed in it, maybe before another one did:
// a rollback finds it so.
func (p *planner) completed(s *slot) bool {
	if slices.ContainsFunc(s.tasks, running) {
		return false
	}
	target, moving := s.target, s.moving
	s.target, s.moving = p.svc.Revision, true
	past := p.past(s)
	s.target, s.moving = target, moving
	return past.over && past.good
}

// newestEnd is the task that ended last, nil when none did.
func newestEnd(s *slot) *cluster.Task {
	var last *cluster.Task
	for _, t := range s.tasks {
		if t.Observed.Terminal() && (last == nil || !t.Ended.Before(last.Ended)) {
			last = t
		}
	}
	return last
}

// oldRevision is what a slot keeps until its turn comes.
func (p *planner) oldRevision(s *slot) cluster.ID {
	var live []*cluster.Task
	for _, t := range s.tasks {
		if running(t) {
			live = append(live, t)
		}
	}
	slices.SortStableFunc(live, p.better)
	known := func(id cluster.ID) bool { return p.in.Revisions[id] != nil }
	if len(live) > 0 && known(live[0].Revision) {
		return live[0].Revision
	}
	if last := newestEnd(s); last != nil && known(last.Revision) {
		return last.Revision
	}
	if known(p.roll.From) {
		return p.roll.From
	}
	return p.svc.Revision
}

// choose lets as many slots move as the policy allows: those that do not serve first.
func (p *planner) choose(candidates []*slot) {
	if p.roll.State != cluster.RolloutUpdating {
		return
	}
	for _, s := range candidates {
		if !p.usable(s) {
			p.wait("%s: its node takes no new tasks", p.title(s))
		}
		if waits, _ := p.unprepared(s); waits != "" {
			p.wait("%s", waits)
		}
	}
	if p.hold {
		if len(candidates) > 0 {
			p.wait("%s", p.in.Blocked)
		}
		return
	}
	if p.initial() {
		return
	}
	inflight := p.inflight()
	if p.policy.Delay > 0 && (inflight > 0 || p.resting()) {
		return
	}
	limit := p.policy.Parallelism
	if limit <= 0 {
		limit = len(p.order)
	}
	slices.SortStableFunc(candidates, func(a, b *slot) int { return value(p.serves(a)) - value(p.serves(b)) })
	for _, s := range candidates {
		if inflight >= limit {
			return
		}
		if !p.usable(s) {
			continue
		}
		if waits, _ := p.unprepared(s); waits != "" {
			continue
		}
		s.target, s.moving = p.svc.Revision, true
		p.classify(s)
		past := p.past(s)
		p.wake(past.at)
		if !p.stopFirst(s) && !p.room(s) || past.at.After(p.in.Now) {
			s.target, s.moving = p.oldRevision(s), false // it cannot begin yet
			continue
		}
		inflight++
		p.roll.LastBatch = p.in.Now
	}
}

func (p *planner) serves(s *slot) bool { return slices.ContainsFunc(s.tasks, p.ready) }

// resting reports whether the delay after the last batch still runs.
func (p *planner) resting() bool {
	if p.roll.LastBatch.IsZero() {
		return false
	}
	last := p.roll.LastBatch
	for _, s := range p.order {
		for _, t := range s.tasks {
			if at := t.ReadySince.Add(p.policy.Monitor); running(t) && t.Ready && p.fresh(t) && at.After(last) {
				last = at
			}
		}
	}
	next := last.Add(p.policy.Delay)
	p.wake(next)
	return next.After(p.in.Now)
}

// moved reports whether the slot has a task of the wanted revision that stayed ready for the monitor time, and no other, or
// that completed as it should.
func (p *planner) moved(s *slot) bool {
	if !s.moving {
		return false
	}
	p.classify(s)
	if len(s.other) > 0 {
		return false
	}
	if len(s.fit) == 0 {
		past := p.past(s)
		return past.over && past.good
	}
	if !p.ready(s.fit[0]) {
		return false
	}
	at := s.fit[0].ReadySince.Add(p.policy.Monitor)
	p.wake(at)
	return !at.After(p.in.Now)
}

// judge counts the slots whose new task failed, and freezes the rollout when there are more than the policy tolerates.
func (p *planner) judge() {
	if p.roll.State != cluster.RolloutUpdating {
		return
	}
	failures, wanted, reason := 0, 0, ""
	for _, s := range p.order {
		if !s.wanted {
			continue
		}
		wanted++
		if failed, why := p.failed(s); failed {
			failures++
			reason = cmp.Or(reason, why)
		}
	}
	p.roll.Failures = max(p.roll.Failures, failures)
	if !p.excess(wanted) || p.policy.FailureAction == spec.FailureContinue {
		return
	}
	p.roll.Reason = cmp.Or(reason, p.roll.Reason)
	p.roll.Ended = p.in.Now
	if p.policy.FailureAction == spec.FailurePause {
		p.roll.State, p.roll.Ended = cluster.RolloutPaused, time.Time{}
		p.why(WhyPause, nil, cluster.ID{}, cluster.ID{}, "%s", p.roll.Reason)
		return
	}
	p.roll.State = cluster.RolloutFailed
	p.why(WhyFail, nil, cluster.ID{}, cluster.ID{}, "%s", p.roll.Reason)
}

func (p *planner) excess(wanted int) bool {
	return p.roll.Failures > 0 && float64(p.roll.Failures) > p.policy.MaxFailureRatio*float64(wanted)
}

// failed reports whether a new task of this rollout failed in the slot, and how.
func (p *planner) failed(s *slot) (bool, string) {
	if p.initial() {
		return p.failedFirst(s)
	}
	if why, failed := p.unprepared(s); failed {
		return true, why
	}
	old := slices.ContainsFunc(s.tasks, func(t *cluster.Task) bool { return running(t) && !p.current(t) })
	for _, t := range s.tasks {
		if !p.fresh(t) {
			continue
		}
		early := t.ReadySince.IsZero() || t.Ended.Before(t.ReadySince.Add(p.policy.Monitor))
		success := t.Observed == cluster.ObservedComplete && p.rev.Spec.Restart.Condition != spec.RestartAny
		if ownEnd(t) && early && !success {
			return true, fmt.Sprintf("%s: the new task %s", p.title(s), t.End())
		}
		if p.policy.Deadline <= 0 || !running(t) || t.Ready || !t.ReadySince.IsZero() && !old {
			continue
		}
		base := t.Created
		if t.ReadySince.After(base) {
			base = t.ReadySince
		}
		at := base.Add(p.policy.Deadline)
		p.wake(at)
		if !at.After(p.in.Now) {
			return true, fmt.Sprintf("%s: the new task is not ready after %s%s", p.title(s), p.policy.Deadline, because(t))
		}
	}
	return false, ""
}

// failedFirst is failed for a first deployment, which has nothing to protect and more to wait for: only a task that its
// policy does not replace, one that its node rejects again and again, or a slot that is still bad at the deadline fails it.
func (p *planner) failedFirst(s *slot) (bool, string) {
	var last *cluster.Task
	for _, t := range s.tasks {
		if p.current(t) {
			last = t
		}
	}
	if last == nil {
		return false, ""
	}
	failures := last.Failures
	if ownEnd(last) {
		s.target, s.moving = p.svc.Revision, true
		past := p.past(s)
		failures = past.failures
		if past.over && !past.good {
			return true, fmt.Sprintf("%s: %s", p.title(s), past.why)
		}
		if last.Observed == cluster.ObservedRejected && failures >= firstFailures {
			return true, fmt.Sprintf("%s %s", p.title(s), last.End())
		}
		if past.over {
			return false, ""
		}
	}
	if p.policy.Deadline <= 0 || p.roll.LastBatch.IsZero() || last.Ready && running(last) {
		return false, ""
	}
	at := p.roll.LastBatch.Add(p.policy.Deadline)
	p.wake(at)
	if at.After(p.in.Now) {
		return false, ""
	}
	if failures >= firstFailures {
		return true, fmt.Sprintf("%s failed %d times in a row", p.title(s), failures)
	}
	hope := last.Created.Add(p.policy.Deadline)
	if !running(last) || !last.ReadySince.IsZero() {
		return false, ""
	}
	p.wake(hope)
	if hope.After(p.in.Now) {
		return false, ""
	}
	return true, fmt.Sprintf("%s is not ready after %s%s", p.title(s), p.policy.Deadline, because(last))
}

func because(t *cluster.Task) string {
	if t.Reason == "" {
		return ""
	}
	return " (" + t.Reason + ")"
}

func (p *planner) title(s *slot) string {
	if s.slot > 0 {
		return fmt.Sprintf("%s/%d", p.svc.Name, s.slot)
	}
	if n := p.in.Nodes.Nodes[s.node]; n != nil && n.Name != "" {
		return p.svc.Name + " on " + n.Name
	}
	return p.svc.Name + " on " + s.node.Short()
}

// finish ends a rollout all of whose slots have moved, or failed within what the policy tolerates.
func (p *planner) finish() {
	if p.roll.State != cluster.RolloutUpdating {
		return
	}
	wanted, moved, failed := 0, 0, 0
	for _, s := range p.order {
		if !s.wanted {
			continue
		}
		wanted++
		bad, _ := p.failed(s)
		switch {
		case p.moved(s) && len(s.leaving) == 0:
			moved++
		case bad:
			failed++
		}
	}
	if moved+failed < wanted {
		return
	}
	p.roll.Ended = p.in.Now
	if p.excess(wanted) {
		p.roll.State = cluster.RolloutFailed
		p.roll.Reason = fmt.Sprintf("%d of %d slots failed", p.roll.Failures, wanted)
		p.why(WhyFail, nil, cluster.ID{}, cluster.ID{}, "%s", p.roll.Reason)
		return
	}
	p.roll.State = cluster.RolloutCompleted
	p.why(WhyComplete, nil, cluster.ID{}, cluster.ID{}, "revision %d is in place", p.rev.Number)
}

// status sums up the service as it is once the plan is stored.
func (p *planner) status() {
	var st cluster.ServiceStatus
	good, live, left := 0, 0, 0
	for _, s := range p.order {
		if s.wanted {
			st.Desired++
		}
		left += len(s.tasks)
		serving := false
		for _, t := range s.tasks {
			if !t.Observed.Terminal() {
				live++
			}
			if running(t) && t.Observed == cluster.ObservedRunning {
				st.Running++
			}
			if p.ready(t) {
				st.Ready++
				if p.current(t) {
					st.Updated++
					serving = true
				}
			}
		}
		if !s.wanted {
			continue
		}
		switch past := p.past(s); {
		case serving:
			good++
		case past.over && past.good && !slices.ContainsFunc(s.tasks, running):
			good++
			live++ // a completed slot counts as one that has its task
		}
	}
	rolled := p.roll.State == cluster.RolloutCompleted || p.svc.Removing
	st.Converged = rolled && good == st.Desired && live == st.Desired
	if !st.Converged {
		st.Waiting = p.waiting
	}
	p.plan.Status = st
	p.plan.Done = p.svc.Removing && left == 0
}
