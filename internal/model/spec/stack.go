package spec

import "time"

// Stack is an application: one Compose project.
type Stack struct {
	Name     string    `json:"name"`
	Services []Service `json:"services,omitempty"`
	Networks []Network `json:"networks,omitempty"`
	Volumes  []Volume  `json:"volumes,omitempty"`
	Secrets  []Secret  `json:"secrets,omitempty"`
	Configs  []Config  `json:"configs,omitempty"`
	// OnFailure says what a failed rollout of one service does to the release; default FailureRollback.
	OnFailure FailureAction `json:"onFailure,omitempty"`
	// ClusterGuard, when set, is the only context name that the stack may be deployed to.
	ClusterGuard string `json:"clusterGuard,omitempty"`
}

// Network is a named set of services that may reach each other.
type Network struct {
	// Name is the key in the stack.
	Name string `json:"name"`
	// Ref is the network's name in the namespace; default "<stack>_<name>", the key itself when external.
	Ref string `json:"ref,omitempty"`
	// Internal networks have no way out of the cluster.
	Internal bool              `json:"internal,omitempty"`
	External bool              `json:"external,omitempty"`
	Labels   map[string]string `json:"labels,omitempty"`
}

// Volume is named storage that outlives the tasks that use it.
type Volume struct {
	// Name is the key in the stack.
	Name string `json:"name"`
	// Ref is the volume's name in the namespace; default "<stack>_<name>".
	Ref      string            `json:"ref,omitempty"`
	External bool              `json:"external,omitempty"`
	Labels   map[string]string `json:"labels,omitempty"`
	// SingleWriter volumes are mounted by at most one task at a time. SetDefaults sets it for a volume that only one service
	// mounts, writable, with one replica at most, unless Shared says otherwise.
	SingleWriter bool `json:"singleWriter,omitempty"`
	// Shared volumes may be written by several tasks at once; it is never guessed.
	Shared bool `json:"shared,omitempty"`
	// OnLoss says what becomes of the volume when its node is lost; default LossWait.
	OnLoss OnLoss `json:"onLoss,omitempty"`
}

// OnLoss is what becomes of a volume whose node is lost.
type OnLoss string

// What becomes of a volume whose node is lost.
const (
	LossWait     OnLoss = "wait"     // its tasks wait until the node is back
	LossRecreate OnLoss = "recreate" // it begins empty on another node, with its task
)

// Secret names a secret that the stack uses. Content is set only on its way from the client to the manager, which stores it
// encrypted; an external secret exists already (`baton secret set`).
type Secret struct {
	Name     string `json:"name"`
	Ref      string `json:"ref,omitempty"`
	External bool   `json:"external,omitempty"`
	Content  []byte `json:"content,omitempty"`
}

// Config is a file that the stack gives to its services.
type Config struct {
	Name     string `json:"name"`
	Ref      string `json:"ref,omitempty"`
	External bool   `json:"external,omitempty"`
	Content  []byte `json:"content,omitempty"`
}

// Mode says how the number of a service's tasks is decided.
type Mode string

// The modes.
const (
	Replicated Mode = "replicated" // Replicas tasks in slots 1..Replicas
	Global     Mode = "global"     // one task on every eligible node
)

// PullPolicy says when a node asks a registry for an image.
type PullPolicy string

// The pull policies.
const (
	PullMissing PullPolicy = "missing" // default
	PullAlways  PullPolicy = "always"
	PullNever   PullPolicy = "never"
)

// Service is one part of a stack: what runs, how often, where, and how it changes. It is the content of a revision.
type Service struct {
	Name   string            `json:"name"`
	Image  string            `json:"image"`
	Pull   PullPolicy        `json:"pull,omitempty"`
	Mode   Mode              `json:"mode"`
	Labels map[string]string `json:"labels,omitempty"` // the service's (deploy.labels)

	// Replicas is the wanted number of tasks of a replicated service.
	Replicas int `json:"replicas"`
	// Autoscale, when set, owns the number; Replicas is what a new service begins with.
	Autoscale *Autoscale `json:"autoscale,omitempty"`

	Container Container    `json:"container"`
	Probes    Probes       `json:"probes,omitzero"`
	Networks  []Attachment `json:"networks,omitempty"`
	// NetworkMode is "" (own address on Networks), "host" or "none".
	NetworkMode  string       `json:"networkMode,omitempty"`
	EndpointMode EndpointMode `json:"endpointMode,omitempty"`
	Ports        []Port       `json:"ports,omitempty"`
	Ingress      []Ingress    `json:"ingress,omitempty"`
	Mounts       []Mount      `json:"mounts,omitempty"`
	Secrets      []FileRef    `json:"secrets,omitempty"`
	Configs      []FileRef    `json:"configs,omitempty"`

	Resources Resources     `json:"resources,omitzero"`
	Placement Placement     `json:"placement,omitzero"`
	Restart   RestartPolicy `json:"restart"`
	Update    UpdatePolicy  `json:"update"`
	Rollback  UpdatePolicy  `json:"rollback"`
	DependsOn []Dependency  `json:"dependsOn,omitempty"`
	Logging   Logging       `json:"logging,omitzero"`
}

// EndpointMode says how the service's name is answered.
type EndpointMode string

// The endpoint modes.
const (
	EndpointVIP   EndpointMode = "vip"   // one service address, balanced; default
	EndpointDNSRR EndpointMode = "dnsrr" // the addresses of the ready tasks
)

// Container is the process of a task and its surroundings.
type Container struct {
	// Entrypoint replaces the image's when not nil; an empty non-nil list clears it.
	Entrypoint []string `json:"entrypoint,omitzero"`
	// Command replaces the image's when not nil.
	Command  []string          `json:"command,omitzero"`
	Env      []string          `json:"env,omitempty"` // KEY=VALUE, sorted by key
	User     string            `json:"user,omitempty"`
	GroupAdd []string          `json:"groupAdd,omitempty"`
	Dir      string            `json:"dir,omitempty"`
	Hostname string            `json:"hostname,omitempty"`
	Labels   map[string]string `json:"labels,omitempty"`
	TTY      bool              `json:"tty,omitempty"`
	Stdin    bool              `json:"stdin,omitempty"`
	Init     bool              `json:"init,omitempty"`

	ReadOnly        bool              `json:"readOnly,omitempty"`
	Privileged      bool              `json:"privileged,omitempty"`
	CapAdd          []string          `json:"capAdd,omitempty"`
	CapDrop         []string          `json:"capDrop,omitempty"`
	SecurityOpt     []string          `json:"securityOpt,omitempty"`
	Sysctls         map[string]string `json:"sysctls,omitempty"`
	Ulimits         []Ulimit          `json:"ulimits,omitempty"`
	Devices         []Device          `json:"devices,omitempty"`
	ShmSize         Bytes             `json:"shmSize,omitempty"` // default 64 MiB
	OOMScoreAdj     int               `json:"oomScoreAdj,omitempty"`
	DNS             []string          `json:"dns,omitempty"`
	DNSSearch       []string          `json:"dnsSearch,omitempty"`
	DNSOptions      []string          `json:"dnsOptions,omitempty"`
	ExtraHosts      []string          `json:"extraHosts,omitempty"` // NAME=ADDRESS
	StopSignal      string            `json:"stopSignal,omitempty"` // default: the image's, else SIGTERM
	StopGracePeriod time.Duration     `json:"stopGracePeriod"`      // default 10 s
	// DrainDeadline bounds the wait for open connections between leaving the load balancers and the stop signal; default 10 s.
	DrainDeadline time.Duration `json:"drainDeadline"`
}

// Ulimit is one resource limit of the process.
type Ulimit struct {
	Name string `json:"name"`
	Soft int64  `json:"soft"`
	Hard int64  `json:"hard"`
}

// Device gives a host device to the container.
type Device struct {
	Source      string `json:"source"`
	Target      string `json:"target"`
	Permissions string `json:"permissions,omitempty"` // default rwm
}

// Attachment puts a service on a network, under its name and the aliases.
type Attachment struct {
	Network string   `json:"network"`
	Aliases []string `json:"aliases,omitempty"`
}

// Port publishes a container port.
type Port struct {
	Target    uint16   `json:"target"`
	Published uint16   `json:"published"`
	Protocol  string   `json:"protocol"`           // tcp or udp
	Mode      PortMode `json:"mode"`               // default ingress
	HostIP    string   `json:"hostIP,omitempty"`   // listen only on this address of the node
	Name      string   `json:"name,omitempty"`     // free text
	AppProto  string   `json:"appProto,omitempty"` // free text
}

// PortMode says where a published port is open.
type PortMode string

// The port modes.
const (
	PortIngress PortMode = "ingress" // on every node, balanced over all ready tasks
	PortHost    PortMode = "host"    // only on the node of a task, to that task
)

// MountKind is the kind of a mount.
type MountKind string

// The mount kinds.
const (
	MountVolume MountKind = "volume"
	MountBind   MountKind = "bind"
	MountTmpfs  MountKind = "tmpfs"
)

// Mount makes storage visible in the container.
type Mount struct {
	Kind MountKind `json:"kind"`
	// Source is a volume's key in the stack or an absolute host path; empty for tmpfs and anonymous volumes.
	Source   string `json:"source,omitempty"`
	Target   string `json:"target"`
	ReadOnly bool   `json:"readOnly,omitempty"`
	NoCopy   bool   `json:"noCopy,omitempty"`  // do not fill a new volume from the image
	SubPath  string `json:"subPath,omitempty"` // inside the volume
	Size     Bytes  `json:"size,omitempty"`    // tmpfs
	FileMode uint32 `json:"fileMode,omitempty"`
	// CreateHostPath makes a missing bind source; default true for the short syntax, as docker does.
	CreateHostPath bool   `json:"createHostPath,omitempty"`
	Propagation    string `json:"propagation,omitempty"`
}

// FileRef gives a secret or config to the container as a file.
type FileRef struct {
	Source string `json:"source"` // key in the stack
	// Target is the absolute path; default /run/secrets/<source> or /<source>.
	Target string `json:"target"`
	UID    uint32 `json:"uid,omitempty"`
	GID    uint32 `json:"gid,omitempty"`
	Mode   uint32 `json:"mode"` // default 0444
}

// Logging bounds what a node keeps of a task's output.
type Logging struct {
	MaxSize  Bytes `json:"maxSize,omitempty"`  // of one file; default 10 MiB
	MaxFiles int   `json:"maxFiles,omitempty"` // default 3
}
