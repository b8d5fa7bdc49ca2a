// Package manager composes the manager wing: store, log, keys, the port, leader's loops, sessions and API.
//
// It owns the order in which they start and stop, what a new cluster begins with (settings, authority, join tokens, the
// first node), the calls between managers, and who may speak what on the one port. The leader's loops run only while this
// manager leads, one run per term.
//
// Concurrency: Open returns with everything recovered; Run owns the goroutines and returns after all of them ended.
package manager

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"

	"baton/internal/manager/consensus"
	"baton/internal/manager/control"
	"baton/internal/manager/dispatch"
	"baton/internal/manager/identity"
	"baton/internal/manager/server"
	"baton/internal/manager/store"
	"baton/internal/model/cluster"
	"baton/internal/wire/agentapi"
	"baton/internal/wire/rpc"
	"baton/internal/wire/transport"
)

// Config is what a manager is made of; all fields but Hosts, Managers, Join, UnlockKey, ServeImages, Patience, Measures, Now
// and DiskFault are required.
type Config struct {
	Dir         string // state, keys and log
	NodeID      cluster.ID
	NodeName    string
	ClusterName string
	Version     string
	Network     transport.Network
	Credentials *transport.Files
	// Bind is where the port listens, Listen where others reach it (host:port).
	Bind, Listen string
	// Hosts are further names and addresses under which this machine is known.
	Hosts []string
	// Managers are those known from earlier; Join says that this manager joins them with an empty log.
	Managers []agentapi.Manager
	Join     bool
	// Mesh and MeshPort are how the nodes of a new cluster will be connected.
	Mesh     cluster.Mesh
	MeshPort uint16
	// Pools chooses the address pools of a new cluster; it is asked once in a cluster's life.
	Pools func() (tasks, services netip.Prefix, err error)
	// UnlockKey opens a sealing key that is locked.
	UnlockKey []byte
	// Node gives access to the tasks and images of this process' own node; nil while it is not up.
	Node func() agentapi.NodeServices
	// ServeImages gives this node's images to the nodes that connect to l, until ctx ends; nil: nobody gets any.
	ServeImages func(ctx context.Context, l net.Listener) error
	Patience    control.Patience
	// Measures is what autoscaling follows; nil: nothing is measured, and numbers are held.
	Measures control.Measures
	Logger   *slog.Logger
	// Now is what planners take for the time, DiskFault what befalls writes of the log; both are for simulations, and nil else.
	Now       func() time.Time
	DiskFault func() error
}

// nodeBits is the prefix length of a node's subnet: 1,022 tasks per node.
const nodeBits = 22

// shutdownMax is how long open requests may take when the manager stops.
const shutdownMax = 2 * time.Second

// Manager is a running manager wing.
type Manager struct {
	cfg        Config
	sealer     *identity.Sealer
	keeper     *identity.Keeper
	store      *store.Store
	port       *transport.Listener
	peers      *peers
	ways       ways
	raft       *consensus.Raft
	log        *consensus.Anywhere
	roster     *dispatch.Roster
	load       load
	leads      atomic.Bool
	dispatcher *dispatch.Dispatcher
	controller *control.Controller
	queries    *control.Queries
	api        *server.Server
	local      *http.Server // of the local socket
	caught     chan struct{}
}

// Open opens the port, recovers the state and, on the first start, founds the cluster.
func Open(ctx context.Context, cfg Config) (_ *Manager, err error) {
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, err
	}
	m := &Manager{cfg: cfg, store: store.New(), roster: dispatch.NewRoster(time.Now)}
	if m.sealer, err = openSealer(cfg.Dir, cfg.UnlockKey); err != nil {
		return nil, err
	}
	logKey, err := m.sealer.LogKey()
	if err != nil {
		return nil, err
	}
	m.keeper = identity.NewKeeper(m.sealer)
	m.ways.conns = make(map[cluster.ID]*grpc.ClientConn)
	m.peers = &peers{
		dialer:  &transport.Dialer{Network: cfg.Network, Credentials: cfg.Credentials},
		address: m.address, conns: make(map[string]*grpc.ClientConn),
	}
	m.port, err = transport.Listen(ctx, cfg.Bind, transport.Config{Network: cfg.Network, Credentials: cfg.Credentials, Allow: m.allow, Logger: cfg.Logger})
	if err != nil {
		return nil, err
	}
	m.raft, err = consensus.Open(ctx, consensus.Config{
		Dir: filepath.Join(cfg.Dir, "log"), NodeID: cfg.NodeID.String(), Store: m.store, Logger: cfg.Logger, Key: logKey,
		Transport: func() (raft.Transport, error) { return newTransport(m.port, m.peers, cfg.NodeID) },
		Join:      cfg.Join, Alone: m.alone(), DiskFault: cfg.DiskFault,
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open the log: %w", err), m.port.Close())
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, m.Close())
		}
	}()
	m.log = consensus.NewAnywhere(m.raft, m.peers)
	if err := m.found(ctx); err != nil {
		return nil, fmt.Errorf("found the cluster: %w", err)
	}
	m.newLoad()
	m.dispatcher = dispatch.New(dispatch.Config{Store: m.store, Log: m.log, Opener: m.sealer, Logger: cfg.Logger, Now: time.Now, Attendant: m, Measured: m.measured})
	m.queries = control.NewQueries(m.store, cfg.Logger)
	counts := counts{m.load.keeper, time.Now()}
	measures := cfg.Measures
	if measures == nil {
		measures = loads{m.load.keeper}
	}
	m.controller = control.New(control.Config{
		Store: m.store, Log: m.raft, Acks: m.roster, Logger: cfg.Logger, Seed: seed(cfg.NodeID), Now: cfg.Now,
		Sources: control.Sources{Measures: measures, Wants: m.roster, Answers: m.queries, Counts: counts, Requests: counts},
	})
	m.api = server.New(server.Config{
		Log: m.log, Store: m.store, Nodes: m.nodes, Self: cfg.NodeID, Sealer: m.sealer, Keeper: m.keeper, Members: m.membersNow, Backup: m.backup,
		Raft: m.raft.Status, Measures: m.load.keeper,
		Planner:     planner{seed: seed(cfg.NodeID)},
		ClusterName: cfg.ClusterName, Version: cfg.Version, Logger: cfg.Logger,
	})
	m.local, m.caught = m.httpServer(m.caughtUp(m.api.Handler())), make(chan struct{})
	return m, nil
}

// alone reports whether no other manager is known from earlier.
func (m *Manager) alone() bool {
	for _, o := range m.cfg.Managers {
		if o.Node != m.cfg.NodeID {
			return false
		}
	}
	return !m.cfg.Join
}

// membersNow tells the API who has the log.
func (m *Manager) membersNow() (leader string, voters []string) {
	return m.log.Leader(), m.raft.Status().Voters
}

// address tells where a manager listens: as stored, else as it was known earlier.
func (m *Manager) address(id string) (string, bool) {
	parsed, err := cluster.ParseID(id)
	if err != nil {
		return "", false
	}
	if n, ok := store.Get[*cluster.Node](m.store.Snapshot(), parsed); ok && n.Description.Listen != "" {
		return n.Description.Listen, true
	}
	for _, o := range m.cfg.Managers {
		if o.Node == parsed && o.Address != "" {
			return o.Address, true
		}
	}
	return "", false
}

// Connector is where the agent of this process connects first.
func (m *Manager) Connector() agentapi.Connector { return m.dispatcher }

// Store and Log are for those who drive a manager without its API, as a simulation does.
func (m *Manager) Store() *store.Store { return m.store }

// Log is the log, as every manager may use it.
func (m *Manager) Log() *consensus.Anywhere { return m.log }

// JoinToken is a join token for a role.
func (m *Manager) JoinToken(role string) (transport.Token, error) {
	snap := m.store.Snapshot()
	a, ok := store.Get[*cluster.Authority](snap, cluster.AuthorityID)
	if !ok {
		return transport.Token{}, errors.New("the cluster has no authority")
	}
	for t := range store.All[*cluster.JoinToken](snap) {
		if t.Role == role {
			return m.keeper.Token(t, a)
		}
	}
	return transport.Token{}, fmt.Errorf("no join token for a %s", role)
}

// Node reads the node of this process from the store.
func (m *Manager) Node() (*cluster.Node, bool) {
	return store.Get[*cluster.Node](m.store.Snapshot(), m.cfg.NodeID)
}

// Run works until ctx ends; then it closes the log. ServeLocal, if it is called, ends with it.
func (m *Manager) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return m.dispatcher.Run(ctx) })
	g.Go(func() error { return m.lead(ctx) })
	g.Go(func() error { m.catchUp(ctx); return nil })
	g.Go(func() error { m.watchNodes(ctx); return nil })
	g.Go(func() error { m.watchLock(ctx); return nil })
	g.Go(func() error { m.shareMeasures(ctx); return nil })
	g.Go(func() error { m.watchFailures(ctx); return nil })
	g.Go(func() error { return m.watchLevel(ctx) })
	g.Go(func() error { m.ways.accept(m.part(ctx, transport.ProtocolNode)); m.ways.close(); return nil })
	for _, part := range []struct {
		protocol string
		serve    func(*grpc.Server)
	}{
		{transport.ProtocolManager, m.servePeers}, {transport.ProtocolAgent, m.serveAgents}, {transport.ProtocolJoin, m.serveJoin},
	} {
		s := rpc.NewServer()
		part.serve(s)
		g.Go(func() error { return rpc.Serve(ctx, s, m.part(ctx, part.protocol)) })
	}
	if m.cfg.ServeImages != nil {
		g.Go(func() error { return m.cfg.ServeImages(ctx, m.part(ctx, transport.ProtocolImage)) })
	}
	m.serveAPI(ctx, g)
	return errors.Join(g.Wait(), m.Close())
}

// part is one protocol's listener; it is closed when ctx ends.
func (m *Manager) part(ctx context.Context, protocol string) net.Listener {
	l := m.port.Protocol(protocol)
	context.AfterFunc(ctx, func() { _ = l.Close() })
	return l
}

// serveAgents answers agents.
func (m *Manager) serveAgents(s *grpc.Server) {
	t := rpc.NewTable(agentapi.CallService)
	m.dispatcher.Serve(t)
	rpc.Unary(t, agentapi.CallRenew, m.renew)
	rpc.Unary(t, agentapi.CallKit, m.kit)
	rpc.Unary(t, agentapi.CallHolders, m.holders)
	rpc.Unary(t, agentapi.CallMember, m.member)
	t.Register(s)
}

// watchNodes ends the connections of those who are no members any more.
func (m *Manager) watchNodes(ctx context.Context) {
	cursor := m.store.Changes(0, store.Filter{Kinds: []cluster.Kind{cluster.KindNode}})
	defer cursor.Close()
	for {
		select {
		case <-ctx.Done():
			return
		case <-cursor.Wait():
		}
		if d := cursor.Collect(); len(d.Changed) > 0 || len(d.Deleted) > 0 {
			m.port.Recheck()
		}
	}
}

// lead runs the leader's loops for each term in which this manager leads.
func (m *Manager) lead(ctx context.Context) error {
	stop := func() {}
	defer func() { stop() }()
	for {
		select {
		case <-ctx.Done():
			return nil
		case term, ok := <-m.raft.Leadership():
			stop()
			stop = func() {}
			if !ok {
				return nil
			}
			if term.Leader {
				stop = m.begin(ctx, term)
			}
		}
	}
}

// begin starts a term; the function that it returns ends it.
func (m *Manager) begin(ctx context.Context, term consensus.Term) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	m.roster.Begin()
	m.leads.Store(true)
	if n, ok := m.Node(); ok && n.Witness {
		done := make(chan struct{})
		go func() { m.handOver(ctx); close(done) }()
		return func() {
			m.leads.Store(false)
			cancel()
			<-done
		}
	}
	var loops sync.WaitGroup
	loops.Go(func() {
		if err := m.controller.Run(ctx); err != nil {
			m.cfg.Logger.Error("leader's loop ended", "term", term.Number, "err", err)
		}
	})
	loops.Go(func() {
		control.Liveness{Store: m.store, Log: m.raft, Attendance: m.roster, Patience: m.cfg.Patience, Logger: m.cfg.Logger}.Run(ctx)
	})
	loops.Go(func() { m.follow(ctx) })
	loops.Go(func() { m.queries.Run(ctx) })
	loops.Go(func() { m.certificates().Run(ctx) })
	return func() {
		m.leads.Store(false)
		cancel()
		loops.Wait()
	}
}

// handOver gives leadership to another manager, trying until it has: a witness that was elected is only to keep the cluster going.
func (m *Manager) handOver(ctx context.Context) {
	said := ""
	for ctx.Err() == nil {
		err := m.raft.Transfer(ctx, "")
		if err != nil && ctx.Err() == nil && err.Error() != said {
			said = err.Error()
			m.cfg.Logger.Warn("this manager is a witness and leads until another one can", "err", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(followEvery):
		}
	}
}

// found writes what a cluster begins with, unless it is there, and gives this machine its first certificate. A manager that
// joins gets all that from the others.
func (m *Manager) found(ctx context.Context) error {
	if !m.alone() {
		return nil
	}
	if err := m.foundState(ctx); err != nil {
		return err
	}
	if _, err := m.cfg.Credentials.Certificate(); !errors.Is(err, transport.ErrNoCertificate) {
		return err
	}
	r, err := transport.NewRequest(m.cfg.NodeID.String())
	if err != nil {
		return err
	}
	c, err := m.certify(m.cfg.NodeID, r.CSR, m.cfg.Hosts, transport.RoleManager)
	if err != nil {
		return err
	}
	return m.cfg.Credentials.Install(r, c.Certificate, c.Roots)
}

func (m *Manager) foundState(ctx context.Context) error {
	snap := m.store.Snapshot()
	now := time.Now()
	var t store.Txn
	if _, ok := snap.Settings(); !ok {
		tasks, services, err := m.cfg.Pools()
		if err != nil {
			return err
		}
		t.Put(&cluster.Settings{
			Meta: cluster.Meta{ID: cluster.SettingsID, Created: now}, Name: m.cfg.ClusterName,
			TaskPool: tasks, ServicePool: services, NodeBits: max(nodeBits, tasks.Bits()), Mesh: m.cfg.Mesh, MeshPort: m.cfg.MeshPort,
			Level: cluster.LevelNewest(),
		})
	}
	if err := m.foundAuthority(&t, now); err != nil {
		return err
	}
	if _, ok := store.Get[*cluster.Node](snap, m.cfg.NodeID); !ok {
		t.Put(&cluster.Node{
			Meta: cluster.Meta{ID: m.cfg.NodeID, Created: now}, Name: m.cfg.NodeName, Manager: true,
			Availability: cluster.NodeActive, State: cluster.NodeUnknown, StateSince: now,
			Description: cluster.NodeDescription{Listen: m.cfg.Listen, Level: cluster.LevelNewest()}, // so that others can join before its agent has said anything
		})
	}
	if t.Empty() {
		return nil
	}
	_, err := m.raft.Propose(ctx, t)
	return err
}

// foundAuthority makes what lets other machines join.
func (m *Manager) foundAuthority(t *store.Txn, now time.Time) error {
	if _, ok := store.Get[*cluster.Authority](m.store.Snapshot(), cluster.AuthorityID); ok {
		return nil
	}
	a, err := m.keeper.Found(m.cfg.ClusterName, now)
	if err != nil {
		return err
	}
	t.Put(a)
	for _, role := range []string{transport.RoleWorker, transport.RoleManager} {
		token, err := m.keeper.NewToken(role, cluster.NewID(nil), now, time.Time{})
		if err != nil {
			return err
		}
		t.Put(token)
	}
	return nil
}

// seed makes the scheduler's ties reproducible for a cluster.
func seed(id cluster.ID) uint64 {
	var n uint64
	for _, b := range id[:8] {
		n = n<<8 | uint64(b)
	}
	return n
}

// Close closes the log and the port.
func (m *Manager) Close() error {
	err := m.raft.Close()
	m.peers.close()
	return errors.Join(err, m.port.Close())
}
