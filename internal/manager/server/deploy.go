package server

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"baton/client/api"
	"baton/internal/manager/consensus"
	"baton/internal/manager/stacks"
	"baton/internal/manager/store"
	"baton/internal/model/cluster"
	"baton/internal/model/spec"
	"baton/internal/plan/release"
)

// prepared is a deployment that has been worked out but not written.
type prepared struct {
	snap     store.Snapshot
	dep      release.Deployment
	txn      store.Txn
	parts    []api.PartDiff
	services []api.ServiceDiff
	warnings []string
}

// up makes a stack what the request says, in one transaction.
func (s *Server) up(ctx context.Context, req api.UpRequest) (api.UpResult, error) {
	var out api.UpResult
	err := s.retry(ctx, func(snap store.Snapshot, now time.Time) (store.Txn, error) {
		p, err := s.prepare(snap, req, now)
		if err != nil {
			return store.Txn{}, err
		}
		if req.Plan != "" {
			if err := s.stillHolds(ctx, p, req.Plan); err != nil {
				return store.Txn{}, err
			}
		}
		out = api.UpResult{Changed: !p.txn.Empty(), Services: p.services, Warnings: p.warnings, Version: snap.Version(), Name: req.Stack.Name}
		if p.dep.Stack != nil {
			out.Stack = p.dep.Stack.ID
		}
		if p.dep.Release != nil {
			out.Release, out.ReleaseID = p.dep.Release.Number, p.dep.Release.ID
		}
		return p.txn, nil
	}, func(v store.Version) { out.Version = v })
	return out, err
}

// retry reads, decides and writes until nobody else was first. decide is called again after each conflict, so that a decision
// never rests on what is gone. An empty transaction ends it.
func (s *Server) retry(ctx context.Context, decide func(store.Snapshot, time.Time) (store.Txn, error), done func(store.Version)) error {
	for try := 1; ; try++ {
		txn, err := decide(s.cfg.Store.Snapshot(), s.cfg.Now())
		if err != nil || txn.Empty() {
			return err
		}
		v, err := s.cfg.Log.Propose(ctx, txn)
		switch {
		case err == nil:
			done(v)
			return nil
		case errors.Is(err, store.ErrConflict), errors.Is(err, store.ErrExists):
			// Somebody was first: decide again, a little later if that goes on. A service that is being rolled out changes all the time.
			select {
			case <-time.After(rand.N(retryPause << min(try, retryDoubled))):
			case <-ctx.Done():
				return ctx.Err()
			}
		case errors.Is(err, consensus.ErrUnknown):
			// It may have happened. What decide finds after the barrier tells; if it did, there is nothing left to do.
			if err := s.cfg.Log.Barrier(ctx); err != nil {
				return err
			}
		default:
			return err
		}
		if try == retriesMax {
			return err
		}
	}
}

// prepare checks a request against a snapshot and works out what to write. Every reason to refuse is found here, before
// anything is written.
func (s *Server) prepare(snap store.Snapshot, req api.UpRequest, now time.Time) (*prepared, error) {
	want := req.Stack
	want.Services = slices.Clone(want.Services)
	if err := override(&want, req.Replicas); err != nil {
		return nil, err
	}
	want.SetDefaults()
	if err := want.Validate(); err != nil {
		return nil, err
	}
	st, err := s.admit(snap, &want, req)
	if err != nil {
		return nil, err
	}
	if err := externals(snap, &want); err != nil {
		return nil, err
	}
	if err := levels(snap, &want); err != nil {
		return nil, err
	}
	if err := portConflicts(snap, &want); err != nil {
		return nil, err
	}
	if err := ingressConflicts(snap, &want); err != nil {
		return nil, err
	}
	m, err := s.materials(snap, st, &want, now)
	if err != nil {
		return nil, err
	}
	dep, err := release.Deploy(release.DeployInput{
		View: stacks.View{Snap: snap}, Want: want, Secrets: m.secrets, Configs: m.configs, New: m.fresh,
		Message: req.Message, IDs: newID, Now: now,
	})
	if err != nil {
		return nil, api.Errorf(api.CodeConflict, "%s", err)
	}
	p := &prepared{snap: snap, dep: dep}
	s.write(p, m, st == nil, now)
	if !p.txn.Empty() && publishes(&want) {
		claimPorts(snap, &p.txn)
	}
	return p, nil
}

func publishes(want *spec.Stack) bool {
	return slices.ContainsFunc(want.Services, func(s spec.Service) bool {
		return len(s.Ingress) > 0 || slices.ContainsFunc(s.Ports, func(p spec.Port) bool { return p.Published != 0 })
	})
}

// claimPorts makes the transaction conflict with any other one that publishes ports or has ingress rules and was decided on the same state.
func claimPorts(snap store.Snapshot, txn *store.Txn) {
	if settings, ok := snap.Settings(); ok {
		c := cluster.Copy(settings)
		c.PortClaims++
		txn.Put(c)
	}
}

func newID() cluster.ID { return cluster.NewID(nil) }

// override sets the numbers of tasks that the request gives.
func override(want *spec.Stack, replicas map[string]int) error {
	names := make([]string, len(want.Services))
	for i := range want.Services {
		names[i] = want.Services[i].Name
	}
	for name, n := range replicas {
		i := slices.Index(names, name)
		if i < 0 {
			e := api.Errorf(api.CodeInvalid, "there is no service %q to scale", name).At("replicas")
			if near := spec.Nearest(name, names); near != "" {
				e.Mend = fmt.Sprintf("did you mean %q?", near)
			}
			return e
		}
		if n < 0 || want.Services[i].Mode == spec.Global {
			return api.Errorf(api.CodeInvalid, "service %q cannot have %d replicas", name, n).At("replicas").WithMend("give a number from 0, and of a replicated service")
		}
		want.Services[i].Replicas = n
	}
	return nil
}

// admit finds the stack, nil when it is new, and refuses what may not be deployed at all.
func (s *Server) admit(snap store.Snapshot, want *spec.Stack, req api.UpRequest) (*cluster.Stack, error) {
	if want.ClusterGuard != "" && want.ClusterGuard != s.cfg.ClusterName {
		return nil, api.Errorf(api.CodeRefused, "this stack may be deployed to cluster %q only, and this is %q", want.ClusterGuard, s.cfg.ClusterName).
			At("x-baton.cluster").WithMend("choose the cluster with --host, or change the guard in the file")
	}
	st, ok := snap.StackByName(want.Name)
	var have cluster.Version
	if ok {
		have = st.Version
		if st.Removing {
			return nil, api.Errorf(api.CodeConflict, "stack %q is being removed", want.Name).WithMend("wait until `baton ls --stacks` no longer shows it")
		}
	}
	if req.Base != 0 && req.Base != have {
		return nil, api.Errorf(api.CodeStateMoved, "stack %q changed since the request was made (version %d, now %d)", want.Name, req.Base, have).WithMend("look again with `baton plan`")
	}
	if !ok {
		return nil, nil
	}
	return st, nil
}

// levels refuses what the cluster's feature level does not have yet.
func levels(snap store.Snapshot, want *spec.Stack) error {
	settings, ok := snap.Settings()
	if !ok {
		return nil
	}
	have := settings.Level.Or()
	needs := func(level cluster.Level, what string) error {
		return api.Errorf(api.CodeInvalid, "%s needs feature level %d, and the cluster is at %d", what, level, have).
			WithMend("bring all nodes to this version of baton; `baton cluster status` shows which are behind")
	}
	for _, v := range want.Volumes {
		if v.OnLoss == spec.LossRecreate && have < cluster.LevelLeases {
			return needs(cluster.LevelLeases, "volumes."+v.Name+".x-storage.on_loss: recreate")
		}
	}
	for _, v := range want.Services {
		if len(v.Ingress) > 0 && have < cluster.LevelIngress {
			return needs(cluster.LevelIngress, "services."+v.Name+".x-ingress")
		}
		for i, g := range v.Ingress {
			switch at := fmt.Sprintf("services.%s.x-ingress[%d]", v.Name, i); {
			case have >= cluster.LevelTraffic:
			case g.TLS.Enabled():
				return needs(cluster.LevelTraffic, at+".tls")
			case g.Further():
				return needs(cluster.LevelTraffic, at+" with more than host, path and port")
			}
		}
		if v.Autoscale != nil && have < cluster.LevelAutoscale {
			return needs(cluster.LevelAutoscale, "services."+v.Name+".x-autoscale")
		}
		if v.Update.Gates.Any() && have < cluster.LevelTraffic {
			return needs(cluster.LevelTraffic, "services."+v.Name+".x-rollout.gates")
		}
	}
	return nil
}

// externals refuses references to volumes and networks that do not exist.
func externals(snap store.Snapshot, want *spec.Stack) error {
	for _, v := range want.Volumes {
		ref := refOr(v.Ref, v.Name)
		if !v.External {
			if vol, ok := snap.VolumeByName(ref); ok && vol.Removing {
				return api.Errorf(api.CodeConflict, "volume %q is being removed", ref).At("volumes." + v.Name).WithMend("try again in a moment")
			}
			continue
		}
		if _, ok := snap.VolumeByName(ref); !ok {
			return api.Errorf(api.CodeNotFound, "external volume %q does not exist", ref).At("volumes." + v.Name).
				WithMend("remove `external: true`, so that the stack makes it; `baton volume ls` shows what there is")
		}
	}
	for _, n := range want.Networks {
		if n.External && (stacks.View{Snap: snap}).ExternalNetwork(n.Name) == nil {
			return api.Errorf(api.CodeNotFound, "external network %q does not exist", n.Name).At("networks." + n.Name).
				WithMend("deploy the stack that has it first, and name it as STACK_NETWORK, or remove `external: true`")
		}
	}
	return nil
}

func refOr(ref, name string) string {
	if ref != "" {
		return ref
	}
	return name
}

// portConflicts refuses published ports that a service of another stack has.
func portConflicts(snap store.Snapshot, want *spec.Stack) error {
	type key struct {
		port  uint16
		proto string
	}
	mine := make(map[key]string)
	for i := range want.Services {
		for _, p := range want.Services[i].Ports {
			if p.Published != 0 {
				mine[key{p.Published, p.Protocol}] = want.Services[i].Name
			}
		}
	}
	if len(mine) == 0 {
		return nil
	}
	for svc := range store.All[*cluster.Service](snap) {
		if svc.StackName == want.Name {
			continue
		}
		rev, ok := store.Get[*cluster.Revision](snap, svc.Revision)
		if !ok {
			continue
		}
		for _, p := range rev.Spec.Ports {
			name, taken := mine[key{p.Published, p.Protocol}]
			if !taken || p.Published == 0 {
				continue
			}
			return api.Errorf(api.CodeConflict, "published port %d/%s is taken by service %s/%s", p.Published, p.Protocol, svc.StackName, svc.Name).
				At("services." + name + ".ports").WithMend("publish another port, or remove the other service first")
		}
	}
	return nil
}

// write fills the transaction and what users see of it.
func (s *Server) write(p *prepared, m materials, isNew bool, now time.Time) {
	for _, c := range p.dep.Diff.Services {
		p.services = append(p.services, serviceDiff(c))
	}
	for _, o := range p.dep.Put {
		switch o := o.(type) {
		case *cluster.Secret:
			if o.Stack.IsZero() {
				o.Stack = p.dep.Stack.ID
			}
			p.parts = append(p.parts, part("secret", o.Name, o.Number))
		case *cluster.Config:
			if o.Stack.IsZero() {
				o.Stack = p.dep.Stack.ID
			}
			p.parts = append(p.parts, part("config", o.Name, o.Number))
		}
		p.txn.Put(o)
	}
	for _, n := range p.dep.Diff.Networks {
		p.parts = append(p.parts, api.PartDiff{Kind: "network", Name: n, Change: api.ChangeCreate})
	}
	for _, v := range p.dep.Diff.Volumes {
		p.parts = append(p.parts, api.PartDiff{Kind: "volume", Name: v, Change: api.ChangeCreate})
	}
	if p.txn.Empty() {
		return
	}
	// The materials found must still be there when this is applied, or a revision would point at nothing.
	for _, o := range m.found {
		p.txn.Check(o)
	}
	what := "updated"
	if isNew {
		what = "created"
	}
	s.event(&p.txn, now, "stack.deployed", fmt.Sprintf("stack %s was %s by release %d: %s", p.dep.Stack.Name, what, p.dep.Release.Number, summary(p.services)),
		func(e *cluster.Event) { e.Stack, e.Release = p.dep.Stack.ID, p.dep.Release.ID })
	for _, c := range p.dep.Diff.Services {
		if c.Action == release.ActionUnchanged {
			continue
		}
		s.event(&p.txn, now, "service."+string(c.Action), fmt.Sprintf("service %s: %s by release %d%s", c.Service, c.Action, p.dep.Release.Number, fieldsText(c.Fields)),
			func(e *cluster.Event) {
				e.Stack, e.Release = p.dep.Stack.ID, p.dep.Release.ID
				for _, o := range p.dep.Put {
					if svc, ok := o.(*cluster.Service); ok && svc.Name == c.Service {
						e.Service = svc.ID
					}
				}
			})
	}
}

func part(kind, name string, number int) api.PartDiff {
	change := api.ChangeCreate
	if number > 1 {
		change = api.ChangeUpdate
	}
	return api.PartDiff{Kind: kind, Name: name, Change: change}
}

func serviceDiff(c release.ServiceChange) api.ServiceDiff {
	out := api.ServiceDiff{Service: c.Service, Change: api.Change(c.Action), From: c.From, To: c.To}
	for _, f := range c.Fields {
		out.Fields = append(out.Fields, api.FieldDiff{Path: f.Path, Old: f.From, New: f.To})
	}
	return out
}

func summary(list []api.ServiceDiff) string {
	count := make(map[api.Change]int)
	for _, d := range list {
		count[d.Change]++
	}
	var parts []string
	for _, c := range []api.Change{api.ChangeCreate, api.ChangeUpdate, api.ChangeConfigure, api.ChangeScale, api.ChangeRemove, api.ChangeNone} {
		if n := count[c]; n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", n, c))
		}
	}
	return strings.Join(parts, ", ")
}

func fieldsText(fields []release.FieldChange) string {
	const shown = 4
	var names []string
	for _, f := range fields[:min(len(fields), shown)] {
		names = append(names, f.Path)
	}
	if len(fields) > shown {
		names = append(names, "…")
	}
	if len(names) == 0 {
		return ""
	}
	return " (" + strings.Join(names, ", ") + ")"
}

// event adds an event to a transaction.
func (s *Server) event(txn *store.Txn, now time.Time, kind, message string, link func(*cluster.Event)) {
	e := &cluster.Event{Meta: cluster.Meta{ID: newID(), Created: now}, At: now, Type: kind, Message: message, Who: "api"}
	link(e)
	txn.Put(e)
}

// plan tells what up would do.
func (s *Server) plan(ctx context.Context, req api.UpRequest) (api.Plan, error) {
	p, err := s.prepare(s.cfg.Store.Snapshot(), req, s.cfg.Now())
	if err != nil {
		return api.Plan{}, err
	}
	return s.preview(ctx, p)
}

func (s *Server) preview(ctx context.Context, p *prepared) (api.Plan, error) {
	out := api.Plan{
		Stack: p.dep.Diff.Stack, Base: p.snap.Version(), Changed: !p.txn.Empty(),
		Services: p.services, Parts: p.parts, Warnings: p.warnings,
	}
	if out.Changed && s.cfg.Planner != nil {
		fork := s.cfg.Store.Fork()
		if errs := fork.Apply(fork.Snapshot().Version()+1, []store.Txn{p.txn}); errs[0] != nil {
			return out, errs[0]
		}
		actions, err := s.cfg.Planner.Preview(ctx, fork, p.dep.Stack.ID)
		if err != nil {
			return out, err
		}
		out.Actions = actions
	}
	out.Hash = planHash(out)
	return out, nil
}

// planHash covers everything that the plan would do, and not the state it was made on: a state that moved without changing
// what happens is no reason to refuse.
func planHash(p api.Plan) string {
	b, err := json.Marshal(struct {
		Stack    string
		Services []api.ServiceDiff
		Parts    []api.PartDiff
		Actions  []api.Action
	}{p.Stack, p.Services, p.Parts, p.Actions})
	if err != nil {
		panic(fmt.Sprintf("server: plan: %v", err))
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:16])
}

// stillHolds refuses a deployment that would not do what its plan says.
func (s *Server) stillHolds(ctx context.Context, p *prepared, hash string) error {
	now, err := s.preview(ctx, p)
	if err != nil {
		return err
	}
	if now.Hash != hash {
		return api.Errorf(api.CodeStateMoved, "the state of the cluster moved since the plan was made: it would now do something else").
			WithMend("make a new plan with `baton plan --out FILE`")
	}
	return nil
}
