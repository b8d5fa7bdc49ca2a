package network

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"baton/internal/model/cluster"
	"baton/internal/wire/agentapi"
)

// capture reads every packet that passes the switch.
type capture struct {
	t  *testing.T
	fd int
}

func newCapture(t *testing.T, u *underlay) *capture {
	t.Helper()
	c := &capture{t: t}
	all := binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, unix.ETH_P_ALL))
	check(t, within(u.ns, func() (err error) {
		c.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(all))
		if err != nil {
			return err
		}
		return unix.SetsockoptInt(c.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 16<<20)
	}))
	t.Cleanup(func() { _ = unix.Close(c.fd) })
	return c
}

// saw reads what was captured so far and reports whether any packet held the text, and how many there were.
func (c *capture) saw(text string) (bool, int) {
	c.t.Helper()
	b := make([]byte, 1<<17)
	found, count := false, 0
	for {
		size, _, err := unix.Recvfrom(c.fd, b, unix.MSG_DONTWAIT)
		if err == unix.EAGAIN {
			return found, count
		}
		check(c.t, err)
		count++
		found = found || bytes.Contains(b[:size], []byte(text))
	}
}

// On the underlay, WireGuard shows nothing of what tasks say; the other meshes do, which proves that the capture works.
func TestMeshEncrypts(t *testing.T) {
	eachMesh(t, func(t *testing.T, mesh cluster.Mesh) {
		p := newPair(t, mesh, 2)
		p.wantReached(t, "before")
		c := newCapture(t, p.underlay)
		conn, err := p.client.node.w.dial(p.client.ns, "tcp", at(p.web.Address, 80))
		check(t, err)
		defer func() { _ = conn.Close() }()
		const secret = "correct horse battery staple"
		_, err = fmt.Fprintln(conn, secret)
		check(t, err)
		r := bufio.NewReader(conn)
		for range 2 { // the greeting, and what was sent
			_, err = r.ReadString('\n')
			check(t, err)
		}
		saw, packets := c.saw(secret)
		if packets == 0 || saw != (mesh != cluster.MeshWireGuard) {
			t.Errorf("%d packets captured: plain text seen: %v", packets, saw)
		}
	})
}

// A machine on the underlay that is no node reaches nothing in the pools, whatever addresses it uses; nor is a peer heard
// with an address of no peer.
func TestMeshGuardsThePools(t *testing.T) {
	eachMesh(t, func(t *testing.T, mesh cluster.Mesh) {
		p := newPair(t, mesh, 3)
		p.wantReached(t, "before")
		n := p.nodes[1]
		buddy := p.attach(1, 11, p.web.Networks...) // a member of the web task's network, on its node
		p.apply(p.services, p.client, p.web, buddy)
		n.w.serve(n.w.host, at(n.nodeAddress(), 7000), "node")
		p.nodes[0].w.serve(p.nodes[0].w.host, at(p.nodes[0].nodeAddress(), 7000), "node")
		stranger := p.outside
		h, err := netlink.NewHandleAt(stranger)
		check(t, err)
		defer h.Close()
		uplink, err := h.LinkByName("uplink")
		check(t, err)
		for _, pool := range []netip.Prefix{n.config.TaskPool, n.config.ServicePool} {
			check(t, h.RouteAdd(&netlink.Route{LinkIndex: uplink.Attrs().Index, Dst: ipNet(pool), Gw: underlayAddress(1).AsSlice()}))
		}
		targets := []string{at(p.web.Address, 80), at(p.services[0].Address, 80), at(n.nodeAddress(), 7000), at(p.client.Address, 80)}
		wantGuarded := func(who string, from netns.NsHandle) {
			t.Helper()
			var all sync.WaitGroup
			for _, to := range targets {
				for _, network := range []string{"tcp", "udp"} {
					all.Go(func() {
						if name, _, err := n.w.ask(from, network, to); err == nil {
							t.Errorf("%s to %s by %s: got an answer of %q, want none", who, to, network, name)
						}
					})
				}
			}
			all.Wait()
		}
		wantGuarded("a stranger", stranger)
		flood := func(who string, from netns.NsHandle, source netip.Addr, link string, mac net.HardwareAddr) {
			t.Helper()
			if got := p.web.hears(source, from, link, mac); got {
				t.Errorf("a datagram of %s from %v reached the task", who, source)
			}
		}
		node, err := n.links.LinkByName("uplink")
		check(t, err)
		nobody := netip.MustParseAddr("10.210.200.1") // of the pool, but of no node
		notPeers := []netip.Addr{n.nodeAddress(), buddy.Address, p.services[0].Address, nobody}
		for _, source := range append(notPeers, outsideAddress) {
			flood("a stranger", stranger, source, "uplink", node.Attrs().HardwareAddr)
		}
		if mesh == cluster.MeshVXLAN { // into the mesh, as if it were the first node
			check(t, h.LinkAdd(&netlink.Vxlan{
				LinkAttrs: netlink.LinkAttrs{Name: "forged", HardwareAddr: vtepMAC(p.nodes[0].cfg.NodeID)}, VxlanId: vni, Port: testMeshPort,
				Group: underlayAddress(1).AsSlice(), VtepDevIndex: uplink.Attrs().Index,
			}))
			setUp(t, h, "forged")
			for _, source := range []netip.Addr{p.client.Address, p.nodes[0].nodeAddress(), outsideAddress} {
				flood("a stranger in the mesh", stranger, source, "forged", vtepMAC(n.cfg.NodeID))
			}
			check(t, h.LinkDel(&netlink.Vxlan{LinkAttrs: netlink.LinkAttrs{Name: "forged"}}))
			// A client from outside reaches what is published, by way of a peer, and no other port.
			for _, source := range append(notPeers, outsideAddress) {
				flood("a peer", p.nodes[0].w.host, source, p.nodes[0].names.mesh, vtepMAC(n.cfg.NodeID))
			}
		}
		p.wantReached(t, "after")
	})
}

// hears reports whether a datagram with any source that is sent on a link, to a hardware address, reaches the task.
func (tk *task) hears(source netip.Addr, from netns.NsHandle, link string, to net.HardwareAddr) bool {
	t := tk.node.w.t
	t.Helper()
	const port = 999
	var in net.PacketConn
	check(t, within(tk.ns, func() (err error) {
		in, err = net.ListenPacket("udp4", at(tk.Address, port))
		return err
	}))
	defer func() { _ = in.Close() }()
	packet := datagram(source, tk.Address, port)
	check(t, within(from, func() error {
		l, err := net.InterfaceByName(link)
		if err != nil {
			return err
		}
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer func() { _ = unix.Close(fd) }()
		frame := append(append(append([]byte{}, to...), l.HardwareAddr...), 0x08, 0x00)
		for range 3 {
			if err := unix.Sendto(fd, append(frame, packet...), 0, &unix.SockaddrLinklayer{Ifindex: l.Index, Halen: 6}); err != nil {
				return err
			}
		}
		return nil
	}))
	check(t, in.SetReadDeadline(time.Now().Add(dialTimeout/10)))
	_, _, err := in.ReadFrom(make([]byte, 100))
	return err == nil
}

// datagram is an IPv4 packet with a small UDP datagram.
func datagram(source, destination netip.Addr, port uint16) []byte {
	b := make([]byte, 32)
	b[0], b[8], b[9] = 0x45, 64, protoUDP
	binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
	copy(b[12:], source.AsSlice())
	copy(b[16:], destination.AsSlice())
	sum := uint32(0)
	for i := 0; i < 20; i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	binary.BigEndian.PutUint16(b[10:], ^uint16(sum))
	binary.BigEndian.PutUint16(b[20:], 4000)
	binary.BigEndian.PutUint16(b[22:], port)
	binary.BigEndian.PutUint16(b[24:], 12) // its length; without a checksum
	return b
}

// The forged datagrams of the test above would be heard if they were let in.
func TestHearsDatagrams(t *testing.T) {
	p := newPair(t, cluster.MeshVXLAN, 2)
	p.wantReached(t, "before")
	if !p.web.hears(p.client.Address, p.nodes[0].w.host, p.nodes[0].names.mesh, vtepMAC(p.nodes[1].cfg.NodeID)) {
		t.Error("a datagram that comes by the mesh from a peer's task was not heard")
	}
}

// A draining task's node counts the connections from other nodes; their new connections and datagrams go elsewhere at once.
// Once a task is gone, what was open to it is refused instead of waiting.
func TestMeshDrain(t *testing.T) {
	eachMesh(t, func(t *testing.T, mesh cluster.Mesh) {
		p := newPair(t, mesh, 3)
		fresh := p.attach(2, 10, p.client.Networks...)
		fresh.serve(80)
		w := p.client.node.w
		held := make(map[string]net.Conn)
		for what, from := range map[string]netns.NsHandle{"task": p.client.ns, "node": w.host, "outside": p.outside} {
			to := at(p.services[0].Address, 80)
			if what == "outside" {
				to = at(underlayAddress(0), 8080)
			}
			c, err := w.dial(from, "tcp", to)
			check(t, err)
			defer func() { _ = c.Close() }()
			_, err = bufio.NewReader(c).ReadString('\n')
			check(t, err)
			held[what] = c
			d, err := w.dial(from, "udp", to)
			check(t, err)
			defer func() { _ = d.Close() }()
			if got := exchange(d); got != p.web.Hostname {
				t.Fatalf("UDP of %s before: got %q", what, got)
			}
			held[what+" UDP"] = d
		}
		wantConnections(t, p.web.node, p.web.Address, 3)
		p.services[0].Endpoints = []agentapi.Endpoint{fresh.endpoint()}
		p.apply(p.services, p.client, p.web, fresh)
		for what, c := range held {
			if _, isUDP := c.(*net.UDPConn); isUDP {
				if got := exchange(c); got != fresh.Hostname {
					t.Errorf("%s: got %q, want the other task at once", what, got)
				}
				continue
			}
			if got := say(c, "still here\n"); got != "still here\n" {
				t.Errorf("open connection of %s: got %q", what, got)
			}
		}
		wantConnections(t, p.web.node, p.web.Address, 3)
		check(t, p.web.node.Detach(t.Context(), p.web.Task))
		p.apply(p.services, p.client, fresh)
		for _, what := range []string{"task", "node", "outside"} {
			begin := time.Now()
			if got := say(held[what], "anybody?\n"); got == "anybody?\n" || time.Since(begin) > dialTimeout/2 {
				t.Errorf("connection of %s to the gone task: got %q after %v, want it refused at once", what, got, time.Since(begin))
			}
		}
		for _, n := range p.nodes {
			wantNoFlows(t, n, p.web.Address)
		}
	})
}

func say(c net.Conn, line string) string {
	if err := c.SetDeadline(time.Now().Add(dialTimeout)); err != nil {
		return err.Error()
	}
	if _, err := c.Write([]byte(line)); err != nil {
		return err.Error()
	}
	got := make([]byte, len(line))
	size, err := c.Read(got)
	if err != nil {
		return err.Error()
	}
	return string(got[:size])
}
