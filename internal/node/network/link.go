package network

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"baton/internal/model/cluster"
	"baton/internal/node/agent"
)

// routeProtocol marks our routes; numbers up to 192 that no known routing daemon uses.
const routeProtocol = netlink.RouteProtocol(186)

// gateway is what tasks see as their router: the host end of their link. It is nobody's address; a permanent neighbour
// entry stands for it, so there is no ARP that could go stale.
var gateway = netip.MustParseAddr("169.254.1.1")

// hostMAC is the hardware address of every host end: the links are point to point, so they need no difference.
var hostMAC = net.HardwareAddr{0x02, 0xba, 0x70, 0, 0, 1}

const taskLink = "eth0"

// layout derives the names of everything on the node from the node's id.
type layout struct {
	table  string // nft table
	label  string // of the node's own address on the loopback link
	prefix string // of the tasks' host ends
	metric int    // of our routes to pools and peers
	mesh   string // the mesh's own link; it must not begin with prefix
}

func newLayout(node cluster.ID) layout {
	// Link names hold 15 characters: 2 + 4 of the node + 1 + 8 of the task.
	short := "bn" + node.String()[:4]
	return layout{
		table: "baton-" + node.Short(), label: "lo:" + short, prefix: short + "-",
		metric: 1<<24 | int(node[0])<<16 | int(node[1])<<8 | int(node[2]), mesh: "bm" + node.String()[:4],
	}
}

// routeTable is the table of routes for answers with a mark. The kernel's own tables are below 256; 1 in place of 0 keeps
// ours out of there for every node id.
func (l layout) routeTable(mark uint8) int { return max(l.metric&0xffffff, 1)<<8 | int(mark) }
func (l layout) isTable(table int) bool    { return table>>8 == max(l.metric&0xffffff, 1) }

func (l layout) link(task cluster.ID) string { return l.prefix + task.String()[:8] }
func (l layout) isTaskLink(name string) bool { return strings.HasPrefix(name, l.prefix) }
func taskMAC(a netip.Addr) net.HardwareAddr {
	b := a.As4()
	return net.HardwareAddr{0x02, 0xba, b[0], b[1], b[2], b[3]}
}
func hostNet(a netip.Addr) *net.IPNet { return &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(32, 32)} }
func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), 32)}
}

// setUpHost makes the node forward and gives it its own address.
func (n *Network) setUpHost() error {
	if err := within(n.host, func() error { return setSysctl("net/ipv4/ip_forward", "1") }); err != nil {
		return err
	}
	lo, err := n.links.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("loopback link: %w", err)
	}
	if err := n.links.LinkSetUp(lo); err != nil {
		return fmt.Errorf("loopback link: %w", err)
	}
	return n.onlyAddress(lo, n.nodeAddress(), n.names.label)
}

// followRoutes makes our routes, but those of tasks, the ones of the pools and the given ones of peers. Those of peers are
// within the task pool and more specific.
func (n *Network) followRoutes(peers []netlink.Route) error {
	lo, err := n.links.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("loopback link: %w", err)
	}
	routes := append([]netlink.Route{
		// A host process needs a route before its packet is translated; this one also says which address it comes from.
		{LinkIndex: lo.Attrs().Index, Dst: ipNet(n.node.ServicePool), Src: n.nodeAddress().AsSlice(), Scope: netlink.SCOPE_LINK},
		// An address without a task must not leak to the default route.
		{Dst: ipNet(n.node.TaskPool), Type: unix.RTN_UNREACHABLE},
	}, peers...)
	if err := n.removeRoutes(routes); err != nil {
		return err
	}
	for _, r := range routes {
		r.Protocol, r.Priority = routeProtocol, n.names.metric
		if err := n.links.RouteReplace(&r); err != nil {
			return fmt.Errorf("route to %v: %w", r.Dst, err)
		}
	}
	return nil
}

// onlyAddress makes a the one address of a link with a label, or removes them all when a is zero.
func (n *Network) onlyAddress(link netlink.Link, a netip.Addr, label string) error {
	if a.IsValid() {
		if err := n.links.AddrReplace(link, &netlink.Addr{IPNet: hostNet(a), Label: label}); err != nil {
			return fmt.Errorf("address %v: %w", a, err)
		}
	}
	have, err := n.links.AddrList(link, netlink.FAMILY_V4)
	if err != nil {
		return fmt.Errorf("addresses of link %s: %w", link.Attrs().Name, err)
	}
	for _, old := range have {
		if old.Label == label && !(a.IsValid() && old.IP.Equal(a.AsSlice())) {
			if err := n.links.AddrDel(link, &old); err != nil {
				return fmt.Errorf("address %v: %w", old.IP, err)
			}
		}
	}
	return nil
}

// removeRoutes removes our routes of pools and peers, but those to the destinations of keep. Routes of tasks go with their links.
func (n *Network) removeRoutes(keep []netlink.Route) error {
	have, err := n.links.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Protocol: routeProtocol}, netlink.RT_FILTER_PROTOCOL)
	if err != nil {
		return fmt.Errorf("list routes: %w", err)
	}
	for _, r := range have {
		wanted := slices.ContainsFunc(keep, func(k netlink.Route) bool { return r.Dst != nil && k.Dst.String() == r.Dst.String() })
		if r.Priority != n.names.metric || wanted {
			continue
		}
		if err := n.links.RouteDel(&r); ignoreMissing(err) != nil {
			return fmt.Errorf("route to %v: %w", r.Dst, err)
		}
	}
	return nil
}

// uplinkMTU is the MTU towards the world.
func (n *Network) uplinkMTU() int {
	const ethernet = 1500
	routes, err := n.links.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Dst: nil}, netlink.RT_FILTER_DST)
	if err != nil {
		return ethernet
	}
	for _, r := range routes {
		if link, err := n.links.LinkByIndex(r.LinkIndex); err == nil && link.Attrs().MTU > 0 {
			return link.Attrs().MTU
		}
	}
	return ethernet
}

// plug gives a task its namespace, link, address and routes, or completes them.
func (n *Network) plug(ctx context.Context, a *attachment) error {
	path := n.nsPath(a.Task)
	if err := ensureNS(path); err != nil {
		return err
	}
	ns, err := openNS(path)
	if err != nil {
		return err
	}
	defer func() { _ = ns.Close() }()
	inside, err := netlink.NewHandleAt(ns)
	if err != nil {
		return fmt.Errorf("netlink in the task's namespace: %w", err)
	}
	defer inside.Close()
	host, peer, err := n.ensurePair(a, ns, inside)
	if err != nil {
		return err
	}
	if err := n.plugHost(a, host); err != nil {
		return err
	}
	if err := plugTask(a, inside, peer); err != nil {
		return err
	}
	if err := errors.Join(setMTU(n.links, host, n.mtu), setMTU(inside, peer, n.mtu)); err != nil {
		return err
	}
	if err := errors.Join(waitUp(ctx, n.links, host), waitUp(ctx, inside, peer)); err != nil {
		return err
	}
	if err := bridgeOutages(ns); err != nil {
		return err
	}
	return within(ns, func() error { return taskSysctls(a.Sysctls) })
}

// ensurePair returns both ends of the task's link; half a pair, or one that leads elsewhere, is made anew.
func (n *Network) ensurePair(a *attachment, ns netns.NsHandle, inside *netlink.Handle) (host, peer netlink.Link, err error) {
	name := n.names.link(a.Task)
	host, hostErr := n.links.LinkByName(name)
	peer, peerErr := inside.LinkByName(taskLink)
	if hostErr == nil && peerErr == nil && host.Attrs().ParentIndex == peer.Attrs().Index {
		return host, peer, nil
	}
	if hostErr == nil {
		if err := n.links.LinkDel(host); ignoreMissing(err) != nil {
			return nil, nil, fmt.Errorf("link %s: %w", name, err)
		}
	}
	if peerErr == nil {
		if err := inside.LinkDel(peer); ignoreMissing(err) != nil {
			return nil, nil, fmt.Errorf("link %s of the task: %w", taskLink, err)
		}
	}
	pair := netlink.NewVeth(netlink.LinkAttrs{Name: name, MTU: n.mtu, HardwareAddr: hostMAC})
	pair.PeerName, pair.PeerHardwareAddr, pair.PeerNamespace, pair.PeerMTU = taskLink, taskMAC(a.Address), netlink.NsFd(int(ns)), uint32(n.mtu)
	if err := n.links.LinkAdd(pair); err != nil {
		return nil, nil, fmt.Errorf("make link %s: %w", name, err)
	}
	if host, err = n.links.LinkByName(name); err != nil {
		return nil, nil, fmt.Errorf("link %s: %w", name, err)
	}
	if peer, err = inside.LinkByName(taskLink); err != nil {
		return nil, nil, fmt.Errorf("link %s of the task: %w", taskLink, err)
	}
	return host, peer, nil
}

// plugHost sets the host end: never IPv6 (it would pass by the rules), no redirects, replies to 127.0.0.1 allowed in.
func (n *Network) plugHost(a *attachment, host netlink.Link) error {
	name := host.Attrs().Name
	if err := n.links.LinkSetAlias(host, "baton task "+a.Task.String()); err != nil {
		return fmt.Errorf("link %s: %w", name, err)
	}
	err := within(n.host, func() error {
		conf := "net/ipv4/conf/" + name + "/"
		return errors.Join(
			setSysctlIfThere("net/ipv6/conf/"+name+"/disable_ipv6", "1"),
			setSysctl(conf+"send_redirects", "0"), setSysctl(conf+"accept_redirects", "0"),
			setSysctl(conf+"route_localnet", "1"), setSysctl(conf+"rp_filter", "0"),
			setSysctl(conf+"forwarding", "1"), setSysctl(conf+"proxy_arp", "0"))
	})
	if err != nil {
		return err
	}
	if err := n.links.LinkSetUp(host); err != nil {
		return fmt.Errorf("link %s: %w", name, err)
	}
	neighbour := &netlink.Neigh{LinkIndex: host.Attrs().Index, Family: netlink.FAMILY_V4, State: netlink.NUD_PERMANENT, IP: a.Address.AsSlice(), HardwareAddr: taskMAC(a.Address)}
	if err := n.links.NeighSet(neighbour); err != nil {
		return fmt.Errorf("neighbour %v on %s: %w", a.Address, name, err)
	}
	route := &netlink.Route{
		LinkIndex: host.Attrs().Index, Dst: hostNet(a.Address), Src: n.nodeAddress().AsSlice(),
		Scope: netlink.SCOPE_LINK, Protocol: routeProtocol,
	}
	if err := n.links.RouteReplace(route); err != nil {
		return fmt.Errorf("route to %v: %w", a.Address, err)
	}
	return nil
}

// plugTask sets the task's end.
func plugTask(a *attachment, inside *netlink.Handle, peer netlink.Link) error {
	lo, err := inside.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("loopback of the task: %w", err)
	}
	if err := inside.LinkSetUp(lo); err != nil {
		return fmt.Errorf("loopback of the task: %w", err)
	}
	if err := inside.AddrReplace(peer, &netlink.Addr{IPNet: hostNet(a.Address)}); err != nil {
		return fmt.Errorf("address %v: %w", a.Address, err)
	}
	if err := inside.LinkSetUp(peer); err != nil {
		return fmt.Errorf("link of the task: %w", err)
	}
	index := peer.Attrs().Index
	neighbour := &netlink.Neigh{LinkIndex: index, Family: netlink.FAMILY_V4, State: netlink.NUD_PERMANENT, IP: gateway.AsSlice(), HardwareAddr: hostMAC}
	if err := inside.NeighSet(neighbour); err != nil {
		return fmt.Errorf("gateway of the task: %w", err)
	}
	everywhere := &net.IPNet{IP: net.IPv4zero, Mask: net.CIDRMask(0, 32)}
	for _, r := range []netlink.Route{
		{LinkIndex: index, Dst: hostNet(gateway), Scope: netlink.SCOPE_LINK},
		{LinkIndex: index, Dst: everywhere, Gw: gateway.AsSlice(), Src: a.Address.AsSlice()},
	} {
		if err := inside.RouteReplace(&r); err != nil {
			return fmt.Errorf("routes of the task: %w", err)
		}
	}
	return nil
}

// setTaskMTUs changes the links of attached tasks in place: connections go on with what fits now.
func (n *Network) setTaskMTUs() error {
	var errs []error
	for id := range n.attached {
		host, err := n.links.LinkByName(n.names.link(id))
		if err != nil {
			continue // Attach makes it anew
		}
		if host.Attrs().MTU == n.mtu {
			continue
		}
		// The task's end goes first, and the host's end last: it is what says that both are done.
		errs = append(errs, n.setInsideMTU(id), setMTU(n.links, host, n.mtu))
	}
	return errors.Join(errs...)
}

func (n *Network) setInsideMTU(id cluster.ID) error {
	ns, err := openNS(n.nsPath(id))
	if err != nil {
		return err
	}
	defer func() { _ = ns.Close() }()
	inside, err := netlink.NewHandleAt(ns)
	if err != nil {
		return fmt.Errorf("netlink in the task's namespace: %w", err)
	}
	defer inside.Close()
	link, err := inside.LinkByName(taskLink)
	if err != nil {
		return fmt.Errorf("link %s of the task: %w", taskLink, err)
	}
	return setMTU(inside, link, n.mtu)
}

func setMTU(h *netlink.Handle, link netlink.Link, mtu int) error {
	if link.Attrs().MTU == mtu {
		return nil
	}
	if err := h.LinkSetMTU(link, mtu); err != nil {
		return fmt.Errorf("MTU %d of link %s: %w", mtu, link.Attrs().Name, err)
	}
	return nil
}

// waitUp waits until a link carries packets. The end that was set up first learns of the other in the background; until
// then it drops what is sent, and a client's first packet would be lost for a second.
func waitUp(ctx context.Context, h *netlink.Handle, link netlink.Link) error {
	ctx, cancel := context.WithTimeout(ctx, upTimeout)
	defer cancel()
	poll := time.NewTicker(time.Millisecond)
	defer poll.Stop()
	for {
		now, err := h.LinkByIndex(link.Attrs().Index)
		if err != nil {
			return fmt.Errorf("link %s: %w", link.Attrs().Name, err)
		}
		if now.Attrs().OperState == netlink.OperUp {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("link %s is not up after %v: %w", link.Attrs().Name, upTimeout, ctx.Err())
		case <-poll.C:
		}
	}
}

// upTimeout bounds the wait for a link; milliseconds are usual.
const upTimeout = 5 * time.Second

// unplug removes a task's link and namespace.
func (n *Network) unplug(task cluster.ID) error {
	if link, err := n.links.LinkByName(n.names.link(task)); err == nil {
		if err := n.links.LinkDel(link); ignoreMissing(err) != nil {
			return fmt.Errorf("link %s: %w", link.Attrs().Name, err)
		}
	}
	return removeNS(n.nsPath(task))
}

// taskSysctls sets what docker sets in a namespace, and what the task asks for. It runs within the namespace.
func taskSysctls(own map[string]string) error {
	errs := []error{
		setSysctlIfThere("net/ipv4/ip_unprivileged_port_start", "0"),
		setSysctlIfThere("net/ipv4/ping_group_range", "0 2147483647"),
		setSysctlIfThere("net/ipv6/conf/"+taskLink+"/disable_ipv6", "1"),
		setSysctlIfThere("net/ipv6/conf/default/disable_ipv6", "1"),
	}
	for key, value := range own {
		if err := setSysctl(strings.ReplaceAll(key, ".", "/"), value); err != nil {
			errs = append(errs, &agent.RejectError{Reason: fmt.Sprintf("sysctl %s=%s cannot be set in a task; correct or remove it", key, value), Err: err})
		}
	}
	return errors.Join(errs...)
}

func checkSysctls(own map[string]string) error {
	for key := range own {
		if !strings.HasPrefix(key, "net.") || strings.Contains(key, "..") || strings.ContainsAny(key, "/\x00") {
			return &agent.RejectError{Reason: fmt.Sprintf("sysctl %q: only net.* settings can be set per task", key)}
		}
	}
	return nil
}

// setSysctl writes a setting of the namespace that the calling thread is in, unless it has the value.
func setSysctl(key, value string) error {
	path := filepath.Join("/proc/sys", key)
	if have, err := os.ReadFile(path); err == nil && strings.Join(strings.Fields(string(have)), " ") == value {
		return nil
	}
	if err := os.WriteFile(path, []byte(value), 0o644); err != nil {
		return fmt.Errorf("sysctl: %w", err)
	}
	return nil
}

// setSysctlIfThere is setSysctl for settings that a kernel may lack.
func setSysctlIfThere(key, value string) error {
	if err := setSysctl(key, value); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// ignoreMissing drops the errors that say: it is already gone.
func ignoreMissing(err error) error {
	var notFound netlink.LinkNotFoundError
	if errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ESRCH) || errors.Is(err, unix.ENOENT) || errors.As(err, &notFound) {
		return nil
	}
	return err
}
