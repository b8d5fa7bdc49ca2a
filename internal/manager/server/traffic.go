package server

import (
	"time"

	"baton/client/api"
	"baton/internal/manager/measure"
	"baton/internal/manager/stacks"
	"baton/internal/manager/store"
	"baton/internal/model/cluster"
	"baton/internal/plan/release"
)

// countWait is how long after the end of a release its count is waited for; a leader that is lost meanwhile is made good by the next one.
const countWait = measure.Lag + 20*time.Second

// addTraffic adds what clients had of a release: as it was counted, or as far as it is known now.
func (s *Server) addTraffic(snap store.Snapshot, id cluster.ID, out *api.Release) {
	rel, ok := store.Get[*cluster.Release](snap, id)
	if !ok {
		return
	}
	if rel.Traffic != nil {
		out.Traffic = trafficDoc(rel.Traffic)
		return
	}
	settings, ok := snap.Settings()
	now := s.cfg.Now()
	if !ok || settings.Level.Or() < cluster.LevelTraffic || s.cfg.Measures == nil || release.Ended(rel) && now.Sub(rel.Ended) > countWait {
		return
	}
	changed := release.Changed(stacks.View{Snap: snap}, rel)
	if len(changed) == 0 {
		return
	}
	out.Traffic = trafficDoc(release.Count(rel, changed, now, func(id cluster.ID, from, to time.Time) (cluster.Requested, string) {
		return s.cfg.Measures.Window(id, from, to).Requested(), ""
	}))
	out.Traffic.Counting = true
}

func trafficDoc(t *cluster.Traffic) *api.ReleaseTraffic {
	return &api.ReleaseTraffic{Traffic: *t, Failed: t.Failed(), Text: release.CountText(t)}
}
