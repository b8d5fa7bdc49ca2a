package sim

import (
	"bytes"
	"context"
	"errors"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"baton/internal/model/cluster"
	"baton/internal/model/spec"
	"baton/internal/node/agent"
	"baton/internal/wire/agentapi"
)

func sortedIDs[V any](m map[cluster.ID]V) []cluster.ID {
	return slices.SortedFunc(maps.Keys(m), func(a, b cluster.ID) int { return bytes.Compare(a[:], b[:]) })
}

// hands carry out what a node's loop decides, on simulated containers.
type hands struct {
	node *node
	life int
}

var _ agent.Hands = (*hands)(nil)

var errTransient = errors.New("injected fault that passes")

// done queues an outcome for the loop, unless its agent is gone by then.
func (h *hands) done(d time.Duration, name string, f func(l *agent.Loop)) {
	n := h.node
	n.w.after(d, n.name+" "+name, func() {
		if n.alive(h.life) {
			f(n.loop)
			n.kick()
		}
	})
}

func (h *hands) finish(d time.Duration, r agent.Result) {
	h.done(d, "finishes "+string(r.Kind), func(l *agent.Loop) {
		if f := h.node.finished; f != nil {
			f(r)
			return
		}
		l.Finish(r, h.node.w.now)
	})
}

// Act implements agent.Hands.
func (h *hands) Act(id cluster.ID, want *agentapi.Assignment, a agent.Action) func() {
	n, w := h.node, h.node.w
	w.tracef("  %s: %s %s", n.name, a.Kind, id.Short())
	r := agent.Result{Task: id, Kind: a.Kind}
	if a.Kind != agent.ActForget && a.Kind != agent.ActStart && w.chance(0.03) {
		r.Err = errTransient
		h.finish(w.between(0, 50*time.Millisecond), r)
		return func() {}
	}
	switch a.Kind {
	case agent.ActStart:
		return h.start(want, r)
	case agent.ActAdopt:
		p := want.Spec.Probes
		r.Probes = &p
		h.attach(want)
		h.finish(w.between(0, 20*time.Millisecond), r)
	case agent.ActStop:
		h.stop(id, a.Grace, r)
	case agent.ActClean:
		w.after(w.between(0, 30*time.Millisecond), n.name+" cleans", func() {
			late := w.between(0, 5*time.Millisecond)
			if w.cfg.Mutation != MutationLeftovers {
				delete(n.containers, id)
			} else {
				late = 5 * time.Second
			}
			delete(n.attached, id)
			n.dirty = true
			h.finish(late, r)
		})
	default:
		h.finish(0, r)
	}
	return func() {}
}

func (h *hands) attach(as *agentapi.Assignment) {
	if as.Task.Address.IsValid() {
		h.node.attached[as.Task.ID] = as.Task.Address
		h.node.dirty = true
	}
}

// kind is what an image does: the part of its name before the colon.
func kind(s *spec.Service) string {
	k, _, _ := strings.Cut(s.Image, ":")
	return k
}

// absent reports whether the registry does not have an image.
func (n *node) absent(image string) bool { return strings.HasPrefix(image, "absent:") && n.w.busy }

// Prepare implements agent.Hands.
func (h *hands) Prepare(want agentapi.ImageWant) func() {
	n, w, over := h.node, h.node.w, false
	pull := w.between(5*time.Millisecond, 300*time.Millisecond)
	if w.chance(0.2) {
		pull += w.between(0, 15*time.Second)
	}
	w.after(pull, n.name+" has prepared", func() {
		r := agent.ImageResult{Want: want}
		switch {
		case over || !n.alive(h.life):
			return
		case w.cfg.Mutation == MutationUnprepared:
		case w.chance(0.2):
			r.Err = errTransient
		case n.absent(want.Image):
			r.Err = &agent.RejectError{Reason: "the registry does not have the image"}
		default:
			n.images[want.Image] = true
		}
		h.done(0, "tells of an image", func(l *agent.Loop) {
			if n.pulled != nil {
				n.pulled(r)
				return
			}
			l.ImagePrepared(r, w.now)
		})
	})
	return func() { over = true }
}

// start pulls, attaches and starts; it can be broken off until the container runs.
func (h *hands) start(want *agentapi.Assignment, r agent.Result) func() {
	n, w, over := h.node, h.node.w, false
	end := func(d time.Duration, err error) {
		if !over {
			over = true
			r.Err = err
			h.finish(d, r)
		}
	}
	machine := n.machine
	pull := w.between(5*time.Millisecond, 300*time.Millisecond)
	if w.chance(0.05) {
		pull += w.between(0, 8*time.Second)
	}
	w.after(pull, n.name+" pulled", func() {
		switch {
		case over || n.machine != machine || !n.alive(h.life): // a pull ends with its agent, a container's start may not
		case n.useless:
			end(0, &agent.RejectError{Reason: "the machine is broken"})
		case w.chance(0.04):
			end(0, &agent.PullError{Err: errTransient})
		case w.chance(0.04) || kind(want.Spec) == "flaky" && w.busy && w.rng.IntN(3) == 0:
			end(0, errTransient)
		case n.absent(want.Spec.Image):
			end(0, &agent.RejectError{Reason: "the registry does not have the image"})
		case kind(want.Spec) == "reject" && w.busy:
			end(0, &agent.RejectError{Reason: "the image has no such command"})
		default:
			n.images[want.Spec.Image] = true
			h.attach(want)
			w.after(w.between(5*time.Millisecond, 60*time.Millisecond), n.name+" started", func() {
				if over || n.machine != machine {
					return
				}
				n.run(want)
				p := want.Spec.Probes
				r.Probes = &p
				end(w.between(0, 10*time.Millisecond), nil)
			})
		}
	})
	return func() { end(time.Millisecond, context.Canceled) }
}

// run makes the container run, and end when its image is of that kind.
func (n *node) run(want *agentapi.Assignment) {
	w, id := n.w, want.Task.ID
	if n.containers[id] != nil {
		return // it runs, or has ended: then it does not run again
	}
	c := &container{as: want, state: agent.ContainerRunning, since: w.now}
	n.containers[id] = c
	n.dirty = true
	for _, v := range want.Volumes {
		n.volumes[v] = true
	}
	w.check.started(n, want)
	if w.cfg.Mutation == MutationStartTwice && w.rng.IntN(8) == 0 {
		other := w.nodes[w.rng.IntN(len(w.nodes))]
		other.containers[id], other.dirty = &container{as: want, state: agent.ContainerRunning, since: w.now}, true
	}
	if w.cfg.Mutation == MutationSharedVolume && len(want.Volumes) > 0 {
		n.containers[w.newID()] = c
	}
	if w.cfg.Mutation == MutationRoughStop && w.one(8) {
		w.after(time.Second, n.name+" stops for no reason", func() {
			if n.containers[id] == c && c.state == agent.ContainerRunning {
				w.check.stopped(n, id)
			}
		})
	}
	switch k := kind(want.Spec); {
	case !w.busy && k != "job": // in peace everything works
	case k == "crash":
		n.exit(c, id, w.between(50*time.Millisecond, 2*time.Second), cluster.Exit{Code: 1})
	case k == "three":
		n.exit(c, id, w.between(100*time.Millisecond, 3*time.Second), cluster.Exit{Code: 3})
	case k == "job":
		n.exit(c, id, w.between(100*time.Millisecond, 3*time.Second), cluster.Exit{})
	case k == "oom":
		n.exit(c, id, w.between(100*time.Millisecond, 2*time.Second), cluster.Exit{Code: 137, Signal: "SIGKILL", OOM: true})
	case w.chance(0.05):
		n.exit(c, id, w.between(50*time.Millisecond, 20*time.Second), cluster.Exit{Code: 3})
	}
}

// exit ends a container's process after a while, if it still runs then.
func (n *node) exit(c *container, id cluster.ID, d time.Duration, e cluster.Exit) {
	n.w.after(d, n.name+" process ends", func() {
		if n.containers[id] != c || c.state != agent.ContainerRunning {
			return
		}
		e.At = n.w.now
		c.state, c.exit = agent.ContainerExited, &e
		n.dirty = true
		if e.OOM && n.loop != nil {
			n.loop.Killed(id)
		}
		n.look()
	})
}

// stop sends the stop signal and waits for the end, by force after the grace.
func (h *hands) stop(id cluster.ID, grace time.Duration, r agent.Result) {
	n, w := h.node, h.node.w
	c := n.containers[id]
	if c == nil || c.state != agent.ContainerRunning {
		h.finish(time.Millisecond, r)
		return
	}
	w.check.stopped(n, id)
	if w.cfg.Mutation == MutationImmortal {
		h.finish(5*time.Second, r)
		return
	}
	d, exit := w.between(time.Millisecond, 500*time.Millisecond), cluster.Exit{Code: 143, Signal: "SIGTERM"}
	if w.chance(0.1) {
		d, exit = grace, cluster.Exit{Code: 137, Signal: "SIGKILL"}
	}
	n.exit(c, id, d, exit)
	h.finish(d+w.between(0, 5*time.Millisecond), r)
}

// Probe implements agent.Hands.
func (h *hands) Probe(p agent.Probing) func() {
	n, w, over := h.node, h.node.w, false
	c := n.containers[p.Task]
	if c == nil {
		return func() {}
	}
	k := kind(c.as.Spec)
	tell := func(d time.Duration, news agent.News) {
		news.Task = p.Task
		h.done(d, "probe", func(l *agent.Loop) {
			if !over {
				w.tracef("  %s: probe of %s says %+v", n.name, p.Task.Short(), news)
				l.Hear(news, w.now)
			}
		})
	}
	var first func()
	first = func() {
		h.done(w.between(20*time.Millisecond, 1500*time.Millisecond), "probe", func(l *agent.Loop) {
			switch {
			case over:
			case k == "unready" && p.Probes.Ready != nil && w.busy:
				first()
			default:
				l.Hear(agent.News{Task: p.Task, Passed: true, Ready: true}, w.now)
			}
		})
	}
	if !p.Adopted {
		first()
	}
	if k == "sick" && w.busy && p.Probes.Live != nil {
		tell(w.between(2*time.Second, 5*time.Second), agent.News{Passed: true, Kill: "its liveness probe failed"})
	}
	if p.Probes.Ready != nil && k != "unready" && w.chance(0.15) {
		d := w.between(2*time.Second, 20*time.Second)
		tell(d, agent.News{Passed: true, Ready: false, Note: "its ready probe failed"})
		tell(d+w.between(100*time.Millisecond, 3*time.Second), agent.News{Passed: true, Ready: true})
	}
	return func() { over = true }
}

// Count implements agent.Hands.
func (h *hands) Count(task cluster.ID, _ netip.Addr) {
	w := h.node.w
	r := agent.Connections{Task: task}
	switch {
	case w.chance(0.05):
		r.Err = errTransient
	case w.rng.IntN(3) == 0:
		r.Open = 1
	}
	h.done(w.between(0, 3*time.Millisecond), "counts", func(l *agent.Loop) { l.Counted(r, w.now) })
}

// FollowNetwork implements agent.Hands.
func (h *hands) FollowNetwork(work agent.NetworkWork) {
	n, w := h.node, h.node.w
	r := agent.NetworkResult{Config: work.Config, Version: work.Version}
	d := w.between(time.Millisecond, 30*time.Millisecond)
	if w.chance(0.03) {
		d += w.between(0, 8*time.Second)
	}
	if w.chance(0.03) {
		r.Err = errTransient
	}
	machine := n.machine
	w.after(d, n.name+" network", func() {
		if n.machine != machine {
			return
		}
		if work.State != nil && r.Err == nil && n.alive(h.life) {
			n.balance(work.State)
		}
		h.done(0, "network done", func(l *agent.Loop) { l.NetworkDone(r, w.now) })
	})
}

func (n *node) balance(s *agentapi.NetworkState) {
	clear(n.balanced)
	for _, svc := range s.Services {
		for _, e := range svc.Endpoints {
			n.balanced[e.Task] = true
		}
	}
	n.dirty = true
}

// RemoveVolume implements agent.Hands.
func (h *hands) RemoveVolume(name string) {
	n, w := h.node, h.node.w
	w.after(w.between(time.Millisecond, 50*time.Millisecond), n.name+" removes a volume", func() {
		w.check.volumeRemoved(n, name)
		delete(n.volumes, name)
		h.done(0, "volume removed", func(l *agent.Loop) { l.VolumeRemoved(name) })
	})
}

// Record implements agent.Hands. What is under way when the agent ends may be on disk or not.
func (h *hands) Record(c agent.Change) {
	n, w := h.node, h.node.w
	d := w.between(100*time.Microsecond, 5*time.Millisecond)
	if w.chance(0.02) {
		d += w.between(0, 2*time.Second)
	}
	var err error
	if w.chance(0.02) {
		err = errTransient
	}
	w.after(d, n.name+" records", func() {
		if err == nil && (n.life == h.life || n.life == h.life+1 && w.one(2) && !n.up) {
			n.disk.save(c, w.cfg.Mutation == MutationForgetful)
		}
		h.done(0, "has recorded", func(l *agent.Loop) { l.Recorded(err, w.now) })
	})
}

// disk is a node's record; it outlives everything.
type disk struct {
	tasks   map[cluster.ID]agent.Remembered
	node    *agentapi.NodeConfig
	network *agentapi.NetworkState
}

func (d *disk) save(c agent.Change, forgetful bool) {
	for _, id := range c.Gone {
		delete(d.tasks, id)
	}
	for _, t := range c.Tasks {
		if forgetful {
			t.Status = cluster.Status{Task: t.Assignment.Task.ID, Observed: cluster.ObservedAssigned}
		}
		d.tasks[t.Assignment.Task.ID] = t
	}
	if c.Node != nil {
		d.node = c.Node
	}
	if c.Network != nil {
		d.network = c.Network
	}
}

func (d *disk) load() agent.Memory {
	m := agent.Memory{Node: d.node, Network: d.network}
	for _, id := range sortedIDs(d.tasks) {
		m.Tasks = append(m.Tasks, d.tasks[id])
	}
	return m
}

// Look implements agent.Hands.
func (h *hands) Look(id cluster.ID) {
	if h.node.alive(h.life) {
		h.node.look(id)
	}
}
