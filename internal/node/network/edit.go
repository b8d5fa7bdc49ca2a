package network

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"

	"baton/internal/model/cluster"
	"baton/internal/wire/agentapi"
)

// edit is a change of the rules: one transaction, then one for what packets under way may still need.
// Within each, an element may be removed and added again: packets see it before or after.
type edit struct {
	now, late []op
	chains    map[chainID]bool // that the edit needs
}

type op struct {
	set        setID
	key, value []byte
	chain      string // verdict: goto
	remove     bool
}

func (e *edit) add(s setID, key, value []byte) {
	e.now = append(e.now, op{set: s, key: key, value: value})
}
func (e *edit) remove(s setID, key []byte) { e.now = append(e.now, op{set: s, key: key, remove: true}) }
func (e *edit) removeLate(s setID, key []byte) {
	e.late = append(e.late, op{set: s, key: key, remove: true})
}

func (e *edit) addVerdict(s setID, key []byte, c chainID) {
	if e.chains == nil {
		e.chains = make(map[chainID]bool)
	}
	e.chains[c] = true
	e.now = append(e.now, op{set: s, key: key, chain: c.String()})
}

// rulesInput is all that the rules follow from.
type rulesInput struct {
	node   agentapi.NodeConfig
	self   netip.Addr
	layout layout
	state  agentapi.NetworkState
	links  []string // of the mesh
	peers  []meshPeer
	local  []*attachment // sorted by address
}

// rules mirrors what the kernel has.
type rules struct {
	balancer balancer
	numbers  groupNumbers
	sets     map[setID]contents
	chains   map[chainID]bool
	held     map[string]cluster.ID // services that rest, by what wakes them
	chainsAt int                   // with more chains than this, look for those that are idle

	// What the member sets follow from, to see at once that nothing changed; local is nil before the first time.
	members []agentapi.Member
	local   []*attachment
}

// chainsFew is up to how many chains are kept, used or not: services that are updated go back and forth between a few.
const chainsFew = 64

// idle takes the chains that nothing draws from out of the mirror once there are many. Otherwise a service that was once
// scaled from one task to a thousand would leave a thousand.
func (r *rules) idle() (out []chainID) {
	if len(r.chains) <= max(chainsFew, r.chainsAt) {
		return nil
	}
	used := make(map[chainID]bool)
	for f, targets := range r.balancer.fronts {
		used[f.chain(len(targets))] = true
	}
	for id := range r.chains {
		if !used[id] {
			out = append(out, id)
			delete(r.chains, id)
		}
	}
	r.chainsAt = 2 * len(r.chains)
	return out
}

// follows reports whether the member sets need no change.
func (r *rules) follows(want rulesInput) bool {
	return r.local != nil && slices.Equal(r.local, want.local) &&
		slices.EqualFunc(r.members, want.state.Members, func(a, b agentapi.Member) bool {
			return a.Address == b.Address && slices.Equal(a.Networks, b.Networks)
		})
}

// install makes the kernel's rules follow want: by the difference when they are known, else by replacing them at once.
// It returns whether datagram flows may point to the wrong place now, and the addresses of members that left.
func (n *Network) install(want rulesInput) (moved bool, left map[netip.Addr]bool, err error) {
	c, err := n.nftConn()
	if err != nil {
		return false, nil, err
	}
	t := newTable(want)
	have, e := n.installed, new(edit)
	if have == nil {
		have = &rules{balancer: balancer{fronts: make(map[frontend][]target)}, sets: make(map[setID]contents), chains: make(map[chainID]bool)}
		moved = true
		t.create(c)
	}
	moved = have.balancer.update(frontends(want.state, want.local), e) || moved
	if !have.follows(want) {
		for set, wanted := range memberSets(have.numbers.isolate(want.state, want.local), want.local, want.layout) {
			have.sets[set].update(set, wanted, e)
			have.sets[set] = wanted
		}
		left = leftMembers(have.members, want)
		have.members, have.local = want.state.Members, want.local
	}
	for set, wanted := range meshSets(want) {
		have.sets[set].update(set, wanted, e)
		have.sets[set] = wanted
	}
	resting := holds(want)
	have.held = resting.services
	for set, wanted := range resting.sets() {
		have.sets[set].update(set, wanted, e)
		have.sets[set] = wanted
	}
	for id := range e.chains {
		if !have.chains[id] {
			t.addDraw(c, id)
			have.chains[id] = true
		}
	}
	for i, ops := range [][]op{e.now, e.late} {
		if i > 0 { // nothing names them since the first transaction
			t.removeDraws(c, have.idle())
		}
		if err := t.write(c, ops); err != nil {
			return false, nil, err
		}
		if err := c.Flush(); err != nil {
			return false, nil, fmt.Errorf("nftables transaction of %d elements on table %s: %w", len(ops), want.layout.table, err)
		}
	}
	n.installed = have
	return moved, left, nil
}

// leftMembers are the addresses that were of members and are nobody's now, here or elsewhere.
func leftMembers(before []agentapi.Member, want rulesInput) map[netip.Addr]bool {
	left := make(map[netip.Addr]bool)
	for i := range before {
		left[before[i].Address] = true
	}
	for i := range want.state.Members {
		delete(left, want.state.Members[i].Address)
	}
	for _, a := range want.local {
		delete(left, a.Address) // until it is detached
	}
	return left
}

// admit adds to the rules of an earlier process what an attached task needs to speak at all.
// Whom it may reach, and its published ports, come with the first state.
func (n *Network) admit(want rulesInput) error {
	c, err := n.nftConn()
	if err != nil {
		return err
	}
	e := new(edit)
	for set, wanted := range memberSets(isolation{}, want.local, want.layout) {
		contents{}.update(set, wanted, e)
	}
	if err := newTable(want).write(c, e.now); err != nil {
		return err
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("nftables table %s of an earlier process: %w", want.layout.table, err)
	}
	return nil
}

// Limits of a transaction. An element message may not exceed 64 KiB; the kernel acknowledges each message into the receive buffer.
const (
	elementsPerMessage = 200
	sendBuffer         = 64 << 20
	receiveBuffer      = 8 << 20
)

// nftConn opens the kernel's nftables in the node's namespace; each transaction uses a socket of its own.
func (n *Network) nftConn() (*nftables.Conn, error) {
	options := []nftables.ConnOption{nftables.WithSockOptions(
		func(c *netlink.Conn) error { return c.SetWriteBuffer(sendBuffer) },
		func(c *netlink.Conn) error { return c.SetReadBuffer(receiveBuffer) },
	)}
	if n.cfg.NetNS != "" {
		options = append(options, nftables.WithNetNSFd(int(n.host)))
	}
	c, err := nftables.New(options...)
	if err != nil {
		return nil, fmt.Errorf("nftables: %w", err)
	}
	return c, nil
}

func (n *Network) tableExists() (bool, error) {
	c, err := n.nftConn()
	if err != nil {
		return false, err
	}
	tables, err := c.ListTablesOfFamily(nftables.TableFamilyIPv4)
	if err != nil {
		return false, fmt.Errorf("list nftables tables (needs root): %w", err)
	}
	for _, t := range tables {
		if t.Name == n.names.table {
			return true, nil
		}
	}
	return false, nil
}

// write queues ops as few messages, in their order where it matters: removals and additions of one key never share a message.
func (t *table) write(c *nftables.Conn, ops []op) error {
	type batch struct {
		set    setID
		remove bool
	}
	open := make(map[batch][]nftables.SetElement)
	flush := func(b batch) error {
		elements := open[b]
		delete(open, b)
		if len(elements) == 0 {
			return nil
		}
		if b.remove {
			return c.SetDeleteElements(t.sets[b.set], elements)
		}
		return c.SetAddElements(t.sets[b.set], elements)
	}
	// All removals go first: an addition may reuse a removed key, never the other way round.
	for _, remove := range []bool{true, false} {
		for _, o := range ops {
			if o.remove != remove {
				continue
			}
			element := nftables.SetElement{Key: o.key, Val: o.value}
			if o.chain != "" {
				element.VerdictData = &expr.Verdict{Kind: expr.VerdictGoto, Chain: o.chain}
			}
			b := batch{o.set, remove}
			if open[b] = append(open[b], element); len(open[b]) == elementsPerMessage {
				if err := flush(b); err != nil {
					return fmt.Errorf("nftables elements: %w", err)
				}
			}
		}
		for set := range numSets {
			if err := flush(batch{set, remove}); err != nil {
				return fmt.Errorf("nftables elements: %w", err)
			}
		}
	}
	return nil
}
