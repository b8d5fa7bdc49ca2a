package server

import (
	"cmp"
	"fmt"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"baton/client/api"
	"baton/internal/manager/store"
	"baton/internal/model/cluster"
	"baton/internal/model/spec"
)

// reader makes documents of what a snapshot holds.
type reader struct{ snap store.Snapshot }

func (r reader) stackName(id cluster.ID) string {
	if st, ok := store.Get[*cluster.Stack](r.snap, id); ok {
		return st.Name
	}
	return ""
}

func (r reader) nodeName(id cluster.ID) string {
	if n, ok := store.Get[*cluster.Node](r.snap, id); ok {
		return n.Name
	}
	return id.Short()
}

func (r reader) release(id cluster.ID) *cluster.Release {
	rel, _ := store.Get[*cluster.Release](r.snap, id)
	return rel
}

func (r reader) revision(id cluster.ID) *cluster.Revision {
	rev, _ := store.Get[*cluster.Revision](r.snap, id)
	return rev
}

func (r reader) stack(st *cluster.Stack) api.Stack {
	out := api.Stack{ID: st.ID, Name: st.Name, Version: st.Version, Removing: st.Removing, Created: st.Created}
	if rel := r.release(st.Release); rel != nil {
		out.Release, out.State = rel.Number, rel.State
	}
	for range r.snap.ServicesByStack(st.ID) {
		out.Services++
	}
	return out
}

func (r reader) service(svc *cluster.Service) api.Service {
	out := api.Service{
		ID: svc.ID, Stack: svc.StackName, Name: svc.Name, Address: svc.Address, Status: svc.Status, Removing: svc.Removing,
		Version: svc.Version, Created: svc.Created,
	}
	if !svc.Rollout.To.IsZero() {
		roll := svc.Rollout
		out.Rollout = &roll
	}
	if rev := r.revision(svc.Revision); rev != nil {
		out.Mode, out.Image, out.Revision, out.Ports = rev.Spec.Mode, rev.Spec.Image, rev.Number, rev.Spec.Ports
		out.Scale = scaleOf(svc, rev)
	}
	return out
}

// scaleOf says who owns the number of tasks; nil when nothing but a user could.
func scaleOf(svc *cluster.Service, rev *cluster.Revision) *api.Scale {
	a := rev.Spec.Autoscale
	if a == nil {
		return nil
	}
	out := &api.Scale{Owner: api.OwnerAuto, Min: a.Min, Max: a.Max}
	if svc.Scaled {
		out.Owner = api.OwnerUser
	}
	return out
}

func (r reader) task(t *cluster.Task) api.Task {
	out := api.Task{Task: *t, Past: past(t)}
	if svc, ok := store.Get[*cluster.Service](r.snap, t.Service); ok {
		out.StackName, out.ServiceName = svc.StackName, svc.Name
		out.WantedImage = svc.Revision == t.Revision
	}
	if !t.Node.IsZero() {
		out.NodeName = r.nodeName(t.Node)
	}
	if rev := r.revision(t.Revision); rev != nil {
		out.Image, out.RevisionNo = rev.Spec.Image, rev.Number
		var ports []string
		for _, p := range rev.Spec.Ports {
			if p.Mode == spec.PortHost {
				ports = append(ports, fmt.Sprintf("%d->%d/%s", p.Published, p.Target, p.Protocol))
			}
		}
		out.HostPortList = strings.Join(ports, ", ")
	}
	return out
}

// past tasks have ended or are only kept for their history.
func past(t *cluster.Task) bool { return t.Observed.Terminal() || t.Desired >= cluster.DesiredStop }

// tasks lists tasks in the order of stack, service, slot, and of a slot the newest first.
func (r reader) tasks(keep func(*cluster.Task) bool, services []*cluster.Service) []api.Task {
	out := []api.Task{}
	for _, svc := range services {
		for t := range r.snap.TasksByService(svc.ID) {
			if keep(t) {
				out = append(out, r.task(t))
			}
		}
	}
	slices.SortStableFunc(out, func(a, b api.Task) int {
		return cmp.Or(cmp.Compare(a.StackName, b.StackName), cmp.Compare(a.ServiceName, b.ServiceName), cmp.Compare(a.Slot, b.Slot),
			compareNode(&a, &b), compareBool(a.Past, b.Past), b.Created.Compare(a.Created), slices.Compare(a.ID[:], b.ID[:]))
	})
	return out
}

func compareNode(a, b *api.Task) int {
	if a.Slot != 0 {
		return 0
	}
	return cmp.Compare(a.NodeName, b.NodeName)
}

func compareBool(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	}
	return 1
}

// services lists the services of a stack, or of all, by stack and name.
func (r reader) services(stack *cluster.Stack) []*cluster.Service {
	var out []*cluster.Service
	if stack != nil {
		for svc := range r.snap.ServicesByStack(stack.ID) {
			out = append(out, svc)
		}
		return out
	}
	for svc := range store.All[*cluster.Service](r.snap) {
		out = append(out, svc)
	}
	slices.SortFunc(out, func(a, b *cluster.Service) int {
		return cmp.Or(cmp.Compare(a.StackName, b.StackName), cmp.Compare(a.Name, b.Name))
	})
	return out
}

func (r reader) releaseDoc(st *cluster.Stack, rel *cluster.Release, full bool) api.Release {
	out := api.Release{
		ID: rel.ID, Stack: st.Name, Number: rel.Number, State: rel.State, Wanted: st.Release == rel.ID, Created: rel.Created, Ended: rel.Ended,
		Reason: rel.Reason, Message: rel.Message, RollbackOf: rel.RollbackOf, Restores: rel.Restores,
	}
	if !full {
		return out
	}
	for name, id := range rel.Services {
		rev := r.revision(id)
		if rev == nil {
			continue
		}
		out.Services = append(out.Services, api.ReleaseService{
			Name: name, Image: rev.Spec.Image, Revision: rev.Number, Replicas: rel.Replicas[name],
			Secrets: numbers[*cluster.Secret](r, rev.Secrets), Configs: numbers[*cluster.Config](r, rev.Configs),
		})
	}
	slices.SortFunc(out.Services, func(a, b api.ReleaseService) int { return cmp.Compare(a.Name, b.Name) })
	return out
}

func numbers[T cluster.Object](r reader, refs map[string]cluster.ID) map[string]int {
	if len(refs) == 0 {
		return nil
	}
	out := make(map[string]int, len(refs))
	for name, id := range refs {
		o, ok := store.Get[T](r.snap, id)
		if !ok {
			continue
		}
		switch m := any(o).(type) {
		case *cluster.Secret:
			out[name] = m.Number
		case *cluster.Config:
			out[name] = m.Number
		}
	}
	return out
}

// failingMax is how many failed tasks a status tells of.
const failingMax = 3

// status tells how a whole stack is.
func (r reader) status(st *cluster.Stack) api.Status {
	out := api.Status{Stack: r.stack(st), Version: r.snap.Version(), Healthy: true, Services: []api.ServiceState{}}
	if rel := r.release(st.Release); rel != nil {
		out.Release = r.releaseDoc(st, rel, false)
		out.Healthy = rel.State == cluster.ReleaseComplete
	}
	for svc := range r.snap.ServicesByStack(st.ID) {
		out.Services = append(out.Services, r.serviceState(svc))
		if !svc.Status.Converged && !svc.Removing {
			out.Healthy = false
		}
	}
	if st.Removing {
		out.Healthy = false
	}
	return out
}

func (r reader) serviceState(svc *cluster.Service) api.ServiceState {
	s := api.ServiceState{Name: svc.Name, Status: svc.Status, Rollout: svc.Rollout.State, Reason: svc.Status.Waiting, Removing: svc.Removing}
	began := !svc.RestartAt.After(svc.Rollout.Started)
	if !began {
		s.Rollout = cluster.RolloutUpdating // a restart was asked for, and the planner has yet to look
	}
	if rev := r.revision(svc.Revision); rev != nil {
		s.Mode, s.Image, s.Ports = rev.Spec.Mode, rev.Spec.Image, rev.Spec.Ports
		s.Scale = scaleOf(svc, rev)
	}
	if s.Reason == "" && began && svc.Rollout.State != cluster.RolloutCompleted {
		s.Reason = svc.Rollout.Reason
	}
	var failed []*cluster.Task
	for t := range r.snap.TasksByService(svc.ID) {
		switch {
		case t.Observed == cluster.ObservedFailed || t.Observed == cluster.ObservedRejected:
			if t.Revision == svc.Revision {
				failed = append(failed, t)
			}
		case t.Observed == cluster.ObservedPending && s.Reason == "" && t.Reason != "":
			s.Reason = t.Reason
		case t.Observed == cluster.ObservedPreparing && s.Reason == "" && t.Reason != "":
			// Such as an image that is asked for again and again: an "up" that waits must say what for.
			doc := r.task(t)
			s.Reason = doc.Label() + ": " + t.Reason
		}
	}
	if svc.Status.Converged {
		return s
	}
	slices.SortFunc(failed, func(a, b *cluster.Task) int { return b.Ended.Compare(a.Ended) })
	for _, t := range failed[:min(len(failed), failingMax)] {
		doc := r.task(t)
		s.Failing = append(s.Failing, doc.Label()+": "+ending(t))
	}
	return s
}

// ending tells in words how a task ended.
func ending(t *cluster.Task) string {
	var b strings.Builder
	b.WriteString(t.Observed.String())
	if x := t.Exit; x != nil {
		switch {
		case x.OOM:
			b.WriteString(", exit code " + strconv.Itoa(x.Code) + ": out of memory, killed by the kernel")
		case x.Unknown:
			b.WriteString(", exit code unknown: it ended unseen")
		case x.Signal != "":
			b.WriteString(", exit code " + strconv.Itoa(x.Code) + " (" + x.Signal + ")")
		default:
			b.WriteString(", exit code " + strconv.Itoa(x.Code))
		}
	}
	if t.Reason != "" && (t.Exit == nil || t.Reason != "exited with code "+strconv.Itoa(t.Exit.Code)) {
		b.WriteString(": " + t.Reason) // what is more than the code again
	}
	return b.String()
}

// count is a number with its noun.
func count(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return strconv.Itoa(n) + " " + noun + "s"
}

func (r reader) event(e *cluster.Event) api.Event {
	out := api.Event{Event: *e}
	out.StackName = r.stackName(e.Stack)
	if rel := r.release(e.Release); rel != nil {
		out.ReleaseNo = rel.Number
	}
	if svc, ok := store.Get[*cluster.Service](r.snap, e.Service); ok {
		out.ServiceName = svc.Name
	}
	if !e.Node.IsZero() {
		out.NodeName = r.nodeName(e.Node)
	}
	switch {
	case out.ServiceName != "" && e.Slot > 0:
		out.Subject = out.ServiceName + "/" + strconv.Itoa(e.Slot)
	case out.ServiceName != "":
		out.Subject = out.ServiceName
	case !e.Task.IsZero():
		out.Subject = e.Task.Short()
	case !e.Node.IsZero():
		out.Subject = out.NodeName
	case out.StackName != "":
		out.Subject = out.StackName
	default:
		out.Subject = "cluster"
	}
	return out
}

func (s *Server) version() api.Version {
	return api.Version{Version: s.cfg.Version, API: "v1", Cluster: s.cfg.ClusterName, Go: runtime.Version(), Store: s.cfg.Store.Snapshot().Version()}
}
