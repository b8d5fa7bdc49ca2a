package control

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"baton/client/api"
	"baton/internal/manager/store"
	"baton/internal/model/cluster"
	"baton/internal/plan/reconcile"
)

const (
	previewSteps = 100_000        // transactions and reports of one preview
	previewSpan  = 24 * time.Hour // of simulated time
	// stuckMax is how long others may take to move on while a task finds no node; then only a deadline would come.
	stuckMax = time.Minute
)

// errPreview means that a deployment does not come to rest within the bounds of a preview.
var errPreview = errors.New("the preview does not come to an end; the deployment may never finish")

// Preview answers what the managers would do to the tasks of a stack from the state of fork on, which it changes: every task
// that is created, replaced, moved, stopped or refused, in order of service and slot. It runs the same Engine as the leader
// against nodes on which everything works at once. Time is simulated from now on.
func Preview(fork *store.Store, stack cluster.ID, now time.Time, seed uint64) ([]api.Action, error) {
	p := &preview{fork: fork, stack: stack, now: now, end: now.Add(previewSpan), engine: NewEngine(nil, seed), before: make(map[cluster.ID]*cluster.Task), services: make(map[cluster.ID]string), acting: make(map[cluster.ID]bool)}
	for s := range fork.Snapshot().ServicesByStack(stack) {
		p.services[s.ID] = s.Name
	}
	for t := range store.All[*cluster.Task](fork.Snapshot()) {
		if t.Stack == stack && t.Live() && t.Desired == cluster.DesiredRun {
			p.before[t.ID] = t
		}
	}
	if err := p.run(); err != nil {
		return nil, err
	}
	return p.actions(), nil
}

type preview struct {
	fork     *store.Store
	stack    cluster.ID
	now, end time.Time
	engine   *Engine
	before   map[cluster.ID]*cluster.Task
	services map[cluster.ID]string // names, also of those that will be removed
	steps    int
	moved    time.Time // when something was last written
	// acting are the tasks of which a node has something to report: few, where a cluster has many.
	acting map[cluster.ID]bool
}

func (p *preview) run() error {
	cursor := p.fork.Changes(0, store.Filter{})
	defer cursor.Close()
	for {
		if err := p.decide(cursor); err != nil {
			return err
		}
		moved, err := p.nodes()
		if err != nil {
			return err
		}
		got, err := p.images()
		if err != nil {
			return err
		}
		if moved || got {
			continue
		}
		wake := p.engine.WakeAt()
		if wake.IsZero() || p.settled() || wake.After(p.moved.Add(stuckMax)) && p.stuck() {
			return nil
		}
		if wake.After(p.end) {
			return errPreview
		}
		p.now = later(p.now, wake)
	}
}

// later keeps simulated time from standing still when something is due now.
func later(now, wake time.Time) time.Time {
	if wake.After(now) {
		return wake
	}
	return now.Add(time.Millisecond)
}

// decide lets the engine write until it has nothing more to do.
func (p *preview) decide(cursor *store.Cursor) error {
	for {
		delta := cursor.Collect()
		p.follow(delta)
		if err := p.engine.Merge(delta); err != nil {
			return err
		}
		d, ok, err := p.engine.Next(p.now, p.fork.Snapshot().Version())
		if err != nil {
			return fmt.Errorf("%s: %w", d.About, err)
		}
		if !ok {
			return nil
		}
		p.engine.Done(d, p.apply(d.Txn))
		if p.steps > previewSteps {
			return errPreview
		}
	}
}

func (p *preview) apply(t store.Txn) error {
	p.steps++
	p.moved = p.now
	return p.fork.Apply(p.fork.Snapshot().Version()+1, []store.Txn{t})[0]
}

// follow notes which tasks their nodes have to act on.
func (p *preview) follow(d store.Delta) {
	for _, o := range d.Changed {
		if t, ok := o.(*cluster.Task); ok {
			if _, acts := next(t, p.now); acts {
				p.acting[t.ID] = true
			} else {
				delete(p.acting, t.ID)
			}
		}
	}
	for _, r := range d.Deleted {
		delete(p.acting, r.ID)
	}
}

// nodes lets every task take its next step as if its node did what it is told at once.
func (p *preview) nodes() (moved bool, err error) {
	byID := func(a, b cluster.ID) int { return slices.Compare(a[:], b[:]) }
	for _, id := range slices.SortedFunc(maps.Keys(p.acting), byID) {
		t, ok := store.Get[*cluster.Task](p.fork.Snapshot(), id)
		if !ok {
			continue
		}
		s, ok := next(t, p.now)
		if !ok {
			continue
		}
		c := cluster.Copy(t)
		if _, err := c.Advance(s); err != nil {
			return moved, err
		}
		var txn store.Txn
		txn.Put(c)
		if err := p.apply(txn); err != nil {
			return moved, err
		}
		moved = true
	}
	return moved, nil
}

// images lets nodes have at once what rollouts wait for.
func (p *preview) images() (got bool, err error) {
	snap := p.fork.Snapshot()
	for svc := range snap.ServicesByStack(p.stack) {
		for _, want := range reconcile.Images(p.engine.input(svc, p.now, 0)) {
			node, ok := store.Get[*cluster.Node](p.fork.Snapshot(), want.Node)
			have := cluster.Prepared{Revision: want.Revision, Since: want.Since, Present: true}
			if !ok || slices.ContainsFunc(node.Prepared, func(o cluster.Prepared) bool {
				return o.Revision == have.Revision && o.Since.Equal(have.Since) && o.Present
			}) {
				continue
			}
			n := cluster.Copy(node)
			n.Prepared = append(n.Prepared, have)
			var txn store.Txn
			txn.Put(n)
			if err := p.apply(txn); err != nil {
				return got, err
			}
			got = true
		}
	}
	return got, nil
}

// next is what a perfect node reports of a task next.
func next(t *cluster.Task, now time.Time) (cluster.Status, bool) {
	s := cluster.Status{Task: t.ID, Observed: t.Observed, Ready: t.Ready, Drained: t.Drained, Started: t.Started, At: now}
	switch {
	case t.Observed == cluster.ObservedPending || t.Observed.Terminal():
		return s, false
	case t.Desired == cluster.DesiredRun:
		s.Observed, s.Ready, s.Started = cluster.ObservedRunning, true, now
		return s, t.Observed != cluster.ObservedRunning || !t.Ready
	case t.Desired == cluster.DesiredDrain:
		s.Drained = true
		return s, !t.Drained
	}
	s.Observed = cluster.ObservedComplete
	return s, true
}

// stuck reports whether a task of the stack finds no node: only a change of the cluster will help, not time.
func (p *preview) stuck() bool {
	for t := range p.fork.Snapshot().TasksByState(cluster.ObservedPending) {
		if t.Stack == p.stack && t.Desired == cluster.DesiredRun {
			return true
		}
	}
	return false
}

// settled reports whether the stack's services have all come to rest.
func (p *preview) settled() bool {
	snap := p.fork.Snapshot()
	for s := range snap.ServicesByStack(p.stack) {
		if !s.Status.Converged {
			return false
		}
	}
	if st, ok := store.Get[*cluster.Stack](snap, p.stack); ok {
		r, found := store.Get[*cluster.Release](snap, st.Release)
		return !st.Removing && (!found || r.State != cluster.ReleaseDeploying)
	}
	return true
}

// actions compares the tasks before and after.
func (p *preview) actions() []api.Action {
	snap := p.fork.Snapshot()
	names := make(map[cluster.ID]string)
	for n := range store.All[*cluster.Node](snap) {
		names[n.ID] = n.Name
	}
	replaced := make(map[cluster.ID]bool)
	var out []api.Action
	for s := range snap.ServicesByStack(p.stack) {
		for t := range snap.TasksByService(s.ID) {
			if p.before[t.ID] != nil || t.Desired != cluster.DesiredRun {
				continue
			}
			a := api.Action{Kind: api.ActionCreate, Service: s.Name, Slot: t.Slot, Node: names[t.Node]}
			if old := p.predecessor(t); old != nil {
				replaced[old.ID] = true
				a.Kind, a.Task = api.ActionReplace, old.ID
				if old.Revision == t.Revision && old.Node != t.Node {
					a.Kind = api.ActionMove
				}
			}
			if t.Observed == cluster.ObservedPending {
				a.Kind, a.Reason = api.ActionRefused, t.Reason
			}
			out = append(out, a)
		}
	}
	return p.sorted(append(out, p.stops(snap, names, replaced)...))
}

// predecessor is the task of before in whose place t runs.
func (p *preview) predecessor(t *cluster.Task) *cluster.Task {
	if old := p.before[t.Replaces]; old != nil {
		return old
	}
	for _, old := range p.before {
		if old.Service == t.Service && old.Slot == t.Slot && (t.Slot > 0 || old.Node == t.Node) {
			return old
		}
	}
	return nil
}

// stops lists the tasks of before that are gone with nothing in their place.
func (p *preview) stops(snap store.Snapshot, names map[cluster.ID]string, replaced map[cluster.ID]bool) []api.Action {
	var out []api.Action
	for id, old := range p.before {
		now, ok := store.Get[*cluster.Task](snap, id)
		if replaced[id] || (ok && now.Desired == cluster.DesiredRun && !now.Observed.Terminal()) {
			continue
		}
		a := api.Action{Kind: api.ActionStop, Service: p.services[old.Service], Slot: old.Slot, Task: id, Node: names[old.Node]}
		if ok {
			a.Reason = now.Reason
		}
		out = append(out, a)
	}
	return out
}

func (p *preview) sorted(list []api.Action) []api.Action {
	slices.SortFunc(list, func(a, b api.Action) int {
		return cmp.Or(cmp.Compare(a.Service, b.Service), cmp.Compare(a.Slot, b.Slot), cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Node, b.Node))
	})
	return list
}
