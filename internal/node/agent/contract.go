package agent

import (
	"context"
	"iter"
	"net/netip"
	"time"

	"baton/internal/model/cluster"
	"baton/internal/model/spec"
	"baton/internal/wire/agentapi"
)

// ContainerState is what the executor sees of a task's container.
type ContainerState string

// The container states.
const (
	ContainerCreated ContainerState = "created" // made but not started, or its start was interrupted
	ContainerRunning ContainerState = "running"
	ContainerExited  ContainerState = "exited"
)

// Observed is the truth about one task's container on this node.
type Observed struct {
	Task    cluster.ID
	State   ContainerState
	PID     int
	Started time.Time
	Exit    *cluster.Exit // with ContainerExited
}

// EventKind is the kind of an executor event.
type EventKind string

// The executor events.
const (
	EventExited    EventKind = "exited"    // the main process ended: observe
	EventOOM       EventKind = "oom"       // the kernel killed a process of the container for memory
	EventRestarted EventKind = "restarted" // the runtime itself restarted: observe everything
)

// Event says that something changed; Observe tells what.
type Event struct {
	Kind EventKind
	Task cluster.ID // zero with EventRestarted
}

// Mount is a prepared mount of a task.
type Mount struct {
	spec.Mount
	// HostPath is where the content is on this node; empty for tmpfs.
	HostPath string
	// Fresh is true when the volume is new: the executor fills it from the image unless NoCopy.
	Fresh bool
}

// Container is an assignment with everything prepared, ready to start.
type Container struct {
	agentapi.Assignment
	// NetNS is the path of the task's network namespace; empty for the node's own (network mode host).
	NetNS      string
	Hostname   string
	ResolvConf []byte // content of /etc/resolv.conf; nil: the node's
	Hosts      []byte // content of /etc/hosts
	Mounts     []Mount
	// FilesDir is a tmpfs directory that holds Assignment.Files under their index: "0", "1"…; already with owner and mode.
	FilesDir string
}

// Executor runs the containers of tasks. It is the runtime on real nodes and a simulated one in simulations.
//
// Every method is idempotent and may be repeated after a crash of the agent at any point:
//
//	have, _ := ex.Observe(ctx)       // also what an earlier agent started
//	_ = ex.Pull(ctx, ref, policy, progress)
//	_ = ex.Start(ctx, container)     // starting a running task changes nothing
//	_ = ex.Stop(ctx, id, 10*time.Second)
//	_ = ex.Remove(ctx, id)           // nothing of the task is left, but its logs
type Executor interface {
	// Observe lists every container of this node, also exited ones not yet removed. Given tasks, it looks at those alone, so that
	// what happens to one costs the same on a node that has many.
	Observe(ctx context.Context, of ...cluster.ID) ([]Observed, error)
	// Pull makes the image present by the policy. A RejectError means that trying again will not help.
	Pull(ctx context.Context, image string, policy spec.PullPolicy) error
	// Start creates and starts the task's container. A RejectError means that this task can never run here.
	Start(ctx context.Context, c Container) error
	// Stop sends the stop signal (the task's, else the image's, else SIGTERM), and SIGKILL after grace. It returns once the process has ended.
	Stop(ctx context.Context, id cluster.ID, grace time.Duration) error
	// Remove deletes the container, its snapshot and its runtime state. Logs stay until RemoveLogs.
	Remove(ctx context.Context, id cluster.ID) error
	// Events yields what happens until ctx ends. A missed event costs latency only: the agent also observes periodically.
	Events(ctx context.Context) iter.Seq2[Event, error]
	// Exec runs a command in the task's container, for probes, and returns its exit code and the first bytes of its output.
	Exec(ctx context.Context, id cluster.ID, argv []string) (code int, output []byte, err error)
	// ImageHealthcheck returns the HEALTHCHECK of a present image, or nil.
	ImageHealthcheck(ctx context.Context, image string) (*spec.Probe, error)
}

// RejectError says that a task cannot run on this node and why.
type RejectError struct {
	Reason string // one sentence, with the mend
	Err    error
}

func (e *RejectError) Error() string {
	if e.Err != nil {
		return e.Reason + ": " + e.Err.Error()
	}
	return e.Reason
}

func (e *RejectError) Unwrap() error { return e.Err }

// Sandbox is a task's place in the network.
type Sandbox struct {
	NetNS      string
	ResolvConf []byte
	Hosts      []byte
}

// Attachment is what the network needs to give a task its place.
type Attachment struct {
	Task       cluster.ID
	Address    netip.Addr
	Hostname   string
	Stack      string
	Networks   []cluster.ID
	Internal   bool        // all its networks are internal: no way out
	HostPorts  []spec.Port // host-mode ports to open to this task while it is attached
	DNS        []string    // servers to forward to instead of the node's
	DNSSearch  []string
	DNSOptions []string
	ExtraHosts []string          // NAME=ADDRESS
	Sysctls    map[string]string // net.* ones, set in the namespace
}

// Network connects tasks. Attach and Detach are per task and idempotent; Apply follows the cluster.
type Network interface {
	// Configure sets the node's own subnet and the pools. It is called before anything else, and again when they change.
	Configure(ctx context.Context, c agentapi.NodeConfig) error
	// Attach makes the task's namespace, link, address and DNS, or finds them as they are.
	Attach(ctx context.Context, a Attachment) (Sandbox, error)
	// Detach removes them and forgets the task's connections.
	Detach(ctx context.Context, task cluster.ID) error
	// Apply makes load balancing, names, published ports and isolation follow s. When it returns nil, new connections follow s:
	// this is what the agent acknowledges.
	Apply(ctx context.Context, s agentapi.NetworkState) error
	// Connections counts the connections to an address that are still open (tracked, established or closing down).
	Connections(ctx context.Context, address netip.Addr) (int, error)
	// Sweep removes what this node's network left of tasks that are not in keep.
	Sweep(ctx context.Context, keep []cluster.ID) error
}

// Volumes gives tasks their storage.
type Volumes interface {
	// Ensure makes the named volume exist and returns its path; fresh is true until MarkUsed, so that an interrupted
	// first fill is repeated.
	Ensure(ctx context.Context, name string) (path string, fresh bool, err error)
	MarkUsed(ctx context.Context, name string) error
	Remove(ctx context.Context, name string) error
	List(ctx context.Context) ([]string, error)
}

// Files keeps the contents of secrets and configs for running containers, in memory only.
type Files interface {
	// Write puts the task's files into a directory of its own, under their index ("0", "1"…) with owner and mode, and returns it.
	Write(ctx context.Context, task cluster.ID, files []agentapi.File) (dir string, err error)
	// Remove forgets them.
	Remove(ctx context.Context, task cluster.ID) error
	// Sweep forgets those of tasks that are not in keep. No task may be starting.
	Sweep(ctx context.Context, keep []cluster.ID) error
}

// Fence ends leased tasks whose lease is over, whatever has become of the agent.
type Fence interface {
	// Guard puts a task, which is about to start, under the fence; it is idempotent. Unguard takes it out.
	Guard(ctx context.Context, task cluster.ID) error
	Unguard(ctx context.Context, task cluster.ID) error
	// Renew says how long the tasks under the fence may go on from now; the last word counts. A negative time ends them.
	Renew(ctx context.Context, left time.Duration) error
}

// Logs is the part of a task's output that outlives its container.
type Logs interface {
	// Remove deletes the task's log files.
	Remove(id cluster.ID) error
	// Sweep deletes the logs of tasks that are not in keep, those that were written to not long ago excepted.
	Sweep(keep []cluster.ID) error
}

// Execution is one interactive command in a container, for `baton exec`.
type Execution = agentapi.Execution
