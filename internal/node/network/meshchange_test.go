package network

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"baton/internal/model/cluster"
	"baton/internal/model/spec"
	"baton/internal/wire/agentapi"
)

// pair is two nodes or more with a client on the first and a web task on the second.
type pair struct {
	*underlay
	client, web *task
	services    []agentapi.Service
}

func newPair(t testing.TB, mesh cluster.Mesh, nodes int) *pair {
	t.Helper()
	p := &pair{underlay: newMesh(t, mesh, nodes)}
	front := cluster.NewID(nil)
	p.client, p.web = p.attach(0, 10, front), p.attach(1, 10, front)
	p.web.serve(80)
	svc := service("web", p.nodes[0].vip(5), front, p.web)
	svc.Ports = []spec.Port{{Target: 80, Published: 8080, Protocol: "tcp"}, {Target: 80, Published: 8080, Protocol: "udp"}}
	p.services = []agentapi.Service{svc}
	p.tell()
	return p
}

// tell applies the state on all nodes.
func (p *pair) tell() { p.apply(p.services, p.client, p.web) }

func (p *pair) wantReached(t *testing.T, when string) {
	t.Helper()
	for _, to := range []netip.Addr{p.web.Address, p.services[0].Address} {
		if name, _, err := p.client.ask("tcp", at(to, 80)); err != nil || name != p.web.Hostname {
			t.Errorf("%s, %v: got %q, %v; want %s", when, to, name, err, p.web.Hostname)
		}
	}
}

// talk is an open connection that says something every few milliseconds and measures how long answers take.
type talk struct {
	conn    net.Conn
	stop    chan struct{}
	all     sync.WaitGroup
	longest atomic.Int64
	rounds  atomic.Int64
}

func newTalk(t testing.TB, p *pair) *talk {
	t.Helper()
	c, err := p.client.node.w.dial(p.client.ns, "tcp", at(p.services[0].Address, 80))
	check(t, err)
	k := &talk{conn: c, stop: make(chan struct{})}
	r := bufio.NewReader(c)
	_, err = r.ReadString('\n')
	check(t, err)
	k.all.Go(func() {
		tick := time.NewTicker(2 * time.Millisecond)
		defer tick.Stop()
		for i := 0; ; i++ {
			select {
			case <-k.stop:
				return
			case <-tick.C:
			}
			begin := time.Now()
			line := fmt.Sprintln("round", i)
			err := c.SetDeadline(begin.Add(20 * time.Second))
			if err == nil {
				_, err = c.Write([]byte(line))
			}
			var got string
			if err == nil {
				got, err = r.ReadString('\n')
			}
			if err != nil || got != line {
				t.Errorf("open connection: round %d: got %q, %v", i, got, err)
				return
			}
			k.longest.Store(max(k.longest.Load(), int64(time.Since(begin))))
			k.rounds.Add(1)
		}
	})
	t.Cleanup(func() { k.end() })
	return k
}

// wait lets the connection go on for a few more rounds.
func (k *talk) wait(t testing.TB) {
	t.Helper()
	for from, deadline := k.rounds.Load(), time.Now().Add(20*time.Second); k.rounds.Load() < from+5; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the open connection is stuck")
		}
	}
}

func (k *talk) end() time.Duration {
	select {
	case <-k.stop:
	default:
		close(k.stop)
	}
	k.all.Wait()
	_ = k.conn.Close()
	return time.Duration(k.longest.Load())
}

func TestMeshFollowsEndpoints(t *testing.T) {
	eachMesh(t, func(t *testing.T, mesh cluster.Mesh) {
		p := newPair(t, mesh, 3)
		p.wantReached(t, "before")
		k := newTalk(t, p)
		p.moveTo(p.nodes[1], underlayAddress(50))
		p.tell()
		p.wantReached(t, "after the node moved")
		k.wait(t)
		t.Logf("longest pause of an open connection: %v", k.end())
	})
}

// A peer that moves without a word (a translation that gives it another address) is followed, and a state that says
// nothing new of it does not send its packets to the old address again.
func TestMeshKeepsRoaming(t *testing.T) {
	p := newPair(t, cluster.MeshWireGuard, 3)
	p.wantReached(t, "before")
	s := p.state(p.services, p.client, p.web)
	p.moveTo(p.nodes[1], underlayAddress(50))
	// Its own packets tell the other where it is now.
	if err := second(p.nodes[1].w.fromHost("tcp", at(p.nodes[0].nodeAddress(), 1))); isTimeout(err) {
		t.Fatalf("the moved node reaches nobody: %v", err)
	}
	p.wantReached(t, "after it moved")
	for _, left := range []bool{true, false} { // changes of another peer
		next := s
		next.Peers = nil
		for _, peer := range s.Peers {
			if !left || peer.Node != p.nodes[2].cfg.NodeID {
				next.Peers = append(next.Peers, peer)
			}
		}
		p.nodes[0].apply(next)
		p.wantReached(t, "after a change of another node")
	}
	// Nor does a new process, which cannot be told where the node is.
	p.nodes[0].restart()
	p.wantReached(t, "after a restart")
	p.nodes[0].apply(s)
	p.wantReached(t, "after a restart and a state")
	// A new key of the moved node keeps what is known of its whereabouts.
	check(t, p.nodes[1].RotateMeshKey(t.Context()))
	for i := range s.Peers {
		if s.Peers[i].Node == p.nodes[1].cfg.NodeID {
			s.Peers[i].Key = p.nodes[1].MeshKey()
		}
	}
	p.nodes[0].apply(s)
	p.nodes[1].apply(s)
	p.wantReached(t, "after it changed its key")
}

func TestMeshForgetsPeers(t *testing.T) {
	eachMesh(t, func(t *testing.T, mesh cluster.Mesh) {
		p := newPair(t, mesh, 3)
		p.wantReached(t, "before")
		gone := p.nodes[1]
		p.leave[gone.cfg.NodeID] = true
		s := p.state(p.services, p.client, p.web)
		p.nodes[0].apply(s)
		p.nodes[2].apply(s)
		if _, _, err := p.client.ask("tcp", at(p.web.Address, 80)); err == nil || isTimeout(err) {
			t.Errorf("to a node that left: got %v, want it refused at once", err)
		}
		if _, _, err := gone.w.fromHost("tcp", at(p.client.Address, 80)); err == nil {
			t.Error("a node that left reached a task")
		}
		if got := p.traces(p.nodes[0], gone); len(got) > 0 {
			t.Errorf("left of it: %v", got)
		}
		delete(p.leave, gone.cfg.NodeID)
		p.tell()
		p.wantReached(t, "after it came back")
	})
}

// traces lists what a node's kernel has of another node.
func (u *underlay) traces(n, of *node) (all []string) {
	u.t.Helper()
	if n.mesh.wg != nil {
		have, err := n.mesh.wg.device.state()
		check(u.t, err)
		key, err := parseKey(of.MeshKey())
		check(u.t, err)
		if _, there := have.peers[key]; there {
			all = append(all, "WireGuard peer")
		}
	}
	routes, err := n.links.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Protocol: routeProtocol, Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_PROTOCOL|netlink.RT_FILTER_TABLE)
	check(u.t, err)
	for _, r := range routes {
		if r.Dst.String() == of.config.Subnet.String() || r.Gw.Equal(of.nodeAddress().AsSlice()) {
			all = append(all, "route "+r.String())
		}
	}
	link, err := n.meshLink()
	check(u.t, err)
	if link != nil {
		for _, family := range []int{unix.AF_INET, unix.AF_BRIDGE} {
			neighbours, err := n.links.NeighList(link.Attrs().Index, family)
			check(u.t, err)
			for _, h := range neighbours {
				if h.HardwareAddr.String() == vtepMAC(of.cfg.NodeID).String() {
					all = append(all, "neighbour "+h.String())
				}
			}
		}
	}
	return all
}

// Established connections survive a new key, whichever node hears of it first; so do new ones.
func TestMeshKeyRotation(t *testing.T) {
	p := newPair(t, cluster.MeshWireGuard, 2)
	k := newTalk(t, p)
	k.wait(t)
	for _, first := range []int{0, 1, 0, 1} {
		before := p.nodes[0].MeshKey()
		check(t, p.nodes[0].RotateMeshKey(t.Context()))
		after := p.nodes[0].MeshKey()
		if after == before {
			t.Fatal("the key is the same")
		}
		check(t, p.nodes[0].RotateMeshKey(t.Context())) // one at a time
		if got := p.nodes[0].MeshKey(); got != after {
			t.Error("a second rotation replaced the key that the others are being told")
		}
		p.wantReached(t, "with the announced key")
		s := p.state(p.services, p.client, p.web)
		p.nodes[first].apply(s)
		p.nodes[1-first].apply(s)
		p.wantReached(t, "with the new key")
		k.wait(t)
		if p.nodes[0].mesh.keys.Next != "" || publicKey(p.nodes[0].mesh.keys.Current) != after {
			t.Error("the new key is not in use")
		}
	}
	longest := k.end()
	t.Logf("longest pause of an open connection over 4 rotations: %v", longest)
	if longest > 4*time.Second { // a handshake that is repeated takes 5 s
		t.Errorf("an open connection paused %v; want the second node to begin a handshake at once", longest)
	}
}

// A node keeps its key over restarts, and nobody else can read it.
func TestMeshKeyIsKept(t *testing.T) {
	w := newWorld(t)
	n := w.newNode(210)
	before := n.MeshKey()
	n.restart()
	if got := n.MeshKey(); got != before {
		t.Errorf("key after a restart: got %s, want %s", got, before)
	}
	path := filepath.Join(n.cfg.StateDir, "mesh", "keys")
	info, err := os.Stat(path)
	check(t, err)
	if info.Mode().Perm() != 0o600 {
		t.Errorf("mode of the key file: got %v, want 0600", info.Mode().Perm())
	}
	// Without a mesh, nobody uses the old one.
	check(t, n.RotateMeshKey(t.Context()))
	rotated := n.MeshKey()
	if rotated == before || n.mesh.keys.Next != "" {
		t.Errorf("rotation without a mesh: got %s, want a new key in use", rotated)
	}
	check(t, os.WriteFile(path, []byte("{"), 0o600))
	n.restart()
	if got := n.MeshKey(); got == "" || got == rotated {
		t.Errorf("key after the file was damaged: got %q, want a new one", got)
	}
}

// While a node's process is killed and started again, open connections go on and no new one fails.
func TestMeshRestart(t *testing.T) {
	eachMesh(t, func(t *testing.T, mesh cluster.Mesh) {
		p := newPair(t, mesh, 2)
		k := newTalk(t, p)
		var stop atomic.Bool
		var asked atomic.Int64
		var all sync.WaitGroup
		for _, c := range []struct {
			from    netns.NsHandle
			address string
		}{{p.client.ns, at(p.services[0].Address, 80)}, {p.outside, at(underlayAddress(0), 8080)}} {
			all.Go(func() {
				for !stop.Load() {
					asked.Add(1)
					// Its first packets may all fall into a pause: they are repeated after 1 s, 2 s, 4 s.
					if _, _, err := p.client.node.w.askWithin(15*time.Second, c.from, "tcp", c.address); err != nil {
						t.Errorf("%s: %v", c.address, err)
						return
					}
				}
			})
		}
		var slowest time.Duration
		for i := range 6 {
			n := p.nodes[i%2]
			begin := time.Now()
			check(t, n.Close())
			network, err := New(n.cfg)
			check(t, err)
			n.Network = network
			slowest = max(slowest, time.Since(begin))
			k.wait(t) // before any manager is heard of
			check(t, n.Configure(t.Context(), n.config))
			k.wait(t)
			n.apply(p.state(p.services, p.client, p.web))
			k.wait(t)
		}
		stop.Store(true)
		all.Wait()
		t.Logf("%d connections; restart took at most %v, longest pause of an open connection %v", asked.Load(), slowest, k.end())
	})
}

// A mesh comes to a node with running tasks: their links become narrower in place, and their connections go on.
func TestMeshAppears(t *testing.T) {
	for mesh, want := range map[cluster.Mesh]int{cluster.MeshWireGuard: 1420, cluster.MeshVXLAN: 1450} {
		t.Run(string(mesh), func(t *testing.T) {
			u := newUnderlay(t, "", 2)
			front := cluster.NewID(nil)
			a, b, c := u.attach(0, 10, front), u.attach(0, 11, front), u.attach(1, 10, front)
			b.serve(80)
			c.serve(80)
			svc := service("web", u.nodes[0].vip(5), front, b)
			u.nodes[0].apply(state([]agentapi.Service{svc}, a, b))
			a.wantMTU(1500)
			w := u.nodes[0].w
			held, err := w.dial(a.ns, "tcp", at(svc.Address, 80))
			check(t, err)
			defer func() { _ = held.Close() }()
			u.configure(mesh, testMeshPort)
			u.apply([]agentapi.Service{svc}, a, b, c)
			for _, tk := range []*task{a, b, c} {
				tk.wantMTU(want)
			}
			wantEcho(t, "connection of before", held, 1<<20)
			conn, err := w.dial(a.ns, "tcp", at(c.Address, 80))
			check(t, err)
			defer func() { _ = conn.Close() }()
			wantEcho(t, "to the new node", conn, 1<<20)
			u.nodes[0].restart() // an adopted task's link, too
			a.wantMTU(want)
			u.configure("", 0)
			u.nodes[0].apply(state([]agentapi.Service{svc}, a, b))
			a.wantMTU(1500)
			if link, err := u.nodes[0].meshLink(); err != nil || link != nil {
				t.Errorf("link of the mesh that is off: got %v, %v", link, err)
			}
		})
	}
}

// The mesh of a cluster can be changed.
func TestMeshChangesKind(t *testing.T) {
	p := newPair(t, cluster.MeshRouted, 2)
	for _, mesh := range []cluster.Mesh{cluster.MeshVXLAN, cluster.MeshWireGuard, cluster.MeshRouted, cluster.MeshWireGuard, cluster.MeshVXLAN} {
		port := uint16(testMeshPort)
		if mesh == cluster.MeshRouted {
			port = 0
		}
		p.configure(mesh, port)
		p.tell()
		p.wantReached(t, string(mesh))
	}
}

// Nothing of a mesh is left when a node's network is removed, also after a kill.
func TestMeshRemoveAll(t *testing.T) {
	eachMesh(t, func(t *testing.T, mesh cluster.Mesh) {
		p := newPair(t, mesh, 2)
		p.wantReached(t, "before")
		n := p.nodes[0]
		check(t, n.Close())
		for range 2 {
			check(t, RemoveAll(context.Background(), n.cfg))
		}
		wantNothingOf(t, n)
		wantNoMesh(t, n)
		n.open() // for the clean-up
	})
}

func wantNoMesh(t *testing.T, n *node) {
	t.Helper()
	h, err := netlink.NewHandleAt(n.w.host)
	check(t, err)
	defer h.Close()
	links, err := h.LinkList()
	check(t, err)
	for _, l := range links {
		if name := l.Attrs().Name; strings.HasPrefix(name, "b") {
			t.Errorf("link %s is left", name)
		}
	}
	rules, err := h.RuleList(netlink.FAMILY_V4)
	check(t, err)
	for _, r := range rules {
		if r.Priority == markPriority {
			t.Errorf("rule %v is left", r)
		}
	}
	routes, err := h.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Protocol: routeProtocol, Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_PROTOCOL|netlink.RT_FILTER_TABLE)
	check(t, err)
	for _, r := range routes {
		t.Errorf("route %v is left", r)
	}
	check(t, within(n.w.host, func() error {
		b, err := os.ReadFile("/proc/sys/net/ipv4/conf/uplink/route_localnet")
		if err == nil && strings.TrimSpace(string(b)) != "0" {
			t.Error("route_localnet of the uplink is left on")
		}
		return err
	}))
}
