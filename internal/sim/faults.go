package sim

import (
	"context"
	"fmt"
	"slices"
	"time"

	"baton/internal/manager/store"
	"baton/internal/model/cluster"
	"baton/internal/wire/agentapi"
)

// startFaults begins a history's troubles of nodes and of leadership; those of single actions are drawn where they happen.
func (w *World) startFaults() {
	w.after(w.between(time.Second, 20*time.Second), "fault", func() {
		if !w.chaos {
			return
		}
		w.fault()
		w.startFaults()
	})
}

func (w *World) fault() {
	n := w.nodes[w.rng.IntN(len(w.nodes))]
	away := w.between(50*time.Millisecond, 2*time.Second)
	if w.one(2) {
		away = w.between(2*time.Second, 25*time.Second)
	}
	switch w.rng.IntN(7) {
	case 0, 1:
		if n.up {
			n.crash(w.one(2))
			n.boot(away)
		}
	case 5:
		w.lead() // a new term at once
	case 2, 3:
		w.isolate(n, away)
	case 4:
		w.loseLeader(w.between(10*time.Millisecond, 3*time.Second))
	default: // a machine comes back before any manager does
		if n.up {
			w.isolate(n, away+w.between(0, 20*time.Second))
			n.crash(!w.one(3))
			n.boot(away / 4)
		}
	}
}

// isolate cuts a node off. What is under way comes later when it is short, and is lost with the session when it is not.
func (w *World) isolate(n *node, d time.Duration) {
	if n.cut {
		return
	}
	w.tracef("  %s is cut off for %s", n.name, d)
	n.cut = true
	if n.serving != nil {
		n.quiet()
	}
	w.after(d, n.name+" is reachable", func() { n.rejoin() })
	s, life := n.session, n.life
	w.after(w.between(2*time.Second, 4*time.Second), n.name+" notices that it is cut off", func() {
		if s != nil && n.cut && n.session == s && n.alive(life) {
			n.session = nil // the manager's end stays open: nobody can tell it
			n.loop.Cut(w.now)
			n.connect(life, 100*time.Millisecond)
		}
	})
}

func (n *node) rejoin() {
	if !n.cut {
		return
	}
	n.cut = false
	switch s := n.session; {
	case s == nil:
	case n.broken(s):
		n.hangUp()
	default:
		n.silent = time.Time{}
		n.receive()
		n.fetch()
		n.send()
	}
}

func (w *World) loseLeader(d time.Duration) {
	if !w.log.leader {
		return
	}
	w.tracef("  leadership is lost for %s", d)
	w.log.lead(false)
	w.engine = nil
	w.after(d, "leadership returns", w.regain)
}

func (w *World) regain() {
	if !w.log.leader {
		w.log.lead(true)
		w.lead()
	}
}

// heal ends all faults and operations.
func (w *World) heal() {
	w.tracef("everything heals")
	w.chaos, w.busy = false, false
	w.regain()
	for _, n := range w.nodes {
		n.rejoin()
		if !n.up {
			n.boot(0)
		}
	}
	if w.one(2) {
		return
	}
	// Half of the histories end with a deployment of what works to nodes that are all there.
	for _, name := range []string{"s1", "s2", "s3"} {
		file, ok := w.users.files[name]
		if !ok {
			continue
		}
		file = w.users.edit(file)
		for i := range file.Services {
			if kind(&file.Services[i]) != "job" {
				file.Services[i].Image = w.users.imageOf(true)
			}
		}
		w.after(w.between(0, time.Second), fmt.Sprintf("user deploys %s for good", name), func() { w.users.deploy(name, file) })
	}
}

// Mutation is a bug planted into the simulated parts or between the real ones, which a check must find.
type Mutation string

// The mutations.
const (
	MutationNone         Mutation = ""
	MutationStartTwice   Mutation = "an executor starts a task on two nodes"
	MutationImmortal     Mutation = "a stop leaves the process running"
	MutationLeftovers    Mutation = "a clean-up leaves the container"
	MutationAckedEarly   Mutation = "the planners believe that everything is acknowledged"
	MutationAppliedEarly Mutation = "an agent acknowledges what its load balancers do not follow"
	MutationBlind        Mutation = "the engine misses some changes of tasks"
	MutationBackwards    Mutation = "a task's state goes backwards"
	MutationResurrect    Mutation = "an ended task runs again"
	MutationEndpoint     Mutation = "a task that is not ready is an endpoint"
	MutationSecret       Mutation = "a node gets the secret of another node's task"
	MutationLostReports  Mutation = "reports are lost without an error"
	MutationDeaf         Mutation = "an agent misses an update"
	MutationSleepy       Mutation = "the planners do not wake by time"
	MutationReopen       Mutation = "an ended release deploys again"
	MutationSharedVolume Mutation = "two tasks write to one single-writer volume"
	MutationUndrained    Mutation = "a serving task is stopped without leaving the load balancers"
	MutationRoughStop    Mutation = "an agent stops a task that is wanted"
	MutationClinging     Mutation = "an agent keeps what managers took off it"
	MutationKnowing      Mutation = "an agent says that it knows an update which it lost"
	MutationUnprepared   Mutation = "a node says that it has an image and does not"
	MutationForgetful    Mutation = "a node's record forgets how far tasks came"
)

// mutateUpdate plants the bugs of what nodes are told.
func (w *World) mutateUpdate(n *node, u agentapi.Update) agentapi.Update {
	switch w.cfg.Mutation {
	case MutationEndpoint:
		if u.Network != nil {
			w.unreadyEndpoint(&u)
		}
	case MutationSecret:
		for _, other := range w.nodes {
			for _, id := range sortedIDs(other.containers) {
				as := other.containers[id].as
				if other != n && len(as.Files) > 0 && as.Task.Node != n.id {
					u.Assignments = append(u.Assignments, *as)
					return u
				}
			}
		}
	}
	return u
}

// unreadyEndpoint makes a member that is no endpoint one.
func (w *World) unreadyEndpoint(u *agentapi.Update) {
	state := *u.Network
	state.Services = append([]agentapi.Service(nil), state.Services...)
	known := make(map[cluster.ID]bool)
	for _, s := range state.Services {
		for _, e := range s.Endpoints {
			known[e.Task] = true
		}
	}
	for _, m := range state.Members {
		if !known[m.Task] && len(state.Services) > 0 {
			s := &state.Services[0]
			s.Endpoints = append(append([]agentapi.Endpoint(nil), s.Endpoints...), agentapi.Endpoint{Task: m.Task, Node: m.Node, Address: m.Address})
			break
		}
	}
	u.Network = &state
}

// blindfold hides some changes of tasks from the engine.
type blindfold struct {
	w      *World
	cursor *store.Cursor
}

// Collect implements control.Changes.
func (b blindfold) Collect() store.Delta {
	d := b.cursor.Collect()
	if b.w.cfg.Mutation == MutationBlind && !d.Full {
		d.Changed = slices.DeleteFunc(slices.Clone(d.Changed), func(o cluster.Object) bool {
			return o.Kind() == cluster.KindTask && b.w.one(2)
		})
	}
	return d
}

// meddle plants the bugs of what managers write, once a second.
func (w *World) meddle() {
	var pick func(store.Snapshot) cluster.Object
	tasks := func(fit func(*cluster.Task) bool, change func(*cluster.Task)) func(store.Snapshot) cluster.Object {
		return func(snap store.Snapshot) cluster.Object {
			for t := range store.All[*cluster.Task](snap) {
				if fit(t) {
					c := cluster.Copy(t)
					change(c)
					return c
				}
			}
			return nil
		}
	}
	switch w.cfg.Mutation {
	case MutationBackwards:
		pick = tasks(func(t *cluster.Task) bool { return t.Observed == cluster.ObservedRunning },
			func(t *cluster.Task) { t.Observed = cluster.ObservedPreparing })
	case MutationResurrect:
		pick = tasks(func(t *cluster.Task) bool { return t.Observed.Terminal() },
			func(t *cluster.Task) { t.Observed = cluster.ObservedRunning })
	case MutationUndrained:
		pick = tasks(func(t *cluster.Task) bool { return t.Endpoint() },
			func(t *cluster.Task) { t.Desired, t.StopSince = cluster.DesiredStop, w.now })
	case MutationReopen:
		pick = func(snap store.Snapshot) cluster.Object {
			for r := range store.All[*cluster.Release](snap) {
				if r.State == cluster.ReleaseComplete {
					c := cluster.Copy(r)
					c.State = cluster.ReleaseDeploying
					return c
				}
			}
			return nil
		}
	default:
		return
	}
	w.after(time.Second, "a bug meddles", func() {
		if o := pick(w.store.Snapshot()); o != nil && w.busy {
			var t store.Txn
			t.Put(o)
			_, _ = w.log.Propose(context.Background(), t)
		}
		w.meddle()
	})
}
