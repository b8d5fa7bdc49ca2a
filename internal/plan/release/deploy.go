package release

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"baton/internal/model/cluster"
	"baton/internal/model/spec"
)

// deployer is the state of one Deploy.
type deployer struct {
	in       DeployInput
	old      *cluster.Stack   // nil: new
	last     *cluster.Release // the stack's current one, nil: none
	stack    *cluster.Stack
	services map[string]*cluster.Service
	networks map[string]cluster.ID // by key
	volumes  map[string]cluster.ID
	parts    []cluster.Object // networks, volumes, secrets, configs
	revs     []cluster.Object
	svcs     []cluster.Object
	release  *cluster.Release
	diff     Diff
	changed  bool
}

// Deploy works out what makes the stack as wanted. With nothing to change, Put is empty.
func Deploy(in DeployInput) (Deployment, error) {
	d := newDeployer(in)
	if err := d.place(); err != nil {
		return Deployment{}, err
	}
	for i := range in.Want.Services {
		if err := d.service(&in.Want.Services[i]); err != nil {
			return Deployment{}, err
		}
	}
	d.removeOthers()
	slices.SortStableFunc(d.diff.Services, func(a, b ServiceChange) int { return strings.Compare(a.Service, b.Service) })
	return d.result(), nil
}

func newDeployer(in DeployInput) *deployer {
	d := &deployer{
		in: in, old: in.View.Stack(in.Want.Name), services: make(map[string]*cluster.Service),
		networks: make(map[string]cluster.ID), volumes: make(map[string]cluster.ID),
		diff: Diff{Stack: in.Want.Name, Services: []ServiceChange{}},
	}
	if d.old == nil {
		d.changed, d.diff.New = true, true
		d.stack = &cluster.Stack{Meta: cluster.Meta{ID: in.IDs(), Created: in.Now}, Name: in.Want.Name}
	} else {
		d.stack = cluster.Copy(d.old)
		d.changed = d.old.Removing || d.old.OnFailure != in.Want.OnFailure
		for _, s := range in.View.Services(d.old.ID) {
			d.services[s.Name] = s
		}
		d.last = find(in.View.Releases(d.old.ID), d.old.Release)
	}
	d.stack.Removing, d.stack.OnFailure = false, in.Want.OnFailure
	d.release = &cluster.Release{
		Meta: cluster.Meta{Created: in.Now}, Stack: d.stack.ID, Number: d.stack.LastNumber + 1,
		Services: make(map[string]cluster.ID), Replicas: make(map[string]int),
		Networks: slices.Clone(in.Want.Networks), Volumes: slices.Clone(in.Want.Volumes),
		Message: in.Message, State: cluster.ReleaseDeploying,
	}
	return d
}

func find(releases []*cluster.Release, id cluster.ID) *cluster.Release {
	for _, r := range releases {
		if r.ID == id {
			return r
		}
	}
	return nil
}

// place finds or makes the networks and volumes.
func (d *deployer) place() error {
	have := make(map[string]*cluster.Network)
	if d.old != nil {
		for _, n := range d.in.View.Networks(d.old.ID) {
			have[n.Name] = n
		}
	}
	for _, n := range d.in.Want.Networks {
		if n.External {
			found := d.in.View.ExternalNetwork(n.Ref)
			if found == nil {
				return fmt.Errorf("networks.%s: the external network %q does not exist: deploy the stack that makes it first", n.Name, n.Ref)
			}
			d.networks[n.Name] = found.ID
			continue
		}
		old := have[n.Name]
		switch {
		case old == nil:
			made := &cluster.Network{Meta: d.meta(), Stack: d.stack.ID, Name: n.Name, Internal: n.Internal}
			d.put(made)
			d.networks[n.Name] = made.ID
			d.diff.Networks = append(d.diff.Networks, n.Name)
			continue
		case old.Internal != n.Internal:
			c := cluster.Copy(old)
			c.Internal = n.Internal
			d.put(c)
		}
		d.networks[n.Name] = old.ID
	}
	for _, v := range d.in.Want.Volumes {
		if err := d.volume(v); err != nil {
			return err
		}
	}
	return nil
}

func (d *deployer) volume(v spec.Volume) error {
	old := d.in.View.Volume(v.Ref)
	switch {
	case old == nil && v.External:
		return fmt.Errorf("volumes.%s: the external volume %q does not exist: drop external, or deploy the stack that makes it first", v.Name, v.Ref)
	case old == nil:
		made := &cluster.Volume{Meta: d.meta(), Stack: d.stack.ID, Name: v.Ref, SingleWriter: v.SingleWriter, OnLoss: v.OnLoss}
		made.Held = made.Leased()
		d.put(made)
		d.volumes[v.Name] = made.ID
		d.diff.Volumes = append(d.diff.Volumes, v.Name)
		return nil
	case old.Removing:
		return fmt.Errorf("volumes.%s: volume %q is being removed: wait until it is gone", v.Name, v.Ref)
	}
	// A volume outlives its stack; one of the stack's own name belongs to the stack that is deployed under that name again.
	ours := !v.External && v.Ref == d.stack.Name+"_"+v.Name && old.Stack != d.stack.ID
	if ours || !v.External && (old.SingleWriter != v.SingleWriter || old.OnLoss != v.OnLoss) {
		c := cluster.Copy(old)
		c.SingleWriter = v.SingleWriter
		if c.OnLoss != v.OnLoss {
			c.OnLoss, c.Held = v.OnLoss, c.Node.IsZero() && v.OnLoss == spec.LossRecreate // its task, if it has one, goes on as it is
		}
		if ours {
			c.Stack = d.stack.ID
		}
		d.put(c)
	}
	d.volumes[v.Name] = old.ID
	return nil
}

func (d *deployer) meta() cluster.Meta { return cluster.Meta{ID: d.in.IDs(), Created: d.in.Now} }

func (d *deployer) put(o cluster.Object) { d.parts, d.changed = append(d.parts, o), true }

// service compares one service and puts what changes of it.
func (d *deployer) service(want *spec.Service) error {
	rev, err := d.revision(want)
	if err != nil {
		return err
	}
	old := d.services[want.Name]
	if old == nil || old.Removing {
		d.createService(old, want, rev)
		return nil
	}
	have := d.in.View.Revision(old.Revision)
	change := ServiceChange{Service: want.Name, Action: ActionUnchanged}
	svc := cluster.Copy(old)
	switch {
	case have == nil || have.Hash != rev.Hash || !maps.Equal(have.Networks, rev.Networks) || !maps.Equal(have.Volumes, rev.Volumes):
		change.Action = ActionUpdate
	case spec.HashPolicy(&have.Spec) != spec.HashPolicy(want), !maps.Equal(have.Secrets, rev.Secrets): // of the rules' certificates
		change.Action = ActionConfigure
	case unfinished(old.Rollout.State):
		change.Action = ActionRetry
		svc.Rollout = cluster.Rollout{From: old.Rollout.From, To: old.Revision, State: cluster.RolloutUpdating, Started: d.in.Now}
	}
	wantedID := old.Revision
	if change.Action == ActionUpdate || change.Action == ActionConfigure {
		rev.ID, rev.Service, rev.Number = d.in.IDs(), svc.ID, svc.LastNumber+1
		wantedID = rev.ID
		d.revs = append(d.revs, rev)
		change.Fields = fields(have, rev)
		move(svc, rev.ID, d.in.Now)
		svc.LastNumber = rev.Number
	}
	d.release.Services[want.Name] = wantedID
	if want.Autoscale != nil && want.Mode != spec.Global {
		d.release.Replicas[want.Name] = want.Replicas
		autoscaled(svc, have, want.Autoscale, &change)
	} else {
		d.replicas(svc, want, &change)
	}
	if change.Action != ActionUnchanged {
		d.svcs, d.changed = append(d.svcs, svc), true
	}
	d.diff.Services = append(d.diff.Services, change)
	return nil
}

func unfinished(s cluster.RolloutState) bool {
	return s == cluster.RolloutFailed || s == cluster.RolloutPaused
}

// move points a service at another revision. While no revision ever came up it stays in its first deployment.
func move(svc *cluster.Service, rev cluster.ID, now time.Time) {
	from := svc.Revision
	if svc.Rollout.From.IsZero() && svc.Rollout.State != cluster.RolloutCompleted {
		from = cluster.ID{}
	}
	svc.Previous, svc.Revision = svc.Revision, rev
	svc.Rollout = cluster.Rollout{From: from, To: rev, State: cluster.RolloutUpdating, Started: now}
}

// replicas applies the file's number, unless it was set by hand since and the file still says what it said then.
func (d *deployer) replicas(svc *cluster.Service, want *spec.Service, change *ServiceChange) {
	d.release.Replicas[want.Name] = want.Replicas
	if want.Mode == spec.Global {
		return
	}
	said, known := 0, false
	if d.last != nil {
		said, known = d.last.Replicas[want.Name]
	}
	if known && said != want.Replicas {
		d.changed = true
	}
	if svc.Scaled && known && said == want.Replicas || svc.Replicas == want.Replicas && !svc.Scaled {
		return
	}
	if svc.Replicas != want.Replicas {
		change.From, change.To = svc.Replicas, want.Replicas
	}
	svc.Replicas, svc.Scaled = want.Replicas, false
	if change.Action == ActionUnchanged {
		change.Action = ActionScale
	}
}

// autoscaled keeps the number that a service has by its load or by hand, within the bounds: the file's is what a new service begins with.
func autoscaled(svc *cluster.Service, have *cluster.Revision, want *spec.Autoscale, change *ServiceChange) {
	if svc.Scaled && have != nil && have.Spec.Autoscale != nil {
		return
	}
	svc.Scaled = false
	if n := want.Clamp(svc.Replicas); n != svc.Replicas {
		change.From, change.To = svc.Replicas, n
		svc.Replicas = n
		if change.Action == ActionUnchanged {
			change.Action = ActionScale
		}
	}
}

func (d *deployer) createService(old *cluster.Service, want *spec.Service, rev *cluster.Revision) {
	svc := &cluster.Service{Meta: d.meta(), Stack: d.stack.ID, StackName: d.stack.Name, Name: want.Name}
	if old != nil {
		svc = cluster.Copy(old) // on its way out, and wanted again
		svc.Removing = false
	}
	rev.ID, rev.Service, rev.Number = d.in.IDs(), svc.ID, svc.LastNumber+1
	svc.Revision, svc.Previous, svc.LastNumber = rev.ID, cluster.ID{}, rev.Number
	svc.Replicas, svc.Scaled = want.Replicas, false
	svc.Rollout = cluster.Rollout{To: rev.ID, State: cluster.RolloutUpdating, Started: d.in.Now}
	d.revs, d.svcs, d.changed = append(d.revs, rev), append(d.svcs, svc), true
	d.release.Services[want.Name], d.release.Replicas[want.Name] = rev.ID, want.Replicas
	fields := []FieldChange{{Path: "image", To: want.Image}}
	if a := want.Autoscale; a != nil {
		fields = append(fields, FieldChange{Path: "autoscale", To: fmt.Sprintf("from %d to %d", a.Min, a.Max)})
	}
	d.diff.Services = append(d.diff.Services, ServiceChange{Service: want.Name, Action: ActionCreate, To: want.Replicas, Fields: fields})
}

// revision makes the revision of a service, without id and number.
func (d *deployer) revision(want *spec.Service) (*cluster.Revision, error) {
	r := &cluster.Revision{Meta: cluster.Meta{Created: d.in.Now}, Spec: *want}
	var err error
	pick := func(into *map[string]cluster.ID, from map[string]cluster.ID, kind, name string) {
		id, ok := from[name]
		if !ok && err == nil {
			err = fmt.Errorf("services.%s: %s %q is not declared in the stack", want.Name, kind, name)
			return
		}
		if *into == nil {
			*into = make(map[string]cluster.ID)
		}
		(*into)[name] = id
	}
	for _, f := range want.Secrets {
		pick(&r.Secrets, d.in.Secrets, "secret", f.Source)
	}
	for _, f := range want.Configs {
		pick(&r.Configs, d.in.Configs, "config", f.Source)
	}
	for _, a := range want.Networks {
		pick(&r.Networks, d.networks, "network", a.Network)
	}
	for _, m := range want.Mounts {
		if m.Kind == spec.MountVolume && m.Source != "" {
			pick(&r.Volumes, d.volumes, "volume", m.Source)
		}
	}
	r.Hash = hash(r)
	// After the hash: no task is made of what its service's certificates are.
	for _, g := range want.Ingress {
		if g.TLS.From == spec.TLSSecret {
			pick(&r.Secrets, d.in.Secrets, "secret", g.TLS.Cert)
			pick(&r.Secrets, d.in.Secrets, "secret", g.TLS.Key)
		}
	}
	return r, err
}

// hash identifies what the tasks of a revision are made of: the spec and the exact versions of configs and secrets.
func hash(r *cluster.Revision) string {
	h := sha256.New()
	fmt.Fprintln(h, spec.Hash(&r.Spec))
	for _, part := range []map[string]cluster.ID{r.Secrets, r.Configs} {
		for _, name := range slices.Sorted(maps.Keys(part)) {
			fmt.Fprintln(h, name, part[name])
		}
		fmt.Fprintln(h)
	}
	return hex.EncodeToString(h.Sum(nil)[:16])
}

// removeOthers takes away the services that are not wanted any more.
func (d *deployer) removeOthers() {
	for _, name := range slices.Sorted(maps.Keys(d.services)) {
		svc := d.services[name]
		if _, ok := d.release.Services[name]; ok || svc.Removing {
			continue
		}
		gone := cluster.Copy(svc)
		gone.Removing = true
		d.svcs, d.changed = append(d.svcs, gone), true
		d.diff.Services = append(d.diff.Services, ServiceChange{Service: name, Action: ActionRemove, From: svc.Replicas})
	}
}

// result puts the deployment together: parts, revisions, services, releases, stack.
func (d *deployer) result() Deployment {
	if !d.changed {
		return Deployment{Stack: d.old, Release: d.last, Diff: d.diff}
	}
	d.release.ID = d.in.IDs()
	d.stack.Release, d.stack.LastNumber = d.release.ID, d.release.Number
	put := slices.Concat(d.used(), d.parts, d.revs, d.svcs)
	put = append(put, supersede(d.last, d.release, d.in.Now)...)
	put = append(put, d.release, d.stack)
	return Deployment{Put: put, Stack: d.stack, Release: d.release, Diff: d.diff}
}

// used are the new secrets and configs that a new revision refers to.
func (d *deployer) used() []cluster.Object {
	refs := make(map[cluster.ID]bool)
	for _, o := range d.revs {
		r := o.(*cluster.Revision)
		for _, part := range []map[string]cluster.ID{r.Secrets, r.Configs} {
			for _, id := range part {
				refs[id] = true
			}
		}
	}
	var put []cluster.Object
	for _, o := range d.in.New {
		if !refs[o.GetMeta().ID] {
			continue
		}
		own := o.Clone()
		switch o := own.(type) {
		case *cluster.Secret:
			o.Stack = d.stack.ID // a new stack's id is not known before
		case *cluster.Config:
			o.Stack = d.stack.ID
		}
		put = append(put, own)
	}
	return put
}

// supersede ends a release that was under way when a newer one came.
func supersede(last, by *cluster.Release, now time.Time) []cluster.Object {
	if last == nil || last.State != cluster.ReleaseDeploying && last.State != cluster.ReleasePaused {
		return nil
	}
	c := cluster.Copy(last)
	c.State, c.Ended = cluster.ReleaseSuperseded, now
	c.Reason = fmt.Sprintf("release %d came first", by.Number)
	return []cluster.Object{c}
}

// Remove takes a whole stack away: its services end, then Progress deletes what is left of it. Volumes stay.
func Remove(view View, stack *cluster.Stack, now time.Time) Deployment {
	d := Deployment{Stack: stack, Diff: Diff{Stack: stack.Name, Services: []ServiceChange{}}}
	for _, svc := range view.Services(stack.ID) {
		if svc.Removing {
			continue
		}
		gone := cluster.Copy(svc)
		gone.Removing = true
		d.Put = append(d.Put, gone)
		d.Diff.Services = append(d.Diff.Services, ServiceChange{Service: svc.Name, Action: ActionRemove, From: svc.Replicas})
	}
	if last := find(view.Releases(stack.ID), stack.Release); last != nil {
		d.Release = last
		if last.State == cluster.ReleaseDeploying || last.State == cluster.ReleasePaused {
			c := cluster.Copy(last)
			c.State, c.Ended, c.Reason = cluster.ReleaseSuperseded, now, "the stack is being removed"
			d.Put, d.Release = append(d.Put, c), c
		}
	}
	if !stack.Removing {
		gone := cluster.Copy(stack)
		gone.Removing = true
		d.Put, d.Stack = append(d.Put, gone), gone
	}
	return d
}
