package schedule

import (
	"time"

	"baton/internal/model/cluster"
)

// Group is what Assign places together: tasks of one revision of one service.
type Group struct {
	Service  *cluster.Service
	Revision *cluster.Revision
	// Tasks are placed in order. A task that has a node already (global mode) fits there or nowhere.
	Tasks []*cluster.Task
	// Prefer names, by task, a node that is taken before all others if it fits: where a stop-first rollout has prepared the
	// image before it stopped the predecessor. Nil: none.
	Prefer map[cluster.ID]cluster.ID
	// Now ages the failures of the past.
	Now time.Time
}

// Cause is the filter that refused a node.
type Cause string

// The causes, in the order in which they are checked.
const (
	CauseState        Cause = "state"        // not ready
	CauseAvailability Cause = "availability" // paused or drained
	CausePlatform     Cause = "platform"
	CauseConstraint   Cause = "constraint"
	CauseVolume       Cause = "volume"    // its volume is elsewhere
	CauseAbandoned    Cause = "abandoned" // what the node had of the volume is not deleted yet
	CauseReplicas     Cause = "replicas"
	CausePort         Cause = "port"
	CauseCPU          Cause = "cpu"
	CauseMemory       Cause = "memory"
)

// Refusal says how many nodes a filter refused and why.
type Refusal struct {
	Cause Cause
	Count int
	// What names the state, availability, constraint, volume, port or platform at fault.
	What string
	// Need and Most are, for cpu (milli), memory (bytes) and replicas, what the task needs and the most that a refused
	// node has free.
	Need, Most int64
}

// Placement is the decision for one task.
type Placement struct {
	Task *cluster.Task
	// Node is the choice, zero when no node fits.
	Node cluster.ID
	// NodeName is for messages.
	NodeName string
	// Score of the choice in [0,1], and its parts by name.
	Score float64
	Parts []Part
	// Avoided are the nodes that every service avoids at present.
	Avoided []Suspect
	// Nodes counts the nodes looked at, Fit those that fit.
	Nodes, Fit int
	// Refusals are the reasons of the others, most frequent first.
	Refusals []Refusal
}

// Part is one part of a score.
type Part struct {
	Name   string
	Value  float64 // in [0,1]
	Weight float64
}
