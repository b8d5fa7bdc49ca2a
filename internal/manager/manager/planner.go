package manager

import (
	"context"
	"time"

	"baton/client/api"
	"baton/internal/manager/control"
	"baton/internal/manager/store"
	"baton/internal/model/cluster"
)

// planner answers `plan` with the leader's own engine.
type planner struct{ seed uint64 }

// Preview implements server.Planner.
func (p planner) Preview(_ context.Context, fork *store.Store, stack cluster.ID) ([]api.Action, error) {
	return control.Preview(fork, stack, time.Now(), p.seed)
}

// Balance implements server.Planner.
func (p planner) Balance(_ context.Context, fork *store.Store, left bool) (api.Balance, error) {
	return control.PlanBalance(fork, time.Now(), left)
}

// Suspects implements server.Planner.
func (p planner) Suspects(snap store.Snapshot) map[cluster.ID]string {
	return control.Suspects(snap, time.Now())
}
