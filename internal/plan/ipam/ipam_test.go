package ipam

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"baton/internal/model/cluster"
)

func TestNodeSubnets(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		bits := rapid.IntRange(20, 28).Draw(t, "bits")
		pool := netip.PrefixFrom(netip.MustParseAddr("10.64.0.0"), rapid.IntRange(bits-6, bits).Draw(t, "pool"))
		var used []netip.Prefix
		for {
			if len(used) > 1 && rapid.IntRange(0, 3).Draw(t, "free") == 0 {
				i := rapid.IntRange(0, len(used)-1).Draw(t, "which")
				used = append(used[:i:i], used[i+1:]...)
			}
			p, err := NodeSubnet(pool, bits, used)
			if err != nil {
				if !errors.Is(err, ErrExhausted) || len(used) != 1<<(bits-pool.Bits()) {
					t.Fatalf("with %d of %d subnets used: %v", len(used), 1<<(bits-pool.Bits()), err)
				}
				return
			}
			if p.Bits() != bits || !pool.Contains(p.Addr()) || p != p.Masked() {
				t.Fatalf("got %s from %s", p, pool)
			}
			for _, u := range used {
				if u.Overlaps(p) {
					t.Fatalf("%s overlaps %s", p, u)
				}
			}
			used = append(used, p)
		}
	})
}

func TestNodeSubnetSkipsOtherSizes(t *testing.T) {
	used := []netip.Prefix{netip.MustParsePrefix("10.64.0.0/25"), netip.MustParsePrefix("10.64.1.128/26"), netip.MustParsePrefix("192.168.0.0/16")}
	got, err := NodeSubnet(netip.MustParsePrefix("10.64.0.0/16"), 24, used)
	if want := netip.MustParsePrefix("10.64.2.0/24"); err != nil || got != want {
		t.Fatalf("got %s, %v, want %s", got, err, want)
	}
}

func TestNodeSubnetErrors(t *testing.T) {
	for name, c := range map[string]struct {
		pool string
		bits int
		want string
	}{
		"too big":   {"10.0.0.0/16", 8, "do not fit"},
		"too small": {"10.0.0.0/16", 31, "do not fit"},
		"ipv6":      {"fd00::/16", 24, "not an IPv4 prefix"},
	} {
		if _, err := NodeSubnet(netip.MustParsePrefix(c.pool), c.bits, nil); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want %q", name, err, c.want)
		}
	}
}

func TestBlockNeverGivesAnAddressTwice(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		prefix := netip.PrefixFrom(netip.MustParseAddr("10.64.3.0"), rapid.IntRange(25, 30).Draw(t, "bits"))
		gateway := prefix.Addr().Next()
		b, err := NewBlock(prefix, gateway)
		if err != nil {
			t.Fatal(err)
		}
		size := 1<<(32-prefix.Bits()) - 3 // without first, last and gateway
		held := map[netip.Addr]bool{}
		freed := map[netip.Addr]int{} // when
		for i := range rapid.IntRange(1, 300).Draw(t, "steps") {
			if rapid.IntRange(0, 2).Draw(t, "free") == 0 && len(held) > 0 {
				for a := range held {
					b.Release(a)
					delete(held, a)
					freed[a] = i
					break
				}
				continue
			}
			a, err := b.Next()
			if err != nil {
				if !errors.Is(err, ErrExhausted) || len(held) != size {
					t.Fatalf("with %d of %d held: %v", len(held), size, err)
				}
				continue
			}
			if held[a] || a == gateway || a == prefix.Addr() || !prefix.Contains(a) {
				t.Fatalf("got %s of %s", a, prefix)
			}
			held[a] = true
			if b.Free() != size-len(held) {
				t.Fatalf("Free is %d, want %d", b.Free(), size-len(held))
			}
			if b.Take(a) == nil {
				t.Fatalf("%s can be taken twice", a)
			}
		}
	})
}

func TestBlockRestsFreedAddresses(t *testing.T) {
	b, err := NewBlock(netip.MustParsePrefix("10.0.0.0/28"))
	if err != nil {
		t.Fatal(err)
	}
	first, _ := b.Next()
	b.Release(first)
	for range 13 {
		if a, err := b.Next(); err != nil || a == first {
			t.Fatalf("got %s, %v before every other address was used", a, err)
		}
	}
	if a, err := b.Next(); err != nil || a != first {
		t.Fatalf("got %s, %v, want %s now", a, err, first)
	}
}

func TestBlockGoesOnAfter(t *testing.T) {
	b, _ := NewBlock(netip.MustParsePrefix("10.0.0.0/24"))
	b.After(netip.MustParseAddr("10.0.0.254"))
	if a, _ := b.Next(); a != netip.MustParseAddr("10.0.0.1") {
		t.Fatalf("got %s after the last address, want the first", a)
	}
	b.After(netip.MustParseAddr("10.0.0.77"))
	if a, _ := b.Next(); a != netip.MustParseAddr("10.0.0.78") {
		t.Fatalf("got %s, want 10.0.0.78", a)
	}
}

func TestPorts(t *testing.T) {
	var p Ports
	web := []cluster.HostPort{{Port: 80, Protocol: "tcp"}, {Port: 443, Protocol: "tcp"}}
	one, two := cluster.ID{1}, cluster.ID{2}
	if err := p.Take(one, web); err != nil {
		t.Fatal(err)
	}
	if err := p.Take(one, web); err != nil {
		t.Errorf("taking again what is one's own: %v", err)
	}
	mixed := []cluster.HostPort{{Port: 53, Protocol: "udp"}, {Port: 443, Protocol: "tcp"}}
	if err := p.Take(two, mixed); err == nil || !strings.Contains(err.Error(), "443/tcp") {
		t.Errorf("got %v, want a conflict on 443/tcp", err)
	}
	if _, held := p.Holder(mixed[0]); held {
		t.Error("a refused Take keeps a part")
	}
	if err := p.Take(two, []cluster.HostPort{{Port: 443, Protocol: "udp"}}); err != nil {
		t.Errorf("another protocol: %v", err)
	}
	p.Release(two, web)
	if id, _ := p.Holder(web[0]); id != one {
		t.Error("a task releases another one's port")
	}
	p.Release(one, web)
	if err := p.Take(two, mixed); err != nil {
		t.Errorf("after the release: %v", err)
	}
}
