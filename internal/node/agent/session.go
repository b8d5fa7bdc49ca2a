package agent

import (
	"context"
	"reflect"
	"sync"
	"time"

	"baton/internal/model/cluster"
	"baton/internal/wire/agentapi"
)

// watch turns executor events into observations.
func (a *Agent) watch(ctx context.Context) {
	for ctx.Err() == nil {
		for e, err := range a.cfg.Executor.Events(ctx) {
			if err != nil {
				a.cfg.Log.Warn("executor events broke off", "err", err)
				break
			}
			if e.Kind == EventOOM {
				select {
				case a.oomed <- e.Task:
				case <-ctx.Done():
					return
				}
			}
			a.look()
		}
		if !sleep(ctx, retryMin) {
			return
		}
		a.look()
	}
}

// observeLoop asks the executor what runs: when woken, and from time to time.
func (a *Agent) observeLoop(ctx context.Context) {
	ticker := time.NewTicker(observeEvery)
	defer ticker.Stop()
	for {
		list, err := a.cfg.Executor.Observe(ctx)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			a.cfg.Log.Warn("cannot observe containers", "err", err)
			if !sleep(ctx, retryMin) {
				return
			}
			continue
		}
		select {
		case a.seen <- list:
		case <-ctx.Done():
			return
		}
		select {
		case <-ticker.C:
		case <-a.wake:
		case <-ctx.Done():
			return
		}
	}
}

// connect keeps a session open.
func (a *Agent) connect(ctx context.Context) {
	for wait := reconnectMin; ctx.Err() == nil; wait = min(2*wait, reconnectMax) {
		began := time.Now()
		err := a.converse(ctx)
		if ctx.Err() != nil {
			return
		}
		a.cfg.Log.Warn("session ended; tasks keep running", "err", err)
		if time.Since(began) > reconnectMax {
			wait = reconnectMin
		}
		if !sleep(ctx, wait) {
			return
		}
	}
}

// converse holds one session until it breaks.
func (a *Agent) converse(ctx context.Context) error {
	hello := agentapi.Hello{Node: a.cfg.Node, Name: a.cfg.Name}
	if a.cfg.Describe != nil {
		hello.Description = a.cfg.Describe(ctx)
	}
	session, err := a.cfg.Connector.Connect(ctx, hello)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	a.outbox.resend()
	var sender sync.WaitGroup
	sender.Add(1)
	go func() {
		defer sender.Done()
		defer cancel()
		for {
			r, ok := a.outbox.next(ctx)
			if !ok {
				return
			}
			if err := session.Send(ctx, r); err != nil {
				a.outbox.putBack(r)
				return
			}
		}
	}()
	defer sender.Wait()
	defer cancel()
	defer session.Close()
	for {
		u, err := session.Recv(ctx)
		if err != nil {
			return err
		}
		select {
		case a.updates <- u:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// netState is the loop's view of the node's network.
type netState struct {
	configured  bool                 // Configure has returned for some config
	config      *agentapi.NodeConfig // waiting to be applied
	want        *agentapi.NetworkState
	version     cluster.Version // newest update
	done        cluster.Version // newest version the load balancers follow
	dirty, busy bool
	tries       int
	retryAt     time.Time
}

func (n *netState) update(v cluster.Version, s *agentapi.NetworkState) {
	n.version = v
	if s != nil {
		n.want, n.dirty = s, true
	}
	if !n.dirty && !n.busy {
		n.done = v
	}
}

// networkResult ends a configuration of the network or one application of its state.
type networkResult struct {
	config  *agentapi.NodeConfig // set after a configuration
	version cluster.Version
	err     error
}

// followNetwork starts what the network has to do next, when the last thing is over: its configuration, then the newest
// state. Tasks that run already find their place in between: without it the host ports among the rules would be missing.
func (a *Agent) followNetwork(ctx context.Context, now time.Time) {
	n := &a.net
	if n.busy || now.Before(n.retryAt) {
		return
	}
	var work func() networkResult
	switch {
	case n.config != nil:
		config := n.config
		work = func() networkResult {
			return networkResult{config: config, err: a.cfg.Network.Configure(ctx, *config)}
		}
	case n.configured && n.dirty && n.want != nil && !a.adopting():
		version, state := n.version, *n.want
		n.dirty = false
		work = func() networkResult {
			return networkResult{version: version, err: a.cfg.Network.Apply(ctx, state)}
		}
	default:
		return
	}
	n.busy = true
	a.spawn(func() {
		select {
		case a.followed <- work():
		case <-ctx.Done():
		}
	})
}

// adopting reports whether a container that ran before this agent still waits for its network place.
func (a *Agent) adopting() bool {
	for _, t := range a.tasks {
		if t.want != nil && t.have != nil && t.have.State == ContainerRunning && !t.local.Attached && t.tries == 0 &&
			t.want.Task.Desired < cluster.DesiredStop && t.acting != ActStart {
			return true
		}
	}
	return false
}

func (a *Agent) networkDone(r networkResult) {
	n := &a.net
	n.busy = false
	if r.err != nil {
		n.tries++
		n.dirty = n.dirty || r.config == nil
		n.retryAt = time.Now().Add(min(retryMin<<min(n.tries-1, 6), retryMax))
		a.cfg.Log.Error("network does not follow", "version", r.version, "err", r.err)
		a.note(cluster.ID{}, "node.network-failed", r.err.Error())
		return
	}
	n.tries, n.retryAt = 0, time.Time{}
	if r.config != nil {
		n.configured = true
		if n.config == r.config {
			n.config = nil
		}
		return
	}
	n.done = r.version
	if !n.dirty {
		n.done = n.version
	}
}

// outbox gathers what is to be reported; only the latest status of a task is kept.
type outbox struct {
	mu       sync.Mutex
	known    map[cluster.ID]cluster.Status // last status of every task, for a new session
	tasks    map[cluster.ID]cluster.Status
	volumes  []string
	notes    []agentapi.Note
	desc     *cluster.NodeDescription
	lastDesc cluster.NodeDescription
	applied  cluster.Version
	sent     cluster.Version
	ready    chan struct{}
}

func newOutbox() *outbox {
	return &outbox{
		known: make(map[cluster.ID]cluster.Status),
		tasks: make(map[cluster.ID]cluster.Status),
		ready: make(chan struct{}, 1),
	}
}

func (o *outbox) change(f func()) {
	o.mu.Lock()
	f()
	o.mu.Unlock()
	select {
	case o.ready <- struct{}{}:
	default:
	}
}

func (o *outbox) status(s cluster.Status) {
	o.change(func() { o.tasks[s.Task], o.known[s.Task] = s, s })
}

func (o *outbox) volumeRemoved(name string) {
	o.change(func() { o.volumes = append(o.volumes, name) })
}

func (o *outbox) note(n agentapi.Note) {
	o.change(func() {
		o.notes = append(o.notes, n)
		if len(o.notes) > notesMax {
			o.notes = o.notes[len(o.notes)-notesMax:]
		}
	})
}

func (o *outbox) describe(d cluster.NodeDescription) {
	o.mu.Lock()
	same := reflect.DeepEqual(d, o.lastDesc)
	o.mu.Unlock()
	if !same {
		o.change(func() { o.lastDesc, o.desc = d, &d })
	}
}

func (o *outbox) acknowledge(v cluster.Version) {
	o.mu.Lock()
	same := v == o.applied
	o.mu.Unlock()
	if !same {
		o.change(func() { o.applied = v })
	}
}

// resend makes the next report carry every task's status: a new session's manager may have missed the last ones.
func (o *outbox) resend() {
	o.change(func() {
		for id, s := range o.known {
			o.tasks[id] = s
		}
		o.sent = 0
	})
}

// forget drops what is known of a task.
func (o *outbox) forget(id cluster.ID) {
	o.change(func() { delete(o.known, id) })
}

// next waits for something to report. It gathers for a moment, so that a burst becomes one report.
func (o *outbox) next(ctx context.Context) (agentapi.Report, bool) {
	for {
		select {
		case <-o.ready:
		case <-ctx.Done():
			return agentapi.Report{}, false
		}
		if !sleep(ctx, gather) {
			return agentapi.Report{}, false
		}
		o.mu.Lock()
		r := agentapi.Report{Applied: o.applied, VolumesRemoved: o.volumes, Notes: o.notes, Description: o.desc}
		for _, s := range o.tasks {
			r.Tasks = append(r.Tasks, s)
		}
		empty := len(r.Tasks) == 0 && len(r.VolumesRemoved) == 0 && len(r.Notes) == 0 && r.Description == nil && o.sent == o.applied
		clear(o.tasks)
		o.volumes, o.notes, o.desc, o.sent = nil, nil, nil, o.applied
		o.mu.Unlock()
		if !empty {
			return r, true
		}
	}
}

// gather is how long a report waits for more to join it.
const gather = 5 * time.Millisecond

// putBack returns a report that could not be sent; statuses that changed meanwhile stay.
func (o *outbox) putBack(r agentapi.Report) {
	o.change(func() {
		for _, s := range r.Tasks {
			if _, newer := o.tasks[s.Task]; !newer {
				o.tasks[s.Task] = s
			}
		}
		o.volumes = append(r.VolumesRemoved, o.volumes...)
		o.notes = append(r.Notes, o.notes...)
		if o.desc == nil {
			o.desc = r.Description
		}
	})
}
