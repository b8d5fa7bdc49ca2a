package server

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"time"

	"baton/client/api"
	"baton/internal/manager/store"
	"baton/internal/model/cluster"
	"baton/internal/wire/agentapi"
)

// usageWait is how long a node has to tell what it uses. It reads a few files: one that takes longer is in trouble, and its user
// wants to see the others.
const usageWait = 3 * time.Second

// nodeUsage is the answer of a node.
type nodeUsage struct {
	agentapi.Usage
	err error
}

// usage asks nodes what they and their tasks use, all at once: one that does not answer must not hide the others.
func (s *Server) usage(ctx context.Context, nodes []*cluster.Node) []nodeUsage {
	out := make([]nodeUsage, len(nodes))
	errs := s.ask(nodes, func(i int, n *cluster.Node, ns agentapi.NodeServices) (err error) {
		sub, cancel := context.WithTimeout(ctx, usageWait)
		defer cancel()
		out[i].Usage, err = ns.Usage(sub)
		if errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
			return api.Errorf(api.CodeUnavailable, "node %s does not answer within %s", n.Name, usageWait)
		}
		return err
	})
	for i, err := range errs {
		out[i].err = err
	}
	return out
}

func (u nodeUsage) doc(n *cluster.Node) api.NodeUsage {
	if u.err != nil {
		return api.NodeUsage{Node: n.Name, Error: u.err.Error()}
	}
	return api.NodeUsage{Node: n.Name, At: u.At, CPU: u.CPU, Busy: u.Busy, Cores: u.Cores, Memory: u.Memory, MemorySize: u.MemorySize}
}

// top tells what nodes and their tasks use: those of a target, or all. A stack without a target chooses tasks only.
func (s *Server) top(ctx context.Context, stack, name string) (api.Top, error) {
	tasks, err := s.listTasks(stack, name, false)
	if err != nil {
		return api.Top{}, err
	}
	nodes, err := s.nodesOf(tasks, stack, name)
	if err != nil {
		return api.Top{}, err
	}
	answers := s.usage(ctx, nodes)
	out := api.Top{Nodes: []api.NodeUsage{}, Tasks: []api.TaskStats{}}
	failed := make(map[cluster.ID]error)
	of := make(map[cluster.ID]agentapi.Stats)
	for i, u := range answers {
		out.Nodes = append(out.Nodes, u.doc(nodes[i]))
		failed[nodes[i].ID] = u.err
		for _, st := range u.Tasks {
			of[st.Task] = st
		}
	}
	for _, t := range tasks {
		got, found := of[t.ID]
		if !found && t.Observed != cluster.ObservedRunning {
			continue // it has nothing that could use anything
		}
		x := api.TaskStats{Task: t.ID, Service: t.ServiceName, Stack: t.StackName, Slot: t.Slot, Node: t.NodeName, At: s.cfg.Now()}
		switch err := failed[t.Node]; {
		case err != nil:
			x.Error = err.Error()
		case !found:
			x.Error = "its container has just ended"
		default:
			x.At, x.CPU, x.Memory, x.MemoryLimit, x.PIDs = got.At, got.CPU, got.Memory, got.MemoryLimit, got.PIDs
			x.Received, x.Sent = got.Received, got.Sent
		}
		out.Tasks = append(out.Tasks, x)
	}
	slices.SortStableFunc(out.Tasks, func(a, b api.TaskStats) int {
		return cmp.Or(cmp.Compare(a.Stack, b.Stack), cmp.Compare(a.Service, b.Service), cmp.Compare(a.Slot, b.Slot))
	})
	s.topLoads(&out, tasks)
	return out, ctx.Err()
}

// nodesOf are all nodes, by name; with a target those of its tasks, and the one that is the target.
func (s *Server) nodesOf(tasks []api.Task, stack, name string) ([]*cluster.Node, error) {
	snap := s.cfg.Store.Snapshot()
	var asked cluster.ID
	if name != "" {
		t, err := (resolver{snap: snap, hint: stack}).any(name)
		if err != nil {
			return nil, err
		}
		if t.kind == cluster.KindNode {
			asked = t.node.ID
		}
	}
	has := map[cluster.ID]bool{asked: true}
	for i := range tasks {
		has[tasks[i].Node] = true
	}
	var out []*cluster.Node
	for n := range store.All[*cluster.Node](snap) {
		if name == "" || has[n.ID] {
			out = append(out, n)
		}
	}
	slices.SortFunc(out, func(a, b *cluster.Node) int { return cmp.Compare(a.Name, b.Name) })
	return out, nil
}
