package manager

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"time"

	"baton/internal/manager/store"
	"baton/internal/model/cluster"
	"baton/internal/wire/agentapi"
	"baton/internal/wire/rpc"
)

// holdersMax is how many holders of an image a node is told of: enough to go on when some of them die.
const holdersMax = 16

// currentMax bounds how long an answer waits for this manager's store to be current. What is known has to do then: a node
// must be able to start what it has while the cluster has no leader.
const currentMax = time.Second

// Holders tells a node who else has an image, with all loads that were acknowledged before the question.
func (m *Manager) Holders(ctx context.Context, asking cluster.ID, ref string) agentapi.ImageHolders {
	ctx, cancel := context.WithTimeout(ctx, currentMax)
	defer cancel()
	if err := m.log.Barrier(ctx); err != nil {
		m.cfg.Logger.Warn("who has an image is told from a store that may be behind", "image", ref, "err", err)
	}
	return m.holdersNow(asking, ref)
}

// holdersNow is what this manager's store says: first the node where it was loaded, then others in an order drawn anew each
// time, so that they share the work.
func (m *Manager) holdersNow(asking cluster.ID, ref string) agentapi.ImageHolders {
	snap := m.store.Snapshot()
	var out agentapi.ImageHolders
	loaded, ok := store.Get[*cluster.LoadedImage](snap, cluster.ImageID(ref))
	var first, others []agentapi.ImageHolder
	if ok {
		out.Digest, out.Loaded = loaded.Digest, loaded.Loaded
	}
	for n := range store.All[*cluster.Node](snap) {
		here := ok && n.ID == loaded.Node
		if here {
			out.On = n.Name
		}
		if n.ID == asking || n.State != cluster.NodeReady || n.Description.Listen == "" {
			continue
		}
		h := agentapi.ImageHolder{Node: n.ID, Name: n.Name, Address: n.Description.Listen}
		switch {
		case here: // it may not have said so yet
			first = append(first, h)
		case slices.Contains(n.Description.Images, ref):
			others = append(others, h)
		}
	}
	rand.Shuffle(len(others), func(i, j int) { others[i], others[j] = others[j], others[i] })
	out.Holders = append(first, others...)
	out.Holders = out.Holders[:min(len(out.Holders), holdersMax)]
	return out
}

// holders answers a node's CallHolders.
func (m *Manager) holders(ctx context.Context, in agentapi.ImageQuestion) (agentapi.ImageHolders, error) {
	id, err := cluster.ParseID(rpc.Peer(ctx).Name)
	if err != nil {
		return agentapi.ImageHolders{}, errors.New("the certificate of who asks names no node")
	}
	return m.Holders(ctx, id, in.Ref), nil
}

// Member reports whether a node belongs to the cluster.
func (m *Manager) Member(id cluster.ID) bool {
	_, ok := store.Get[*cluster.Node](m.store.Snapshot(), id)
	return ok
}

// member answers a node's CallMember.
func (m *Manager) member(_ context.Context, in agentapi.MemberQuestion) (agentapi.MemberAnswer, error) {
	return agentapi.MemberAnswer{Member: m.Member(in.Node)}, nil
}
