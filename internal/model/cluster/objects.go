package cluster

import (
	"crypto/sha256"
	"maps"
	"net/netip"
	"slices"
	"time"

	"baton/internal/model/spec"
)

// NodeState is what the managers know of a node's connection.
type NodeState string

// The node states.
const (
	NodeReady   NodeState = "ready"
	NodeUnknown NodeState = "unknown" // silent: its endpoints are out
	NodeDown    NodeState = "down"
)

// Availability is what the operator wants of a node.
type Availability string

// The availabilities.
const (
	NodeActive Availability = "active"
	NodePause  Availability = "pause" // no new tasks
	NodeDrain  Availability = "drain" // tasks move away, starting elsewhere first
)

// NodeDescription is what a node tells of itself when it connects.
type NodeDescription struct {
	Hostname string        `json:"hostname"`
	OS       string        `json:"os"`
	Arch     string        `json:"arch"`
	CPU      spec.MilliCPU `json:"cpu"`
	Memory   spec.Bytes    `json:"memory"`
	Version  string        `json:"version"`
	Kernel   string        `json:"kernel,omitempty"`
	Level    Level         `json:"level,omitempty"` // the highest feature level that its baton knows
	// Roots and Issuer are short hashes of the authorities that the node trusts and of the one that signed its certificate.
	Roots   string    `json:"roots,omitempty"`
	Issuer  string    `json:"issuer,omitempty"`
	Expires time.Time `json:"expires,omitzero"` // end of that certificate
	// Listen is where the node's one TCP port is reached, as the node sees it; empty on nodes that were never networked.
	Listen string `json:"listen,omitempty"`
	// MeshKey is the node's current WireGuard public key in base64; the private one never leaves the node.
	MeshKey string `json:"meshKey,omitempty"`
	// Images lists the normalised references that are present, for placement by locality; bounded.
	Images []string `json:"images,omitempty"`
}

// Node is a machine of the cluster.
type Node struct {
	Meta
	Name         string            `json:"name"`
	Manager      bool              `json:"manager,omitempty"`
	Witness      bool              `json:"witness,omitempty"` // a manager that only votes: it does not lead, and runs no tasks
	Availability Availability      `json:"availability"`
	State        NodeState         `json:"state"`
	StateSince   time.Time         `json:"stateSince,omitzero"`
	Labels       map[string]string `json:"labels,omitempty"`
	Description  NodeDescription   `json:"description"`
	Address      netip.Addr        `json:"address,omitzero"` // how other nodes reach it
	Subnet       netip.Prefix      `json:"subnet,omitzero"`  // its tasks' addresses
	// Joined is a hash of the nonce with which the machine joined: the same machine may ask again.
	Joined []byte `json:"-" cbor:"joined,omitempty"`
	// Prepared is what the node says of the images that rollouts wait for.
	Prepared []Prepared `json:"prepared,omitempty"`
}

// Prepared is how far a node has come with an image that a rollout needs there before it stops anything.
type Prepared struct {
	Revision ID        `json:"revision"`
	Since    time.Time `json:"since"`             // the rollout's start
	Present  bool      `json:"present,omitempty"` // pulled as the revision's policy wants
	Rejected bool      `json:"rejected,omitempty"`
	Reason   string    `json:"reason,omitempty"` // what the last try came to
}

// Kind implements Object.
func (*Node) Kind() Kind { return KindNode }

// Clone implements Object.
func (n *Node) Clone() Object {
	c := *n
	c.Labels = maps.Clone(n.Labels)
	c.Description.Images = slices.Clone(n.Description.Images)
	c.Prepared = slices.Clone(n.Prepared)
	return &c
}

// Stack is an application: one Compose project, and which of its releases is wanted.
type Stack struct {
	Meta
	Name       string             `json:"name"`
	Release    ID                 `json:"release"`       // wanted now
	Good       ID                 `json:"good,omitzero"` // last release that completed: where a rollback goes
	Removing   bool               `json:"removing,omitempty"`
	LastNumber int                `json:"lastNumber"` // of the newest release
	OnFailure  spec.FailureAction `json:"onFailure,omitempty"`
}

// Kind implements Object.
func (*Stack) Kind() Kind { return KindStack }

// Clone implements Object.
func (s *Stack) Clone() Object { c := *s; return &c }

// ReleaseState is how far a release has come.
type ReleaseState string

// The release states. All but deploying and paused are final.
const (
	ReleaseDeploying  ReleaseState = "deploying"
	ReleasePaused     ReleaseState = "paused"
	ReleaseComplete   ReleaseState = "complete"
	ReleaseFailed     ReleaseState = "failed"      // failure action continue, or nothing to roll back to
	ReleaseRolledBack ReleaseState = "rolled-back" // replaced by the previous release after a failure
	ReleaseSuperseded ReleaseState = "superseded"  // a newer release came first
)

// Release is one numbered version of a whole stack: the revisions of its services, with the exact versions of their configs
// and secrets. Its content never changes; its State and the fields below State do.
type Release struct {
	Meta
	Stack      ID             `json:"stack"`
	Number     int            `json:"number"`
	Services   map[string]ID  `json:"services"` // service name → revision
	Networks   []spec.Network `json:"networks,omitempty"`
	Volumes    []spec.Volume  `json:"volumes,omitempty"`
	Replicas   map[string]int `json:"replicas,omitempty"`   // wanted at release time, by service name
	RollbackOf int            `json:"rollbackOf,omitempty"` // number of the release that this one undoes
	Restores   int            `json:"restores,omitempty"`   // number of the release whose content this one brings back
	Message    string         `json:"message,omitempty"`

	State  ReleaseState `json:"state"`
	Ended  time.Time    `json:"ended,omitzero"`
	Reason string       `json:"reason,omitempty"`
	// Traffic is what clients had of its rollouts, counted once it has ended; nil before, and where no changed service has requests counted.
	Traffic *Traffic `json:"traffic,omitempty" cbor:"traffic,omitempty"`
}

// Kind implements Object.
func (*Release) Kind() Kind { return KindRelease }

// Clone implements Object.
func (r *Release) Clone() Object {
	c := *r
	c.Services, c.Replicas = maps.Clone(r.Services), maps.Clone(r.Replicas)
	c.Networks, c.Volumes = slices.Clone(r.Networks), slices.Clone(r.Volumes)
	return &c
}

// RolloutState is how far a service's move to its wanted revision has come.
type RolloutState string

// The rollout states.
const (
	RolloutUpdating  RolloutState = "updating"
	RolloutPaused    RolloutState = "paused"
	RolloutCompleted RolloutState = "completed"
	RolloutFailed    RolloutState = "failed" // what follows is the release's matter
)

// Rollout is a service's move from one revision to another.
type Rollout struct {
	From    ID           `json:"from,omitzero"`
	To      ID           `json:"to"`
	State   RolloutState `json:"state"`
	Started time.Time    `json:"started"`
	Ended   time.Time    `json:"ended,omitzero"`
	// LastBatch is when the last slot began or finished to move, for the delay between batches.
	LastBatch time.Time `json:"lastBatch,omitzero"`
	Failures  int       `json:"failures,omitempty"` // new tasks that failed or did not become ready in time
	Reason    string    `json:"reason,omitempty"`
	// Undo is true when this rollout brings back the revision before a failed one: the rollback policy applies.
	Undo bool `json:"undo,omitempty"`
	// PassedAt is when the gates let the rollout go on, with Judged as the reason; zero: they have not, or there are none.
	PassedAt time.Time `json:"passedAt,omitzero" cbor:"passedAt,omitzero"`
	Judged   string    `json:"judged,omitempty" cbor:"judged,omitempty"`
}

// Service is one part of a stack. The planners keep Status current.
type Service struct {
	Meta
	Stack      ID     `json:"stack"`
	StackName  string `json:"stackName"`
	Name       string `json:"name"`
	Revision   ID     `json:"revision"` // wanted
	Previous   ID     `json:"previous,omitzero"`
	LastNumber int    `json:"lastNumber"` // of the newest revision
	// Replicas is the wanted number of a replicated service; scaling sets it without a new revision.
	Replicas int `json:"replicas"`
	// Scaled is true when the number was set by hand: the file's does not apply until it changes, and autoscaling not until it is told to.
	Scaled bool `json:"scaled,omitempty"`
	// Scaling is what autoscaling did last.
	Scaling  Scaling    `json:"scaling,omitzero"`
	Address  netip.Addr `json:"address,omitzero"` // service address
	Removing bool       `json:"removing,omitempty"`
	// RestartAt is when a rolling restart was last asked for: tasks made before it are replaced.
	RestartAt time.Time     `json:"restartAt,omitzero"`
	Rollout   Rollout       `json:"rollout,omitzero"`
	Status    ServiceStatus `json:"status,omitzero"`
}

// Scaling is when a service's number of tasks was last changed by its load.
type Scaling struct {
	UpAt   time.Time `json:"upAt,omitzero"`
	DownAt time.Time `json:"downAt,omitzero"`
}

// ServiceStatus is the planners' summary of a service.
type ServiceStatus struct {
	Desired int `json:"desired"` // tasks wanted
	Running int `json:"running"`
	Ready   int `json:"ready"`
	Updated int `json:"updated"` // ready tasks of the wanted revision
	// Converged is true when everything wanted is ready and nothing else is left.
	Converged bool `json:"converged,omitempty"`
	// Waiting says why nothing happens although something is wanted: a dependency, a back-off, no node.
	Waiting string `json:"waiting,omitempty"`
}

// Kind implements Object.
func (*Service) Kind() Kind { return KindService }

// Clone implements Object.
func (s *Service) Clone() Object { c := *s; return &c }

// Revision is one immutable version of a service's spec, with the versions of the configs and secrets it was made with.
type Revision struct {
	Meta
	Service ID           `json:"service"`
	Number  int          `json:"number"`
	Hash    string       `json:"hash"` // of Spec, Secrets, Configs
	Spec    spec.Service `json:"spec"`
	// Secrets and Configs give, for each source in Spec, the object of the exact version.
	Secrets map[string]ID `json:"secrets,omitempty"`
	Configs map[string]ID `json:"configs,omitempty"`
	// Networks and Volumes give, for each name in Spec, the object.
	Networks map[string]ID `json:"networks,omitempty"`
	Volumes  map[string]ID `json:"volumes,omitempty"`
}

// Kind implements Object.
func (*Revision) Kind() Kind { return KindRevision }

// Clone implements Object. Revisions are immutable, so the spec's parts are shared.
func (r *Revision) Clone() Object {
	c := *r
	c.Secrets, c.Configs = maps.Clone(r.Secrets), maps.Clone(r.Configs)
	c.Networks, c.Volumes = maps.Clone(r.Networks), maps.Clone(r.Volumes)
	return &c
}

// Network is a set of services that may reach each other.
type Network struct {
	Meta
	Stack    ID     `json:"stack,omitzero"`
	Name     string `json:"name"` // key in the stack
	Internal bool   `json:"internal,omitempty"`
}

// Kind implements Object.
func (*Network) Kind() Kind { return KindNetwork }

// Clone implements Object.
func (n *Network) Clone() Object { c := *n; return &c }

// Volume is named storage on a node.
type Volume struct {
	Meta
	Stack        ID     `json:"stack,omitzero"`
	Name         string `json:"name"`          // unique in the cluster: "<stack>_<key>" or the external name
	Node         ID     `json:"node,omitzero"` // where it lives, once a task has used it
	SingleWriter bool   `json:"singleWriter,omitempty"`
	// Removing volumes are deleted on their node and then here.
	Removing bool `json:"removing,omitempty"`
	// OnLoss is what becomes of it when its node is lost; empty is spec.LossWait.
	OnLoss spec.OnLoss `json:"onLoss,omitempty"`
	// Held is true once nobody can write to it without a lease: all its tasks since it was made had one, or one that has one runs in the
	// place of those before. Only then may it be given up.
	Held bool `json:"held,omitempty"`
	// Abandoned are the nodes where it was given up, and where what is left of it is still to be deleted.
	Abandoned []ID `json:"abandoned,omitempty"`
}

// Kind implements Object.
func (*Volume) Kind() Kind { return KindVolume }

// Clone implements Object.
func (v *Volume) Clone() Object {
	c := *v
	c.Abandoned = slices.Clone(v.Abandoned)
	return &c
}

// Leased reports whether tasks that use the volume need a lease: another one may be started elsewhere once their node is lost.
func (v *Volume) Leased() bool { return v.OnLoss == spec.LossRecreate }

// Secret is one version of a secret; its content is encrypted at rest and never shown by the API.
type Secret struct {
	Meta
	Stack  ID     `json:"stack,omitzero"` // zero: set by hand, shared by name
	Name   string `json:"name"`
	Number int    `json:"number"`
	Sealed []byte `json:"-" cbor:"sealed"`
	// Digest is a keyed hash of the content: equal content makes no new version.
	Digest []byte `json:"-" cbor:"digest"`
	Size   int    `json:"size"`
}

// Kind implements Object.
func (*Secret) Kind() Kind { return KindSecret }

// Clone implements Object.
func (s *Secret) Clone() Object { c := *s; return &c }

// Config is one version of a config, encrypted at rest like a secret but shown by the API.
type Config struct {
	Meta
	Stack  ID     `json:"stack,omitzero"`
	Name   string `json:"name"`
	Number int    `json:"number"`
	Sealed []byte `json:"-" cbor:"sealed"`
	Digest []byte `json:"-" cbor:"digest"`
	Size   int    `json:"size"`
}

// Kind implements Object.
func (*Config) Kind() Kind { return KindConfig }

// Clone implements Object.
func (c *Config) Clone() Object { d := *c; return &d }

// Registry is the credentials for one image registry; the password is encrypted at rest and never shown by the API.
type Registry struct {
	Meta
	Host     string    `json:"host"` // as in image names: "docker.io", "registry.example:5000"
	Username string    `json:"username"`
	Sealed   []byte    `json:"-" cbor:"sealed"`
	Updated  time.Time `json:"updated"`
}

// Kind implements Object.
func (*Registry) Kind() Kind { return KindRegistry }

// Clone implements Object.
func (r *Registry) Clone() Object { c := *r; return &c }

// Event records a decision or a change with its reason. Events are linked by ids, so that `why` can follow them from a
// release to a service to a task to a node.
type Event struct {
	Meta
	At      time.Time `json:"at"`
	Type    string    `json:"type"` // "task.failed", "service.scaled"…; docs/events.md lists them
	Message string    `json:"message"`
	Stack   ID        `json:"stack,omitzero"`
	Release ID        `json:"release,omitzero"`
	Service ID        `json:"service,omitzero"`
	Task    ID        `json:"task,omitzero"`
	Node    ID        `json:"node,omitzero"`
	Slot    int       `json:"slot,omitempty"`
	Who     string    `json:"who,omitempty"` // the user, or the part of the system, that acted
}

// Kind implements Object.
func (*Event) Kind() Kind { return KindEvent }

// Clone implements Object.
func (e *Event) Clone() Object { c := *e; return &c }

// Settings is the one object of cluster-wide settings; its id is SettingsID.
type Settings struct {
	Meta
	Name string `json:"name"`
	// TaskPool is divided into node subnets; ServicePool gives service addresses.
	TaskPool    netip.Prefix `json:"taskPool"`
	ServicePool netip.Prefix `json:"servicePool"`
	NodeBits    int          `json:"nodeBits"` // prefix length of a node's subnet
	// Mesh and MeshPort say how the nodes' subnets are connected; chosen when the cluster is founded.
	Mesh     Mesh   `json:"mesh,omitempty"`
	MeshPort uint16 `json:"meshPort,omitempty"`
	// MeshEpoch counts the requests to change the nodes' mesh keys.
	MeshEpoch uint64 `json:"meshEpoch,omitempty"`
	// PortClaims counts the deployments that publish ports. Each writes it, so that two of them at once cannot take the same
	// port: the second one is refused and looks again.
	PortClaims uint64 `json:"portClaims,omitempty"`
	// Level is the cluster's feature level.
	Level Level `json:"level,omitempty"`
	// RebalanceAt is when somebody last asked to even out the load of the nodes at once.
	RebalanceAt time.Time `json:"rebalanceAt,omitzero" cbor:"rebalanceAt,omitzero"`
	// Unlock is the key that opens the sealing key on the managers' disks, sealed with that; empty: they lie there in clear.
	Unlock []byte `json:"-" cbor:"unlock,omitempty"`
	// ACME is where certificates are obtained; nil: from the default.
	ACME *ACME `json:"acme,omitempty"`
}

// Mesh is how packets go from a node's tasks to those of another.
type Mesh string

// The meshes.
const (
	MeshWireGuard Mesh = "wireguard" // encrypted; the default
	MeshVXLAN     Mesh = "vxlan"     // for networks that are trusted
	MeshRouted    Mesh = "routed"    // plain routes, for nodes on one link
)

// SettingsID is the id of the one Settings object.
var SettingsID = ID{0: 1}

// Kind implements Object.
func (*Settings) Kind() Kind { return KindSettings }

// Clone implements Object.
func (s *Settings) Clone() Object {
	c := *s
	c.Unlock = slices.Clone(s.Unlock)
	return &c
}

// Authority is the one object that holds the cluster's certificate authority; its id is AuthorityID.
type Authority struct {
	Meta
	Roots  [][]byte `json:"-" cbor:"roots"`  // certificates (DER) of all authorities that are trusted, oldest first
	Signer []byte   `json:"-" cbor:"signer"` // certificate of the one that signs
	Sealed []byte   `json:"-" cbor:"sealed"` // its private key
	// Next and SealedNext are the authority that will sign once all nodes trust it; nil while none is being introduced.
	Next       []byte    `json:"-" cbor:"next,omitempty"`
	SealedNext []byte    `json:"-" cbor:"sealedNext,omitempty"`
	Since      time.Time `json:"since,omitzero"` // last step of a rotation
}

// AuthorityID is the id of the one Authority object.
var AuthorityID = ID{0: 2}

// Kind implements Object.
func (*Authority) Kind() Kind { return KindAuthority }

// Clone implements Object.
func (a *Authority) Clone() Object {
	c := *a
	c.Roots = slices.Clone(a.Roots)
	return &c
}

// JoinToken lets machines join the cluster in one role. Its secret is sealed, and found by its hash.
type JoinToken struct {
	Meta
	Role    string    `json:"role"`
	Sealed  []byte    `json:"-" cbor:"sealed"`
	Hash    []byte    `json:"-" cbor:"hash"`
	Expires time.Time `json:"expires,omitzero"` // zero: never
}

// Kind implements Object.
func (*JoinToken) Kind() Kind { return KindJoinToken }

// Clone implements Object.
func (t *JoinToken) Clone() Object { c := *t; return &c }

// LoadedImage says which content a reference has that a user loaded: that of the newest load, on whichever node it was. Nodes
// that have other content under the reference, or none, fetch this one before they start a task. Its id is ImageID of Ref.
type LoadedImage struct {
	Meta
	Ref    string    `json:"ref"`    // as nodes name it: with registry and tag
	Digest string    `json:"digest"` // of what the reference points to
	Node   ID        `json:"node"`   // where it was loaded
	Loaded time.Time `json:"loaded"`
}

// Kind implements Object.
func (*LoadedImage) Kind() Kind { return KindLoadedImage }

// Clone implements Object.
func (i *LoadedImage) Clone() Object { c := *i; return &c }

// ImageID is the id of the LoadedImage of a reference, so that it is found without an index.
func ImageID(ref string) (id ID) {
	sum := sha256.Sum256([]byte("image " + ref))
	copy(id[:], sum[:])
	return id
}
