package agent

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"baton/internal/model/cluster"
	"baton/internal/model/spec"
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
	Connector agentapi.Connector
	// Describe tells what the node is; it is asked at every connect and every observation.
	Describe func(ctx context.Context) cluster.NodeDescription
	// Notes are what other parts of the node want users to see; may be nil.
	Notes <-chan agentapi.Note
	Log   *slog.Logger
}

const (
	observeEvery  = 5 * time.Second        // full look at the containers, in case an event was missed
	drainEvery    = 100 * time.Millisecond // look at a draining task's connections
	reconnectMin  = 100 * time.Millisecond
	reconnectMax  = 5 * time.Second
	retryMin      = time.Second // after an error that may pass: doubles up to retryMax
	retryMax      = 30 * time.Second
	startTriesMax = 5    // of errors other than a missing registry, then the task has failed
	notesMax      = 1000 // waiting to be sent; older ones go first
)

// task is all the loop knows of one task.
type task struct {
	id    cluster.ID
	want  *agentapi.Assignment
	have  *Observed
	local Local

	tries   int
	cancel  context.CancelFunc // of the worker
	acting  ActionKind
	probes  *spec.Probes       // with the image's health check filled in; nil: not known yet
	probing context.CancelFunc // of the probes
	// drainVersion is the update that told the task to drain; drainLook is when its connections are counted next.
	drainVersion cluster.Version
	drainLook    time.Time
	counting     bool
}

// Agent runs a node's tasks.
type Agent struct {
	cfg   Config
	tasks map[cluster.ID]*task
	wg    sync.WaitGroup

	updates  chan agentapi.Update
	done     chan result
	seen     chan []Observed
	probed   chan probeNews
	counted  chan count
	followed chan networkResult
	wake     chan struct{} // an executor event
	oomed    chan cluster.ID
	outbox   *outbox
	observed bool // at least one observation came in
	synced   bool // at least one full update came in
	net      netState
	volumes  map[string]bool // being removed
	removed  chan string     // volumes that are gone
}

// New makes an agent; Run starts it.
func New(cfg Config) *Agent {
	return &Agent{
		cfg:      cfg,
		tasks:    make(map[cluster.ID]*task),
		updates:  make(chan agentapi.Update),
		done:     make(chan result),
		seen:     make(chan []Observed),
		probed:   make(chan probeNews),
		counted:  make(chan count),
		followed: make(chan networkResult),
		wake:     make(chan struct{}, 1),
		oomed:    make(chan cluster.ID, 16),
		outbox:   newOutbox(),
		volumes:  make(map[string]bool),
		removed:  make(chan string),
	}
}

// Run works until ctx ends. Containers go on running; what is under way is broken off and found again by the next Run.
func (a *Agent) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer a.wg.Wait()
	defer cancel()
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
			a.take(ctx, u)
		case o := <-a.seen:
			a.see(ctx, o)
		case r := <-a.done:
			a.finish(r)
		case n := <-a.probed:
			a.hear(n)
		case c := <-a.counted:
			a.count(c)
		case r := <-a.followed:
			a.networkDone(r)
		case id := <-a.oomed:
			if t := a.tasks[id]; t != nil {
				t.local.OOM = true
			}
		case name := <-a.removed:
			delete(a.volumes, name)
			a.outbox.volumeRemoved(name)
		case n := <-a.cfg.Notes:
			a.outbox.note(n)
		case <-timer.C:
		}
		timer.Reset(a.step(ctx))
	}
}

func (a *Agent) spawn(f func()) {
	a.wg.Add(1)
	go func() {
		defer a.wg.Done()
		f()
	}()
}

// take merges an update into what is wanted.
func (a *Agent) take(ctx context.Context, u agentapi.Update) {
	if u.Node != nil {
		a.net.config = u.Node
	}
	named := make(map[cluster.ID]bool, len(u.Assignments))
	for i := range u.Assignments {
		as := &u.Assignments[i]
		named[as.Task.ID] = true
		a.assign(as, u.Version)
	}
	for id, t := range a.tasks {
		if u.Full && !named[id] {
			a.unassign(t)
		}
	}
	for _, id := range u.Removed {
		if t := a.tasks[id]; t != nil {
			a.unassign(t)
		}
	}
	for _, name := range u.RemoveVolumes {
		a.removeVolume(ctx, name)
	}
	a.synced = a.synced || u.Full
	a.net.update(u.Version, u.Network)
}

func (a *Agent) assign(as *agentapi.Assignment, v cluster.Version) {
	t := a.tasks[as.Task.ID]
	if t == nil {
		t = a.remember(as.Task.ID)
	}
	if t.want == nil {
		w := as.Task
		t.local.Status = cluster.Status{Task: w.ID, Observed: w.Observed, Ready: w.Ready, Drained: w.Drained, Exit: w.Exit, Reason: w.Reason, Started: w.Started}
		t.local.Passed, t.local.Ready = w.Ready, w.Ready
		t.local.Cleaned = false
	}
	if as.Task.Desired == cluster.DesiredDrain && t.drainVersion == 0 {
		t.drainVersion = v
	}
	t.want = as
	if as.Task.Desired >= cluster.DesiredStop && t.acting == ActStart && t.cancel != nil {
		t.cancel() // no use in finishing a pull for it
	}
}

func (a *Agent) unassign(t *task) {
	t.want = nil
	if t.cancel != nil && t.acting == ActStart {
		t.cancel()
	}
}

func (a *Agent) remember(id cluster.ID) *task {
	t := &task{id: id}
	a.tasks[id] = t
	return t
}

// see merges an observation.
func (a *Agent) see(ctx context.Context, list []Observed) {
	a.observed = true
	have := make(map[cluster.ID]*Observed, len(list))
	for i := range list {
		have[list[i].Task] = &list[i]
		if a.tasks[list[i].Task] == nil {
			a.remember(list[i].Task)
		}
	}
	for id, t := range a.tasks {
		if !t.local.Busy {
			t.have = have[id]
		}
	}
	if d := a.cfg.Describe; d != nil {
		a.outbox.describe(d(ctx))
	}
}

// hear takes a probe's word.
func (a *Agent) hear(n probeNews) {
	t := a.tasks[n.task]
	if t == nil || t.probing == nil {
		return
	}
	t.local.Passed, t.local.Ready = t.local.Passed || n.passed, n.ready
	if n.kill != "" {
		t.local.Kill, t.local.Ready = n.kill, false
		a.note(n.task, "task.unhealthy", n.kill)
	}
	if n.note != "" {
		a.note(n.task, "task.not-ready", n.note)
	}
}

func (a *Agent) note(id cluster.ID, kind, message string) {
	a.outbox.note(agentapi.Note{Task: id, Type: kind, Message: message, At: time.Now()})
}

// step acts on everything that is due and returns the time to the next look.
func (a *Agent) step(ctx context.Context) time.Duration {
	now := time.Now()
	if !a.observed || !a.synced {
		return observeEvery // nothing is known well enough to act on it
	}
	a.followNetwork(ctx, now)
	if !a.net.configured {
		return untilRetry(a.net.retryAt, now)
	}
	// A status change can make the next action due at once; three rounds reach every fixed point Step has.
	for range 3 {
		views := make([]TaskView, 0, len(a.tasks))
		for _, t := range a.tasks {
			views = append(views, TaskView{ID: t.id, Want: t.want, Have: t.have, Local: t.local})
		}
		marked := false
		for _, action := range Step(views, now) {
			t := a.tasks[action.Task]
			if action.Kind == ActMark {
				t.local.Status = action.Status
				a.outbox.status(action.Status)
				marked = true
				continue
			}
			a.act(ctx, t, action)
		}
		if !marked {
			break
		}
	}
	next := observeEvery
	for _, t := range a.tasks {
		a.probe(ctx, t)
		next = min(next, a.drain(ctx, t, now))
		next = min(next, untilRetry(t.local.RetryAt, now))
	}
	a.followNetwork(ctx, now)
	next = min(next, untilRetry(a.net.retryAt, now))
	a.outbox.acknowledge(a.net.done)
	return max(next, time.Millisecond)
}

// untilRetry is the time to a retry that is set, else to the next observation.
func untilRetry(at, now time.Time) time.Duration {
	if wait := at.Sub(now); wait > 0 {
		return min(wait, observeEvery)
	}
	return observeEvery
}

// probe starts and ends the probes of a task.
func (a *Agent) probe(ctx context.Context, t *task) {
	running := t.have != nil && t.have.State == ContainerRunning && t.want != nil && t.local.Attached &&
		t.want.Task.Desired <= cluster.DesiredDrain && t.local.Kill == ""
	switch {
	case running && t.probing == nil && t.probes != nil && (t.probes.Ready != nil || t.probes.Live != nil || t.probes.Start != nil):
		pctx, cancel := context.WithCancel(ctx)
		t.probing = cancel
		p := &probing{agent: a, task: t.id, host: probeHost(t.want.Task.Address), probes: *t.probes, since: t.have.Started, adopted: t.local.Ready}
		a.spawn(func() { p.run(pctx) })
	case !running && t.probing != nil:
		t.probing()
		t.probing = nil
	}
}

// count is how many connections a draining task still has.
type count struct {
	task cluster.ID
	open int
	err  error
}

// drain looks at the connections of a draining task once the load balancers have left it.
func (a *Agent) drain(ctx context.Context, t *task, now time.Time) time.Duration {
	draining := t.want != nil && t.want.Task.Desired == cluster.DesiredDrain && !t.local.Idle &&
		t.local.Status.Observed == cluster.ObservedRunning
	if !draining {
		return observeEvery
	}
	if t.counting || a.net.done < t.drainVersion {
		return observeEvery // their answers wake the loop
	}
	if wait := t.drainLook.Sub(now); wait > 0 {
		return wait
	}
	t.counting = true
	address := t.want.Task.Address
	a.spawn(func() {
		c := count{task: t.id}
		if address.IsValid() {
			c.open, c.err = a.cfg.Network.Connections(ctx, address)
		}
		select {
		case a.counted <- c:
		case <-ctx.Done():
		}
	})
	return observeEvery
}

func (a *Agent) count(c count) {
	t := a.tasks[c.task]
	if t == nil {
		return
	}
	t.counting, t.drainLook = false, time.Now().Add(drainEvery)
	if c.err != nil {
		a.cfg.Log.Warn("cannot count connections; the drain deadline decides", "task", c.task, "err", c.err)
		return
	}
	t.local.Idle = c.open == 0
}
