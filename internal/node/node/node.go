// Package node composes the node wing: runtime, images, network, edge, volumes, files and the agent.
//
// It owns the order in which they start and stop, and answers users who look at the node's tasks (agentapi.NodeServices). What the machine
// uses is sampled every few seconds and kept in memory, so that one question is enough to tell how busy it is of late.
// Stopping it leaves containers, addresses, balancing and the edge as they are, for the next start to adopt.
//
// Concurrency: Run owns the goroutines and returns after all of them ended.
package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"path/filepath"
	goruntime "runtime"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"golang.org/x/sys/unix"

	"baton/build/bundle"
	"baton/internal/model/cluster"
	"baton/internal/model/spec"
	"baton/internal/node/agent"
	"baton/internal/node/edgeproc"
	"baton/internal/node/fence"
	"baton/internal/node/files"
	"baton/internal/node/image"
	"baton/internal/node/image/transfer"
	"baton/internal/node/network"
	"baton/internal/node/record"
	"baton/internal/node/runtime"
	"baton/internal/node/volume"
	"baton/internal/wire/agentapi"
)

// Config is what a node is made of; all fields but Member and Cluster are required.
type Config struct {
	Dir     string // data directory of the whole process
	ID      cluster.ID
	Name    string
	Version string
	// Member fills in what the process knows of this node's place in the cluster.
	Member func(*cluster.NodeDescription)
	// Cluster finds images on other nodes.
	Cluster image.Cluster
	Logger  *slog.Logger
}

// Node is a running node wing.
type Node struct {
	cfg      Config
	images   *image.Store
	runtime  *runtime.Runtime
	network  *network.Network
	volumes  *volume.Store
	files    *files.Dir
	record   *record.Record
	fence    *fence.Fence
	edge     *edgeproc.Edge
	wakener  *wakener
	agent    atomic.Pointer[agent.Agent] // nil until Run
	peers    atomic.Int64                // nodes of the cluster
	meter    *meter
	reporter reporter
	notes    chan agentapi.Note
}

// notesMax is how many notes of the runtime wait for the agent; more are dropped.
const notesMax = 256

// Open takes over the network, unpacks the runtime, and starts or adopts containerd.
func Open(ctx context.Context, cfg Config) (_ *Node, err error) {
	n := &Node{cfg: cfg, meter: &meter{proc: "/proc"}, notes: make(chan agentapi.Note, notesMax)}
	// The network goes first: where WireGuard runs in this process, other nodes wait for it.
	n.network, err = network.New(NetworkConfig(cfg))
	if err != nil {
		return nil, fmt.Errorf("take over the network: %w", err)
	}
	paths, err := bundle.Unpack(filepath.Join(cfg.Dir, "bin"))
	if err != nil {
		return nil, errors.Join(fmt.Errorf("unpack the container runtime: %w", err), n.network.Close())
	}
	n.runtime, err = runtime.New(ctx, runtime.Config{
		DataDir: cfg.Dir, Containerd: paths.Containerd, Shim: paths.Front, Runc: paths.Runc, Logger: paths.Logger,
		Images: func(c *containerd.Client) runtime.Images {
			n.images = image.New(image.Config{Client: c, Auth: credentials, Cluster: cfg.Cluster, Fetched: n.fetched, Log: cfg.Logger})
			return n.images
		},
		Log: cfg.Logger, Note: n.note,
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("start the container runtime: %w", err), n.network.Close())
	}
	n.fence = fence.New(filepath.Join(runtime.RunDir(cfg.Dir), "fence"), paths.Fence)
	n.volumes, err = volume.Open(cfg.Dir)
	if err != nil {
		return nil, errors.Join(err, n.Close(ctx))
	}
	n.files = files.New(filepath.Join(cfg.Dir, "files"))
	n.wakener = &wakener{self: cfg.ID, network: n.network, tell: n.want, log: cfg.Logger}
	n.edge = edgeproc.New(edgeproc.Config{
		Dir: filepath.Join(runtime.RunDir(cfg.Dir), "edge"), Program: paths.Edge, Listen: listenIngress(spec.IngressPort), ListenTLS: listenIngress(spec.IngressPortTLS),
		Failed: n.ingressFailed, Restarted: n.ingressRestarted, Wake: n.wakener.want, Log: cfg.Logger.With("part", "edge"),
	})
	n.record, err = record.Open(filepath.Join(cfg.Dir, "record"), cfg.Logger)
	if err != nil {
		return nil, errors.Join(err, n.Close(ctx))
	}
	return n, nil
}

// credentials are those that came with the task or the rollout that an image is pulled for.
func credentials(ctx context.Context, host string) (image.Auth, bool) {
	a, ok := agent.Auth(ctx, host)
	return image.Auth{ServerAddress: a.Host, Username: a.Username, Password: a.Password}, ok
}

// NetworkConfig says which network is this node's.
func NetworkConfig(cfg Config) network.Config {
	return network.Config{NodeID: cfg.ID, StateDir: filepath.Join(cfg.Dir, "network"), Logger: cfg.Logger}
}

// Close ends the node's own work; what runs goes on.
func (n *Node) Close(ctx context.Context) error {
	return errors.Join(n.network.Close(), n.runtime.Close(ctx, true))
}

// fetched tells users where an image came from.
func (n *Node) fetched(f image.Fetched) {
	n.note(agentapi.Note{
		Type: "image.fetched", At: time.Now(),
		Message: fmt.Sprintf("image %s came from %s: %.1f MB in %s", f.Ref, strings.Join(f.From, " and "), float64(f.Bytes)/1e6, f.Took.Round(time.Millisecond)),
	})
}

// Shelf is what this node gives of its images to others.
func (n *Node) Shelf() transfer.Shelf { return n.images.Shelf() }

// note passes what the runtime noticed on to the agent. It never blocks the runtime.
func (n *Node) note(note agentapi.Note) {
	select {
	case n.notes <- note:
	default:
		n.cfg.Logger.Warn("note dropped", "type", note.Type, "message", note.Message)
	}
}

// want tells the managers of a service that somebody wants.
func (n *Node) want(service cluster.ID) {
	if a := n.agent.Load(); a != nil {
		a.Want(service)
	}
}

// Run runs what the managers behind connector assign, until ctx ends.
func (n *Node) Run(ctx context.Context, connector agentapi.Connector) error {
	a := agent.New(agent.Config{
		Node: n.cfg.ID, Name: n.cfg.Name, Executor: n.runtime, Network: counted{fronted{n.network, n.edge, n.wakener}, &n.peers}, Volumes: n.volumes, Files: n.files,
		Logs: runtime.OpenLogs(n.cfg.Dir), Record: n.record, Fence: fenced{n}, Connector: connector, Describe: n.describe, Notes: n.notes,
		Log: n.cfg.Logger.With("part", "agent"),
	})
	n.agent.Store(a)
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() { n.meter.run(ctx) })
	wg.Go(func() { n.edge.Run(ctx) })
	wg.Go(func() { n.wakener.run(ctx) })
	return a.Run(ctx)
}

// fenced is the fence as the agent uses it.
type fenced struct{ *Node }

// Guard implements agent.Fence.
func (n fenced) Guard(ctx context.Context, task cluster.ID) error {
	return n.fence.Guard(ctx, task.String(), n.runtime.Cgroups(task))
}

// Unguard implements agent.Fence.
func (n fenced) Unguard(ctx context.Context, task cluster.ID) error {
	return n.fence.Unguard(ctx, task.String())
}

// Renew implements agent.Fence.
func (n fenced) Renew(ctx context.Context, left time.Duration) error { return n.fence.Renew(ctx, left) }

// imagesMax bounds the images that a node tells the scheduler of.
const imagesMax = 500

func (n *Node) describe(ctx context.Context) cluster.NodeDescription {
	d := cluster.NodeDescription{OS: goruntime.GOOS, Arch: goruntime.GOARCH, CPU: spec.MilliCPU(goruntime.NumCPU() * 1000), Version: n.cfg.Version, Level: cluster.LevelNewest(), MeshKey: n.network.MeshKey()}
	var uts unix.Utsname
	if unix.Uname(&uts) == nil {
		d.Hostname, d.Kernel = unix.ByteSliceToString(uts.Nodename[:]), unix.ByteSliceToString(uts.Release[:])
	}
	var info unix.Sysinfo_t
	if unix.Sysinfo(&info) == nil {
		d.Memory = spec.Bytes(uint64(info.Totalram) * uint64(info.Unit))
	}
	if n.cfg.Member != nil {
		n.cfg.Member(&d)
	}
	if names, err := n.images.Names(ctx); err == nil {
		d.Images = names[:min(len(names), imagesMax)]
	}
	return d
}

var _ agentapi.NodeServices = (*Node)(nil)

// Logs implements agentapi.NodeServices.
func (n *Node) Logs(ctx context.Context, task cluster.ID, o agentapi.LogOptions) iter.Seq2[agentapi.LogLine, error] {
	return n.runtime.ReadLogs(ctx, task, o)
}

// Exec implements agentapi.NodeServices.
func (n *Node) Exec(ctx context.Context, task cluster.ID, e agentapi.Execution) (int, error) {
	return n.runtime.ExecStream(ctx, task, e)
}

// Dial implements agentapi.NodeServices.
func (n *Node) Dial(ctx context.Context, task cluster.ID, port uint16) (agentapi.Conn, error) {
	return n.runtime.Dial(ctx, task, port)
}

// Files implements agentapi.NodeServices.
func (n *Node) Files(ctx context.Context, task cluster.ID, o agentapi.FilesOptions) (agentapi.Conn, error) {
	return n.runtime.Files(ctx, task, o)
}

// Usage implements agentapi.NodeServices.
func (n *Node) Usage(ctx context.Context) (agentapi.Usage, error) {
	u, err := n.meter.usage(time.Now())
	if err != nil {
		return u, err
	}
	all, err := n.runtime.StatsOfAll(ctx)
	if err != nil {
		return u, err
	}
	for _, s := range all {
		u.Tasks = append(u.Tasks, agentapi.Stats{
			Task: s.Task, At: s.At, CPU: s.CPU, Memory: uint64(s.Memory), MemoryLimit: uint64(s.MemoryLimit), PIDs: uint64(s.PIDs),
			Received: s.Received, Sent: s.Sent,
		})
	}
	return u, nil
}

// Images implements agentapi.NodeServices.
func (n *Node) Images(ctx context.Context) ([]agentapi.Image, error) {
	list, err := n.images.List(ctx)
	if err != nil {
		return nil, err
	}
	out := make([]agentapi.Image, 0, len(list))
	for _, im := range list {
		out = append(out, agentapi.Image{Ref: im.Ref, Digest: im.Digest, Size: int64(im.Size), Created: im.Created})
	}
	return out, nil
}

// LoadImage implements agentapi.NodeServices.
func (n *Node) LoadImage(ctx context.Context, archive io.Reader) ([]string, error) {
	return n.images.Load(ctx, archive)
}

// RemoveImage implements agentapi.NodeServices.
func (n *Node) RemoveImage(ctx context.Context, ref string) error { return n.images.Remove(ctx, ref) }

// RemoveFiles takes away the tmpfs of a node that does not run.
func RemoveFiles(cfg Config) error { return files.New(filepath.Join(cfg.Dir, "files")).Unmount() }
