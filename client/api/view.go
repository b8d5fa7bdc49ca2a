package api

import (
	"encoding/json"
	"net/netip"
	"time"

	"baton/internal/model/cluster"
	"baton/internal/model/spec"
)

// Version says what answers.
type Version struct {
	Version string          `json:"version"`
	API     string          `json:"api" doc:"version of the API"`
	Cluster string          `json:"cluster" doc:"name of the cluster"`
	Go      string          `json:"go"`
	Store   cluster.Version `json:"store" doc:"newest version of the store"`
}

// Stack is a stack as lists show it.
type Stack struct {
	ID       cluster.ID           `json:"id"`
	Name     string               `json:"name"`
	Version  cluster.Version      `json:"version"`
	Release  int                  `json:"release"`
	State    cluster.ReleaseState `json:"state" doc:"of the wanted release"`
	Removing bool                 `json:"removing,omitempty"`
	Services int                  `json:"services"`
	Created  time.Time            `json:"created"`
}

// Service is a service as lists show it.
type Service struct {
	ID       cluster.ID            `json:"id"`
	Stack    string                `json:"stack"`
	Name     string                `json:"name"`
	Mode     spec.Mode             `json:"mode"`
	Image    string                `json:"image"`
	Revision int                   `json:"revision"`
	Ports    []spec.Port           `json:"ports,omitempty"`
	Address  netip.Addr            `json:"address,omitzero"`
	Status   cluster.ServiceStatus `json:"status"`
	Scale    *Scale                `json:"scale,omitempty"`
	Rollout  *cluster.Rollout      `json:"rollout,omitempty"`
	Removing bool                  `json:"removing,omitempty"`
	Version  cluster.Version       `json:"version"`
	Created  time.Time             `json:"created"`
	// Spec is given for one service only, never in lists.
	Spec *spec.Service `json:"spec,omitempty"`
}

// Scale says who owns the number of a service's tasks, of one that has x-autoscale.
type Scale struct {
	Owner string `json:"owner" enum:"auto,user" doc:"auto: its load; user: it was set by hand"`
	Min   int    `json:"min"`
	Max   int    `json:"max"`
}

// The owners of a number.
const (
	OwnerAuto = "auto"
	OwnerUser = "user"
)

// Replicas is how many tasks are ready and wanted, and who says so: "3/3 (auto 2-20)".
func Replicas(s cluster.ServiceStatus, scale *Scale) string {
	out := itoa(s.Ready) + "/" + itoa(s.Desired)
	switch {
	case scale == nil:
	case scale.Owner == OwnerUser:
		out += " (by hand)"
	default:
		out += " (auto " + itoa(scale.Min) + "-" + itoa(scale.Max) + ")"
	}
	return out
}

// Task is a task with the names of what it belongs to.
type Task struct {
	cluster.Task
	StackName    string `json:"stackName"`
	ServiceName  string `json:"serviceName"`
	NodeName     string `json:"nodeName,omitempty"`
	Image        string `json:"image"`
	RevisionNo   int    `json:"revisionNumber"`
	Past         bool   `json:"past,omitempty" doc:"ended or replaced"`
	WantedImage  bool   `json:"current,omitempty" doc:"of the revision that its service wants"`
	HostPortList string `json:"ports,omitempty"`
}

// Label is how people name the task: service/slot, or service/node for a global one.
func (t *Task) Label() string {
	if t.Slot > 0 {
		return t.ServiceName + "/" + itoa(t.Slot)
	}
	if t.NodeName != "" {
		return t.ServiceName + "/" + t.NodeName
	}
	return t.ServiceName + "/" + t.ID.Short()
}

// Status is how a whole stack is.
type Status struct {
	Stack Stack `json:"stack"`
	// Release is the wanted one.
	Release  Release         `json:"release"`
	Services []ServiceState  `json:"services"`
	Healthy  bool            `json:"healthy" doc:"the release is complete and every service is as wanted"`
	Version  cluster.Version `json:"version" doc:"of the store, as this was read"`
	// Gone is true in a watch's last line, after the stack was removed.
	Gone bool `json:"gone,omitempty"`
}

// ServiceState is how a service of a stack is.
type ServiceState struct {
	Name    string                `json:"name"`
	Mode    spec.Mode             `json:"mode"`
	Image   string                `json:"image"`
	Status  cluster.ServiceStatus `json:"status"`
	Scale   *Scale                `json:"scale,omitempty"`
	Rollout cluster.RolloutState  `json:"rollout,omitempty"`
	Reason  string                `json:"reason,omitempty" doc:"why it is not as wanted"`
	Ports   []spec.Port           `json:"ports,omitempty"`
	// Removing services are on their way out.
	Removing bool `json:"removing,omitempty"`
	// Failing lists, newest first, how its last tasks ended, when they failed.
	Failing []string `json:"failing,omitempty"`
	// Load is absent in a watch, and while nothing is known.
	Load *Load `json:"load,omitempty" doc:"of late"`
}

// NodePatch changes a node; nil fields stay.
type NodePatch struct {
	Availability *cluster.Availability `json:"availability,omitempty" enum:"active,pause,drain"`
	// Labels are set; an empty value removes the label.
	Labels map[string]string `json:"labels,omitempty"`
	// Manager makes the node a manager, or a worker.
	Manager *bool `json:"manager,omitempty"`
}

// Node is a node with what runs there.
type Node struct {
	cluster.Node
	Tasks    int           `json:"tasks" doc:"tasks that have not ended"`
	Reserved spec.MilliCPU `json:"reservedCPU"`
	Memory   spec.Bytes    `json:"reservedMemory"`
	Leader   bool          `json:"leader,omitempty" doc:"of the managers"`
	Used     *NodeUsage    `json:"used,omitempty" doc:"only when it was asked for"`
	Avoided  string        `json:"avoided,omitempty" doc:"why tasks are placed elsewhere as long as they fit there; empty for most nodes"`
}

// NodeUsage is what everything on a node uses now.
type NodeUsage struct {
	Node       string        `json:"node"`
	At         time.Time     `json:"at,omitzero"`
	CPU        time.Duration `json:"cpu" doc:"processor time used so far, in nanoseconds"`
	Busy       spec.MilliCPU `json:"busy" doc:"processors in use over the last seconds"`
	Cores      spec.MilliCPU `json:"cores"`
	Memory     spec.Bytes    `json:"memory" doc:"what cannot be had for new processes"`
	MemorySize spec.Bytes    `json:"memorySize"`
	Error      string        `json:"error,omitempty" doc:"why there are no numbers"`
}

// Top is what nodes and tasks use now.
type Top struct {
	Nodes []NodeUsage `json:"nodes"`
	// Services are those of whose load something is known.
	Services []ServiceLoad `json:"services"`
	Tasks    []TaskStats   `json:"tasks"`
}

// Move is a task that is better placed on another node.
type Move struct {
	Task   string     `json:"task" doc:"stack/service/slot"`
	ID     cluster.ID `json:"id"`
	From   string     `json:"from" doc:"name of the node where it runs"`
	To     string     `json:"to" doc:"name of the node where it is better placed"`
	Reason string     `json:"reason" doc:"what is more even then"`
}

// Balance is what there is to do to even out the load of the nodes.
type Balance struct {
	Moves    []Move `json:"moves" doc:"in the order in which they are made"`
	UnderWay int    `json:"underWay" doc:"moves that have begun and not ended"`
}

// Material is one version of a secret or config, without its content.
type Material struct {
	ID      cluster.ID `json:"id"`
	Name    string     `json:"name"`
	Stack   string     `json:"stack,omitempty" doc:"the stack that brought it; empty when it was set by hand"`
	Number  int        `json:"number"`
	Size    int        `json:"size"`
	Created time.Time  `json:"created"`
	UsedBy  []string   `json:"usedBy,omitempty" doc:"services whose wanted revision has this version"`
}

// Registry is an image registry with stored credentials.
type Registry struct {
	Host     string    `json:"host" doc:"as in image names"`
	Username string    `json:"username"`
	Updated  time.Time `json:"updated"`
}

// RegistryRequest is a user name and password for an image registry.
type RegistryRequest struct {
	Username  string `json:"username"`
	Password  string `json:"password" doc:"or an access token; kept encrypted and never shown"`
	Unchecked bool   `json:"unchecked,omitempty" doc:"store them without asking the registry"`
}

// SetRequest is a new content of a secret or config.
type SetRequest struct {
	Content []byte `json:"content" doc:"at most 512 KiB"`
}

// SetResult says which version holds the content now.
type SetResult struct {
	Name   string `json:"name"`
	Number int    `json:"number"`
	// Changed is false when the newest version had this content already.
	Changed bool `json:"changed"`
	// Stale names the services that run with an older version until their stack's next deployment.
	Stale []string `json:"stale,omitempty"`
}

// ConfigContent is the content of one version of a config.
type ConfigContent struct {
	Name    string `json:"name"`
	Number  int    `json:"number"`
	Content []byte `json:"content"`
}

// Volume is a volume with the names of what it belongs to.
type Volume struct {
	cluster.Volume
	StackName string   `json:"stackName,omitempty"`
	NodeName  string   `json:"nodeName,omitempty"`
	UsedBy    []string `json:"usedBy,omitempty" doc:"services that mount it"`
}

// Image is an image that is present on a node.
type Image struct {
	Node    string    `json:"node"`
	Ref     string    `json:"ref"`
	Digest  string    `json:"digest"`
	Size    int64     `json:"size" doc:"bytes of content, as stored"`
	Created time.Time `json:"created,omitzero"`
	UsedBy  []string  `json:"usedBy,omitempty" doc:"services whose tasks on this node use it"`
}

// LoadResult says what an archive held.
type LoadResult struct {
	Node string   `json:"node"`
	Refs []string `json:"refs"`
}

// Event is an event with the names of what it is about.
type Event struct {
	cluster.Event
	StackName   string `json:"stackName,omitempty"`
	ServiceName string `json:"serviceName,omitempty"`
	NodeName    string `json:"nodeName,omitempty"`
	ReleaseNo   int    `json:"releaseNumber,omitempty"`
	// Subject is how people name what the event is about: a task's label, else a service, a node, a stack.
	Subject string `json:"subject,omitempty"`
}

// Reason is one link of the chain that explains a target's state.
type Reason struct {
	// Depth is 0 for what was asked, more for what lies behind it.
	Depth   int       `json:"depth"`
	Kind    string    `json:"kind" doc:"stack, release, service, rollout, task, node, volume or event"`
	Subject string    `json:"subject"`
	State   string    `json:"state,omitempty"`
	Text    string    `json:"text"`
	At      time.Time `json:"at,omitzero"`
	// Bad marks what keeps the target from being as wanted.
	Bad  bool          `json:"bad,omitempty"`
	ID   cluster.ID    `json:"id,omitzero"`
	Exit *cluster.Exit `json:"exit,omitempty"`
}

// Why explains a target's state, the most telling reason first.
type Why struct {
	Target string `json:"target"`
	Kind   string `json:"kind"`
	// Summary is the answer in one sentence.
	Summary string   `json:"summary"`
	Reasons []Reason `json:"reasons"`
}

// LogLine is one line of a task's output.
type LogLine struct {
	Time    time.Time  `json:"time"`
	Stream  string     `json:"stream" doc:"stdout or stderr"`
	Text    string     `json:"text"`
	Partial bool       `json:"partial,omitempty" doc:"the line goes on in the next one"`
	Task    cluster.ID `json:"task"`
	Service string     `json:"service"`
	Slot    int        `json:"slot,omitempty"`
	Node    string     `json:"node,omitempty"`
}

// TaskStats is what a task uses now.
type TaskStats struct {
	Task        cluster.ID    `json:"task"`
	Service     string        `json:"service"`
	Stack       string        `json:"stack"`
	Slot        int           `json:"slot,omitempty"`
	Node        string        `json:"node"`
	At          time.Time     `json:"at"`
	CPU         time.Duration `json:"cpu" doc:"processor time used so far, in nanoseconds"`
	Memory      uint64        `json:"memory" doc:"bytes, without reclaimable cache"`
	MemoryLimit uint64        `json:"memoryLimit,omitempty"`
	PIDs        uint64        `json:"pids"`
	Received    uint64        `json:"received" doc:"bytes over its own network; 0 with that of the host"`
	Sent        uint64        `json:"sent"`
	Load        *Load         `json:"load,omitempty" doc:"of late; absent while nothing is known"`
	Error       string        `json:"error,omitempty" doc:"why there are no numbers"`
}

// ObjectChange is one line of a watch: an object as it is now, or that it is gone.
type ObjectChange struct {
	Kind    string          `json:"kind"`
	ID      cluster.ID      `json:"id"`
	Version cluster.Version `json:"version"`
	Deleted bool            `json:"deleted,omitempty"`
	// Resync is true in the first line after the reader fell too far behind: forget everything read before.
	Resync bool            `json:"resync,omitempty"`
	Object json.RawMessage `json:"object,omitempty"`
}

// StreamLine is one line of any NDJSON stream: exactly one of Item and Error is set; an empty object keeps the connection
// alive.
type StreamLine struct {
	Item  json.RawMessage `json:"item,omitempty"`
	Error *Error          `json:"error,omitempty"`
}

func itoa(n int) string {
	b, _ := json.Marshal(n)
	return string(b)
}
