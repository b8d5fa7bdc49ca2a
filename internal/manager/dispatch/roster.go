package dispatch

import (
	"maps"
	"math"
	"sync"
	"time"

	"baton/internal/model/cluster"
)

// Presence is what a manager tells the leader of one agent that is connected to it.
type Presence struct {
	Node    cluster.ID      `json:"node"`
	Session uint64          `json:"session"` // number of the agent's session: the highest of those that are heard is the present one
	Acked   cluster.Version `json:"acked"`   // what the node's load balancers follow
	// Silent is how long ago the agent was heard last.
	Silent time.Duration `json:"silent"`
	// Wanted are the services that the node said are wanted, since the last time.
	Wanted []cluster.ID `json:"wanted,omitempty"`
}

// ConnectedMax is how long an agent may be silent and still count as connected: its acknowledgements are waited for.
const ConnectedMax = 3 * time.Second

// Roster is the leader's list of the agents that are connected to any manager. A new leader begins with an empty one: it
// grants every node the time that a silent one has.
//
// It may be used from any goroutine.
type Roster struct {
	now func() time.Time

	mu    sync.Mutex
	since time.Time
	nodes map[cluster.ID]*attendance
	low   cluster.Version
	acks  chan struct{}
	// wanted is when a node last said that a service is used or wanted.
	wanted map[cluster.ID]time.Time
}

// wantedMax bounds the services of which it is remembered that they were wanted; beyond, those that have not been for wantedAge are forgotten.
const (
	wantedMax = 4096
	wantedAge = 25 * time.Hour // more than the longest time after which a service may rest
)

// attendance is what is known of one node's session.
type attendance struct {
	manager string
	session uint64
	acked   cluster.Version
	heard   time.Time
}

// NewRoster makes an empty roster.
func NewRoster(now func() time.Time) *Roster {
	return &Roster{now: now, since: now(), nodes: make(map[cluster.ID]*attendance), acks: make(chan struct{}, 1), wanted: make(map[cluster.ID]time.Time)}
}

// Begin empties the roster for a new term.
func (r *Roster) Begin() {
	r.mu.Lock()
	defer r.mu.Unlock()
	clear(r.nodes)
	clear(r.wanted)
	r.since, r.low = r.now(), 0
}

// Hear takes what a manager says of the agents that are connected to it. An agent that it leaves out stays connected until it
// has been silent for ConnectedMax: it still balances, and may be on its way to another manager. When a node was heard last
// does not go back, whoever tells it later.
func (r *Roster) Hear(manager string, list []Presence) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.now()
	for _, p := range list {
		r.want(p.Wanted, now)
		a, heard := r.nodes[p.Node], now.Add(-p.Silent)
		switch {
		case a == nil:
			a = &attendance{manager: manager, session: p.Session, acked: p.Acked}
		case a.session == p.Session && a.manager == manager:
		case a.session >= p.Session && (now.Sub(a.heard) <= ConnectedMax || !heard.After(a.heard)):
			continue // the rest of a session that the agent has given up
		default:
			a = &attendance{manager: manager, session: p.Session, acked: p.Acked, heard: a.heard}
		}
		r.nodes[p.Node] = a
		a.acked = max(a.acked, p.Acked)
		if heard.After(a.heard) {
			a.heard = heard
		}
	}
	if low := r.lowest(now); low != r.low {
		r.low = low
		notify(r.acks)
	}
}

// Acked is the lowest version that the load balancers of every connected node follow; zero while none is connected.
func (r *Roster) Acked() cluster.Version {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.lowest(r.now())
}

func (r *Roster) lowest(now time.Time) cluster.Version {
	low := cluster.Version(math.MaxUint64)
	for _, a := range r.nodes {
		if now.Sub(a.heard) <= ConnectedMax {
			low = min(low, a.acked)
		}
	}
	if low == math.MaxUint64 {
		return 0
	}
	return low
}

// want notes that services are wanted.
func (r *Roster) want(services []cluster.ID, now time.Time) {
	for _, id := range services {
		r.wanted[id] = now
	}
	if len(r.wanted) > wantedMax {
		maps.DeleteFunc(r.wanted, func(_ cluster.ID, at time.Time) bool { return now.Sub(at) > wantedAge })
	}
	if len(services) > 0 {
		notify(r.acks)
	}
}

// Wanted is when a node last said that a service is used or wanted, zero for never, and since when this roster would know.
func (r *Roster) Wanted(service cluster.ID) (last, since time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.wanted[service], r.since
}

// Acks gives a token when Acked or Wanted may have changed.
func (r *Roster) Acks() <-chan struct{} { return r.acks }

// Heard is when the node was heard last, or when this roster began; known is false when it was not heard since.
func (r *Roster) Heard(node cluster.ID) (at time.Time, known bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if a := r.nodes[node]; a != nil && a.heard.After(r.since) {
		return a.heard, true
	}
	return r.since, false
}
