package node

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"time"

	"baton/internal/node/agent"
	"baton/internal/node/edgeproc"
	"baton/internal/wire/agentapi"
)

// ingress is the edge, in a process of its own (edgeproc.Edge).
type ingress interface {
	// Apply makes new requests follow a state, and returns once they do.
	Apply(ctx context.Context, s agentapi.NetworkState) error
	// Connections counts the requests that are with the tasks of an address.
	Connections(ctx context.Context, address netip.Addr) (int, error)
}

var _ ingress = (*edgeproc.Edge)(nil)

// fronted is the node's network with its edge: the agent acknowledges a state once both follow it, and a drain waits for both.
type fronted struct {
	agent.Network
	edge    ingress
	wakener *wakener
}

var _ agent.Network = fronted{}

// Apply implements agent.Network. The edge goes second: an endpoint that is new is reached only with the network's rules.
func (f fronted) Apply(ctx context.Context, s agentapi.NetworkState) error {
	if err := f.Network.Apply(ctx, s); err != nil {
		return err
	}
	if err := f.edge.Apply(ctx, s); err != nil {
		return err
	}
	f.wakener.follow(s)
	return nil
}

// Connections implements agent.Network. A request of the edge may count twice, as one and as a tracked connection: what
// matters is when there are none.
func (f fronted) Connections(ctx context.Context, address netip.Addr) (int, error) {
	n, err := f.Network.Connections(ctx, address)
	if err != nil {
		return n, err
	}
	more, err := f.edge.Connections(ctx, address)
	return n + more, err
}

// listenIngress opens a port of the ingress rules on all of the node's addresses.
func listenIngress(port int) func(context.Context) (net.Listener, error) {
	return func(ctx context.Context) (net.Listener, error) {
		l, err := new(net.ListenConfig).Listen(ctx, "tcp", net.JoinHostPort("", strconv.Itoa(port)))
		if err != nil {
			return nil, fmt.Errorf("ingress rules: %w; end what listens on port %d of this node (`ss -ltnp` shows it)", err, port)
		}
		return l, nil
	}
}

// ingressFailed tells users that this node serves no ingress rules.
func (n *Node) ingressFailed(err error) {
	n.note(agentapi.Note{Type: "node.ingress-failed", At: time.Now(), Message: err.Error()})
}

// ingressRestarted tells users that connections of clients were cut here.
func (n *Node) ingressRestarted(reason string) {
	n.note(agentapi.Note{Type: "node.edge-restarted", At: time.Now(), Message: reason})
}
