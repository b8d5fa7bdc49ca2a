// Package manager composes the manager wing: store, log, keys, leader's loop, sessions and API.
//
// It owns the order in which they start and stop, and what a new cluster begins with (settings, the first node). The
// leader's loop runs only while this manager leads, one run per term.
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
	"time"

	"golang.org/x/sync/errgroup"

	"baton/internal/manager/consensus"
	"baton/internal/manager/control"
	"baton/internal/manager/dispatch"
	"baton/internal/manager/identity"
	"baton/internal/manager/server"
	"baton/internal/manager/store"
	"baton/internal/model/cluster"
	"baton/internal/wire/agentapi"
)

// Config is what a manager is made of; all fields are required.
type Config struct {
	Dir         string // state, keys and log
	NodeID      cluster.ID
	NodeName    string
	ClusterName string
	Version     string
	// Pools chooses the address pools of a new cluster; it is asked once in a cluster's life.
	Pools func() (tasks, services netip.Prefix, err error)
	// Nodes gives access to a node's tasks and images.
	Nodes  func(id cluster.ID) (agentapi.NodeServices, bool)
	Logger *slog.Logger
}

// nodeBits is the prefix length of a node's subnet: 1,022 tasks per node.
const nodeBits = 22

// shutdownMax is how long open requests may take when the manager stops.
const shutdownMax = 2 * time.Second

// Manager is a running manager wing.
type Manager struct {
	cfg        Config
	store      *store.Store
	log        *consensus.Raft
	dispatcher *dispatch.Dispatcher
	controller *control.Controller
	api        *server.Server
}

// Open recovers the state and, on the first start, founds the cluster.
func Open(ctx context.Context, cfg Config) (_ *Manager, err error) {
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, err
	}
	sealer, err := identity.OpenSealer(cfg.Dir)
	if err != nil {
		return nil, err
	}
	st := store.New()
	log, err := consensus.Open(ctx, consensus.Config{Dir: filepath.Join(cfg.Dir, "log"), NodeID: cfg.NodeID.String(), Store: st, Logger: cfg.Logger})
	if err != nil {
		return nil, fmt.Errorf("open the log: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, log.Close())
		}
	}()
	m := &Manager{cfg: cfg, store: st, log: log}
	if err := m.found(ctx); err != nil {
		return nil, fmt.Errorf("found the cluster: %w", err)
	}
	m.dispatcher = dispatch.New(dispatch.Config{Store: st, Log: log, Opener: sealer, Logger: cfg.Logger, Now: time.Now})
	m.controller = control.New(control.Config{Store: st, Log: log, Acks: m.dispatcher, Logger: cfg.Logger, Seed: seed(cfg.NodeID)})
	m.api = server.New(server.Config{
		Log: log, Store: st, Nodes: cfg.Nodes, Sealer: sealer, Planner: planner{seed: seed(cfg.NodeID)},
		ClusterName: cfg.ClusterName, Version: cfg.Version, Logger: cfg.Logger,
	})
	return m, nil
}

// Connector is where the agent of this process connects.
func (m *Manager) Connector() agentapi.Connector { return m.dispatcher }

// Node reads the node of this process from the store.
func (m *Manager) Node() (*cluster.Node, bool) {
	return store.Get[*cluster.Node](m.store.Snapshot(), m.cfg.NodeID)
}

// Run works, answering API requests on l, until ctx ends; then it closes the log.
func (m *Manager) Run(ctx context.Context, l net.Listener) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return m.dispatcher.Run(ctx) })
	g.Go(func() error { return m.lead(ctx) })
	srv := &http.Server{Handler: m.api.Handler(), ReadHeaderTimeout: 10 * time.Second, ErrorLog: slog.NewLogLogger(m.cfg.Logger.Handler(), slog.LevelDebug)}
	g.Go(func() error {
		if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("API: %w", err)
		}
		return nil
	})
	g.Go(func() error {
		<-ctx.Done()
		m.api.Close()
		end, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownMax)
		defer cancel()
		if srv.Shutdown(end) != nil {
			return srv.Close() // somebody reads too slowly
		}
		return nil
	})
	return errors.Join(g.Wait(), m.log.Close())
}

// lead runs the leader's loop for each term in which this manager leads.
func (m *Manager) lead(ctx context.Context) error {
	stop := func() {}
	defer func() { stop() }()
	for {
		select {
		case <-ctx.Done():
			return nil
		case term, ok := <-m.log.Leadership():
			stop()
			if !ok {
				return nil
			}
			if !term.Leader {
				stop = func() {}
				continue
			}
			tctx, cancel := context.WithCancel(ctx)
			done := make(chan struct{})
			go func() {
				defer close(done)
				if err := m.controller.Run(tctx); err != nil {
					m.cfg.Logger.Error("leader's loop ended", "term", term.Number, "err", err)
				}
			}()
			stop = func() { cancel(); <-done }
		}
	}
}

// found writes what a cluster begins with, unless it is there, and follows a changed node name.
func (m *Manager) found(ctx context.Context) error {
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
			TaskPool: tasks, ServicePool: services, NodeBits: max(nodeBits, tasks.Bits()),
		})
	}
	node, ok := store.Get[*cluster.Node](snap, m.cfg.NodeID)
	switch {
	case !ok:
		t.Put(&cluster.Node{
			Meta: cluster.Meta{ID: m.cfg.NodeID, Created: now}, Name: m.cfg.NodeName, Manager: true,
			Availability: cluster.NodeActive, State: cluster.NodeUnknown, StateSince: now,
		})
	case node.Name != m.cfg.NodeName:
		n := cluster.Copy(node)
		n.Name = m.cfg.NodeName
		t.Put(n)
	}
	if t.Empty() {
		return nil
	}
	_, err := m.log.Propose(ctx, t)
	return err
}

// seed makes the scheduler's ties reproducible for a cluster.
func seed(id cluster.ID) uint64 {
	var n uint64
	for _, b := range id[:8] {
		n = n<<8 | uint64(b)
	}
	return n
}

// Close closes the log of a manager that will not Run.
func (m *Manager) Close() error { return m.log.Close() }
