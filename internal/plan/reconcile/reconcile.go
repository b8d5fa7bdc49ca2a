package reconcile

import (
	"slices"
	"time"

	"baton/internal/model/cluster"
)

// Limits are the planner's own bounds. Zero fields mean the defaults.
type Limits struct {
	// AckMax bounds the wait for nodes to acknowledge that a task left their load balancers; default 5 s.
	AckMax time.Duration
	// UnknownMax is how long a node may be unknown before its tasks are replaced elsewhere; default 3 s, which is 6 s after
	// its last heartbeat.
	UnknownMax time.Duration
	// History is how many ended tasks are kept per slot; default 5.
	History int
	// HistoryAge is how long ended tasks of slots that are no longer wanted are kept; default 1 h.
	HistoryAge time.Duration
}

// The default limits.
const (
	ackMaxDefault     = 5 * time.Second
	unknownMaxDefault = 3 * time.Second
	historyDefault    = 5
	historyAgeDefault = time.Hour

	// firstFailures is how many tasks of a slot must fail in a row before a first deployment can fail: an application that
	// starts together with its database usually crashes once or twice.
	firstFailures = 3
)

func (l Limits) withDefaults() Limits {
	if l.AckMax == 0 {
		l.AckMax = ackMaxDefault
	}
	if l.UnknownMax == 0 {
		l.UnknownMax = unknownMaxDefault
	}
	if l.History == 0 {
		l.History = historyDefault
	}
	if l.HistoryAge == 0 {
		l.HistoryAge = historyAgeDefault
	}
	return l
}

// NodeView is what the planner must know of nodes.
type NodeView struct {
	// Nodes holds every node of the cluster; a node that is not in it is gone for good. Shared, read-only.
	Nodes map[cluster.ID]*cluster.Node
	// Eligible lists, for a global service, the nodes that its wanted revision's constraints and platforms allow, whatever
	// their state and availability.
	Eligible []cluster.ID
}

// Input is everything that Reconcile looks at. Nothing in it is changed.
type Input struct {
	Service *cluster.Service
	// Revisions holds the wanted and the previous revision and those of live tasks.
	Revisions map[cluster.ID]*cluster.Revision
	// Tasks are all tasks of the service, ended ones that are still stored included, in any order.
	Tasks []*cluster.Task
	Nodes NodeView
	// Acked is the lowest version that every connected node's load balancers follow.
	Acked cluster.Version
	// Blocked says why the first tasks of the wanted revision must wait (a depends_on condition); empty: nothing blocks.
	Blocked string
	// Exclusive is true when the service uses a single-writer volume: a task is started only once no other task of the
	// slot can still run, also on nodes that are out of reach.
	Exclusive bool
	// Verdict is what the gates say of the rollout under way.
	Verdict Verdict
	Limits  Limits
	Now     time.Time
}

// Change moves a task's desired state forward, or declares it lost with its node.
type Change struct {
	Task   cluster.ID
	To     cluster.Desired // zero: unchanged
	Lost   bool            // the task's node is gone: its observed state becomes lost
	Reason string          // one sentence
}

// Apply carries the change out on t, which must be the caller's own copy.
func (c Change) Apply(t *cluster.Task, now time.Time) {
	if c.Lost && !t.Observed.Terminal() {
		t.Observed, t.Ready, t.Reason, t.Ended = cluster.ObservedLost, false, c.Reason, now
	}
	if c.To != 0 {
		reason := c.Reason
		if t.Observed.Terminal() {
			reason = "" // how the task ended is worth more than that it is cleaned up
		}
		t.Want(c.To, reason, now)
	}
}

// The types of reasons, which become the types of events.
const (
	WhyCreate   = "task.created"     // a slot had no task
	WhyReplace  = "task.replaced"    // an ended, moved or outdated task gets a successor
	WhyDrain    = "task.draining"    // leaves the load balancers
	WhyStop     = "task.stopping"    // gets its stop signal
	WhyLost     = "task.lost"        // its node is gone
	WhyBackoff  = "task.backoff"     // its replacement waits
	WhyGiveUp   = "task.given-up"    // its restart policy allows no replacement
	WhyRollout  = "rollout.started"  // a rollout begins
	WhyComplete = "rollout.complete" // a rollout ends well
	WhyPause    = "rollout.paused"   // a failure pauses it
	WhyFail     = "rollout.failed"   // a failure ends it
	WhyJudged   = "rollout.judged"   // the gates let it go on
)

// Reason explains one decision.
type Reason struct {
	Type    string
	Slot    int
	Task    cluster.ID
	Node    cluster.ID
	Message string
}

// Plan is what should happen now. It is stored in one transaction.
type Plan struct {
	// Create holds new tasks without id, address and, in replicated mode, node. Observed is pending, or assigned when the
	// node is given (global mode); the caller schedules them in the same transaction.
	Create []*cluster.Task
	// Stop moves tasks forward, in no particular order, at most one entry per task.
	Stop []Change
	// Delete names tasks to forget: beyond the history, or never given a node.
	Delete []cluster.ID
	// Rollout is the service's new rollout, nil when unchanged.
	Rollout *cluster.Rollout
	// Status is the service's status once the plan is stored.
	Status cluster.ServiceStatus
	// WakeAt is when time alone changes the plan next; zero: never.
	WakeAt time.Time
	// Why has the reasons of what is new in this plan.
	Why []Reason
	// Done is true when the service is being removed and nothing of it is left.
	Done bool
}

// Empty reports whether storing the plan would change nothing of svc and its tasks.
func (p Plan) Empty(svc *cluster.Service) bool {
	return len(p.Create) == 0 && len(p.Stop) == 0 && len(p.Delete) == 0 && p.Rollout == nil && p.Status == svc.Status
}

// Reconcile decides what should happen to a service now.
func Reconcile(in Input) Plan {
	p := newPlanner(in)
	p.lose()
	p.want()
	p.sort()
	var candidates []*slot
	if !p.svc.Removing && p.rev != nil {
		candidates = p.trimAll(p.rollout())
	}
	for _, s := range p.order {
		switch {
		case !s.wanted:
			p.empty(s)
		case !s.queued:
			p.converge(s)
		}
	}
	// Only now is it known which slots have finished their move and make room for others.
	p.choose(slices.Clone(candidates))
	for _, s := range candidates {
		p.converge(s)
	}
	p.tidy()
	if !p.svc.Removing && p.rev != nil {
		p.finish()
	}
	p.status()
	return p.result()
}

// lose declares the tasks of nodes that are gone lost: nothing will ever report their end.
func (p *planner) lose() {
	for _, s := range p.order {
		for _, t := range s.tasks {
			if t.Observed.Terminal() || p.place(t) != placeGone {
				continue
			}
			name := t.Node.Short()
			if n := p.in.Nodes.Nodes[t.Node]; n != nil && n.Name != "" {
				name = n.Name
			}
			p.change(s, t, Change{Lost: true, Reason: "node " + name + " is gone"})
			p.why(WhyLost, s, t.ID, t.Node, "lost with node %s", name)
		}
	}
}

// result puts the plan together.
func (p *planner) result() Plan {
	for _, id := range p.changed {
		if !p.deleted[id] {
			p.plan.Stop = append(p.plan.Stop, *p.changes[id])
		}
	}
	for _, t := range p.in.Tasks {
		if p.deleted[t.ID] {
			p.plan.Delete = append(p.plan.Delete, t.ID)
		}
	}
	if p.roll != p.svc.Rollout {
		roll := p.roll
		p.plan.Rollout = &roll
	}
	return p.plan
}
