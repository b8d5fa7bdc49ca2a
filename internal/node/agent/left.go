package agent

import (
	"net/netip"

	"baton/internal/model/spec"
	"baton/internal/wire/agentapi"
)

// left is what tasks that the managers count as ended still occupy on this machine: a node that was given up comes back with
// its containers running, and meanwhile their addresses, ports and volumes may have been promised to others.
type left struct {
	everything bool // a container of which nothing is known
	addresses  map[netip.Addr]bool
	ports      map[hostPort]bool
	volumes    map[string]bool
}

type hostPort struct {
	port     uint16
	protocol string
}

func hostPorts(s *spec.Service) (ports []hostPort) {
	for _, p := range s.Ports {
		if p.Mode == spec.PortHost {
			ports = append(ports, hostPort{p.Published, p.Protocol})
		}
	}
	return ports
}

// occupies reports whether something of the task is on the machine, or may be.
func occupies(t TaskView) bool {
	unsure := t.Local.Busy || !t.Local.RetryAt.IsZero() // under way, or broken off somewhere
	return t.Have != nil || t.Local.Attached || unsure && !t.Local.Cleaned
}

// leftOf gathers what those of the tasks occupy that which is true for.
func leftOf(tasks []TaskView, which func(TaskView) bool) left {
	l := left{addresses: make(map[netip.Addr]bool), ports: make(map[hostPort]bool), volumes: make(map[string]bool)}
	for _, t := range tasks {
		if !which(t) || !occupies(t) {
			continue
		}
		if t.Last == nil {
			l.everything = true
			continue
		}
		l.addresses[t.Last.Task.Address] = t.Last.Task.Address.IsValid()
		for _, p := range hostPorts(t.Last.Spec) {
			l.ports[p] = true
		}
		for _, name := range t.Last.Volumes {
			l.volumes[name] = true
		}
	}
	return l
}

// holds reports whether a task must wait for what is left.
func (l left) holds(as *agentapi.Assignment) bool {
	held := l.everything || l.addresses[as.Task.Address]
	for _, p := range hostPorts(as.Spec) {
		held = held || l.ports[p]
	}
	for _, name := range as.Volumes {
		held = held || l.volumes[name]
	}
	return held
}

// uses reports whether a task, wanted or left, may still have the volume mounted.
func uses(tasks []TaskView, volume string) bool {
	for _, t := range tasks {
		if !occupies(t) {
			continue
		}
		if t.Last == nil {
			return true
		}
		for _, name := range t.Last.Volumes {
			if name == volume {
				return true
			}
		}
	}
	return false
}
