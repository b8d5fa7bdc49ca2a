package dispatch

import (
	"context"
	"fmt"
	"time"

	"baton/internal/manager/store"
	"baton/internal/model/cluster"
	"baton/internal/wire/agentapi"
)

// takeOver makes a node's stand-in a task of the store, in one transaction with the end of the task whose place it has; or,
// when that place is not the node's to fill any more, tells the node to remove it.
//
// It is taken over only from a task that the store still counts as running there: then it needs no place, no address and no
// share of the node that its predecessor did not have. Once that one was given up, others may have been promised all of it.
func (d *Dispatcher) takeOver(ctx context.Context, s *Session, in agentapi.StandIn) error {
	refused := ""
	err := d.retry(ctx, func(snap store.Snapshot) (store.Txn, error) {
		refused = ""
		var t store.Txn
		if old, ok := store.Get[*cluster.Task](snap, in.Status.Task); ok && old.Node == s.node {
			// Taken over before, and the node did not hear of it. Its word as an assignment comes with the session's first update.
			task := cluster.Copy(old)
			if changed, _ := task.Advance(in.Status); changed {
				t.Put(task)
			}
			return t, nil
		}
		old, why := heritable(snap, s.node, in)
		if why != "" {
			refused = why
			return t, nil
		}
		ended, heir := inherit(old, in, d.cfg.Now())
		t.Put(ended)
		t.Put(heir)
		link := func(e *cluster.Event) {
			e.Task, e.Service, e.Stack, e.Node, e.Slot = heir.ID, heir.Service, heir.Stack, heir.Node, heir.Slot
		}
		message := fmt.Sprintf("its node ran it while no manager could be reached, in place of task %s, which %s", ended.ID.Short(), ended.End())
		t.Put(d.event(d.cfg.Now(), "task.taken-over", message, link))
		return t, nil
	})
	if err == nil && refused != "" {
		d.cfg.Logger.Info("stand-in refused", "node", s.node, "task", in.Status.Task, "reason", refused)
		s.refuse(in.Status.Task)
	}
	return err
}

// heritable finds the task whose place a stand-in may keep, or says why there is none.
func heritable(snap store.Snapshot, node cluster.ID, in agentapi.StandIn) (*cluster.Task, string) {
	old, ok := store.Get[*cluster.Task](snap, in.For.Task)
	switch {
	case !ok || old.Node != node:
		return nil, "the task whose place it has is not known any more"
	case old.Observed.Terminal() || old.Observed == cluster.ObservedPending:
		return nil, "the task whose place it has was given up"
	case old.Desired != cluster.DesiredRun:
		return nil, "the task whose place it has was told to go"
	case !in.For.Observed.Terminal():
		return nil, "the task whose place it has did not end"
	}
	svc, ok := store.Get[*cluster.Service](snap, old.Service)
	if !ok || svc.Removing || old.Slot > svc.Replicas {
		return nil, "its place is not wanted any more"
	}
	for o := range snap.TasksByService(old.Service) {
		if o.ID != old.ID && o.Slot == old.Slot && (o.Slot > 0 || o.Node == node) && !o.Observed.Terminal() {
			return nil, "another task has its place"
		}
	}
	return old, ""
}

// inherit ends a task and makes its stand-in the next one of its place.
func inherit(old *cluster.Task, in agentapi.StandIn, now time.Time) (ended, heir *cluster.Task) {
	ended = cluster.Copy(old)
	// heritable has seen to it that the one is live and the other an end: this cannot be refused.
	_, _ = ended.Advance(in.For)
	created := in.Created // the node's clock may be off, and a successor is younger
	if created.After(now) {
		created = now
	}
	if !created.After(old.Created) {
		created = old.Created.Add(time.Nanosecond)
	}
	heir = &cluster.Task{
		Meta:  cluster.Meta{ID: in.Status.Task, Created: created},
		Stack: old.Stack, Service: old.Service, Revision: old.Revision, Node: old.Node, Slot: old.Slot, Address: old.Address,
		Desired: cluster.DesiredRun, Observed: cluster.ObservedAssigned, Failures: in.Failures, Replaces: old.ID,
	}
	_, _ = heir.Advance(in.Status)
	return ended, heir
}
