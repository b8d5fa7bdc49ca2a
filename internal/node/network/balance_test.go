package network

import (
	"encoding/binary"
	"maps"
	"net/netip"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"baton/internal/model/cluster"
	"baton/internal/wire/agentapi"
)

// kernel plays an edit as nftables does: a removal of what is not there, or an addition of what is there with another
// value, fails the transaction.
type kernel map[setID]map[string]string

func (k kernel) play(t *rapid.T, ops []op) {
	for _, remove := range []bool{true, false} {
		for _, o := range ops {
			if o.remove != remove {
				continue
			}
			set := k[o.set]
			if set == nil {
				set = make(map[string]string)
				k[o.set] = set
			}
			value := o.chain + string(o.value)
			old, there := set[string(o.key)]
			switch {
			case remove && !there:
				t.Fatalf("set %d: removal of a missing element %x", o.set, o.key)
			case remove:
				delete(set, string(o.key))
			case there && old != value:
				t.Fatalf("set %d: element %x is there with another value", o.set, o.key)
			default:
				set[string(o.key)] = value
			}
		}
	}
}

// targets reads a frontend as a packet would: the verdict gives the number of slots, and each must be there.
func (k kernel) targets(t *rapid.T, f frontend, want int) []string {
	verdict := k[f.set()][string(f.key())]
	if want == 0 {
		if verdict != "" {
			t.Fatalf("%v: got a verdict %s without targets", f, verdict)
		}
		return nil
	}
	if verdict != f.chain(want).String() {
		t.Fatalf("%v: got verdict %q, want %s", f, verdict, f.chain(want))
	}
	var all []string
	for slot := range want {
		value, ok := k[f.slotSet()][string(f.slotKey(slot))]
		if !ok {
			t.Fatalf("%v: slot %d of %d is a hole", f, slot, want)
		}
		all = append(all, value)
	}
	slices.Sort(all)
	return all
}

// Whatever the history, the kernel has exactly what is wanted, never a hole, and as little changes as can be.
func TestBalancerFollows(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b, k := balancer{fronts: make(map[frontend][]target)}, make(kernel)
		addresses := []netip.Addr{anyAddress, netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("10.211.0.5")}
		for range rapid.IntRange(1, 12).Draw(t, "steps") {
			want := make(map[frontend][]target)
			for i := range rapid.IntRange(0, 4).Draw(t, "frontends") {
				f := frontend{address: addresses[i%3]}
				port := uint16(0)
				if i != 2 {
					f.protocol, f.port, port = protoTCP, uint16(8000+i), 80
				}
				for _, last := range rapid.SliceOfNDistinct(rapid.ByteRange(1, 12), 0, 8, rapid.ID[byte]).Draw(t, "targets") {
					want[f] = append(want[f], target{netip.AddrFrom4([4]byte{10, 210, 0, last}), port})
				}
				if want[f] == nil {
					want[f] = []target{}
				}
			}
			before := maps.Clone(b.fronts)
			e := new(edit)
			b.update(want, e)
			k.play(t, e.now)
			for f, targets := range want { // after the first transaction already
				var expected []string
				for _, tg := range targets {
					expected = append(expected, string(f.slotValue(tg)))
				}
				slices.Sort(expected)
				if got := k.targets(t, f, len(targets)); !slices.Equal(got, expected) {
					t.Fatalf("%v: got targets %x, want %x", f, got, expected)
				}
				if _, closed := k[setClosed][string(f.key())]; f.published() && closed != (len(targets) == 0) {
					t.Fatalf("%v with %d targets: got closed %v", f, len(targets), closed)
				}
				moved := 0
				for slot, tg := range b.fronts[f] {
					if slot < len(before[f]) && before[f][slot] != tg {
						moved++
					}
				}
				lost := 0
				for _, tg := range before[f] {
					if !slices.Contains(targets, tg) {
						lost++
					}
				}
				if moved > lost {
					t.Fatalf("%v: %d slots moved for %d lost targets", f, moved, lost)
				}
			}
			k.play(t, e.late)
			slots := 0
			for _, targets := range want {
				slots += len(targets)
			}
			if got := len(k[setSlots]) + len(k[setPortSlots]); got != slots {
				t.Fatalf("%d slots are in the kernel, want %d", got, slots)
			}
			if again := new(edit); b.update(want, again) || len(again.now)+len(again.late) > 0 {
				t.Fatalf("the same again: got %d changes, want none", len(again.now)+len(again.late))
			}
		}
	})
}

func TestSlotKey(t *testing.T) {
	f := frontend{netip.MustParseAddr("192.0.2.1"), protoUDP, 0x1234}
	want := append([]byte{192, 0, 2, 1, protoUDP, 0, 0, 0, 0x12, 0x34, 0, 0}, binary.NativeEndian.AppendUint32(nil, 7)...)
	if got := f.slotKey(7); !slices.Equal(got, want) {
		t.Errorf("got %x, want %x", got, want)
	}
	f.slotKey(1)
	if got := f.key(); len(got) != 12 {
		t.Errorf("key: got %d bytes, want 12", len(got))
	}
}

// Declared reachability is sharing a network, in either order, and group numbers stay while they are in use.
func TestIsolation(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		networks := []cluster.ID{{1}, {2}, {3}, {4}}
		var g groupNumbers
		var previous isolation
		var membersBefore map[netip.Addr]string
		for range rapid.IntRange(1, 5).Draw(t, "steps") {
			var s agentapi.NetworkState
			var local []*attachment
			members := make(map[netip.Addr]string)
			on := make(map[netip.Addr][]cluster.ID)
			for i := range rapid.IntRange(0, 8).Draw(t, "members") {
				address := netip.AddrFrom4([4]byte{10, 210, 0, byte(i)})
				ids := rapid.SliceOfDistinct(rapid.SampledFrom(networks), rapid.ID[cluster.ID]).Draw(t, "networks")
				on[address], members[address] = ids, networksKey(ids)
				s.Members = append(s.Members, agentapi.Member{Address: address, Networks: ids})
				if rapid.Bool().Draw(t, "local") {
					a := new(attachment)
					a.Address, a.Networks = address, ids
					local = append(local, a)
				}
			}
			got := g.isolate(s, local)
			for from, ids := range on {
				for _, to := range local {
					share := slices.ContainsFunc(ids, func(id cluster.ID) bool { return slices.Contains(to.Networks, id) })
					if reaches := got.reach[reach{got.groups[from], to.Address}]; reaches != share {
						t.Fatalf("%v (%v) to %v (%v): got %v, want %v", from, ids, to.Address, to.Networks, reaches, share)
					}
				}
			}
			for address, key := range members {
				if membersBefore[address] == key && key != "" && previous.groups[address] != got.groups[address] {
					t.Fatalf("%v: group changed from %d to %d without need", address, previous.groups[address], got.groups[address])
				}
			}
			previous, membersBefore = got, members
		}
	})
}

func TestChoosePools(t *testing.T) {
	p := netip.MustParsePrefix
	for _, c := range []struct {
		name            string
		taken           []netip.Prefix
		tasks, services string
	}{
		{"free machine", nil, "10.210.0.0/16", "10.211.0.0/16"},
		{"another node", []netip.Prefix{p("10.210.0.0/16")}, "10.212.0.0/16", "10.213.0.0/16"},
		{"an address in the service pool", []netip.Prefix{p("10.211.7.7/32")}, "10.212.0.0/16", "10.213.0.0/16"},
		{"a company's 10/8", []netip.Prefix{p("10.0.0.0/8"), p("172.17.0.0/16")}, "172.20.0.0/16", "172.21.0.0/16"},
		{"both", []netip.Prefix{p("10.0.0.0/8"), p("172.16.0.0/12")}, "100.64.0.0/16", "100.65.0.0/16"},
	} {
		tasks, services, err := ChoosePools(c.taken)
		if err != nil || tasks.String() != c.tasks || services.String() != c.services {
			t.Errorf("%s: got %v and %v, %v; want %s and %s", c.name, tasks, services, err, c.tasks, c.services)
		}
	}
	if _, _, err := ChoosePools([]netip.Prefix{p("0.0.0.0/1"), p("128.0.0.0/1")}); err == nil {
		t.Error("everything taken: got nil, want an error")
	}
}

// A second node on the same machine sees the first one's pools.
func TestTaken(t *testing.T) {
	w := newWorld(t)
	n := w.newNode(210)
	taken, err := Taken(n.cfg.NetNS)
	check(t, err)
	tasks, services, err := ChoosePools(taken)
	check(t, err)
	for _, mine := range []netip.Prefix{n.config.TaskPool, n.config.ServicePool, netip.MustParsePrefix("192.0.2.0/24")} {
		if tasks.Overlaps(mine) || services.Overlaps(mine) {
			t.Errorf("got pools %v and %v, which overlap %v", tasks, services, mine)
		}
	}
}
