package release

import (
	"time"

	"baton/internal/model/cluster"
	"baton/internal/model/spec"
)

// View is what the planner reads of the store. What it returns is shared and read-only; nil means that there is none.
type View interface {
	Stack(name string) *cluster.Stack
	Services(stack cluster.ID) []*cluster.Service
	Revision(id cluster.ID) *cluster.Revision
	Releases(stack cluster.ID) []*cluster.Release
	// Revisions lists the stored revisions of a service, and RevisionInUse reports whether a stored task is of a revision;
	// both serve the bound on history.
	Revisions(service cluster.ID) []*cluster.Revision
	RevisionInUse(id cluster.ID) bool
	Networks(stack cluster.ID) []*cluster.Network
	// ExternalNetwork finds a network of another stack, or of none, by its cluster-wide name.
	ExternalNetwork(name string) *cluster.Network
	// Materials lists the versions of secrets and configs that the stack brought; those set by hand are not among them.
	Materials(stack cluster.ID) []cluster.Object
	// Volume finds a volume by its cluster-wide name.
	Volume(name string) *cluster.Volume
}

// DeployInput is what Deploy looks at.
type DeployInput struct {
	View View
	// Want is complete and valid (SetDefaults, Validate).
	Want spec.Stack
	// Secrets and Configs give, for each key in Want, the object of the version to use.
	Secrets map[string]cluster.ID
	Configs map[string]cluster.ID
	// New holds new versions of secrets and configs, to be stored with the release; they are put only when something uses
	// them.
	New []cluster.Object
	// Message is free text for the history.
	Message string
	// IDs gives fresh ids.
	IDs func() cluster.ID
	Now time.Time
}

// Deployment is what changes.
type Deployment struct {
	// Put holds new and changed objects, in an order in which no object comes before one that it refers to.
	Put []cluster.Object
	// Stack and Release are the results; Release is the current one when nothing changes.
	Stack   *cluster.Stack
	Release *cluster.Release
	Diff    Diff
}

// Action says what happens to a service.
type Action string

// The actions.
const (
	ActionCreate    Action = "create"
	ActionUpdate    Action = "update"    // its tasks are replaced
	ActionConfigure Action = "configure" // its policies change, its tasks stay
	ActionScale     Action = "scale"
	ActionRemove    Action = "remove"
	ActionRetry     Action = "retry" // nothing changes, but its last rollout failed or paused and begins anew
	ActionUnchanged Action = "unchanged"
)

// Diff is what a deployment changes, for people and programs.
type Diff struct {
	Stack    string          `json:"stack"`
	New      bool            `json:"new,omitempty"` // the stack does not exist yet
	Services []ServiceChange `json:"services"`
	Networks []string        `json:"networks,omitempty"` // to create
	Volumes  []string        `json:"volumes,omitempty"`  // to create
}

// ServiceChange is what happens to one service.
type ServiceChange struct {
	Service string        `json:"service"`
	Action  Action        `json:"action"`
	Fields  []FieldChange `json:"fields,omitempty"`
	// From and To are the numbers of replicas, when they differ or the service is new or removed.
	From int `json:"from,omitempty"`
	To   int `json:"to,omitempty"`
}

// FieldChange is one changed field: `image: a → b`.
type FieldChange struct {
	Path string `json:"path"`
	From string `json:"from,omitempty"`
	To   string `json:"to,omitempty"`
}

// RollbackInput is what Rollback looks at.
type RollbackInput struct {
	View  View
	Stack *cluster.Stack
	// Number is the release to bring back; zero: the last good one before the current release.
	Number int
	// Reason goes into the history and, when the current release is still deploying, into its end.
	Reason string
	// Failed is true when the current release failed: it ends as rolled-back rather than superseded.
	Failed bool
	IDs    func() cluster.ID
	Now    time.Time
}

// ProgressInput is what Progress looks at.
type ProgressInput struct {
	View  View
	Stack *cluster.Stack
	IDs   func() cluster.ID
	Now   time.Time
}

// The types of reasons, which become the types of events.
const (
	WhyComplete   = "release.complete"
	WhyPause      = "release.paused"
	WhyResume     = "release.resumed"
	WhyFail       = "release.failed"
	WhyRollback   = "release.rolled-back"
	WhySuperseded = "release.superseded"
)

// Reason explains one decision of Progress.
type Reason struct {
	Type    string
	Release cluster.ID
	Service cluster.ID // zero: the whole release
	Message string
}

// ProgressPlan is what Progress decides.
type ProgressPlan struct {
	// Put holds changed and, with a rollback, new objects.
	Put []cluster.Object
	// Delete holds releases beyond the history, and revisions and versions of secrets and configs that only these had.
	Delete []cluster.Object
	Why    []Reason
}
