package control

import (
	"fmt"
	"slices"
	"time"

	"baton/internal/manager/store"
	"baton/internal/model/cluster"
)

// markNodeVolumes marks the volumes that are, or were, on a node.
func (e *Engine) markNodeVolumes(node cluster.ID) {
	for v := range store.All[*cluster.Volume](e.snap) {
		if v.Node == node || slices.Contains(v.Abandoned, node) {
			e.mark(cluster.KindVolume, v.ID)
		}
	}
}

// decideVolume forgets a volume that is to be removed and is on no node any more, and gives up one whose node is lost if it may
// begin anew elsewhere. Its tasks have ended by then: their leases are shorter than the time after which a node is down.
func (e *Engine) decideVolume(id cluster.ID, now time.Time) (Decision, error) {
	d := Decision{About: "volume " + id.Short()}
	v, ok := store.Get[*cluster.Volume](e.snap, id)
	if !ok {
		return d, nil
	}
	c := cluster.Copy(v)
	c.Abandoned = slices.DeleteFunc(c.Abandoned, func(n cluster.ID) bool {
		_, ok := store.Get[*cluster.Node](e.snap, n)
		return !ok
	})
	node, there := store.Get[*cluster.Node](e.snap, v.Node)
	lost := !v.Node.IsZero() && !there
	switch {
	case v.Removing && (lost || v.Node.IsZero()) && len(c.Abandoned) == 0:
		d.Txn.Delete(v)
		return d, nil
	case v.Leased() && v.Held && !v.Removing && (lost || there && node.State == cluster.NodeDown):
		name := v.Node.Short()
		if there {
			name = node.Name
			c.Abandoned = append(c.Abandoned, v.Node)
			d.Txn.Check(node)
		}
		c.Node = cluster.ID{}
		d.Txn.Put(&cluster.Event{
			Meta: cluster.Meta{ID: e.newID(), Created: now}, At: now, Type: "volume.given-up", Stack: v.Stack, Node: v.Node, Who: "reconciler",
			Message: fmt.Sprintf("node %s, which has volume %s, is lost: the volume is given up there and begins empty on another node", name, v.Name),
		})
	case len(c.Abandoned) == len(v.Abandoned):
		return d, nil
	}
	d.Txn.Put(c)
	return d, nil
}

// needsLease reports whether a task of the revision is to run under a lease.
func (e *Engine) needsLease(rev *cluster.Revision) bool {
	for _, id := range rev.Volumes {
		if v, ok := store.Get[*cluster.Volume](e.snap, id); ok && v.Leased() {
			return true
		}
	}
	return false
}

// hold notes the volumes whose only writer has a lease now: a node starts a task only after those in whose place it is have ended.
func (w *serviceWriter) hold() {
	for _, t := range w.tasks {
		if !t.Leased || t.Observed != cluster.ObservedRunning {
			continue
		}
		rev, ok := store.Get[*cluster.Revision](w.engine.snap, t.Revision)
		if !ok {
			continue
		}
		for _, id := range rev.Volumes {
			v, ok := store.Get[*cluster.Volume](w.engine.snap, id)
			if ok && v.Leased() && !v.Held && v.Node == t.Node && !w.stopping[id] {
				w.stopping[id] = true
				c := cluster.Copy(v)
				c.Held = true
				w.decision.Txn.Put(c)
			}
		}
	}
}
