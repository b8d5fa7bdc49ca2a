package schedule

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"baton/internal/model/cluster"
	"baton/internal/model/spec"
)

// zoneLabel is the label over whose values services spread without asking for it, once every node has it.
const zoneLabel = "zone"

const (
	// loadPerTask is what a task weighs on its node beside what it reserves: most reserve nothing.
	loadPerTask = 0.01
	// loadMargin is how much less loaded the new node must be, with the task, than the old one is. Moving costs a start.
	loadMargin = 0.03
	// sourcesMax bounds the nodes of a service that a move is looked for from: the fullest ones.
	sourcesMax = 8
)

// spread is over what the tasks of a service are divided: what it asks for, else zones where every node is in one.
func (v *View) spread(s *spec.Service) []string {
	switch {
	case len(s.Placement.Spread) > 0 || s.Placement.Strategy == spec.StrategyPack || s.Mode == spec.Global:
		return s.Placement.Spread
	case v.zoned > 0 && v.zoned == len(v.byID):
		return []string{spec.AttrLabelPrefix + zoneLabel}
	}
	return nil
}

// RebalanceLimits bound what one Rebalance moves.
type RebalanceLimits struct {
	PerService, Cluster int
	// Steady is how long a node must have been ready before anything is moved to it, unless it was when Asked.
	Steady time.Duration
	// Asked is when somebody asked for the moves; zero: nobody did.
	Asked time.Time
}

// Move is a running task that is better placed elsewhere.
type Move struct {
	Task     *cluster.Task
	Service  *cluster.Service
	From, To cluster.ID
	// Reason says what is better then.
	Reason string

	rank int     // what is better: 0 a spread preference, 1 the nodes of the service, 2 the load of the nodes
	gain float64 // by how much
}

// Rebalance chooses, among the tasks of the groups, those whose move makes the cluster more even, best first: a part of a
// spread preference or a node that has at least two tasks of the service fewer, or a node that is less loaded by a margin.
// No move makes a part more uneven that comes before what it improves, so that repeated moves come to an end. The view is
// as before. The caller passes only services and tasks that may be moved; each Group's Now ages nodes and failures.
func Rebalance(view *View, groups []Group, limits RebalanceLimits) []Move {
	view.sort()
	var moves []Move
	sources := make(map[cluster.ID]bool) // what they had is free only once the move is over
	perService := make(map[cluster.ID]int)
	var undo []func()
	for len(moves) < limits.Cluster {
		var best *Move
		for _, g := range groups {
			if perService[g.Service.ID] >= limits.PerService || g.Revision.Spec.Placement.Strategy == spec.StrategyPack {
				continue
			}
			m := newMover(view, g, limits, sources).best(moves)
			if m != nil && (best == nil || m.before(best)) {
				best = m
			}
		}
		if best == nil {
			break
		}
		moves = append(moves, *best)
		perService[best.Service.ID]++
		sources[best.From] = true
		old := view.tasks[best.Task.ID]
		moved := old
		moved.node = best.To
		view.discharge(best.Task.ID, old)
		view.charge(best.Task.ID, moved)
		undo = append(undo, func() { view.discharge(best.Task.ID, moved); view.charge(best.Task.ID, old) })
	}
	for _, back := range slices.Backward(undo) {
		back()
	}
	return moves
}

func (m *Move) before(o *Move) bool {
	return cmp.Or(m.rank-o.rank, cmp.Compare(o.gain, m.gain)) < 0
}

// mover looks for the best move of one service.
type mover struct {
	*assignment
	limits  RebalanceLimits
	sources map[cluster.ID]bool
	parts   map[string]int // tasks of the service by path of spread values
}

func newMover(view *View, g Group, limits RebalanceLimits, sources map[cluster.ID]bool) *mover {
	m := &mover{assignment: newAssignment(view, g), limits: limits, sources: sources, parts: make(map[string]int)}
	if len(m.keys) > 0 {
		for _, n := range view.nodes {
			for i := range m.keys {
				m.parts[m.path(n, i)] += n.services[g.Service.ID]
			}
		}
	}
	return m
}

// path names the part that a node is in, down to a level.
func (m *mover) path(n *node, level int) string {
	var b strings.Builder
	for _, key := range m.keys[:level+1] {
		b.WriteString(n.attribute(key) + "\x00")
	}
	return b.String()
}

// best is the best move, nil when none is worth it.
func (m *mover) best(done []Move) *Move {
	tasks := make(map[cluster.ID]*cluster.Task) // the youngest of each node: it has the least to lose
	for _, t := range m.group.Tasks {
		moved := slices.ContainsFunc(done, func(d Move) bool { return d.Task.ID == t.ID })
		have := tasks[t.Node]
		if !moved && m.view.byID[t.Node] != nil && (have == nil || cmp.Or(have.ReadySince.Compare(t.ReadySince), slices.Compare(have.ID[:], t.ID[:])) < 0) {
			tasks[t.Node] = t
		}
	}
	from := make([]*node, 0, len(tasks))
	for id := range tasks {
		from = append(from, m.view.byID[id])
	}
	service := m.group.Service.ID
	slices.SortFunc(from, func(a, b *node) int {
		return cmp.Or(m.crowd(b)-m.crowd(a), b.services[service]-a.services[service], cmp.Compare(b.load(), a.load()), slices.Compare(a.ID[:], b.ID[:]))
	})
	var best *Move
	for _, to := range m.view.nodes {
		if !m.takes(to) {
			continue
		}
		for _, n := range from[:min(len(from), sourcesMax)] {
			if c := m.compare(n, to); c != nil && (best == nil || c.before(best)) {
				c.Task = tasks[n.ID]
				best = c
			}
		}
	}
	return best
}

// crowd is how many tasks the service has in the topmost part that the node is in.
func (m *mover) crowd(n *node) int {
	if len(m.keys) == 0 {
		return 0
	}
	return m.parts[m.path(n, 0)]
}

// takes reports whether a task may be moved to a node.
func (m *mover) takes(n *node) bool {
	young := n.StateSince.After(m.limits.Asked) && m.group.Now.Sub(n.StateSince) < m.limits.Steady
	if m.sources[n.ID] || young {
		return false
	}
	if m.suspicion(n) > 0 || m.failed(n) > 0 {
		return false
	}
	_, refused := m.need.refuse(n)
	return !refused
}

// compare says what a move between two nodes makes better, nil when that is nothing.
func (m *mover) compare(from, to *node) *Move {
	if from == to {
		return nil
	}
	out := &Move{Service: m.group.Service, From: from.ID, To: to.ID}
	for i, key := range m.keys {
		a, b := m.path(from, i), m.path(to, i)
		if a == b {
			continue
		}
		x, y := m.parts[a], m.parts[b]
		if x <= y {
			return nil
		}
		if x-y >= 2 {
			out.gain = float64(x - y)
			out.Reason = fmt.Sprintf("%s %s has %s of the service, %s has %d", key, from.attribute(key), count(x, "task", "tasks"), to.attribute(key), y)
			return out
		}
	}
	x, y := from.services[m.group.Service.ID], to.services[m.group.Service.ID]
	if x <= y {
		return nil
	}
	if x-y >= 2 {
		out.rank, out.gain = 1, float64(x-y)
		out.Reason = fmt.Sprintf("%s has %s of the service, %s has %d", from.Name, count(x, "task", "tasks"), to.Name, y)
		return out
	}
	after := to.loadWith(m.charges, 1)
	if from.load()-after < loadMargin {
		return nil
	}
	out.rank, out.gain = 2, from.load()-after
	out.Reason = fmt.Sprintf("%s has %s and %d%% of it reserved, %s has %d and %d%%", from.Name, count(from.total, "task", "tasks"), from.reserved(), to.Name, to.total, to.reserved())
	return out
}

// load is how full a node is: what is reserved of it, and a little for each task.
func (n *node) load() float64 { return n.loadWith(charge{}, 0) }

func (n *node) loadWith(c charge, tasks int) float64 {
	return (fraction(int64(n.cpu+c.cpu), int64(n.Description.CPU))+fraction(int64(n.memory+c.memory), int64(n.Description.Memory)))/2 +
		loadPerTask*float64(n.total+tasks)
}

// reserved is the share of a node that is reserved, in percent.
func (n *node) reserved() int { return int(100*(n.load()-loadPerTask*float64(n.total)) + 0.5) }
