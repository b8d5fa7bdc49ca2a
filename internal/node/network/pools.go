package network

import (
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
)

// Candidates for pools, in this order: pairs of /16 in 10.210.0.0 to 10.253.0.0, which home and office routers rarely
// use, then in 172.20.0.0 to 172.31.0.0, then halves of /15 in the carrier range 100.64.0.0/10.
func poolCandidates() [][2]netip.Prefix {
	var all [][2]netip.Prefix
	add := func(a, b byte) {
		all = append(all, [2]netip.Prefix{
			netip.PrefixFrom(netip.AddrFrom4([4]byte{a, b}), 16), netip.PrefixFrom(netip.AddrFrom4([4]byte{a, b + 1}), 16),
		})
	}
	for b := byte(210); b < 254; b += 2 {
		add(10, b)
	}
	for b := byte(20); b < 32; b += 2 {
		add(172, b)
	}
	for b := byte(64); b < 128; b += 2 {
		add(100, b)
	}
	return all
}

// ChoosePools returns the first pair of pools, for tasks and for services, that overlaps nothing in taken.
func ChoosePools(taken []netip.Prefix) (tasks, services netip.Prefix, err error) {
	for _, pair := range poolCandidates() {
		free := true
		for _, p := range taken {
			free = free && !p.Overlaps(pair[0]) && !p.Overlaps(pair[1])
		}
		if free {
			return pair[0], pair[1], nil
		}
	}
	return tasks, services, fmt.Errorf("every candidate for the address pools overlaps one of the %d addresses and routes of this machine; choose the pools yourself", len(taken))
}

// Taken lists the addresses and routes of the node's namespace, given by path or empty for this process's own, without the default route.
func Taken(path string) ([]netip.Prefix, error) {
	ns, err := openNS(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = ns.Close() }()
	h, err := netlink.NewHandleAt(ns)
	if err != nil {
		return nil, fmt.Errorf("netlink: %w", err)
	}
	defer h.Close()
	var taken []netip.Prefix
	links, err := h.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	for _, l := range links {
		addresses, err := h.AddrList(l, netlink.FAMILY_V4)
		if err != nil {
			return nil, fmt.Errorf("list addresses: %w", err)
		}
		for _, a := range addresses {
			if ip, ok := netip.AddrFromSlice(a.IP.To4()); ok {
				ones, _ := a.Mask.Size()
				taken = append(taken, netip.PrefixFrom(ip, ones).Masked())
			}
		}
	}
	routes, err := h.RouteList(nil, netlink.FAMILY_V4)
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	for _, r := range routes {
		if r.Dst == nil {
			continue
		}
		ip, ok := netip.AddrFromSlice(r.Dst.IP.To4())
		if ones, _ := r.Dst.Mask.Size(); ok && ones > 0 {
			taken = append(taken, netip.PrefixFrom(ip, ones).Masked())
		}
	}
	return taken, nil
}
