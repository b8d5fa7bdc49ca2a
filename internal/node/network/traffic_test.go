package network

import (
	"testing"

	"baton/internal/model/cluster"
	"baton/internal/model/spec"
	"baton/internal/wire/agentapi"
)

func TestServiceAddressAndPublishedPort(t *testing.T) {
	w := newWorld(t)
	n := w.newNode(210)
	front := cluster.NewID(nil)
	web := n.attach(10, nil, front)
	client := n.attach(11, nil, front)
	web.serve(80)
	svc := service("web", n.vip(5), front, web)
	svc.Ports = []spec.Port{{Target: 80, Published: 8080, Protocol: "tcp"}, {Target: 80, Published: 8080, Protocol: "udp"}}
	n.apply(state([]agentapi.Service{svc}, web, client))

	for _, network := range []string{"tcp", "udp"} {
		for _, c := range []struct {
			name    string
			ask     func(network, address string) (string, string, error)
			address string
			from    string // client address that the server must see; empty: any
		}{
			{"task to address", client.ask, at(web.Address, 80), client.Address.String()},
			{"task to service", client.ask, at(n.vip(5), 80), client.Address.String()},
			{"task to itself through its service", web.ask, at(n.vip(5), 80), n.nodeAddress().String()},
			{"host to task", w.fromHost, at(web.Address, 80), n.nodeAddress().String()},
			{"host to service", w.fromHost, at(n.vip(5), 80), n.nodeAddress().String()},
			{"outside to published", w.fromOutside, at(hostAddress, 8080), outsideAddress.String()},
			{"localhost to published", w.fromHost, "127.0.0.1:8080", n.nodeAddress().String()},
			{"host to its own address", w.fromHost, at(hostAddress, 8080), ""},
			{"task to published", client.ask, at(hostAddress, 8080), client.Address.String()},
			{"task to its own published", web.ask, at(hostAddress, 8080), n.nodeAddress().String()},
		} {
			name, from, err := c.ask(network, c.address)
			if err != nil || name != "host10" || c.from != "" && from != c.from {
				t.Errorf("%s %s: got %q from %q, %v; want host10 from %q", network, c.name, name, from, err, c.from)
			}
		}
	}
}
