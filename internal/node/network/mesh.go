package network

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"baton/internal/model/cluster"
	"baton/internal/wire/agentapi"
)

// mesh is this node's part of what connects the nodes' subnets. docs/networking.md, "Between nodes", draws it.
//
// It is worked out from the node's configuration and the peers that the managers name, level by level: link, peers, routes.
// What it was last configured for is recorded under StateDir/mesh, so that a new process has in-process WireGuard up again
// before it has heard of any manager.
type mesh struct {
	keys   meshKeys
	record meshRecord      // what the kernel was last configured for
	up     bool            // this process has seen to it
	seen   []agentapi.Peer // what the record's peers follow from
	links  []string        // that the mesh's packets come in by
	wg     *tunnel         // nil unless the mesh is WireGuard
}

// meshRecord is the content of StateDir/mesh/peers.
type meshRecord struct {
	Node  agentapi.NodeConfig
	Local netip.Addr // this node's own endpoint; zero when it is not known
	Peers []meshPeer // without this node
	Links []string   // routed: the links between nodes, whose route_localnet is ours
}

// meshPeer is another node that this one's packets can go to.
type meshPeer struct {
	agentapi.Peer
	Mark uint8 // vxlan: number of the mark that takes answers back to it; 0: none
	// Roamed is where in-process WireGuard found the peer, when that is not its endpoint: behind a translation it cannot be
	// called by any other address.
	Roamed netip.AddrPort
}

// address is the peer's own one, the first of its subnet.
func (p meshPeer) address() netip.Addr { return p.Subnet.Addr().Next() }

// What a mesh adds to each packet, at most: outer headers, and with WireGuard room for an underlay of IPv6.
const (
	overheadVXLAN     = 50
	overheadWireGuard = 80
)

func meshOverhead(m cluster.Mesh) int {
	switch m {
	case cluster.MeshWireGuard:
		return overheadWireGuard
	case cluster.MeshVXLAN:
		return overheadVXLAN
	}
	return 0
}

func checkMesh(c agentapi.NodeConfig) error {
	switch c.Mesh {
	case "", cluster.MeshRouted:
		return nil
	case cluster.MeshWireGuard, cluster.MeshVXLAN:
		if c.MeshPort == 0 {
			return fmt.Errorf("node config: mesh %s without a port; the managers must set one, the same on all nodes", c.Mesh)
		}
		return nil
	}
	return fmt.Errorf("node config: unknown mesh %q; this version knows %s, %s and %s: upgrade this node", c.Mesh, cluster.MeshWireGuard, cluster.MeshVXLAN, cluster.MeshRouted)
}

// followMesh makes the mesh follow the node's configuration and the peers of the state; before the first state, those of
// the record.
func (n *Network) followMesh() error {
	m := &n.mesh
	want := meshRecord{Node: n.node, Local: m.record.Local, Peers: m.record.Peers}
	if n.applied {
		// Routes of the routed mesh are on links that are not ours: they go when such a link does, so look each time.
		if m.up && m.record.Node == n.node && n.node.Mesh != cluster.MeshRouted && slices.Equal(m.seen, n.state.Peers) {
			return nil
		}
		want.Local, want.Peers = n.usablePeers(n.state.Peers)
	}
	m.up = false
	var key string // that the others know this node by
	if i := slices.IndexFunc(n.state.Peers, func(p agentapi.Peer) bool { return p.Node == n.cfg.NodeID }); i >= 0 {
		key = n.state.Peers[i].Key
	}
	n.chooseMTU(want)
	routes, err := n.followDriver(&want, key)
	if err != nil {
		return err
	}
	if err := n.followRoutes(routes); err != nil {
		return err
	}
	if !m.record.equal(want) {
		if err := writeJSON(n.meshPath("peers"), want); err != nil {
			return err
		}
	}
	m.record, m.up, m.seen = want, true, slices.Clone(n.state.Peers)
	return n.setTaskMTUs()
}

func (r meshRecord) equal(o meshRecord) bool {
	return r.Node == o.Node && r.Local == o.Local && slices.Equal(r.Peers, o.Peers) && slices.Equal(r.Links, o.Links)
}

// followDriver makes the link and the peers, and returns the routes that lead to them.
func (n *Network) followDriver(want *meshRecord, key string) ([]netlink.Route, error) {
	m := &n.mesh
	if want.Node.Mesh != cluster.MeshWireGuard && m.wg != nil {
		m.wg.close()
		m.wg = nil
	}
	if want.Node.Mesh != cluster.MeshVXLAN {
		if err := n.followMarks(nil, 0); err != nil {
			return nil, err
		}
	}
	switch want.Node.Mesh {
	case cluster.MeshWireGuard:
		m.links = []string{n.names.mesh}
		return n.followWireGuard(*want, key)
	case cluster.MeshVXLAN:
		m.links = []string{n.names.mesh}
		return n.followVXLAN(*want)
	}
	if err := n.removeMeshLink(); err != nil {
		return nil, err
	}
	if want.Node.Mesh == "" {
		m.links = nil
		return nil, nil
	}
	routes, links, err := n.routed(want.Peers)
	m.links, want.Links = links, links
	return routes, err
}

// usablePeers returns this node's own endpoint and the peers that this node can speak to. One that is named wrongly must not
// keep the others, or services, from being followed: it is left out and logged.
func (n *Network) usablePeers(peers []agentapi.Peer) (local netip.Addr, usable []meshPeer) {
	if n.node.Mesh == "" {
		return netip.Addr{}, nil
	}
	taken := []netip.Prefix{n.node.Subnet}
	for _, p := range peers {
		p.Endpoint = netip.AddrPortFrom(p.Endpoint.Addr().Unmap(), p.Endpoint.Port())
		if p.Node == n.cfg.NodeID {
			local = p.Endpoint.Addr()
			continue
		}
		if err := checkPeer(n.node, p, taken); err != nil {
			if !slices.Contains(n.mesh.seen, p) {
				n.log.Warn("a node is left out of the mesh", "node", p.Name, "id", p.Node, "err", err)
			}
			continue
		}
		taken = append(taken, p.Subnet)
		usable = append(usable, meshPeer{Peer: p})
	}
	keepRoaming(n.mesh.record.Peers, usable)
	assignMarks(n.mesh.record.Peers, usable)
	return local, usable
}

func checkPeer(c agentapi.NodeConfig, p agentapi.Peer, taken []netip.Prefix) error {
	if !p.Subnet.IsValid() || p.Subnet != p.Subnet.Masked() || !c.TaskPool.Overlaps(p.Subnet) || p.Subnet.Bits() < c.TaskPool.Bits() {
		return fmt.Errorf("its subnet %v is not a part of the task pool %v", p.Subnet, c.TaskPool)
	}
	for _, t := range taken {
		if t.Overlaps(p.Subnet) {
			return fmt.Errorf("its subnet %v overlaps %v of another node", p.Subnet, t)
		}
	}
	if c.Mesh == cluster.MeshWireGuard {
		if _, err := parseKey(p.Key); err != nil {
			return fmt.Errorf("its WireGuard key: %w", err)
		}
		return nil // without an endpoint it is one that calls first
	}
	if !p.Endpoint.Addr().Is4() {
		return fmt.Errorf("its endpoint %v is not an IPv4 address, which the mesh %q needs", p.Endpoint, c.Mesh)
	}
	return nil
}

// chooseMTU sets the MTU of tasks' links and of the mesh's. The narrowest way to a peer counts: private networks of clouds
// often carry less than the link to the world.
func (n *Network) chooseMTU(want meshRecord) {
	if n.cfg.MTU != 0 {
		n.mtu = n.cfg.MTU
		return
	}
	underlay := n.uplinkMTU()
	if want.Node.Mesh != "" {
		for _, p := range want.Peers {
			if link := n.linkTowards(p.Endpoint.Addr()); link != nil && link.Attrs().Flags&unix.IFF_LOOPBACK == 0 {
				underlay = min(underlay, link.Attrs().MTU)
			}
		}
	}
	n.mtu = underlay - meshOverhead(want.Node.Mesh)
}

// linkTowards returns the link of the route to an address, or nil.
func (n *Network) linkTowards(a netip.Addr) netlink.Link {
	if !a.IsValid() {
		return nil
	}
	routes, err := n.links.RouteGet(a.AsSlice())
	if err != nil || len(routes) == 0 {
		return nil
	}
	link, err := n.links.LinkByIndex(routes[0].LinkIndex)
	if err != nil {
		return nil
	}
	return link
}

// setUpMeshLink sets a link of our own. Answers to 127.0.0.1 come in by it. A loose check of sources is right, because a
// published port's client may be anywhere; our rules check strictly what comes from a pool. The link has the node's address
// because without any the kernel's loose check is a strict one.
func (n *Network) setUpMeshLink(link netlink.Link) error {
	name := link.Attrs().Name
	err := within(n.host, func() error {
		conf := "net/ipv4/conf/" + name + "/"
		return errors.Join(
			setSysctlIfThere("net/ipv6/conf/"+name+"/disable_ipv6", "1"),
			setSysctl(conf+"send_redirects", "0"), setSysctl(conf+"accept_redirects", "0"),
			setSysctl(conf+"route_localnet", "1"), setSysctl(conf+"rp_filter", "2"), setSysctl(conf+"forwarding", "1"))
	})
	if err != nil {
		return err
	}
	if err := setMTU(n.links, link, n.mtu); err != nil {
		return err
	}
	if link.Attrs().Alias != "baton mesh" {
		if err := n.links.LinkSetAlias(link, "baton mesh"); err != nil {
			return fmt.Errorf("link %s: %w", name, err)
		}
	}
	if err := n.links.LinkSetUp(link); err != nil {
		return fmt.Errorf("link %s: %w", name, err)
	}
	return n.onlyAddress(link, n.nodeAddress(), name)
}

// meshLink returns the mesh's own link, or nil when there is none.
func (n *Network) meshLink() (netlink.Link, error) {
	link, err := n.links.LinkByName(n.names.mesh)
	if ignoreMissing(err) != nil {
		return nil, fmt.Errorf("link %s: %w", n.names.mesh, err)
	}
	if err != nil {
		return nil, nil
	}
	return link, nil
}

func (n *Network) removeMeshLink() error {
	link, err := n.meshLink()
	if err != nil || link == nil {
		return err
	}
	if err := n.links.LinkDel(link); ignoreMissing(err) != nil {
		return fmt.Errorf("link %s: %w", n.names.mesh, err)
	}
	return nil
}

// routed returns the routes of a mesh without tunnels, and the links that it goes by.
func (n *Network) routed(peers []meshPeer) (routes []netlink.Route, links []string, err error) {
	for _, p := range peers {
		way, err := n.links.RouteGet(p.Endpoint.Addr().AsSlice())
		if err != nil || len(way) == 0 || way[0].Gw != nil || way[0].Type != unix.RTN_UNICAST {
			n.log.Warn("a node is left out of the mesh: it is not on a link of this one, as the routed mesh needs; use wireguard or vxlan, or join it by an address on a common link",
				"node", p.Name, "endpoint", p.Endpoint.Addr(), "err", err)
			continue
		}
		link, err := n.links.LinkByIndex(way[0].LinkIndex)
		if err != nil {
			return nil, nil, fmt.Errorf("link towards %s: %w", p.Name, err)
		}
		routes = append(routes, netlink.Route{LinkIndex: way[0].LinkIndex, Dst: ipNet(p.Subnet), Gw: p.Endpoint.Addr().AsSlice(), Src: n.nodeAddress().AsSlice()})
		links = append(links, link.Attrs().Name)
	}
	slices.Sort(links)
	links = slices.Compact(links)
	for _, name := range links {
		err := within(n.host, func() error { return setSysctl("net/ipv4/conf/"+name+"/route_localnet", "1") })
		if err != nil {
			return nil, nil, err
		}
	}
	return routes, links, nil
}

// removeMesh removes what the mesh made in the kernel, but routes.
func (n *Network) removeMesh() error {
	n.loadMesh()
	errs := []error{n.removeMeshLink(), n.followMarks(nil, 0)}
	for _, name := range n.mesh.record.Links {
		errs = append(errs, within(n.host, func() error {
			return setSysctlIfThere("net/ipv4/conf/"+name+"/route_localnet", "0")
		}))
	}
	return errors.Join(errs...)
}

func (n *Network) meshPath(name string) string { return filepath.Join(n.cfg.StateDir, "mesh", name) }

// loadMesh reads the record; without a usable one the first state brings everything.
func (n *Network) loadMesh() {
	b, err := os.ReadFile(n.meshPath("peers"))
	if errors.Is(err, os.ErrNotExist) {
		return
	}
	var r meshRecord
	if err == nil {
		err = json.Unmarshal(b, &r)
	}
	if err != nil {
		n.log.Warn("unusable record of the mesh; other nodes are reached again with the first state from a manager", "file", n.meshPath("peers"), "err", err)
		return
	}
	n.mesh.record = r
}

// resumeMesh brings in-process WireGuard up again, as an earlier process had it: nothing else stopped with that. Whatever
// goes wrong, Configure tries again, and reports it.
func (n *Network) resumeMesh() {
	r := n.mesh.record
	if r.Node.Mesh != cluster.MeshWireGuard || checkMesh(r.Node) != nil {
		return
	}
	link, err := n.meshLink()
	if err == nil && link != nil && link.Type() == linkTypeTUN {
		err = n.openTunnel(r, link.Attrs().MTU)
	}
	if err != nil {
		n.log.Warn("the mesh is not up yet", "err", err)
	}
}
