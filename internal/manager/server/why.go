package server

import (
	"fmt"
	"slices"
	"time"

	"baton/client/api"
	"baton/internal/manager/store"
	"baton/internal/model/cluster"
)

// The bounds of an explanation: nobody reads more, and events show the rest.
const (
	whyEventsMax  = 8
	whyTasksMax   = 8
	whyHistoryMax = 4 // ended tasks of a slot
)

// explainer gathers the reasons for a target's state. It follows ids: stack → release → service → task → node, and what
// each of them has in the way of events.
type explainer struct {
	reader
	out  []api.Reason
	seen map[cluster.ID]bool // events told already
}

// why explains a target's state from what is stored: states, exits and the reasons that the planners left.
func (s *Server) why(stack, name string) (api.Why, error) {
	snap := s.cfg.Store.Snapshot()
	t, err := resolver{snap: snap, hint: stack}.any(name)
	if err != nil {
		return api.Why{}, err
	}
	x := &explainer{reader: reader{snap}, seen: make(map[cluster.ID]bool)}
	w := api.Why{Kind: t.kind.String()}
	switch t.kind {
	case cluster.KindStack:
		w.Target, w.Summary = t.stack.Name, x.whyStack(t.stack)
	case cluster.KindService:
		w.Target, w.Summary = t.service.StackName+"/"+t.service.Name, x.whyService(t.service, 0)
	case cluster.KindTask:
		doc := x.task(t.task)
		w.Target, w.Summary = doc.Label(), x.whyTask(t.task, 0)
		x.history(t.task)
	case cluster.KindNode:
		w.Target, w.Summary = t.node.Name, x.whyNode(t.node, 0)
		if why := s.suspects(snap)[t.node.ID]; why != "" {
			x.add(api.Reason{Depth: 1, Kind: "node", Subject: t.node.Name, State: "avoided", Text: why, Bad: true, ID: t.node.ID})
		}
		x.events(t.node.ID, 0, 1)
	}
	w.Reasons = x.out
	return w, nil
}

func (x *explainer) add(r api.Reason) { x.out = append(x.out, r) }

func (x *explainer) whyStack(st *cluster.Stack) string {
	doc := x.status(st)
	summary := fmt.Sprintf("stack %s is as wanted (release %d)", st.Name, doc.Release.Number)
	if !doc.Healthy {
		summary = fmt.Sprintf("stack %s is not as wanted (release %d is %s)", st.Name, doc.Release.Number, doc.Release.State)
	}
	if st.Removing {
		summary = fmt.Sprintf("stack %s is being removed", st.Name)
	}
	x.whyRelease(st, 0)
	for svc := range x.snap.ServicesByStack(st.ID) {
		if !svc.Status.Converged {
			x.whyService(svc, 0)
		}
	}
	x.events(st.ID, 0, whyEventsMax)
	return summary
}

func (x *explainer) whyRelease(st *cluster.Stack, depth int) {
	rel := x.release(st.Release)
	if rel == nil {
		return
	}
	text := fmt.Sprintf("release %d is %s", rel.Number, rel.State)
	if rel.Reason != "" {
		text += ": " + rel.Reason
	}
	if rel.RollbackOf > 0 {
		text += fmt.Sprintf(" (it undoes release %d)", rel.RollbackOf)
	}
	bad := rel.State == cluster.ReleaseFailed || rel.State == cluster.ReleasePaused || rel.RollbackOf > 0
	x.add(api.Reason{Depth: depth, Kind: "release", Subject: fmt.Sprintf("%s r%d", st.Name, rel.Number), State: string(rel.State), Text: text, At: laterOf(rel.Created, rel.Ended), Bad: bad, ID: rel.ID})
	if rel.RollbackOf == 0 {
		return
	}
	if failed, ok := x.snap.ReleaseByNumber(st.ID, rel.RollbackOf); ok && failed.Reason != "" {
		x.add(api.Reason{Depth: depth + 1, Kind: "release", Subject: fmt.Sprintf("%s r%d", st.Name, failed.Number), State: string(failed.State), Text: failed.Reason, At: failed.Ended, Bad: true, ID: failed.ID})
	}
}

func laterOf(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

func (x *explainer) whyService(svc *cluster.Service, depth int) string {
	st := svc.Status
	summary := fmt.Sprintf("service %s is as wanted: %d of %d ready", svc.Name, st.Ready, st.Desired)
	if !st.Converged {
		summary = fmt.Sprintf("service %s is not as wanted: %d of %d ready", svc.Name, st.Ready, st.Desired)
	}
	if svc.Removing {
		summary = fmt.Sprintf("service %s is being removed: %s left", svc.Name, count(st.Running, "task"))
	}
	x.add(api.Reason{Depth: depth, Kind: "service", Subject: svc.Name, State: serviceWord(svc), Text: summary, Bad: !st.Converged, ID: svc.ID})
	x.whyScale(svc, depth+1)
	if st.Waiting != "" {
		x.add(api.Reason{Depth: depth + 1, Kind: "service", Subject: svc.Name, State: "waiting", Text: "it waits: " + st.Waiting, Bad: true, ID: svc.ID})
	}
	if roll := svc.Rollout; roll.State != "" && (roll.State != cluster.RolloutCompleted || roll.Reason != "") {
		text := fmt.Sprintf("its rollout is %s", roll.State)
		if roll.Failures > 0 {
			text += ", " + count(roll.Failures, "failure") + " of new tasks"
		}
		if roll.Reason != "" {
			text += ": " + roll.Reason
		}
		x.add(api.Reason{Depth: depth + 1, Kind: "rollout", Subject: svc.Name, State: string(roll.State), Text: text, At: laterOf(roll.Started, roll.Ended), Bad: roll.State != cluster.RolloutCompleted, ID: svc.ID})
	}
	x.serviceTasks(svc, depth+1)
	x.events(svc.ID, depth+1, whyEventsMax)
	return summary
}

// whyScale tells who owns the number of tasks. The steps themselves are events.
func (x *explainer) whyScale(svc *cluster.Service, depth int) {
	rev := x.revision(svc.Revision)
	if rev == nil || rev.Spec.Autoscale == nil {
		return
	}
	a := rev.Spec.Autoscale
	state, text := api.OwnerAuto, fmt.Sprintf("its number follows its load, from %d to %d", a.Min, a.Max)
	switch {
	case svc.Scaled:
		state, text = api.OwnerUser, fmt.Sprintf("its number, %d, was set by hand; `baton scale %s=auto` lets it follow its load again, from %d to %d", svc.Replicas, svc.Name, a.Min, a.Max)
	case svc.Replicas == 0:
		text += "; it rests, and the first request or connection starts a task"
	}
	x.add(api.Reason{Depth: depth, Kind: "scale", Subject: svc.Name, State: state, Text: text, At: laterOf(svc.Scaling.UpAt, svc.Scaling.DownAt), ID: svc.ID})
}

func serviceWord(svc *cluster.Service) string {
	switch {
	case svc.Removing:
		return "removing"
	case svc.Status.Converged:
		return "converged"
	}
	return "converging"
}

// serviceTasks tells of the tasks that are not as wanted, the newest first; of a service that is well, of its last failures.
func (x *explainer) serviceTasks(svc *cluster.Service, depth int) {
	var tasks []*cluster.Task
	for t := range x.snap.TasksByService(svc.ID) {
		healthy := t.Desired == cluster.DesiredRun && t.Observed == cluster.ObservedRunning && t.Ready
		asked := t.Desired > cluster.DesiredRun && (t.Exit == nil || t.Observed == cluster.ObservedComplete)
		if !healthy && !asked {
			tasks = append(tasks, t)
		}
	}
	slices.SortFunc(tasks, func(a, b *cluster.Task) int { return b.Created.Compare(a.Created) })
	for _, t := range tasks[:min(len(tasks), whyTasksMax)] {
		x.whyTask(t, depth)
	}
}

func (x *explainer) whyTask(t *cluster.Task, depth int) string {
	doc := x.task(t)
	text := fmt.Sprintf("task %s is %s", doc.Label(), t.Observed)
	bad := true
	switch {
	case t.Observed.Terminal():
		text = fmt.Sprintf("task %s %s", doc.Label(), ending(t))
		bad = t.Observed != cluster.ObservedComplete
	case t.Observed == cluster.ObservedRunning && t.Ready:
		text += " and ready"
		bad = t.Desired != cluster.DesiredRun
	case t.Observed == cluster.ObservedRunning:
		text += " but not ready"
	case t.Observed == cluster.ObservedPending:
		text = fmt.Sprintf("task %s has no node yet", doc.Label())
	}
	if !t.Observed.Terminal() {
		if t.Desired > cluster.DesiredRun {
			text += fmt.Sprintf(", on its way to %s", t.Desired)
		}
		if t.Reason != "" {
			text += ": " + t.Reason
		}
	}
	x.add(api.Reason{Depth: depth, Kind: "task", Subject: doc.Label(), State: t.Observed.String(), Text: text, At: laterOf(laterOf(t.Created, t.Started), t.Ended), Bad: bad, ID: t.ID, Exit: t.Exit})
	if t.Failures > 0 {
		x.add(api.Reason{Depth: depth + 1, Kind: "task", Subject: doc.Label(), State: "back-off", Text: count(t.Failures, "failure") + " in a row in this slot before it: each replacement waits longer", Bad: true, ID: t.ID})
	}
	if n, ok := store.Get[*cluster.Node](x.snap, t.Node); ok && n.State != cluster.NodeReady {
		x.whyNode(n, depth+1)
	}
	x.events(t.ID, depth+1, whyEventsMax/2)
	return text
}

// history tells of the tasks that this one replaced.
func (x *explainer) history(t *cluster.Task) {
	for i := 0; i < whyHistoryMax && !t.Replaces.IsZero(); i++ {
		before, ok := store.Get[*cluster.Task](x.snap, t.Replaces)
		if !ok {
			return
		}
		doc := x.task(before)
		x.add(api.Reason{Depth: 1, Kind: "task", Subject: doc.Label(), State: before.Observed.String(), Text: fmt.Sprintf("it replaced task %s: %s", before.ID.Short(), ending(before)), At: before.Ended, Bad: before.Observed != cluster.ObservedComplete, ID: before.ID, Exit: before.Exit})
		t = before
	}
}

func (x *explainer) whyNode(n *cluster.Node, depth int) string {
	text := fmt.Sprintf("node %s is %s", n.Name, n.State)
	if n.Availability != cluster.NodeActive {
		text += fmt.Sprintf(", availability %s", n.Availability)
	}
	x.add(api.Reason{Depth: depth, Kind: "node", Subject: n.Name, State: string(n.State), Text: text, At: n.StateSince, Bad: n.State != cluster.NodeReady || n.Availability != cluster.NodeActive, ID: n.ID})
	if depth == 0 {
		x.events(n.ID, 1, whyEventsMax)
	}
	return text
}

// events adds the newest events of an id that were not told yet.
func (x *explainer) events(id cluster.ID, depth, limit int) {
	for e := range x.snap.EventsByNewest(id) {
		if limit == 0 {
			return
		}
		if x.seen[e.ID] {
			continue
		}
		x.seen[e.ID] = true
		limit--
		x.add(api.Reason{Depth: depth, Kind: "event", Subject: x.event(e).Subject, State: e.Type, Text: e.Message, At: e.At, ID: e.ID})
	}
}
