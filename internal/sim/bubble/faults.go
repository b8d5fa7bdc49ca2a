package bubble

import (
	"context"
	"fmt"
	"slices"
	"time"

	"baton/internal/model/cluster"
	"baton/internal/wire/agentapi"
	"baton/internal/wire/rpc"
	"baton/internal/wire/transport"
)

// fault is something that goes wrong for a while; undo ends it.
type fault struct {
	name   string
	weight int
	do     func(w *World) (undo func())
}

// faults are all that can happen.
var faults = []fault{
	{"kill manager", 3, func(w *World) func() { return w.restarts(w.anyOf(w.managers()), (*machine).kill) }},
	{"kill leader", 3, func(w *World) func() { return w.restarts(w.leader(), (*machine).kill) }},
	{"power off manager", 2, func(w *World) func() { return w.restarts(w.anyOf(w.managers()), (*machine).powerOff) }},
	{"kill agent", 6, func(w *World) func() { return w.restarts(w.anyOf(w.workers()), (*machine).kill) }},
	{"power off worker", 6, func(w *World) func() { return w.restarts(w.anyOf(w.workers()), (*machine).powerOff) }},
	{"cut worker off", 6, func(w *World) func() { return w.isolate(w.anyOf(w.workers()), true, true) }},
	{"worker hears nothing", 3, func(w *World) func() { return w.isolate(w.anyOf(w.workers()), true, false) }},
	{"worker is not heard", 3, func(w *World) func() { return w.isolate(w.anyOf(w.workers()), false, true) }},
	{"cut leader off", 3, func(w *World) func() { return w.isolate(w.leader(), true, true) }},
	{"leader hears nothing", 2, func(w *World) func() { return w.isolate(w.leader(), true, false) }},
	{"leader is not heard", 2, func(w *World) func() { return w.isolate(w.leader(), false, true) }},
	{"halves", 2, (*World).halves},
	{"stalled disk of leader", 3, func(w *World) func() { return stall(w.leader()) }},
	{"clock jump", 2, (*World).jumpClock},
	{"crash container", 8, (*World).crashContainer},
	{"second session", 3, (*World).secondSession},
	{"wrong reports", 3, (*World).wrongReports},
}

// anyOf picks a machine, nil of none.
func (w *World) anyOf(list []*machine) *machine {
	if len(list) == 0 {
		return nil
	}
	return list[w.rng.IntN(len(list))]
}

// workers are those that run.
func (w *World) workers() []*machine {
	var out []*machine
	for _, m := range w.all[w.cfg.Managers:] {
		if m.up {
			out = append(out, m)
		}
	}
	return out
}

// restarts ends a machine and starts it again at the end of the fault.
func (w *World) restarts(m *machine, end func(*machine)) func() {
	if m == nil {
		return nil
	}
	end(m)
	return func() {
		w.net.Start(m.name)
		if err := m.start(false); err != nil {
			w.t.Errorf("restart: %v", err)
		}
	}
}

// isolate cuts one direction or both between a machine and all others.
func (w *World) isolate(m *machine, in, out bool) func() {
	if m == nil {
		return nil
	}
	for _, o := range w.all {
		if o == m {
			continue
		}
		if in {
			w.net.Cut(o.name, m.name)
		}
		if out {
			w.net.Cut(m.name, o.name)
		}
	}
	return w.net.Heal
}

// halves cuts the cluster in two.
func (w *World) halves() func() {
	side := make(map[*machine]bool)
	for _, m := range w.all {
		side[m] = w.rng.IntN(2) == 0
	}
	for _, a := range w.all {
		for _, b := range w.all {
			if side[a] != side[b] {
				w.net.Cut(a.name, b.name)
			}
		}
	}
	return w.net.Heal
}

func stall(m *machine) func() {
	if m == nil {
		return nil
	}
	m.stalled.Store(true)
	return func() { m.stalled.Store(false) }
}

// jumpClock sets the clock of a manager back or forth, for good.
func (w *World) jumpClock() func() {
	m := w.anyOf(w.managers())
	if m == nil {
		return nil
	}
	jump := time.Duration(w.rng.Int64N(int64(40*time.Second))) - 20*time.Second
	m.jump.Store(int64(jump))
	return func() { m.jump.Store(0) }
}

func (w *World) crashContainer() func() {
	for range 10 {
		m := w.anyOf(w.workers())
		if m == nil {
			return nil
		}
		if list := m.box.running(); len(list) > 0 && m.box.crash(list[w.rng.IntN(len(list))].task) {
			break
		}
	}
	return nil
}

// secondSession opens another session for a node that has one, as a copy of the machine would, or a duplicated connection;
// it numbers it lower or higher, at random.
func (w *World) secondSession() func() {
	number := uint64(1)
	if w.rng.IntN(2) == 0 {
		number = uint64(time.Now().Add(time.Millisecond).UnixNano())
	}
	return w.pretend(number, func(agentapi.Update) []agentapi.Report { return nil })
}

// wrongReports lets a node say what is not so: that tasks which it does not have run, that its own have gone back, and that
// it follows versions which do not exist.
func (w *World) wrongReports() func() {
	var others []cluster.ID
	for _, m := range w.workers() {
		for _, c := range m.box.running() {
			others = append(others, c.task)
		}
	}
	slices.SortFunc(others, sameID)
	return w.pretend(uint64(time.Now().Add(time.Millisecond).UnixNano()), func(agentapi.Update) []agentapi.Report {
		var out []agentapi.Report
		for _, id := range others[:min(len(others), 20)] {
			out = append(out, agentapi.Report{Tasks: []cluster.Status{
				{Task: id, Observed: cluster.ObservedPreparing, At: time.Now()},
				{Task: id, Observed: cluster.ObservedFailed, Exit: &cluster.Exit{Code: 99}, Reason: "a lie", At: time.Now()},
			}})
		}
		return out
	})
}

// pretend speaks as a worker, beside its own agent, for a while. The worker that it speaks for holds no task, so that what it
// says of its own tasks cannot be true by chance.
func (w *World) pretend(number uint64, say func(agentapi.Update) []agentapi.Report) func() {
	m, to := w.anyOf(w.workers()), w.anyOf(w.managers())
	if m == nil || to == nil || len(m.box.running()) > 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	d := &transport.Dialer{Network: w.net.Host(m.name), Credentials: m.creds}
	conn, err := d.Dial(ctx, to.address(), transport.ProtocolAgent, transport.NameManager)
	if err != nil {
		cancel()
		return nil
	}
	client := rpc.NewClientOn(conn)
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer cancel()
		defer client.Close()
		s, err := rpc.Open[agentapi.Update, agentapi.FromAgent](ctx, client, agentapi.CallService, agentapi.CallSession)
		if err != nil {
			return
		}
		h := &agentapi.Hello{Node: m.id, Name: m.name, Session: number, Description: cluster.NodeDescription{Hostname: m.name, Version: "sim", Level: cluster.LevelNewest(), CPU: 8000, Memory: 16 << 30, Listen: m.address()}}
		if s.Send(agentapi.FromAgent{Hello: h}) != nil {
			return
		}
		for beat := uint64(1); ; beat++ {
			u, err := s.Recv()
			if err != nil {
				return
			}
			for _, r := range append(say(u), agentapi.Report{Beat: beat}) {
				if s.Send(agentapi.FromAgent{Report: &r}) != nil {
					return
				}
			}
		}
	}()
	return func() { cancel(); <-done }
}

// ended is a fault that goes on.
type ended struct {
	at   time.Time
	name string
	undo func()
}

// swarm lets faults happen, a few at a time, while users work. A majority of the managers is left alone: what happens
// without one is that nothing does.
func (w *World) swarm(ctx context.Context) {
	var under []ended
	end := time.Now().Add(w.cfg.Faults)
	for step := 0; time.Now().Before(end); step++ {
		time.Sleep(time.Duration(100+w.rng.IntN(900)) * time.Millisecond)
		under = slices.DeleteFunc(under, func(f ended) bool {
			if time.Now().Before(f.at) {
				return false
			}
			w.log.Info("fault ends", "fault", f.name)
			f.undo()
			return true
		})
		w.check()
		w.write(ctx)
		w.want()
		if step%8 == 0 {
			w.deploy(ctx, fmt.Sprintf("s%d", w.rng.IntN(3)))
		}
		if len(under) >= 4 {
			continue
		}
		f := w.draw()
		if f.name == "" || w.risky(under, f.name) {
			continue
		}
		w.log.Info("fault", "fault", f.name)
		if undo := f.do(w); undo != nil {
			under = append(under, ended{at: time.Now().Add(time.Duration(1+w.rng.IntN(20)) * time.Second), name: f.name, undo: undo})
		}
	}
	for _, f := range under {
		f.undo()
	}
	w.net.Heal()
	for _, m := range w.all {
		m.jump.Store(0)
	}
}

// risky reports whether a second fault among managers would come on top of one.
func (w *World) risky(under []ended, name string) bool {
	touches := func(s string) bool {
		for _, word := range []string{"manager", "leader", "halves", "clock"} {
			if containsWord(s, word) {
				return true
			}
		}
		return false
	}
	return touches(name) && slices.ContainsFunc(under, func(f ended) bool { return touches(f.name) })
}

// draw picks a kind of fault by weight.
func (w *World) draw() fault {
	total := 0
	allowed := func(f fault) bool { return len(w.cfg.Kinds) == 0 || slices.Contains(w.cfg.Kinds, f.name) }
	for _, f := range faults {
		if allowed(f) {
			total += f.weight
		}
	}
	if total == 0 {
		return fault{}
	}
	n := w.rng.IntN(total)
	for _, f := range faults {
		if !allowed(f) {
			continue
		}
		if n -= f.weight; n < 0 {
			return f
		}
	}
	return fault{}
}
