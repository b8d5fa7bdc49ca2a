package manager

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"baton/internal/manager/identity"
	"baton/internal/manager/store"
	"baton/internal/model/cluster"
	"baton/internal/wire/agentapi"
	"baton/internal/wire/rpc"
	"baton/internal/wire/transport"
)

// nonceMin is the least length of a joining machine's nonce, in bytes.
const nonceMin = 16

// serveJoin answers machines that have no certificate yet.
func (m *Manager) serveJoin(s *grpc.Server) {
	t := rpc.NewTable(agentapi.JoinService)
	rpc.Unary(t, agentapi.CallJoin, m.join)
	t.Register(s)
}

// join makes a machine a member: it checks the token, writes the node and signs its certificate.
func (m *Manager) join(ctx context.Context, in agentapi.JoinRequest) (agentapi.JoinReply, error) {
	if err := m.log.Barrier(ctx); err != nil { // a token that was rotated a moment ago must not be good here
		return agentapi.JoinReply{}, status.Error(codes.Unavailable, "the cluster cannot take a node now: "+err.Error())
	}
	at, err := netip.ParseAddrPort(in.Listen)
	if err != nil || in.Node.IsZero() || in.Name == "" || len(in.Nonce) < nonceMin {
		return agentapi.JoinReply{}, status.Error(codes.InvalidArgument, "the request to join is incomplete: it needs an id, a name, a nonce and an address with port")
	}
	tokens := slices.Collect(store.All[*cluster.JoinToken](m.store.Snapshot()))
	role, err := identity.Check(in.Secret, tokens, time.Now())
	if err != nil {
		m.cfg.Logger.Warn("a machine was refused", "name", in.Name, "listen", in.Listen, "reason", err)
		return agentapi.JoinReply{}, status.Error(codes.PermissionDenied, err.Error())
	}
	settings, _ := m.store.Snapshot().Settings()
	if err := settings.Admit(in.Level); err != nil {
		m.cfg.Logger.Warn("a machine was refused", "name", in.Name, "listen", in.Listen, "reason", err)
		return agentapi.JoinReply{}, status.Error(codes.FailedPrecondition, err.Error())
	}
	switch {
	case in.Witness && role != transport.RoleManager:
		return agentapi.JoinReply{}, status.Error(codes.InvalidArgument, "a witness is a manager: join it with a manager's token, as `baton token ls manager` prints it")
	case in.Witness && settings.Level.Or() < cluster.LevelLeases:
		return agentapi.JoinReply{}, status.Errorf(codes.FailedPrecondition, "witnesses need feature level %d, and the cluster is at %d: bring all nodes to this version of baton first", cluster.LevelLeases, settings.Level.Or())
	}
	if err := m.addNode(ctx, in, at.Addr(), role); err != nil {
		return agentapi.JoinReply{}, err
	}
	cert, err := m.certify(in.Node, in.CSR, in.Hosts, role)
	if err != nil {
		return agentapi.JoinReply{}, status.Error(codes.Internal, err.Error())
	}
	out := agentapi.JoinReply{Certificate: cert, Cluster: settings.Name, Role: role, Managers: m.managers()}
	if role == transport.RoleManager {
		out.Kit = &agentapi.Kit{SealKey: m.sealer.Key(), Managers: out.Managers}
	}
	m.cfg.Logger.Info("a node joined", "name", in.Name, "role", role, "listen", in.Listen)
	return out, nil
}

// addNode writes the new node, or finds it written by an earlier try of the same machine.
func (m *Manager) addNode(ctx context.Context, in agentapi.JoinRequest, at netip.Addr, role string) error {
	sum := sha256.Sum256(in.Nonce)
	now := time.Now()
	for range conflictMax {
		snap := m.store.Snapshot()
		if old, ok := store.Get[*cluster.Node](snap, in.Node); ok {
			if bytes.Equal(old.Joined, sum[:]) {
				return nil
			}
			return status.Error(codes.AlreadyExists, "a node with this id is a member already: start with an empty data directory")
		}
		if _, ok := snap.NodeByName(in.Name); ok {
			return status.Errorf(codes.AlreadyExists, "a node named %s is a member already: give another --name, or remove that one with `baton node rm %s`", in.Name, in.Name)
		}
		var t store.Txn
		availability := cluster.NodeActive
		if in.Witness {
			role, availability = "witness", cluster.NodeDrain
		}
		t.Put(&cluster.Node{
			Meta: cluster.Meta{ID: in.Node, Created: now}, Name: in.Name, Manager: role != transport.RoleWorker, Witness: in.Witness,
			Availability: availability, State: cluster.NodeUnknown, StateSince: now, Address: at, Joined: sum[:],
			Description: cluster.NodeDescription{Listen: in.Listen, Level: in.Level},
		})
		t.Put(&cluster.Event{
			Meta: cluster.Meta{ID: cluster.NewID(nil), Created: now}, At: now, Type: "node.joined", Node: in.Node, Who: "join token",
			Message: fmt.Sprintf("node %s joined as %s from %s", in.Name, role, in.Listen),
		})
		_, err := m.log.Propose(ctx, t)
		if err == nil {
			return nil
		}
		if !errors.Is(err, store.ErrConflict) && !errors.Is(err, store.ErrExists) {
			return status.Error(codes.Unavailable, err.Error())
		}
	}
	return status.Error(codes.Aborted, "the cluster changes too fast: try again")
}

// conflictMax is how often something is tried against concurrent writes.
const conflictMax = 16

// certify signs a certificate for a member.
func (m *Manager) certify(node cluster.ID, csr []byte, hosts []string, role string) (agentapi.Certificate, error) {
	stored, ok := store.Get[*cluster.Authority](m.store.Snapshot(), cluster.AuthorityID)
	if !ok {
		return agentapi.Certificate{}, errors.New("the cluster has no authority")
	}
	a, err := m.keeper.Open(stored)
	if err != nil {
		return agentapi.Certificate{}, err
	}
	cert, err := a.Sign(csr, identity.Subject{Name: node.String(), Role: role, Hosts: hosts}, time.Now())
	if err != nil {
		return agentapi.Certificate{}, err
	}
	return agentapi.Certificate{Certificate: cert, Roots: identity.RootsPEM(stored)}, nil
}

// renew gives a member a new certificate, for the role that it has now.
func (m *Manager) renew(ctx context.Context, in agentapi.Renewal) (agentapi.Certificate, error) {
	node, err := m.caller(ctx)
	if err != nil {
		return agentapi.Certificate{}, err
	}
	cert, err := m.certify(node.ID, in.CSR, in.Hosts, roleOf(node))
	if err != nil {
		return agentapi.Certificate{}, status.Error(codes.Internal, err.Error())
	}
	return cert, nil
}

// kit gives a node that is to be a manager what it needs for that.
func (m *Manager) kit(ctx context.Context, _ agentapi.Empty) (agentapi.Kit, error) {
	node, err := m.caller(ctx)
	if err != nil {
		return agentapi.Kit{}, err
	}
	if !node.Manager {
		return agentapi.Kit{}, status.Error(codes.PermissionDenied, "this node is not a manager")
	}
	return agentapi.Kit{SealKey: m.sealer.Key(), Managers: m.managers()}, nil
}

// caller is the node that makes a call.
func (m *Manager) caller(ctx context.Context) (*cluster.Node, error) {
	id, err := cluster.ParseID(rpc.Peer(ctx).Name)
	if err == nil {
		if node, ok := store.Get[*cluster.Node](m.store.Snapshot(), id); ok {
			return node, nil
		}
	}
	return nil, status.Error(codes.PermissionDenied, "this node is not a member of the cluster")
}

func roleOf(n *cluster.Node) string {
	if n.Manager {
		return transport.RoleManager
	}
	return transport.RoleWorker
}

// managers lists where managers listen, sorted by id.
func (m *Manager) managers() []agentapi.Manager {
	var out []agentapi.Manager
	for n := range store.All[*cluster.Node](m.store.Snapshot()) {
		if n.Manager {
			out = append(out, agentapi.Manager{Node: n.ID, Address: n.Description.Listen})
		}
	}
	slices.SortFunc(out, func(a, b agentapi.Manager) int { return bytes.Compare(a.Node[:], b.Node[:]) })
	return out
}

// allow says who may speak a protocol on the port, by what is stored of the peer. A manager that has nothing stored yet
// believes certificates.
func (m *Manager) allow(p transport.Peer, protocol string) error {
	switch protocol {
	case transport.ProtocolAPI, transport.ProtocolJoin:
		return nil
	}
	if m.store.Snapshot().Version() == 0 {
		if p.Role == transport.RoleManager {
			return nil
		}
		return errors.New("this manager is not ready yet")
	}
	id, err := cluster.ParseID(p.Name)
	if err != nil {
		return errors.New("its certificate names no node")
	}
	node, ok := store.Get[*cluster.Node](m.store.Snapshot(), id)
	switch {
	case !ok:
		return errors.New("it is not a member of the cluster, or not any more")
	case protocol == transport.ProtocolRaft || protocol == transport.ProtocolManager:
		if !node.Manager || p.Role != transport.RoleManager {
			return errors.New("it is not a manager")
		}
	}
	return nil
}
