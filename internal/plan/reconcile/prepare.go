package reconcile

import (
	"cmp"
	"fmt"
	"time"

	"baton/internal/model/cluster"
	"baton/internal/model/spec"
)

// prepareMax bounds the wait for an image where the rollout has no deadline.
const prepareMax = 10 * time.Minute

// ImageWant is an image that must be on a node before a task there is stopped to make room for its successor.
type ImageWant struct {
	Node     cluster.ID
	Revision cluster.ID
	Since    time.Time // the rollout's start: a node pulls once for each rollout
}

// Images lists what nodes must have before a stop-first rollout may stop what they run: a slow or failing pull would be an
// outage otherwise. It looks at what is stored, and needs Service, Revisions, Tasks and Exclusive of the input only.
func Images(in Input) []ImageWant {
	in.Now = in.Service.Rollout.Started // an asked restart counts from when its rollout began
	p := newPlanner(in)
	if !p.preparing() {
		return nil
	}
	var out []ImageWant
	seen := make(map[cluster.ID]bool)
	for _, t := range in.Tasks {
		if p.holds(t) && !seen[t.Node] {
			seen[t.Node] = true
			out = append(out, ImageWant{Node: t.Node, Revision: p.svc.Revision, Since: p.roll.Started})
		}
	}
	return out
}

// preparing reports whether old tasks wait for images: while a rollout that has something to protect goes on, also past
// failures. Not even one that tolerated them, or is to continue after them, stops anything for an image that cannot be had.
func (p *planner) preparing() bool {
	if p.rev == nil || p.svc.Removing || p.roll.To != p.svc.Revision || p.initial() {
		return false
	}
	policy := p.rev.Spec.Update
	if p.roll.Undo {
		policy = p.rev.Spec.Rollback
	}
	failed := p.roll.State == cluster.RolloutPaused || p.roll.State == cluster.RolloutFailed && policy.FailureAction != spec.FailureContinue
	return !failed && (p.in.Exclusive || policy.Order == spec.StopFirst)
}

// holds reports whether a task may be stopped only once the wanted revision's image is on its node.
func (p *planner) holds(t *cluster.Task) bool {
	old := p.in.Revisions[t.Revision]
	return old != nil && running(t) && t.Observed == cluster.ObservedRunning && !p.current(t) &&
		(old.Spec.Image != p.rev.Spec.Image || p.rev.Spec.Pull == spec.PullAlways)
}

// unprepared says for which image the old task of a slot must be kept, and, when waiting for it is over, that it failed. A
// task that leaves its node anyway, or that cannot be told to stop, is not kept.
func (p *planner) unprepared(s *slot) (waits string, failed bool) {
	if !p.preparing() {
		return "", false
	}
	for _, t := range s.tasks {
		if !p.holds(t) || p.place(t) != placeFine {
			continue
		}
		node := p.in.Nodes.Nodes[t.Node]
		have := prepared(node, p.svc.Revision, p.roll.Started)
		if have.Present {
			continue
		}
		name := cmp.Or(node.Name, node.ID.Short())
		if have.Rejected {
			return fmt.Sprintf("%s: %s; nothing was stopped for it on %s", p.title(s), have.Reason, name), true
		}
		at, limit := p.imageDeadline()
		p.wake(at)
		waits = fmt.Sprintf("%s waits for image %s on node %s", p.title(s), p.rev.Spec.Image, name)
		if have.Reason != "" {
			waits += " (" + have.Reason + ")"
		}
		if !at.After(p.in.Now) {
			return fmt.Sprintf("%s, for %s already", waits, limit), true
		}
		return waits, false
	}
	return "", false
}

// imageDeadline is when the wait for an image is over. All nodes pull from the rollout's start, whenever their turn comes.
func (p *planner) imageDeadline() (time.Time, time.Duration) {
	limit := prepareMax
	if d := p.rev.Spec.Update.Deadline; d > 0 {
		limit = d
	}
	return p.roll.Started.Add(limit), limit
}

// prepared finds what a node last said of a wanted image; the zero value when that was nothing.
func prepared(n *cluster.Node, revision cluster.ID, since time.Time) cluster.Prepared {
	for _, have := range n.Prepared {
		if have.Revision == revision && have.Since.Equal(since) {
			return have
		}
	}
	return cluster.Prepared{}
}
