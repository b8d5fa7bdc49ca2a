package server

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"baton/client/api"
	"baton/internal/manager/store"
	"baton/internal/model/cluster"
	"baton/internal/wire/agentapi"
)

func (r reader) node(n *cluster.Node) api.Node {
	out := api.Node{Node: *n}
	for t := range r.snap.TasksByNode(n.ID) {
		if past(t) {
			continue
		}
		out.Tasks++
		if rev := r.revision(t.Revision); rev != nil {
			out.Reserved += rev.Spec.Resources.Reservations.CPU
			out.Memory += rev.Spec.Resources.Reservations.Memory
		}
	}
	return out
}

// listNodes lists the nodes; with used, after asking each what it uses.
func (s *Server) listNodes(ctx context.Context, used bool) []api.Node {
	snap := s.cfg.Store.Snapshot()
	leader, _ := s.members()
	out := []api.Node{}
	avoided := s.suspects(snap)
	var nodes []*cluster.Node
	for n := range store.All[*cluster.Node](snap) {
		nodes = append(nodes, n)
		doc := reader{snap}.node(n)
		doc.Leader = n.ID.String() == leader
		doc.Avoided = avoided[n.ID]
		out = append(out, doc)
	}
	if used {
		for i, u := range s.usage(ctx, nodes) {
			doc := u.doc(nodes[i])
			out[i].Used = &doc
		}
	}
	slices.SortFunc(out, func(a, b api.Node) int { return cmp.Compare(a.Name, b.Name) })
	return out
}

func (s *Server) getNode(name string) (api.Node, error) {
	snap := s.cfg.Store.Snapshot()
	n, err := (resolver{snap: snap}).node(name)
	if err != nil {
		return api.Node{}, err
	}
	doc := reader{snap}.node(n)
	leader, _ := s.members()
	doc.Leader = n.ID.String() == leader
	doc.Avoided = s.suspects(snap)[n.ID]
	return doc, nil
}

// labelsMax bounds the labels of a node.
const labelsMax = 256

func (s *Server) patchNode(ctx context.Context, name string, p api.NodePatch) (api.Node, error) {
	err := s.retry(ctx, func(snap store.Snapshot, now time.Time) (store.Txn, error) {
		var txn store.Txn
		n, err := (resolver{snap: snap}).node(name)
		if err != nil {
			return txn, err
		}
		c := cluster.Copy(n)
		var changes []string
		if n.Witness && (p.Manager != nil && !*p.Manager || p.Availability != nil && *p.Availability != cluster.NodeDrain) {
			return txn, api.Errorf(api.CodeRefused, "node %s is a witness: it votes and does nothing else", n.Name).
				WithMend("remove it, and let it join anew with an empty data directory and without --witness")
		}
		if p.Availability != nil && *p.Availability != c.Availability {
			c.Availability = *p.Availability
			changes = append(changes, "availability "+string(c.Availability))
		}
		if p.Manager != nil && *p.Manager != c.Manager {
			if err := s.mayChangeRole(snap, n, *p.Manager); err != nil {
				return txn, err
			}
			c.Manager = *p.Manager
			changes = append(changes, "role "+roleName(c))
		}
		for k, v := range p.Labels {
			if !validName(strings.ReplaceAll(k, "/", "-")) {
				return txn, api.Errorf(api.CodeInvalid, "%q is not a name for a label", k)
			}
			old, had := c.Labels[k]
			switch {
			case v == "" && had:
				delete(c.Labels, k)
				changes = append(changes, "label "+k+" removed")
			case v != "" && old != v:
				if c.Labels == nil {
					c.Labels = make(map[string]string)
				}
				c.Labels[k] = v
				changes = append(changes, "label "+k+"="+v)
			}
		}
		if len(c.Labels) > labelsMax {
			return txn, api.Errorf(api.CodeInvalid, "a node has at most %d labels", labelsMax)
		}
		if len(changes) > 0 {
			slices.Sort(changes)
			txn.Put(c)
			s.event(&txn, now, "node.changed", fmt.Sprintf("node %s: %s", n.Name, strings.Join(changes, ", ")), func(e *cluster.Event) { e.Node = n.ID })
		}
		return txn, nil
	}, func(store.Version) {})
	if err != nil {
		return api.Node{}, err
	}
	return s.getNode(name)
}

func (s *Server) listVolumes(stack string) ([]api.Volume, error) {
	snap := s.cfg.Store.Snapshot()
	st, err := optionalStack(snap, stack)
	if err != nil {
		return nil, err
	}
	used := volumeUsers(snap)
	out := []api.Volume{}
	for v := range store.All[*cluster.Volume](snap) {
		if st != nil && v.Stack != st.ID {
			continue
		}
		doc := api.Volume{Volume: *v, StackName: reader{snap}.stackName(v.Stack), UsedBy: used[v.ID]}
		if !v.Node.IsZero() {
			doc.NodeName = reader{snap}.nodeName(v.Node)
		}
		out = append(out, doc)
	}
	slices.SortFunc(out, func(a, b api.Volume) int { return cmp.Compare(a.Name, b.Name) })
	return out, nil
}

func volumeUsers(snap store.Snapshot) map[cluster.ID][]string {
	out := make(map[cluster.ID][]string)
	for svc := range store.All[*cluster.Service](snap) {
		if rev, ok := store.Get[*cluster.Revision](snap, svc.Revision); ok {
			for _, id := range rev.Volumes {
				out[id] = append(out[id], svc.StackName+"/"+svc.Name)
			}
		}
	}
	for _, list := range out {
		slices.Sort(list)
	}
	return out
}

func (s *Server) removeVolume(ctx context.Context, name string) error {
	return s.retry(ctx, func(snap store.Snapshot, now time.Time) (store.Txn, error) {
		var txn store.Txn
		v, ok := snap.VolumeByName(name)
		if !ok {
			var names []string
			for v := range store.All[*cluster.Volume](snap) {
				names = append(names, v.Name)
			}
			return txn, (resolver{snap: snap}).unknown("volume", name, names)
		}
		if by := volumeUsers(snap)[v.ID]; len(by) > 0 {
			return txn, api.Errorf(api.CodeInUse, "volume %s is in use by %s", name, strings.Join(by, ", ")).WithMend("remove the stack first, or take the volume out of its file")
		}
		if v.Removing {
			return txn, nil
		}
		c := cluster.Copy(v)
		c.Removing = true
		txn.Put(c)
		s.event(&txn, now, "volume.removing", fmt.Sprintf("volume %s is being removed", name), func(e *cluster.Event) { e.Stack, e.Node = v.Stack, v.Node })
		return txn, nil
	}, func(store.Version) {})
}

// services finds what a node does for users.
func (s *Server) services(n cluster.ID, name string) (agentapi.NodeServices, error) {
	ns, ok := s.cfg.Nodes(n)
	if !ok {
		return nil, api.Errorf(api.CodeUnavailable, "node %s is not connected", name).WithMend("see `baton node ls`")
	}
	return ns, nil
}

// connected lists the nodes that were asked for: one by name, which must be connected, or all that are.
func (s *Server) connected(snap store.Snapshot, name string) ([]*cluster.Node, error) {
	if name != "" {
		n, err := (resolver{snap: snap}).node(name)
		if err != nil {
			return nil, err
		}
		if _, err := s.services(n.ID, n.Name); err != nil {
			return nil, err
		}
		return []*cluster.Node{n}, nil
	}
	var out []*cluster.Node
	for n := range store.All[*cluster.Node](snap) {
		if _, ok := s.cfg.Nodes(n.ID); ok {
			out = append(out, n)
		}
	}
	slices.SortFunc(out, func(a, b *cluster.Node) int { return cmp.Compare(a.Name, b.Name) })
	return out, nil
}

// askMax is how many nodes are asked at once.
const askMax = 16

// each asks nodes at once, at most askMax at a time, and returns the errors.
func (s *Server) each(nodes []*cluster.Node, f func(i int, n *cluster.Node, ns agentapi.NodeServices) error) error {
	return errors.Join(s.ask(nodes, f)...)
}

// ask is each with the error of every node.
func (s *Server) ask(nodes []*cluster.Node, f func(i int, n *cluster.Node, ns agentapi.NodeServices) error) []error {
	errs := make([]error, len(nodes))
	slots := make(chan struct{}, askMax)
	var wg sync.WaitGroup
	for i, n := range nodes {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			ns, err := s.services(n.ID, n.Name)
			if err == nil {
				err = f(i, n, ns)
			}
			errs[i] = err
		})
	}
	wg.Wait()
	return errs
}
