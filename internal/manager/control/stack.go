package control

import (
	"maps"
	"slices"
	"time"

	"baton/internal/manager/stacks"
	"baton/internal/manager/store"
	"baton/internal/model/cluster"
	"baton/internal/plan/release"
)

const (
	// eventsMax is how many events are kept; the oldest go first.
	eventsMax = 20000
	// eventsSlack is how many more may gather before they are removed together.
	eventsSlack = 500
)

// decideStack ends or rolls back the stack's release, and removes the stack once its last service is gone.
func (e *Engine) decideStack(id cluster.ID, now time.Time) (Decision, error) {
	d := Decision{About: "stack " + id.Short()}
	st, ok := store.Get[*cluster.Stack](e.snap, id)
	if !ok {
		return d, nil
	}
	d.About = "stack " + st.Name
	if st.Removing {
		e.removeStack(&d, st, now)
		return d, nil
	}
	p := release.Progress(release.ProgressInput{View: stacks.View{Snap: e.snap}, Stack: st, IDs: e.newID, Now: now})
	for _, o := range p.Put {
		d.Txn.Put(o)
	}
	for _, o := range p.Delete {
		d.Txn.Delete(o)
	}
	for _, why := range p.Why {
		d.Txn.Put(&cluster.Event{
			Meta: cluster.Meta{ID: e.newID(), Created: now}, At: now, Type: why.Type, Message: why.Message, Who: "planner",
			Stack: id, Release: why.Release, Service: why.Service,
		})
	}
	e.countReleases(&d, st, written(p.Put, p.Delete), now)
	return d, nil
}

// removeStack deletes what a removed stack leaves once its services are gone. Volumes stay unless they were asked for.
func (e *Engine) removeStack(d *Decision, st *cluster.Stack, now time.Time) {
	for range e.snap.ServicesByStack(st.ID) {
		return
	}
	for _, list := range [][]cluster.Object{
		objects(slices.Collect(e.snap.ReleasesByStack(st.ID))),
		objects(slices.Collect(e.snap.NetworksByStack(st.ID))),
		objects(slices.Collect(e.snap.SecretsByStack(st.ID))),
		objects(slices.Collect(e.snap.ConfigsByStack(st.ID))),
	} {
		for _, o := range list {
			d.Txn.Delete(o)
		}
	}
	e.removeRevisions(d, st.ID)
	d.Txn.Delete(st)
	d.Txn.Put(&cluster.Event{
		Meta: cluster.Meta{ID: e.newID(), Created: now}, At: now, Type: "stack.removed", Message: "stack " + st.Name + " was removed",
		Who: "planner", Stack: st.ID,
	})
}

// removeRevisions deletes the revisions that the stack's releases name.
func (e *Engine) removeRevisions(d *Decision, stack cluster.ID) {
	services := make(map[cluster.ID]bool)
	for r := range e.snap.ReleasesByStack(stack) {
		for _, id := range r.Services {
			if rev, ok := store.Get[*cluster.Revision](e.snap, id); ok {
				services[rev.Service] = true
			}
		}
	}
	for _, id := range slices.SortedFunc(maps.Keys(services), func(a, b cluster.ID) int { return slices.Compare(a[:], b[:]) }) {
		for rev := range e.snap.RevisionsByService(id) {
			d.Txn.Delete(rev)
		}
	}
}

func objects[T cluster.Object](list []T) []cluster.Object {
	out := make([]cluster.Object, len(list))
	for i, o := range list {
		out[i] = o
	}
	return out
}

// decideEvents forgets the oldest events.
func (e *Engine) decideEvents() (Decision, error) {
	d := Decision{About: "events"}
	surplus := e.snap.Count(cluster.KindEvent) - eventsMax
	if surplus < eventsSlack {
		return d, nil
	}
	for ev := range e.snap.EventsBy(cluster.ID{}) {
		if surplus--; surplus < 0 {
			break
		}
		d.Txn.Delete(ev)
	}
	return d, nil
}
