package dispatch

import (
	"cmp"
	"log/slog"
	"maps"
	"reflect"
	"slices"

	"baton/internal/manager/store"
	"baton/internal/model/cluster"
	"baton/internal/model/spec"
	"baton/internal/wire/agentapi"
)

// place is what the networks show of a task. Only a change of it makes a new network state.
type place struct {
	node     cluster.ID
	live     bool
	endpoint bool
}

// view is the dispatcher's picture of the store, kept by its loop.
type view struct {
	opener Opener
	log    *slog.Logger
	snap   store.Snapshot

	places     map[cluster.ID]place
	generation uint64 // of the network state
	built      uint64 // generation that state shows
	state      *agentapi.NetworkState

	peers   []agentapi.Peer     // of the mesh; part of state
	silent  map[cluster.ID]bool // nodes that are not heard: their tasks are endpoints only where there are no others
	members membership
	// rolling are the services that are not as wanted; images is what the nodes are to have for them.
	rolling map[cluster.ID]bool
	images  map[cluster.ID][]agentapi.ImageWant

	// removing are the volumes that are to go.
	removing []*cluster.Volume

	// unsendable are the tasks that the last fill could not send, with why.
	unsendable []cluster.Status

	// touched are the nodes whose tasks changed since the last merge; all is set when everything may have.
	touched map[cluster.ID][]cluster.ID
	all     bool
}

func newView(o Opener, log *slog.Logger) *view {
	return &view{opener: o, log: log, places: make(map[cluster.ID]place), rolling: make(map[cluster.ID]bool), generation: 1}
}

// merge takes what changed in the store.
func (v *view) merge(d store.Delta) {
	v.snap = d.Snapshot
	v.touched, v.all = make(map[cluster.ID][]cluster.ID), d.Full
	nodes := d.Full
	if d.Full {
		clear(v.places)
		clear(v.rolling)
		v.generation++
	}
	for _, o := range d.Changed {
		switch o := o.(type) {
		case *cluster.Task:
			v.touch(o.Node, o.ID)
			v.move(o.ID, place{node: o.Node, live: o.Live() && o.Address.IsValid(), endpoint: o.Endpoint()})
		case *cluster.Service:
			v.serviceChanged(o)
			v.roll(o)
		case *cluster.Network, *cluster.Certificate:
			v.generation++
		case *cluster.Node, *cluster.Settings, *cluster.Authority:
			nodes = true
		}
	}
	for _, r := range d.Deleted {
		switch r.Kind {
		case cluster.KindNode:
			nodes = true
		case cluster.KindTask:
			if p, ok := v.places[r.ID]; ok {
				v.touch(p.node, r.ID)
			}
			v.move(r.ID, place{})
			delete(v.places, r.ID)
		case cluster.KindCertificate:
			v.generation++
		case cluster.KindService, cluster.KindNetwork:
			delete(v.rolling, r.ID)
			v.generation++
		}
	}
	if nodes {
		v.nodesChanged()
	}
	v.findRemoving()
	v.findImages()
}

// findRemoving looks through the volumes once for all sessions.
func (v *view) findRemoving() {
	v.removing = v.removing[:0]
	for vol := range store.All[*cluster.Volume](v.snap) {
		if vol.Removing || len(vol.Abandoned) > 0 {
			v.removing = append(v.removing, vol)
		}
	}
}

func (v *view) touch(node, task cluster.ID) {
	if !node.IsZero() {
		v.touched[node] = append(v.touched[node], task)
	}
}

func (v *view) move(id cluster.ID, p place) {
	old := v.places[id]
	v.places[id] = p
	if old.live != p.live || old.endpoint != p.endpoint {
		v.generation++
	}
}

// serviceChanged makes a new network state unless only the planners' summary of the service moved.
func (v *view) serviceChanged(s *cluster.Service) {
	if v.state != nil {
		i := slices.IndexFunc(v.state.Services, func(o agentapi.Service) bool { return o.ID == s.ID })
		if rev, ok := store.Get[*cluster.Revision](v.snap, s.Revision); ok && i >= 0 {
			now, was := v.service(s, rev), v.state.Services[i]
			if now.Address == was.Address && now.Holds == was.Holds && now.HoldWait == was.HoldWait && now.HoldRequests == was.HoldRequests && slices.Equal(now.Ports, was.Ports) && reflect.DeepEqual(now.Ingress, was.Ingress) &&
				maps.EqualFunc(now.Networks, was.Networks, slices.Equal) {
				return
			}
		}
	}
	v.generation++
}

// fill posts to a session what it does not know yet.
func (v *view) fill(s *Session) {
	first := !s.greeted
	u := agentapi.Update{Version: v.snap.Version(), Full: first && !s.resume()}
	v.unsendable = nil
	if first || v.all {
		v.diffAll(s, &u)
	} else {
		for _, id := range v.touched[s.node] {
			v.diffTask(s, id, &u)
		}
	}
	if s.network != v.generation {
		u.Network, s.network = v.network(), v.generation
	}
	if c, ok := v.nodeConfig(s.node); ok && c != s.config {
		u.Node, s.config = &c, c
	}
	if m, hash := v.members.of(s.node); m != nil && hash != s.member {
		u.Membership, s.member = m, hash
	}
	v.removeVolumes(s, &u)
	if want := v.images[s.node]; first || !slices.EqualFunc(want, s.images, sameImage) {
		s.images, u.Prepare = want, &agentapi.Preparation{Images: want}
	}
	u.Removed = append(u.Removed, s.takeRefused()...)
	empty := !first && len(u.Assignments) == 0 && len(u.Removed) == 0 && u.Network == nil && u.Node == nil && len(u.RemoveVolumes) == 0 &&
		u.Membership == nil && u.Prepare == nil
	s.mu.Lock()
	s.greeted = true
	s.mu.Unlock()
	s.post(u, empty)
}

// removeVolumes tells of the volumes that are to go, each once; a later one of the same name is another volume.
func (v *view) removeVolumes(s *Session, u *agentapi.Update) {
	told := make(map[cluster.ID]bool)
	for _, vol := range v.removing {
		switch {
		case !goesFrom(vol, s.node):
			continue
		case !s.volumes[vol.ID] && v.used(vol, s.node):
			continue
		case !s.volumes[vol.ID]:
			u.RemoveVolumes = append(u.RemoveVolumes, vol.Name)
		}
		told[vol.ID] = true
	}
	s.volumes = told
}

// goesFrom reports whether what a node has of a volume is to be deleted: all of the volume, or what was left of it there.
func goesFrom(vol *cluster.Volume, node cluster.ID) bool {
	return vol.Removing && vol.Node == node || slices.Contains(vol.Abandoned, node)
}

// used reports whether a task on a node may still write to a volume.
func (v *view) used(vol *cluster.Volume, node cluster.ID) bool {
	for t := range v.snap.TasksByNode(node) {
		if !t.Live() {
			continue
		}
		rev, ok := store.Get[*cluster.Revision](v.snap, t.Revision)
		if !ok {
			continue
		}
		for _, id := range rev.Volumes {
			if id == vol.ID {
				return true
			}
		}
	}
	return false
}

func (v *view) diffAll(s *Session, u *agentapi.Update) {
	for t := range v.snap.TasksByNode(s.node) {
		v.diffTask(s, t.ID, u)
	}
	for _, id := range slices.SortedFunc(maps.Keys(s.sent), compareIDs) {
		v.diffTask(s, id, u)
	}
}

func (v *view) diffTask(s *Session, id cluster.ID, u *agentapi.Update) {
	t, ok := store.Get[*cluster.Task](v.snap, id)
	was, sent := s.sent[id]
	switch {
	case !ok || t.Node != s.node || t.Observed == cluster.ObservedPending: // pending: bound to the node, and no place there yet
		if sent {
			delete(s.sent, id)
			u.Removed = append(u.Removed, id)
		}
	case !sent || was.desired != t.Desired:
		a, err := v.assignment(t)
		if err != nil {
			v.log.Error("task cannot be sent to its node", "task", id, "err", err)
			v.unsendable = append(v.unsendable, cluster.Status{
				Task: id, Observed: cluster.ObservedRejected, Reason: "cannot be sent to its node: " + err.Error(),
			})
			return
		}
		s.sent[id] = sentTask{desired: t.Desired}
		u.Assignments = append(u.Assignments, a)
	}
}

// nodeConfig is what a node must know of itself.
func (v *view) nodeConfig(id cluster.ID) (agentapi.NodeConfig, bool) {
	node, ok := store.Get[*cluster.Node](v.snap, id)
	settings, found := store.Get[*cluster.Settings](v.snap, cluster.SettingsID)
	if !ok || !found || !node.Subnet.IsValid() {
		return agentapi.NodeConfig{}, false // the planners give it a subnet in a moment
	}
	c := agentapi.NodeConfig{Subnet: node.Subnet, TaskPool: settings.TaskPool, ServicePool: settings.ServicePool}
	if len(v.peers) > 0 {
		c.Mesh, c.MeshPort, c.MeshEpoch = settings.Mesh, settings.MeshPort, settings.MeshEpoch
	}
	return c, true
}

// assignment gathers everything that a node needs for a task.
func (v *view) assignment(t *cluster.Task) (agentapi.Assignment, error) {
	a := agentapi.Assignment{Task: t}
	rev, ok := store.Get[*cluster.Revision](v.snap, t.Revision)
	if !ok {
		return a, errGone("revision", t.Revision)
	}
	svc, ok := store.Get[*cluster.Service](v.snap, t.Service)
	if !ok {
		return a, errGone("service", t.Service)
	}
	a.Spec, a.ServiceName, a.StackName = &rev.Spec, svc.Name, svc.StackName
	a.Networks, a.Internal = v.networksOf(rev)
	a.Volumes = make(map[string]string, len(rev.Volumes))
	for key, id := range rev.Volumes {
		if vol, ok := store.Get[*cluster.Volume](v.snap, id); ok {
			a.Volumes[key] = vol.Name
		}
	}
	if t.Observed.Terminal() || t.Desired >= cluster.DesiredStop {
		return a, nil // it needs its files no more
	}
	a.Auth = v.auth(rev.Spec.Image)
	for _, ref := range rev.Spec.Secrets {
		s, ok := store.Get[*cluster.Secret](v.snap, rev.Secrets[ref.Source])
		if !ok {
			return a, errGone("secret "+ref.Source, rev.Secrets[ref.Source])
		}
		content, err := v.opener.Open(s.Sealed, cluster.KindSecret, s.ID)
		if err != nil {
			return a, err
		}
		a.Files = append(a.Files, file(ref, content, true))
	}
	for _, ref := range rev.Spec.Configs {
		c, ok := store.Get[*cluster.Config](v.snap, rev.Configs[ref.Source])
		if !ok {
			return a, errGone("config "+ref.Source, rev.Configs[ref.Source])
		}
		content, err := v.opener.Open(c.Sealed, cluster.KindConfig, c.ID)
		if err != nil {
			return a, err
		}
		a.Files = append(a.Files, file(ref, content, false))
	}
	return a, nil
}

func file(ref spec.FileRef, content []byte, secret bool) agentapi.File {
	return agentapi.File{Name: ref.Source, Target: ref.Target, UID: ref.UID, GID: ref.GID, Mode: ref.Mode, Content: content, Secret: secret}
}

// networksOf returns the networks of a revision, sorted, and whether all of them are internal.
func (v *view) networksOf(rev *cluster.Revision) (ids []cluster.ID, internal bool) {
	internal = len(rev.Networks) > 0
	for _, id := range rev.Networks {
		if n, ok := store.Get[*cluster.Network](v.snap, id); ok {
			ids = append(ids, id)
			internal = internal && n.Internal
		}
	}
	slices.SortFunc(ids, compareIDs)
	return ids, internal
}

// network builds the network state, or returns the one built last when nothing changed since.
func (v *view) network() *agentapi.NetworkState {
	if v.state != nil && v.built == v.generation {
		return v.state
	}
	st := &agentapi.NetworkState{Peers: v.peers}
	names := make(map[cluster.ID]string)
	for s := range store.All[*cluster.Stack](v.snap) {
		names[s.ID] = s.Name
	}
	for n := range store.All[*cluster.Network](v.snap) {
		st.Networks = append(st.Networks, agentapi.Network{ID: n.ID, Name: n.Name, Stack: names[n.Stack], Internal: n.Internal})
	}
	for s := range store.All[*cluster.Service](v.snap) {
		rev, ok := store.Get[*cluster.Revision](v.snap, s.Revision)
		if !ok {
			continue
		}
		out := v.service(s, rev)
		for t := range v.snap.TasksByService(s.ID) {
			if !t.Live() || !t.Address.IsValid() {
				continue
			}
			if r, ok := store.Get[*cluster.Revision](v.snap, t.Revision); ok {
				ids, _ := v.networksOf(r)
				st.Members = append(st.Members, agentapi.Member{Task: t.ID, Node: t.Node, Address: t.Address, Networks: ids})
			}
			if t.Endpoint() {
				out.Endpoints = append(out.Endpoints, agentapi.Endpoint{Task: t.ID, Node: t.Node, Slot: t.Slot, Address: t.Address})
			}
		}
		out.Endpoints = v.heard(out.Endpoints)
		slices.SortFunc(out.Endpoints, func(a, b agentapi.Endpoint) int { return compareIDs(a.Task, b.Task) })
		st.Services = append(st.Services, out)
	}
	v.certificates(st)
	v.state, v.built = st, v.generation
	return st
}

// heard leaves out the endpoints on silent nodes, unless there are no others: then the managers know less than the network.
func (v *view) heard(list []agentapi.Endpoint) []agentapi.Endpoint {
	if len(v.silent) == 0 {
		return list
	}
	var out []agentapi.Endpoint
	for _, e := range list {
		if !v.silent[e.Node] {
			out = append(out, e)
		}
	}
	if len(out) == 0 {
		return list
	}
	return out
}

// service is what nodes must know of a service, without its endpoints.
func (v *view) service(s *cluster.Service, rev *cluster.Revision) agentapi.Service {
	out := agentapi.Service{ID: s.ID, Name: s.Name, Stack: s.StackName, Networks: make(map[cluster.ID][]string, len(rev.Networks)), Ingress: rev.Spec.Ingress}
	if a := rev.Spec.Autoscale; a.Rests() && !s.Scaled {
		out.Holds, out.HoldWait, out.HoldRequests = true, a.Hold.Wait, a.Hold.Requests
	}
	if rev.Spec.EndpointMode != spec.EndpointDNSRR {
		out.Address = s.Address
	}
	for _, at := range rev.Spec.Networks {
		if id, ok := rev.Networks[at.Network]; ok {
			out.Networks[id] = at.Aliases
		}
	}
	for _, p := range rev.Spec.Ports {
		if p.Mode != spec.PortHost {
			out.Ports = append(out.Ports, p)
		}
	}
	return out
}

func compareIDs(a, b cluster.ID) int { return cmp.Compare(string(a[:]), string(b[:])) }
