package network

import (
	"encoding/binary"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"baton/internal/model/cluster"
)

// meshSets are the sets that follow from the mesh and its peers.
func meshSets(in rulesInput) map[setID]contents {
	links, nodes, endpoints, vteps := make(contents), make(contents), make(contents), make(contents)
	for _, name := range in.links {
		var key [16]byte
		copy(key[:], name)
		links[string(key[:])] = ""
	}
	for _, p := range in.peers {
		nodes[addressKey(p.address())] = ""
		if in.node.Mesh != cluster.MeshVXLAN {
			continue
		}
		endpoints[addressKey(p.Endpoint.Addr())] = ""
		mark := numberKey(0)
		if p.Mark != 0 {
			mark = numberKey(markOf(p.Mark))
		}
		vteps[string(vtepMAC(p.Node))] = mark
	}
	return map[setID]contents{setMesh: links, setNodes: nodes, setEndpoints: endpoints, setVTEPs: vteps, setExposed: exposed(in)}
}

// exposed are the local tasks' ports that clients from outside the cluster reach by way of other nodes.
func exposed(in rulesInput) contents {
	all := make(contents)
	if in.node.Mesh != cluster.MeshVXLAN {
		return all
	}
	for i := range in.state.Services {
		svc := &in.state.Services[i]
		for _, p := range svc.Ports {
			f, ok := portFrontend(p.HostIP, p.Protocol, p.Published)
			if !ok {
				continue
			}
			for _, e := range svc.Endpoints {
				if in.node.Subnet.Contains(e.Address) {
					all[string(portKey(e.Address.As4(), f.protocol, p.Target))] = ""
				}
			}
		}
	}
	return all
}

// keepsClients reports whether a published port's client is seen as it is by a task on another node.
func (in rulesInput) keepsClients() bool {
	return in.node.Mesh == cluster.MeshVXLAN && !slices.ContainsFunc(in.peers, func(p meshPeer) bool { return p.Mark == 0 })
}

// byMesh matches packets that come in, or go out, by a link of the mesh.
func (t *table) byMesh(key expr.MetaKey) []expr.Any {
	return join([]expr.Any{&expr.Meta{Key: key, Register: reg(0)}}, t.in4(setMesh, 0))
}

// poolGuard keeps the addresses of the cluster within it. What comes by the mesh must be from a peer's subnet: the way
// back to its source must be the link that it came by. With VXLAN it may also be a published port's client, for a local
// task. By any other link, nothing from or to a pool comes in.
func (t *table) poolGuard() [][]expr.Any {
	drop := verdict(expr.VerdictDrop, "")
	accept := verdict(expr.VerdictAccept, "")
	tasks, services := t.in.node.TaskPool, t.in.node.ServicePool
	iif := func() []expr.Any { return t.byMesh(expr.MetaKeyIIFNAME) }
	rules := [][]expr.Any{
		join(iif(), within4(dst, netip.MustParsePrefix("127.0.0.0/8"), true), drop),
		join([]expr.Any{
			&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: reg(0)},
			&expr.Cmp{Op: expr.CmpOpEq, Register: reg(0), Data: []byte("lo\x00")},
		}, accept),
	}
	switch t.in.node.Mesh {
	case cluster.MeshVXLAN:
		known := func() []expr.Any { return join(iif(), etherSource(), t.lookup(setVTEPs, 0, 4)) }
		rules = append(rules,
			join(known(), within4(src, tasks, true), wayBack(), accept),
			join(known(), within4(src, tasks, false), within4(src, services, false), within4(dst, t.in.node.Subnet, true), accept),
			join(iif(), drop))
	case cluster.MeshWireGuard:
		rules = append(rules, join(iif(), within4(src, tasks, true), wayBack(), accept), join(iif(), drop))
	case cluster.MeshRouted: // by the machine's own link, which other packets come by, too
		rules = append(rules, join(iif(), within4(src, tasks, true), wayBack(), accept))
	}
	for _, pool := range []netip.Prefix{tasks, services} {
		rules = append(rules, join(within4(src, pool, true), drop), join(within4(dst, pool, true), drop))
	}
	if t.in.node.Mesh == cluster.MeshVXLAN {
		// Who can send to the port could write packets into the mesh.
		rules = append(rules, join([]expr.Any{
			&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg(0)},
			&expr.Cmp{Op: expr.CmpOpEq, Register: reg(0), Data: []byte{protoUDP}},
			&expr.Payload{DestRegister: reg(0), Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
			&expr.Cmp{Op: expr.CmpOpEq, Register: reg(0), Data: binary.BigEndian.AppendUint16(nil, t.in.node.MeshPort)},
		}, toThisNode(), []expr.Any{address(src, 0)}, t.notIn(setEndpoints, 0), drop))
	}
	return rules
}

// marks remembers by which peer a connection from outside came, and gives its answers the mark that takes them back.
func (t *table) marks(c *nftables.Conn) {
	if t.in.node.Mesh != cluster.MeshVXLAN {
		return
	}
	ourMark := func(load expr.Any) []expr.Any {
		return []expr.Any{
			load,
			&expr.Bitwise{SourceRegister: reg(0), DestRegister: reg(1), Len: 4, Mask: native(markOwner), Xor: native(0)},
			&expr.Cmp{Op: expr.CmpOpEq, Register: reg(1), Data: native(markBase)},
		}
	}
	setMark := &expr.Meta{Key: expr.MetaKeyMARK, Register: reg(0), SourceRegister: true}
	isReply := []expr.Any{
		&expr.Ct{Key: expr.CtKeyDIRECTION, Register: reg(0)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg(0), Data: []byte{ctReply}},
	}
	t.base(c, "marks", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, nftables.ChainPriorityMangle, [][]expr.Any{
		join(t.byMesh(expr.MetaKeyIIFNAME), ctState(expr.CtStateBitNEW), within4(src, t.in.node.TaskPool, false), etherSource(),
			t.lookup(setVTEPs, 0, 4), []expr.Any{&expr.Ct{Key: expr.CtKeyMARK, Register: reg(4), SourceRegister: true}}),
		join(t.ours(expr.MetaKeyIIFNAME), isReply, ourMark(&expr.Ct{Key: expr.CtKeyMARK, Register: reg(0)}), []expr.Any{setMark}),
	})
	// The packet that carries this one inherits its mark, and must not take the same way.
	t.base(c, "unmark", nftables.ChainTypeFilter, nftables.ChainHookPostrouting, nftables.ChainPriorityMangle, [][]expr.Any{
		join(t.byMesh(expr.MetaKeyOIFNAME), ourMark(&expr.Meta{Key: expr.MetaKeyMARK, Register: reg(0)}),
			[]expr.Any{&expr.Immediate{Register: reg(0), Data: native(0)}, setMark}),
	})
}

const ctReply = 1 // the direction of answers

// clamp lowers what new TCP connections into and out of the mesh announce to what fits: the other side may not hear that
// a packet was too big.
func (t *table) clamp(c *nftables.Conn) {
	if t.in.node.Mesh == "" {
		return
	}
	const flagsOffset, synOrReset, syn = 13, 0x06, 0x02
	const optionMSS, mssOffset, mssLen = 2, 2, 2
	lower := []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg(0)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg(0), Data: []byte{protoTCP}},
		&expr.Payload{DestRegister: reg(0), Base: expr.PayloadBaseTransportHeader, Offset: flagsOffset, Len: 1},
		&expr.Bitwise{SourceRegister: reg(0), DestRegister: reg(0), Len: 1, Mask: []byte{synOrReset}, Xor: []byte{0}},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg(0), Data: []byte{syn}},
		&expr.Rt{Key: expr.RtTCPMSS, Register: reg(0)},
		&expr.Byteorder{SourceRegister: reg(0), DestRegister: reg(0), Op: expr.ByteorderHton, Len: 2, Size: 2},
		&expr.Exthdr{SourceRegister: reg(0), Type: optionMSS, Offset: mssOffset, Len: mssLen, Op: expr.ExthdrOpTcpopt},
	}
	var rules [][]expr.Any
	for _, key := range []expr.MetaKey{expr.MetaKeyIIFNAME, expr.MetaKeyOIFNAME} {
		for _, offset := range []uint32{src, dst} {
			rules = append(rules, join(t.byMesh(key), within4(offset, t.in.node.TaskPool, true), lower))
		}
	}
	t.base(c, "clamp", nftables.ChainTypeFilter, nftables.ChainHookForward, nftables.ChainPriorityMangle, rules)
}

// hideRemoteClients gives what this node sends to tasks of others for a published port its own address: their answers must
// come back by this node, where the address is translated. Where the mesh can tell where a connection came in, clients from
// outside keep theirs; tasks do not, because another node would check them as members.
func (t *table) hideRemoteClients(toSelf []expr.Any) [][]expr.Any {
	if t.in.node.Mesh == "" {
		return nil
	}
	remote := join(t.published(), within4(dst, t.in.node.TaskPool, true), within4(dst, t.in.node.Subnet, false))
	var rules [][]expr.Any
	if t.in.keepsClients() {
		rules = append(rules, join(remote, within4(src, t.in.node.TaskPool, false), []expr.Any{
			&expr.Fib{Register: reg(0), FlagSADDR: true, ResultADDRTYPE: true},
			&expr.Cmp{Op: expr.CmpOpNeq, Register: reg(0), Data: native(unix.RTN_LOCAL)},
		}, verdict(expr.VerdictAccept, "")))
	}
	return append(rules,
		join(t.byMesh(expr.MetaKeyOIFNAME), within4(src, netip.MustParsePrefix("127.0.0.0/8"), true), within4(dst, t.in.node.TaskPool, true), toSelf),
		join(remote, toSelf))
}

// fromClients lets clients from outside that another node sent here reach what is published; to everything else they are
// strangers.
func (t *table) fromClients() [][]expr.Any {
	if t.in.node.Mesh != cluster.MeshVXLAN {
		return nil
	}
	return [][]expr.Any{
		join(t.byMesh(expr.MetaKeyIIFNAME), within4(src, t.in.node.TaskPool, false), portOn(true), t.in4(setExposed, 0), verdict(expr.VerdictAccept, "")),
	}
}

// etherSource loads the hardware address that a packet came from into register 0.
func etherSource() []expr.Any {
	return []expr.Any{&expr.Payload{DestRegister: reg(0), Base: expr.PayloadBaseLLHeader, Offset: 6, Len: 6}}
}

// wayBack matches packets whose source is reached by the link that they came by.
func wayBack() []expr.Any {
	return []expr.Any{
		&expr.Fib{Register: reg(0), FlagSADDR: true, FlagIIF: true, ResultOIF: true},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: reg(0), Data: native(0)},
	}
}

// toThisNode matches packets to an address of this node.
func toThisNode() []expr.Any {
	return []expr.Any{
		&expr.Fib{Register: reg(0), FlagDADDR: true, ResultADDRTYPE: true},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg(0), Data: native(unix.RTN_LOCAL)},
	}
}
