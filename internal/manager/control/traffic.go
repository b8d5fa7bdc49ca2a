package control

import (
	"fmt"
	"time"

	"baton/internal/manager/stacks"
	"baton/internal/model/cluster"
	"baton/internal/plan/release"
)

// Counts tells what became of the requests of services.
type Counts interface {
	// Requested is what became of those of a service between two times, and why it may not be all.
	Requested(service cluster.ID, from, to time.Time) (cluster.Requested, string)
	// Lag is how long after it happened something is known for sure.
	Lag() time.Duration
}

// countMax is how long after its end a release is still counted: what was measured is forgotten some time.
const countMax = 5 * time.Minute

// countReleases writes what clients had of the releases that have ended, once all of it is known.
func (e *Engine) countReleases(d *Decision, st *cluster.Stack, written map[cluster.ID]bool, now time.Time) {
	counts := e.scaler.sources.Counts
	settings, ok := e.snap.Settings()
	if counts == nil || !ok || settings.Level.Or() < cluster.LevelTraffic {
		return
	}
	view := stacks.View{Snap: e.snap}
	for r := range e.snap.ReleasesByStack(st.ID) {
		if written[r.ID] || r.Traffic != nil || !release.Ended(r) || now.Sub(r.Ended) > countMax {
			continue
		}
		changed := release.Changed(view, r)
		if len(changed) == 0 {
			continue
		}
		// What happened up to the end is told up to Lag later, and counts when it is told.
		to := r.Ended.Add(counts.Lag())
		if now.Before(to) {
			if d.wake.IsZero() || to.Before(d.wake) {
				d.wake = to
			}
			continue
		}
		c := cluster.Copy(r)
		c.Traffic = release.Count(r, changed, to, counts.Requested)
		d.Txn.Put(c)
		d.Txn.Put(&cluster.Event{
			Meta: cluster.Meta{ID: e.newID(), Created: now}, At: now, Type: release.WhyCounted, Who: "planner", Stack: st.ID, Release: r.ID,
			Message: fmt.Sprintf("release %d: ", r.Number) + release.CountText(c.Traffic),
		})
	}
}

// written are the objects that a transaction writes or deletes already.
func written(list ...[]cluster.Object) map[cluster.ID]bool {
	out := make(map[cluster.ID]bool)
	for _, l := range list {
		for _, o := range l {
			out[o.GetMeta().ID] = true
		}
	}
	return out
}
