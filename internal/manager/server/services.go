package server

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"baton/client/api"
	"baton/internal/manager/stacks"
	"baton/internal/manager/store"
	"baton/internal/model/cluster"
	"baton/internal/model/spec"
	"baton/internal/plan/release"
)

// down begins to remove a stack. Its volumes stay unless asked for.
func (s *Server) down(ctx context.Context, name string, volumes bool) (api.DownResult, error) {
	var out api.DownResult
	err := s.retry(ctx, func(snap store.Snapshot, now time.Time) (store.Txn, error) {
		var txn store.Txn
		st, err := (resolver{snap: snap}).stack(name)
		if err != nil {
			return txn, err
		}
		out = api.DownResult{Stack: st.ID, Name: st.Name, Version: snap.Version()}
		for svc := range snap.ServicesByStack(st.ID) {
			out.Services = append(out.Services, svc.Name)
		}
		for _, o := range release.Remove(stacks.View{Snap: snap}, st, now).Put {
			txn.Put(o)
		}
		for v := range snap.VolumesByStack(st.ID) {
			if !volumes {
				out.Kept = append(out.Kept, v.Name)
				continue
			}
			out.Volumes = append(out.Volumes, v.Name)
			if !v.Removing {
				c := cluster.Copy(v)
				c.Removing = true
				txn.Put(c)
			}
		}
		slices.Sort(out.Kept)
		slices.Sort(out.Volumes)
		if !txn.Empty() {
			what := "its volumes are kept"
			if volumes {
				what = fmt.Sprintf("with %d volumes", len(out.Volumes))
			}
			s.event(&txn, now, "stack.removing", fmt.Sprintf("stack %s is being removed, %s", st.Name, what), func(e *cluster.Event) { e.Stack = st.ID })
		}
		return txn, nil
	}, func(v store.Version) { out.Version = v })
	return out, err
}

func (s *Server) listServices(stack string) ([]api.Service, error) {
	snap := s.cfg.Store.Snapshot()
	st, err := optionalStack(snap, stack)
	if err != nil {
		return nil, err
	}
	out := []api.Service{}
	for _, svc := range (reader{snap}).services(st) {
		out = append(out, reader{snap}.service(svc))
	}
	return out, nil
}

func optionalStack(snap store.Snapshot, name string) (*cluster.Stack, error) {
	if name == "" {
		return nil, nil
	}
	return (resolver{snap: snap}).stack(name)
}

func (s *Server) getService(stack, name string) (api.Service, error) {
	snap := s.cfg.Store.Snapshot()
	svc, err := (resolver{snap: snap, hint: stack}).service(name)
	if err != nil {
		return api.Service{}, err
	}
	out := reader{snap}.service(svc)
	if rev := (reader{snap}).revision(svc.Revision); rev != nil {
		sp := rev.Spec
		out.Spec = &sp
	}
	return out, nil
}

// change finds a service, lets f change a copy of it, and writes the copy with the event that f returns.
func (s *Server) change(ctx context.Context, stack, name string, f func(snap store.Snapshot, c *cluster.Service, now time.Time) (kind, message string, err error)) (api.ServiceResult, error) {
	var out api.ServiceResult
	err := s.retry(ctx, func(snap store.Snapshot, now time.Time) (store.Txn, error) {
		var txn store.Txn
		svc, err := (resolver{snap: snap, hint: stack}).service(name)
		if err != nil {
			return txn, err
		}
		if svc.Removing {
			return txn, api.Errorf(api.CodeConflict, "service %s is being removed", svc.Name)
		}
		c := cluster.Copy(svc)
		kind, message, err := f(snap, c, now)
		out = api.ServiceResult{Service: svc.ID, Stack: svc.StackName, Name: svc.Name, Version: snap.Version(), Changed: kind != ""}
		if err != nil || kind == "" {
			return txn, err
		}
		txn.Put(c)
		s.event(&txn, now, kind, message, func(e *cluster.Event) { e.Stack, e.Service = svc.Stack, svc.ID })
		return txn, nil
	}, func(v store.Version) { out.Version = v })
	return out, err
}

func (s *Server) scale(ctx context.Context, stack, name string, replicas int) (api.ServiceResult, error) {
	return s.change(ctx, stack, name, func(snap store.Snapshot, c *cluster.Service, _ time.Time) (string, string, error) {
		rev := reader{snap}.revision(c.Revision)
		if rev != nil && rev.Spec.Mode == spec.Global {
			return "", "", api.Errorf(api.CodeInvalid, "service %s is global: it has one task on each node", c.Name).WithMend("set `deploy.mode: replicated` in the file to scale it")
		}
		if vol := singleWriter(snap, rev); vol != "" && replicas > 1 {
			return "", "", api.Errorf(api.CodeRefused, "service %s writes to volume %s, which one task at a time may use: it cannot have %d", c.Name, vol, replicas).
				WithMend("set `x-storage: {access: shared}` on the volume if the program can share it")
		}
		auto := rev != nil && rev.Spec.Autoscale != nil && !c.Scaled
		if c.Replicas == replicas && !auto {
			return "", "", nil
		}
		old := c.Replicas
		message := fmt.Sprintf("service %s was scaled from %d to %d", c.Name, old, replicas)
		if auto {
			message += " by hand; it no longer follows its load, until `baton scale " + c.Name + "=auto`"
		}
		c.Replicas, c.Scaled = replicas, true
		c.Status.Converged = c.Status.Converged && old == replicas
		return "service.scaled", message, nil
	})
}

// scaleAuto gives the number of tasks back to the load.
func (s *Server) scaleAuto(ctx context.Context, stack, name string) (api.ServiceResult, error) {
	return s.change(ctx, stack, name, func(snap store.Snapshot, c *cluster.Service, _ time.Time) (string, string, error) {
		rev := reader{snap}.revision(c.Revision)
		if rev == nil || rev.Spec.Autoscale == nil {
			return "", "", api.Errorf(api.CodeInvalid, "service %s has no x-autoscale to scale it by", c.Name).WithMend("add x-autoscale to the file and deploy it, or give a number")
		}
		if !c.Scaled {
			return "", "", nil
		}
		a, old := rev.Spec.Autoscale, c.Replicas
		c.Replicas, c.Scaled = a.Clamp(old), false
		c.Status.Converged = c.Status.Converged && old == c.Replicas
		return "service.scaled", fmt.Sprintf("service %s follows its load again, from %d to %d; it has %d now", c.Name, a.Min, a.Max, c.Replicas), nil
	})
}

// singleWriter names a volume of the revision that one task at a time may use, if there is one.
func singleWriter(snap store.Snapshot, rev *cluster.Revision) string {
	if rev == nil {
		return ""
	}
	for _, key := range slices.Sorted(maps.Keys(rev.Volumes)) {
		if vol, ok := store.Get[*cluster.Volume](snap, rev.Volumes[key]); ok && vol.SingleWriter {
			return vol.Name
		}
	}
	return ""
}

func (s *Server) restart(ctx context.Context, stack, name string) (api.ServiceResult, error) {
	return s.change(ctx, stack, name, func(_ store.Snapshot, c *cluster.Service, now time.Time) (string, string, error) {
		c.RestartAt = now
		// The planners say when it has converged again: until they looked, it has not.
		c.Status.Converged = false
		return "service.restarted", fmt.Sprintf("all tasks of service %s are to be replaced", c.Name), nil
	})
}

func (s *Server) listTasks(stack, name string, all bool) ([]api.Task, error) {
	snap := s.cfg.Store.Snapshot()
	r := reader{snap}
	st, err := optionalStack(snap, stack)
	if err != nil {
		return nil, err
	}
	empty := map[cluster.ID]bool{}
	if !all {
		for _, svc := range r.services(st) {
			r.lastOfEmptySlots(svc, empty)
		}
	}
	keep := func(t *cluster.Task) bool { return all || !past(t) || empty[t.ID] }
	if name == "" {
		return r.tasks(keep, r.services(st)), nil
	}
	t, err := resolver{snap: snap, hint: stack}.any(name)
	if err != nil {
		return nil, err
	}
	switch t.kind {
	case cluster.KindService:
		return r.tasks(keep, []*cluster.Service{t.service}), nil
	case cluster.KindStack:
		return r.tasks(keep, r.services(t.stack)), nil
	case cluster.KindNode:
		return r.tasks(func(task *cluster.Task) bool { return keep(task) && task.Node == t.node.ID }, r.services(st)), nil
	}
	return r.tasks(func(task *cluster.Task) bool {
		return task.ID == t.task.ID || keep(task) && t.slot > 0 && task.Slot == t.slot
	}, []*cluster.Service{t.service}), nil
}

// lastOfEmptySlots finds the failed tasks that wait for their replacement: without them a service in a crash loop would look as
// if it had nothing at all between two attempts.
func (r reader) lastOfEmptySlots(svc *cluster.Service, out map[cluster.ID]bool) {
	if svc.Status.Converged || svc.Removing {
		return
	}
	last := map[int]*cluster.Task{}
	for t := range r.snap.TasksByService(svc.ID) {
		if t.Slot < 1 || t.Slot > svc.Status.Desired {
			continue
		}
		if l := last[t.Slot]; l == nil || past(l) && (!past(t) || t.Ended.After(l.Ended)) {
			last[t.Slot] = t
		}
	}
	for _, t := range last {
		if past(t) && (t.Observed == cluster.ObservedFailed || t.Observed == cluster.ObservedRejected || t.Observed == cluster.ObservedLost) {
			out[t.ID] = true
		}
	}
}

func (s *Server) listReleases(stack string) ([]api.Release, error) {
	snap := s.cfg.Store.Snapshot()
	st, err := (resolver{snap: snap}).stack(stack)
	if err != nil {
		return nil, err
	}
	out := []api.Release{}
	for rel := range snap.ReleasesByStack(st.ID) {
		doc := reader{snap}.releaseDoc(st, rel, false)
		s.addTraffic(snap, rel.ID, &doc)
		out = append(out, doc)
	}
	slices.SortFunc(out, func(a, b api.Release) int { return cmp.Compare(b.Number, a.Number) })
	return out, nil
}

func (s *Server) getRelease(stack string, number int) (api.Release, error) {
	snap := s.cfg.Store.Snapshot()
	st, err := (resolver{snap: snap}).stack(stack)
	if err != nil {
		return api.Release{}, err
	}
	rel, ok := snap.ReleaseByNumber(st.ID, number)
	if !ok {
		return api.Release{}, api.Errorf(api.CodeNotFound, "stack %s has no release %d", stack, number).WithMend("see `baton releases`")
	}
	doc := reader{snap}.releaseDoc(st, rel, true)
	s.addTraffic(snap, rel.ID, &doc)
	return doc, nil
}

// rollback brings back an earlier release as a new one.
func (s *Server) rollback(ctx context.Context, stack string, req api.RollbackRequest) (api.UpResult, error) {
	var out api.UpResult
	err := s.retry(ctx, func(snap store.Snapshot, now time.Time) (store.Txn, error) {
		var txn store.Txn
		st, err := (resolver{snap: snap}).stack(stack)
		if err != nil {
			return txn, err
		}
		if st.Removing {
			return txn, api.Errorf(api.CodeConflict, "stack %q is being removed", stack)
		}
		if req.To > 0 {
			if _, ok := snap.ReleaseByNumber(st.ID, req.To); !ok {
				return txn, api.Errorf(api.CodeNotFound, "stack %s has no release %d", stack, req.To).WithMend("see `baton releases`")
			}
		}
		reason := req.Message
		if reason == "" {
			reason = "asked for"
		}
		dep, err := release.Rollback(release.RollbackInput{View: stacks.View{Snap: snap}, Stack: st, Number: req.To, Reason: reason, IDs: newID, Now: now})
		if err != nil {
			return txn, api.Errorf(api.CodeConflict, "%s", err).WithMend("see `baton releases`")
		}
		for _, o := range dep.Put {
			txn.Put(o)
		}
		out = api.UpResult{Stack: st.ID, Name: st.Name, Changed: !txn.Empty(), Version: snap.Version()}
		if dep.Release != nil {
			out.Release, out.ReleaseID = dep.Release.Number, dep.Release.ID
		}
		for _, c := range dep.Diff.Services {
			out.Services = append(out.Services, serviceDiff(c))
		}
		if out.Changed {
			s.event(&txn, now, "stack.rolled-back", fmt.Sprintf("stack %s goes back to release %d as release %d: %s", st.Name, dep.Release.Restores, dep.Release.Number, reason),
				func(e *cluster.Event) { e.Stack, e.Release = st.ID, dep.Release.ID })
		}
		return txn, nil
	}, func(v store.Version) { out.Version = v })
	return out, err
}
