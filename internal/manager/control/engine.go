package control

import (
	"errors"
	"fmt"
	"io"
	"math/rand"
	"net/netip"
	"time"

	"baton/internal/manager/consensus"
	"baton/internal/manager/store"
	"baton/internal/model/cluster"
	"baton/internal/plan/ipam"
	"baton/internal/plan/schedule"
)

// Engine turns the state of the store into the next transactions. It holds only what can be computed again from the store,
// has no clock and starts nothing, so that the running manager, the simulation and `plan` all use it as it is.
//
//	e := NewEngine(ids, seed)
//	e.Merge(delta)
//	for d, ok := e.Next(now, acked); ok; d, ok = e.Next(now, acked) {
//		… propose d.Txn, then e.Done(d, err), then Merge what the store changed by …
//	}
//
// It belongs to one goroutine.
type Engine struct {
	ids  io.Reader
	rng  *rand.Rand
	snap store.Snapshot
	view *schedule.View

	services *ipam.Block                // service addresses
	nodes    map[cluster.ID]*ipam.Block // task addresses, by node
	held     map[cluster.ID]holding     // by task

	draining map[cluster.ID]cluster.ID // service by task that is told to drain
	freed    bool                      // since the last Merge a task ended or went
	agenda   agenda
	refused  map[key]int // refusals in a row
	// members are the nodes by id, for the planners; nil once a node has changed since.
	members map[cluster.ID]*cluster.Node
	balance balance
	scaler  scaler
	gates   map[cluster.ID]*judging // by service
}

// holding is the address that a task occupies.
type holding struct {
	node    cluster.ID
	address netip.Addr
}

// key names one thing that Next can look at: a node, a service, a stack, or the events as a whole.
type key struct {
	kind  cluster.Kind
	id    cluster.ID
	scale bool // of a service: its number, by its load
}

// Decision is one transaction with what to undo when it is refused.
type Decision struct {
	Txn store.Txn
	// About says what was decided on, for messages.
	About string

	key     key
	at      time.Time
	address netip.Addr        // taken for the service
	created []*cluster.Task   // charged to the view and holding addresses already
	pinned  []*cluster.Volume // as stored, before the view was told where they live from now on
	wake    time.Time
	again   bool // there is more to do than fits into one transaction
}

const (
	// errorPause is how long something is left alone after planning it went wrong.
	errorPause = 5 * time.Second
	// conflictsMax is how often in a row a subject is tried again at once. What is refused more often has a reason that
	// trying does not cure, and must not keep everything else waiting.
	conflictsMax = 16
)

// NewEngine makes an engine that draws ids from r (nil: the system's randomness) and breaks ties by seed.
func NewEngine(r io.Reader, seed uint64) *Engine {
	e := &Engine{ids: r, rng: rand.New(rand.NewSource(int64(seed)))}
	e.reset()
	return e
}

func (e *Engine) reset() {
	e.view = schedule.NewView()
	e.services, e.nodes = nil, make(map[cluster.ID]*ipam.Block)
	e.held, e.draining = make(map[cluster.ID]holding), make(map[cluster.ID]cluster.ID)
	e.agenda, e.members = newAgenda(), nil
	e.refused = make(map[key]int)
	e.scaler.services, e.scaler.resting = make(map[cluster.ID]*scaling), make(map[cluster.ID]bool)
	e.gates = make(map[cluster.ID]*judging)
	e.balance = balance{on: e.balance.on, moved: make(map[cluster.ID]bool)}
}

func (e *Engine) newID() cluster.ID { return cluster.NewID(e.ids) }

// Merge takes what changed in the store and marks what must be looked at again.
func (e *Engine) Merge(d store.Delta) error {
	if d.Full {
		e.reset()
	}
	e.snap = d.Snapshot
	if err := e.mergePools(d); err != nil {
		return err
	}
	// What ended goes first: a stand-in that was taken over has the address and the host ports of its predecessor.
	for _, ended := range []bool{true, false} {
		for _, o := range d.Changed {
			if t, ok := o.(*cluster.Task); (ok && t.Observed.Terminal()) != ended {
				continue
			}
			if err := e.changed(o); err != nil {
				return err
			}
		}
	}
	for _, r := range d.Deleted {
		e.deleted(r)
	}
	if e.freed {
		e.freed = false
		e.markBalance()
		e.markPending() // what a task held may be what another one waits for
	}
	return nil
}

// mergePools makes the address books first: everything else may take addresses from them.
func (e *Engine) mergePools(d store.Delta) error {
	if e.services == nil {
		settings, ok := e.snap.Settings()
		if !ok {
			return nil
		}
		var err error
		if e.services, err = ipam.NewBlock(settings.ServicePool); err != nil {
			return fmt.Errorf("service pool: %w", err)
		}
	}
	for _, o := range d.Changed {
		n, ok := o.(*cluster.Node)
		if !ok || !n.Subnet.IsValid() || e.nodes[n.ID] != nil {
			continue
		}
		block, err := ipam.NewBlock(n.Subnet, n.Subnet.Masked().Addr().Next()) // the first is the node's own
		if err != nil {
			return fmt.Errorf("subnet of node %s: %w", n.Name, err)
		}
		e.nodes[n.ID] = block
	}
	return nil
}

func (e *Engine) changed(o cluster.Object) error {
	switch o := o.(type) {
	case *cluster.Node:
		e.view.PutNode(o)
		e.members = nil
		e.mark(cluster.KindNode, o.ID)
		e.markNodeServices(o.ID)
		e.markBalance()
		e.markNodeVolumes(o.ID)
	case *cluster.Settings:
		e.markBalance()
	case *cluster.Volume:
		e.view.PutVolume(o)
		e.mark(cluster.KindVolume, o.ID)
		e.freed = e.freed || o.Node.IsZero() // a task may wait for it elsewhere
	case *cluster.Task:
		return e.taskChanged(o)
	case *cluster.Service:
		if o.Address.IsValid() {
			// An address that is taken already is this service's own from an earlier merge.
			_ = e.services.Take(o.Address)
		}
		e.mark(cluster.KindService, o.ID)
		e.markScale(o)
		e.markBalance()
		e.mark(cluster.KindStack, o.Stack)
		e.markStackServices(o.Stack) // their depends_on conditions look at it
	case *cluster.Release:
		e.mark(cluster.KindStack, o.Stack)
	case *cluster.Stack:
		e.mark(cluster.KindStack, o.ID)
	case *cluster.Event:
		e.mark(cluster.KindEvent, cluster.ID{})
	}
	return nil
}

func (e *Engine) taskChanged(t *cluster.Task) error {
	e.mark(cluster.KindService, t.Service)
	e.balance.follow(t)
	rev, ok := store.Get[*cluster.Revision](e.snap, t.Revision)
	if !ok {
		return fmt.Errorf("task %s: its revision %s is not stored", t.ID.Short(), t.Revision.Short())
	}
	e.view.PutTask(t, &rev.Spec)
	if t.Desired == cluster.DesiredDrain && !t.Observed.Terminal() {
		e.draining[t.ID] = t.Service
	} else {
		delete(e.draining, t.ID)
	}
	if t.Observed.Terminal() {
		e.release(t.ID)
		e.freed = true
		return nil
	}
	e.hold(t)
	return nil
}

func (e *Engine) deleted(r store.Ref) {
	switch r.Kind {
	case cluster.KindNode:
		e.view.RemoveNode(r.ID)
		e.members = nil
		delete(e.nodes, r.ID)
		e.markNodeServices(r.ID)
		e.markNodeVolumes(r.ID)
	case cluster.KindVolume:
		e.view.RemoveVolume(r.ID)
	case cluster.KindTask:
		e.view.RemoveTask(r.ID)
		e.release(r.ID)
		delete(e.draining, r.ID)
		delete(e.balance.moved, r.ID)
		if t, ok := r.Last.(*cluster.Task); ok {
			e.mark(cluster.KindService, t.Service)
		}
		e.freed = true
	case cluster.KindService:
		if s, ok := r.Last.(*cluster.Service); ok {
			e.services.Release(s.Address)
			e.mark(cluster.KindStack, s.Stack)
			e.markStackServices(s.Stack)
		}
		e.agenda.drop(key{kind: cluster.KindService, id: r.ID})
		e.forgetScale(r.ID)
		delete(e.gates, r.ID)
	}
}

func (e *Engine) mark(k cluster.Kind, id cluster.ID) { e.agenda.mark(key{kind: k, id: id}) }

func (e *Engine) markStackServices(stack cluster.ID) {
	for s := range e.snap.ServicesByStack(stack) {
		e.mark(cluster.KindService, s.ID)
	}
}

// markNodeServices marks the services with tasks on a node, the global ones and those with tasks that wait for a node.
func (e *Engine) markNodeServices(node cluster.ID) {
	for t := range e.snap.TasksByNode(node) {
		e.mark(cluster.KindService, t.Service)
	}
	for s := range store.All[*cluster.Service](e.snap) {
		if s.Removing {
			continue
		}
		e.mark(cluster.KindService, s.ID)
	}
}

// markPending marks the services with tasks that wait for a place.
func (e *Engine) markPending() {
	for t := range e.snap.TasksByState(cluster.ObservedPending) {
		e.mark(cluster.KindService, t.Service)
	}
}

// MarkDraining marks the services with tasks that wait for acknowledgements: the acknowledged version has grown.
func (e *Engine) MarkDraining() {
	for _, service := range e.draining {
		e.mark(cluster.KindService, service)
	}
}

// hold notes that a task occupies its address.
func (e *Engine) hold(t *cluster.Task) {
	block := e.nodes[t.Node]
	if _, held := e.held[t.ID]; held || block == nil || !t.Address.IsValid() {
		return
	}
	// It fails only for an address outside the subnet, which a node keeps until its tasks are gone.
	if block.Take(t.Address) == nil {
		e.held[t.ID] = holding{node: t.Node, address: t.Address}
	}
}

func (e *Engine) release(task cluster.ID) {
	h, ok := e.held[task]
	if !ok {
		return
	}
	delete(e.held, task)
	if block := e.nodes[h.node]; block != nil {
		block.Release(h.address)
	}
}

// WakeAt is when time alone makes something due next; zero: never.
func (e *Engine) WakeAt() time.Time { return e.agenda.wakeAt() }

// nodesByID are all nodes; shared and read-only.
func (e *Engine) nodesByID() map[cluster.ID]*cluster.Node {
	if e.members == nil {
		e.members = make(map[cluster.ID]*cluster.Node)
		for n := range store.All[*cluster.Node](e.snap) {
			e.members[n.ID] = n
		}
	}
	return e.members
}

// Next returns the next transaction to propose, or false when there is nothing to do until the store changes or WakeAt
// comes. Things are looked at in a fixed order, so that equal states give equal decisions.
func (e *Engine) Next(now time.Time, acked cluster.Version) (Decision, bool, error) {
	e.agenda.due(now)
	for {
		k, ok := e.agenda.take()
		if !ok {
			return Decision{}, false, nil
		}
		d, err := e.decide(k, now, acked)
		d.key, d.at = k, now
		if err != nil {
			e.undo(d)
			e.agenda.wake(k, now.Add(errorPause))
			return d, false, err
		}
		if !d.wake.IsZero() {
			e.agenda.wake(k, d.wake)
		}
		if d.again {
			e.agenda.mark(k)
		}
		if !d.Txn.Empty() {
			return d, true, nil
		}
	}
}

func (e *Engine) decide(k key, now time.Time, acked cluster.Version) (Decision, error) {
	if k.scale {
		return e.decideScale(k.id, now)
	}
	switch k.kind {
	case cluster.KindNode:
		return e.decideNode(k.id)
	case cluster.KindVolume:
		return e.decideVolume(k.id, now)
	case cluster.KindService:
		return e.decideService(k.id, now, acked)
	case cluster.KindStack:
		return e.decideStack(k.id, now)
	case cluster.KindSettings:
		return e.decideBalance(now)
	}
	return e.decideEvents()
}

// Done ends a decision. When it was refused, what it took is given back and its subject is looked at again: at once, or a
// while later when it is refused every time or is too large for the log.
func (e *Engine) Done(d Decision, err error) {
	if err == nil {
		delete(e.refused, d.key)
		return
	}
	e.undo(d)
	e.refused[d.key]++
	if e.refused[d.key] > conflictsMax || errors.Is(err, consensus.ErrTooLarge) {
		delete(e.refused, d.key)
		e.agenda.wake(d.key, d.at.Add(errorPause))
		return
	}
	e.agenda.mark(d.key)
}

// undo gives back what a decision took.
func (e *Engine) undo(d Decision) {
	if d.address.IsValid() {
		e.services.Release(d.address)
	}
	for _, t := range d.created {
		e.view.RemoveTask(t.ID)
		e.release(t.ID)
	}
	for _, v := range d.pinned {
		e.view.PutVolume(v)
	}
}

// decideNode gives a new node its subnet.
func (e *Engine) decideNode(id cluster.ID) (Decision, error) {
	d := Decision{About: "node " + id.Short()}
	node, ok := store.Get[*cluster.Node](e.snap, id)
	settings, found := e.snap.Settings()
	if !ok || !found || node.Subnet.IsValid() {
		return d, nil
	}
	var used []netip.Prefix
	for n := range store.All[*cluster.Node](e.snap) {
		if n.Subnet.IsValid() {
			used = append(used, n.Subnet)
		}
	}
	subnet, err := ipam.NodeSubnet(settings.TaskPool, settings.NodeBits, used)
	if err != nil {
		return d, fmt.Errorf("subnet for node %s: %w", node.Name, err)
	}
	n := cluster.Copy(node)
	n.Subnet = subnet
	d.Txn.Put(n)
	return d, nil
}
