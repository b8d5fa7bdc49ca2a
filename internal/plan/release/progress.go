package release

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"baton/internal/model/cluster"
	"baton/internal/model/spec"
)

// historyMax is how many releases of a stack are kept, besides the current and the last good one.
const historyMax = 10

// ErrNothingToRollBackTo is wrapped when no earlier release completed.
var ErrNothingToRollBackTo = errors.New("no earlier release completed")

// Rollback makes a new release that brings back exactly the revisions, configs and secrets of an earlier one. Replicas set
// by hand stay.
func Rollback(in RollbackInput) (Deployment, error) {
	releases := in.View.Releases(in.Stack.ID)
	current := find(releases, in.Stack.Release)
	target, err := pick(in, releases, current)
	if err != nil {
		return Deployment{}, err
	}
	stack := cluster.Copy(in.Stack)
	stack.Removing = false
	next := &cluster.Release{
		Meta: cluster.Meta{ID: in.IDs(), Created: in.Now}, Stack: stack.ID, Number: stack.LastNumber + 1,
		Services: maps.Clone(target.Services), Replicas: maps.Clone(target.Replicas),
		Networks: slices.Clone(target.Networks), Volumes: slices.Clone(target.Volumes),
		Restores: target.Number, Message: fmt.Sprintf("rollback to release %d", target.Number),
		State: cluster.ReleaseDeploying, Reason: in.Reason,
	}
	stack.Release, stack.LastNumber = next.ID, next.Number
	d := Deployment{Stack: stack, Release: next, Diff: Diff{Stack: stack.Name, Services: []ServiceChange{}}}
	if err := d.restore(in, target); err != nil {
		return Deployment{}, err
	}
	if current != nil {
		next.RollbackOf = current.Number
		d.Put = append(d.Put, end(current, next, in)...)
	}
	d.Put = append(d.Put, next, stack)
	return d, nil
}

// end closes the release that is rolled back.
func end(current, next *cluster.Release, in RollbackInput) []cluster.Object {
	if !in.Failed {
		return supersede(current, next, in.Now)
	}
	c := cluster.Copy(current)
	c.State, c.Ended, c.Reason = cluster.ReleaseRolledBack, in.Now, in.Reason
	return []cluster.Object{c}
}

// pick finds the release to bring back. Only one that completed will do.
func pick(in RollbackInput, releases []*cluster.Release, current *cluster.Release) (*cluster.Release, error) {
	if in.Number != 0 {
		i := slices.IndexFunc(releases, func(r *cluster.Release) bool { return r.Number == in.Number })
		switch {
		case i < 0:
			return nil, fmt.Errorf("stack %s has no release %d any more: `baton releases` lists those it has", in.Stack.Name, in.Number)
		case releases[i].State != cluster.ReleaseComplete:
			return nil, fmt.Errorf("release %d of stack %s is %s and never completed: choose a complete one from `baton releases`",
				in.Number, in.Stack.Name, releases[i].State)
		case releases[i].ID == in.Stack.Release:
			return nil, fmt.Errorf("release %d of stack %s is the current one", in.Number, in.Stack.Name)
		}
		return releases[i], nil
	}
	if good := find(releases, in.Stack.Good); good != nil && good.ID != in.Stack.Release && good.State == cluster.ReleaseComplete {
		return good, nil
	}
	var best *cluster.Release
	for _, r := range releases {
		older := current == nil || r.Number < current.Number && r.Number != current.Restores
		if older && r.State == cluster.ReleaseComplete && (best == nil || r.Number > best.Number) {
			best = r
		}
	}
	if best == nil {
		return nil, fmt.Errorf("stack %s: %w", in.Stack.Name, ErrNothingToRollBackTo)
	}
	return best, nil
}

// restore points the services at the target's revisions.
func (d *Deployment) restore(in RollbackInput, target *cluster.Release) error {
	have := make(map[string]*cluster.Service)
	for _, s := range in.View.Services(in.Stack.ID) {
		have[s.Name] = s
	}
	for _, name := range slices.Sorted(maps.Keys(target.Services)) {
		rev := in.View.Revision(target.Services[name])
		if rev == nil {
			return fmt.Errorf("release %d cannot come back: revision %s of service %s is gone", target.Number, target.Services[name].Short(), name)
		}
		change := ServiceChange{Service: name, Action: ActionUnchanged}
		svc := restored(in, have[name], rev, target.Replicas[name], &change)
		if change.Action != ActionUnchanged {
			d.Put = append(d.Put, svc)
		}
		d.Diff.Services = append(d.Diff.Services, change)
	}
	for _, name := range slices.Sorted(maps.Keys(have)) {
		svc := have[name]
		if _, ok := target.Services[name]; ok || svc.Removing {
			continue
		}
		gone := cluster.Copy(svc)
		gone.Removing = true
		d.Put = append(d.Put, gone)
		d.Diff.Services = append(d.Diff.Services, ServiceChange{Service: name, Action: ActionRemove, From: svc.Replicas})
	}
	return nil
}

// restored is a service as a rollback wants it.
func restored(in RollbackInput, old *cluster.Service, rev *cluster.Revision, replicas int, change *ServiceChange) *cluster.Service {
	if old == nil || old.Removing {
		svc := &cluster.Service{
			Meta: cluster.Meta{ID: rev.Service, Created: in.Now}, Stack: in.Stack.ID, StackName: in.Stack.Name,
			Name: rev.Spec.Name, LastNumber: rev.Number,
		}
		for _, r := range in.View.Revisions(rev.Service) {
			svc.LastNumber = max(svc.LastNumber, r.Number)
		}
		if old != nil {
			svc = cluster.Copy(old)
		}
		svc.Removing, svc.Revision, svc.Previous, svc.Replicas = false, rev.ID, cluster.ID{}, replicas
		svc.Rollout = cluster.Rollout{To: rev.ID, State: cluster.RolloutUpdating, Started: in.Now, Undo: true}
		change.Action, change.To = ActionCreate, replicas
		return svc
	}
	svc := cluster.Copy(old)
	if svc.Revision != rev.ID {
		change.Action = ActionUpdate
		change.Fields = fields(in.View.Revision(svc.Revision), rev)
		svc.Previous, svc.Revision = svc.Revision, rev.ID
		svc.Rollout = cluster.Rollout{From: svc.Previous, To: rev.ID, State: cluster.RolloutUpdating, Started: in.Now, Undo: true}
	}
	if rev.Spec.Autoscale != nil {
		replicas = rev.Spec.Autoscale.Clamp(svc.Replicas) // the load's number, not that of the time
	}
	if !svc.Scaled && rev.Spec.Mode != spec.Global && svc.Replicas != replicas {
		change.From, change.To = svc.Replicas, replicas
		svc.Replicas = replicas
		if change.Action == ActionUnchanged {
			change.Action = ActionScale
		}
	}
	return svc
}

// Progress looks at how far the stack's current release has come and decides its end.
func Progress(in ProgressInput) ProgressPlan {
	var p ProgressPlan
	releases := in.View.Releases(in.Stack.ID)
	if in.Stack.Removing {
		p.remove(in, releases)
		return p
	}
	current := find(releases, in.Stack.Release)
	for _, r := range releases {
		if r.ID == in.Stack.Release || current == nil {
			continue
		}
		for _, o := range supersede(r, current, in.Now) {
			p.Put = append(p.Put, o)
			p.Why = append(p.Why, Reason{Type: WhySuperseded, Release: r.ID, Message: o.(*cluster.Release).Reason})
		}
	}
	if current != nil && (current.State == cluster.ReleaseDeploying || current.State == cluster.ReleasePaused) {
		p.judge(in, current)
	}
	p.trim(in, releases)
	return p
}

// tally is where the services of a release are.
type tally struct {
	open    int // still moving, or leaving
	bad     int // failed, and told to carry on regardless
	failed  *cluster.Service
	paused  *cluster.Service
	trouble string
}

func count(in ProgressInput, r *cluster.Release) tally {
	var t tally
	seen := make(map[string]bool)
	for _, svc := range in.View.Services(in.Stack.ID) {
		want, ok := r.Services[svc.Name]
		seen[svc.Name] = true
		switch {
		case !ok || svc.Removing || svc.Revision != want || svc.Rollout.To != want:
			t.open++
		case svc.Rollout.State == cluster.RolloutFailed && action(in.View, svc) == spec.FailureContinue:
			t.bad++
			t.trouble = svc.Name + ": " + svc.Rollout.Reason
		case svc.Rollout.State == cluster.RolloutFailed:
			t.failed = svc
		case svc.Rollout.State == cluster.RolloutPaused:
			t.paused = svc
		case svc.Rollout.State != cluster.RolloutCompleted:
			t.open++
		case !svc.Status.Converged && svc.Rollout.Started.Before(r.Created):
			t.open++ // this release only scaled it, or left it as it was
		}
	}
	for name := range r.Services {
		if !seen[name] {
			t.open++
		}
	}
	return t
}

// action is what the service's policy says about a failed rollout.
func action(view View, svc *cluster.Service) spec.FailureAction {
	rev := view.Revision(svc.Revision)
	switch {
	case rev == nil:
		return spec.FailureRollback
	case svc.Rollout.Undo:
		return rev.Spec.Rollback.FailureAction
	}
	return rev.Spec.Update.FailureAction
}

// judge decides how the release goes on.
func (p *ProgressPlan) judge(in ProgressInput, r *cluster.Release) {
	t := count(in, r)
	switch {
	case t.failed != nil:
		p.failed(in, r, t.failed)
	case t.paused != nil:
		if r.State != cluster.ReleasePaused {
			p.set(r, cluster.ReleasePaused, t.paused.Name+": "+t.paused.Rollout.Reason, time.Time{}, WhyPause, t.paused.ID)
		}
	case t.open > 0:
		if r.State == cluster.ReleasePaused {
			p.set(r, cluster.ReleaseDeploying, "", time.Time{}, WhyResume, cluster.ID{})
		}
	case t.bad > 0:
		p.set(r, cluster.ReleaseFailed, t.trouble, in.Now, WhyFail, cluster.ID{})
	default:
		p.set(r, cluster.ReleaseComplete, "", in.Now, WhyComplete, cluster.ID{})
		stack := cluster.Copy(in.Stack)
		stack.Good = r.ID
		p.Put = append(p.Put, stack)
	}
}

// set moves a release to a state.
func (p *ProgressPlan) set(r *cluster.Release, state cluster.ReleaseState, reason string, ended time.Time, why string, svc cluster.ID) {
	c := cluster.Copy(r)
	c.State, c.Reason, c.Ended = state, reason, ended
	p.Put = append(p.Put, c)
	message := fmt.Sprintf("release %d is %s", r.Number, state)
	if reason != "" {
		message += ": " + reason
	}
	p.Why = append(p.Why, Reason{Type: why, Release: r.ID, Service: svc, Message: message})
}

// failed does what the stack wants when a service's rollout failed.
func (p *ProgressPlan) failed(in ProgressInput, r *cluster.Release, svc *cluster.Service) {
	reason := svc.Name + ": " + svc.Rollout.Reason
	switch {
	case in.Stack.OnFailure == spec.FailurePause:
		if r.State != cluster.ReleasePaused {
			p.set(r, cluster.ReleasePaused, reason, time.Time{}, WhyPause, svc.ID)
		}
		return
	case in.Stack.OnFailure == spec.FailureContinue:
		p.set(r, cluster.ReleaseFailed, reason, in.Now, WhyFail, svc.ID)
		return
	case r.Restores != 0:
		p.set(r, cluster.ReleaseFailed, reason+" (it is a rollback itself, so nothing follows)", in.Now, WhyFail, svc.ID)
		return
	}
	d, err := Rollback(RollbackInput{View: in.View, Stack: in.Stack, Reason: reason, Failed: true, IDs: in.IDs, Now: in.Now})
	if err != nil {
		p.set(r, cluster.ReleaseFailed, reason+" (cannot roll back: "+err.Error()+")", in.Now, WhyFail, svc.ID)
		return
	}
	p.Put = append(p.Put, d.Put...)
	p.Why = append(p.Why,
		Reason{Type: WhyFail, Release: r.ID, Service: svc.ID, Message: fmt.Sprintf("release %d failed: %s", r.Number, reason)},
		Reason{Type: WhyRollback, Release: d.Release.ID, Message: fmt.Sprintf("rolling back to release %d, because release %d failed: %s",
			d.Release.Restores, r.Number, reason)})
}

// remove deletes what is left of a stack once its services are gone.
func (p *ProgressPlan) remove(in ProgressInput, releases []*cluster.Release) {
	if len(in.View.Services(in.Stack.ID)) > 0 {
		return
	}
	for _, id := range servicesOf(in, releases) {
		for _, r := range in.View.Revisions(id) {
			p.Delete = append(p.Delete, r)
		}
	}
	for _, r := range releases {
		p.Delete = append(p.Delete, r)
	}
	for _, n := range in.View.Networks(in.Stack.ID) {
		p.Delete = append(p.Delete, n)
	}
	p.Delete = append(p.Delete, in.Stack)
}

// servicesOf lists the ids of all services that the stack has or had in a stored release.
func servicesOf(in ProgressInput, releases []*cluster.Release) []cluster.ID {
	var ids []cluster.ID
	for _, s := range in.View.Services(in.Stack.ID) {
		ids = append(ids, s.ID)
	}
	for _, r := range releases {
		for _, name := range slices.Sorted(maps.Keys(r.Services)) {
			if rev := in.View.Revision(r.Services[name]); rev != nil {
				ids = append(ids, rev.Service)
			}
		}
	}
	slices.SortFunc(ids, func(a, b cluster.ID) int { return slices.Compare(a[:], b[:]) })
	return slices.Compact(ids)
}

// trim deletes releases beyond the history, revisions that nothing refers to any more, and what only these had.
func (p *ProgressPlan) trim(in ProgressInput, releases []*cluster.Release) {
	good := in.Stack.Good
	written := make(map[cluster.ID]bool)
	for _, o := range p.Put {
		written[o.GetMeta().ID] = true
		if s, ok := o.(*cluster.Stack); ok {
			good = s.Good
		}
	}
	sorted := slices.Clone(releases)
	slices.SortFunc(sorted, func(a, b *cluster.Release) int { return b.Number - a.Number })
	used := make(map[cluster.ID]bool)
	for i, r := range sorted {
		if i >= historyMax && r.ID != in.Stack.Release && r.ID != good && r.ID != in.Stack.Good && !written[r.ID] {
			p.Delete = append(p.Delete, r)
			continue
		}
		for _, id := range r.Services {
			used[id] = true
		}
	}
	for _, s := range in.View.Services(in.Stack.ID) {
		for _, id := range []cluster.ID{s.Revision, s.Previous, s.Rollout.From, s.Rollout.To} {
			used[id] = true
		}
	}
	kept := make(map[cluster.ID]bool) // versions of secrets and configs
	for _, id := range servicesOf(in, releases) {
		for _, r := range in.View.Revisions(id) {
			if !used[r.ID] && !in.View.RevisionInUse(r.ID) {
				p.Delete = append(p.Delete, r)
				continue
			}
			for _, id := range r.Secrets {
				kept[id] = true
			}
			for _, id := range r.Configs {
				kept[id] = true
			}
		}
	}
	for _, o := range in.View.Materials(in.Stack.ID) {
		if !kept[o.GetMeta().ID] {
			p.Delete = append(p.Delete, o)
		}
	}
}
