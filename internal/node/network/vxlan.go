package network

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"baton/internal/model/cluster"
)

// vni is the one network identifier that nodes use: a cluster is told from another by its port and its peers.
const vni = 0xba70

// Return marks: a connection from outside the cluster that another node sent here keeps its client's address, so its
// answers must go back by that node. What comes in is told apart by its inner source MAC; the connection gets the mark of that
// peer, answers carry it, and a rule of its own sends them to the peer.
const (
	markBase     = 0xb0000000
	markMask     = 0xfff00000 // the other bits are others'
	markOwner    = 0xf0000000 // of these, what says that a mark is one of ours
	markShift    = 20
	marksMax     = 250  // a rule per peer costs every lookup a few nanoseconds; larger clusters masquerade instead
	markPriority = 1860 // of the rules; before the main table, which is at 32766
)

func markOf(number uint8) uint32 { return markBase | uint32(number)<<markShift }

// assignMarks gives each peer a number and keeps those of before: connections carry them.
func assignMarks(before, peers []meshPeer) {
	if len(peers) > marksMax {
		return
	}
	var used [marksMax + 1]bool
	for i := range peers {
		for _, b := range before {
			if b.Node == peers[i].Node && b.Mark != 0 && !used[b.Mark] {
				peers[i].Mark = b.Mark
				used[b.Mark] = true
			}
		}
	}
	next := uint8(1)
	for i := range peers {
		if peers[i].Mark != 0 {
			continue
		}
		for used[next] {
			next++
		}
		peers[i].Mark = next
		used[next] = true
	}
}

// vtepMAC is the hardware address of a node's end of the mesh. It follows from the node, so nobody has to announce it.
func vtepMAC(node cluster.ID) net.HardwareAddr {
	return net.HardwareAddr{0x02, node[0], node[1], node[2], node[3], node[4]}
}

// followVXLAN makes the link, and for each peer a permanent neighbour, the way to its MAC, and a rule for answers.
// Nothing is learned from packets.
func (n *Network) followVXLAN(want meshRecord) ([]netlink.Route, error) {
	link, err := n.ensureVXLAN(want)
	if err != nil {
		return nil, err
	}
	if err := n.setUpMeshLink(link); err != nil {
		return nil, err
	}
	index := link.Attrs().Index
	var entries []netlink.Neigh
	var routes []netlink.Route
	for _, p := range want.Peers {
		entries = append(entries,
			netlink.Neigh{LinkIndex: index, Family: unix.AF_INET, State: netlink.NUD_PERMANENT, IP: p.address().AsSlice(), HardwareAddr: vtepMAC(p.Node)},
			netlink.Neigh{LinkIndex: index, Family: unix.AF_BRIDGE, State: netlink.NUD_PERMANENT, Flags: netlink.NTF_SELF, IP: p.Endpoint.Addr().AsSlice(), HardwareAddr: vtepMAC(p.Node)})
		routes = append(routes, netlink.Route{LinkIndex: index, Dst: ipNet(p.Subnet), Gw: p.address().AsSlice(), Src: n.nodeAddress().AsSlice(), Flags: int(netlink.FLAG_ONLINK)})
	}
	if err := n.followNeighbours(index, entries); err != nil {
		return nil, err
	}
	return routes, n.followMarks(want.Peers, index)
}

// ensureVXLAN returns the link; one that differs in what cannot be changed is made anew.
func (n *Network) ensureVXLAN(want meshRecord) (netlink.Link, error) {
	link, err := n.meshLink()
	if err != nil {
		return nil, err
	}
	v := &netlink.Vxlan{
		LinkAttrs: netlink.LinkAttrs{Name: n.names.mesh, MTU: n.mtu, HardwareAddr: vtepMAC(n.cfg.NodeID)},
		VxlanId:   vni, Port: int(want.Node.MeshPort),
	}
	// The others accept packets from the endpoint that they know only. Behind a translation it is on no link here.
	if want.Local.IsValid() && n.hasAddress(want.Local) {
		v.SrcAddr = want.Local.AsSlice()
	}
	if have, ok := link.(*netlink.Vxlan); ok && have.VxlanId == v.VxlanId && have.Port == v.Port && have.SrcAddr.Equal(v.SrcAddr) && !have.Learning &&
		slices.Equal(have.HardwareAddr, v.HardwareAddr) {
		return link, nil
	}
	if err := n.removeMeshLink(); err != nil {
		return nil, err
	}
	if err := n.links.LinkAdd(v); err != nil {
		return nil, fmt.Errorf("make link %s (VXLAN, port %d): %w", v.Name, v.Port, err)
	}
	if link, err = n.meshLink(); err == nil && link == nil {
		err = fmt.Errorf("link %s is gone at once", v.Name)
	}
	return link, err
}

func (n *Network) hasAddress(a netip.Addr) bool {
	all, err := n.links.AddrList(nil, netlink.FAMILY_V4)
	return err == nil && slices.ContainsFunc(all, func(have netlink.Addr) bool { return have.IP.Equal(a.AsSlice()) })
}

// followNeighbours makes the permanent entries of a link exactly want.
func (n *Network) followNeighbours(index int, want []netlink.Neigh) error {
	for _, family := range []int{unix.AF_INET, unix.AF_BRIDGE} {
		have, err := n.links.NeighList(index, family)
		if err != nil {
			return fmt.Errorf("neighbours in the mesh: %w", err)
		}
		for _, h := range have {
			wanted := slices.ContainsFunc(want, func(w netlink.Neigh) bool {
				return w.Family == family && w.IP.Equal(h.IP) && slices.Equal(w.HardwareAddr, h.HardwareAddr)
			})
			if wanted || h.State&netlink.NUD_PERMANENT == 0 || h.IP.IsMulticast() {
				continue
			}
			h.Family = family
			if err := n.links.NeighDel(&h); ignoreMissing(err) != nil {
				return fmt.Errorf("neighbour %v in the mesh: %w", h.IP, err)
			}
		}
	}
	for _, w := range want {
		if err := n.links.NeighSet(&w); err != nil {
			return fmt.Errorf("neighbour %v in the mesh: %w", w.IP, err)
		}
	}
	return nil
}

// followMarks makes the rules for answers, and their tables, exactly those of peers.
func (n *Network) followMarks(peers []meshPeer, index int) error {
	rules, err := n.links.RuleList(netlink.FAMILY_V4)
	if err != nil {
		return fmt.Errorf("routing rules: %w", err)
	}
	there := make(map[int]bool)
	for _, r := range rules {
		if r.Priority != markPriority || !n.names.isTable(r.Table) {
			continue
		}
		wanted := slices.ContainsFunc(peers, func(p meshPeer) bool { return p.Mark != 0 && n.names.routeTable(p.Mark) == r.Table })
		if wanted && !there[r.Table] {
			there[r.Table] = true
			continue
		}
		r.Family = netlink.FAMILY_V4
		if err := n.links.RuleDel(&r); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("routing rule for answers: %w", err)
		}
		if err := n.emptyTable(r.Table); err != nil {
			return err
		}
	}
	for _, p := range peers {
		if p.Mark == 0 {
			continue
		}
		table := n.names.routeTable(p.Mark)
		route := &netlink.Route{
			LinkIndex: index, Dst: &net.IPNet{IP: net.IPv4zero, Mask: net.CIDRMask(0, 32)}, Gw: p.address().AsSlice(),
			Flags: int(netlink.FLAG_ONLINK), Table: table, Protocol: routeProtocol, Priority: n.names.metric,
		}
		if err := n.links.RouteReplace(route); err != nil {
			return fmt.Errorf("route for answers by node %s: %w", p.Name, err)
		}
		if there[table] {
			continue
		}
		r, mask := netlink.NewRule(), uint32(markMask)
		r.Family, r.Priority, r.Table, r.Mark, r.Mask, r.Protocol = netlink.FAMILY_V4, markPriority, table, markOf(p.Mark), &mask, uint8(routeProtocol)
		if err := n.links.RuleAdd(r); err != nil {
			return fmt.Errorf("routing rule for answers by node %s: %w", p.Name, err)
		}
	}
	return nil
}

func (n *Network) emptyTable(table int) error {
	routes, err := n.links.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Table: table}, netlink.RT_FILTER_TABLE)
	if err != nil {
		return fmt.Errorf("routes for answers: %w", err)
	}
	for _, r := range routes {
		if err := n.links.RouteDel(&r); ignoreMissing(err) != nil {
			return fmt.Errorf("route for answers: %w", err)
		}
	}
	return nil
}
