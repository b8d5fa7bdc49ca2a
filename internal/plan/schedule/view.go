package schedule

import (
	"cmp"
	"slices"

	"baton/internal/model/cluster"
	"baton/internal/model/spec"
	"baton/internal/plan/ipam"
)

// View is the scheduler's accounting of the cluster, kept current by Put and Remove calls.
type View struct {
	nodes   []*node // sorted by id once sorted is true
	sorted  bool
	byID    map[cluster.ID]*node
	tasks   map[cluster.ID]charge
	volumes map[cluster.ID]*cluster.Volume
	// waiting are charges on nodes that are not known yet.
	waiting map[cluster.ID]map[cluster.ID]struct{}
	// failures are the times of recent failures by node and service, oldest first.
	failures map[cluster.ID]map[cluster.ID][]failure
	zoned    int // nodes with a zone label
}

// node is one node with what is taken of it.
type node struct {
	*cluster.Node
	cpu      spec.MilliCPU // reserved
	memory   spec.Bytes
	ports    ipam.Ports
	services map[cluster.ID]int // tasks by service
	total    int
	images   map[string]struct{}
}

// charge is what one task takes of its node.
type charge struct {
	node, service cluster.ID
	cpu           spec.MilliCPU
	memory        spec.Bytes
	ports         []cluster.HostPort
	ended         bool // counted as a failure already
}

// NewView returns a view of an empty cluster.
func NewView() *View {
	return &View{
		byID:    make(map[cluster.ID]*node),
		tasks:   make(map[cluster.ID]charge),
		volumes: make(map[cluster.ID]*cluster.Volume),
		waiting: make(map[cluster.ID]map[cluster.ID]struct{}), failures: make(map[cluster.ID]map[cluster.ID][]failure),
	}
}

// PutNode adds or replaces a node; what its tasks take of it stays.
func (v *View) PutNode(n *cluster.Node) {
	have, ok := v.byID[n.ID]
	if !ok {
		have = &node{services: make(map[cluster.ID]int)}
		v.byID[n.ID] = have
		v.nodes, v.sorted = append(v.nodes, have), false
	}
	if have.Node == nil || !slices.Equal(have.Description.Images, n.Description.Images) {
		have.images = make(map[string]struct{}, len(n.Description.Images))
		for _, image := range n.Description.Images {
			have.images[image] = struct{}{}
		}
	}
	if have.Node != nil && have.Labels[zoneLabel] != "" {
		v.zoned--
	}
	if n.Labels[zoneLabel] != "" {
		v.zoned++
	}
	have.Node = n
	if !ok {
		for id := range v.waiting[n.ID] {
			v.add(id, v.tasks[id], 1)
		}
		delete(v.waiting, n.ID)
	}
}

// RemoveNode forgets a node. Tasks on it keep their charges for the case that it comes back.
func (v *View) RemoveNode(id cluster.ID) {
	n, ok := v.byID[id]
	if !ok {
		return
	}
	delete(v.byID, id)
	delete(v.failures, id)
	if n.Labels[zoneLabel] != "" {
		v.zoned--
	}
	v.nodes = slices.DeleteFunc(v.nodes, func(m *node) bool { return m == n })
	for task, c := range v.tasks {
		if c.node == id && !c.ended {
			v.wait(id, task)
		}
	}
}

func (v *View) wait(node, task cluster.ID) {
	if v.waiting[node] == nil {
		v.waiting[node] = make(map[cluster.ID]struct{})
	}
	v.waiting[node][task] = struct{}{}
}

// PutTask charges a task, of the spec of its revision, to its node; one that is not placed yet or has ended takes nothing.
// A task that ended by itself with a failure counts against its node for the service.
func (v *View) PutTask(t *cluster.Task, s *spec.Service) {
	old, known := v.tasks[t.ID]
	if known && !old.ended {
		v.discharge(t.ID, old)
	}
	if t.Node.IsZero() || t.Observed == cluster.ObservedPending {
		delete(v.tasks, t.ID)
		return
	}
	c := charge{node: t.Node, service: t.Service, ended: t.Observed.Terminal()}
	if c.ended {
		if !known || !old.ended { // a new leader learns of the failures before its time from the history that is stored
			v.fail(t)
		}
		v.tasks[t.ID] = c
		return
	}
	c.cpu, c.memory, c.ports = s.Resources.Reservations.CPU, s.Resources.Reservations.Memory, hostPorts(s)
	v.charge(t.ID, c)
}

// RemoveTask forgets a task.
func (v *View) RemoveTask(id cluster.ID) {
	if c, ok := v.tasks[id]; ok {
		if !c.ended {
			v.discharge(id, c)
		}
		delete(v.tasks, id)
	}
}

// PutVolume adds or replaces a volume.
func (v *View) PutVolume(vol *cluster.Volume) { v.volumes[vol.ID] = vol }

// RemoveVolume forgets a volume.
func (v *View) RemoveVolume(id cluster.ID) { delete(v.volumes, id) }

// Len is the number of nodes.
func (v *View) Len() int { return len(v.nodes) }

// Free returns what is not reserved of a node.
func (v *View) Free(id cluster.ID) (cpu spec.MilliCPU, memory spec.Bytes) {
	if n, ok := v.byID[id]; ok {
		return n.Description.CPU - n.cpu, n.Description.Memory - n.memory
	}
	return 0, 0
}

func (v *View) charge(task cluster.ID, c charge) {
	v.tasks[task] = c
	if _, ok := v.byID[c.node]; !ok {
		v.wait(c.node, task)
		return
	}
	v.add(task, c, 1)
}

func (v *View) discharge(task cluster.ID, c charge) {
	if _, ok := v.byID[c.node]; ok {
		v.add(task, c, -1)
		return
	}
	delete(v.waiting[c.node], task)
	if len(v.waiting[c.node]) == 0 {
		delete(v.waiting, c.node)
	}
}

// add moves a node's accounts by one charge, up (1) or down (-1).
func (v *View) add(task cluster.ID, c charge, sign int) {
	n := v.byID[c.node]
	n.cpu += spec.MilliCPU(sign) * c.cpu
	n.memory += spec.Bytes(sign) * c.memory
	n.total += sign
	n.services[c.service] += sign
	if n.services[c.service] == 0 {
		delete(n.services, c.service)
	}
	if sign < 0 {
		n.ports.Release(task, c.ports)
		return
	}
	// Two tasks can hold one port only in what was stored by hand; the first keeps it.
	_ = n.ports.Take(task, c.ports)
}

// attribute is the node's value for a constraint or spread key.
func (n *node) attribute(key string) string {
	switch key {
	case spec.AttrID:
		return n.ID.String()
	case spec.AttrHostname:
		return cmp.Or(n.Description.Hostname, n.Name)
	case spec.AttrRole:
		if n.Manager {
			return "manager"
		}
		return "worker"
	case spec.AttrOS:
		return n.Description.OS
	case spec.AttrArch:
		return n.Description.Arch
	}
	if len(key) > len(spec.AttrLabelPrefix) && key[:len(spec.AttrLabelPrefix)] == spec.AttrLabelPrefix {
		return n.Labels[key[len(spec.AttrLabelPrefix):]]
	}
	return ""
}

// sort gives the nodes their fixed order, so that equal views give equal placements however they came about.
func (v *View) sort() {
	if !v.sorted {
		slices.SortFunc(v.nodes, func(a, b *node) int { return slices.Compare(a.ID[:], b.ID[:]) })
		v.sorted = true
	}
}

// hostPorts are the node's ports that a task of the service occupies.
func hostPorts(s *spec.Service) []cluster.HostPort {
	var ports []cluster.HostPort
	for _, p := range s.Ports {
		if p.Mode == spec.PortHost && p.Published != 0 {
			ports = append(ports, cluster.HostPort{Port: p.Published, Protocol: cmp.Or(p.Protocol, "tcp")})
		}
	}
	return ports
}
