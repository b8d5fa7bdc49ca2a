package manager

import (
	"context"
	"errors"
	"slices"
	"time"

	"baton/internal/manager/consensus"
	"baton/internal/manager/store"
	"baton/internal/model/cluster"
	"baton/internal/wire/agentapi"
)

const (
	followEvery = 250 * time.Millisecond
	// behindMax is how many entries a new manager may be behind and get its vote all the same: it catches up in less than a
	// heartbeat.
	behindMax = 256
)

// follow makes the log's members and the authority follow the store, through one term of leadership.
func (m *Manager) follow(ctx context.Context) {
	tick := time.NewTicker(followEvery)
	defer tick.Stop()
	said := ""
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		err := errors.Join(m.followMembers(ctx), m.followAuthority(ctx), m.followLevel(ctx))
		if err == nil || ctx.Err() != nil {
			said = ""
			continue
		}
		if err.Error() != said { // it is tried again four times a second
			said = err.Error()
			m.cfg.Logger.Warn("the managers do not follow yet", "err", err)
		}
	}
}

// followMembers takes one step towards the managers that are stored: a new one is added without a vote, gets its vote when
// it has the log, and one that is to go is removed. A leader that is to go hands over first.
func (m *Manager) followMembers(ctx context.Context) error {
	members, err := m.raft.Members()
	if err != nil {
		return err
	}
	wanted := make(map[string]bool)
	for n := range store.All[*cluster.Node](m.store.Snapshot()) {
		if n.Manager {
			wanted[n.ID.String()] = true
		}
	}
	self := m.cfg.NodeID.String()
	for _, have := range members {
		switch {
		case !wanted[have.ID] && have.ID == self:
			return m.raft.Transfer(ctx, "")
		case !wanted[have.ID]:
			return m.raft.Remove(ctx, have.ID)
		case !have.Voter:
			st, _, err := call[statusOut](ctx, m.peers, have.ID, callStatus, agentapi.Empty{})
			if err == nil && st.Last+behindMax >= m.raft.Status().Last {
				return m.raft.Promote(ctx, have.ID)
			}
		}
	}
	for id := range wanted {
		if !slices.ContainsFunc(members, func(h consensus.Member) bool { return h.ID == id }) {
			return m.raft.Add(ctx, id)
		}
	}
	return nil
}

// followAuthority takes a rotation of the authority one step further once all nodes have taken the last one.
func (m *Manager) followAuthority(ctx context.Context) error {
	snap := m.store.Snapshot()
	stored, ok := store.Get[*cluster.Authority](snap, cluster.AuthorityID)
	if !ok || stored.Next == nil && len(stored.Roots) == 1 {
		return nil
	}
	next := m.keeper.Step(stored, slices.Collect(store.All[*cluster.Node](snap)), time.Now())
	if next == nil {
		return nil
	}
	var t store.Txn
	t.Put(next)
	if _, err := m.raft.Propose(ctx, t); err != nil && !errors.Is(err, store.ErrConflict) {
		return err
	}
	return nil
}
