package server

import (
	"context"
	"net/http"
	"time"

	"baton/client/api"
	"baton/internal/manager/store"
	"baton/internal/model/cluster"
)

func (s *Server) balanceRoutes() {
	type leftIn struct {
		Left bool `query:"left" doc:"what is left of the moves that were asked for last, instead of what there would be to do"`
	}
	handle(s, operation{method: http.MethodGet, path: "/v1/balance", id: "planBalance", summary: "Which tasks would be moved to even out the load of the nodes, and why", tag: "nodes"},
		func(ctx context.Context, in *leftIn) (api.Balance, error) { return s.planBalance(ctx, in.Left) })
	handle(s, operation{method: http.MethodPost, path: "/v1/balance", id: "rebalance", summary: "Move tasks now to even out the load of the nodes; returns at once", tag: "nodes"},
		func(ctx context.Context, _ *none) (api.Balance, error) { return s.rebalance(ctx) })
}

func (s *Server) planBalance(ctx context.Context, left bool) (api.Balance, error) {
	if s.cfg.Planner == nil {
		return api.Balance{}, api.Errorf(api.CodeUnsupported, "this server plans nothing")
	}
	return s.cfg.Planner.Balance(ctx, s.cfg.Store.Fork(), left)
}

// rebalance notes that somebody asked; the control loops do the rest.
func (s *Server) rebalance(ctx context.Context) (api.Balance, error) {
	err := s.retry(ctx, func(snap store.Snapshot, now time.Time) (store.Txn, error) {
		var txn store.Txn
		settings, ok := snap.Settings()
		if !ok {
			return txn, api.Errorf(api.CodeUnavailable, "the cluster is not founded yet").WithMend("try again in a moment")
		}
		c := cluster.Copy(settings)
		c.RebalanceAt = now
		txn.Put(c)
		s.event(&txn, now, "cluster.rebalancing", "tasks are moved to even out the load of the nodes", func(*cluster.Event) {})
		return txn, nil
	}, func(store.Version) {})
	if err != nil {
		return api.Balance{}, err
	}
	return s.planBalance(ctx, true)
}

// suspects says, by node, why tasks are placed elsewhere.
func (s *Server) suspects(snap store.Snapshot) map[cluster.ID]string {
	if s.cfg.Planner == nil {
		return nil
	}
	return s.cfg.Planner.Suspects(snap)
}
