package api

import (
	"time"

	"baton/internal/model/cluster"
	"baton/internal/model/spec"
)

// UpRequest asks for a stack to become what Stack says.
type UpRequest struct {
	Stack spec.Stack `json:"stack" doc:"the whole stack as it should be"`
	// Message is kept with the release.
	Message string `json:"message,omitempty" maxLength:"1024" doc:"why; kept with the release"`
	// Replicas overrides the number of tasks of services by name.
	Replicas map[string]int `json:"replicas,omitempty" doc:"number of tasks by service name, instead of the stack's"`
	// Plan is the Hash of a plan: the request is refused with code state_moved when it would now do anything else.
	Plan string `json:"plan,omitempty" doc:"hash of the plan that must still hold"`
	// Base, when set, is the version of the stack that the caller has seen: the request is refused when it moved.
	Base cluster.Version `json:"base,omitempty" doc:"version of the stack that the request is based on"`
}

// UpResult says what a deployment did.
type UpResult struct {
	Stack cluster.ID `json:"stack"`
	Name  string     `json:"name"`
	// Release is the number of the release that is now wanted.
	Release   int        `json:"release"`
	ReleaseID cluster.ID `json:"releaseID"`
	// Changed is false when the stack was like this already: no release was made.
	Changed  bool            `json:"changed"`
	Version  cluster.Version `json:"version"`
	Services []ServiceDiff   `json:"services,omitempty"`
	Warnings []string        `json:"warnings,omitempty"`
}

// Plan says what a deployment would do, now.
type Plan struct {
	Stack string `json:"stack"`
	// Base is the version of the store that the plan was made on.
	Base cluster.Version `json:"base"`
	// Hash stands for everything that the plan would do; it does not depend on ids or times.
	Hash     string        `json:"hash"`
	Changed  bool          `json:"changed"`
	Services []ServiceDiff `json:"services,omitempty"`
	// Parts lists networks, volumes, secrets and configs that would be made or get a new version.
	Parts   []PartDiff `json:"parts,omitempty"`
	Actions []Action   `json:"actions,omitempty"`
	// Warnings say what the plan would leave waiting or undone.
	Warnings []string `json:"warnings,omitempty"`
}

// Change is what happens to a service or to another part of a stack.
type Change string

// The changes.
const (
	ChangeCreate    Change = "create"
	ChangeUpdate    Change = "update"    // its tasks are replaced
	ChangeConfigure Change = "configure" // its policies change, its tasks stay
	ChangeScale     Change = "scale"
	ChangeRemove    Change = "remove"
	ChangeNone      Change = "unchanged"
)

// ServiceDiff is what a deployment changes in one service.
type ServiceDiff struct {
	Service string `json:"service"`
	Change  Change `json:"change"`
	// Fields are the parts of the spec that differ.
	Fields []FieldDiff `json:"fields,omitempty"`
	// From and To are the numbers of replicas, when they differ or the service comes or goes.
	From int `json:"from,omitempty"`
	To   int `json:"to,omitempty"`
}

// FieldDiff is one difference, as JSON paths and short values; environment values and contents are never shown.
type FieldDiff struct {
	Path string `json:"path"`
	Old  string `json:"old,omitempty"`
	New  string `json:"new,omitempty"`
}

// PartDiff is a network, volume, secret or config that a deployment makes, renews or drops.
type PartDiff struct {
	Kind   string `json:"kind"`
	Name   string `json:"name"`
	Change Change `json:"change"`
}

// ActionKind is what happens to a task.
type ActionKind string

// The kinds of actions.
const (
	ActionCreate  ActionKind = "create"
	ActionReplace ActionKind = "replace"
	ActionStop    ActionKind = "stop"
	ActionMove    ActionKind = "move"
	ActionRefused ActionKind = "refused" // no node would take it now
)

// Action is what the planners would do with one slot of a service.
type Action struct {
	Kind    ActionKind `json:"kind"`
	Service string     `json:"service"`
	Slot    int        `json:"slot,omitempty"`
	Task    cluster.ID `json:"task,omitzero" doc:"the task that is replaced, moved or stopped"`
	Node    string     `json:"node,omitempty" doc:"where the new task would run, or the old one runs"`
	Reason  string     `json:"reason,omitempty"`
}

// DownResult says what a removal began.
type DownResult struct {
	Stack    cluster.ID      `json:"stack"`
	Name     string          `json:"name"`
	Services []string        `json:"services,omitempty"`
	Volumes  []string        `json:"volumes,omitempty" doc:"volumes that are deleted too"`
	Kept     []string        `json:"kept,omitempty" doc:"volumes that are kept"`
	Version  cluster.Version `json:"version"`
}

// ScaleRequest sets the number of tasks of a replicated service.
type ScaleRequest struct {
	Replicas int `json:"replicas" minimum:"0" maximum:"100000"`
	// Auto gives the number back to the service's load, and Replicas means nothing.
	Auto bool `json:"auto,omitempty" doc:"the number follows the load again, as x-autoscale says"`
}

// ServiceResult says what a request to a service began.
type ServiceResult struct {
	Service cluster.ID      `json:"service"`
	Stack   string          `json:"stack"`
	Name    string          `json:"name"`
	Changed bool            `json:"changed"`
	Version cluster.Version `json:"version"`
}

// RollbackRequest names the release to go back to; zero is the last one that completed before the wanted one.
type RollbackRequest struct {
	To      int    `json:"to,omitempty" minimum:"0"`
	Message string `json:"message,omitempty" maxLength:"1024"`
}

// Release is a release as lists show it.
type Release struct {
	ID         cluster.ID           `json:"id"`
	Stack      string               `json:"stack"`
	Number     int                  `json:"number"`
	State      cluster.ReleaseState `json:"state"`
	Wanted     bool                 `json:"wanted,omitempty" doc:"the stack is, or becomes, like this"`
	Created    time.Time            `json:"created"`
	Ended      time.Time            `json:"ended,omitzero"`
	Reason     string               `json:"reason,omitempty"`
	Message    string               `json:"message,omitempty"`
	RollbackOf int                  `json:"rollbackOf,omitempty"`
	Restores   int                  `json:"restores,omitempty"`
	Services   []ReleaseService     `json:"services,omitempty"`
	Traffic    *ReleaseTraffic      `json:"traffic,omitempty" doc:"what clients had of the deployment; not there when it changed no service whose requests are counted"`
}

// ReleaseTraffic is what clients had of the services that a release changes, from its beginning until it has ended.
type ReleaseTraffic struct {
	cluster.Traffic
	Failed   uint64 `json:"failed" doc:"requests that failed because of the deployment: between client and task"`
	Counting bool   `json:"counting,omitempty" doc:"the numbers still change; they are final some 5 s after the release has ended"`
	Text     string `json:"text" doc:"the same in words"`
}

// ReleaseService is one service of a release.
type ReleaseService struct {
	Name     string         `json:"name"`
	Image    string         `json:"image"`
	Revision int            `json:"revision"`
	Replicas int            `json:"replicas"`
	Secrets  map[string]int `json:"secrets,omitempty" doc:"version number by name"`
	Configs  map[string]int `json:"configs,omitempty" doc:"version number by name"`
}
