// Package process is the running binary: it owns the data directory, starts a node and, on managers, the manager wing, and
// stops them in the right order. It makes a machine a member of a cluster and keeps it one: certificates, the managers'
// addresses, and which wing runs here follow what the managers say.
//
// Layout of the data directory:
//
//	DIR/lock          held while a process runs on the directory
//	DIR/node.json     the node's id, name, role and the managers' addresses
//	DIR/identity/     the node's key and certificate, and whom it trusts (package transport)
//	DIR/baton.sock    the API, for root and group "baton"; on managers
//	DIR/manager/      store, log and keys (package manager); on managers. log.before-N is what a recovery replaced
//	DIR/bin/          the unpacked container runtime (package bundle)
//	DIR/containerd/ tasks/ logs/  containers (package runtime)
//	DIR/network/ volumes/ files/ record/  (packages of the same names)
//
// Invariants: one process per directory; stopping or killing the process leaves containers running, and the next start
// finds them; two directories on one machine share nothing.
//
// Concurrency: Serve returns after everything it started has ended, except containers and their containerd.
package process

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync/atomic"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"baton/internal/manager/manager"
	"baton/internal/model/cluster"
	"baton/internal/node/image/transfer"
	"baton/internal/node/network"
	"baton/internal/node/node"
	"baton/internal/node/runtime"
	"baton/internal/node/uplink"
	"baton/internal/wire/agentapi"
	"baton/internal/wire/transport"
)

// Version is the version of the binary, set by the linker.
var Version = "dev"

// DataDirDefault is where a server keeps everything unless told otherwise.
const DataDirDefault = "/var/lib/baton"

// Config says how a server runs.
type Config struct {
	DataDir string // default DataDirDefault
	Name    string // of the node; default its hostname, and later the name of the first start
	// Join is TOKEN@HOST:PORT of a cluster to join; empty: found one, or go on as what the node is.
	Join string
	// Witness joins as a manager that only votes. It counts at the first start.
	Witness bool
	// Listen is where the port listens (HOST:PORT), Advertise the IP address by which other nodes reach it. Defaults: the
	// first free port from transport.PortDefault on; the address from which this machine reaches the others.
	Listen, Advertise string
	// Mesh is how the nodes of a new cluster are connected; default cluster.MeshWireGuard.
	Mesh   cluster.Mesh
	Logger *slog.Logger
	// Ready, when not nil, is called once the node runs, with the socket's path when it is a manager's, else "".
	Ready func(socket string)
}

// process is a running server.
type process struct {
	cfg   Config
	dir   string
	self  *self
	creds *transport.Files
	log   *slog.Logger

	node    atomic.Pointer[node.Node]
	manager atomic.Pointer[manager.Manager]
	uplink  *uplink.Uplink
	images  *transfer.Server
	news    chan agentapi.Membership // the latest that was not read yet
}

// Serve runs a whole node, which founds a cluster or joins one on its first start, until ctx ends.
func Serve(ctx context.Context, cfg Config) error {
	if err := preflight(); err != nil {
		return err
	}
	dir, err := prepare(cfg.DataDir)
	if err != nil {
		return err
	}
	unlock, err := lock(dir)
	if err != nil {
		return err
	}
	defer unlock()
	switch cfg.Mesh {
	case "", cluster.MeshWireGuard, cluster.MeshVXLAN, cluster.MeshRouted:
	default:
		return fmt.Errorf("mesh %q: use wireguard, vxlan or routed", cfg.Mesh)
	}
	p := &process{cfg: cfg, dir: dir, news: make(chan agentapi.Membership, 1)}
	if p.self, err = identify(dir, cfg.Name); err != nil {
		return err
	}
	p.log = cfg.Logger.With("node", p.self.get().Name)
	if err := p.self.place(cfg.Listen, cfg.Advertise); err != nil {
		return err
	}
	if p.creds, err = transport.OpenFiles(filepath.Join(dir, "identity")); err != nil {
		return err
	}
	if err := p.enter(ctx); err != nil {
		return err
	}
	return p.run(ctx)
}

// run starts what this node's role asks for, and follows changes of it.
func (p *process) run(ctx context.Context) error {
	f := p.self.get()
	p.uplink = uplink.New(uplink.Config{
		Node: f.ID, Dialer: &transport.Dialer{Network: transport.TCP{}, Credentials: p.creds}, Logger: p.log,
		Managers: func() []agentapi.Manager { return append([]agentapi.Manager(nil), p.self.get().Managers...) },
		Services: p.services,
	})
	p.images = transfer.NewServer(p.shelf)
	// Both wings start at once: other nodes wait for this one's network, and agents for its manager.
	wing := &managing{process: p, door: &door{process: p}}
	defer wing.door.shut()
	var n *node.Node
	var opened errgroup.Group
	opened.Go(func() (err error) {
		n, err = node.Open(ctx, node.Config{Dir: p.dir, ID: f.ID, Name: f.Name, Version: Version, Member: p.describe, Cluster: neighbours{p}, Logger: p.log})
		return err
	})
	var err error
	if f.Role == transport.RoleManager {
		err = wing.start(ctx)
	}
	if err = errors.Join(err, opened.Wait()); err != nil {
		if n != nil {
			err = errors.Join(err, n.Close(context.WithoutCancel(ctx)))
		}
		return errors.Join(err, wing.stop())
	}
	p.node.Store(n)
	if f.Role != transport.RoleManager {
		wing.door.open(ctx)
	}
	if err := wing.open(); err != nil {
		return errors.Join(err, wing.stop(), n.Close(context.WithoutCancel(ctx)))
	}
	if err := releaseStartUp(); err != nil {
		p.log.Warn("memory of the start is kept", "err", err)
	}
	p.log.Info("ready", "pid", os.Getpid(), "data", p.dir, "version", Version, "role", f.Role, "listen", f.listen())
	if p.cfg.Ready != nil {
		p.cfg.Ready(wing.socket())
	}
	// The agent stops first, so that what it still hands over finds a manager that writes it.
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error { return n.Run(gctx, uplink.Beating{Inner: p, Membership: p.learn, Measure: n.Measure}) })
	g.Go(func() error { return p.follow(gctx, wing) })
	return errors.Join(g.Wait(), wing.stop(), n.Close(context.WithoutCancel(ctx)))
}

// services are what managers may use of this node; nil while it is not up.
func (p *process) services() agentapi.NodeServices {
	if n := p.node.Load(); n != nil {
		return n
	}
	return nil
}

// Connect implements agentapi.Connector: to the manager of this process if there is one that leads or reaches the leader, else
// to another one.
func (p *process) Connect(ctx context.Context, h agentapi.Hello) (agentapi.Session, error) {
	var own error
	if m := p.manager.Load(); m != nil {
		s, err := m.Connector().Connect(ctx, h)
		if err == nil || ctx.Err() != nil {
			return s, err
		}
		own = fmt.Errorf("own manager: %w", err)
	}
	s, err := p.uplink.Connect(ctx, h)
	if err != nil && own != nil {
		return nil, errors.Join(own, err)
	}
	return s, err
}

// learn takes what a manager says of the cluster; only the latest counts.
func (p *process) learn(m agentapi.Membership) {
	for {
		select {
		case p.news <- m:
			return
		default:
		}
		select {
		case <-p.news:
		default:
		}
	}
}

// Reset ends everything that a server left running under a data directory (containers, containerd, links, rules, mounts)
// and, with wipe, deletes the directory itself. It refuses while a server runs on it.
func Reset(ctx context.Context, dataDir string, wipe bool, log *slog.Logger) error {
	if dataDir == "" {
		dataDir = DataDirDefault
	}
	dir, err := filepath.Abs(dataDir)
	if err != nil {
		return err
	}
	if _, err := os.Stat(filepath.Join(dir, "node.json")); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("%s is not a data directory of baton: it has no node.json", dir)
		}
		return err
	}
	unlock, err := lock(dir)
	if err != nil {
		return err
	}
	defer unlock()
	self, err := identify(dir, "")
	if err != nil {
		return err
	}
	f := self.get()
	cfg := node.Config{Dir: dir, ID: f.ID, Name: f.Name, Logger: log}
	err = errors.Join(
		runtime.RemoveAll(ctx, dir, ""),
		network.RemoveAll(ctx, node.NetworkConfig(cfg)),
		node.RemoveFiles(cfg),
	)
	if err != nil || !wipe {
		return err
	}
	return os.RemoveAll(dir)
}

// preflight names what is missing before anything is started.
func preflight() error {
	if os.Geteuid() != 0 {
		return errors.New("baton server needs root: it makes namespaces, mounts and network links; run it with sudo")
	}
	for _, path := range []string{"/sys/fs/cgroup/cgroup.controllers", "/sys/fs/cgroup/memory"} {
		if _, err := os.Stat(path); err == nil {
			return nil
		}
	}
	return errors.New("no cgroups under /sys/fs/cgroup: mount them (`mount -t cgroup2 none /sys/fs/cgroup`) or boot with systemd")
}

func prepare(dir string) (string, error) {
	if dir == "" {
		dir = DataDirDefault
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return "", fmt.Errorf("data directory: %w", err)
	}
	return dir, nil
}

// lock makes sure that one process works on the directory.
func lock(dir string) (unlock func(), err error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("data directory: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if cerr := f.Close(); cerr != nil {
			return nil, cerr
		}
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("another baton server runs on %s; stop it first, or choose another --data-dir", dir)
		}
		return nil, fmt.Errorf("lock %s: %w", dir, err)
	}
	return func() { _ = f.Close() }, nil // closing drops the lock; there is nothing to do about an error
}
