package network

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"baton/internal/model/cluster"
)

// A service that may rest has, while it has no endpoint, no address to translate to. What comes for it then is neither refused nor
// answered: the packet is dropped, and what it was for is noted in the set "woken". The client's kernel sends it again, a second
// later and then at 3, 7 and 15 s, and the first one that finds an endpoint is translated as ever. So the connection is the client's own,
// and is let through or not by the rules that hold for every connection. Only who may reach the service can wake it: the node itself, the
// tasks here that share a network with it, and for published ports whoever reaches them.

// wokenFor is how long the kernel notes that something came; Woken is to be asked more often.
const wokenFor = 2 * time.Second

// held says what is to be held, and for which service, by the keys of the set "woken".
type held struct {
	callers, addresses, ports contents
	services                  map[string]cluster.ID
}

// holds works out what is to be held.
func holds(in rulesInput) held {
	h := held{callers: make(contents), addresses: make(contents), ports: make(contents), services: make(map[string]cluster.ID)}
	for i := range in.state.Services {
		s := &in.state.Services[i]
		if !s.Holds || len(s.Endpoints) > 0 {
			continue
		}
		if s.Address.Is4() {
			h.addresses[addressKey(s.Address)] = ""
			h.services[string(portKey(s.Address.As4(), 0, 0))] = s.ID
			for _, a := range in.local {
				if slices.ContainsFunc(a.Networks, func(id cluster.ID) bool { _, ok := s.Networks[id]; return ok }) {
					h.callers[addressKey(a.Address)+addressKey(s.Address)] = ""
				}
			}
		}
		for _, p := range s.Ports {
			if f, ok := portFrontend(p.HostIP, p.Protocol, p.Published); ok {
				h.ports[string(f.key())] = ""
				h.services[string(f.key())] = s.ID
			}
		}
	}
	return h
}

func (h held) sets() map[setID]contents {
	return map[setID]contents{setCallers: h.callers, setHeld: h.addresses, setHeldPorts: h.ports}
}

// note notes what the packet was for, of which registers 0 to 2 have the key, and drops it.
func (t *table) note() []expr.Any {
	return []expr.Any{
		&expr.Dynset{SrcRegKey: reg(0), SetName: t.sets[setWoken].Name, SetID: t.sets[setWoken].ID, Operation: unix.NFT_DYNSET_OP_UPDATE},
		&expr.Verdict{Kind: expr.VerdictDrop},
	}
}

// overTCPorUDP matches one of the two; nothing else has connections, and a ping is no use of a service.
func overTCPorUDP(protocol byte) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg(8)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg(8), Data: []byte{protocol}},
	}
}

// holdAddresses holds connections to service addresses: of local tasks, or of the node itself.
func (t *table) holdAddresses(tasks bool) (rules [][]expr.Any) {
	for _, protocol := range []byte{protoTCP, protoUDP} {
		match := join([]expr.Any{address(dst, 0)}, t.in4(setHeld, 0))
		if tasks {
			match = join([]expr.Any{address(src, 0), address(dst, 1)}, t.in4(setCallers, 0))
		}
		key := []expr.Any{
			address(dst, 0),
			&expr.Immediate{Register: reg(1), Data: make([]byte, 4)},
			&expr.Immediate{Register: reg(2), Data: make([]byte, 4)},
		}
		rules = append(rules, join(overTCPorUDP(protocol), match, key, t.note()))
	}
	return rules
}

// holdPorts holds connections to published ports.
func (t *table) holdPorts() (rules [][]expr.Any) {
	for _, specific := range []bool{true, false} {
		rules = append(rules, join(portOn(specific), t.in4(setHeldPorts, 0), t.note()))
	}
	return rules
}

// Woken are the services that rest and that something came for in the last moments.
func (n *Network) Woken() ([]cluster.ID, error) {
	n.mu.Lock()
	var services map[string]cluster.ID
	if n.installed != nil {
		services = n.installed.held
	}
	n.mu.Unlock()
	if len(services) == 0 {
		return nil, nil
	}
	c, err := n.nftConn()
	if err != nil {
		return nil, err
	}
	set := setLayouts[setWoken]
	set.Table = &nftables.Table{Name: n.names.table, Family: nftables.TableFamilyIPv4}
	elements, err := c.GetSetElements(&set)
	if err != nil {
		return nil, fmt.Errorf("what woke services: %w", err)
	}
	var out []cluster.ID
	for _, e := range elements {
		if id, ok := services[string(e.Key)]; ok && !slices.Contains(out, id) {
			out = append(out, id)
		}
	}
	return out, nil
}

// Used are those of the addresses that connections of others are open to, or were since the call before. Probes do not count, nor what
// else the node itself sends straight to a task: of that the edge knows more.
func (n *Network) Used(addresses []netip.Addr) (map[netip.Addr]bool, error) {
	n.mu.Lock()
	self, before := n.nodeAddress(), n.ended
	n.mu.Unlock()
	filters := make([]flowFilter, len(addresses))
	for i, a := range addresses {
		filters[i] = flowFilter{replySource: a}
	}
	if len(filters) == 0 {
		return nil, nil
	}
	flows, err := n.tracked.flows(n.host, filters...)
	if err != nil {
		return nil, err
	}
	used, ended := make(map[netip.Addr]bool), make(map[string]bool)
	for _, f := range flows {
		to := f.reply.source
		if f.original.source == self && f.original.destination == to {
			continue
		}
		// The kernel remembers a connection for up to two minutes after its end: that is a use only when it is seen first.
		over, key := f.protocol == protoTCP && !f.open(), string(f.originalKey)
		if over {
			ended[key] = true
		}
		if !over || before != nil && !before[key] {
			used[to] = true
		}
	}
	n.mu.Lock()
	n.ended = ended
	n.mu.Unlock()
	return used, nil
}
