package network

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// outageTable is the one table in a task's namespace.
const outageTable = "baton-names"

// bridgeOutages makes name service in a task silent, not refused, while this process is not there to answer: resolvers ask
// again after a silence, but a refusal makes a lookup fail at once. So a restart costs a task a delay, not an error.
func bridgeOutages(ns netns.NsHandle) error {
	c, err := nftables.New(nftables.WithNetNSFd(int(ns)))
	if err != nil {
		return fmt.Errorf("nftables in the task's namespace: %w", err)
	}
	tables, err := c.ListTablesOfFamily(nftables.TableFamilyIPv4)
	if err != nil {
		return fmt.Errorf("nftables in the task's namespace: %w", err)
	}
	for _, t := range tables {
		if t.Name == outageTable {
			return nil
		}
	}
	t := c.AddTable(&nftables.Table{Name: outageTable, Family: nftables.TableFamilyIPv4})
	accept := nftables.ChainPolicyAccept
	chain := c.AddChain(&nftables.Chain{
		Name: "output", Table: t, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookOutput,
		Priority: nftables.ChainPriorityFilter, Policy: &accept,
	})
	server := within4(src, netip.PrefixFrom(netip.MustParseAddr(dnsAddress), 32), true)
	protocol := func(number byte) []expr.Any {
		return []expr.Any{
			&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg(0)},
			&expr.Cmp{Op: expr.CmpOpEq, Register: reg(0), Data: []byte{number}},
		}
	}
	const flagsOffset, reset = 13, 0x04 // in the TCP header
	isReset := []expr.Any{
		&expr.Payload{DestRegister: reg(0), Base: expr.PayloadBaseTransportHeader, Offset: flagsOffset, Len: 1},
		&expr.Bitwise{SourceRegister: reg(0), DestRegister: reg(0), Len: 1, Mask: []byte{reset}, Xor: []byte{0}},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: reg(0), Data: []byte{0}},
	}
	for _, exprs := range [][]expr.Any{
		join(server, protocol(protoICMP), verdict(expr.VerdictDrop, "")),
		join(server, protocol(protoTCP), isReset, verdict(expr.VerdictDrop, "")),
	} {
		c.AddRule(&nftables.Rule{Table: t, Chain: chain, Exprs: exprs})
	}
	if err := c.Flush(); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("nftables in the task's namespace: %w", err)
	}
	return nil
}
