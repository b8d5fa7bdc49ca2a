package cluster

import (
	"fmt"
	"net/netip"
	"time"
)

// Desired is what the managers want of a task. It only moves forward.
type Desired uint8

// The desired states, in order. A drained task has left the load balancers and finishes its connections; a stopped one
// gets its stop signal; a removed one leaves nothing on its node and then the store.
const (
	DesiredRun Desired = iota + 1
	DesiredDrain
	DesiredStop
	DesiredRemove
)

// Observed is what a task's node has seen of it. It only moves forward; the terminal states are final.
type Observed uint8

// The observed states, in order. The last four are terminal.
const (
	ObservedPending   Observed = iota + 1 // no node yet; Reason says why
	ObservedAssigned                      // has a node that has not begun
	ObservedPreparing                     // image, volumes, network
	ObservedStarting                      // container started, no probe passed yet
	ObservedRunning
	ObservedStopping
	ObservedComplete // exit code 0
	ObservedFailed   // any other end
	ObservedRejected // the node cannot run it (missing image, bad mount…)
	ObservedLost     // the node is gone
)

var desiredNames = [...]string{"", "run", "drain", "stop", "remove"}
var observedNames = [...]string{"", "pending", "assigned", "preparing", "starting", "running", "stopping", "complete", "failed", "rejected", "lost"}

func (d Desired) String() string  { return name(desiredNames[:], int(d)) }
func (o Observed) String() string { return name(observedNames[:], int(o)) }

// MarshalText implements encoding.TextMarshaler.
func (d Desired) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// MarshalText implements encoding.TextMarshaler.
func (o Observed) MarshalText() ([]byte, error) { return []byte(o.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (d *Desired) UnmarshalText(b []byte) error {
	i, err := index(desiredNames[:], string(b))
	*d = Desired(i)
	return err
}

// UnmarshalText implements encoding.TextUnmarshaler.
func (o *Observed) UnmarshalText(b []byte) error {
	i, err := index(observedNames[:], string(b))
	*o = Observed(i)
	return err
}

// Terminal reports whether nothing follows this state.
func (o Observed) Terminal() bool { return o >= ObservedComplete }

func name(names []string, i int) string {
	if i >= 0 && i < len(names) {
		return names[i]
	}
	return fmt.Sprintf("state(%d)", i)
}

func index(names []string, s string) (int, error) {
	for i, n := range names {
		if n == s {
			return i, nil
		}
	}
	return 0, fmt.Errorf("unknown state %q", s)
}

// Exit tells how a task's main process ended.
type Exit struct {
	Code   int       `json:"code" cbor:"1,keyasint,omitempty"`
	Signal string    `json:"signal,omitempty" cbor:"2,keyasint,omitempty"` // SIGKILL…, when a signal ended it
	OOM    bool      `json:"oom,omitempty" cbor:"3,keyasint,omitempty"`    // the kernel killed it for memory
	At     time.Time `json:"at,omitzero" cbor:"4,keyasint,omitzero"`
	// Unknown is true when the process ended unseen and its code could not be recovered.
	Unknown bool `json:"unknown,omitempty" cbor:"5,keyasint,omitempty"`
}

// HostPort is a port of the node that a task occupies.
type HostPort struct {
	Port     uint16 `json:"port" cbor:"1,keyasint"`
	Protocol string `json:"protocol" cbor:"2,keyasint"`
}

// Task is one replica of a service on a node. It refers to its revision and never embeds it. A replacement is a new task.
type Task struct {
	Meta     `cbor:"1,keyasint"`
	Stack    ID  `json:"stack" cbor:"2,keyasint"`
	Service  ID  `json:"service" cbor:"3,keyasint"`
	Revision ID  `json:"revision" cbor:"4,keyasint"`
	Node     ID  `json:"node" cbor:"5,keyasint,omitzero"`
	Slot     int `json:"slot,omitempty" cbor:"6,keyasint,omitempty"` // 1.. for replicated services, 0 for global ones

	Desired  Desired  `json:"desired" cbor:"7,keyasint"`
	Observed Observed `json:"observed" cbor:"8,keyasint"`
	// Ready is true while the task should get traffic: running, its ready probe passing.
	Ready bool `json:"ready,omitempty" cbor:"9,keyasint,omitempty"`
	// Drained is true once a draining task has no open connections any more, as its node sees them.
	Drained bool `json:"drained,omitempty" cbor:"10,keyasint,omitempty"`

	// Address is the task's own address in the cluster network, zero with network mode host or none.
	Address netip.Addr `json:"address,omitzero" cbor:"11,keyasint,omitzero"`
	Exit    *Exit      `json:"exit,omitempty" cbor:"12,keyasint,omitempty"`
	// Reason is one sentence on the last transition: why it waits, why it was stopped, what went wrong.
	Reason string `json:"reason,omitempty" cbor:"13,keyasint,omitempty"`

	// Failures counts the consecutive failed tasks of the slot before this one; it sets the back-off.
	Failures int `json:"failures,omitempty" cbor:"14,keyasint,omitempty"`
	// Replaces is the task in whose place this one was made.
	Replaces ID `json:"replaces,omitzero" cbor:"15,keyasint,omitzero"`

	Started    time.Time `json:"started,omitzero" cbor:"16,keyasint,omitzero"`    // main process started
	ReadySince time.Time `json:"readySince,omitzero" cbor:"17,keyasint,omitzero"` // last change to ready
	Ended      time.Time `json:"ended,omitzero" cbor:"18,keyasint,omitzero"`      // terminal state reached
	DrainSince time.Time `json:"drainSince,omitzero" cbor:"19,keyasint,omitzero"` // desired became drain
	StopSince  time.Time `json:"stopSince,omitzero" cbor:"20,keyasint,omitzero"`  // desired became stop

	// Moved is true for a task that was made to take the place of Replaces on another node, only to even out the load. The
	// older one stays, and stays in charge, until this one is ready.
	Moved bool `json:"moved,omitempty" cbor:"21,keyasint,omitempty"`
	// Leased is true for a task that runs only while the leader confirms its node's heartbeats: another one may be started elsewhere once
	// the node is down. It is decided when the task gets its node, and stays.
	Leased bool `json:"leased,omitempty" cbor:"22,keyasint,omitempty"`
}

// Kind implements Object.
func (*Task) Kind() Kind { return KindTask }

// Clone implements Object.
func (t *Task) Clone() Object {
	c := *t
	if t.Exit != nil {
		e := *t.Exit
		c.Exit = &e
	}
	return &c
}

// Live reports whether the task may still have a process: it is wanted or on its way out, and has not ended.
func (t *Task) Live() bool { return !t.Observed.Terminal() && t.Desired < DesiredRemove }

// Endpoint reports whether the task belongs into the load balancers.
func (t *Task) Endpoint() bool {
	return t.Desired == DesiredRun && t.Observed == ObservedRunning && t.Ready && t.Address.IsValid()
}

// Status is what a node reports of a task.
type Status struct {
	Task     ID        `json:"task" cbor:"1,keyasint"`
	Observed Observed  `json:"observed" cbor:"2,keyasint"`
	Ready    bool      `json:"ready,omitempty" cbor:"3,keyasint,omitempty"`
	Drained  bool      `json:"drained,omitempty" cbor:"4,keyasint,omitempty"`
	Exit     *Exit     `json:"exit,omitempty" cbor:"5,keyasint,omitempty"`
	Reason   string    `json:"reason,omitempty" cbor:"6,keyasint,omitempty"`
	Started  time.Time `json:"started,omitzero" cbor:"7,keyasint,omitzero"`
	At       time.Time `json:"at,omitzero" cbor:"8,keyasint,omitzero"`
}

// Advance is the one place where a task's observed state moves. It applies what a node reports and returns whether
// anything changed. A report that would move the task backwards, or out of a terminal state, changes nothing and returns
// an error that names both states.
func (t *Task) Advance(s Status) (bool, error) {
	switch {
	case t.Observed.Terminal() && s.Observed != t.Observed:
		return false, fmt.Errorf("task %s: %s is final, cannot become %s", t.ID.Short(), t.Observed, s.Observed)
	case s.Observed < t.Observed:
		return false, fmt.Errorf("task %s: cannot go back from %s to %s", t.ID.Short(), t.Observed, s.Observed)
	case t.Observed.Terminal():
		return false, nil
	}
	ready := s.Ready && s.Observed == ObservedRunning
	drained := t.Drained || s.Drained
	reason := s.Reason
	if reason == "" && t.Desired > DesiredRun {
		reason = t.Reason // why it was told to go stays true
	}
	if s.Observed == t.Observed && ready == t.Ready && drained == t.Drained && reason == t.Reason {
		return false, nil
	}
	if ready && !t.Ready {
		t.ReadySince = s.At
	}
	t.Observed, t.Ready, t.Drained, t.Reason = s.Observed, ready, drained, reason
	if t.Started.IsZero() {
		t.Started = s.Started
	}
	if s.Observed.Terminal() {
		t.Exit, t.Ended = s.Exit, s.At
	}
	return true, nil
}

// Want moves the desired state forward to d and returns whether it moved; a lower or equal state changes nothing.
func (t *Task) Want(d Desired, reason string, now time.Time) bool {
	if d <= t.Desired {
		return false
	}
	t.Desired = d
	if reason != "" {
		t.Reason = reason
	}
	switch d {
	case DesiredDrain:
		t.DrainSince = now
	case DesiredStop:
		t.StopSince = now
	}
	return true
}
