package control

import (
	"fmt"
	"time"

	"baton/client/api"
	"baton/internal/manager/store"
	"baton/internal/model/cluster"
	"baton/internal/plan/schedule"
)

const (
	planMax  = 200     // moves of one answer
	planWork = 500_000 // nodes times services times moves that are looked at for it, about: in a large cluster it has the first moves only
)

// PlanBalance answers which moves would even out the load, one after the other, and how many are under way. With left, it is
// what is left of the moves that somebody asked for last; else what there would be to do if somebody asked now.
func PlanBalance(fork *store.Store, now time.Time, left bool) (api.Balance, error) {
	engine := NewEngine(nil, 1)
	cursor := fork.Changes(0, store.Filter{})
	defer cursor.Close()
	if err := engine.Merge(cursor.Collect()); err != nil {
		return api.Balance{}, err
	}
	asked := now
	if left {
		asked = engine.asked(now)
	}
	var groups []schedule.Group
	for s := range store.All[*cluster.Service](engine.snap) {
		if g, at, ok := engine.calm(s, now, asked); ok && !at.After(now) {
			groups = append(groups, g)
		}
	}
	nodes := max(1, engine.view.Len())
	groups = groups[:min(len(groups), max(1, planWork/nodes))]
	count := min(planMax, max(balanceInCluster, planWork/nodes/max(1, len(groups))))
	limits := schedule.RebalanceLimits{PerService: count, Cluster: count, Steady: balanceSteady, Asked: asked}
	out := api.Balance{UnderWay: engine.movesUnderWay(), Moves: []api.Move{}}
	for _, m := range schedule.Rebalance(engine.view, groups, limits) {
		out.Moves = append(out.Moves, api.Move{
			Task: fmt.Sprintf("%s/%s/%d", m.Service.StackName, m.Service.Name, m.Task.Slot), ID: m.Task.ID,
			From: engine.nodesByID()[m.From].Name, To: engine.nodesByID()[m.To].Name, Reason: m.Reason,
		})
	}
	return out, nil
}

// Suspects says why tasks of every service are placed elsewhere, by node, from the failures that are stored.
func Suspects(snap store.Snapshot, now time.Time) map[cluster.ID]string {
	view := schedule.NewView()
	for _, state := range []cluster.Observed{cluster.ObservedFailed, cluster.ObservedRejected} {
		for t := range snap.TasksByState(state) {
			view.PutTask(t, nil)
		}
	}
	for n := range store.All[*cluster.Node](snap) {
		view.PutNode(n)
	}
	out := make(map[cluster.ID]string)
	for _, s := range view.Suspects(now) {
		out[s.Node] = s.String()
	}
	return out
}
