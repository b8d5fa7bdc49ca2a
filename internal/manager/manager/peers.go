package manager

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"baton/internal/manager/consensus"
	"baton/internal/manager/dispatch"
	"baton/internal/manager/store"
	"baton/internal/model/cluster"
	"baton/internal/wire/agentapi"
	"baton/internal/wire/noderpc"
	"baton/internal/wire/rpc"
	"baton/internal/wire/transport"
)

// The calls between managers.
const (
	peerService = "baton.Manager"
	callPropose = "Propose"
	callBarrier = "Barrier"
	callAttend  = "Attend"
	callStatus  = "Status"
)

type (
	proposeIn struct {
		Txns []byte `json:"txns"` // as in the log
	}
	// outcome is what became of a call that only the leader can do. Code is empty when it was done.
	outcome struct {
		Version store.Version `json:"version,omitempty"`
		Code    string        `json:"code,omitempty"`
		Text    string        `json:"text,omitempty"`
	}
	attendIn struct {
		Manager string              `json:"manager"`
		List    []dispatch.Presence `json:"list"`
	}
	statusOut struct {
		Applied store.Version `json:"applied"`
		Last    uint64        `json:"last"`
		Version string        `json:"version"`
	}
)

// known are the errors of a log that cross the wire as what they are.
var known = map[string]error{
	"conflict": store.ErrConflict, "exists": store.ErrExists, "not-leader": consensus.ErrNotLeader, "too-large": consensus.ErrTooLarge,
	"closed": consensus.ErrClosed, "disk-full": consensus.ErrDiskFull, "disk-stalled": consensus.ErrDiskStalled,
	"unknown": consensus.ErrUnknown, "no-leader": consensus.ErrNoLeader,
}

// told makes an error what crosses the wire.
func told(v store.Version, err error) outcome {
	if err == nil {
		return outcome{Version: v}
	}
	o := outcome{Code: "other", Text: err.Error()}
	for code, k := range known {
		if errors.Is(err, k) {
			o.Code = code
		}
	}
	return o
}

// remoteError is an error that another manager told: its text, and what it is.
type remoteError struct {
	text string
	is   error
}

func (e *remoteError) Error() string { return e.text }
func (e *remoteError) Unwrap() error { return e.is }

func (o outcome) result() (store.Version, error) {
	if o.Code == "" {
		return o.Version, nil
	}
	return 0, &remoteError{text: o.Text, is: known[o.Code]}
}

// peers are the other managers, as this one reaches them.
type peers struct {
	dialer *transport.Dialer
	// address tells where a manager listens.
	address func(id string) (string, bool)

	mu    sync.Mutex
	conns map[string]*grpc.ClientConn
}

var _ consensus.Remote = (*peers)(nil)

const (
	dialMax = 2 * time.Second
	callMax = 10 * time.Second // for one call, unless its caller gives up earlier
)

// conn is an open connection to a manager.
func (p *peers) conn(ctx context.Context, id string) (*grpc.ClientConn, error) {
	p.mu.Lock()
	c := p.conns[id]
	p.mu.Unlock()
	if c != nil {
		return c, nil
	}
	raw, err := p.dial(ctx, id, transport.ProtocolManager, dialMax)
	if err != nil {
		return nil, err
	}
	c = rpc.NewClientOn(raw)
	p.mu.Lock()
	defer p.mu.Unlock()
	if old := p.conns[id]; old != nil { // somebody else was faster
		return old, c.Close()
	}
	p.conns[id] = c
	return c, nil
}

// dial connects to the manager with the id, and to no other.
func (p *peers) dial(ctx context.Context, id, protocol string, limit time.Duration) (net.Conn, error) {
	address, ok := p.address(id)
	if !ok {
		return nil, fmt.Errorf("the address of manager %s is not known", id)
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	return p.dialer.Dial(ctx, address, protocol, transport.NodeName(id))
}

// drop forgets a connection that does not work any more.
func (p *peers) drop(id string, c *grpc.ClientConn) {
	p.mu.Lock()
	if p.conns[id] == c {
		delete(p.conns, id)
	}
	p.mu.Unlock()
	_ = c.Close() // it is broken already
}

func (p *peers) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for id, c := range p.conns {
		delete(p.conns, id)
		_ = c.Close() // nobody waits for it any more
	}
}

// call asks a manager. sent tells, after an error, whether the question may have reached it.
func call[O, I any](ctx context.Context, p *peers, id, method string, in I) (out O, sent bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, callMax)
	defer cancel()
	c, err := p.conn(ctx, id)
	if err != nil {
		return out, false, err
	}
	out, err = rpc.Call[O](ctx, c, peerService, method, in)
	if code := status.Code(err); code == codes.Unavailable || code == codes.DeadlineExceeded {
		p.drop(id, c) // a machine that vanished says nothing: the next call is to find out at once
	}
	return out, true, err
}

// Propose implements consensus.Remote.
func (p *peers) Propose(ctx context.Context, manager string, t store.Txn) (store.Version, error) {
	data, err := store.EncodeTxns([]store.Txn{t})
	if err != nil {
		return 0, err
	}
	return p.ask(ctx, manager, callPropose, proposeIn{data})
}

// Barrier implements consensus.Remote.
func (p *peers) Barrier(ctx context.Context, manager string) (store.Version, error) {
	return p.ask(ctx, manager, callBarrier, proposeIn{})
}

func (p *peers) ask(ctx context.Context, manager, method string, in proposeIn) (store.Version, error) {
	out, sent, err := call[outcome](ctx, p, manager, method, in)
	switch {
	case err == nil:
		return out.result()
	case !sent:
		return 0, fmt.Errorf("%w: %w", consensus.ErrNoLeader, err) // it will be elected anew, or come back
	}
	return 0, fmt.Errorf("%w: the leader did not answer: %s", consensus.ErrUnknown, rpc.Message(err))
}

// servePeers answers the other managers.
func (m *Manager) servePeers(s *grpc.Server) {
	t := rpc.NewTable(peerService)
	rpc.Unary(t, callPropose, func(ctx context.Context, in proposeIn) (outcome, error) {
		txns, err := store.DecodeTxns(in.Txns)
		if err != nil || len(txns) != 1 {
			return outcome{}, status.Error(codes.InvalidArgument, "not one transaction")
		}
		return told(m.raft.Propose(ctx, txns[0])), nil
	})
	rpc.Unary(t, callBarrier, func(ctx context.Context, _ proposeIn) (outcome, error) {
		err := m.raft.Barrier(ctx)
		return told(m.store.Snapshot().Version(), err), nil
	})
	rpc.Unary(t, callAttend, func(_ context.Context, in attendIn) (outcome, error) {
		return told(0, m.hear(in.Manager, in.List)), nil
	})
	rpc.Unary(t, callHas, m.has)
	rpc.Unary(t, callMeasures, m.hearMeasures)
	rpc.Unary(t, callStatus, func(context.Context, agentapi.Empty) (statusOut, error) {
		st := m.raft.Status()
		return statusOut{Applied: st.Applied, Last: st.Last, Version: m.cfg.Version}, nil
	})
	t.Register(s)
	noderpc.Serve(s, m.nodeHere)
}

// hear takes presences when this manager leads.
func (m *Manager) hear(manager string, list []dispatch.Presence) error {
	if !m.leads.Load() {
		return consensus.ErrNotLeader
	}
	m.roster.Hear(manager, list)
	return nil
}

// Attend implements dispatch.Attendant.
func (m *Manager) Attend(ctx context.Context, list []dispatch.Presence) error {
	self := m.cfg.NodeID.String()
	leader := m.log.Leader()
	switch leader {
	case "":
		return consensus.ErrNoLeader
	case self:
		return m.hear(self, list)
	}
	out, _, err := call[outcome](ctx, m.peers, leader, callAttend, attendIn{Manager: self, List: list})
	if err != nil {
		return err
	}
	_, err = out.result()
	return err
}

// stream connects raft's transport to the managers: an address is a node's id.
type stream struct {
	net.Listener
	self  string
	peers *peers
}

var _ raft.StreamLayer = stream{}

// Dial implements raft.StreamLayer.
func (s stream) Dial(address raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	return s.peers.dial(context.Background(), string(address), transport.ProtocolRaft, min(timeout, dialMax))
}

// Addr implements net.Listener.
func (s stream) Addr() net.Addr { return idAddr(s.self) }

// idAddr is an address that is a node's id.
type idAddr string

// Network implements net.Addr.
func (idAddr) Network() string { return "baton" }

// String implements net.Addr.
func (a idAddr) String() string { return string(a) }

const (
	raftPool    = 3 // connections kept open to each manager
	raftTimeout = 5 * time.Second
)

// newTransport makes raft's transport on the one port.
func newTransport(port *transport.Listener, p *peers, self cluster.ID) (raft.Transport, error) {
	return raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
		Stream: stream{Listener: port.Protocol(transport.ProtocolRaft), self: self.String(), peers: p},
		// One request at a time to each peer. A pipeline of raft v1.8.0 blocks for ever when a follower refuses an entry while
		// the pipeline is full: nothing is sent to that follower any more, and the log does not close.
		MaxRPCsInFlight: 1,
		MaxPool:         raftPool, Timeout: raftTimeout, Logger: hclog.NewNullLogger(), // raft itself logs what matters
	}), nil
}
