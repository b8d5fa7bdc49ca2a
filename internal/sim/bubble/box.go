package bubble

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"baton/internal/model/cluster"
	"baton/internal/model/spec"
	"baton/internal/node/agent"
	"baton/internal/wire/agentapi"
)

const (
	startTakes = 200 * time.Millisecond
	stopTakes  = 100 * time.Millisecond
	applyTakes = 5 * time.Millisecond
)

// box is a machine's containers, network and volumes. It survives its agent, not a loss of power.
type box struct {
	mu         sync.Mutex
	containers map[cluster.ID]*container
	attached   map[cluster.ID]netip.Addr
	network    agentapi.NetworkState
	volumes    map[string]bool
	events     chan agent.Event
	fenced     map[cluster.ID]bool
	lease      time.Time // until when fenced tasks may run
}

// container is a simulated container.
type container struct {
	task    cluster.ID
	service cluster.ID
	writes  []string // single-writer volumes
	state   agent.ContainerState
	started time.Time
	exit    *cluster.Exit
}

func newBox() *box {
	return &box{
		containers: make(map[cluster.ID]*container), attached: make(map[cluster.ID]netip.Addr),
		volumes: make(map[string]bool), fenced: make(map[cluster.ID]bool), events: make(chan agent.Event, 64),
	}
}

// powerOff loses everything that is not on disk.
func (b *box) powerOff() {
	b.mu.Lock()
	defer b.mu.Unlock()
	clear(b.containers)
	clear(b.attached)
	clear(b.fenced)
	b.network = agentapi.NetworkState{}
}

// crash ends a container's process, and returns whether it ran.
func (b *box) crash(id cluster.ID) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	c := b.containers[id]
	if c == nil || c.state != agent.ContainerRunning {
		return false
	}
	c.state, c.exit = agent.ContainerExited, &cluster.Exit{Code: 1}
	b.tell(agent.Event{Kind: agent.EventExited, Task: id})
	return true
}

func (b *box) tell(e agent.Event) {
	select {
	case b.events <- e:
	default: // the agent looks from time to time, too
	}
}

// running lists the containers whose process runs.
func (b *box) running() []container {
	b.mu.Lock()
	defer b.mu.Unlock()
	var out []container
	for _, c := range b.containers {
		if c.state == agent.ContainerRunning {
			out = append(out, *c)
		}
	}
	return out
}

// sleep waits, unless ctx ends first.
func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

var _ agent.Executor = (*box)(nil)

// Observe implements agent.Executor.
func (b *box) Observe(_ context.Context, of ...cluster.ID) ([]agent.Observed, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	var out []agent.Observed
	for _, c := range b.containers {
		if len(of) > 0 && !slices.Contains(of, c.task) {
			continue
		}
		out = append(out, agent.Observed{Task: c.task, State: c.state, PID: 1, Started: c.started, Exit: c.exit})
	}
	return out, nil
}

// Pull implements agent.Executor.
func (b *box) Pull(ctx context.Context, _ string, _ spec.PullPolicy) error {
	return sleep(ctx, startTakes/2)
}

// Start implements agent.Executor.
func (b *box) Start(ctx context.Context, c agent.Container) error {
	if err := sleep(ctx, startTakes); err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	id := c.Task.ID
	if b.containers[id] != nil {
		return nil
	}
	made := &container{task: id, service: c.Task.Service, state: agent.ContainerRunning, started: time.Now()}
	made.writes = slices.Sorted(maps.Values(c.Volumes))
	b.containers[id] = made
	return nil
}

// Stop implements agent.Executor.
func (b *box) Stop(ctx context.Context, id cluster.ID, _ time.Duration) error {
	if err := sleep(ctx, stopTakes); err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if c := b.containers[id]; c != nil && c.state == agent.ContainerRunning {
		c.state, c.exit = agent.ContainerExited, &cluster.Exit{Code: 143}
		b.tell(agent.Event{Kind: agent.EventExited, Task: id})
	}
	return nil
}

// Remove implements agent.Executor.
func (b *box) Remove(_ context.Context, id cluster.ID) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.containers, id)
	return nil
}

// Events implements agent.Executor.
func (b *box) Events(ctx context.Context) iter.Seq2[agent.Event, error] {
	return func(yield func(agent.Event, error) bool) {
		for {
			select {
			case e := <-b.events:
				if !yield(e, nil) {
					return
				}
			case <-ctx.Done():
				return
			}
		}
	}
}

// Exec implements agent.Executor.
func (b *box) Exec(context.Context, cluster.ID, []string) (int, []byte, error) { return 0, nil, nil }

// ImageHealthcheck implements agent.Executor.
func (b *box) ImageHealthcheck(context.Context, string) (*spec.Probe, error) { return nil, nil }

// net is the network of a box.
type boxNet struct{ *box }

var _ agent.Network = boxNet{}

// Configure implements agent.Network.
func (n boxNet) Configure(context.Context, agentapi.NodeConfig) error { return nil }

// Attach implements agent.Network.
func (n boxNet) Attach(_ context.Context, a agent.Attachment) (agent.Sandbox, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for id, at := range n.attached {
		if id != a.Task && at == a.Address {
			return agent.Sandbox{}, fmt.Errorf("address %s is still of task %s", at, id.Short())
		}
	}
	n.attached[a.Task] = a.Address
	return agent.Sandbox{}, nil
}

// Detach implements agent.Network.
func (n boxNet) Detach(_ context.Context, task cluster.ID) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.attached, task)
	return nil
}

// Apply implements agent.Network.
func (n boxNet) Apply(ctx context.Context, s agentapi.NetworkState) error {
	if err := sleep(ctx, applyTakes); err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.network = s
	return nil
}

// Connections implements agent.Network.
func (n boxNet) Connections(context.Context, netip.Addr) (int, error) { return 0, nil }

// Sweep implements agent.Network.
func (n boxNet) Sweep(_ context.Context, keep []cluster.ID) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	maps.DeleteFunc(n.attached, func(id cluster.ID, _ netip.Addr) bool { return !slices.Contains(keep, id) })
	return nil
}

// boxVolumes are the volumes of a box.
type boxVolumes struct{ *box }

var _ agent.Volumes = boxVolumes{}

// Ensure implements agent.Volumes.
func (v boxVolumes) Ensure(_ context.Context, name string) (string, bool, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	fresh := !v.volumes[name]
	v.volumes[name] = true
	return "/volumes/" + name, fresh, nil
}

// MarkUsed implements agent.Volumes.
func (v boxVolumes) MarkUsed(context.Context, string) error { return nil }

// Remove implements agent.Volumes.
func (v boxVolumes) Remove(_ context.Context, name string) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	delete(v.volumes, name)
	return nil
}

// List implements agent.Volumes.
func (v boxVolumes) List(context.Context) ([]string, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	return slices.Sorted(maps.Keys(v.volumes)), nil
}

// boxFiles are the secrets and configs of a box.
type boxFiles struct{}

var _ agent.Files = boxFiles{}

// Write implements agent.Files.
func (boxFiles) Write(context.Context, cluster.ID, []agentapi.File) (string, error) {
	return "/files", nil
}

// Remove implements agent.Files.
func (boxFiles) Remove(context.Context, cluster.ID) error { return nil }

// Sweep implements agent.Files.
func (boxFiles) Sweep(context.Context, []cluster.ID) error { return nil }

// boxLogs are the logs of a box.
type boxLogs struct{}

var _ agent.Logs = boxLogs{}

// Remove implements agent.Logs.
func (boxLogs) Remove(cluster.ID) error { return nil }

// Sweep implements agent.Logs.
func (boxLogs) Sweep([]cluster.ID) error { return nil }

// boxServices are what managers may ask of a box.
type boxServices struct{ *box }

var _ agentapi.NodeServices = boxServices{}

var errNotHere = errors.New("a simulated node has none")

// Logs implements agentapi.NodeServices.
func (boxServices) Logs(context.Context, cluster.ID, agentapi.LogOptions) iter.Seq2[agentapi.LogLine, error] {
	return func(yield func(agentapi.LogLine, error) bool) { yield(agentapi.LogLine{}, errNotHere) }
}

// Exec implements agentapi.NodeServices.
func (boxServices) Exec(context.Context, cluster.ID, agentapi.Execution) (int, error) {
	return 0, errNotHere
}

// Dial implements agentapi.NodeServices.
func (boxServices) Dial(context.Context, cluster.ID, uint16) (agentapi.Conn, error) {
	return nil, errNotHere
}

// Files implements agentapi.NodeServices.
func (boxServices) Files(context.Context, cluster.ID, agentapi.FilesOptions) (agentapi.Conn, error) {
	return nil, errNotHere
}

// Usage implements agentapi.NodeServices.
func (s boxServices) Usage(context.Context) (agentapi.Usage, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	u := agentapi.Usage{At: time.Now(), Cores: 1000}
	for id := range s.containers {
		u.Tasks = append(u.Tasks, agentapi.Stats{Task: id, At: u.At, PIDs: 1})
	}
	return u, nil
}

// Images implements agentapi.NodeServices.
func (boxServices) Images(context.Context) ([]agentapi.Image, error) { return nil, nil }

// LoadImage implements agentapi.NodeServices.
func (boxServices) LoadImage(context.Context, io.Reader) ([]string, error) { return nil, errNotHere }

// RemoveImage implements agentapi.NodeServices.
func (boxServices) RemoveImage(context.Context, string) error { return errNotHere }

// boxRecord is the part of a box's disk on which the agent remembers what it was told. It outlives a loss of power.
type boxRecord struct {
	mu     sync.Mutex
	tasks  map[cluster.ID]agent.Remembered
	memory agent.Memory // Node and Network
}

func newBoxRecord() *boxRecord { return &boxRecord{tasks: make(map[cluster.ID]agent.Remembered)} }

var _ agent.Record = (*boxRecord)(nil)

// saveTakes is a write to a disk.
const saveTakes = 2 * time.Millisecond

// Load implements agent.Record.
func (r *boxRecord) Load(context.Context) (agent.Memory, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	m := r.memory
	for _, id := range slices.SortedFunc(maps.Keys(r.tasks), sameID) {
		m.Tasks = append(m.Tasks, r.tasks[id])
	}
	return m, nil
}

// Save implements agent.Record.
func (r *boxRecord) Save(ctx context.Context, c agent.Change) error {
	if err := sleep(ctx, saveTakes); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, id := range c.Gone {
		delete(r.tasks, id)
	}
	for _, t := range c.Tasks {
		r.tasks[t.Assignment.Task.ID] = t
	}
	if c.Node != nil {
		r.memory.Node = c.Node
	}
	if c.Network != nil {
		r.memory.Network = c.Network
	}
	return nil
}
