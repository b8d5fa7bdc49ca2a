// Package agentapi holds the messages between an agent and a manager.
//
// An agent opens one session to any manager. It says Hello, gets one full Update and then diffs, or only diffs when the
// manager still knows what the agent knows (Hello.Known), and sends Reports. The
// structs travel as they are: as values within one process, as CBOR between machines.
//
// Invariants: an Update's Version only grows within a session; an Update with Full set replaces everything before it; an
// agent acknowledges a version (Report.Applied) only once its load balancers follow it, because a manager stops a drained
// task on the strength of that word.
//
// Concurrency: values only. A sender must not change a message after sending it.
package agentapi

import (
	"context"
	"net/netip"
	"time"

	"baton/internal/model/cluster"
	"baton/internal/model/spec"
)

// Hello opens a session.
type Hello struct {
	Node        cluster.ID              `json:"node"`
	Name        string                  `json:"name"`
	Description cluster.NodeDescription `json:"description"`
	// Known is the version of the last Update that the agent took, if it still knows all of what it was told; zero asks for
	// everything.
	Known cluster.Version `json:"known,omitempty"`
	// Session grows with each session of the node, so that of two that seem open the newer one is known.
	Session uint64 `json:"session,omitempty"`
}

// File is the content of a secret or config, with where it goes.
type File struct {
	Name    string `json:"name"` // source name, for messages
	Target  string `json:"target"`
	UID     uint32 `json:"uid,omitempty"`
	GID     uint32 `json:"gid,omitempty"`
	Mode    uint32 `json:"mode"`
	Content []byte `json:"content"`
	Secret  bool   `json:"secret,omitempty"` // on tmpfs only, never on disk
}

// Assignment is everything that a node needs to run one task.
type Assignment struct {
	Task        *cluster.Task `json:"task"`
	Spec        *spec.Service `json:"spec"`
	StackName   string        `json:"stackName"`
	ServiceName string        `json:"serviceName"`
	Files       []File        `json:"files,omitempty"`
	// Volumes gives, for each named volume in Spec.Mounts, the cluster-wide name.
	Volumes map[string]string `json:"volumes,omitempty"`
	// Internal is true when all of the task's networks are internal: it has no way out.
	Internal bool `json:"internal,omitempty"`
	// Networks are the ids of the networks that the task is on.
	Networks []cluster.ID `json:"networks,omitempty"`
	// Auth are the credentials for the registry of the task's image; nil: none are known.
	Auth *RegistryAuth `json:"auth,omitempty"`
}

// A leased task (cluster.Task) runs only while the leader confirms its node's heartbeats. It may have another one started in its place once its node is down. It must have ended before that, whatever its node
// can hear and whether its agent is alive. So the times below, counted on the node from when it sent the newest heartbeat that
// the leader has confirmed, are shorter than the one that the leader counts from when it heard the node last until the node is down.
const (
	// LeaseMax is when the agent stops its leased tasks.
	LeaseMax = 10 * time.Second
	// FenceMax is when a process of its own kills those that still run.
	FenceMax = 12 * time.Second
	// DownMin is the least time after which a node may count as down.
	DownMin = 15 * time.Second
)

// RegistryAuth are the credentials for one registry. A node keeps them in memory only.
type RegistryAuth struct {
	Host     string `json:"host"` // as in image names: "docker.io", "registry.example:5000"
	Username string `json:"username"`
	Password string `json:"password"`
}

// String keeps the password out of logs and messages.
func (a RegistryAuth) String() string { return a.Username + " at " + a.Host }

// GoString does for %#v what String does for %v.
func (a RegistryAuth) GoString() string { return a.String() }

// Endpoint is a ready task's address.
type Endpoint struct {
	Task    cluster.ID `json:"task"`
	Node    cluster.ID `json:"node"`
	Slot    int        `json:"slot"`
	Address netip.Addr `json:"address"`
}

// Service is what a node must know of a service to answer for its name and to balance for its address.
type Service struct {
	ID      cluster.ID `json:"id"`
	Name    string     `json:"name"`
	Stack   string     `json:"stack"`
	Address netip.Addr `json:"address,omitzero"` // service address; zero with endpoint mode dnsrr
	// Networks maps each network that the service is on to its aliases there.
	Networks map[cluster.ID][]string `json:"networks,omitempty"`
	// Ports are the published ones in ingress mode.
	Ports []spec.Port `json:"ports,omitempty"`
	// Ingress are the L7 rules that lead to the service.
	Ingress []spec.Ingress `json:"ingress,omitempty"`
	// Holds is true when the service may rest without a task: what comes for it then is held, and is a reason to wake it. At most
	// HoldRequests requests wait on a node, each for HoldWait.
	Holds        bool          `json:"holds,omitempty"`
	HoldWait     time.Duration `json:"holdWait,omitempty"`
	HoldRequests int           `json:"holdRequests,omitempty"`
	// Endpoints are the ready tasks, sorted by task id.
	Endpoints []Endpoint `json:"endpoints,omitempty"`
}

// Member is a task's place in the networks, on whichever node, ready or not: what isolation is made of.
type Member struct {
	Task     cluster.ID   `json:"task"`
	Node     cluster.ID   `json:"node"`
	Address  netip.Addr   `json:"address"`
	Networks []cluster.ID `json:"networks"`
}

// Network is a set of members that may reach each other.
type Network struct {
	ID       cluster.ID `json:"id"`
	Name     string     `json:"name"`
	Stack    string     `json:"stack"`
	Internal bool       `json:"internal,omitempty"`
}

// Peer is a node as the mesh of the others must know it.
type Peer struct {
	Node   cluster.ID   `json:"node"`
	Name   string       `json:"name"`
	Subnet netip.Prefix `json:"subnet"` // its tasks' addresses; the first one is the node's own
	// Endpoint is where its mesh is reached: the underlay address, and the UDP port (none with the routed mesh).
	Endpoint netip.AddrPort `json:"endpoint"`
	// Key is its WireGuard public key in base64; empty with the other meshes.
	Key string `json:"key,omitempty"`
}

// NetworkState is the whole of what a node's network must show. It is applied as a whole; the node works out the difference.
type NetworkState struct {
	// Peers are all nodes that have a place in the mesh, the receiver included, sorted by id.
	Peers    []Peer    `json:"peers,omitempty"`
	Networks []Network `json:"networks,omitempty"`
	Services []Service `json:"services,omitempty"`
	Members  []Member  `json:"members,omitempty"`
	// Certificates and Challenges are for the edge; a host has one certificate at most.
	Certificates []HostCertificate `json:"certificates,omitempty"`
	Challenges   []Challenge       `json:"challenges,omitempty"`
}

// Update is what a manager sends.
type Update struct {
	Version cluster.Version `json:"version"`
	// Full replaces everything; else Assignments and Removed are a diff by task.
	Full        bool         `json:"full,omitempty"`
	Assignments []Assignment `json:"assignments,omitempty"`
	Removed     []cluster.ID `json:"removed,omitempty"`
	// Network is nil when unchanged.
	Network *NetworkState `json:"network,omitempty"`
	// RemoveVolumes are volumes to delete on this node; the agent reports each in VolumesRemoved.
	RemoveVolumes []string `json:"removeVolumes,omitempty"`
	// Prepare are all the images that the node is to have for rollouts; nil when unchanged.
	Prepare *Preparation `json:"prepare,omitempty"`
	// Node carries the subnet and the pools that the node's network is to use; nil when unchanged.
	Node *NodeConfig `json:"node,omitempty"`
	// Membership is what the node must know of its cluster; nil when unchanged.
	Membership *Membership `json:"membership,omitempty"`
	// Echo is the newest of the agent's heartbeats that this manager has got: the session is alive.
	Echo uint64 `json:"echo,omitempty"`
	// Beat is the newest heartbeat that the leader has confirmed: the node's leases go on. Zero: none since the last update.
	Beat uint64 `json:"beat,omitempty"`
	// Confirmed is when the agent sent that heartbeat, by its own clock. The agent's end of the session fills it in.
	Confirmed time.Time `json:"-" cbor:"-"`
}

// Membership is what a node must know of its cluster to stay in it.
type Membership struct {
	// Role is what the node is to be: a manager or a worker.
	Role string `json:"role"`
	// Roots are the authorities to trust (PEM), Issuer a short hash of the one that must have signed the node's certificate.
	Roots  []byte `json:"roots"`
	Issuer string `json:"issuer"`
	// Managers are where sessions can be opened, sorted by id.
	Managers []Manager `json:"managers"`
}

// Manager is a manager's address.
type Manager struct {
	Node    cluster.ID `json:"node"`
	Address string     `json:"address"` // host:port
}

// Preparation is all that a node is to have ready before a rollout stops anything on it. The agent says what came of each in
// Report.Prepared.
type Preparation struct {
	Images []ImageWant `json:"images,omitempty"`
}

// ImageWant is an image to have on the node. Each Since is a want of its own: with policy always the image is asked for anew.
type ImageWant struct {
	Revision cluster.ID      `json:"revision"`
	Since    time.Time       `json:"since"`
	Image    string          `json:"image"`
	Policy   spec.PullPolicy `json:"policy,omitempty"`
	Auth     *RegistryAuth   `json:"auth,omitempty"`
}

// PreparedImages is what came of each image of the last Preparation.
type PreparedImages struct {
	Images []cluster.Prepared `json:"images,omitempty"`
}

// NodeConfig is what a node must know of itself. It stays comparable.
type NodeConfig struct {
	Subnet      netip.Prefix `json:"subnet"`
	TaskPool    netip.Prefix `json:"taskPool"`
	ServicePool netip.Prefix `json:"servicePool"`
	// Mesh is how the nodes' subnets are connected; empty while the cluster has one node and no mesh.
	Mesh cluster.Mesh `json:"mesh,omitempty"`
	// MeshPort is the UDP port of WireGuard and VXLAN, the same on all nodes.
	MeshPort uint16 `json:"meshPort,omitempty"`
	// MeshEpoch grows when nodes are to change their mesh keys.
	MeshEpoch uint64 `json:"meshEpoch,omitempty"`
}

// StandIn is a task that a node made by itself while no manager could be reached, in the place of one that had ended there.
// The manager either takes it over, under the id that the node gave it, and sends it as an assignment, or refuses it: then
// its id is in Update.Removed. It must do one of them for every stand-in that it is told of.
type StandIn struct {
	// For is the end of the task whose place it has; the manager hears of that end here and not in Report.Tasks.
	For      cluster.Status `json:"for"`
	Created  time.Time      `json:"created"`
	Failures int            `json:"failures,omitempty"` // ends in a row before it, as in cluster.Task
	Status   cluster.Status `json:"status"`             // its own
}

// Report is what an agent sends.
type Report struct {
	// Applied is the newest Update version that the node's load balancers follow.
	Applied        cluster.Version          `json:"applied"`
	Tasks          []cluster.Status         `json:"tasks,omitempty"`
	VolumesRemoved []string                 `json:"volumesRemoved,omitempty"`
	Description    *cluster.NodeDescription `json:"description,omitempty"` // when it changed
	Notes          []Note                   `json:"notes,omitempty"`
	StandIns       []StandIn                `json:"standIns,omitempty"`
	Prepared       *PreparedImages          `json:"prepared,omitempty"` // when it changed
	// Wanted are the services with Holds that somebody used or wanted here since the last report: requests or connections wait for
	// them, or are under way.
	Wanted []cluster.ID `json:"wanted,omitempty"`
	// Beat numbers the agent's heartbeats of a session, from 1; zero: this report is none.
	Beat uint64 `json:"beat,omitempty"`
	// Measures is the node's load; nil: nothing is said of it. It is kept in memory only.
	Measures *Measures `json:"measures,omitempty"`
}

// Empty reports whether there is nothing in it that a manager has to write.
func (r *Report) Empty() bool {
	return len(r.Tasks) == 0 && len(r.VolumesRemoved) == 0 && len(r.Notes) == 0 && r.Description == nil && len(r.StandIns) == 0 &&
		r.Prepared == nil
}

// Note is something that a user should see and that changes no state: it becomes an Event.
type Note struct {
	Task    cluster.ID `json:"task,omitzero"`
	Type    string     `json:"type"` // "task.probe-failed", "node.containerd-restarted"…
	Message string     `json:"message"`
	At      time.Time  `json:"at"`
}

// The calls that agents make, over rpc: a service, and its functions.
const (
	CallService = "baton.Agent"
	CallSession = "Session" // stream: FromAgent one way, Update the other
	CallRenew   = "Renew"   // Renewal → Certificate
	CallKit     = "Kit"     // Empty → Kit
)

// FromAgent is one message of a session: Hello first, then Reports.
type FromAgent struct {
	Hello  *Hello  `json:"hello,omitempty"`
	Report *Report `json:"report,omitempty"`
}

// Renewal asks for a new certificate for the node that calls.
type Renewal struct {
	CSR   []byte   `json:"csr"`
	Hosts []string `json:"hosts,omitempty"` // addresses and names under which the node may be reached
}

// Certificate is a node's new certificate, with whom it must trust (PEM).
type Certificate struct {
	Certificate []byte `json:"certificate"`
	Roots       []byte `json:"roots"`
}

// Empty is a message that says nothing.
type Empty struct{}

// Kit is what a node needs to become a manager; only a node that is to be one gets it.
type Kit struct {
	SealKey  []byte    `json:"sealKey"`
	Managers []Manager `json:"managers"`
}

// Session is an agent's end of its stream to a manager. Send and Recv may be used from different goroutines.
type Session interface {
	Send(ctx context.Context, r Report) error
	// Recv blocks for the next Update; an error ends the session.
	Recv(ctx context.Context) (Update, error)
	Close() error
}

// Connector opens sessions.
type Connector interface {
	Connect(ctx context.Context, h Hello) (Session, error)
}
