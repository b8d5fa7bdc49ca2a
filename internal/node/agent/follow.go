package agent

import (
	"time"

	"baton/internal/model/cluster"
	"baton/internal/wire/agentapi"
)

// NetworkWork is one thing for the network to do: Config when it is set, else State.
type NetworkWork struct {
	Config *agentapi.NodeConfig
	// Keep, with Sweep, names the tasks that this node may still have: those that the managers remember, ended ones too, and those
	// that are seen. With the first Config, what an earlier agent left of others is swept away: nothing is attached or started yet
	// that could be mistaken for it. Later only their logs are: a task whose logs could not be removed is forgotten all the same.
	Keep    []cluster.ID
	Sweep   bool
	State   *agentapi.NetworkState
	Version cluster.Version // that the load balancers follow once State is applied
}

// NetworkResult ends a NetworkWork.
type NetworkResult struct {
	Config  *agentapi.NodeConfig // set after a configuration
	Version cluster.Version
	Err     error
}

// netState is the loop's view of the node's network.
type netState struct {
	configured  bool                 // Configure has returned for some config
	config      *agentapi.NodeConfig // waiting to be applied
	known       *agentapi.NodeConfig // what a manager said last
	key         string               // of the localized state that is shown
	want        *agentapi.NetworkState
	version     cluster.Version // newest update
	done        cluster.Version // newest version the load balancers follow
	dirty, busy bool
	tries       int
	retryAt     time.Time
	swept       time.Time // when a sweep was last asked for
}

// sweepEvery is the time between two sweeps of what forgotten tasks left. It happens with the next change of the network.
const sweepEvery = 24 * time.Hour

func (n *netState) update(v cluster.Version, s *agentapi.NetworkState) {
	n.version = v
	if s != nil {
		n.want, n.dirty = s, true
	}
	if !n.dirty && !n.busy {
		n.done = v
	}
}

// followNetwork starts what the network has to do next, when the last thing is over: its configuration, then the newest
// state. Tasks that run already find their place in between: without it the host ports among the rules would be missing.
func (l *Loop) followNetwork(now time.Time) {
	n := &l.net
	if key := l.localized(now); key != n.key {
		n.key, n.dirty = key, n.dirty || n.want != nil
	}
	if n.busy || now.Before(n.retryAt) {
		return
	}
	switch {
	case n.config != nil:
		n.busy = true
		work := NetworkWork{Config: n.config}
		if !n.configured {
			l.sweep(&work, now)
		}
		l.hands.FollowNetwork(work)
	case n.configured && n.dirty && n.want != nil && !l.adopting():
		n.dirty, n.busy = false, true
		state := n.want
		if n.key != "" {
			state = l.localize(state, now)
		}
		work := NetworkWork{State: state, Version: n.version}
		if now.Sub(n.swept) >= sweepEvery {
			l.sweep(&work, now)
		}
		l.hands.FollowNetwork(work)
	}
}

// sweep adds a sweep to the work.
func (l *Loop) sweep(work *NetworkWork, now time.Time) {
	l.net.swept, work.Sweep = now, true
	for _, t := range l.sorted() {
		work.Keep = append(work.Keep, t.id)
	}
}

// adopting reports whether a container that ran before this agent still waits for its network place.
func (l *Loop) adopting() bool {
	for _, t := range l.tasks {
		if t.want != nil && t.have != nil && t.have.State == ContainerRunning && !t.local.Attached && t.tries == 0 &&
			t.want.Task.Desired < cluster.DesiredStop && t.acting != ActStart {
			return true
		}
	}
	return false
}

// NetworkDone takes the end of a NetworkWork.
func (l *Loop) NetworkDone(r NetworkResult, now time.Time) {
	n := &l.net
	n.busy = false
	if r.Err != nil {
		n.tries++
		n.dirty = n.dirty || r.Config == nil
		n.retryAt = now.Add(min(retryMin<<min(n.tries-1, 6), retryMax))
		l.log.Error("network does not follow", "version", r.Version, "err", r.Err)
		l.note(cluster.ID{}, "node.network-failed", r.Err.Error(), now)
		return
	}
	n.tries, n.retryAt = 0, time.Time{}
	if r.Config != nil {
		n.configured = true
		if n.config == r.Config {
			n.config = nil
		}
	} else {
		n.done = r.Version
	}
	if !n.dirty && n.done > 0 {
		n.done = n.version // updates that came meanwhile brought nothing for the network
	}
}
