package reconcile

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"baton/internal/model/cluster"
	"baton/internal/model/spec"
)

// key names a place for one task: a slot of a replicated service, a node of a global one.
type key struct {
	slot int
	node cluster.ID
}

// slot is one place with its tasks as they will be once the plan is stored.
type slot struct {
	key
	wanted bool
	tasks  []*cluster.Task // oldest first

	// target is the revision that the slot is to have now; moving is true when that is the wanted one, made after the last
	// asked restart.
	target cluster.ID
	moving bool
	// queued is true for a slot that had not begun to move when planning began.
	queued bool

	// Filled by classify.
	fit     []*cluster.Task // wanted to run and as they should be, best first
	other   []*cluster.Task // wanted to run but outdated or displaced, best first
	leaving []*cluster.Task // told to go and not gone
}

// planner is the state of one Reconcile.
type planner struct {
	in     Input
	limits Limits
	svc    *cluster.Service
	rev    *cluster.Revision // wanted
	policy spec.UpdatePolicy // of the rollout under way
	roll   cluster.Rollout
	since  time.Time // tasks made before are outdated: an asked restart

	slots   map[key]*slot
	order   []*slot // by slot number, then node
	changes map[cluster.ID]*Change
	changed []cluster.ID // in order
	deleted map[cluster.ID]bool
	plan    Plan
	waiting string
	hold    bool // Blocked applies: the rollout has made no task yet
}

func newPlanner(in Input) *planner {
	p := &planner{
		in: in, limits: in.Limits.withDefaults(), svc: in.Service, rev: in.Revisions[in.Service.Revision],
		roll: in.Service.Rollout, slots: make(map[key]*slot),
		changes: make(map[cluster.ID]*Change), deleted: make(map[cluster.ID]bool),
	}
	if at := in.Service.RestartAt; !at.After(in.Now) {
		p.since = at
	} else {
		p.wake(at)
	}
	for _, t := range in.Tasks {
		k := key{slot: t.Slot}
		if t.Slot == 0 {
			k.node = t.Node
		}
		s := p.slot(k)
		s.tasks = append(s.tasks, t)
	}
	p.sort()
	return p
}

// sort puts the slots in order, and the tasks of each.
func (p *planner) sort() {
	p.order = p.order[:0]
	for _, s := range p.slots {
		slices.SortFunc(s.tasks, compareAge)
		p.order = append(p.order, s)
	}
	slices.SortFunc(p.order, func(a, b *slot) int {
		return cmp.Or(a.slot-b.slot, slices.Compare(a.node[:], b.node[:]))
	})
}

func compareAge(a, b *cluster.Task) int {
	return cmp.Or(a.Created.Compare(b.Created), slices.Compare(a.ID[:], b.ID[:]))
}

func (p *planner) slot(k key) *slot {
	s, ok := p.slots[k]
	if !ok {
		s = &slot{key: k}
		p.slots[k] = s
	}
	return s
}

// want marks the slots that should have a task. Always 1..Replicas: a slot that crashes must not swap places with a lower
// one that waits, or its back-off would be forgotten.
func (p *planner) want() {
	if p.svc.Removing || p.rev == nil {
		return
	}
	if p.rev.Spec.Mode != spec.Global {
		for i := 1; i <= p.svc.Replicas; i++ {
			p.slot(key{slot: i}).wanted = true
		}
		return
	}
	for _, id := range p.in.Nodes.Eligible {
		n, ok := p.in.Nodes.Nodes[id]
		if !ok || n.Availability == cluster.NodeDrain {
			continue
		}
		s := p.slot(key{node: id})
		// A paused or silent node keeps what it has and gets nothing new.
		s.wanted = p.usable(s) || slices.ContainsFunc(s.tasks, running)
	}
}

// usable reports whether a new task may start in the slot: always, unless it is bound to a node that takes none.
func (p *planner) usable(s *slot) bool {
	if s.node.IsZero() {
		return true
	}
	n := p.in.Nodes.Nodes[s.node]
	return n != nil && n.State == cluster.NodeReady && n.Availability != cluster.NodePause && n.Availability != cluster.NodeDrain
}

// wake asks for another look at the given time, if that is in the future.
func (p *planner) wake(at time.Time) {
	if at.After(p.in.Now) && (p.plan.WakeAt.IsZero() || at.Before(p.plan.WakeAt)) {
		p.plan.WakeAt = at
	}
}

func (p *planner) why(kind string, s *slot, task, node cluster.ID, format string, args ...any) {
	r := Reason{Type: kind, Task: task, Node: node, Message: fmt.Sprintf(format, args...)}
	if s != nil {
		r.Slot = s.slot
	}
	p.plan.Why = append(p.plan.Why, r)
}

// change moves a task of the slot forward, in the plan and in the planner's own picture.
func (p *planner) change(s *slot, t *cluster.Task, c Change) *cluster.Task {
	c.Task = t.ID
	have, ok := p.changes[t.ID]
	if !ok {
		p.changes[t.ID] = &c
		p.changed = append(p.changed, t.ID)
	} else {
		have.To = max(have.To, c.To)
		have.Lost = have.Lost || c.Lost
		if have.Reason == "" {
			have.Reason = c.Reason
		}
	}
	own := cluster.Copy(t)
	c.Apply(own, p.in.Now)
	i := slices.Index(s.tasks, t)
	s.tasks[i] = own
	return own
}

// forget deletes a task object.
func (p *planner) forget(s *slot, t *cluster.Task) {
	p.deleted[t.ID] = true
	s.tasks = slices.DeleteFunc(slices.Clone(s.tasks), func(o *cluster.Task) bool { return o == t })
}

// create makes a task in the slot.
func (p *planner) create(s *slot, rev cluster.ID, failures int, replaces cluster.ID) {
	t := &cluster.Task{
		Meta:  cluster.Meta{Created: p.in.Now},
		Stack: p.svc.Stack, Service: p.svc.ID, Revision: rev, Slot: s.slot, Node: s.node,
		Desired: cluster.DesiredRun, Observed: cluster.ObservedPending, Failures: failures, Replaces: replaces,
	}
	if !s.node.IsZero() {
		t.Observed = cluster.ObservedAssigned
	}
	s.tasks = append(s.tasks, t)
	p.plan.Create = append(p.plan.Create, cluster.Copy(t))
	if rev == p.svc.Revision && p.roll.State == cluster.RolloutUpdating && p.roll.LastBatch.IsZero() {
		p.roll.LastBatch = p.in.Now
	}
}

// place tells how a task's node is doing.
type place uint8

const (
	placeFine   place = iota
	placeLeave        // being drained: replace first, then go
	placeAway         // silent for too long: replace, it may come back
	placeSilent       // silent, but not for long
	placeGone         // down or removed
)

func (p *planner) place(t *cluster.Task) place {
	if t.Node.IsZero() {
		return placeFine
	}
	n, ok := p.in.Nodes.Nodes[t.Node]
	switch {
	case !ok || n.State == cluster.NodeDown:
		return placeGone
	case n.State == cluster.NodeUnknown:
		until := n.StateSince.Add(p.limits.UnknownMax)
		if until.After(p.in.Now) {
			p.wake(until)
			return placeSilent
		}
		return placeAway
	case n.Availability == cluster.NodeDrain:
		return placeLeave
	}
	return placeFine
}

// reachable reports whether the task's node can be told to stop it.
func (p *planner) reachable(t *cluster.Task) bool {
	at := p.place(t)
	return at == placeFine || at == placeLeave
}

// same reports whether tasks of the two revisions are alike, so that no task need be replaced: only policies differ.
func (p *planner) same(a, b cluster.ID) bool {
	if a == b {
		return true
	}
	x, y := p.in.Revisions[a], p.in.Revisions[b]
	return x != nil && y != nil && x.Hash != "" && x.Hash == y.Hash
}

// current reports whether a task is as the wanted revision and the last asked restart want it.
func (p *planner) current(t *cluster.Task) bool {
	return p.same(t.Revision, p.svc.Revision) && !t.Created.Before(p.since)
}

// spec is that of the revision; the wanted one's policies hold for every revision that is alike.
func (p *planner) spec(id cluster.ID) *spec.Service {
	if p.rev != nil && p.same(id, p.svc.Revision) {
		return &p.rev.Spec
	}
	if r := p.in.Revisions[id]; r != nil {
		return &r.Spec
	}
	if p.rev != nil {
		return &p.rev.Spec
	}
	return &spec.Service{}
}

// ownEnd reports whether the task ended although nobody told it to.
func ownEnd(t *cluster.Task) bool {
	return t.Observed.Terminal() && t.Observed != cluster.ObservedLost && t.StopSince.IsZero() && t.DrainSince.IsZero()
}

// running reports whether the task is live and wanted to run.
func running(t *cluster.Task) bool { return t.Desired == cluster.DesiredRun && !t.Observed.Terminal() }

// going reports whether the task was told to go and is not gone.
func going(t *cluster.Task) bool {
	return t.Desired > cluster.DesiredRun && !t.Observed.Terminal()
}
