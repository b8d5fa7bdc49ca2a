package sim

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"time"

	"baton/internal/manager/dispatch"
	"baton/internal/manager/store"
	"baton/internal/model/cluster"
	"baton/internal/model/spec"
	"baton/internal/node/agent"
	"baton/internal/wire/agentapi"
)

// The stand-in for the managers' judgement of silent nodes, with the times of the architecture.
const (
	silentMax  = 3 * time.Second  // then a node is unknown and its session ends
	downAfter  = 15 * time.Second // then it is down
	observing  = 5 * time.Second  // full look at the containers
	latencyMax = 5 * time.Millisecond
)

// container is a simulated container; it outlives the agent.
type container struct {
	as    *agentapi.Assignment
	state agent.ContainerState
	since time.Time
	exit  *cluster.Exit
}

// node is a machine with its agent and the manager's end of its session.
type node struct {
	w      *World
	id     cluster.ID
	name   string
	labels map[string]string
	desc   cluster.NodeDescription

	life    int  // counts agents: what an earlier one left under way does not concern the present one
	machine int  // counts boots of the machine
	up      bool // an agent runs
	cut     bool // no message gets through
	useless bool // nothing starts

	loop      *agent.Loop
	session   *dispatch.Session // the agent's end; nil: none
	serving   *dispatch.Session // the manager's end; nil: none
	known     cluster.Version   // of the last update that the agent took
	arrival   time.Time         // of the last update under way: a stream keeps its order
	underway  []parcel
	sendAt    time.Time // of the last report under way
	stepAt    time.Time
	sending   bool
	looking   bool
	lookMore  []cluster.ID // to be looked at next; lookWhole: all
	lookWhole bool
	silent    time.Time // since when the manager hears nothing; zero: it does
	judged    int       // counts silences

	containers map[cluster.ID]*container
	attached   map[cluster.ID]netip.Addr
	balanced   map[cluster.ID]bool // tasks in the load balancers
	volumes    map[string]bool
	images     map[string]bool // pulled
	// finished and pulled, when set, hear of the ends of actions and pulls instead of the loop.
	finished func(agent.Result)
	pulled   func(agent.ImageResult)
	disk     disk
	dirty    bool // something here changed since the last check
}

func newNode(w *World, i int) *node {
	zones := []string{"a", "b", "c"}
	return &node{
		w: w, id: w.newID(), name: fmt.Sprintf("n%02d", i+1),
		labels: map[string]string{"zone": zones[i%len(zones)]},
		desc: cluster.NodeDescription{
			Hostname: fmt.Sprintf("n%02d", i+1), OS: "linux", Arch: "amd64",
			CPU: spec.MilliCPU(2000 + 1000*w.rng.IntN(3)), Memory: spec.Bytes(4+2*w.rng.IntN(3)) << 30, Version: "sim",
		},
		containers: make(map[cluster.ID]*container), attached: make(map[cluster.ID]netip.Addr),
		balanced: make(map[cluster.ID]bool), volumes: make(map[string]bool),
		images: make(map[string]bool),
		disk:   disk{tasks: make(map[cluster.ID]agent.Remembered)},
	}
}

// boot starts an agent that knows nothing of what an earlier one did.
func (n *node) boot(d time.Duration) {
	n.life++
	life := n.life
	n.w.after(d, n.name+" agent starts", func() {
		if n.life != life {
			return
		}
		n.known = 0
		n.up, n.session, n.sending, n.looking, n.lookMore, n.lookWhole, n.stepAt = true, nil, false, false, nil, false, time.Time{}
		n.loop = agent.NewLoop(&hands{node: n, life: life}, slog.New(slog.DiscardHandler))
		n.loop.Recall(n.disk.load())
		n.look()
		n.observe(life)
		n.connect(life, 100*time.Millisecond)
	})
}

// alive reports whether the agent of that life still runs.
func (n *node) alive(life int) bool { return n.up && n.life == life }

// crash ends the agent; reboot takes the containers with it.
func (n *node) crash(reboot bool) {
	n.w.tracef("%s crashes, reboot %v", n.name, reboot)
	n.life++
	n.up, n.session, n.loop = false, nil, nil
	n.quiet()
	if !reboot {
		return
	}
	n.machine++
	n.dirty = true
	clear(n.attached)
	clear(n.balanced)
	for _, id := range sortedIDs(n.containers) {
		if c := n.containers[id]; n.w.rng.IntN(2) == 0 {
			delete(n.containers, id)
		} else if c.state == agent.ContainerRunning {
			c.state, c.exit = agent.ContainerExited, &cluster.Exit{Code: -1, Unknown: true, At: n.w.now}
		}
	}
}

// quiet begins a silence, which the manager judges.
func (n *node) quiet() {
	if !n.silent.IsZero() {
		return
	}
	n.silent = n.w.now
	n.judged++
	silence := n.judged
	n.w.after(silentMax, n.name+" is silent", func() {
		if n.judged != silence || n.silent.IsZero() {
			return
		}
		if n.serving != nil {
			_ = n.serving.Close()
			n.serving = nil
		}
		n.judge(silence, cluster.NodeUnknown)
	})
	n.w.after(downAfter, n.name+" is silent for long", func() {
		if n.judged == silence && !n.silent.IsZero() {
			n.judge(silence, cluster.NodeDown)
		}
	})
}

// judge writes what the manager thinks of a silent node.
func (n *node) judge(silence int, state cluster.NodeState) {
	w := n.w
	old, ok := store.Get[*cluster.Node](w.store.Snapshot(), n.id)
	if !ok || n.judged != silence || n.silent.IsZero() || old.State == state || old.State == cluster.NodeDown {
		return
	}
	c := cluster.Copy(old)
	c.State, c.StateSince = state, w.now
	var t store.Txn
	t.Put(c)
	if _, err := w.log.Propose(context.Background(), t); err != nil {
		w.after(100*time.Millisecond, n.name+" is judged again", func() { n.judge(silence, state) })
	}
}

// connect opens a session, trying until it works.
func (n *node) connect(life int, wait time.Duration) {
	n.w.after(n.w.between(0, latencyMax), n.name+" connects", func() {
		if !n.alive(life) || n.session != nil {
			return
		}
		again := func() {
			n.w.after(wait, n.name+" waits to connect", func() { n.connect(life, min(2*wait, 5*time.Second)) })
		}
		if n.cut {
			again()
			return
		}
		s, err := n.w.dispatcher.Connect(context.Background(), agentapi.Hello{Node: n.id, Name: n.name, Description: n.desc, Known: n.known})
		if err != nil {
			n.w.tracef("  %s: %v", n.name, err)
			again()
			return
		}
		n.session = s.(*dispatch.Session)
		n.serving, n.silent = n.session, time.Time{}
		n.arrival, n.sendAt = n.w.now, n.w.now
		n.loop.Outbox().Resend()
		n.w.wakeDispatch(n.w.between(0, 4*time.Millisecond))
		n.send()
	})
}

// hangUp ends the agent's session; it connects anew.
func (n *node) hangUp() {
	if n.session == nil {
		return
	}
	n.w.tracef("  %s hangs up", n.name)
	_ = n.session.Close()
	if n.serving == n.session {
		n.serving = nil
	}
	n.session = nil
	n.loop.Cut(n.w.now)
	n.quiet()
	n.connect(n.life, 100*time.Millisecond)
}

// broken reports whether the manager ended the session.
func (n *node) broken(s *dispatch.Session) bool {
	select {
	case <-s.Ended():
		return true
	default:
		return false
	}
}

// fetch brings what waits in the mailbox on its way. A slow reader leaves it there, so that updates are merged.
func (n *node) fetch() {
	s := n.session
	if s == nil || n.cut {
		return
	}
	if n.broken(s) {
		n.hangUp()
		return
	}
	if n.w.chance(0.1) {
		n.w.after(n.w.between(0, time.Second), n.name+" reads late", func() {
			if n.session == s {
				n.fetch()
			}
		})
		return
	}
	u, ok := s.Poll()
	if !ok {
		return
	}
	u = n.w.mutateUpdate(n, u)
	n.w.check.update(n, u)
	n.deliver(s, u)
}

func (n *node) deliver(s *dispatch.Session, u agentapi.Update) {
	at := n.w.now.Add(n.w.between(100*time.Microsecond, latencyMax))
	if n.w.chance(0.02) {
		at = at.Add(n.w.between(0, 2*time.Second))
	}
	if at.Before(n.arrival) {
		at = n.arrival
	}
	n.arrival = at
	if n.w.cfg.Mutation == MutationKnowing {
		n.known = u.Version
	}
	n.underway = append(n.underway, parcel{session: s, at: at, update: u})
	n.w.after(at.Sub(n.w.now), n.name+" gets an update", n.receive)
}

// parcel is an update on its way.
type parcel struct {
	session *dispatch.Session
	at      time.Time
	update  agentapi.Update
}

// receive takes what has arrived, in order. While the node is cut off it waits; rejoin asks again.
func (n *node) receive() {
	for len(n.underway) > 0 && !n.cut && !n.underway[0].at.After(n.w.now) {
		p := n.underway[0]
		n.underway = n.underway[1:]
		switch u := p.update; {
		case n.session != p.session || n.session == nil:
		case n.w.cfg.Mutation == MutationDeaf && !u.Full && len(u.Assignments) > 0 && n.w.rng.IntN(4) == 0:
		default:
			if n.w.cfg.Mutation == MutationClinging && u.Removed != nil {
				u.Removed = nil
			}
			n.loop.Take(u)
			if n.w.cfg.Mutation != MutationKnowing {
				n.known = u.Version
			}
			n.kick()
		}
	}
}

// kick lets the loop act and sends what it reports.
func (n *node) kick() {
	if n.loop == nil {
		return
	}
	d := n.loop.Step(n.w.now)
	at, life := n.w.now.Add(d), n.life
	if n.stepAt.IsZero() || at.Before(n.stepAt) || !n.stepAt.After(n.w.now) {
		n.stepAt = at
		n.w.after(d, n.name+" looks", func() {
			if n.alive(life) && n.stepAt.Equal(at) {
				n.stepAt = time.Time{}
				n.kick()
			}
		})
	}
	n.send()
}

// send gathers for a moment and reports.
func (n *node) send() {
	if n.session == nil || n.sending {
		return
	}
	n.sending = true
	life := n.life
	n.w.after(5*time.Millisecond, n.name+" gathers", func() {
		if !n.alive(life) {
			return
		}
		n.sending = false
		s := n.session
		if s == nil || n.cut {
			if n.cut {
				n.w.after(300*time.Millisecond, n.name+" cannot send", func() {
					if n.alive(life) {
						n.send()
					}
				})
			}
			return
		}
		r, ok := n.loop.Outbox().Collect()
		if !ok {
			return
		}
		if n.w.cfg.Mutation == MutationAppliedEarly {
			r.Applied = n.w.store.Snapshot().Version()
		}
		n.carry(s, life, r)
	})
}

// carry brings a report to the manager: in order within a session, lost with it, sometimes twice.
func (n *node) carry(s *dispatch.Session, life int, r agentapi.Report) {
	w := n.w
	at := w.now.Add(w.between(100*time.Microsecond, latencyMax))
	if w.chance(0.05) {
		at = at.Add(w.between(0, 2*time.Second))
	}
	if at.Before(n.sendAt) {
		at = n.sendAt
	}
	n.sendAt = at
	w.after(at.Sub(w.now), n.name+" reports", func() {
		if w.cfg.Mutation == MutationLostReports && w.rng.IntN(3) == 0 {
			return
		}
		for _, st := range r.Tasks {
			w.tracef("  %s says of %s: %s ready %v drained %v", n.name, st.Task.Short(), st.Observed, st.Ready, st.Drained)
		}
		lost := n.cut && n.session == s
		err := dispatch.ErrClosed
		if !lost {
			err = s.Send(context.Background(), r)
		}
		if !lost && w.chance(0.02) {
			err = dispatch.ErrClosed // it got there, and nobody knows
		}
		if err == nil || !n.alive(life) {
			w.writeReports()
			return
		}
		n.loop.Outbox().PutBack(r)
		if n.session == s {
			n.hangUp()
		}
		w.writeReports()
	})
}

// writeReports makes the dispatcher write what came in, a moment later.
func (w *World) writeReports() {
	w.after(w.between(0, 2*time.Millisecond), "reports are written", func() {
		w.dispatcher.WriteReports(context.Background())
		w.wakeDispatch(w.between(0, 4*time.Millisecond)) // it may have to answer what it did not write: a refused stand-in
		for _, n := range w.nodes {
			if n.session != nil && !n.cut && n.broken(n.session) {
				n.hangUp()
			}
		}
	})
}

// observe looks at the containers from time to time.
func (n *node) observe(life int) {
	n.w.after(observing, n.name+" observes", func() {
		if n.alive(life) {
			n.look()
			n.observe(life)
		}
	})
}

// list is what there is of containers now, or of those of some tasks.
func (n *node) list(of ...cluster.ID) (list []agent.Observed) {
	for _, id := range sortedIDs(n.containers) {
		c := n.containers[id]
		if len(of) > 0 && !slices.Contains(of, id) {
			continue
		}
		o := agent.Observed{Task: id, State: c.state, Started: c.since}
		if c.exit != nil {
			e := *c.exit
			o.Exit = &e
		}
		list = append(list, o)
	}
	return list
}

// look makes one observation, of some tasks or of all. What it sees may be old when the loop hears of it, but observations come in
// order.
func (n *node) look(of ...cluster.ID) {
	if n.loop == nil {
		return
	}
	if n.looking {
		n.lookWhole = n.lookWhole || len(of) == 0
		n.lookMore = append(n.lookMore, of...)
		return
	}
	n.looking = true
	life := n.life
	n.w.after(n.w.between(0, 2*time.Millisecond), n.name+" lists", func() {
		if !n.alive(life) {
			return
		}
		list := n.list(of...)
		asked := n.w.now
		n.w.after(n.w.between(0, 5*time.Millisecond), n.name+" sees", func() {
			if !n.alive(life) {
				return
			}
			n.looking = false
			n.loop.See(list, asked, of...)
			n.kick()
			whole, more := n.lookWhole, n.lookMore
			n.lookWhole, n.lookMore = false, nil
			if whole {
				n.look()
			} else if len(more) > 0 {
				n.look(more...)
			}
		})
	})
}
