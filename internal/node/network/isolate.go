package network

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"strings"

	"baton/internal/model/cluster"
	"baton/internal/wire/agentapi"
)

// isolation says who may reach whom. Tasks on the same set of networks are a group; the kernel maps a source address to
// its group, and looks up group and destination in one set: the cost of a packet does not grow with the cluster.
type isolation struct {
	groups map[netip.Addr]uint32
	reach  map[reach]bool
}

// reach lets a group reach a local task.
type reach struct {
	group uint32
	to    netip.Addr
}

// groupNumbers gives each set of networks a number and keeps it while it is in use: the kernel has it in its sets.
type groupNumbers struct {
	byNetworks map[string]uint32
	last       uint32
}

// isolate works out isolation from the members that the managers know and the tasks attached here, who stay members
// until they are detached: a task that is being stopped may still need its database.
func (g *groupNumbers) isolate(s agentapi.NetworkState, local []*attachment) isolation {
	networks := make(map[netip.Addr][]cluster.ID, len(s.Members))
	for i := range s.Members {
		if m := &s.Members[i]; m.Address.Is4() {
			networks[m.Address] = m.Networks
		}
	}
	for _, a := range local {
		networks[a.Address] = a.Networks
	}
	out := isolation{groups: make(map[netip.Addr]uint32, len(networks)), reach: make(map[reach]bool)}
	used := make(map[string]uint32)
	onNetwork := make(map[cluster.ID][]uint32) // groups by network
	for address, ids := range networks {
		key := networksKey(ids)
		number, seen := used[key]
		if !seen {
			number = g.number(key)
			used[key] = number
			for _, id := range ids {
				onNetwork[id] = append(onNetwork[id], number)
			}
		}
		out.groups[address] = number
	}
	g.byNetworks = used
	for _, a := range local {
		for _, id := range a.Networks {
			for _, number := range onNetwork[id] {
				out.reach[reach{number, a.Address}] = true
			}
		}
	}
	return out
}

func (g *groupNumbers) number(key string) uint32 {
	if n, ok := g.byNetworks[key]; ok {
		return n
	}
	g.last++
	return g.last
}

// networksKey is the same for the same set of networks in any order.
func networksKey(ids []cluster.ID) string {
	sorted := slices.Clone(ids)
	slices.SortFunc(sorted, func(a, b cluster.ID) int { return slices.Compare(a[:], b[:]) })
	var b strings.Builder
	for _, id := range slices.Compact(sorted) {
		b.Write(id[:])
	}
	return b.String()
}

// contents are the elements of a set or map, as the kernel has them.
type contents map[string]string

// memberSets are the sets that follow from members and attached tasks.
func memberSets(in isolation, local []*attachment, names layout) map[setID]contents {
	groups, reaches := make(contents, len(in.groups)), make(contents, len(in.reach))
	for a, number := range in.groups {
		groups[addressKey(a)] = numberKey(number)
	}
	for r := range in.reach {
		reaches[numberKey(r.group)+addressKey(r.to)] = ""
	}
	sources, outbound, hairpin := make(contents), make(contents), make(contents)
	for _, a := range local {
		address := addressKey(a.Address)
		var link [16]byte
		copy(link[:], names.link(a.Task))
		sources[string(link[:])+address] = ""
		hairpin[address+address] = ""
		if !a.Internal {
			outbound[address] = ""
		}
	}
	return map[setID]contents{setGroups: groups, setReach: reaches, setSources: sources, setOutbound: outbound, setHairpin: hairpin}
}

func addressKey(a netip.Addr) string {
	b := a.As4()
	return string(b[:])
}

func numberKey(n uint32) string { return string(binary.NativeEndian.AppendUint32(nil, n)) }

// update moves a set from have to want.
func (have contents) update(set setID, want contents, e *edit) {
	for key, value := range have {
		if now, ok := want[key]; !ok || now != value {
			e.remove(set, []byte(key))
		}
	}
	for key, value := range want {
		if old, ok := have[key]; !ok || old != value {
			e.add(set, []byte(key), []byte(value))
		}
	}
}
