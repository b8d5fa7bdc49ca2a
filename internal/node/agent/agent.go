package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"baton/internal/model/cluster"
	"baton/internal/wire/agentapi"
)

// Config is what an agent is made of. All fields but Describe and Notes are required.
type Config struct {
	Node      cluster.ID
	Name      string
	Executor  Executor
	Network   Network
	Volumes   Volumes
	Files     Files
	Logs      Logs
	Record    Record
	Fence     Fence
	Connector agentapi.Connector
	// Describe tells what the node is; it is asked at every connect and every observation.
	Describe func(ctx context.Context) cluster.NodeDescription
	// Notes are what other parts of the node want users to see; may be nil.
	Notes <-chan agentapi.Note
	Log   *slog.Logger
}

const (
	observeEvery  = 5 * time.Second        // full look at the containers, in case an event was missed
	describeEvery = time.Second            // at most
	drainEvery    = 100 * time.Millisecond // look at a draining task's connections
	emptyLooksMin = 2                      // looks in a row without an open connection until a task counts as idle
	reconnectMin  = 100 * time.Millisecond
	reconnectMax  = 5 * time.Second
	retryMin      = time.Second // after an error that may pass: doubles up to retryMax
	retryMax      = 30 * time.Second
	startTriesMax = 5    // of errors other than a missing registry, then the task has failed
	stuckTries    = 3    // of stopping or cleaning up a task, then users are told
	notesMax      = 1000 // waiting to be sent; older ones go first
)

// Agent runs a node's tasks: a Loop with goroutines around it.
type Agent struct {
	cfg  Config
	loop *Loop
	wg   sync.WaitGroup

	updates  chan agentapi.Update
	done     chan Result
	seen     chan observation
	probed   chan News
	counted  chan Connections
	followed chan NetworkResult
	wake     chan struct{} // there is something to look at
	oomed    chan cluster.ID
	removed  chan string // volumes that are gone
	cut      chan struct{}
	recorded chan error
	prepared chan ImageResult

	mu       sync.Mutex
	due      map[cluster.ID]bool // tasks to look at
	dueWhole bool                // all of them
}

// New makes an agent; Run starts it.
func New(cfg Config) *Agent {
	a := &Agent{
		cfg:      cfg,
		updates:  make(chan agentapi.Update),
		done:     make(chan Result),
		seen:     make(chan observation),
		probed:   make(chan News),
		counted:  make(chan Connections),
		followed: make(chan NetworkResult),
		wake:     make(chan struct{}, 1),
		oomed:    make(chan cluster.ID, 16),
		removed:  make(chan string),
		cut:      make(chan struct{}),
		recorded: make(chan error),
		prepared: make(chan ImageResult),
		due:      make(map[cluster.ID]bool),
	}
	a.loop = NewLoop(nil, cfg.Log)
	return a
}

// Want tells the managers that somebody uses or wants a service that may rest. It may be called from any goroutine, before Run too, and
// never blocks.
func (a *Agent) Want(service cluster.ID) { a.loop.Outbox().want(service) }

// Run works until ctx ends. Containers go on running; what is under way is broken off and found again by the next agent.
func (a *Agent) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer a.wg.Wait()
	defer cancel()
	l := a.loop
	l.hands = &workers{agent: a, ctx: ctx}
	memory, err := a.cfg.Record.Load(ctx)
	if err != nil {
		return fmt.Errorf("the node's record: %w", err)
	}
	l.Recall(memory)
	a.spawn(func() { a.connect(ctx) })
	a.spawn(func() { a.watch(ctx) })
	a.spawn(func() { a.observeLoop(ctx) })
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case u := <-a.updates:
			l.Take(u)
			a.renew(ctx, u.Confirmed)
		case o := <-a.seen:
			l.See(o.list, o.asked, o.of...)
		case r := <-a.done:
			l.Finish(r, time.Now())
		case n := <-a.probed:
			l.Hear(n, time.Now())
		case c := <-a.counted:
			l.Counted(c, time.Now())
		case r := <-a.followed:
			l.NetworkDone(r, time.Now())
		case id := <-a.oomed:
			l.Killed(id)
		case <-a.cut:
			l.Cut(time.Now())
		case r := <-a.prepared:
			l.ImagePrepared(r, time.Now())
		case err := <-a.recorded:
			l.Recorded(err, time.Now())
		case name := <-a.removed:
			l.VolumeRemoved(name)
		case n := <-a.cfg.Notes:
			l.outbox.note(n)
		case <-timer.C:
		}
		timer.Reset(l.Step(time.Now()))
	}
}

// observation is what the executor said of all containers, or of those of some tasks, and when it was asked.
type observation struct {
	list  []Observed
	of    []cluster.ID
	asked time.Time
}

func (a *Agent) spawn(f func()) {
	a.wg.Add(1)
	go func() {
		defer a.wg.Done()
		f()
	}()
}

// look asks for a fresh observation of a task, or of all when none is named.
func (a *Agent) look(of ...cluster.ID) {
	a.mu.Lock()
	a.dueWhole = a.dueWhole || len(of) == 0
	for _, id := range of {
		a.due[id] = true
	}
	a.mu.Unlock()
	select {
	case a.wake <- struct{}{}:
	default:
	}
}

// takeDue takes what there is to look at: these tasks, or all of them when none is named. It is nothing when the last look, begun
// just before it was woken again, had that already.
func (a *Agent) takeDue(whole bool) (of []cluster.ID, any bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	whole = whole || a.dueWhole
	any = whole || len(a.due) > 0
	if !whole {
		of = slices.Collect(maps.Keys(a.due))
	}
	clear(a.due)
	a.dueWhole = false
	return of, any
}

// workers are the hands of a running agent: a goroutine for each thing to do. ctx is that of Run.
type workers struct {
	agent *Agent
	ctx   context.Context
}

var _ Hands = (*workers)(nil)

// tell hands an outcome to the loop, unless the agent ends first.
func tell[T any](ctx context.Context, c chan<- T, v T) {
	select {
	case c <- v:
	case <-ctx.Done():
	}
}

// Act implements Hands.
func (w *workers) Act(id cluster.ID, want *agentapi.Assignment, action Action) func() {
	ctx, cancel := context.WithCancel(w.ctx)
	w.agent.spawn(func() {
		defer cancel()
		tell(w.ctx, w.agent.done, w.agent.work(ctx, id, want, action))
	})
	return cancel
}

// Probe implements Hands.
func (w *workers) Probe(p Probing) func() {
	ctx, cancel := context.WithCancel(w.ctx)
	run := &probing{agent: w.agent, task: p.Task, host: probeHost(p.Address), probes: p.Probes, since: p.Since, adopted: p.Adopted}
	w.agent.spawn(func() { run.run(ctx) })
	return cancel
}

// Count implements Hands.
func (w *workers) Count(task cluster.ID, address netip.Addr) {
	w.agent.spawn(func() {
		c := Connections{Task: task}
		if address.IsValid() {
			c.Open, c.Err = w.agent.cfg.Network.Connections(w.ctx, address)
		}
		tell(w.ctx, w.agent.counted, c)
	})
}

// FollowNetwork implements Hands.
func (w *workers) FollowNetwork(n NetworkWork) {
	w.agent.spawn(func() {
		r := NetworkResult{Config: n.Config, Version: n.Version}
		if n.Config != nil {
			r.Err = w.agent.cfg.Network.Configure(w.ctx, *n.Config)
			if r.Err == nil && n.Sweep {
				r.Err = w.agent.cfg.Network.Sweep(w.ctx, n.Keep)
			}
		} else {
			r.Err = w.agent.cfg.Network.Apply(w.ctx, *n.State)
		}
		w.sweep(n)
		tell(w.ctx, w.agent.followed, r)
	})
}

// sweep removes what forgotten tasks left beside the network. It comes again, so that an error holds up nothing.
func (w *workers) sweep(n NetworkWork) {
	if !n.Sweep {
		return
	}
	err := w.agent.cfg.Logs.Sweep(n.Keep)
	if n.Config != nil {
		err = errors.Join(err, w.agent.cfg.Files.Sweep(w.ctx, n.Keep))
	}
	if err != nil {
		w.agent.cfg.Log.Warn("what forgotten tasks left could not be removed", "err", err)
	}
}

// RemoveVolume implements Hands.
func (w *workers) RemoveVolume(name string) {
	w.agent.spawn(func() {
		for wait := retryMin; ; wait = min(2*wait, retryMax) {
			err := w.agent.cfg.Volumes.Remove(w.ctx, name)
			if err == nil {
				tell(w.ctx, w.agent.removed, name)
				return
			}
			w.agent.cfg.Log.Warn("volume could not be removed", "volume", name, "err", err)
			if !sleep(w.ctx, wait) {
				return
			}
		}
	})
}

// Record implements Hands.
func (w *workers) Record(c Change) {
	w.agent.spawn(func() { tell(w.ctx, w.agent.recorded, w.agent.cfg.Record.Save(w.ctx, c)) })
}

// Look implements Hands.
func (w *workers) Look(id cluster.ID) { w.agent.look(id) }
