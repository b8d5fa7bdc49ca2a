package network

import (
	"slices"
	"sync"
	"testing"

	"baton/internal/model/cluster"
	"baton/internal/model/spec"
	"baton/internal/node/agent"
	"baton/internal/wire/agentapi"
)

// Declared reachability equals measured reachability, for three networks and tasks on every subset of them.
func TestReachability(t *testing.T) {
	w := newWorld(t)
	n := w.newNode(210)
	nets := []cluster.ID{cluster.NewID(nil), cluster.NewID(nil), cluster.NewID(nil)}
	var tasks []*task
	var services []agentapi.Service
	for subset := range 8 {
		for copyOf := range 2 {
			var on []cluster.ID
			for i, id := range nets {
				if subset&(1<<i) != 0 {
					on = append(on, id)
				}
			}
			tk := n.attach(byte(10+2*subset+copyOf), nil, on...)
			tk.serve(80)
			tasks = append(tasks, tk)
			svc := service(tk.Hostname, n.vip(tk.Address.As4()[3]), cluster.ID{}, tk)
			services = append(services, svc)
		}
	}
	n.apply(state(services, tasks...))
	share := func(a, b *task) bool {
		return slices.ContainsFunc(a.Networks, func(id cluster.ID) bool { return slices.Contains(b.Networks, id) })
	}
	var all sync.WaitGroup
	for _, a := range tasks {
		all.Go(func() {
			for _, b := range tasks {
				if a == b {
					continue
				}
				for _, network := range []string{"tcp", "udp"} {
					for _, address := range []string{at(b.Address, 80), at(n.vip(b.Address.As4()[3]), 80)} {
						patience := dialTimeout
						if network == "udp" && !share(a, b) {
							patience = dialTimeout / 10 // the kernel limits the rate of refusals
						}
						name, _, err := w.askWithin(patience, a.ns, network, address)
						reached := err == nil && name == b.Hostname
						if reached != share(a, b) {
							t.Errorf("%s %s to %s (%s): got reached %v (%q, %v), declared %v", network, a.Hostname, b.Hostname, address, reached, name, err, share(a, b))
						}
						if network == "tcp" && !reached && isTimeout(err) {
							t.Errorf("%s to %s timed out; want it refused at once", a.Hostname, b.Hostname)
						}
					}
				}
			}
		})
	}
	all.Wait()
	for _, tk := range tasks {
		if name, _, err := w.fromHost("tcp", at(tk.Address, 80)); err != nil || name != tk.Hostname {
			t.Errorf("host to %s: got %q, %v; probes must always reach local tasks", tk.Hostname, name, err)
		}
	}
}

func TestInternalHasNoWayOut(t *testing.T) {
	w := newWorld(t)
	w.serve(w.outside, at(farAddress, 7000), "world")
	w.serve(w.outside, at(outsideAddress, 7000), "neighbour")
	w.serve(w.host, at(hostAddress, 7000), "host")
	n := w.newNode(210)
	w.serve(w.host, at(n.nodeAddress(), 7000), "host")
	front, back := cluster.NewID(nil), cluster.NewID(nil)
	open := n.attach(10, nil, front, back)
	inner := n.attach(11, func(a *agent.Attachment) { a.Internal = true }, back)
	shown := n.attach(12, nil, front)
	for _, tk := range []*task{open, inner, shown} {
		tk.serve(80)
	}
	web := service("web", n.vip(5), front, shown)
	web.Ports = []spec.Port{{Target: 80, Published: 8080, Protocol: "tcp"}, {Target: 80, Published: 8080, Protocol: "udp"}}
	n.apply(state([]agentapi.Service{web}, open, inner, shown))
	for _, c := range []struct {
		what    string
		from    *task
		address string
		want    string // who answers; empty: nobody
		seen    string // the client's address there
	}{
		{"open to the world", open, at(farAddress, 7000), "world", hostAddress.String()},
		{"open to the host", open, at(hostAddress, 7000), "host", open.Address.String()},
		{"internal to the world", inner, at(farAddress, 7000), "", ""},
		{"internal to the uplink's neighbour", inner, at(outsideAddress, 7000), "", ""},
		{"internal to the host", inner, at(hostAddress, 7000), "", ""},
		{"internal to the node's address", inner, at(n.nodeAddress(), 7000), "", ""},
		{"internal to a published port", inner, at(hostAddress, 8080), "", ""},
		{"open to a published port", open, at(hostAddress, 8080), "host12", open.Address.String()},
		{"internal to its network", inner, at(open.Address, 80), "host10", inner.Address.String()},
		{"its network to internal", open, at(inner.Address, 80), "host11", open.Address.String()},
	} {
		for _, network := range []string{"tcp", "udp"} {
			name, seen, err := c.from.ask(network, c.address)
			if name != c.want || seen != c.seen {
				t.Errorf("%s %s: got %q seen as %q, %v; want %q seen as %q", network, c.what, name, seen, err, c.want, c.seen)
			}
		}
	}
	if _, _, err := w.fromOutside("tcp", at(open.Address, 80)); err == nil {
		t.Error("outside reached a task's address; want published ports only")
	}
}

// A task cannot send from another's address, nor to the node's loopback.
func TestSpoofing(t *testing.T) {
	w := newWorld(t)
	w.serve(w.host, "127.0.0.1:7000", "host")
	n := w.newNode(210)
	front := cluster.NewID(nil)
	a, b, c := n.attach(10, nil, front), n.attach(11, nil, front), n.attach(12, nil)
	b.serve(80)
	n.apply(state(nil, a, b, c))
	c.addAddress(a.Address)
	if name, _, err := c.askFrom(a.Address, at(b.Address, 80)); err == nil {
		t.Errorf("with another's address: got an answer of %q, want none", name)
	}
	if name, _, err := a.ask("tcp", at(b.Address, 80)); err != nil || name != "host11" {
		t.Errorf("the real one: got %q, %v", name, err)
	}
	if _, _, err := a.ask("tcp", "127.0.0.1:7000"); err == nil {
		t.Error("a task reached the node's loopback")
	}
}

func TestServiceWithoutTasks(t *testing.T) {
	w := newWorld(t)
	n := w.newNode(210)
	front := cluster.NewID(nil)
	web, client := n.attach(10, nil, front), n.attach(11, nil, front)
	web.serve(80)
	svc := service("web", n.vip(5), front)
	svc.Ports = []spec.Port{{Target: 80, Published: 8080, Protocol: "tcp"}, {Target: 80, Published: 8080, Protocol: "udp"}}
	// A process of the host on the same port must not answer in the service's place.
	w.serve(w.host, "0.0.0.0:8080", "impostor")
	refused := func(when string) {
		t.Helper()
		for _, network := range []string{"tcp", "udp"} {
			for what, err := range map[string]error{
				"task to service":      second(client.ask(network, at(n.vip(5), 80))),
				"host to service":      second(w.fromHost(network, at(n.vip(5), 80))),
				"outside to published": second(w.fromOutside(network, at(hostAddress, 8080))),
				"localhost":            second(w.fromHost(network, "127.0.0.1:8080")),
				"task to published":    second(client.ask(network, at(hostAddress, 8080))),
			} {
				if err == nil || isTimeout(err) {
					t.Errorf("%s, %s %s: got %v, want it refused at once", when, network, what, err)
				}
			}
		}
	}
	n.apply(state([]agentapi.Service{svc}, web, client))
	refused("before the first task")
	ready := svc
	ready.Endpoints = []agentapi.Endpoint{web.endpoint()}
	n.apply(state([]agentapi.Service{ready}, web, client))
	for _, network := range []string{"tcp", "udp"} {
		if name, _, err := w.fromOutside(network, at(hostAddress, 8080)); err != nil || name != "host10" {
			t.Errorf("%s with a task: got %q, %v", network, name, err)
		}
	}
	n.apply(state([]agentapi.Service{svc}, web, client))
	refused("after the last task")
	n.apply(state(nil, web, client))
	if name, _, err := w.fromOutside("tcp", at(hostAddress, 8080)); err != nil || name != "impostor" {
		t.Errorf("published no more: got %q, %v; want the host's own process", name, err)
	}
}

func second(_, _ string, err error) error { return err }

func TestHostPortsAndHostIP(t *testing.T) {
	w := newWorld(t)
	n := w.newNode(210)
	front := cluster.NewID(nil)
	db := n.attach(10, func(a *agent.Attachment) {
		a.HostPorts = []spec.Port{{Target: 80, Published: 9000, Protocol: "tcp", Mode: spec.PortHost}}
	}, front)
	web := n.attach(11, nil, front)
	db.serve(80)
	web.serve(80)
	svc := service("web", n.vip(5), front, web)
	svc.Ports = []spec.Port{
		{Target: 80, Published: 9001, Protocol: "tcp", HostIP: "127.0.0.1"},
		{Target: 80, Published: 9002, Protocol: "tcp", HostIP: hostAddress.String()},
	}
	n.apply(state([]agentapi.Service{svc}, db, web))
	for _, c := range []struct {
		what string
		ask  func(network, address string) (string, string, error)
		to   string
		want string
	}{
		{"outside, host mode", w.fromOutside, at(hostAddress, 9000), "host10"},
		{"localhost, host mode", w.fromHost, "127.0.0.1:9000", "host10"},
		{"localhost, only there", w.fromHost, "127.0.0.1:9001", "host11"},
		{"outside, only on localhost", w.fromOutside, at(hostAddress, 9001), ""},
		{"outside, on this address", w.fromOutside, at(hostAddress, 9002), "host11"},
		{"localhost, on another address", w.fromHost, "127.0.0.1:9002", ""},
	} {
		if name, _, err := c.ask("tcp", c.to); name != c.want {
			t.Errorf("%s: got %q, %v; want %q", c.what, name, err, c.want)
		}
	}
	check(t, n.Detach(t.Context(), db.Task))
	if name, _, err := w.fromOutside("tcp", at(hostAddress, 9000)); err == nil {
		t.Errorf("host-mode port after Detach: got an answer of %q, want none", name)
	}
}
