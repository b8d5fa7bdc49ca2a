package schedule

import (
	"cmp"
	"container/heap"
	"math"
	"math/bits"
	"math/rand"
	"slices"

	"baton/internal/model/cluster"
	"baton/internal/model/spec"
)

// Sampling: a choice among this many nodes that fit is as good as one among all, and far cheaper in a big cluster.
const (
	sampleMin    = 100
	samplePerBit = 20 // times log2 of the number of nodes
)

// The weights of the parts of a score.
const (
	weightSpread   = 3.0
	weightResource = 2.0
	weightHealth   = 2.0
	weightLocality = 1.0
)

// Assign places the tasks of a group in order and charges each placement to the view. There is one Placement per task, in
// the same order; one with a zero Node says why no node fits. rng breaks ties and picks the sample; it must not be nil.
func Assign(view *View, group Group, rng *rand.Rand) []Placement {
	view.sort()
	a := newAssignment(view, group)
	if len(view.nodes) > 0 {
		a.offset = rng.Intn(len(view.nodes))
	}
	a.root = a.tree()
	out := make([]Placement, 0, len(group.Tasks))
	var refused *Placement // once nothing fits nothing will: each placement only takes
	for _, t := range group.Tasks {
		var p Placement
		switch {
		case !t.Node.IsZero():
			p = a.pinned(t, t.Node)
		case a.prefers(t):
			p = a.pinned(t, a.group.Prefer[t.ID])
			a.root.doubt() // its node may be on the heap with a rank that holds no longer
			a.note(p.Node)
		case refused != nil:
			p = *refused
			p.Refusals = slices.Clone(refused.Refusals)
		default:
			p = a.place()
			if p.Node.IsZero() {
				refused = &p
			}
		}
		p.Task, p.Avoided = t, a.avoided
		if !p.Node.IsZero() {
			a.take(t, p.Node)
		}
		out = append(out, p)
	}
	return out
}

// assignment is the state of one Assign.
type assignment struct {
	view    *View
	group   Group
	spec    *spec.Service
	need    need
	size    int // of the sample
	offset  int
	root    *branch
	keys    []string // of the spread preferences
	charges charge
	avoided []Suspect
}

func newAssignment(view *View, group Group) *assignment {
	s := &group.Revision.Spec
	size := max(sampleMin, samplePerBit*bits.Len(uint(len(view.nodes))), len(group.Tasks))
	return &assignment{
		view: view, group: group, spec: s, need: newNeed(view, group), size: size, keys: view.spread(s), avoided: view.Suspects(group.Now),
		charges: charge{
			service: group.Service.ID, cpu: s.Resources.Reservations.CPU,
			memory: s.Resources.Reservations.Memory, ports: hostPorts(s),
		},
	}
}

// branch is one value of a spread preference with the nodes below it. The root has no value; leaves have nodes.
type branch struct {
	value    string
	tasks    int // of the service, on all nodes below
	children []*branch
	nodes    []*node
	scanned  int // how many of nodes were looked at
	heap     candidates
	full     bool // nothing below fits any more
}

// tree divides the nodes by the spread preferences, and counts the service's tasks in each part.
func (a *assignment) tree() *branch {
	root := &branch{}
	if len(a.keys) == 0 {
		root.nodes = a.view.nodes
		return root
	}
	for _, n := range a.view.nodes {
		at := root
		// A node that can never take the task is no reason to treat its part of the cluster as empty.
		count := n.services[a.group.Service.ID]
		for _, key := range a.keys {
			at.tasks += count
			at = at.child(n.attribute(key))
		}
		at.tasks += count
		at.nodes = append(at.nodes, n)
	}
	return root
}

func (b *branch) child(value string) *branch {
	i, ok := slices.BinarySearchFunc(b.children, value, func(c *branch, v string) int { return cmp.Compare(c.value, v) })
	if !ok {
		b.children = slices.Insert(b.children, i, &branch{value: value})
	}
	return b.children[i]
}

// place chooses a node for one task, or explains why there is none.
func (a *assignment) place() Placement {
	if c := a.descend(a.root); c != nil {
		a.note(c.node.ID)
		return Placement{
			Node: c.node.ID, NodeName: c.node.Name, Score: c.score, Parts: a.parts(c.node),
			Nodes: a.root.looked(), Fit: a.root.fit(),
		}
	}
	p := Placement{Nodes: len(a.view.nodes)}
	var r refusals
	for _, n := range a.view.nodes {
		if refusal, ok := a.need.refuse(n); ok {
			r.add(refusal)
		}
	}
	p.Refusals = r.sorted()
	return p
}

// prefers reports whether the node that a task prefers can take it and has not failed it.
func (a *assignment) prefers(t *cluster.Task) bool {
	n, ok := a.view.byID[a.group.Prefer[t.ID]]
	if !ok {
		return false
	}
	_, refused := a.need.refuse(n)
	return !refused && !a.deferred(n)
}

// note counts a task that goes to a node in the parts that the node is in.
func (a *assignment) note(id cluster.ID) {
	n, at := a.view.byID[id], a.root
	at.tasks++
	for _, key := range a.keys {
		at = at.child(n.attribute(key))
		at.tasks++
	}
}

// descend takes the part with the fewest tasks first, level by level, and returns the best node there; among parts with
// equally many, the best node of them all, or every service of one task would go to the first zone. A part where every
// node that fits is one to avoid comes after all others: an even spread is worth nothing where nothing runs.
func (a *assignment) descend(b *branch) *candidate {
	if b.full {
		return nil
	}
	if len(b.children) == 0 {
		c := a.best(b)
		b.full = c == nil
		return c
	}
	order := slices.Clone(b.children)
	slices.SortStableFunc(order, func(x, y *branch) int { return x.tasks - y.tasks })
	var avoided *candidate
	for len(order) > 0 {
		var best *candidate
		level := order[0].tasks
		for len(order) > 0 && order[0].tasks == level {
			if c := a.descend(order[0]); c != nil && (best == nil || c.before(best)) {
				best = c
			}
			order = order[1:]
		}
		if best != nil && !best.deferred {
			return best
		}
		if avoided == nil {
			avoided = best
		}
	}
	b.full = avoided == nil
	return avoided
}

// best returns the best candidate of a leaf. It stays on the heap; the next call sees what was charged to it.
func (a *assignment) best(b *branch) *candidate {
	for {
		for len(b.heap) > 0 {
			top := b.heap[0]
			if top.stale {
				if _, refused := a.need.refuse(top.node); refused {
					heap.Pop(&b.heap)
					continue
				}
				a.rate(top)
				heap.Fix(&b.heap, 0)
				if b.heap[0] != top {
					continue
				}
			}
			top.stale = true
			return top
		}
		if !a.sample(b) {
			return nil
		}
	}
}

// sample looks at more nodes of a leaf until enough of them fit, and reports whether any does.
func (a *assignment) sample(b *branch) bool {
	for b.scanned < len(b.nodes) && len(b.heap) < a.size {
		n := b.nodes[(a.offset+b.scanned)%len(b.nodes)]
		b.scanned++
		if _, refused := a.need.refuse(n); refused {
			continue
		}
		c := &candidate{node: n, rank: b.scanned}
		a.rate(c)
		heap.Push(&b.heap, c)
	}
	return len(b.heap) > 0
}

// doubt makes every candidate below be checked again before it is chosen.
func (b *branch) doubt() {
	for _, c := range b.heap {
		c.stale = true
	}
	for _, c := range b.children {
		c.doubt()
	}
}

func (b *branch) looked() int {
	sum := b.scanned
	for _, c := range b.children {
		sum += c.looked()
	}
	return sum
}

func (b *branch) fit() int {
	sum := len(b.heap)
	for _, c := range b.children {
		sum += c.fit()
	}
	return sum
}

// pinned checks the one node that a task is to go to.
func (a *assignment) pinned(t *cluster.Task, node cluster.ID) Placement {
	p := Placement{Nodes: 1}
	n, ok := a.view.byID[node]
	if !ok {
		p.Refusals = []Refusal{{Cause: CauseState, Count: 1, What: "gone"}}
		return p
	}
	if r, refused := a.need.refuse(n); refused {
		r.Count = 1
		p.Refusals = []Refusal{r}
		return p
	}
	c := &candidate{node: n}
	a.rate(c)
	p.Node, p.NodeName, p.Score, p.Parts, p.Fit = n.ID, n.Name, c.score, a.parts(n), 1
	return p
}

// take charges a placement to the view. The first task that uses a volume fixes the volume's place.
func (a *assignment) take(t *cluster.Task, id cluster.ID) {
	c := a.charges
	c.node = id
	if old, ok := a.view.tasks[t.ID]; ok && !t.ID.IsZero() && !old.ended {
		a.view.discharge(t.ID, old)
	}
	a.view.charge(t.ID, c)
	for i, vol := range a.need.volumes {
		if vol.Node.IsZero() {
			placed := cluster.Copy(vol)
			placed.Node = id
			a.need.volumes[i] = placed
			a.view.volumes[vol.ID] = placed
			a.root.doubt() // the other candidates fit no longer
		}
	}
}

// candidate is a node that fits, with its rank.
type candidate struct {
	node     *node
	deferred bool // the revision failed here again and again, or many did
	tasks    int  // of the service on the node; only counts with strategy spread
	total    int  // of all services, likewise: most tasks reserve nothing, and score the same anywhere
	score    float64
	rank     int  // order of the sample, breaks ties
	stale    bool // charged since it was rated
}

func (a *assignment) rate(c *candidate) {
	c.stale = false
	c.deferred = a.deferred(c.node)
	if a.spec.Placement.Strategy != spec.StrategyPack {
		c.tasks, c.total = c.node.services[a.group.Service.ID], c.node.total
	}
	var sum, weights float64
	for _, p := range a.parts(c.node) {
		sum += p.Value * p.Weight
		weights += p.Weight
	}
	c.score = sum / weights
}

// deferred reports whether a node comes after all others.
func (a *assignment) deferred(n *node) bool {
	return a.suspicion(n) > 0 || a.failed(n) >= failuresDefer
}

// failed counts the recent failures of the group's revision on a node.
func (a *assignment) failed(n *node) int {
	return a.view.failedAs(n.ID, a.group.Revision, a.group.Service.ID, a.group.Now)
}

// suspicion is by how many failures the node stands out, 0 for most.
func (a *assignment) suspicion(n *node) int {
	for _, s := range a.avoided {
		if s.Node == n.ID {
			return s.Failures
		}
	}
	return 0
}

// parts rates a node in each respect.
func (a *assignment) parts(n *node) []Part {
	used := (fraction(int64(n.cpu+a.charges.cpu), int64(n.Description.CPU)) +
		fraction(int64(n.memory+a.charges.memory), int64(n.Description.Memory))) / 2
	resource := Part{Name: "balance", Value: 1 - used, Weight: weightResource}
	spread := Part{Name: "spread", Value: 1 / float64(1+n.services[a.group.Service.ID]), Weight: weightSpread}
	if a.spec.Placement.Strategy == spec.StrategyPack {
		resource = Part{Name: "pack", Value: used, Weight: weightResource + weightSpread}
		// Among equally full nodes the one with more tasks is the better one to fill up.
		spread = Part{Name: "company", Value: 1 - 1/float64(1+n.total), Weight: weightLocality}
	}
	health := Part{Name: "health", Value: 1 / float64(1+a.failed(n)+a.suspicion(n)), Weight: weightHealth}
	locality := Part{Name: "image", Weight: weightLocality}
	if _, ok := n.images[a.spec.Image]; ok {
		locality.Value = 1
	}
	return []Part{spread, resource, health, locality}
}

func fraction(part, whole int64) float64 {
	if whole <= 0 {
		return 0
	}
	return math.Min(1, float64(part)/float64(whole))
}

// before reports whether c is the better choice.
func (c *candidate) before(o *candidate) bool {
	switch {
	case c.deferred != o.deferred:
		return o.deferred
	case c.tasks != o.tasks:
		return c.tasks < o.tasks
	case c.score != o.score:
		return c.score > o.score
	case c.total != o.total:
		return c.total < o.total
	}
	return c.rank < o.rank
}

// candidates is a heap with the best node on top.
type candidates []*candidate

func (h candidates) Len() int           { return len(h) }
func (h candidates) Less(i, j int) bool { return h[i].before(h[j]) }
func (h candidates) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }

// Push implements heap.Interface.
func (h *candidates) Push(x any) { *h = append(*h, x.(*candidate)) }

// Pop implements heap.Interface.
func (h *candidates) Pop() any {
	old := *h
	last := old[len(old)-1]
	*h = old[:len(old)-1]
	return last
}
