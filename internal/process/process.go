// Package process is the running binary: it owns the data directory, starts a node and, on managers, the manager wing, and
// stops them in the right order.
//
// Layout of the data directory:
//
//	DIR/lock          held while a process runs on the directory
//	DIR/node.json     the node's id and name, made at the first start
//	DIR/baton.sock    the API, for root and group "baton"
//	DIR/manager/      store, log and keys (package manager)
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
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"baton/internal/manager/manager"
	"baton/internal/manager/server"
	"baton/internal/model/cluster"
	"baton/internal/node/network"
	"baton/internal/node/node"
	"baton/internal/node/runtime"
	"baton/internal/wire/agentapi"
)

// Version is the version of the binary, set by the linker.
var Version = "dev"

// DataDirDefault is where a server keeps everything unless told otherwise.
const DataDirDefault = "/var/lib/baton"

// Config says how a server runs.
type Config struct {
	DataDir string // default DataDirDefault
	Name    string // of the node; default its hostname, and later the name of the first start
	Logger  *slog.Logger
	// Ready, when not nil, is called with the socket's path once the API answers.
	Ready func(socket string)
}

// identityFile is what DIR/node.json holds.
type identityFile struct {
	ID   cluster.ID `json:"id"`
	Name string     `json:"name"`
}

// Serve runs a whole node, which is its cluster's manager, until ctx ends.
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
	self, err := identify(dir, cfg.Name)
	if err != nil {
		return err
	}
	log := cfg.Logger.With("node", self.Name)
	var n *node.Node
	m, err := manager.Open(ctx, manager.Config{
		Dir: filepath.Join(dir, "manager"), NodeID: self.ID, NodeName: self.Name, ClusterName: "default", Version: Version,
		Pools: func() (tasks, services netip.Prefix, err error) {
			taken, err := network.Taken("")
			if err != nil {
				return tasks, services, err
			}
			return network.ChoosePools(taken)
		},
		Nodes:  func(id cluster.ID) (agentapi.NodeServices, bool) { return n, id == self.ID },
		Logger: log,
	})
	if err != nil {
		return err
	}
	n, err = node.Open(ctx, node.Config{Dir: dir, ID: self.ID, Name: self.Name, Version: Version, Logger: log})
	if err != nil {
		return errors.Join(err, m.Close())
	}
	socket := filepath.Join(dir, "baton.sock")
	listener, err := server.ListenUnix(socket)
	if err != nil {
		return errors.Join(err, n.Close(ctx), m.Close())
	}
	log.Info("ready", "socket", socket, "data", dir, "version", Version)
	if cfg.Ready != nil {
		cfg.Ready(socket)
	}
	// The agent stops first, so that what it still hands over finds a manager that writes it.
	g, gctx := errgroup.WithContext(ctx)
	mctx, stopManager := context.WithCancel(context.WithoutCancel(ctx))
	defer stopManager()
	g.Go(func() error { return m.Run(mctx, listener) })
	g.Go(func() error {
		defer stopManager()
		return n.Run(gctx, m.Connector())
	})
	return errors.Join(g.Wait(), n.Close(context.WithoutCancel(ctx)))
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
	cfg := node.Config{Dir: dir, ID: self.ID, Name: self.Name, Logger: log}
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

// nameForm is what a node may be called.
var nameForm = regexp.MustCompile(`^[a-zA-Z0-9]([a-zA-Z0-9.-]{0,61}[a-zA-Z0-9])?$`)

// identify reads who this node is, or decides it on the first start. A name that is given wins over the stored one.
func identify(dir, name string) (identityFile, error) {
	path := filepath.Join(dir, "node.json")
	var self identityFile
	data, err := os.ReadFile(path)
	switch {
	case err == nil:
		if err := json.Unmarshal(data, &self); err != nil || self.ID.IsZero() {
			return self, fmt.Errorf("%s is damaged; restore it, or start with an empty data directory", path)
		}
		if name == "" || name == self.Name {
			return self, nil
		}
	case errors.Is(err, fs.ErrNotExist):
		self.ID = cluster.NewID(nil)
	default:
		return self, err
	}
	if self.Name = name; name == "" {
		if self.Name, err = os.Hostname(); err != nil {
			return self, fmt.Errorf("this machine has no hostname (%w); give --name", err)
		}
	}
	if !nameForm.MatchString(self.Name) {
		return self, fmt.Errorf("node name %q: want letters, digits, dots and dashes, at most 63; give another --name", self.Name)
	}
	data, err = json.Marshal(self)
	if err != nil {
		return self, err
	}
	if err := writeDurably(path, append(data, '\n')); err != nil {
		return self, fmt.Errorf("write %s: %w", path, err)
	}
	return self, nil
}

// writeDurably replaces a file; after a power cut it is the old one or the whole new one. A node that forgot who it is would
// not find its own state any more.
func writeDurably(path string, data []byte) error {
	f, err := os.OpenFile(path+".new", os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(path+".new", path); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
