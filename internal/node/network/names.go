package network

import (
	"net/netip"
	"slices"
	"strings"
	"sync"

	"baton/internal/model/cluster"
	"baton/internal/wire/agentapi"
)

// directory answers for the names of services. It does not change once made. Its indexes are made by the first question:
// on a large cluster most changes are followed by another before anybody asks.
type directory struct {
	services  []agentapi.Service
	byName    func() map[string][]entry
	byAddress func() map[netip.Addr][]entry
}

// entry is a service under one of its names.
type entry struct {
	service *agentapi.Service
	network cluster.ID // where it has the name; zero: on each of its networks
	tasks   bool       // the name stands for the tasks, not for the service address
}

// asker is the task that wants to know.
type asker struct {
	address  netip.Addr
	hostname string // lower case
	stack    string
	networks []cluster.ID
}

func newDirectory(s agentapi.NetworkState) *directory {
	d := &directory{services: s.Services}
	d.byName, d.byAddress = sync.OnceValue(d.indexNames), sync.OnceValue(d.indexAddresses)
	return d
}

func (d *directory) indexNames() map[string][]entry {
	index := make(map[string][]entry, 4*len(d.services))
	for i := range d.services {
		svc := &d.services[i]
		addName(index, svc.Name, entry{service: svc})
		for network, aliases := range svc.Networks {
			for _, alias := range aliases {
				addName(index, alias, entry{service: svc, network: network})
			}
		}
	}
	return index
}

// addName files a service under name, name.stack, tasks.name and tasks.name.stack.
func addName(index map[string][]entry, name string, e entry) {
	for _, tasks := range []bool{false, true} {
		e.tasks = tasks
		prefix := ""
		if tasks {
			prefix = "tasks."
		}
		full := strings.ToLower(prefix + name)
		index[full] = append(index[full], e)
		if e.service.Stack != "" {
			full += "." + strings.ToLower(e.service.Stack)
			index[full] = append(index[full], e)
		}
	}
}

func (d *directory) indexAddresses() map[netip.Addr][]entry {
	index := make(map[netip.Addr][]entry, len(d.services))
	for i := range d.services {
		svc := &d.services[i]
		if svc.Address.IsValid() {
			index[svc.Address] = append(index[svc.Address], entry{service: svc})
		}
		for _, e := range svc.Endpoints {
			index[e.Address] = append(index[e.Address], entry{service: svc, tasks: true})
		}
	}
	return index
}

// lookup returns the addresses of a name, lower case and without the final dot, as a task sees it. Known is true when the
// name exists for the task even if nothing is ready behind it.
func (d *directory) lookup(who asker, name string) (addresses []netip.Addr, known bool) {
	if who.hostname != "" && name == who.hostname {
		return []netip.Addr{who.address}, true
	}
	var mine, others []entry
	for _, e := range d.byName()[name] {
		switch {
		case !e.visible(who.networks):
		case e.service.Stack == who.stack:
			mine = append(mine, e)
		default:
			others = append(others, e)
		}
	}
	found := mine
	if len(found) == 0 {
		found = others
	}
	for _, e := range found {
		addresses = append(addresses, e.addresses()...)
	}
	slices.SortFunc(addresses, netip.Addr.Compare)
	return slices.Compact(addresses), len(found) > 0
}

// reverse returns the names of an address.
func (d *directory) reverse(who asker, a netip.Addr) []string {
	if a == who.address && who.hostname != "" {
		return []string{who.hostname}
	}
	var names []string
	for _, e := range d.byAddress()[a] {
		if !e.visible(who.networks) {
			continue
		}
		name := e.service.Name
		if e.service.Stack != "" {
			name += "." + e.service.Stack
		}
		if e.tasks {
			name = "tasks." + name
		}
		names = append(names, strings.ToLower(name))
	}
	return names
}

func (e entry) visible(networks []cluster.ID) bool {
	if !e.network.IsZero() {
		return slices.Contains(networks, e.network)
	}
	for id := range e.service.Networks {
		if slices.Contains(networks, id) {
			return true
		}
	}
	return false
}

func (e entry) addresses() []netip.Addr {
	if !e.tasks && e.service.Address.IsValid() {
		return []netip.Addr{e.service.Address}
	}
	all := make([]netip.Addr, len(e.service.Endpoints))
	for i, ep := range e.service.Endpoints {
		all[i] = ep.Address
	}
	return all
}
