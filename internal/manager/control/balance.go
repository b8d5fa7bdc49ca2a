package control

import (
	"fmt"
	"slices"
	"time"

	"baton/internal/manager/stacks"
	"baton/internal/manager/store"
	"baton/internal/model/cluster"
	"baton/internal/model/spec"
	"baton/internal/plan/schedule"
)

// The budget of moves that only even out the load.
const (
	balancePerService = 1                // under way at once in a service
	balanceInCluster  = 3                // and in the cluster
	balanceSteady     = time.Minute      // for so long the new node, and every task of the service, must have been ready
	balanceCoolDown   = 10 * time.Minute // before a slot is moved again, also after a move that failed
	balanceEvery      = 5 * time.Second  // look at most so often
	balanceLook       = 100              // services looked at each time, in turn; fewer in a large cluster
	balanceWork       = 20_000           // nodes times services looked at each time: the loop has other things to do
	balanceAsked      = time.Hour        // for so long nothing need be steady or cool down that was there when somebody asked
)

// balance is the engine's book of moves that even out the load.
type balance struct {
	on    bool
	moved map[cluster.ID]bool // live tasks that were moved
	next  time.Time           // not before
	from  cluster.ID          // the service to begin with; zero: a new round
	again bool                // something changed since the round began
}

// Balance makes the engine even out the load by moving tasks that run. Without it, as in a preview, they stay.
func (e *Engine) Balance() { e.balance.on = true }

func (b *balance) follow(t *cluster.Task) {
	if t.Moved && !t.Observed.Terminal() {
		b.moved[t.ID] = true
		return
	}
	delete(b.moved, t.ID)
}

func (e *Engine) markBalance() {
	if e.balance.on {
		e.balance.again = true
		e.mark(cluster.KindSettings, cluster.SettingsID)
	}
}

// movesUnderWay counts the moves whose older task has not ended yet.
func (e *Engine) movesUnderWay() int {
	n := 0
	for id := range e.balance.moved {
		if t, ok := store.Get[*cluster.Task](e.snap, id); ok {
			if old, ok := store.Get[*cluster.Task](e.snap, t.Replaces); ok && !old.Observed.Terminal() {
				n++
			}
		}
	}
	return n
}

// decideBalance starts the next moves that the budget allows: the new task of each, on its node. The older one goes when
// that is ready, as package reconcile plans it.
func (e *Engine) decideBalance(now time.Time) (Decision, error) {
	d := Decision{About: "balance"}
	b := &e.balance
	if now.Before(b.next) {
		d.wake = b.next
		return d, nil
	}
	b.next = now.Add(balanceEvery)
	asked := e.asked(now)
	limits := schedule.RebalanceLimits{PerService: balancePerService, Cluster: balanceInCluster - e.movesUnderWay(), Steady: balanceSteady, Asked: asked}
	if limits.Cluster <= 0 || e.view.Len() < 2 {
		return d, nil // the end of a move marks this again
	}
	due, later, more := e.movable(now, asked)
	moves := schedule.Rebalance(e.view, due, limits)
	for _, m := range moves {
		if err := e.startMove(&d, m, now); err != nil {
			return d, err
		}
	}
	// What time alone makes possible: nodes and tasks that must be steady for longer, slots that cool down.
	limits.Steady = 0
	if more || len(moves) > 0 || len(schedule.Rebalance(e.view, append(due, later...), limits)) > 0 {
		d.wake = b.next
	}
	return d, nil
}

// asked is when somebody asked for moves; zero when that is long ago.
func (e *Engine) asked(now time.Time) time.Time {
	settings, ok := e.snap.Settings()
	if !ok || now.Sub(settings.RebalanceAt) > balanceAsked {
		return time.Time{}
	}
	return settings.RebalanceAt
}

// movable gathers the next services whose tasks may be moved now, and those that may be moved later when nothing happens.
// more is true until all services were looked at since something changed last.
func (e *Engine) movable(now, asked time.Time) (due, later []schedule.Group, more bool) {
	b, looked := &e.balance, 0
	limit := min(balanceLook, max(1, balanceWork/max(1, e.view.Len())))
	if b.from.IsZero() {
		b.again = false
	}
	for s := range store.All[*cluster.Service](e.snap) {
		if before(s.ID, b.from) {
			continue
		}
		if looked++; looked > limit {
			b.from = s.ID
			return due, later, true
		}
		group, at, ok := e.calm(s, now, asked)
		switch {
		case ok && !at.After(now):
			due = append(due, group)
		case ok:
			later = append(later, group)
		}
	}
	more = b.again && !b.from.IsZero() // the first ones were looked at before that
	b.from = cluster.ID{}
	return due, later, more
}

func before(a, b cluster.ID) bool { return string(a[:]) < string(b[:]) }

// stays reports whether the tasks of a revision are not to be moved: the node has something that they would miss, their
// replacement would be an outage, or they do work that another task would have to do again.
func (e *Engine) stays(rev *cluster.Revision) bool {
	sp := &rev.Spec
	keeps := func(m spec.Mount) bool { return m.Kind != spec.MountTmpfs }
	return sp.Mode != spec.Replicated || sp.Update.Order == spec.StopFirst || sp.Restart.Condition != spec.RestartAny ||
		slices.ContainsFunc(sp.Mounts, keeps) || stacks.Exclusive(e.snap, rev)
}

// calm reports whether the tasks of a service may be moved, which, and from when on: it keeps nothing on a node, replaces
// start-first, is as it is wanted, and nothing else goes on in it. What somebody asked for waits for no task to be steady that
// was ready then or was moved since, and for no slot to cool down that was moved before.
func (e *Engine) calm(s *cluster.Service, now, asked time.Time) (g schedule.Group, at time.Time, ok bool) {
	rev, found := store.Get[*cluster.Revision](e.snap, s.Revision)
	if !found || s.Removing || !s.Status.Converged || s.Rollout.State != cluster.RolloutCompleted || s.Rollout.To != s.Revision {
		return g, at, false
	}
	if e.stays(rev) {
		return g, at, false
	}
	g = schedule.Group{Service: s, Revision: rev, Now: now}
	cooling := make(map[int]time.Time)
	var live []*cluster.Task
	for t := range e.snap.TasksByService(s.ID) {
		if t.Moved && t.Created.After(asked) && t.Created.Add(balanceCoolDown).After(now) {
			cooling[t.Slot] = t.Created.Add(balanceCoolDown)
		}
		if t.Observed.Terminal() {
			if t.StopSince.IsZero() && t.DrainSince.IsZero() {
				at = latest(at, t.Ended.Add(balanceSteady))
			}
			continue
		}
		node := e.nodesByID()[t.Node]
		if !t.Endpoint() || node == nil || node.State != cluster.NodeReady || node.Availability == cluster.NodeDrain || t.Revision != s.Revision {
			return g, at, false
		}
		if byAsking := t.Moved && !asked.IsZero(); t.ReadySince.After(asked) && !byAsking {
			at = latest(at, t.ReadySince.Add(balanceSteady))
		}
		live = append(live, t)
	}
	if len(live) != s.Replicas {
		return g, at, false
	}
	var cooled time.Time
	for _, t := range live {
		if until, cools := cooling[t.Slot]; cools {
			cooled = until
			continue
		}
		g.Tasks = append(g.Tasks, t)
	}
	if len(g.Tasks) == 0 && len(live) > 0 { // all of them cool down
		g.Tasks, at = live, latest(at, cooled)
	}
	return g, at, true
}

func latest(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

// startMove makes the task that is to take over.
func (e *Engine) startMove(d *Decision, m schedule.Move, now time.Time) error {
	t := &cluster.Task{
		Meta:  cluster.Meta{ID: e.newID(), Created: now},
		Stack: m.Task.Stack, Service: m.Task.Service, Revision: m.Task.Revision, Slot: m.Task.Slot, Node: m.To,
		Desired: cluster.DesiredRun, Observed: cluster.ObservedAssigned, Replaces: m.Task.ID, Moved: true,
	}
	w := serviceWriter{engine: e, decision: d, service: m.Service, now: now}
	if err := w.place([]*cluster.Task{t}); err != nil {
		return err
	}
	if t.Observed != cluster.ObservedAssigned {
		return nil // no address is left there
	}
	d.Txn.Put(t)
	from := e.nodesByID()[m.From]
	w.event("task.moved", fmt.Sprintf("moved from %s: %s", from.Name, m.Reason), func(ev *cluster.Event) {
		ev.Task, ev.Node, ev.Slot = t.ID, t.Node, t.Slot
	})
	return nil
}
