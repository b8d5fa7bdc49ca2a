package agent

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"slices"
	"strings"
	"time"

	"baton/internal/model/cluster"
	"baton/internal/wire/agentapi"
)

// cutOffMin is how long a node hears of no manager until it counts as cut off. A manager that restarts or an agent that
// connects anew takes less; what a node starts by itself after that long the managers take over or have replaced.
const cutOffMin = 5 * time.Second

// Cut notes that the session ended. An update that is taken ends the outage.
func (l *Loop) Cut(now time.Time) {
	if l.linked || l.cut.IsZero() {
		l.linked, l.cut = false, now
	}
}

// alone reports whether the node is cut off from every manager.
func (l *Loop) alone(now time.Time) bool {
	return !l.linked && !l.cut.IsZero() && now.Sub(l.cut) >= cutOffMin
}

// untilAlone is the time until the node counts as cut off.
func (l *Loop) untilAlone(now time.Time) time.Duration {
	if l.linked || l.alone(now) {
		return observeEvery
	}
	return l.cut.Add(cutOffMin).Sub(now)
}

// standIns gives the places of tasks that ended while the node is cut off to stand-ins, by their restart policy, and returns
// the time to the next one. A task is never restarted: a stand-in is another task, with an id of its own, of which the managers
// hear when they can be reached again.
func (l *Loop) standIns(now time.Time) time.Duration {
	next := observeEvery
	if !l.alone(now) {
		return next
	}
	for _, t := range l.heirless() {
		ended := t.ended()
		s := ended.Succession(t.want.Spec.Restart)
		switch wait := s.At.Sub(now); {
		case s.Over:
		case wait > 0:
			next = min(next, wait)
		default:
			l.standIn(t, ended, s, now)
			next = 0
		}
	}
	return next
}

// heirless are the ended tasks whose places are empty, as far as the node knows: it may have missed that one of them was
// replaced, and its successor may be here, too, or another task in its place.
func (l *Loop) heirless() []*task {
	var ended, out []*task
	taken := make(map[string]bool)
	for _, t := range l.sorted() {
		switch {
		case t.want == nil:
		case !t.local.Status.Observed.Terminal():
			t.claim(taken)
		case t.leased(): // the managers may have started another one elsewhere
		case t.want.Task.Desired == cluster.DesiredRun && t.heir.IsZero():
			ended = append(ended, t)
		}
	}
	slices.SortStableFunc(ended, func(a, b *task) int { return b.want.Task.Created.Compare(a.want.Task.Created) })
	for _, t := range ended {
		if t.claim(taken) {
			out = append(out, t)
		}
	}
	return out
}

// claim takes what only one task of the node can have, and reports whether all of it was free.
func (t *task) claim(taken map[string]bool) bool {
	w := t.want.Task
	keys := []string{fmt.Sprintf("slot %s/%d", w.Service, w.Slot)}
	if w.Address.IsValid() {
		keys = append(keys, w.Address.String())
	}
	for _, p := range hostPorts(t.want.Spec) {
		keys = append(keys, fmt.Sprintf("port %d/%s", p.port, p.protocol))
	}
	free := true
	for _, k := range keys {
		free = free && !taken[k]
		taken[k] = true
	}
	return free
}

// ended is the task as its managers would see it now.
func (t *task) ended() *cluster.Task {
	c, s := cluster.Copy(t.want.Task), t.local.Status
	c.Observed, c.Ready, c.Exit, c.Reason, c.Ended = s.Observed, false, s.Exit, s.Reason, s.At
	if c.Started.IsZero() {
		c.Started = s.Started
	}
	return c
}

// standIn makes the stand-in of an ended task. When that was one itself, it is forgotten: of a place's stand-ins the managers
// hear only of the last one, and of how many there were.
func (l *Loop) standIn(t *task, ended *cluster.Task, s cluster.Succession, now time.Time) {
	id := heirOf(t.id)
	if l.tasks[id] != nil {
		return // refused before, and not gone yet
	}
	root := t
	if t.standing != nil {
		if root = l.tasks[t.standing.Root]; root == nil {
			return
		}
	}
	as := *t.want
	as.Task = &cluster.Task{
		Meta:  cluster.Meta{ID: id, Created: now},
		Stack: ended.Stack, Service: ended.Service, Revision: ended.Revision, Node: ended.Node, Slot: ended.Slot, Address: ended.Address,
		Desired: cluster.DesiredRun, Observed: cluster.ObservedAssigned, Failures: s.Failures, Replaces: root.id,
	}
	heir := l.remember(id)
	heir.want, heir.last, heir.standing = &as, &as, &Standing{Root: root.id, Created: now}
	heir.local.Status = cluster.Status{Task: id, Observed: cluster.ObservedAssigned, At: now}
	heir.touch(false)
	root.heir = id
	if root != t {
		t.standing, t.want = nil, nil
		t.touch(false)
		l.outbox.forget(t.id)
	}
	l.outbox.stand(root.local.Status, heir.standIn())
	l.note(root.id, "task.stood-in", fmt.Sprintf("%s while no manager could be reached; its node ran it again as task %s (%d ends in a row)",
		ended.End(), id.Short(), s.Failures), now)
}

// heirOf is the id of the task that stands in for another one: a node that lost its memory on the way makes the same.
func heirOf(id cluster.ID) (heir cluster.ID) {
	sum := sha256.Sum256(append([]byte("baton stand-in/"), id[:]...))
	copy(heir[:], sum[:])
	return heir
}

func (t *task) standIn() agentapi.StandIn {
	return agentapi.StandIn{Created: t.standing.Created, Failures: t.want.Task.Failures, Status: t.local.Status}
}

// settle ends a stand-in's uncertainty: a manager has taken it over, or refused it.
func (l *Loop) settle(t *task) {
	if t.standing == nil {
		return
	}
	if root := l.tasks[t.standing.Root]; root != nil {
		root.heir = cluster.ID{}
	}
	l.outbox.settle(t.standing.Root, t.id)
	t.standing = nil
	t.touch(false)
}

// current is the task that now has the place of t.
func (l *Loop) current(t *task) *task {
	if heir := l.tasks[t.heir]; heir != nil {
		return heir
	}
	return t
}

// serving reports whether a task's load balancers may know it, as far as its own node can tell.
func (t *task) serving() bool {
	s := t.local.Status
	return t.want != nil && t.want.Task.Desired == cluster.DesiredRun && s.Observed == cluster.ObservedRunning && s.Ready
}

// localized is what the network must show while the managers' word on the node's own tasks is old: stand-ins have the
// places of those they stand in for, and while the node is cut off only tasks that are ready are endpoints. The key tells two
// of them apart; it is empty when the state is good as it is.
func (l *Loop) localized(now time.Time) (key string) {
	alone := l.alone(now)
	var b strings.Builder
	for _, t := range l.sorted() {
		if t.want == nil || t.standing != nil || t.heir.IsZero() && !alone {
			continue
		}
		cur := l.current(t)
		fmt.Fprintf(&b, "%s %s %v;", t.id, cur.id, cur.serving())
	}
	return b.String()
}

// localize changes a copy of the state to what localized means.
func (l *Loop) localize(s *agentapi.NetworkState, now time.Time) *agentapi.NetworkState {
	alone := l.alone(now)
	out := *s
	out.Members = append([]agentapi.Member(nil), s.Members...)
	for i, m := range out.Members {
		if t := l.tasks[m.Task]; t != nil {
			out.Members[i].Task = l.current(t).id
		}
	}
	out.Services = append([]agentapi.Service(nil), s.Services...)
	for i := range out.Services {
		svc := &out.Services[i]
		var kept []agentapi.Endpoint
		for _, e := range svc.Endpoints {
			t := l.tasks[e.Task]
			if t != nil && (alone || !t.heir.IsZero()) {
				cur := l.current(t)
				if !cur.serving() {
					continue
				}
				e.Task = cur.id
			}
			kept = append(kept, e)
		}
		slices.SortFunc(kept, func(a, b agentapi.Endpoint) int { return bytes.Compare(a.Task[:], b.Task[:]) })
		svc.Endpoints = kept
	}
	return &out
}
