package manager

import (
	"context"
	"errors"
	"fmt"
	"time"

	"baton/internal/manager/store"
	"baton/internal/model/cluster"
)

// followLevel raises the cluster's feature level once every node knows a higher one. It goes up one level at a time.
func (m *Manager) followLevel(ctx context.Context) error {
	snap := m.store.Snapshot()
	settings, ok := snap.Settings()
	if !ok {
		return nil
	}
	next := settings.Level.Or() + 1
	if next > cluster.LevelNewest() || len(cluster.Behind(store.All[*cluster.Node](snap), next)) > 0 {
		return nil
	}
	var t store.Txn
	for n := range store.All[*cluster.Node](snap) {
		t.Check(n) // one that comes back with an older version in this moment
	}
	c := cluster.Copy(settings)
	c.Level = next
	t.Put(c)
	now := time.Now()
	t.Put(&cluster.Event{
		Meta: cluster.Meta{ID: cluster.NewID(nil), Created: now}, At: now, Type: "cluster.level", Who: "leader",
		Message: fmt.Sprintf("all nodes know feature level %d: it is in use now, and older versions are refused", next),
	})
	if _, err := m.raft.Propose(ctx, t); err != nil && !errors.Is(err, store.ErrConflict) {
		return err
	}
	return nil
}

// watchLevel ends a manager whose version does not know the cluster's feature level, before it does harm to what it cannot read.
func (m *Manager) watchLevel(ctx context.Context) error {
	cursor := m.store.Changes(0, store.Filter{Kinds: []cluster.Kind{cluster.KindSettings}})
	defer cursor.Close()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-cursor.Wait():
		}
		cursor.Collect()
		settings, _ := m.store.Snapshot().Settings()
		if err := settings.Admit(cluster.LevelNewest()); err != nil {
			return err
		}
	}
}
