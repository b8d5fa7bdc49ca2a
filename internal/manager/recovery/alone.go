package recovery

import (
	"fmt"
	"time"

	"baton/internal/manager/store"
	"baton/internal/model/cluster"
)

// ahead is how far the versions of a cluster that goes on from an older state leap: further than those that were given out
// after that state and are lost.
const ahead = 1 << 32

// batchMax is how many nodes one transaction changes.
const batchMax = 1024

// Lone says how a state goes on with one manager.
type Lone struct {
	ID   cluster.ID // the manager's node
	Name string     // when it is a new node
	Now  time.Time
	// All says that none of the old nodes is known to be there, not the managers only.
	All bool
	// Why stands in the event that tells of it.
	Type, Why string
}

// Make changes a state so that the one manager can go on with it alone. The other managers become workers, and are down as
// are all other nodes with All, so that their tasks are started elsewhere. A node that comes back is heard and gets its
// state again.
func (l Lone) Make(s *store.Store) error {
	snap := s.Snapshot()
	at := snap.Version() + ahead
	var txns []store.Txn
	var t store.Txn
	here := false
	for n := range store.All[*cluster.Node](snap) {
		c := cluster.Copy(n)
		switch {
		case n.ID == l.ID:
			here, c.Manager = true, true
		case n.Manager || l.All:
			c.Manager, c.State, c.StateSince = false, cluster.NodeDown, l.Now
		default:
			continue
		}
		t.Put(c)
		if t.Len() >= batchMax {
			txns, t = append(txns, t), store.Txn{}
		}
	}
	if !here {
		if l.Name == "" {
			return fmt.Errorf("the state knows no node %s", l.ID)
		}
		if old, ok := snap.NodeByName(l.Name); ok {
			return fmt.Errorf("the cluster has a node %s already, %s: give another --name; the old node can be removed afterwards with `baton node rm %s`", l.Name, old.ID.Short(), l.Name)
		}
		t.Put(&cluster.Node{
			Meta: cluster.Meta{ID: l.ID, Created: l.Now}, Name: l.Name, Manager: true,
			Availability: cluster.NodeActive, State: cluster.NodeUnknown, StateSince: l.Now,
		})
	}
	t.Put(&cluster.Event{
		Meta: cluster.Meta{ID: cluster.NewID(nil), Created: l.Now}, At: l.Now, Type: l.Type, Message: l.Why, Node: l.ID, Who: "operator",
	})
	for _, errs := range s.ApplyEntries([]store.Entry{{At: at, Txns: append(txns, t)}}) {
		for _, err := range errs {
			if err != nil {
				return fmt.Errorf("make a cluster of one manager: %w", err)
			}
		}
	}
	return nil
}

// ClusterName is the name that the state's cluster has.
func ClusterName(s store.Snapshot) string {
	if settings, ok := s.Settings(); ok {
		return settings.Name
	}
	return ""
}
