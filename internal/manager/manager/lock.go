package manager

import (
	"context"
	"time"

	"baton/internal/manager/identity"
	"baton/internal/manager/store"
	"baton/internal/model/cluster"
)

// lockRetry is the pause after a sealing key could not be locked, or its lock not be taken off.
const lockRetry = 5 * time.Second

// openSealer reads the sealing key, locked or not.
func openSealer(dir string, unlock []byte) (*identity.Sealer, error) {
	is, err := identity.Locked(dir)
	if err == nil && is && len(unlock) > 0 {
		return identity.Unlock(dir, unlock)
	}
	if err != nil {
		return nil, err
	}
	return identity.OpenSealer(dir)
}

// watchLock keeps the sealing key on this manager's disk as the settings say: locked or in clear.
func (m *Manager) watchLock(ctx context.Context) {
	cursor := m.store.Changes(0, store.Filter{Kinds: []cluster.Kind{cluster.KindSettings}})
	defer cursor.Close()
	var again <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case <-cursor.Wait():
			cursor.Collect()
		case <-again:
		}
		again = nil
		settings, ok := m.store.Snapshot().Settings()
		if !ok {
			continue
		}
		if err := m.followLock(settings); err != nil {
			m.cfg.Logger.Error("the sealing key on disk does not follow the cluster's lock", "err", err)
			again = time.After(lockRetry)
		}
	}
}

func (m *Manager) followLock(settings *cluster.Settings) error {
	var unlock []byte
	if len(settings.Unlock) > 0 {
		var err error
		if unlock, err = m.sealer.Open(settings.Unlock, cluster.KindSettings, cluster.SettingsID); err != nil {
			return err
		}
	}
	return m.sealer.Lock(m.cfg.Dir, unlock)
}
