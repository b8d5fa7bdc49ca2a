package control

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"baton/internal/manager/stacks"
	"baton/internal/manager/store"
	"baton/internal/model/cluster"
	"baton/internal/model/spec"
	"baton/internal/plan/reconcile"
	"baton/internal/plan/schedule"
)

// createMax bounds the new tasks of one transaction, and with them the size of a log entry.
const createMax = 500

// moveMax bounds the tasks that one transaction moves forward or forgets. What comes after them is planned when they are written.
const moveMax = 2000

// decideService plans one service: its tasks, their nodes and addresses, in one transaction.
func (e *Engine) decideService(id cluster.ID, now time.Time, acked cluster.Version) (Decision, error) {
	d := Decision{About: "service " + id.Short()}
	svc, ok := store.Get[*cluster.Service](e.snap, id)
	if !ok {
		return d, nil
	}
	d.About = "service " + svc.StackName + "/" + svc.Name
	if !svc.Address.IsValid() && e.services != nil && !svc.Removing {
		return e.addressService(d, svc)
	}
	in := e.input(svc, now, acked)
	d.wake = e.judge(&in)
	p := reconcile.Reconcile(in)
	if d.wake.IsZero() || !p.WakeAt.IsZero() && p.WakeAt.Before(d.wake) {
		d.wake = p.WakeAt
	}
	w := serviceWriter{engine: e, decision: &d, service: svc, now: now, tasks: in.Tasks}
	if cut, ok := firstMoves(p); ok {
		d.again = true
		w.stop(cut)
		w.events(cut.Why)
		return d, nil
	}
	w.stop(p)
	if err := w.create(p.Create); err != nil {
		return d, err
	}
	if err := w.placePending(); err != nil {
		return d, err
	}
	w.hold()
	w.status(p)
	w.events(p.Why)
	return d, nil
}

// firstMoves cuts a plan with too much to do for one transaction down to its first moves, with their reasons.
func firstMoves(p reconcile.Plan) (reconcile.Plan, bool) {
	if len(p.Stop)+len(p.Delete) <= moveMax {
		return p, false
	}
	cut := reconcile.Plan{Stop: p.Stop[:min(len(p.Stop), moveMax)]}
	cut.Delete = p.Delete[:min(len(p.Delete), moveMax-len(cut.Stop))]
	moved := make(map[cluster.ID]bool, len(cut.Stop))
	for _, c := range cut.Stop {
		moved[c.Task] = true
	}
	for _, why := range p.Why {
		if moved[why.Task] && (why.Type == reconcile.WhyDrain || why.Type == reconcile.WhyStop || why.Type == reconcile.WhyLost) {
			cut.Why = append(cut.Why, why)
		}
	}
	return cut, true
}

func (e *Engine) addressService(d Decision, svc *cluster.Service) (Decision, error) {
	address, err := e.services.Next()
	if err != nil {
		return d, fmt.Errorf("address for service %s/%s: %w", svc.StackName, svc.Name, err)
	}
	s := cluster.Copy(svc)
	s.Address, d.address = address, address
	d.Txn.Put(s)
	return d, nil
}

// input gathers what the planner looks at.
func (e *Engine) input(svc *cluster.Service, now time.Time, acked cluster.Version) reconcile.Input {
	in := reconcile.Input{
		Service: svc, Revisions: make(map[cluster.ID]*cluster.Revision), Acked: acked, Now: now,
		Nodes: reconcile.NodeView{Nodes: e.nodesByID()},
	}
	revision := func(id cluster.ID) {
		if r, ok := store.Get[*cluster.Revision](e.snap, id); ok {
			in.Revisions[id] = r
		}
	}
	revision(svc.Revision)
	revision(svc.Previous)
	revision(svc.Rollout.From)
	for t := range e.snap.TasksByService(svc.ID) {
		in.Tasks = append(in.Tasks, t)
		revision(t.Revision)
		if rev := in.Revisions[t.Revision]; rev != nil && !t.Observed.Terminal() {
			// While a slot goes back to it, or from it to one without the volume, the order is its own.
			in.Exclusive = in.Exclusive || stacks.Exclusive(e.snap, rev)
		}
	}
	if rev := in.Revisions[svc.Revision]; rev != nil {
		if rev.Spec.Mode == spec.Global {
			in.Nodes.Eligible = e.view.Eligible(rev)
		}
		in.Blocked = e.blocked(svc, rev)
		in.Exclusive = in.Exclusive || stacks.Exclusive(e.snap, rev)
	}
	return in
}

// blocked says which depends_on condition is not met yet, or nothing.
func (e *Engine) blocked(svc *cluster.Service, rev *cluster.Revision) string {
	for _, dep := range rev.Spec.DependsOn {
		other, ok := e.snap.ServiceByName(svc.Stack, dep.Service)
		if !ok || other.Removing {
			if dep.Required {
				return fmt.Sprintf("waits for service %s, which does not exist", dep.Service)
			}
			continue
		}
		if !e.met(other, dep.Condition) {
			return fmt.Sprintf("waits for service %s (%s)", dep.Service, dep.Condition)
		}
	}
	return ""
}

// met reports whether a service has come as far as a condition asks, with tasks of its wanted revision.
func (e *Engine) met(s *cluster.Service, c spec.DependencyCondition) bool {
	if rev, ok := store.Get[*cluster.Revision](e.snap, s.Revision); ok && s.Replicas == 0 && !s.Scaled && rev.Spec.Autoscale.Rests() && c != spec.DependCompleted {
		return true // it rests, and is there for whoever wants it
	}
	switch c {
	case spec.DependHealthy:
		return s.Status.Desired > 0 && s.Status.Updated >= s.Status.Desired
	case spec.DependCompleted:
		for t := range e.snap.TasksByService(s.ID) {
			if t.Revision == s.Revision && t.Observed == cluster.ObservedComplete {
				return true
			}
		}
		return false
	}
	for t := range e.snap.TasksByService(s.ID) {
		if t.Revision == s.Revision && (t.Observed == cluster.ObservedStarting || t.Observed == cluster.ObservedRunning || t.Observed == cluster.ObservedComplete) {
			return true
		}
	}
	return false
}

// serviceWriter turns a plan into operations of one transaction.
type serviceWriter struct {
	engine   *Engine
	decision *Decision
	service  *cluster.Service
	tasks    []*cluster.Task
	now      time.Time
	stopping map[cluster.ID]bool
}

func (w *serviceWriter) event(kind, message string, link func(*cluster.Event)) {
	ev := &cluster.Event{
		Meta: cluster.Meta{ID: w.engine.newID(), Created: w.now}, At: w.now, Type: kind, Message: message, Who: "planner",
		Stack: w.service.Stack, Service: w.service.ID,
	}
	link(ev)
	w.decision.Txn.Put(ev)
}

func (w *serviceWriter) events(list []reconcile.Reason) {
	for _, why := range list {
		w.event(why.Type, why.Message, func(ev *cluster.Event) { ev.Task, ev.Node, ev.Slot = why.Task, why.Node, why.Slot })
	}
}

// stop moves tasks forward and forgets old ones.
func (w *serviceWriter) stop(p reconcile.Plan) {
	w.stopping = make(map[cluster.ID]bool, len(p.Stop)+len(p.Delete))
	for _, c := range p.Stop {
		if t, ok := store.Get[*cluster.Task](w.engine.snap, c.Task); ok {
			t = cluster.Copy(t)
			c.Apply(t, w.now)
			w.decision.Txn.Put(t)
			w.stopping[c.Task] = true
		}
	}
	for _, id := range p.Delete {
		if t, ok := store.Get[*cluster.Task](w.engine.snap, id); ok && !w.stopping[id] {
			w.decision.Txn.Delete(t)
			w.stopping[id] = true
		}
	}
}

// create gives the planner's new tasks ids, nodes and addresses.
func (w *serviceWriter) create(list []*cluster.Task) error {
	if len(list) > createMax {
		list, w.decision.again = list[:createMax], true
	}
	for _, group := range byRevision(list) {
		fresh := make([]*cluster.Task, len(group))
		for i, t := range group {
			fresh[i] = cluster.Copy(t)
			fresh[i].ID, fresh[i].Created = w.engine.newID(), w.now
		}
		if err := w.place(fresh); err != nil {
			return err
		}
		for _, t := range fresh {
			w.decision.Txn.Put(t)
		}
	}
	return nil
}

// placePending tries again for tasks that were not placed before.
func (w *serviceWriter) placePending() error {
	var waiting []*cluster.Task
	for _, t := range w.tasks {
		if t.Observed == cluster.ObservedPending && t.Desired == cluster.DesiredRun && !w.stopping[t.ID] {
			waiting = append(waiting, cluster.Copy(t))
		}
	}
	for _, group := range byRevision(waiting) {
		reasons := make([]string, len(group))
		for i, t := range group {
			reasons[i] = t.Reason
		}
		if err := w.place(group); err != nil {
			return err
		}
		for i, t := range group {
			if t.Observed != cluster.ObservedPending || t.Reason != reasons[i] {
				w.decision.Txn.Put(t)
			}
		}
	}
	return nil
}

// place sets node, address and state of tasks of one revision, and pins the volumes they use to their node.
func (w *serviceWriter) place(tasks []*cluster.Task) error {
	e := w.engine
	rev, ok := store.Get[*cluster.Revision](e.snap, tasks[0].Revision)
	if !ok {
		return fmt.Errorf("revision %s of service %s is not stored", tasks[0].Revision.Short(), w.service.Name)
	}
	// A volume that nothing has used yet goes where its first task goes: then the others must see that.
	step := len(tasks)
	if len(rev.Volumes) > 0 {
		step = 1
	}
	for from := 0; from < len(tasks); from += step {
		part := tasks[from : from+step]
		if why := w.written(rev); why != "" {
			for _, t := range part {
				t.Reason, t.Observed = why, cluster.ObservedPending
			}
			continue
		}
		group := schedule.Group{Service: w.service, Revision: rev, Tasks: part, Prefer: w.prepared(rev, part), Now: w.now}
		for i, p := range schedule.Assign(e.view, group, e.rng) {
			w.settle(part[i], rev, p)
		}
	}
	return nil
}

// prepared names, by task, the node that has the revision's image because the rollout waited for it before it stopped the
// task's predecessor there. Anywhere else the image might have to be pulled while nothing runs.
func (w *serviceWriter) prepared(rev *cluster.Revision, tasks []*cluster.Task) map[cluster.ID]cluster.ID {
	var out map[cluster.ID]cluster.ID
	for _, t := range tasks {
		old, ok := store.Get[*cluster.Task](w.engine.snap, t.Replaces)
		if !ok || old.StopSince.IsZero() && old.DrainSince.IsZero() && !w.stopping[old.ID] {
			continue
		}
		node, ok := w.engine.nodesByID()[old.Node]
		if !ok || !slices.ContainsFunc(node.Prepared, func(p cluster.Prepared) bool {
			return p.Revision == rev.ID && p.Present && p.Since.Equal(w.service.Rollout.Started)
		}) {
			continue
		}
		if out == nil {
			out = make(map[cluster.ID]cluster.ID)
		}
		out[t.ID] = old.Node
	}
	return out
}

// written says which single-writer volume of the revision another task still uses, or nothing.
func (w *serviceWriter) written(rev *cluster.Revision) string {
	if rev.Spec.Mode == spec.Global {
		return "" // each node has its own volume of the name
	}
	for _, id := range rev.Volumes {
		v, ok := store.Get[*cluster.Volume](w.engine.snap, id)
		if !ok || !v.SingleWriter {
			continue
		}
		for _, t := range w.decision.created {
			if w.engine.mounts(t, id) {
				return fmt.Sprintf("volume %s has another task in this service, and may be written by one at a time", v.Name)
			}
		}
		if v.Node.IsZero() {
			continue
		}
		for t := range w.engine.snap.TasksByNode(v.Node) {
			if !t.Observed.Terminal() && t.Observed != cluster.ObservedPending && w.engine.mounts(t, id) {
				return fmt.Sprintf("volume %s is used by task %s, and may be written by one at a time", v.Name, t.ID.Short())
			}
		}
	}
	return ""
}

// mounts reports whether a task is of a revision with that volume.
func (e *Engine) mounts(t *cluster.Task, volume cluster.ID) bool {
	rev, ok := store.Get[*cluster.Revision](e.snap, t.Revision)
	if !ok {
		return false
	}
	for _, id := range rev.Volumes {
		if id == volume {
			return true
		}
	}
	return false
}

// settle writes one placement into its task.
func (w *serviceWriter) settle(t *cluster.Task, rev *cluster.Revision, p schedule.Placement) {
	e := w.engine
	if p.Node.IsZero() {
		t.Reason = schedule.Explain(p)
		t.Observed = cluster.ObservedPending
		return
	}
	if rev.Spec.NetworkMode == "" {
		address, err := e.takeAddress(t, p)
		if err != nil {
			e.uncharge(t, rev)
			t.Reason, t.Observed = err.Error(), cluster.ObservedPending
			return
		}
		t.Address = address
	}
	w.decision.created = append(w.decision.created, t)
	t.Node, t.Observed, t.Reason = p.Node, cluster.ObservedAssigned, ""
	t.Leased = e.needsLease(rev)
	if rev.Spec.Mode != spec.Global {
		w.pin(rev, p.Node)
	}
	w.event("task.assigned", schedule.Explain(p), func(ev *cluster.Event) {
		ev.Task, ev.Node, ev.Slot = t.ID, t.Node, t.Slot
	})
}

// uncharge takes back what Assign charged for a task, and the place of volumes that it would have been the first to use.
func (e *Engine) uncharge(t *cluster.Task, rev *cluster.Revision) {
	e.view.RemoveTask(t.ID)
	for _, id := range rev.Volumes {
		if v, ok := store.Get[*cluster.Volume](e.snap, id); ok && v.Node.IsZero() {
			e.view.PutVolume(v)
		}
	}
}

// takeAddress gives a task an address of its node's subnet.
func (e *Engine) takeAddress(t *cluster.Task, p schedule.Placement) (netip.Addr, error) {
	block := e.nodes[p.Node]
	if block == nil {
		return netip.Addr{}, fmt.Errorf("node %s has no subnet yet", p.NodeName)
	}
	address, err := block.Next()
	if err != nil {
		return netip.Addr{}, fmt.Errorf("address on node %s: %w", p.NodeName, err)
	}
	e.held[t.ID] = holding{node: p.Node, address: address}
	return address, nil
}

// pin notes where the volumes of a revision live from now on.
func (w *serviceWriter) pin(rev *cluster.Revision, node cluster.ID) {
	for _, id := range rev.Volumes {
		vol, ok := store.Get[*cluster.Volume](w.engine.snap, id)
		if !ok || !vol.Node.IsZero() || w.stopping[id] {
			continue
		}
		w.stopping[id] = true // once per transaction
		w.decision.pinned = append(w.decision.pinned, vol)
		v := cluster.Copy(vol)
		v.Node = node
		w.decision.Txn.Put(v)
		w.engine.view.PutVolume(v)
	}
}

// status writes the service's rollout and summary, or removes the service when nothing of it is left.
func (w *serviceWriter) status(p reconcile.Plan) {
	if p.Done {
		w.remove()
		return
	}
	if p.Rollout == nil && p.Status == w.service.Status {
		return
	}
	s := cluster.Copy(w.service)
	s.Status = p.Status
	if p.Rollout != nil {
		s.Rollout = *p.Rollout
		if w.service.Rollout.State != cluster.RolloutCompleted && s.Rollout.State == cluster.RolloutCompleted && !s.Rollout.From.IsZero() {
			w.restartDependents()
		}
	}
	w.decision.Txn.Put(s)
}

// restartDependents replaces the tasks of services that asked to be restarted after this one was updated.
func (w *serviceWriter) restartDependents() {
	for other := range w.engine.snap.ServicesByStack(w.service.Stack) {
		rev, ok := store.Get[*cluster.Revision](w.engine.snap, other.Revision)
		if !ok || other.ID == w.service.ID || other.Removing {
			continue
		}
		for _, dep := range rev.Spec.DependsOn {
			if dep.Service == w.service.Name && dep.Restart {
				s := cluster.Copy(other)
				s.RestartAt = w.now
				w.decision.Txn.Put(s)
				break
			}
		}
	}
}

// remove deletes the service with its revisions.
func (w *serviceWriter) remove() {
	for t := range w.engine.snap.TasksByService(w.service.ID) {
		if !w.stopping[t.ID] {
			w.decision.Txn.Delete(t)
		}
	}
	w.decision.Txn.Delete(w.service)
	w.event("service.removed", "service "+w.service.Name+" was removed", func(*cluster.Event) {})
}

// byRevision splits tasks into groups of one revision, in order of first appearance.
func byRevision(tasks []*cluster.Task) [][]*cluster.Task {
	var out [][]*cluster.Task
	place := make(map[cluster.ID]int)
	for _, t := range tasks {
		i, ok := place[t.Revision]
		if !ok {
			i = len(out)
			place[t.Revision] = i
			out = append(out, nil)
		}
		out[i] = append(out[i], t)
	}
	return out
}
