package manager

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/connectivity"

	"baton/internal/manager/store"
	"baton/internal/model/cluster"
	"baton/internal/wire/agentapi"
	"baton/internal/wire/noderpc"
	"baton/internal/wire/rpc"
	"baton/internal/wire/transport"
)

// ways are the connections on which nodes serve this manager: they opened them themselves.
type ways struct {
	mu    sync.Mutex
	conns map[cluster.ID]*grpc.ClientConn
}

// accept takes the nodes' connections until l is closed.
func (w *ways) accept(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		peer, ok := c.(*transport.Conn)
		if !ok {
			panic(fmt.Sprintf("manager: a %T from the port", c))
		}
		id, err := cluster.ParseID(peer.Peer.Name)
		if err != nil {
			_ = c.Close() // a certificate that names no node
			continue
		}
		client := rpc.NewClientOn(c)
		w.mu.Lock()
		old := w.conns[id]
		w.conns[id] = client
		w.mu.Unlock()
		if old != nil {
			_ = old.Close() // the node has opened another one
		}
	}
}

// get is the way to a node, if it has one to this manager.
func (w *ways) get(id cluster.ID) (agentapi.NodeServices, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	c, ok := w.conns[id]
	if !ok {
		return nil, false
	}
	if !usable(c) {
		delete(w.conns, id)
		_ = c.Close() // it is broken already
		return nil, false
	}
	return noderpc.NewClient(c, cluster.ID{}), true
}

// usable reports whether a connection that is not made anew still works.
func usable(c *grpc.ClientConn) bool {
	st := c.GetState()
	return st == connectivity.Ready || st == connectivity.Connecting
}

func (w *ways) close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for id, c := range w.conns {
		delete(w.conns, id)
		_ = c.Close() // the node opens another one elsewhere
	}
}

// nodeHere finds the services of a node that is this one, or that has a way to this manager.
func (m *Manager) nodeHere(_ context.Context, id cluster.ID) (agentapi.NodeServices, error) {
	if id == m.cfg.NodeID {
		if n := m.cfg.Node(); n != nil {
			return n, nil
		}
	}
	if n, ok := m.ways.get(id); ok {
		return n, nil
	}
	return nil, errNoWay
}

var errNoWay = errors.New("the node is not connected to this manager")

// nodes finds what users may ask of a node: directly, or through the manager that it is connected to.
func (m *Manager) nodes(id cluster.ID) (agentapi.NodeServices, bool) {
	if n, err := m.nodeHere(context.Background(), id); err == nil {
		return n, true
	}
	node, ok := store.Get[*cluster.Node](m.store.Snapshot(), id)
	if !ok || node.State != cluster.NodeReady {
		return nil, false
	}
	for n := range store.All[*cluster.Node](m.store.Snapshot()) {
		if !n.Manager || n.ID == m.cfg.NodeID {
			continue
		}
		ctx, cancel := context.WithTimeout(context.Background(), dialMax)
		out, _, err := call[hasOut](ctx, m.peers, n.ID.String(), callHas, hasIn{id})
		cancel()
		if err != nil || !out.Has {
			continue
		}
		if c, err := m.peers.conn(context.Background(), n.ID.String()); err == nil {
			return noderpc.NewClient(c, id), true
		}
	}
	return nil, false
}

// callHas asks a manager whether a node is connected to it.
const callHas = "Has"

type (
	hasIn struct {
		Node cluster.ID `json:"node"`
	}
	hasOut struct {
		Has bool `json:"has"`
	}
)

func (m *Manager) has(ctx context.Context, in hasIn) (hasOut, error) {
	_, err := m.nodeHere(ctx, in.Node)
	return hasOut{Has: err == nil}, nil
}
