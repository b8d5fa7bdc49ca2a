package dispatch

import (
	"context"
	"fmt"
	"slices"
	"sync"

	"baton/internal/manager/store"
	"baton/internal/model/cluster"
	"baton/internal/wire/agentapi"
)

func errGone(what string, id cluster.ID) error {
	return fmt.Errorf("%s (%s) is not in the store any more", what, id.Short())
}

// write turns reports into transactions. Those that came in meanwhile are written together, one transaction per task, so
// that a conflict on one does not hold up the others; the log commits them as a group.
func (d *Dispatcher) write(ctx context.Context) {
	for {
		var first nodeReport
		select {
		case <-ctx.Done():
			return
		case first = <-d.reports:
		}
		d.writeAll(ctx, d.split(d.waiting([]nodeReport{first})))
	}
}

// WriteReports writes the reports that wait, one after another; it never blocks on more. It is for callers without Run.
func (d *Dispatcher) WriteReports(ctx context.Context) {
	for _, r := range d.split(d.waiting(nil)) {
		d.finish(ctx, r)
	}
}

// waiting adds the reports that wait to batch.
func (d *Dispatcher) waiting(batch []nodeReport) []nodeReport {
	for len(batch) < reportsMax {
		select {
		case r := <-d.reports:
			batch = append(batch, r)
		default:
			return batch
		}
	}
	return batch
}

// writing is one transaction's worth of a report.
type writing struct {
	session *Session
	do      func(context.Context) error
}

// split makes what is to be written of a batch: of each task the furthest status, the newest of equal ones.
func (d *Dispatcher) split(batch []nodeReport) []writing {
	latest := make(map[cluster.ID]nodeReport) // task → the report that has its newest status
	var order []cluster.ID
	status := make(map[cluster.ID]cluster.Status)
	var work []writing
	newest := make(map[*Session]*agentapi.PreparedImages)
	for _, r := range batch {
		if r.report.Prepared != nil {
			newest[r.session] = r.report.Prepared
		}
	}
	for _, r := range batch {
		for _, st := range r.report.StandIns {
			work = append(work, writing{r.session, func(ctx context.Context) error { return d.takeOver(ctx, r.session, st) }})
		}
		for _, s := range r.report.Tasks {
			if old, ok := status[s.Task]; !ok {
				order = append(order, s.Task)
			} else if s.Observed < old.Observed {
				continue // told again, late
			}
			latest[s.Task], status[s.Task] = r, s
		}
		if later := newest[r.session]; r.report.Prepared != nil && later != nil {
			r.report.Prepared = later
			delete(newest, r.session)
		} else {
			r.report.Prepared = nil // told anew, and what is written together is written in any order
		}
		if r.report.Description != nil || len(r.report.VolumesRemoved) > 0 || len(r.report.Notes) > 0 || r.report.Prepared != nil {
			work = append(work, writing{r.session, func(ctx context.Context) error { return d.writeNode(ctx, r) }})
		}
	}
	for _, id := range order {
		r, s := latest[id], status[id]
		work = append(work, writing{r.session, func(ctx context.Context) error { return d.writeStatus(ctx, r.node, s) }})
	}
	return work
}

func (d *Dispatcher) writeAll(ctx context.Context, work []writing) {
	var wg sync.WaitGroup
	slots := make(chan struct{}, proposeMax)
	for _, w := range work {
		slots <- struct{}{}
		wg.Add(1)
		go func() {
			defer wg.Done()
			defer func() { <-slots }()
			d.finish(ctx, w)
		}()
	}
	wg.Wait()
}

// finish writes and, when that does not work, ends the session: the agent connects anew and tells everything again.
func (d *Dispatcher) finish(ctx context.Context, w writing) {
	if err := w.do(ctx); err != nil && ctx.Err() == nil {
		d.cfg.Logger.Error("report not written; its node is to report anew", "node", w.session.node, "err", err)
		w.session.end()
	}
}

// writeStatus moves one task forward.
func (d *Dispatcher) writeStatus(ctx context.Context, node cluster.ID, s cluster.Status) error {
	return d.retry(ctx, func(snap store.Snapshot) (store.Txn, error) {
		var t store.Txn
		old, ok := store.Get[*cluster.Task](snap, s.Task)
		if !ok || old.Node != node {
			return t, nil // forgotten meanwhile, or never this node's
		}
		task := cluster.Copy(old)
		changed, err := task.Advance(s)
		if err != nil {
			d.cfg.Logger.Debug("status dropped", "err", err)
		}
		if !changed {
			return t, nil
		}
		t.Put(task)
		if kind, message := transition(old, task); kind != "" {
			t.Put(d.event(d.cfg.Now(), kind, message, func(e *cluster.Event) {
				e.Task, e.Service, e.Stack, e.Node, e.Slot = task.ID, task.Service, task.Stack, task.Node, task.Slot
			}))
		}
		return t, nil
	})
}

// transition names the event of a task's move, if a user would care.
func transition(old, task *cluster.Task) (kind, message string) {
	switch {
	case old.Observed != task.Observed && task.Observed == cluster.ObservedFailed:
		return "task.failed", task.Reason
	case old.Observed != task.Observed && task.Observed == cluster.ObservedRejected:
		return "task.rejected", task.Reason
	case old.Observed != task.Observed && task.Observed == cluster.ObservedComplete:
		if task.Exit != nil {
			return "task.complete", fmt.Sprintf("ended with exit code %d", task.Exit.Code)
		}
		return "task.complete", "ended before its process ran"
	case !old.Ready && task.Ready:
		return "task.ready", "ready: it gets traffic"
	case old.Ready && !task.Ready && task.Desired == cluster.DesiredRun && task.Observed == cluster.ObservedRunning:
		return "task.not-ready", task.Reason
	}
	return "", ""
}

// writeNode writes what is not a task's status.
func (d *Dispatcher) writeNode(ctx context.Context, r nodeReport) error {
	return d.retry(ctx, func(snap store.Snapshot) (store.Txn, error) {
		var t store.Txn
		desc, images := r.report.Description, r.report.Prepared
		if old, ok := store.Get[*cluster.Node](snap, r.node); ok && (desc != nil || images != nil) {
			n := cluster.Copy(old)
			if desc != nil {
				describe(n, *desc)
			}
			if images != nil {
				d.preparedEvents(&t, snap, old, images.Images)
				n.Prepared = images.Images
			}
			if desc != nil || !slices.EqualFunc(n.Prepared, old.Prepared, samePrepared) {
				t.Put(n)
			}
		}
		for vol := range store.All[*cluster.Volume](snap) {
			if !goesFrom(vol, r.node) || !slices.Contains(r.report.VolumesRemoved, vol.Name) {
				continue
			}
			if i := slices.Index(vol.Abandoned, r.node); i >= 0 {
				c := cluster.Copy(vol)
				c.Abandoned = slices.Delete(c.Abandoned, i, i+1)
				t.Put(c)
				t.Put(d.event(d.cfg.Now(), "volume.cleaned", "what node "+r.node.Short()+" still had of volume "+vol.Name+" was deleted", func(e *cluster.Event) {
					e.Stack, e.Node = vol.Stack, r.node
				}))
			} else {
				t.Delete(vol)
				t.Put(d.event(d.cfg.Now(), "volume.removed", "volume "+vol.Name+" was removed", func(e *cluster.Event) {
					e.Stack, e.Node = vol.Stack, r.node
				}))
			}
		}
		for _, n := range r.report.Notes {
			t.Put(d.noteEvent(snap, r.node, n))
		}
		return t, nil
	})
}

func (d *Dispatcher) noteEvent(snap store.Snapshot, node cluster.ID, n agentapi.Note) *cluster.Event {
	return d.event(n.At, n.Type, n.Message, func(e *cluster.Event) {
		e.Node = node
		if task, ok := store.Get[*cluster.Task](snap, n.Task); ok {
			e.Task, e.Service, e.Stack, e.Slot = task.ID, task.Service, task.Stack, task.Slot
		}
	})
}
