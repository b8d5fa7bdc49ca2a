package dispatch

import (
	"maps"
	"reflect"
	"slices"

	"baton/internal/manager/stacks"
	"baton/internal/manager/store"
	"baton/internal/model/cluster"
	"baton/internal/model/spec"
	"baton/internal/plan/reconcile"
	"baton/internal/wire/agentapi"
)

// roll notes whether a service is on its way: only then its nodes may have to get images.
func (v *view) roll(s *cluster.Service) {
	if !s.Status.Converged && !s.Removing {
		v.rolling[s.ID] = true
	} else {
		delete(v.rolling, s.ID)
	}
}

// findImages works out once for all sessions which images their nodes must have before a rollout stops anything there.
func (v *view) findImages() {
	v.images = nil
	for _, id := range slices.SortedFunc(maps.Keys(v.rolling), compareIDs) {
		svc, ok := store.Get[*cluster.Service](v.snap, id)
		if !ok {
			continue
		}
		in := reconcile.Input{Service: svc, Revisions: make(map[cluster.ID]*cluster.Revision)}
		known := func(id cluster.ID) {
			if rev, ok := store.Get[*cluster.Revision](v.snap, id); ok && in.Revisions[id] == nil {
				in.Revisions[id] = rev
				in.Exclusive = in.Exclusive || stacks.Exclusive(v.snap, rev)
			}
		}
		known(svc.Revision)
		for t := range v.snap.TasksByService(id) {
			if t.Live() {
				in.Tasks = append(in.Tasks, t)
				known(t.Revision)
			}
		}
		for _, want := range reconcile.Images(in) {
			if v.images == nil {
				v.images = make(map[cluster.ID][]agentapi.ImageWant)
			}
			s := &in.Revisions[want.Revision].Spec
			v.images[want.Node] = append(v.images[want.Node], agentapi.ImageWant{
				Revision: want.Revision, Since: want.Since, Image: s.Image, Policy: s.Pull, Auth: v.auth(s.Image),
			})
		}
	}
}

// auth finds the credentials for the registry of an image; nil: none are stored, or they cannot be opened.
func (v *view) auth(image string) *agentapi.RegistryAuth {
	r, ok := v.snap.RegistryByHost(spec.RegistryHost(image))
	if !ok {
		return nil
	}
	password, err := v.opener.Open(r.Sealed, cluster.KindRegistry, r.ID)
	if err != nil {
		v.log.Error("registry credentials cannot be opened; log in again", "registry", r.Host, "err", err)
		return nil
	}
	return &agentapi.RegistryAuth{Host: r.Host, Username: r.Username, Password: string(password)}
}

func sameImage(a, b agentapi.ImageWant) bool {
	return a.Revision == b.Revision && a.Since.Equal(b.Since) && reflect.DeepEqual(a.Auth, b.Auth)
}

// samePrepared reports whether two words on an image are equal.
func samePrepared(a, b cluster.Prepared) bool {
	return a.Revision == b.Revision && a.Since.Equal(b.Since) && a.Present == b.Present && a.Rejected == b.Rejected && a.Reason == b.Reason
}

// preparedEvents tells users what came of the images that rollouts wait for, when it is news.
func (d *Dispatcher) preparedEvents(t *store.Txn, snap store.Snapshot, node *cluster.Node, list []cluster.Prepared) {
	for _, p := range list {
		if slices.ContainsFunc(node.Prepared, func(o cluster.Prepared) bool { return samePrepared(o, p) }) {
			continue
		}
		rev, ok := store.Get[*cluster.Revision](snap, p.Revision)
		if !ok || !p.Present && p.Reason == "" {
			continue
		}
		kind, message := "image.ready", "image "+rev.Spec.Image+" is on node "+node.Name+": what it replaces there may stop"
		if !p.Present {
			kind, message = "image.failed", "nothing is stopped on node "+node.Name+" yet: "+p.Reason
		}
		t.Put(d.event(d.cfg.Now(), kind, message, func(e *cluster.Event) {
			e.Node, e.Service = node.ID, rev.Service
			if svc, ok := store.Get[*cluster.Service](snap, rev.Service); ok {
				e.Stack = svc.Stack
			}
		}))
	}
}
