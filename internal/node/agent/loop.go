package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"time"

	"baton/internal/model/cluster"
	"baton/internal/model/spec"
	"baton/internal/wire/agentapi"
)

// Hands carry out what a Loop decides. Every method returns at once; the outcome comes back through the method of Loop that
// its comment names, in the loop's own goroutine. Agent has hands that start goroutines; a simulation has hands that put
// the outcome into its queue.
type Hands interface {
	// Act carries out one action for a task, then Finish. The returned function breaks it off.
	Act(id cluster.ID, want *agentapi.Assignment, action Action) (cancel func())
	// Probe asks the task's probes until cancelled; each change of their word goes to Hear.
	Probe(p Probing) (cancel func())
	// Count counts the open connections of a draining task, then Counted.
	Count(task cluster.ID, address netip.Addr)
	// FollowNetwork configures the network or applies a state, then NetworkDone.
	FollowNetwork(w NetworkWork)
	// RemoveVolume deletes a volume, trying until it works, then VolumeRemoved.
	RemoveVolume(name string)
	// Look makes a fresh observation of a task, then See.
	Look(id cluster.ID)
	// Prepare pulls an image for a rollout, then ImagePrepared. The returned function breaks it off.
	Prepare(w agentapi.ImageWant) (cancel func())
	// Record saves a change durably, then Recorded. There is no second one before that.
	Record(c Change)
}

// Probing is what there is to ask of a task.
type Probing struct {
	Task    cluster.ID
	Address netip.Addr // zero: the node's own
	Probes  spec.Probes
	Since   time.Time // process start
	// Adopted is true when the task was ready before this agent started: its word holds until the probe says otherwise.
	Adopted bool
}

// Result ends an action.
type Result struct {
	Task cluster.ID
	Kind ActionKind
	Err  error
	// Probes are the task's, with the image's health check filled in; set by ActStart and ActAdopt when they worked.
	Probes *spec.Probes
}

// News is what the probes of a task say.
type News struct {
	Task cluster.ID
	// Passed is true once they passed; Ready is their word now.
	Passed, Ready bool
	Kill          string // the liveness probe gave up, and why
	Note          string // a change worth an event
}

// Connections is how many connections a draining task still has.
type Connections struct {
	Task cluster.ID
	Open int
	Err  error
}

// task is all the loop knows of one task.
type task struct {
	id    cluster.ID
	want  *agentapi.Assignment
	last  *agentapi.Assignment // want, also after it is nil
	have  *Observed
	local Local

	// changed is when the last worker finished; unseen is true until an observation tells what came of it. Acting before that
	// would be acting on the state before the worker's.
	changed time.Time
	unseen  bool

	tries   int
	cancel  func() // of the worker
	acting  ActionKind
	probes  *spec.Probes // with the image's health check filled in; nil: not known yet
	probing func()       // ends the probes
	// drainVersion is the update that told the task to drain; drainLook is when its connections are counted next.
	drainVersion cluster.Version
	drainLook    time.Time
	counting     bool
	emptyLooks   int // in a row without an open connection

	// edition counts the changes of what the record must know; saved is the one it knows; a start or a clean-up waits until
	// it knows gate.
	edition, saved, gate uint64
	recalled             bool       // want is from the record, and no manager has said anything of it since
	begun                bool       // this agent began to start it
	standing             *Standing  // set while this is a stand-in that no manager has decided on
	heir                 cluster.ID // the stand-in that has this task's place
}

// Loop is the agent without its goroutines: the state of every task between what is wanted and what is seen, and what is
// to be reported of it. It has no clock and starts nothing, so that the running agent and the simulation use it as it is:
// tell it what happened, then Step. It belongs to one goroutine; only its Outbox may be used by another one.
type Loop struct {
	hands    Hands
	log      *slog.Logger
	tasks    map[cluster.ID]*task
	outbox   *Outbox
	observed bool // at least one observation came in
	synced   bool // at least one full update came in
	net      netState
	volumes  map[string]bool // to be removed; true once the hands are at it

	leased   time.Time // when the newest heartbeat was sent that the leader has confirmed
	born     time.Time // the first step
	linked   bool      // a session brought an update and has not ended since
	cut      time.Time // when it ended, or when this agent began
	memory   *Memory   // of an earlier agent; nil: none
	recalled bool      // the network is as the record had it
	rec      recording
	images   map[imageKey]*wantedImage // that rollouts wait for
}

// NewLoop makes a loop that knows nothing.
func NewLoop(hands Hands, log *slog.Logger) *Loop {
	return &Loop{hands: hands, log: log, tasks: make(map[cluster.ID]*task), outbox: newOutbox(), volumes: make(map[string]bool)}
}

// Outbox is where reports are taken from.
func (l *Loop) Outbox() *Outbox { return l.outbox }

// sorted lists the tasks by id: what is done first must not depend on the order of a map.
func (l *Loop) sorted() []*task {
	out := make([]*task, 0, len(l.tasks))
	for _, t := range l.tasks {
		out = append(out, t)
	}
	slices.SortFunc(out, func(a, b *task) int { return slices.Compare(a.id[:], b.id[:]) })
	return out
}

// Take merges an update into what is wanted.
func (l *Loop) Take(u agentapi.Update) {
	if u.Node != nil {
		l.net.config, l.net.known = u.Node, u.Node
	}
	named := make(map[cluster.ID]bool, len(u.Assignments))
	for i := range u.Assignments {
		as := &u.Assignments[i]
		named[as.Task.ID] = true
		l.assign(as, u.Version)
	}
	if u.Full {
		for _, t := range l.sorted() {
			if !named[t.id] && t.standing == nil { // of stand-ins the manager has yet to hear
				l.unassign(t)
			}
		}
	}
	for _, id := range u.Removed {
		if t := l.tasks[id]; t != nil {
			l.settle(t)
			l.unassign(t)
		}
	}
	for _, name := range u.RemoveVolumes {
		if _, known := l.volumes[name]; !known {
			l.volumes[name] = false // Step begins with it once nothing uses it
		}
	}
	if u.Prepare != nil {
		l.takeImages(u.Prepare.Images)
	}
	l.synced, l.linked = l.synced || u.Full, true
	l.Confirmed(u.Confirmed)
	l.rec.network = l.rec.network || u.Node != nil || u.Network != nil
	l.net.update(u.Version, u.Network)
}

func (l *Loop) assign(as *agentapi.Assignment, v cluster.Version) {
	t := l.tasks[as.Task.ID]
	if t == nil {
		t = l.remember(as.Task.ID)
	}
	if t.want == nil {
		w := as.Task
		t.local.Status = cluster.Status{Task: w.ID, Observed: w.Observed, Ready: w.Ready, Drained: w.Drained, Exit: w.Exit, Reason: w.Reason, Started: w.Started}
		t.local.Passed, t.local.Ready = w.Ready, w.Ready
		t.local.Cleaned = false
		t.touch(false)
	}
	if t.recalled && as.Task.Observed > t.local.Status.Observed {
		// The record was behind. What has run is not to be taken for what has not.
		t.local.Status.Observed, t.local.Status.Started = as.Task.Observed, as.Task.Started
	}
	t.recalled = false
	l.settle(t)
	if t.want != nil && t.want.Task.Desired != as.Task.Desired {
		t.tries, t.local.RetryAt = 0, time.Time{} // what did not work is not what is to be done now
	}
	if as.Task.Desired == cluster.DesiredDrain && t.drainVersion == 0 {
		t.drainVersion = v
	}
	if t.want == nil || t.want.Task.Version != as.Task.Version {
		t.touch(false)
	}
	t.want, t.last = as, as
	if as.Task.Desired >= cluster.DesiredStop && t.acting == ActStart && t.cancel != nil {
		t.cancel() // no use in finishing a pull for it
	}
}

func (l *Loop) unassign(t *task) {
	if t.want != nil {
		t.touch(false)
	}
	t.want = nil
	if t.cancel != nil && t.acting == ActStart {
		t.cancel()
	}
}

func (l *Loop) remember(id cluster.ID) *task {
	t := &task{id: id}
	l.tasks[id] = t
	return t
}

// See merges an observation that was begun at the time asked: of all containers, or of those of some tasks. What it says of a
// task that a worker has changed since then is old, and is left to the next one.
func (l *Loop) See(list []Observed, asked time.Time, of ...cluster.ID) {
	l.observed = l.observed || len(of) == 0
	have := make(map[cluster.ID]*Observed, len(list))
	for i := range list {
		have[list[i].Task] = &list[i]
		if l.tasks[list[i].Task] == nil {
			l.remember(list[i].Task)
		}
	}
	seen := func(t *task) {
		if t != nil && !t.local.Busy && !asked.Before(t.changed) {
			t.have, t.unseen = have[t.id], false
		}
	}
	for _, id := range of {
		seen(l.tasks[id])
	}
	if len(of) == 0 {
		for _, t := range l.tasks {
			seen(t)
		}
	}
}

// Killed notes that the kernel killed a process of the task for memory.
func (l *Loop) Killed(id cluster.ID) {
	if t := l.tasks[id]; t != nil {
		t.local.OOM = true
	}
}

// Hear takes the probes' word.
func (l *Loop) Hear(n News, now time.Time) {
	t := l.tasks[n.Task]
	if t == nil || t.probing == nil {
		return
	}
	t.local.Passed, t.local.Ready = t.local.Passed || n.Passed, n.Ready
	if n.Kill != "" {
		t.local.Kill, t.local.Ready = n.Kill, false
		l.note(n.Task, "task.unhealthy", n.Kill, now)
	}
	if n.Note != "" {
		l.note(n.Task, "task.not-ready", n.Note, now)
	}
}

// VolumeRemoved takes the end of a volume.
func (l *Loop) VolumeRemoved(name string) {
	delete(l.volumes, name)
	l.outbox.volumeRemoved(name)
}

func (l *Loop) note(id cluster.ID, kind, message string, now time.Time) {
	l.outbox.note(agentapi.Note{Task: id, Type: kind, Message: message, At: now})
}

// Step acts on everything that is due and returns the time to the next look.
func (l *Loop) Step(now time.Time) time.Duration {
	if l.cut.IsZero() {
		l.cut = now
	}
	if l.born.IsZero() {
		l.born = now
	}
	l.endLeases(now)
	if l.alone(now) {
		l.recallNetwork()
	}
	if !l.observed || !l.synced && !l.recalled {
		return min(observeEvery, max(l.untilAlone(now), time.Millisecond)) // nothing is known well enough to act on it
	}
	l.followNetwork(now)
	if !l.net.configured {
		return min(untilRetry(l.net.retryAt, now), max(l.untilAlone(now), time.Millisecond))
	}
	// A status change can make the next action due at once; three rounds reach every fixed point Step has.
	for range 3 {
		marked := false
		for _, action := range Step(l.views(now), now) {
			t := l.tasks[action.Task]
			switch {
			case action.Kind == ActMark:
				l.mark(t, action.Status)
				marked = true
			case action.Kind == ActStart && t.local.Status.Observed < cluster.ObservedPreparing:
				s := t.local.Status
				s.Observed, s.At = cluster.ObservedPreparing, now
				l.mark(t, s)
				t.touch(true)
				t.begun, marked = true, true
			case t.mayAct(action.Kind):
				l.act(t, action, now)
			}
		}
		if !marked {
			break
		}
		l.record(now)
	}
	l.removeVolumes(now)
	next := min(l.standIns(now), l.untilAlone(now), l.getImages(now), l.untilLeaseEnds(now))
	for _, t := range l.sorted() {
		l.probe(t)
		next = min(next, l.drain(t, now))
		next = min(next, untilRetry(t.local.RetryAt, now))
		if wait := untilClean(TaskView{Want: t.want, Have: t.have, Local: t.local}, now); wait > 0 {
			next = min(next, wait)
		}
	}
	l.followNetwork(now)
	next = min(next, untilRetry(l.net.retryAt, now))
	l.record(now)
	next = min(next, l.untilRecord(now))
	l.outbox.acknowledge(l.net.done)
	return max(next, time.Millisecond)
}

func (l *Loop) views(now time.Time) []TaskView {
	tasks := l.sorted()
	views := make([]TaskView, 0, len(tasks))
	for _, t := range tasks {
		v := TaskView{ID: t.id, Want: t.want, Have: t.have, Local: t.local, Last: t.last, Standing: t.standing != nil}
		// Before a manager has said what it wants, what the record does not know may be wanted, too.
		v.Local.Busy = v.Local.Busy || t.unseen || !l.synced && t.last == nil
		v.Barred = t.leased() && !l.mayStartLeased(now)
		v.Unsure = t.recalled && !t.begun && !l.synced
		views = append(views, v)
	}
	return views
}

// removeVolumes begins to remove the volumes that nothing on this machine uses any more.
func (l *Loop) removeVolumes(now time.Time) {
	if len(l.volumes) == 0 {
		return
	}
	views := l.views(now)
	for _, name := range slices.Sorted(maps.Keys(l.volumes)) {
		if !l.volumes[name] && !uses(views, name) {
			l.volumes[name] = true
			l.hands.RemoveVolume(name)
		}
	}
}

// untilRetry is the time to a retry that is set, else to the next observation.
func untilRetry(at, now time.Time) time.Duration {
	if wait := at.Sub(now); wait > 0 {
		return min(wait, observeEvery)
	}
	return observeEvery
}

// mark notes a status that is to be reported.
func (l *Loop) mark(t *task, s cluster.Status) {
	t.touch(s.Observed.Terminal() && !t.local.Status.Observed.Terminal())
	t.local.Status = s
	l.outbox.status(s)
}

// act makes the hands work for the task. The loop leaves the task alone until their result arrives.
func (l *Loop) act(t *task, action Action, now time.Time) {
	t.local.Busy, t.acting = true, action.Kind
	if action.Kind == ActForget {
		delete(l.tasks, t.id)
		l.rec.gone = append(l.rec.gone, t.id)
		l.outbox.forget(t.id)
	}
	action.Refreshed = action.Kind == ActStart && l.refreshed(t.want.Task.Revision)
	t.cancel = l.hands.Act(t.id, t.want, action)
}

// Finish takes the result of an action.
func (l *Loop) Finish(r Result, now time.Time) {
	t := l.tasks[r.Task]
	if t == nil || t.acting != r.Kind {
		return // forgotten meanwhile
	}
	t.local.Busy, t.cancel, t.acting = false, nil, ""
	t.changed, t.unseen = now, true
	defer l.hands.Look(t.id)
	if r.Err != nil {
		l.failed(t, r, now)
		return
	}
	t.tries, t.local.RetryAt = 0, time.Time{}
	switch r.Kind {
	case ActStart, ActAdopt:
		t.local.Attached, t.probes = true, r.Probes
		t.local.Probed = r.Probes.Ready != nil || r.Probes.Start != nil
	case ActClean:
		t.local.Cleaned, t.local.Attached, t.have = true, false, nil
	}
}

// failed decides what an error means: a rejection is final, anything else is tried again.
func (l *Loop) failed(t *task, r Result, now time.Time) {
	t.tries++
	t.local.RetryAt = now.Add(min(retryMin<<min(t.tries-1, 6), retryMax))
	if errors.Is(r.Err, context.Canceled) && (t.want == nil || t.want.Task.Desired >= cluster.DesiredStop) {
		t.tries, t.local.RetryAt = 0, time.Time{} // broken off by us, for something else
		return
	}
	l.log.Warn("task action did not work", "task", t.id, "action", r.Kind, "try", t.tries, "err", r.Err)
	if r.Kind != ActStart {
		if t.tries == stuckTries {
			l.note(t.id, "task.stuck", fmt.Sprintf("%s of task %s did not work %d times: %v; it is tried again", r.Kind, t.id.Short(), t.tries, r.Err), now)
		}
		return
	}
	s := t.local.Status
	s.Reason, s.At = r.Err.Error(), now
	var reject *RejectError
	var pull *PullError
	switch {
	case errors.As(r.Err, &reject):
		s.Observed, s.Reason = cluster.ObservedRejected, reject.Error()
	case t.tries >= startTriesMax && !errors.As(r.Err, &pull):
		s.Observed, s.Reason = cluster.ObservedFailed, fmt.Sprintf("could not be started in %d tries: %v", t.tries, r.Err)
	}
	if s.Observed.Terminal() {
		t.tries, t.local.RetryAt = 0, time.Time{} // its clean-up need not wait
	}
	l.mark(t, s)
}

// probe starts and ends the probes of a task.
func (l *Loop) probe(t *task) {
	running := t.have != nil && t.have.State == ContainerRunning && t.want != nil && t.local.Attached &&
		t.want.Task.Desired <= cluster.DesiredDrain && t.local.Kill == ""
	switch {
	case running && t.probing == nil && t.probes != nil && cmp.Or(t.probes.Ready, t.probes.Live, t.probes.Start) != nil:
		t.probing = l.hands.Probe(Probing{
			Task: t.id, Address: t.want.Task.Address, Probes: *t.probes, Since: t.have.Started, Adopted: t.local.Ready,
		})
	case !running && t.probing != nil:
		t.probing()
		t.probing = nil
	}
}

// drain looks at the connections of a draining task once the load balancers have left it.
func (l *Loop) drain(t *task, now time.Time) time.Duration {
	draining := t.want != nil && t.want.Task.Desired == cluster.DesiredDrain && !t.local.Idle &&
		t.local.Status.Observed == cluster.ObservedRunning
	if !draining || t.counting || l.net.done < t.drainVersion {
		return observeEvery // what ends the wait wakes the loop
	}
	if wait := t.drainLook.Sub(now); wait > 0 {
		return wait
	}
	t.counting = true
	l.hands.Count(t.id, t.want.Task.Address)
	return observeEvery
}

// Counted takes the number of open connections.
func (l *Loop) Counted(c Connections, now time.Time) {
	t := l.tasks[c.Task]
	if t == nil {
		return
	}
	t.counting, t.drainLook = false, now.Add(drainEvery)
	if c.Err != nil {
		l.log.Warn("cannot count connections; the drain deadline decides", "task", c.Task, "err", c.Err)
		return
	}
	// A connection may be on its way past the old rules while they change, seen by no table yet: one empty look proves nothing.
	if c.Open > 0 {
		t.emptyLooks = 0
		return
	}
	t.emptyLooks++
	t.local.Idle = t.emptyLooks >= emptyLooksMin
}
