package sim

import (
	"net/netip"
	"time"

	"baton/internal/manager/store"
	"baton/internal/model/cluster"
	"baton/internal/model/spec"
	"baton/internal/node/agent"
	"baton/internal/wire/agentapi"
)

// checker looks for what must never be. In the store, after every transaction:
//
//   - versions only grow; desired and observed only move forward; the node and revision of a placed task stay; ended tasks
//     and ended releases stay as they ended
//   - a slot gets a task only when its rollout allows one more
//   - no node is promised away beyond its processors, memory, host ports; no address is given to two live tasks
//   - a task makes room in its slot only once the image of its successor is on its node
//   - a task that serves is drained before it is stopped, and stopped only once it is in no load balancer of a connected
//     node, or the managers waited long enough
//
// On the machines, after every step: no task runs on two nodes; a single-writer volume has one writer; no address and no
// host port of a node is used twice; no task that ran is started again; only tasks that were told to go get the stop
// signal. On the way to them: only ready tasks
// are endpoints; secrets go only to nodes with tasks that use them; only unused volumes are removed.
type checker struct {
	w      *World
	cursor *store.Cursor
	last   map[cluster.ID]cluster.Object
	// at is the newest version checked.
	at cluster.Version
}

// ackMax is how long the managers wait for acknowledgements, by the architecture.
const ackMax = 5 * time.Second

func newChecker(w *World) *checker {
	return &checker{w: w, cursor: w.store.Changes(0, store.Filter{}), last: make(map[cluster.ID]cluster.Object)}
}

// stored checks what the last transaction changed.
func (c *checker) stored() {
	d := c.cursor.Collect()
	if d.Empty() {
		return
	}
	if v := d.Snapshot.Version(); v <= c.at {
		c.w.fail("the store went from version %d to %d", c.at, v)
	} else {
		c.at = v
	}
	touched := make(map[cluster.ID]bool)
	for _, o := range d.Changed {
		old := c.last[o.GetMeta().ID]
		c.grown(old, o)
		switch o := o.(type) {
		case *cluster.Task:
			was, _ := old.(*cluster.Task)
			c.task(d.Snapshot, was, o)
			touched[o.Node] = true
			c.w.traceTask(was, o)
		case *cluster.Release:
			if was, ok := old.(*cluster.Release); ok {
				c.release(was, o)
			}
		case *cluster.Service:
			c.w.traceService(o)
		}
		c.last[o.GetMeta().ID] = o
	}
	for _, r := range d.Deleted {
		t, ok := c.last[r.ID].(*cluster.Task)
		if ok && !t.Observed.Terminal() && t.Observed != cluster.ObservedPending && !c.down(d.Snapshot, t.Node) {
			c.w.fail("task %s was forgotten while %s", t.ID.Short(), t.Observed)
		}
		delete(c.last, r.ID)
	}
	for _, n := range c.w.nodes {
		if touched[n.id] {
			c.capacity(d.Snapshot, n)
		}
	}
}

// down reports whether nothing will ever be heard of the tasks of a node.
func (c *checker) down(snap store.Snapshot, id cluster.ID) bool {
	n, ok := store.Get[*cluster.Node](snap, id)
	return !ok || n.State == cluster.NodeDown
}

func (c *checker) grown(old, now cluster.Object) {
	if old != nil && now.GetMeta().Version <= old.GetMeta().Version {
		c.w.fail("%s %s went from version %d to %d", now.Kind(), now.GetMeta().ID.Short(), old.GetMeta().Version, now.GetMeta().Version)
	}
}

func (c *checker) release(was, now *cluster.Release) {
	final := was.State != cluster.ReleaseDeploying && was.State != cluster.ReleasePaused
	if final && was.State != now.State {
		c.w.fail("release %d ended as %s and is %s", now.Number, was.State, now.State)
	}
}

// task checks one task's move.
func (c *checker) task(snap store.Snapshot, was, t *cluster.Task) {
	if was == nil {
		c.room(snap, t)
		return
	}
	switch {
	case t.Desired < was.Desired:
		c.w.fail("task %s: wanted %s, then %s", t.ID.Short(), was.Desired, t.Desired)
	case t.Observed < was.Observed:
		c.w.fail("task %s: observed %s, then %s", t.ID.Short(), was.Observed, t.Observed)
	case was.Observed.Terminal() && t.Observed != was.Observed:
		c.w.fail("task %s: ended as %s, then %s", t.ID.Short(), was.Observed, t.Observed)
	case t.Revision != was.Revision || t.Slot != was.Slot:
		c.w.fail("task %s changed its revision or slot", t.ID.Short())
	case was.Observed != cluster.ObservedPending && (t.Node != was.Node || t.Address != was.Address):
		c.w.fail("task %s moved from node %s to %s", t.ID.Short(), was.Node.Short(), t.Node.Short())
	case was.Desired == cluster.DesiredRun && t.Desired >= cluster.DesiredStop && was.Endpoint() && !t.Observed.Terminal():
		c.w.fail("task %s serves and is stopped without draining", t.ID.Short())
	}
	c.madeRoom(snap, was, t)
	early := t.StopSince.Sub(t.DrainSince) < ackMax
	if was.Desired == cluster.DesiredDrain && t.Desired >= cluster.DesiredStop && t.Observed == cluster.ObservedRunning && early {
		for _, n := range c.w.nodes {
			if n.serving != nil && !n.broken(n.serving) && n.balanced[t.ID] {
				c.w.fail("task %s is stopped %s after it began to drain, and %s still balances to it", t.ID.Short(), t.StopSince.Sub(t.DrainSince), n.name)
			}
		}
	}
}

// madeRoom checks that a task which makes room for a task of a rollout is not stopped before that one's image is there.
func (c *checker) madeRoom(snap store.Snapshot, was, t *cluster.Task) {
	svc, ok := store.Get[*cluster.Service](snap, t.Service)
	if !ok || was.Desired != cluster.DesiredRun || t.Desired == cluster.DesiredRun || t.Observed != cluster.ObservedRunning || t.Reason != "its slot gets a new task, stop-first" {
		return
	}
	old, _ := store.Get[*cluster.Revision](snap, t.Revision)
	rev, ok := store.Get[*cluster.Revision](snap, svc.Revision)
	node, up := store.Get[*cluster.Node](snap, t.Node)
	if !ok || !up || node.State != cluster.NodeReady || node.Availability == cluster.NodeDrain || svc.Rollout.State != cluster.RolloutUpdating || svc.Rollout.From.IsZero() {
		return
	}
	for _, n := range c.w.nodes {
		if n.id == t.Node && old.Spec.Image != rev.Spec.Image && !n.images[rev.Spec.Image] {
			c.w.fail("task %s is stopped on %s to make room for a task whose image %s is not there", t.ID.Short(), n.name, rev.Spec.Image)
		}
	}
}

// room checks that the slot of a new task may have one more.
func (c *checker) room(snap store.Snapshot, t *cluster.Task) {
	rev, ok := store.Get[*cluster.Revision](snap, t.Revision)
	if !ok {
		c.w.fail("task %s has no revision", t.ID.Short())
		return
	}
	exclusive := false
	for _, id := range rev.Volumes {
		v, ok := store.Get[*cluster.Volume](snap, id)
		exclusive = exclusive || ok && v.SingleWriter
	}
	stopFirst := exclusive || rev.Spec.Update.Order == spec.StopFirst && rev.Spec.Rollback.Order == spec.StopFirst
	others, wanted := 0, 0
	for o := range snap.TasksByService(t.Service) {
		if o.ID == t.ID || o.Slot != t.Slot || t.Slot == 0 && o.Node != t.Node || o.Observed.Terminal() {
			continue
		}
		n, ok := store.Get[*cluster.Node](snap, o.Node)
		if !exclusive && ok && n.State != cluster.NodeReady {
			continue // it cannot be told to stop
		}
		others++
		if o.Desired == cluster.DesiredRun {
			wanted++
		}
	}
	if stopFirst && others > 0 || others > 1 {
		c.w.fail("slot %d of service %s gets a task beside %d others (%d wanted), stop-first %v", t.Slot, t.Service.Short(), others, wanted, stopFirst)
	}
}

// capacity checks what a node is promised for.
func (c *checker) capacity(snap store.Snapshot, n *node) {
	var cpu spec.MilliCPU
	var memory spec.Bytes
	ports := make(map[cluster.HostPort]cluster.ID)
	addresses := make(map[netip.Addr]cluster.ID)
	for t := range snap.TasksByNode(n.id) {
		rev, ok := store.Get[*cluster.Revision](snap, t.Revision)
		if !ok || t.Observed.Terminal() || t.Observed == cluster.ObservedPending {
			continue
		}
		cpu += rev.Spec.Resources.Reservations.CPU
		memory += rev.Spec.Resources.Reservations.Memory
		for _, p := range hostPorts(&rev.Spec) {
			if other, ok := ports[p]; ok {
				c.w.fail("host port %d of %s is given to tasks %s and %s", p.Port, n.name, other.Short(), t.ID.Short())
			}
			ports[p] = t.ID
		}
		if other, ok := addresses[t.Address]; ok && t.Address.IsValid() {
			c.w.fail("address %s is given to tasks %s and %s", t.Address, other.Short(), t.ID.Short())
		}
		addresses[t.Address] = t.ID
	}
	if cpu > n.desc.CPU || memory > n.desc.Memory {
		c.w.fail("%s is promised away: %d of %d milli-CPU, %d of %d bytes", n.name, cpu, n.desc.CPU, memory, n.desc.Memory)
	}
}

func hostPorts(s *spec.Service) (ports []cluster.HostPort) {
	for _, p := range s.Ports {
		if p.Mode == spec.PortHost {
			ports = append(ports, cluster.HostPort{Port: p.Published, Protocol: p.Protocol})
		}
	}
	return ports
}

// machines checks the nodes where something changed.
func (c *checker) machines() {
	dirty := false
	for _, n := range c.w.nodes {
		if n.dirty {
			n.dirty, dirty = false, true
			c.machine(n)
		}
	}
	if !dirty {
		return
	}
	where := make(map[cluster.ID]*node)
	for _, n := range c.w.nodes {
		for id, k := range n.containers {
			if k.state != agent.ContainerRunning {
				continue
			}
			if other := where[id]; other != nil {
				c.w.fail("task %s runs on %s and %s", id.Short(), other.name, n.name)
			}
			where[id] = n
		}
	}
}

// machine checks what one machine really does.
func (c *checker) machine(n *node) {
	addresses := make(map[netip.Addr]cluster.ID)
	for _, id := range sortedIDs(n.attached) {
		a := n.attached[id]
		if other, ok := addresses[a]; ok {
			c.w.fail("%s uses address %s for tasks %s and %s", n.name, a, other.Short(), id.Short())
		}
		addresses[a] = id
	}
	writers := make(map[string]cluster.ID)
	ports := make(map[cluster.HostPort]cluster.ID)
	for _, id := range sortedIDs(n.containers) {
		k := n.containers[id]
		if k.state != agent.ContainerRunning {
			continue
		}
		for _, p := range hostPorts(k.as.Spec) {
			if other, ok := ports[p]; ok {
				c.w.fail("%s opens host port %d to tasks %s and %s", n.name, p.Port, other.Short(), id.Short())
			}
			ports[p] = id
		}
		for _, name := range k.as.Volumes {
			v, ok := c.w.store.Snapshot().VolumeByName(name)
			if !ok || !v.SingleWriter {
				continue
			}
			if other, ok := writers[name]; ok {
				c.w.fail("tasks %s and %s both write to volume %s", other.Short(), id.Short(), name)
			}
			writers[name] = id
		}
	}
}

// started checks a container that was just started: its volume may be written on another machine.
func (c *checker) started(n *node, as *agentapi.Assignment) {
	t, ok := store.Get[*cluster.Task](c.w.store.Snapshot(), as.Task.ID)
	// One that was lost with its node before it ran may start there: the node knows nothing of that until it is heard again.
	unheard := ok && t.Observed == cluster.ObservedLost && t.Started.IsZero()
	if ok && t.Observed >= cluster.ObservedRunning && !unheard {
		c.w.fail("task %s ran before (%s) and is started again on %s", as.Task.ID.Short(), t.Observed, n.name)
	}
	for _, name := range as.Volumes {
		v, ok := c.w.store.Snapshot().VolumeByName(name)
		if !ok || !v.SingleWriter {
			continue
		}
		for _, other := range c.w.nodes {
			for id, k := range other.containers {
				for _, theirs := range k.as.Volumes {
					if other != n && theirs == name && k.state == agent.ContainerRunning {
						c.w.fail("volume %s is written by task %s on %s and by %s on %s", name, as.Task.ID.Short(), n.name, id.Short(), other.name)
					}
				}
			}
		}
	}
}

// stopped checks that a task that gets the stop signal was told to go, or is not known any more, or ended itself.
func (c *checker) stopped(n *node, id cluster.ID) {
	t, ok := store.Get[*cluster.Task](c.w.store.Snapshot(), id)
	if ok && t.Desired < cluster.DesiredStop && kind(n.containers[id].as.Spec) != "sick" && !t.Observed.Terminal() {
		c.w.fail("task %s on %s gets the stop signal and is wanted to %s", id.Short(), n.name, t.Desired)
	}
}

// update checks what a node is told.
func (c *checker) update(n *node, u agentapi.Update) {
	snap, ok := c.w.snapshotAt(u.Version)
	if !ok {
		return
	}
	if u.Network != nil {
		for _, s := range u.Network.Services {
			for _, e := range s.Endpoints {
				if t, ok := store.Get[*cluster.Task](snap, e.Task); !ok || !t.Endpoint() {
					c.w.fail("%s is told at version %d that task %s is an endpoint, and it is not", n.name, u.Version, e.Task.Short())
				}
			}
		}
	}
	for _, as := range u.Assignments {
		if as.Task.Node != n.id {
			c.w.fail("%s is told to run task %s of another node", n.name, as.Task.ID.Short())
		}
		for _, f := range as.Files {
			uses := false
			for _, ref := range as.Spec.Secrets {
				uses = uses || ref.Source == f.Name
			}
			if f.Secret && (!uses || as.Task.Node != n.id) {
				c.w.fail("%s gets secret %s without a task that uses it", n.name, f.Name)
			}
		}
	}
}

// volumeRemoved checks that nothing uses a volume that goes.
func (c *checker) volumeRemoved(n *node, name string) {
	for _, id := range sortedIDs(n.containers) {
		k := n.containers[id]
		for _, v := range k.as.Volumes {
			if v == name && k.state == agent.ContainerRunning {
				c.w.fail("%s removes volume %s under task %s", n.name, name, id.Short())
			}
		}
	}
}
