package reconcile

import (
	"time"

	"baton/internal/model/cluster"
	"baton/internal/model/spec"
)

// Verdict is what the gates say of a rollout. The zero Verdict says nothing: the rollout waits.
type Verdict struct {
	// Started is that of the rollout that it is of; of another one it says nothing.
	Started        time.Time
	Passed, Failed bool
	Text           string
}

// Gated reports whether a service has a rollout that is judged by traffic: one that replaces tasks which serve, and is no rollback.
func Gated(svc *cluster.Service, revisions map[cluster.ID]*cluster.Revision) bool {
	r := svc.Rollout
	from, to := revisions[r.From], revisions[r.To]
	return r.State != cluster.RolloutCompleted && !r.Undo && r.To == svc.Revision && from != nil && to != nil &&
		to.Spec.Update.Gates.Any() && from.ID != to.ID && (to.Hash == "" || from.Hash != to.Hash)
}

// gated reports whether the rollout under way is judged by traffic.
func (p *planner) gated() bool {
	svc := *p.svc
	svc.Rollout = p.roll
	return Gated(&svc, p.in.Revisions)
}

// bakes reports whether the gates have not let the rollout go on. Until they do every slot that has begun to move keeps its old task beside
// the new one, and no further one begins: so the two revisions have requests at the same time, and what is to come back, after a failure of whatever kind, has never gone.
func (p *planner) bakes() bool { return p.roll.PassedAt.IsZero() && p.gated() }

// verdict takes in what the gates say. They may fail a rollout as long as it goes on, also after they let it go on.
func (p *planner) verdict() {
	v := p.in.Verdict
	if !v.Started.Equal(p.roll.Started) || p.roll.State != cluster.RolloutUpdating || !p.gated() {
		return
	}
	switch {
	case v.Failed && p.policy.FailureAction == spec.FailureContinue:
		p.roll.Reason = v.Text // it was asked for to go on regardless; the release tells
		p.pass("goes on although its gates failed: " + v.Text)
	case v.Failed && p.policy.FailureAction == spec.FailurePause:
		p.roll.State, p.roll.Reason = cluster.RolloutPaused, v.Text
		p.why(WhyPause, nil, cluster.ID{}, cluster.ID{}, "%s", v.Text)
	case v.Failed:
		p.roll.State, p.roll.Reason, p.roll.Ended = cluster.RolloutFailed, v.Text, p.in.Now
		p.why(WhyFail, nil, cluster.ID{}, cluster.ID{}, "%s", v.Text)
	case v.Passed:
		p.pass(v.Text)
	}
}

func (p *planner) pass(text string) {
	if !p.roll.PassedAt.IsZero() {
		return
	}
	p.roll.PassedAt, p.roll.Judged = p.in.Now, text
	p.why(WhyJudged, nil, cluster.ID{}, cluster.ID{}, "%s", text)
}

// outgoing reports whether a task is of the revision that the rollout leaves, and serves.
func (p *planner) outgoing(t *cluster.Task) bool { return p.ready(t) && !p.current(t) }

// keepsOld reports whether the gates keep an old task in its slot. One whose node is being drained goes all the same.
func (p *planner) keepsOld(s *slot, old *cluster.Task) bool {
	return s.moving && p.place(old) == placeFine && p.bakes() && p.outgoing(old)
}
