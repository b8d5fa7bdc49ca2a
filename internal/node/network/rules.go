package network

import (
	"encoding/binary"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"baton/internal/model/cluster"
)

// setID names a set or map of the table.
type setID int

// The sets and maps. Each part of a key takes whole registers of four bytes.
const (
	setServices  setID = iota // service address : goto n<K>
	setSlots                  // service address . slot : task address
	setPorts                  // node address or 0 . protocol . port : goto p<K> or a<K>
	setPortSlots              // node address or 0 . protocol . port . slot : task address . port
	setClosed                 // node address or 0 . protocol . port: published, but no task is ready
	setGroups                 // task address : group
	setReach                  // group . local task address: allowed
	setSources                // link . address: what a local task may send from
	setOutbound               // local task address: may leave the cluster
	setHairpin                // local task address . the same: a task that reaches itself through its service
	setMesh                   // link that packets of other nodes come by
	setNodes                  // address of another node itself
	setEndpoints              // VXLAN: underlay address of another node
	setVTEPs                  // VXLAN: hardware address of another node : mark
	setExposed                // VXLAN: local task address . protocol . port that is published
	setCallers                // local task address . service address that rests: may wake it
	setHeld                   // service address that rests
	setHeldPorts              // node address or 0 . protocol . port of a service that rests
	setWoken                  // service address . 0 . 0, or as in setHeldPorts: something came, noted by the kernel
	numSets
)

var (
	portType   = nftables.MustConcatSetType(nftables.TypeIPAddr, nftables.TypeInetProto, nftables.TypeInetService)
	setLayouts = [numSets]nftables.Set{
		setServices:  {Name: "services", IsMap: true, KeyType: nftables.TypeIPAddr, DataType: nftables.TypeVerdict},
		setSlots:     {Name: "slots", IsMap: true, KeyType: nftables.MustConcatSetType(nftables.TypeIPAddr, nftables.TypeMark), DataType: nftables.TypeIPAddr},
		setPorts:     {Name: "ports", IsMap: true, KeyType: portType, DataType: nftables.TypeVerdict},
		setPortSlots: {Name: "port-slots", IsMap: true, KeyType: nftables.MustConcatSetType(nftables.TypeIPAddr, nftables.TypeInetProto, nftables.TypeInetService, nftables.TypeMark), DataType: nftables.MustConcatSetType(nftables.TypeIPAddr, nftables.TypeInetService)},
		setClosed:    {Name: "closed", KeyType: portType},
		setGroups:    {Name: "groups", IsMap: true, KeyType: nftables.TypeIPAddr, DataType: nftables.TypeMark},
		setReach:     {Name: "reach", KeyType: nftables.MustConcatSetType(nftables.TypeMark, nftables.TypeIPAddr)},
		setSources:   {Name: "sources", KeyType: nftables.MustConcatSetType(nftables.TypeIFName, nftables.TypeIPAddr)},
		setOutbound:  {Name: "outbound", KeyType: nftables.TypeIPAddr},
		setMesh:      {Name: "mesh", KeyType: nftables.TypeIFName},
		setNodes:     {Name: "nodes", KeyType: nftables.TypeIPAddr},
		setEndpoints: {Name: "endpoints", KeyType: nftables.TypeIPAddr},
		setVTEPs:     {Name: "vteps", IsMap: true, KeyType: nftables.TypeEtherAddr, DataType: nftables.TypeMark},
		setExposed:   {Name: "exposed", KeyType: portType},
		setHairpin:   {Name: "hairpin", KeyType: nftables.MustConcatSetType(nftables.TypeIPAddr, nftables.TypeIPAddr)},
		setCallers:   {Name: "callers", KeyType: nftables.MustConcatSetType(nftables.TypeIPAddr, nftables.TypeIPAddr)},
		setHeld:      {Name: "held", KeyType: nftables.TypeIPAddr},
		setHeldPorts: {Name: "held-ports", KeyType: portType},
		setWoken:     {Name: "woken", KeyType: portType, Dynamic: true, HasTimeout: true, Timeout: wokenFor, Size: wokenMax},
	}
)

// wokenMax bounds the elements that packets add.
const wokenMax = 4096

// table writes the rules of one node; it holds no state of the kernel.
type table struct {
	in   rulesInput
	nft  *nftables.Table
	sets [numSets]*nftables.Set
}

func newTable(in rulesInput) *table {
	t := &table{in: in, nft: &nftables.Table{Name: in.layout.table, Family: nftables.TableFamilyIPv4}}
	for id := range setLayouts {
		s := setLayouts[id]
		s.Table, s.ID = t.nft, uint32(id)+1
		t.sets[id] = &s
	}
	return t
}

// create replaces the table by an empty one. Adding it first makes the removal work when there is none.
func (t *table) create(c *nftables.Conn) {
	c.AddTable(t.nft)
	c.DelTable(t.nft)
	c.AddTable(t.nft)
	for _, s := range t.sets {
		// AddSet fails for anonymous sets only.
		_ = c.AddSet(s, nil)
	}
	for _, name := range []string{"between", "members"} {
		c.AddChain(&nftables.Chain{Name: name, Table: t.nft})
	}
	t.base(c, "raw", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, nftables.ChainPriorityRaw, append(t.antiSpoof(), t.poolGuard()...))
	t.marks(c)
	t.clamp(c)
	t.base(c, "prerouting", nftables.ChainTypeNAT, nftables.ChainHookPrerouting, nftables.ChainPriorityNATDest, t.translate())
	t.base(c, "local", nftables.ChainTypeNAT, nftables.ChainHookOutput, nftables.ChainPriorityNATDest, t.translate())
	t.base(c, "input", nftables.ChainTypeFilter, nftables.ChainHookInput, nftables.ChainPriorityFilter, t.input())
	t.base(c, "forward", nftables.ChainTypeFilter, nftables.ChainHookForward, nftables.ChainPriorityFilter, [][]expr.Any{
		join(t.ours(expr.MetaKeyIIFNAME), verdict(expr.VerdictGoto, "between")),
		join(t.ours(expr.MetaKeyOIFNAME), verdict(expr.VerdictGoto, "between")),
		// Between other nodes and this one's uplink: published ports with tasks elsewhere.
		join(within4(src, t.in.node.TaskPool, true), verdict(expr.VerdictGoto, "between")),
		join(within4(dst, t.in.node.TaskPool, true), verdict(expr.VerdictGoto, "between")),
	})
	t.base(c, "output", nftables.ChainTypeFilter, nftables.ChainHookOutput, nftables.ChainPriorityFilter, append(t.holdAddresses(false), t.noService()...))
	t.base(c, "postrouting", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, nftables.ChainPriorityNATSource, t.source())
	t.rules(c, "between", t.between())
	t.rules(c, "members", t.members())
}

func (t *table) base(c *nftables.Conn, name string, kind nftables.ChainType, hook *nftables.ChainHook, p *nftables.ChainPriority, rules [][]expr.Any) {
	accept := nftables.ChainPolicyAccept
	c.AddChain(&nftables.Chain{Name: name, Table: t.nft, Type: kind, Hooknum: hook, Priority: p, Policy: &accept})
	t.rules(c, name, rules)
}

func (t *table) rules(c *nftables.Conn, chain string, rules [][]expr.Any) {
	for _, exprs := range rules {
		c.AddRule(&nftables.Rule{Table: t.nft, Chain: &nftables.Chain{Name: chain, Table: t.nft}, Exprs: exprs})
	}
}

// antiSpoof lets a task send only from its own address, and never to the node's loopback.
func (t *table) antiSpoof() [][]expr.Any {
	return [][]expr.Any{
		join(t.ours(expr.MetaKeyIIFNAME), within4(dst, netip.MustParsePrefix("127.0.0.0/8"), true), verdict(expr.VerdictDrop, "")),
		join([]expr.Any{&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: reg(0)}, address(src, 4)}, t.in4(setSources, 0), verdict(expr.VerdictAccept, "")),
		join(t.ours(expr.MetaKeyIIFNAME), verdict(expr.VerdictDrop, "")),
	}
}

// translate sends new connections to service addresses and published ports to a task.
func (t *table) translate() [][]expr.Any {
	local := toThisNode()
	return [][]expr.Any{
		join([]expr.Any{address(dst, 0)}, t.vmap(setServices)),
		join(local, portOn(true), t.vmap(setPorts)),
		join(local, portOn(false), t.vmap(setPorts)),
	}
}

// addDraw adds the chain that draws one of k slots. A miss drops the packet: it raced with a change, and the client's
// next attempt finds the new state.
func (t *table) addDraw(c *nftables.Conn, id chainID) {
	chain := id.String()
	c.AddChain(&nftables.Chain{Name: chain, Table: t.nft})
	draw := func(register int) expr.Any {
		return &expr.Numgen{Register: reg(register), Modulus: uint32(id.k), Type: unix.NFT_NG_RANDOM}
	}
	nat := &expr.NAT{Type: expr.NATTypeDestNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: reg(4)}
	var pick []expr.Any
	if id.kind == chainService {
		pick = join([]expr.Any{address(dst, 0), draw(1)}, t.lookup(setSlots, 0, 4))
	} else {
		nat.RegProtoMin, nat.Specified = reg(5), true
		pick = join(portOn(id.kind == chainAddressPort), []expr.Any{draw(3)}, t.lookup(setPortSlots, 0, 4))
	}
	t.rules(c, chain, [][]expr.Any{append(pick, nat), verdict(expr.VerdictDrop, "")})
}

// removeDraws removes chains, with their rules.
func (t *table) removeDraws(c *nftables.Conn, ids []chainID) {
	for _, id := range ids {
		c.DelChain(&nftables.Chain{Name: id.String(), Table: t.nft})
	}
}

// input refuses published ports that no task serves, holds those of services that rest, and keeps tasks without a way out from
// the node.
func (t *table) input() [][]expr.Any {
	rules := [][]expr.Any{join(established(), verdict(expr.VerdictAccept, ""))}
	if t.in.node.Mesh == cluster.MeshVXLAN {
		rules = append(rules, join(t.byMesh(expr.MetaKeyIIFNAME), within4(src, t.in.node.TaskPool, false), verdict(expr.VerdictDrop, "")))
	}
	rules = append(rules, refuse(join(t.ours(expr.MetaKeyIIFNAME), []expr.Any{address(src, 0)}, t.notIn(setOutbound, 0)))...)
	rules = append(rules, t.holdPorts()...)
	for _, specific := range []bool{true, false} {
		rules = append(rules, refuse(join(portOn(specific), t.in4(setClosed, 0)))...)
		// With a ready task the packet would not be here: it raced with a replacement of the rules.
		rules = append(rules, join(portOn(specific), slotZero(3), t.lookup(setPortSlots, 0, 4), verdict(expr.VerdictDrop, "")))
	}
	return rules
}

// published matches connections to a published port: translated, and not from a service address.
func (t *table) published() []expr.Any {
	return join([]expr.Any{
		&expr.Ct{Key: expr.CtKeySTATUS, Register: reg(0)},
		&expr.Bitwise{SourceRegister: reg(0), DestRegister: reg(0), Len: 4, Mask: native(ipsDestNAT), Xor: native(0)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: reg(0), Data: native(0)},
		&expr.Ct{Key: expr.CtKeyDST, Register: reg(0)}, // of the original direction: what the client asked for
	}, masked(0, t.in.node.ServicePool, false))
}

// between decides on what comes from or goes to a task, here or on another node. The node of the task that is reached
// checks membership; this one lets its tasks' packets out to it.
func (t *table) between() [][]expr.Any {
	rules := [][]expr.Any{
		join(established(), verdict(expr.VerdictAccept, "")),
		join(ctState(expr.CtStateBitINVALID), verdict(expr.VerdictDrop, "")), // it would pass by the translation
		join(t.ours(expr.MetaKeyIIFNAME), []expr.Any{address(src, 0)}, t.notIn(setOutbound, 0), verdict(expr.VerdictGoto, "members")),
		join(t.published(), verdict(expr.VerdictAccept, "")),
	}
	rules = append(rules, t.fromClients()...)
	return append(rules,
		join(t.ours(expr.MetaKeyOIFNAME), verdict(expr.VerdictGoto, "members")),
		join(within4(dst, t.in.node.ServicePool, true), verdict(expr.VerdictGoto, "members")),
		join(t.ours(expr.MetaKeyIIFNAME), verdict(expr.VerdictAccept, "")),
		// This node is no router between others.
		verdict(expr.VerdictDrop, ""))
}

// members accepts what may reach a local task and ends everything else.
func (t *table) members() [][]expr.Any {
	rules := append(t.holdAddresses(true),
		join([]expr.Any{address(src, 0)}, t.lookup(setGroups, 0, 0), []expr.Any{address(dst, 1)}, t.in4(setReach, 0), verdict(expr.VerdictAccept, "")),
		// Another node itself: its probes, its processes, and its published ports' clients, whom it gave its address.
		join(t.ours(expr.MetaKeyOIFNAME), []expr.Any{address(src, 0)}, t.in4(setNodes, 0), verdict(expr.VerdictAccept, "")),
	)
	// A task without a way out reaches members on other nodes, where it is checked: not those nodes themselves, and no
	// published port, where it would come with this node's address and pass unchecked.
	elsewhere := t.byMesh(expr.MetaKeyOIFNAME)
	rules = append(rules, refuse(join(elsewhere, t.published()))...)
	rules = append(rules, join(elsewhere, []expr.Any{address(dst, 0)}, t.lookup(setGroups, 0, 0), verdict(expr.VerdictAccept, "")))
	known := join([]expr.Any{address(src, 0)}, t.lookup(setGroups, 0, 4), []expr.Any{address(dst, 0)}, t.lookup(setGroups, 0, 4))
	rules = append(rules, refuse(known)...)
	// From strangers, or raced with a replacement of the rules.
	rules = append(rules, join(t.ours(expr.MetaKeyOIFNAME), verdict(expr.VerdictDrop, "")))
	rules = append(rules, t.noService()...)
	return append(rules, refuse(nil)...)
}

// noService refuses service addresses that no task serves.
func (t *table) noService() [][]expr.Any {
	pool := within4(dst, t.in.node.ServicePool, true)
	return append([][]expr.Any{
		join(pool, []expr.Any{address(dst, 0)}, slotZero(1), t.lookup(setSlots, 0, 4), verdict(expr.VerdictDrop, "")),
	}, refuse(pool)...)
}

// source hides addresses that the other side could not answer to.
func (t *table) source() [][]expr.Any {
	self := t.in.self.As4()
	toSelf := []expr.Any{
		&expr.Immediate{Register: reg(0), Data: self[:]},
		&expr.NAT{Type: expr.NATTypeSourceNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: reg(0)},
	}
	outside := []expr.Any{
		&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: reg(0)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: reg(0), Data: []byte(t.in.layout.prefix)},
	}
	rules := [][]expr.Any{
		join([]expr.Any{address(src, 0), address(dst, 1)}, t.in4(setHairpin, 0), toSelf),
		join(t.ours(expr.MetaKeyOIFNAME), within4(src, netip.MustParsePrefix("127.0.0.0/8"), true), toSelf),
	}
	rules = append(rules, t.hideRemoteClients(toSelf)...)
	return append(rules,
		join(within4(src, t.in.node.Subnet, true), within4(dst, t.in.node.TaskPool, false), within4(dst, t.in.node.ServicePool, false),
			outside, []expr.Any{&expr.Masq{}}))
}

// The parts of rules. Register numbers count four-byte registers from 0.

func reg(i int) uint32 { return unix.NFT_REG32_00 + uint32(i) }

// Offsets in the IPv4 header.
const (
	src = 12
	dst = 16
)

const ipsDestNAT = 1 << 5 // of a connection's status: its destination was translated

func join(parts ...[]expr.Any) []expr.Any {
	var all []expr.Any
	for _, p := range parts {
		all = append(all, p...)
	}
	return all
}

func verdict(kind expr.VerdictKind, chain string) []expr.Any {
	return []expr.Any{&expr.Verdict{Kind: kind, Chain: chain}}
}

func native(v uint32) []byte { return binary.NativeEndian.AppendUint32(nil, v) }

func address(offset uint32, register int) expr.Any {
	return &expr.Payload{DestRegister: reg(register), Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: 4}
}

// ours matches packets on a link of a task of this node.
func (t *table) ours(key expr.MetaKey) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: key, Register: reg(0)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg(0), Data: []byte(t.in.layout.prefix)},
	}
}

func within4(offset uint32, p netip.Prefix, in bool) []expr.Any {
	return append([]expr.Any{address(offset, 0)}, masked(0, p, in)...)
}

// masked compares an address in a register with a prefix.
func masked(register int, p netip.Prefix, in bool) []expr.Any {
	mask := binary.BigEndian.AppendUint32(nil, ^uint32(0)<<(32-p.Bits()))
	network, op := p.Addr().As4(), expr.CmpOpEq
	if !in {
		op = expr.CmpOpNeq
	}
	return []expr.Any{
		&expr.Bitwise{SourceRegister: reg(register), DestRegister: reg(register), Len: 4, Mask: mask, Xor: make([]byte, 4)},
		&expr.Cmp{Op: op, Register: reg(register), Data: network[:]},
	}
}

// portOn loads the key of a published port into registers 0 to 2: on the packet's own address, or on any.
func portOn(specific bool) []expr.Any {
	var first expr.Any = &expr.Immediate{Register: reg(0), Data: make([]byte, 4)}
	if specific {
		first = address(dst, 0)
	}
	return []expr.Any{
		first,
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg(1)},
		&expr.Payload{DestRegister: reg(2), Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
	}
}

func slotZero(register int) []expr.Any {
	return []expr.Any{&expr.Immediate{Register: reg(register), Data: make([]byte, 4)}}
}

func (t *table) in4(s setID, from int) []expr.Any {
	return []expr.Any{&expr.Lookup{SourceRegister: reg(from), SetName: t.sets[s].Name, SetID: t.sets[s].ID}}
}

func (t *table) notIn(s setID, from int) []expr.Any {
	return []expr.Any{&expr.Lookup{SourceRegister: reg(from), SetName: t.sets[s].Name, SetID: t.sets[s].ID, Invert: true}}
}

func (t *table) lookup(s setID, from, to int) []expr.Any {
	return []expr.Any{&expr.Lookup{SourceRegister: reg(from), DestRegister: reg(to), IsDestRegSet: true, SetName: t.sets[s].Name, SetID: t.sets[s].ID}}
}

func (t *table) vmap(s setID) []expr.Any {
	return []expr.Any{&expr.Lookup{SourceRegister: reg(0), DestRegister: unix.NFT_REG_VERDICT, IsDestRegSet: true, SetName: t.sets[s].Name, SetID: t.sets[s].ID}}
}

func ctState(bits uint32) []expr.Any {
	return []expr.Any{
		&expr.Ct{Key: expr.CtKeySTATE, Register: reg(0)},
		&expr.Bitwise{SourceRegister: reg(0), DestRegister: reg(0), Len: 4, Mask: native(bits), Xor: native(0)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: reg(0), Data: native(0)},
	}
}

func established() []expr.Any { return ctState(expr.CtStateBitESTABLISHED | expr.CtStateBitRELATED) }

// refuse answers what matches at once: a reset for TCP (the kernel limits the rate of ICMP errors), else port unreachable.
func refuse(match []expr.Any) [][]expr.Any {
	tcp := []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg(8)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg(8), Data: []byte{protoTCP}},
		&expr.Reject{Type: unix.NFT_REJECT_TCP_RST},
	}
	return [][]expr.Any{join(match, tcp), join(match, []expr.Any{&expr.Reject{Type: unix.NFT_REJECT_ICMP_UNREACH, Code: icmpPortUnreachable}})}
}

const icmpPortUnreachable = 3
