package control

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"baton/internal/manager/store"
	"baton/internal/model/cluster"
	"baton/internal/wire/agentapi"
)

// Attendance tells when a node was heard last, or when this leader began if that is later; known says which.
type Attendance interface {
	Heard(node cluster.ID) (at time.Time, known bool)
}

// Patience is how long a node may be silent. Zero fields mean the defaults.
type Patience struct {
	Unknown time.Duration // until its endpoints leave the load balancers; default 3 s
	Down    time.Duration // until all its tasks count as lost; default 15 s
}

const (
	unknownDefault = 3 * time.Second
	downDefault    = agentapi.DownMin
	livenessEvery  = 250 * time.Millisecond
)

// Liveness is the leader's judgement of which nodes are there.
type Liveness struct {
	Store      *store.Store
	Log        Proposer
	Attendance Attendance
	Patience   Patience
	Logger     *slog.Logger
}

// Run judges the nodes through one term of leadership, until ctx ends.
func (l Liveness) Run(ctx context.Context) {
	if l.Patience.Unknown == 0 {
		l.Patience.Unknown = unknownDefault
	}
	if l.Patience.Down == 0 {
		l.Patience.Down = downDefault
	}
	tick := time.NewTicker(livenessEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		snap := l.Store.Snapshot()
		for n := range store.All[*cluster.Node](snap) {
			if err := l.judge(ctx, n); err != nil && ctx.Err() == nil && !errors.Is(err, store.ErrConflict) {
				l.Logger.Warn("the state of a node could not be written", "of", n.Name, "err", err)
			}
		}
	}
}

// judge writes a node's state when it has changed.
func (l Liveness) judge(ctx context.Context, n *cluster.Node) error {
	now := time.Now()
	heard, known := l.Attendance.Heard(n.ID)
	state, why := l.Patience.state(n, now.Sub(heard), known)
	if state == n.State {
		return nil
	}
	c := cluster.Copy(n)
	c.State, c.StateSince = state, now
	var t store.Txn
	t.Put(c)
	t.Put(&cluster.Event{
		Meta: cluster.Meta{ID: cluster.NewID(nil), Created: now}, At: now, Type: "node." + string(state), Message: why, Node: n.ID, Who: "leader",
	})
	_, err := l.Log.Propose(ctx, t)
	return err
}

// state is what a node is after so long a silence; known says that it was heard since this leader began. A node that never
// connected cannot go down.
func (p Patience) state(n *cluster.Node, silent time.Duration, known bool) (cluster.NodeState, string) {
	told := silent.Round(time.Second / 10)
	switch {
	case silent >= p.Down && n.Description.Version != "":
		return cluster.NodeDown, fmt.Sprintf("silent for %s: its tasks count as lost", told)
	case silent >= p.Unknown && n.State == cluster.NodeReady:
		return cluster.NodeUnknown, fmt.Sprintf("silent for %s: its endpoints are out, its tasks are replaced unless it is back soon", told)
	case silent < p.Unknown && known:
		return cluster.NodeReady, "heard again"
	}
	return n.State, ""
}
