package ipam

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"baton/internal/model/cluster"
)

// ErrExhausted is wrapped by every error that means that no address is free.
var ErrExhausted = errors.New("no address is free")

// NodeSubnet returns the lowest subnet of bits prefix length in pool that overlaps none of used.
func NodeSubnet(pool netip.Prefix, bits int, used []netip.Prefix) (netip.Prefix, error) {
	pool = pool.Masked()
	if !pool.IsValid() || !pool.Addr().Is4() {
		return netip.Prefix{}, fmt.Errorf("task pool %s: not an IPv4 prefix", pool)
	}
	if bits < pool.Bits() || bits > 30 {
		return netip.Prefix{}, fmt.Errorf("node subnets of /%d do not fit the task pool %s: choose from /%d to /30", bits, pool, pool.Bits())
	}
	taken := slices.Clone(used)
	slices.SortFunc(taken, func(a, b netip.Prefix) int {
		return cmp.Or(a.Masked().Addr().Compare(b.Masked().Addr()), a.Bits()-b.Bits())
	})
	next, size := uint64(number(pool.Addr())), uint64(1)<<(32-bits)
	end := next + uint64(1)<<(32-pool.Bits())
	for _, p := range taken {
		if !p.Addr().Is4() {
			continue
		}
		first := uint64(number(p.Masked().Addr()))
		last := first + uint64(1)<<(32-p.Bits())
		if last <= next {
			continue
		}
		if next+size <= first {
			break
		}
		next = (last + size - 1) / size * size
	}
	if next+size > end {
		return netip.Prefix{}, fmt.Errorf("task pool %s has no room for another /%d (%d nodes have one): %w: widen the pool", pool, bits, len(used), ErrExhausted)
	}
	return netip.PrefixFrom(address(uint32(next)), bits), nil
}

// Block hands out the addresses of one prefix.
type Block struct {
	prefix netip.Prefix
	first  uint32 // lowest address that may be given
	last   uint32
	next   uint32 // where the search goes on, so that freed addresses rest for a whole round
	taken  map[uint32]struct{}
}

// NewBlock returns a block over an IPv4 prefix of which only the reserved addresses are taken.
func NewBlock(prefix netip.Prefix, reserved ...netip.Addr) (*Block, error) {
	prefix = prefix.Masked()
	if !prefix.IsValid() || !prefix.Addr().Is4() || prefix.Bits() > 30 {
		return nil, fmt.Errorf("prefix %s: want an IPv4 prefix of at most 30 bits", prefix)
	}
	base := number(prefix.Addr())
	b := &Block{
		prefix: prefix,
		first:  base + 1,
		last:   base + uint32(uint64(1)<<(32-prefix.Bits())) - 2,
		taken:  make(map[uint32]struct{}),
	}
	b.next = b.first
	for _, a := range reserved {
		if err := b.Take(a); err != nil && !errors.Is(err, errOutside) {
			return nil, err
		}
	}
	return b, nil
}

var errOutside = errors.New("not an address of the block")

// Prefix is what the block was made of.
func (b *Block) Prefix() netip.Prefix { return b.prefix }

// Free counts the addresses that are not taken.
func (b *Block) Free() int { return int(b.last-b.first) + 1 - len(b.taken) }

// Take marks an address as taken, for what is in use already. It fails when the address is taken or not the block's.
func (b *Block) Take(a netip.Addr) error {
	n, err := b.number(a)
	if err != nil {
		return err
	}
	if _, ok := b.taken[n]; ok {
		return fmt.Errorf("address %s is taken already", a)
	}
	b.taken[n] = struct{}{}
	return nil
}

// Release makes an address free again; one that is not taken, or not the block's, changes nothing.
func (b *Block) Release(a netip.Addr) {
	if n, err := b.number(a); err == nil {
		delete(b.taken, n)
	}
}

// After sets where the next search begins: after a. The caller uses it to go on where an earlier process stopped, so that
// addresses given shortly before are not given first.
func (b *Block) After(a netip.Addr) {
	if n, err := b.number(a); err == nil {
		b.next = b.following(n)
	}
}

// Next takes a free address and returns it.
func (b *Block) Next() (netip.Addr, error) {
	if b.Free() <= 0 {
		return netip.Addr{}, fmt.Errorf("all %d addresses of %s are taken: %w", len(b.taken), b.prefix, ErrExhausted)
	}
	n := b.next
	for {
		if _, ok := b.taken[n]; !ok {
			break
		}
		n = b.following(n)
	}
	b.taken[n] = struct{}{}
	b.next = b.following(n)
	return address(n), nil
}

func (b *Block) following(n uint32) uint32 {
	if n >= b.last {
		return b.first
	}
	return n + 1
}

func (b *Block) number(a netip.Addr) (uint32, error) {
	a = a.Unmap()
	if !a.Is4() || !b.prefix.Contains(a) {
		return 0, fmt.Errorf("address %s, block %s: %w", a, b.prefix, errOutside)
	}
	n := number(a)
	if n < b.first || n > b.last {
		return 0, fmt.Errorf("address %s is the first or last of %s: %w", a, b.prefix, errOutside)
	}
	return n, nil
}

func number(a netip.Addr) uint32 {
	four := a.As4()
	return binary.BigEndian.Uint32(four[:])
}

func address(n uint32) netip.Addr {
	var four [4]byte
	binary.BigEndian.PutUint32(four[:], n)
	return netip.AddrFrom4(four)
}

// Ports keeps the books of the host ports of one node. The zero value is ready to use.
type Ports struct {
	held map[cluster.HostPort]cluster.ID
}

// Holder returns the task that holds the port.
func (p *Ports) Holder(port cluster.HostPort) (cluster.ID, bool) {
	id, ok := p.held[port]
	return id, ok
}

// Conflict returns the first of ports that another task than task holds.
func (p *Ports) Conflict(task cluster.ID, ports []cluster.HostPort) (cluster.HostPort, bool) {
	for _, port := range ports {
		if id, ok := p.held[port]; ok && id != task {
			return port, true
		}
	}
	return cluster.HostPort{}, false
}

// Take gives all of ports to task, or none and an error that names the conflict.
func (p *Ports) Take(task cluster.ID, ports []cluster.HostPort) error {
	if port, ok := p.Conflict(task, ports); ok {
		return fmt.Errorf("host port %d/%s is held by task %s", port.Port, port.Protocol, p.held[port].Short())
	}
	if p.held == nil && len(ports) > 0 {
		p.held = make(map[cluster.HostPort]cluster.ID)
	}
	for _, port := range ports {
		p.held[port] = task
	}
	return nil
}

// Release frees those of ports that task holds.
func (p *Ports) Release(task cluster.ID, ports []cluster.HostPort) {
	for _, port := range ports {
		if p.held[port] == task {
			delete(p.held, port)
		}
	}
}
