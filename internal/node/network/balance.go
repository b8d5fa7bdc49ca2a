package network

import (
	"encoding/binary"
	"net/netip"
	"strconv"

	"baton/internal/wire/agentapi"
)

// frontend is what clients connect to: a whole service address (protocol 0), or a published port of the node.
type frontend struct {
	address  netip.Addr // anyAddress for a port that listens on every address of the node
	protocol uint8
	port     uint16
}

// target is where a frontend's connections go. Port 0 keeps the client's.
type target struct {
	address netip.Addr
	port    uint16
}

var anyAddress = netip.IPv4Unspecified()

func (f frontend) published() bool { return f.protocol != 0 }

// balancer holds, for each frontend, its targets by slot, exactly as the kernel has them.
//
// A connection draws a slot below the number of targets, so slots have no holes. Changes keep the order of what stays:
// a new target takes the slot of a removed one, else the end; the last target moves into a slot that stays free.
type balancer struct {
	fronts map[frontend][]target
}

// update moves the frontends to want and writes what the kernel needs into e. It reports whether a frontend lost a
// target or a port was newly published, so that datagram flows may now point to the wrong place.
func (b *balancer) update(want map[frontend][]target, e *edit) (moved bool) {
	for f, have := range b.fronts {
		if _, ok := want[f]; !ok {
			b.set(f, nil, e)
			if f.published() && len(have) == 0 {
				e.remove(setClosed, f.key())
			}
			delete(b.fronts, f)
			moved = true
		}
	}
	for f, targets := range want {
		have, known := b.fronts[f]
		if known && sameTargets(have, targets) {
			continue
		}
		lost := b.set(f, targets, e)
		moved = moved || lost || !known && f.published()
		if !f.published() {
			continue
		}
		switch isOpen := len(b.fronts[f]) > 0; {
		case !isOpen && (!known || len(have) > 0):
			e.add(setClosed, f.key(), nil)
		case isOpen && known && len(have) == 0:
			e.remove(setClosed, f.key())
		}
	}
	return moved
}

func sameTargets(have, want []target) bool {
	if len(have) != len(want) {
		return false
	}
	for i := range have {
		if have[i] != want[i] {
			return false
		}
	}
	return true
}

// set moves one frontend to the wanted targets and reports whether one was lost.
func (b *balancer) set(f frontend, want []target, e *edit) (lost bool) {
	have := b.fronts[f]
	next, changed := arrange(have, want)
	for _, slot := range changed {
		if slot < len(have) {
			e.remove(f.slotSet(), f.slotKey(slot))
			lost = true
		}
		e.add(f.slotSet(), f.slotKey(slot), f.slotValue(next[slot]))
	}
	// A packet may already be past the map that says how many slots there are: the last ones go in a later transaction.
	for slot := len(next); slot < len(have); slot++ {
		e.removeLate(f.slotSet(), f.slotKey(slot))
		lost = true
	}
	if len(have) != len(next) {
		if len(have) > 0 {
			e.remove(f.set(), f.key())
		}
		if len(next) > 0 {
			e.addVerdict(f.set(), f.key(), f.chain(len(next)))
		}
	}
	b.fronts[f] = next
	return lost
}

// arrange returns want in an order that keeps the slots of have, and the slots that got another target, ascending.
func arrange(have, want []target) (next []target, changed []int) {
	wanted := make(map[target]bool, len(want))
	for _, t := range want {
		wanted[t] = true
	}
	next = make([]target, 0, len(want))
	var free []int
	for slot, t := range have {
		if !wanted[t] {
			free = append(free, slot)
		}
		delete(wanted, t) // what remains is new
		next = append(next, t)
	}
	touched := make(map[int]bool)
	for _, t := range want {
		if !wanted[t] {
			continue
		}
		delete(wanted, t)
		if len(free) > 0 {
			next[free[0]] = t
			touched[free[0]] = true
			free = free[1:]
			continue
		}
		next = append(next, t)
		touched[len(next)-1] = true
	}
	for len(free) > 0 {
		last := len(next) - 1
		if free[len(free)-1] == last {
			free = free[:len(free)-1]
		} else {
			next[free[0]] = next[last]
			touched[free[0]] = true
			free = free[1:]
		}
		next = next[:last]
	}
	for slot := range next {
		if touched[slot] {
			changed = append(changed, slot)
		}
	}
	return next, changed
}

func (f frontend) set() setID {
	if f.published() {
		return setPorts
	}
	return setServices
}

func (f frontend) slotSet() setID {
	if f.published() {
		return setPortSlots
	}
	return setSlots
}

// key is ip, or ip . protocol . port; each part is padded to four bytes, as the kernel's registers are.
func (f frontend) key() []byte {
	a := f.address.As4()
	if !f.published() {
		return a[:]
	}
	return portKey(a, f.protocol, f.port)
}

func portKey(a [4]byte, protocol uint8, port uint16) []byte {
	k := make([]byte, 12, 16)
	copy(k, a[:])
	k[4] = protocol
	binary.BigEndian.PutUint16(k[8:], port)
	return k
}

func (f frontend) slotKey(slot int) []byte {
	return binary.NativeEndian.AppendUint32(f.key(), uint32(slot))
}

// slotValue is ip, or ip . port.
func (f frontend) slotValue(t target) []byte {
	a := t.address.As4()
	if !f.published() {
		return a[:]
	}
	v := make([]byte, 8)
	copy(v, a[:])
	binary.BigEndian.PutUint16(v[4:], t.port)
	return v
}

// chain is the one that draws among k slots for this kind of frontend.
func (f frontend) chain(k int) chainID {
	switch {
	case !f.published():
		return chainID{chainService, k}
	case f.address == anyAddress:
		return chainID{chainPort, k}
	}
	return chainID{chainAddressPort, k}
}

// chainID names a chain that draws one of k slots.
type chainID struct {
	kind byte
	k    int
}

const (
	chainService     = 'n' // by service address
	chainPort        = 'p' // by published port, on any address
	chainAddressPort = 'a' // by published port, on one address
)

func (c chainID) String() string { return string(c.kind) + strconv.Itoa(c.k) }

// frontends works out what is to be balanced. Ports on addresses that are not IPv4 and of other protocols than TCP and UDP
// are left out.
func frontends(s agentapi.NetworkState, local []*attachment) map[frontend][]target {
	all := make(map[frontend][]target, len(s.Services))
	for i := range s.Services {
		svc := &s.Services[i]
		if svc.Address.Is4() {
			f := frontend{address: svc.Address}
			targets := make([]target, len(svc.Endpoints))
			for j, e := range svc.Endpoints {
				targets[j] = target{address: e.Address}
			}
			all[f] = append(all[f], targets...)
		}
		for _, p := range svc.Ports {
			f, ok := portFrontend(p.HostIP, p.Protocol, p.Published)
			if !ok {
				continue
			}
			targets := make([]target, len(svc.Endpoints))
			for j, e := range svc.Endpoints {
				targets[j] = target{e.Address, p.Target}
			}
			all[f] = append(all[f], targets...)
		}
	}
	for _, a := range local {
		for _, p := range a.HostPorts {
			if f, ok := portFrontend(p.HostIP, p.Protocol, p.Published); ok {
				all[f] = append(all[f], target{a.Address, p.Target})
			}
		}
	}
	return all
}

func portFrontend(hostIP, protocol string, port uint16) (frontend, bool) {
	f := frontend{address: anyAddress, protocol: protoTCP, port: port}
	switch protocol {
	case "", "tcp":
	case "udp":
		f.protocol = protoUDP
	default:
		return f, false
	}
	if hostIP != "" && hostIP != "::" {
		a, err := netip.ParseAddr(hostIP)
		if err != nil || !a.Unmap().Is4() {
			return f, false
		}
		f.address = a.Unmap()
	}
	return f, port != 0
}

// The protocol numbers of IP.
const (
	protoICMP = 1
	protoTCP  = 6
	protoUDP  = 17
)
