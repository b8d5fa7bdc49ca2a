package runtime

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/containerd/cgroups/v3"
	containerd "github.com/containerd/containerd/v2/client"

	"baton/internal/model/cluster"
	"baton/internal/model/spec"
	"baton/internal/node/agent"
	"baton/internal/node/logger"
	"baton/internal/node/shim"
	"baton/internal/wire/agentapi"
)

const (
	// namespace separates our containers from whatever else could use the same containerd. Nothing does.
	namespace   = "baton"
	snapshotter = "overlayfs"
	// startsMax is how many containers start at once. Each start costs about 0.2 CPU-seconds in runc and the shim; more at once
	// only lengthens all of them.
	startsMax = 4
	// dialBackoffMax bounds how long the client takes to notice that a restarted containerd answers again.
	dialBackoffMax = time.Second
)

// Images is what the runtime needs of the node's images.
type Images interface {
	// Pull makes the image present by the policy.
	Pull(ctx context.Context, ref string, policy spec.PullPolicy) error
	// Get returns a present image, unpacked and ready to be run; a RejectError when it is not there.
	Get(ctx context.Context, ref string) (containerd.Image, error)
	// Healthcheck returns the HEALTHCHECK of a present image, or nil.
	Healthcheck(ctx context.Context, ref string) (*spec.Probe, error)
}

// Config says where the runtime lives. All fields but Log and Note are required, unless a default is named.
type Config struct {
	// DataDir holds everything that must survive a reboot. One runtime owns it.
	DataDir string
	// RunDir holds sockets and other state of this boot; default /run/baton/<hash of DataDir>. At most 40 bytes long, because
	// the paths of unix sockets are short.
	RunDir string
	// Cgroup is the parent of the tasks' cgroups; default /baton/<base of RunDir>. No two nodes of a machine may share it.
	Cgroup string

	// The absolute paths of the pinned binaries. Shim is the one of package shim, which has containerd's own beside it; Logger is the
	// one of package logger.
	Containerd, Shim, Runc, Logger string
	// Init is a static executable whose hidden subcommand "__init" is InitMain, for containers with init: true; default: this one.
	Init string

	// Images makes the image store once containerd's client exists.
	Images func(c *containerd.Client) Images
	// Log defaults to slog.Default.
	Log *slog.Logger
	// Note is told what a user should see (containerd restarted, a logger died). It must not block. May be nil.
	Note func(n agentapi.Note)
}

// Runtime runs containers. See the package documentation.
type Runtime struct {
	cfg    Config
	log    *slog.Logger
	client *containerd.Client
	images Images
	daemon *daemon
	tasks  *records
	groups *groups
	output *logger.Process
	bus    *bus
	unlock func()

	starts chan struct{}       // a slot per container that may start at once
	busy   keyed               // one operation at a time per task, and per volume being filled
	cancel context.CancelFunc  // ends the loops below
	loops  sync.WaitGroup      // supervisor and event pump
	v2     bool                // unified cgroups
	logged map[cluster.ID]bool // tasks whose dead logger was reported; used by Observe only
	logMu  sync.Mutex          // guards logged
}

var _ agent.Executor = (*Runtime)(nil)

// New starts the runtime in cfg.DataDir, or adopts what an earlier one left there: a containerd that still runs, its containers, and
// the exit codes of those that ended meanwhile. ctx bounds the start only. The caller must Close it.
func New(ctx context.Context, cfg Config) (_ *Runtime, err error) {
	if err := cfg.complete(); err != nil {
		return nil, err
	}
	r := &Runtime{
		cfg:    cfg,
		log:    cfg.Log.With("part", "runtime"),
		starts: make(chan struct{}, startsMax),
		bus:    newBus(),
		logged: map[cluster.ID]bool{},
		v2:     cgroups.Mode() == cgroups.Unified,
	}
	r.busy.init()
	for _, d := range []string{cfg.containerdDir(), cfg.tasksDir(), cfg.LogsDir(), cfg.shimSockets(), cfg.fifos(), cfg.runcRoot()} {
		if err := os.MkdirAll(d, 0o711); err != nil {
			return nil, fmt.Errorf("runtime directory: %w", err)
		}
	}
	for _, d := range []string{cfg.LogsDir(), cfg.fifos()} {
		if err := os.Chmod(d, 0o700); err != nil {
			return nil, fmt.Errorf("runtime directory: %w", err)
		}
	}
	if r.unlock, err = lockDir(cfg.containerdDir()); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			r.unlock()
		}
	}()
	r.tasks, r.groups = &records{dir: cfg.tasksDir()}, newGroups()
	r.output = &logger.Process{Program: cfg.Logger, Logs: cfg.LogsDir(), Fifos: cfg.fifos(), Run: cfg.RunDir, Restarted: r.loggerRestarted}
	r.daemon = &daemon{cfg: cfg, log: r.log, harvest: r.harvest}
	if err := r.daemon.ensure(ctx); err != nil {
		return nil, err
	}
	r.client, err = containerd.New(cfg.socket(), containerd.WithDefaultNamespace(namespace), containerd.WithTimeout(dialBackoffMax))
	if err != nil {
		r.daemon.detach()
		return nil, fmt.Errorf("containerd client: %w", err)
	}
	r.images = cfg.Images(r.client)
	if err := r.takeOver(ctx); err != nil {
		r.daemon.detach()
		r.output.Close()
		return nil, errors.Join(err, r.client.Close())
	}
	loop, cancel := context.WithCancel(context.Background())
	r.cancel = cancel
	r.loops.Go(func() { r.daemon.supervise(loop, r.restarted) })
	r.loops.Go(func() { r.pump(loop) })
	return r, nil
}

// takeOver learns what an earlier runtime left, and removes what nobody needs of it.
func (r *Runtime) takeOver(ctx context.Context) error {
	if err := r.output.Resume(ctx); err != nil {
		return err
	}
	if err := r.loadGroups(ctx); err != nil {
		return err
	}
	if err := r.sweep(ctx); err != nil {
		return fmt.Errorf("remove half-made containers: %w", err)
	}
	if err := r.sweepShims(ctx); err != nil {
		return fmt.Errorf("end forgotten shims: %w", err)
	}
	return nil
}

// Close ends the runtime's own work. With keepContainers, containers and containerd go on, for the next New to adopt; without, every
// container is killed and containerd ended.
func (r *Runtime) Close(ctx context.Context, keepContainers bool) error {
	r.cancel()
	r.loops.Wait()
	r.bus.close()
	err := r.client.Close()
	r.daemon.detach()
	r.output.Close()
	r.unlock()
	if keepContainers {
		return err
	}
	return errors.Join(err, stopAll(ctx, r.cfg))
}

// Client gives access to containerd, for the node's image store.
func (r *Runtime) Client() *containerd.Client { return r.client }

// Pull implements agent.Executor.
func (r *Runtime) Pull(ctx context.Context, image string, policy spec.PullPolicy) error {
	return r.images.Pull(ctx, image, policy)
}

// ImageHealthcheck implements agent.Executor.
func (r *Runtime) ImageHealthcheck(ctx context.Context, image string) (*spec.Probe, error) {
	return r.images.Healthcheck(ctx, image)
}

// restarted is called by the supervisor after each restart of containerd.
func (r *Runtime) restarted(why string) {
	r.note(agentapi.Note{Type: "node.containerd-restarted", Message: "containerd " + why + " and was started again; containers kept running", At: time.Now()})
	r.bus.publish(agent.Event{Kind: agent.EventRestarted})
}

func (r *Runtime) note(n agentapi.Note) {
	if r.cfg.Note != nil {
		r.cfg.Note(n)
	}
}

func (c *Config) complete() error {
	if c.DataDir == "" || c.Images == nil {
		return errors.New("runtime: DataDir and Images are required")
	}
	var err error
	if c.DataDir, err = filepath.Abs(c.DataDir); err != nil {
		return err
	}
	if c.RunDir == "" {
		c.RunDir = RunDir(c.DataDir)
	}
	if len(c.RunDir) > 40 {
		return fmt.Errorf("runtime: run directory %q is %d bytes long, at most 40 leave room for socket names", c.RunDir, len(c.RunDir))
	}
	if c.Cgroup == "" {
		c.Cgroup = "/baton/" + filepath.Base(c.RunDir)
	}
	if !strings.HasPrefix(c.Cgroup, "/") || filepath.Clean(c.Cgroup) != c.Cgroup || c.Cgroup == "/" {
		return fmt.Errorf("runtime: cgroup %q must be an absolute path below /", c.Cgroup)
	}
	if c.Init == "" {
		if c.Init, err = os.Executable(); err != nil {
			return fmt.Errorf("runtime: %w", err)
		}
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
	for _, p := range []string{c.Containerd, c.Shim, c.Runc, c.Logger, c.Init} {
		if !filepath.IsAbs(p) {
			return fmt.Errorf("runtime: %q must be the absolute path of a binary", p)
		}
	}
	return nil
}

// RunDir is where a runtime with this data directory keeps its sockets: a short path, whatever the length of dataDir.
func RunDir(dataDir string) string {
	sum := sha256.Sum256([]byte(filepath.Clean(dataDir)))
	return "/run/baton/" + hex.EncodeToString(sum[:6])
}

// LogsDir holds one directory of log files per task; see ReadLogs.
func (c *Config) LogsDir() string { return filepath.Join(c.DataDir, "logs") }

func (c *Config) containerdDir() string { return filepath.Join(c.DataDir, "containerd") }
func (c *Config) tasksDir() string      { return filepath.Join(c.DataDir, "tasks") }
func (c *Config) stateDir() string      { return filepath.Join(c.RunDir, "state") }
func (c *Config) shimSockets() string   { return filepath.Join(c.RunDir, shim.SocketDir) }
func (c *Config) fifos() string         { return filepath.Join(c.RunDir, "fifo") }
func (c *Config) runcRoot() string      { return filepath.Join(c.RunDir, "runc") }
func (c *Config) socket() string        { return filepath.Join(c.RunDir, "c.sock") }
