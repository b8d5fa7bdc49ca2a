package network

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"baton/internal/model/cluster"
	"baton/internal/node/agent"
	"baton/internal/wire/agentapi"
)

const testMeshPort = 51820

// meshes are the drivers that each test of a mesh runs on.
var meshes = []cluster.Mesh{cluster.MeshWireGuard, cluster.MeshVXLAN, cluster.MeshRouted}

// underlay is a few machines, each a namespace with one node, and what is outside of them, on one switch.
type underlay struct {
	t       testing.TB
	ns      netns.NsHandle // the switch
	links   *netlink.Handle
	outside netns.NsHandle
	nodes   []*node
	leave   map[cluster.ID]bool // nodes that apply names as peers no more
}

// newUnderlay makes count nodes with a mesh, which do not know of each other yet.
func newUnderlay(t testing.TB, mesh cluster.Mesh, count int) *underlay {
	t.Helper()
	dir := newDir(t)
	base := &world{t: t, dir: dir}
	u := &underlay{t: t, ns: base.newNS(), outside: base.newNS(), leave: make(map[cluster.ID]bool)}
	var err error
	u.links, err = netlink.NewHandleAt(u.ns)
	check(t, err)
	t.Cleanup(u.links.Close)
	check(t, u.links.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "switch"}}))
	setUp(t, u.links, "switch")
	check(t, within(u.ns, func() error { return setSysctlIfThere("net/bridge/bridge-nf-call-iptables", "0") }))
	u.plug(u.outside, "outside", outsideAddress)
	outside, err := netlink.NewHandleAt(u.outside)
	check(t, err)
	defer outside.Close()
	setUp(t, outside, "lo", farAddress.String()+"/32")
	port := uint16(testMeshPort)
	if mesh == "" || mesh == cluster.MeshRouted {
		port = 0
	}
	for i := range count {
		w := &world{t: t, dir: dir, host: base.newNS(), outside: u.outside}
		u.plug(w.host, fmt.Sprint("node", i), underlayAddress(i))
		host, err := netlink.NewHandleAt(w.host)
		check(t, err)
		setUp(t, host, "lo")
		check(t, host.RouteAdd(&netlink.Route{Gw: outsideAddress.AsSlice()}))
		host.Close()
		u.nodes = append(u.nodes, w.newNodeOf(210, byte(i+1), mesh, port))
	}
	return u
}

// newMesh makes count nodes that know each other.
func newMesh(t testing.TB, mesh cluster.Mesh, count int) *underlay {
	t.Helper()
	u := newUnderlay(t, mesh, count)
	u.apply(nil)
	return u
}

func underlayAddress(i int) netip.Addr { return netip.AddrFrom4([4]byte{192, 0, 2, byte(11 + i)}) }

// plug connects a namespace to the switch.
func (u *underlay) plug(ns netns.NsHandle, port string, a netip.Addr) {
	u.t.Helper()
	pair := netlink.NewVeth(netlink.LinkAttrs{Name: port})
	pair.PeerName, pair.PeerNamespace = "uplink", netlink.NsFd(int(ns))
	check(u.t, u.links.LinkAdd(pair))
	bridge, err := u.links.LinkByName("switch")
	check(u.t, err)
	end, err := u.links.LinkByName(port)
	check(u.t, err)
	check(u.t, u.links.LinkSetMaster(end, bridge))
	check(u.t, u.links.LinkSetUp(end))
	h, err := netlink.NewHandleAt(ns)
	check(u.t, err)
	defer h.Close()
	setUp(u.t, h, "uplink", a.String()+"/24")
}

// endpoint is the underlay address of a node, as it has it now.
func (u *underlay) endpoint(n *node) netip.Addr {
	u.t.Helper()
	link, err := n.links.LinkByName("uplink")
	check(u.t, err)
	addresses, err := n.links.AddrList(link, netlink.FAMILY_V4)
	check(u.t, err)
	a, _ := netip.AddrFromSlice(addresses[0].IP.To4())
	return a
}

func (u *underlay) peers() []agentapi.Peer {
	var all []agentapi.Peer
	for i, n := range u.nodes {
		if u.leave[n.cfg.NodeID] {
			continue
		}
		all = append(all, agentapi.Peer{
			Node: n.cfg.NodeID, Name: fmt.Sprint("n", i+1), Subnet: n.config.Subnet,
			Endpoint: netip.AddrPortFrom(u.endpoint(n), testMeshPort), Key: n.MeshKey(),
		})
	}
	slices.SortFunc(all, func(a, b agentapi.Peer) int { return slices.Compare(a.Node[:], b.Node[:]) })
	return all
}

// state is that of the cluster: every task is a member, and every node a peer.
func (u *underlay) state(services []agentapi.Service, tasks ...*task) agentapi.NetworkState {
	s := state(services, tasks...)
	s.Peers = u.peers()
	return s
}

// apply tells every node.
func (u *underlay) apply(services []agentapi.Service, tasks ...*task) {
	u.t.Helper()
	s := u.state(services, tasks...)
	for _, n := range u.nodes {
		n.apply(s)
	}
}

// attach makes a task whose name is unique over the nodes.
func (u *underlay) attach(i int, last byte, networks ...cluster.ID) *task {
	u.t.Helper()
	return u.nodes[i].attach(last, func(a *agent.Attachment) { a.Hostname = fmt.Sprintf("n%d-%d", i+1, last) }, networks...)
}

// eachMesh runs a test on every driver.
func eachMesh(t *testing.T, f func(t *testing.T, mesh cluster.Mesh)) {
	for _, mesh := range meshes {
		t.Run(string(mesh), func(t *testing.T) { f(t, mesh) })
	}
}

// moveTo gives a node another underlay address, as a new lease or a move of the machine does.
func (u *underlay) moveTo(n *node, a netip.Addr) {
	u.t.Helper()
	link, err := n.links.LinkByName("uplink")
	check(u.t, err)
	addresses, err := n.links.AddrList(link, netlink.FAMILY_V4)
	check(u.t, err)
	for _, old := range addresses {
		check(u.t, n.links.AddrDel(link, &old))
	}
	check(u.t, n.links.AddrAdd(link, &netlink.Addr{IPNet: &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(24, 32)}}))
	check(u.t, n.links.RouteReplace(&netlink.Route{Gw: outsideAddress.AsSlice()}))
}

func (u *underlay) configure(mesh cluster.Mesh, port uint16) {
	u.t.Helper()
	for _, n := range u.nodes {
		n.config.Mesh, n.config.MeshPort = mesh, port
		check(u.t, n.Configure(context.Background(), n.config))
	}
}
