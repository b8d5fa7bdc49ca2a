package server

import (
	"context"
	"slices"
	"time"

	"baton/client/api"
	"baton/internal/manager/store"
	"baton/internal/model/cluster"
)

// eventQuery chooses events.
type eventQuery struct {
	stack, target string
	since         time.Time
	limit         int
}

// subject is whose events are meant: an id, and of a slot only the events with that number.
type subject struct {
	id   cluster.ID
	slot int
}

func (x subject) has(e *cluster.Event) bool {
	if x.slot != 0 && e.Slot != x.slot {
		return false
	}
	return x.id.IsZero() || slices.Contains([]cluster.ID{e.Stack, e.Release, e.Service, e.Task, e.Node}, x.id)
}

func (s *Server) subject(snap store.Snapshot, q eventQuery) (subject, error) {
	if q.target == "" && q.stack == "" {
		return subject{}, nil
	}
	t, err := resolver{snap: snap, hint: q.stack}.any(q.target)
	if err != nil {
		return subject{}, err
	}
	switch t.kind {
	case cluster.KindStack:
		return subject{id: t.stack.ID}, nil
	case cluster.KindService:
		return subject{id: t.service.ID}, nil
	case cluster.KindNode:
		return subject{id: t.node.ID}, nil
	}
	if t.slot > 0 && t.service != nil {
		return subject{id: t.service.ID, slot: t.slot}, nil
	}
	return subject{id: t.task.ID}, nil
}

func (s *Server) listEvents(q eventQuery) ([]api.Event, error) {
	snap := s.cfg.Store.Snapshot()
	about, err := s.subject(snap, q)
	if err != nil {
		return nil, err
	}
	return eventDocs(snap, about, q), nil
}

// eventDocs collects the newest events, oldest first.
func eventDocs(snap store.Snapshot, about subject, q eventQuery) []api.Event {
	out := []api.Event{}
	for e := range snap.EventsByNewest(about.id) {
		if len(out) == q.limit || !q.since.IsZero() && !e.At.After(q.since) {
			break
		}
		if about.has(e) {
			out = append(out, reader{snap}.event(e))
		}
	}
	slices.Reverse(out)
	return out
}

func (s *Server) followEvents(ctx context.Context, q eventQuery) (func(emit) error, error) {
	snap := s.cfg.Store.Snapshot()
	about, err := s.subject(snap, q)
	if err != nil {
		return nil, err
	}
	return func(out emit) error {
		for _, e := range eventDocs(snap, about, q) {
			if err := out(e); err != nil {
				return err
			}
		}
		c := s.cfg.Store.Changes(snap.Version(), store.Filter{Kinds: []cluster.Kind{cluster.KindEvent}})
		defer c.Close()
		seen := snap.Version()
		for {
			d, err := c.Next(ctx)
			if err != nil {
				return err
			}
			var fresh []*cluster.Event
			for _, o := range d.Changed {
				if e, ok := o.(*cluster.Event); ok && e.Version > seen && about.has(e) {
					fresh = append(fresh, e)
				}
			}
			seen = d.Version()
			slices.SortStableFunc(fresh, func(a, b *cluster.Event) int { return a.At.Compare(b.At) })
			for _, e := range fresh {
				if err := out(reader{d.Snapshot}.event(e)); err != nil {
					return err
				}
			}
		}
	}, nil
}
