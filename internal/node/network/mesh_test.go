package network

import (
	"io"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"baton/internal/model/cluster"
	"baton/internal/model/spec"
	"baton/internal/node/agent"
	"baton/internal/wire/agentapi"
)

// Declared reachability equals measured reachability, also when tasks are on different nodes.
func TestMeshReachability(t *testing.T) {
	eachMesh(t, func(t *testing.T, mesh cluster.Mesh) {
		u := newMesh(t, mesh, 3)
		nets := []cluster.ID{cluster.NewID(nil), cluster.NewID(nil)}
		var tasks []*task
		var services []agentapi.Service
		for subset := range 4 {
			for i := range u.nodes {
				var on []cluster.ID
				for j, id := range nets {
					if subset&(1<<j) != 0 {
						on = append(on, id)
					}
				}
				tk := u.attach(i, byte(10+subset), on...)
				tk.serve(80)
				tasks = append(tasks, tk)
				services = append(services, service(tk.Hostname, u.nodes[0].vip(byte(10+len(tasks))), cluster.ID{}, tk))
			}
		}
		u.apply(services, tasks...)
		share := func(a, b *task) bool {
			return slices.ContainsFunc(a.Networks, func(id cluster.ID) bool { return slices.Contains(b.Networks, id) })
		}
		var all sync.WaitGroup
		for _, a := range tasks {
			all.Go(func() {
				for i, b := range tasks {
					if a == b {
						continue
					}
					for _, network := range []string{"tcp", "udp"} {
						for _, to := range []netip.Addr{b.Address, services[i].Address} {
							patience := dialTimeout
							if network == "udp" && !share(a, b) {
								patience = dialTimeout / 10 // the kernel limits the rate of refusals
							}
							name, from, err := a.node.w.askWithin(patience, a.ns, network, at(to, 80))
							reached := err == nil && name == b.Hostname && from == a.Address.String()
							if reached != share(a, b) {
								t.Errorf("%s %s to %s (%v): got reached %v (%q from %q, %v), declared %v", network, a.Hostname, b.Hostname, to, reached, name, from, err, share(a, b))
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
		for _, n := range u.nodes { // probes, and processes of the nodes
			for i, tk := range tasks {
				for _, to := range []netip.Addr{tk.Address, services[i].Address} {
					for _, network := range []string{"tcp", "udp"} {
						if name, from, err := n.w.fromHost(network, at(to, 80)); err != nil || name != tk.Hostname || from != n.nodeAddress().String() {
							t.Errorf("node %v to %s (%v, %s): got %q from %q, %v; want it from the node's own address", n.nodeAddress(), tk.Hostname, to, network, name, from, err)
						}
					}
				}
			}
		}
	})
}

// Connections spread evenly over tasks on three nodes, from a task and from outside by a node that has none.
func TestMeshBalance(t *testing.T) {
	eachMesh(t, func(t *testing.T, mesh cluster.Mesh) {
		const connections, perNode = 10000, 3
		u := newMesh(t, mesh, 4)
		front := cluster.NewID(nil)
		client := u.attach(0, 100, front)
		tasks := []*task{client}
		svc := service("web", u.nodes[0].vip(5), front)
		svc.Ports = []spec.Port{{Target: 80, Published: 8080, Protocol: "tcp"}}
		for i := range 3 {
			for j := range perNode {
				tk := u.attach(i, byte(10+j), front)
				tk.serve(80)
				tasks = append(tasks, tk)
				svc.Endpoints = append(svc.Endpoints, tk.endpoint())
			}
		}
		u.apply([]agentapi.Service{svc}, tasks...)
		wantEvenSpread(t, "service", 3*perNode, connections, func() (string, error) {
			name, _, err := client.ask("tcp", at(svc.Address, 80))
			return name, err
		})
		wantEvenSpread(t, "published port", 3*perNode, connections, func() (string, error) {
			name, _, err := client.node.w.fromOutside("tcp", at(underlayAddress(3), 8080))
			return name, err
		})
	})
}

// Every node answers for a published port, whoever asks, and the task sees the client where the mesh can keep it.
func TestMeshPublishedPort(t *testing.T) {
	eachMesh(t, func(t *testing.T, mesh cluster.Mesh) {
		u := newMesh(t, mesh, 3)
		front, back := cluster.NewID(nil), cluster.NewID(nil)
		web, stranger := u.attach(1, 10, front), u.attach(0, 20, back)
		inner := u.nodes[0].attach(21, func(a *agent.Attachment) { a.Internal = true }, front)
		web.serve(80)
		svc := service("web", u.nodes[0].vip(5), front, web)
		svc.Ports = []spec.Port{{Target: 80, Published: 8080, Protocol: "tcp"}, {Target: 80, Published: 8080, Protocol: "udp"}}
		u.apply([]agentapi.Service{svc}, web, stranger, inner)
		seen := outsideAddress // by way of a node without the task
		if mesh != cluster.MeshVXLAN {
			seen = u.nodes[0].nodeAddress()
		}
		self := u.nodes[0].nodeAddress()
		w := u.nodes[0].w
		for range 5 {
			for _, network := range []string{"tcp", "udp"} {
				for _, c := range []struct {
					what    string
					ask     func(network, address string) (string, string, error)
					address string
					from    netip.Addr
				}{
					{"outside to the task's node", w.fromOutside, at(underlayAddress(1), 8080), outsideAddress},
					{"outside to another node", w.fromOutside, at(underlayAddress(0), 8080), seen},
					{"node to itself", w.fromHost, at(underlayAddress(0), 8080), self},
					{"node by localhost", w.fromHost, "127.0.0.1:8080", self},
					{"task to its node", stranger.ask, at(underlayAddress(0), 8080), self},
					{"task to the task's node", stranger.ask, at(underlayAddress(1), 8080), underlayAddress(0)},
				} {
					name, from, err := c.ask(network, c.address)
					if err != nil || name != web.Hostname || from != c.from.String() {
						t.Errorf("%s %s: got %q from %q, %v; want the web task, asked from %v", network, c.what, name, from, err, c.from)
					}
				}
			}
		}
		for what, address := range map[string]string{
			"its node's published port": at(underlayAddress(0), 8080), "another node": at(u.nodes[1].nodeAddress(), 8080), "the world": at(farAddress, 7000),
		} {
			if _, _, err := inner.ask("tcp", address); err == nil || isTimeout(err) {
				t.Errorf("a task without a way out to %s: got %v, want it refused", what, err)
			}
		}
		if name, from, err := inner.ask("tcp", at(web.Address, 80)); err != nil || name != web.Hostname || from != inner.Address.String() {
			t.Errorf("a task without a way out to a member elsewhere: got %q from %q, %v", name, from, err)
		}
	})
}

// What is as large as a link carries arrives, both ways, and links are as large as the mesh allows.
func TestMeshMTU(t *testing.T) {
	want := map[cluster.Mesh]int{cluster.MeshWireGuard: 1420, cluster.MeshVXLAN: 1450, cluster.MeshRouted: 1500}
	eachMesh(t, func(t *testing.T, mesh cluster.Mesh) {
		u := newMesh(t, mesh, 2)
		front := cluster.NewID(nil)
		a, b := u.attach(0, 10, front), u.attach(1, 10, front)
		b.serve(80)
		svc := service("web", u.nodes[0].vip(5), front, b)
		svc.Ports = []spec.Port{{Target: 80, Published: 8080, Protocol: "tcp"}}
		u.apply([]agentapi.Service{svc}, a, b)
		for _, tk := range []*task{a, b} {
			tk.wantMTU(want[mesh])
		}
		w := u.nodes[0].w
		for what, dial := range map[string]func() (net.Conn, error){
			"task to task":         func() (net.Conn, error) { return w.dial(a.ns, "tcp", at(b.Address, 80)) },
			"task to service":      func() (net.Conn, error) { return w.dial(a.ns, "tcp", at(svc.Address, 80)) },
			"node to task":         func() (net.Conn, error) { return w.dial(w.host, "tcp", at(b.Address, 80)) },
			"outside to published": func() (net.Conn, error) { return w.dial(w.outside, "tcp", at(underlayAddress(0), 8080)) },
		} {
			c, err := dial()
			check(t, err)
			wantEcho(t, what, c, 1<<20)
			check(t, c.Close())
		}
		const headers = 28 // IPv4 and UDP
		if got := b.receives(a, want[mesh]-headers); got != want[mesh]-headers {
			t.Errorf("a datagram of the path MTU: got %d bytes, want %d", got, want[mesh]-headers)
		}
	})
}

// What enters the mesh announces segments that fit, even when both ends are wider and would never hear that a packet was
// too big.
func TestMeshClamp(t *testing.T) {
	for mesh, mtu := range map[cluster.Mesh]int{cluster.MeshWireGuard: 1420, cluster.MeshVXLAN: 1450} {
		t.Run(string(mesh), func(t *testing.T) {
			p := newPair(t, mesh, 2)
			host, err := p.web.node.links.LinkByName(p.web.node.names.link(p.web.Task))
			check(t, err)
			inside, err := netlink.NewHandleAt(p.web.ns)
			check(t, err)
			defer inside.Close()
			link, err := inside.LinkByName(taskLink)
			check(t, err)
			check(t, setMTU(inside, link, 1500))
			check(t, setMTU(p.web.node.links, host, 1500))
			c, err := p.client.node.w.dial(p.outside, "tcp", at(underlayAddress(0), 8080))
			check(t, err)
			defer func() { _ = c.Close() }()
			raw, err := c.(*net.TCPConn).SyscallConn()
			check(t, err)
			var size int
			var get error
			check(t, raw.Control(func(fd uintptr) { size, get = unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_MAXSEG) }))
			check(t, get)
			const headers = 40 // IPv4 and TCP, without options
			if size > mtu-headers {
				t.Errorf("segments of %d bytes, want at most %d", size, mtu-headers)
			}
		})
	}
}

// wantEcho sends size bytes and wants them back after the greeting.
func wantEcho(t *testing.T, what string, c net.Conn, size int) {
	t.Helper()
	check(t, c.SetDeadline(time.Now().Add(20*time.Second)))
	greeting := make([]byte, 1)
	for greeting[0] != '\n' {
		if _, err := c.Read(greeting); err != nil {
			t.Errorf("%s: greeting: %v", what, err)
			return
		}
	}
	sent := make([]byte, size)
	for i := range sent {
		sent[i] = byte(i * 7)
	}
	var all sync.WaitGroup
	all.Go(func() {
		if _, err := c.Write(sent); err != nil {
			t.Errorf("%s: send %d bytes: %v", what, size, err)
		}
	})
	got := make([]byte, size)
	count, err := io.ReadFull(c, got)
	all.Wait()
	if err != nil || !slices.Equal(got, sent) {
		t.Errorf("%s: got %d of %d bytes back, %v", what, count, size, err)
	}
}

// receives returns the size of a datagram that from sends, which must not be cut into pieces.
func (tk *task) receives(from *task, size int) int {
	t := tk.node.w.t
	t.Helper()
	var in net.PacketConn
	var out *net.UDPConn
	check(t, within(tk.ns, func() (err error) {
		in, err = net.ListenPacket("udp4", at(tk.Address, 9))
		return err
	}))
	defer func() { _ = in.Close() }()
	check(t, within(from.ns, func() error {
		c, err := net.Dial("udp4", at(tk.Address, 9))
		if err != nil {
			return err
		}
		out = c.(*net.UDPConn)
		raw, err := out.SyscallConn()
		if err != nil {
			return err
		}
		var set error
		err = raw.Control(func(fd uintptr) {
			set = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DO)
		})
		if err != nil {
			return err
		}
		return set
	}))
	defer func() { _ = out.Close() }()
	_, err := out.Write(make([]byte, size))
	check(t, err)
	check(t, in.SetReadDeadline(time.Now().Add(dialTimeout)))
	count, _, err := in.ReadFrom(make([]byte, 1<<16))
	check(t, err)
	return count
}

// wantMTU checks both ends of a task's link.
func (tk *task) wantMTU(want int) {
	t := tk.node.w.t
	t.Helper()
	host, err := tk.node.links.LinkByName(tk.node.names.link(tk.Task))
	check(t, err)
	if got := host.Attrs().MTU; got != want {
		t.Errorf("MTU of the node's end: got %d, want %d", got, want)
	}
	check(t, within(tk.ns, func() error {
		link, err := net.InterfaceByName(taskLink)
		if err == nil && link.MTU != want {
			t.Errorf("MTU of the task's end: got %d, want %d", link.MTU, want)
		}
		return err
	}))
}
