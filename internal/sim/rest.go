package sim

import (
	"fmt"
	"strings"
	"time"

	"baton/internal/manager/control"
	"baton/internal/manager/store"
	"baton/internal/model/cluster"
	"baton/internal/node/agent"
)

func (w *World) traceTask(was, t *cluster.Task) {
	if w.cfg.Trace == nil {
		return
	}
	before := "new"
	if was != nil {
		before = fmt.Sprintf("%s/%s/%v", was.Desired, was.Observed, was.Ready)
	}
	w.tracef("    task %s of %s slot %d on %s: %s -> %s/%s/%v %s", t.ID.Short(), t.Service.Short(), t.Slot, w.nodeName(t.Node),
		before, t.Desired, t.Observed, t.Ready, t.Reason)
}

func (w *World) traceService(s *cluster.Service) {
	if w.cfg.Trace != nil {
		w.tracef("    service %s/%s (%s): replicas %d, removing %v, rollout %s %s, status %+v", s.StackName, s.Name, s.ID.Short(), s.Replicas, s.Removing,
			s.Rollout.State, s.Rollout.Reason, s.Status)
	}
}

func (w *World) nodeName(id cluster.ID) string {
	for _, n := range w.nodes {
		if n.id == id {
			return n.name
		}
	}
	return "no node"
}

// snapshotAt finds the state that an update was made from.
func (w *World) snapshotAt(v cluster.Version) (store.Snapshot, bool) {
	for i := len(w.followed) - 1; i >= 0; i-- {
		if w.followed[i].Version() == v {
			return w.followed[i], true
		}
	}
	return store.Snapshot{}, false
}

// restless says what is not at rest yet; empty: everything is as it is wanted, and nobody wants anything more.
func (w *World) restless() string {
	snap := w.store.Snapshot()
	for _, look := range []func(store.Snapshot) string{w.restlessNodes, w.restlessTasks, w.restlessServices, w.restlessStacks, w.restlessEngine} {
		if why := look(snap); why != "" {
			return why
		}
	}
	return ""
}

// restlessNodes: every agent is connected, every load balancer follows, every container is a running task.
func (w *World) restlessNodes(snap store.Snapshot) string {
	if len(w.followed) == 0 || w.followed[len(w.followed)-1].Version() != snap.Version() {
		return "the dispatcher is behind"
	}
	for _, n := range w.nodes {
		stored, ok := store.Get[*cluster.Node](snap, n.id)
		if !ok || stored.State != cluster.NodeReady || n.session == nil || !n.up {
			return n.name + " is not connected"
		}
	}
	if w.dispatcher.Acked() != snap.Version() {
		return fmt.Sprintf("acknowledged is %d", w.dispatcher.Acked())
	}
	for _, n := range w.nodes {
		if why := n.restless(snap); why != "" {
			return n.name + ": " + why
		}
	}
	return ""
}

func (n *node) restless(snap store.Snapshot) string {
	running := 0
	for t := range snap.TasksByNode(n.id) {
		if t.Observed != cluster.ObservedRunning {
			continue
		}
		running++
		c := n.containers[t.ID]
		if c == nil || c.state != agent.ContainerRunning {
			return "task " + t.ID.Short() + " is said to run and does not"
		}
	}
	if len(n.containers) != running {
		return fmt.Sprintf("has %d containers for %d running tasks", len(n.containers), running)
	}
	for _, id := range sortedIDs(n.attached) {
		if n.containers[id] == nil {
			return "task " + id.Short() + " left its network place behind"
		}
	}
	endpoints := 0
	for t := range store.All[*cluster.Task](snap) {
		if t.Endpoint() {
			endpoints++
			if !n.balanced[t.ID] {
				return "does not balance to task " + t.ID.Short()
			}
		}
	}
	if len(n.balanced) != endpoints {
		return fmt.Sprintf("balances to %d tasks of %d", len(n.balanced), endpoints)
	}
	return ""
}

// restlessTasks: desired = observed.
func (w *World) restlessTasks(snap store.Snapshot) string {
	for t := range store.All[*cluster.Task](snap) {
		switch {
		case t.Observed == cluster.ObservedPending && t.Desired == cluster.DesiredRun:
		case t.Observed.Terminal() && t.Desired == cluster.DesiredRemove:
		case t.Observed == cluster.ObservedRunning && t.Desired == cluster.DesiredRun && t.Ready:
		default:
			return fmt.Sprintf("task %s is wanted to %s, observed %s, ready %v", t.ID.Short(), t.Desired, t.Observed, t.Ready)
		}
	}
	return ""
}

// restlessServices: a service has what it wants, or says why it never will.
func (w *World) restlessServices(snap store.Snapshot) string {
	for s := range store.All[*cluster.Service](snap) {
		name := s.StackName + "/" + s.Name
		switch {
		case s.Removing:
			return name + " is being removed"
		case s.Status.Converged:
		case strings.Contains(s.Status.Waiting, "starts again"):
			return name + ": " + s.Status.Waiting
		case s.Rollout.State == cluster.RolloutPaused || s.Rollout.State == cluster.RolloutFailed:
		case s.Status.Waiting == "":
			return fmt.Sprintf("%s is not as wanted and does not say why: %+v, rollout %s", name, s.Status, s.Rollout.State)
		}
	}
	return ""
}

// restlessStacks: releases and removals have come to an end.
func (w *World) restlessStacks(snap store.Snapshot) string {
	for st := range store.All[*cluster.Stack](snap) {
		if st.Removing {
			return st.Name + " is being removed"
		}
		waiting := false
		for s := range snap.ServicesByStack(st.ID) {
			waiting = waiting || !s.Status.Converged
		}
		r, ok := store.Get[*cluster.Release](snap, st.Release)
		if !ok {
			return st.Name + " has no release"
		}
		if r.State == cluster.ReleaseDeploying && !waiting {
			return fmt.Sprintf("release %d of %s is still %s", r.Number, st.Name, r.State)
		}
	}
	for v := range store.All[*cluster.Volume](snap) {
		if v.Removing {
			return "volume " + v.Name + " is being removed"
		}
	}
	return ""
}

// restlessEngine: an engine that knows nothing but the store wants nothing, now or when it next wakes.
func (w *World) restlessEngine(snap store.Snapshot) string {
	fork := w.store.Fork()
	engine := control.NewEngine(w.ids, 1)
	cursor := fork.Changes(0, store.Filter{})
	defer cursor.Close()
	if err := engine.Merge(cursor.Collect()); err != nil {
		return err.Error()
	}
	for _, at := range []time.Time{w.now, engine.WakeAt()} {
		if at.IsZero() || at.Sub(w.now) > rest {
			continue
		}
		d, ok, err := engine.Next(at, snap.Version())
		if err != nil {
			return err.Error()
		}
		if ok && !onlyWords(fork, d) {
			return fmt.Sprintf("a new engine would decide on %s (%d operations)", d.About, d.Txn.Len())
		}
	}
	return ""
}

// onlyWords reports whether a decision only says anew why a task finds no place: how much is free elsewhere changes without
// the task being looked at.
func onlyWords(fork *store.Store, d control.Decision) bool {
	before := fork.Snapshot()
	if fork.Apply(before.Version()+1, []store.Txn{d.Txn})[0] != nil {
		return false
	}
	after := fork.Snapshot()
	pending := before.TaskCount(cluster.ObservedPending)
	return pending > 0 && after.TaskCount(cluster.ObservedPending) == pending &&
		after.Count(cluster.KindTask) == before.Count(cluster.KindTask) && after.Count(cluster.KindEvent) == before.Count(cluster.KindEvent)
}
