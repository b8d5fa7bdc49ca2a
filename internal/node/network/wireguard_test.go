package network

import (
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
	"pgregory.net/rapid"

	"baton/internal/model/cluster"
	"baton/internal/wire/agentapi"
)

// fakeWireGuard keeps what a device would after each configuration, as the kernel's and the in-process one do.
type fakeWireGuard struct {
	private  wgtypes.Key
	port     int
	have     map[wgtypes.Key]*fakePeer
	calls    []wgtypes.Config
	greeting []wgtypes.Key // handshakes that turning keepalive on began, in order

	completed map[wgtypes.Key]time.Time
}

type fakePeer struct {
	endpoint  netip.AddrPort
	allowed   []string
	keepalive int
}

func newFakeWireGuard() *fakeWireGuard {
	return &fakeWireGuard{have: make(map[wgtypes.Key]*fakePeer), completed: make(map[wgtypes.Key]time.Time)}
}

func (f *fakeWireGuard) configure(c wgtypes.Config) error {
	f.calls = append(f.calls, c)
	if c.PrivateKey != nil {
		f.private = *c.PrivateKey
	}
	if c.ListenPort != nil {
		f.port = *c.ListenPort
	}
	for _, p := range c.Peers {
		if p.Remove {
			delete(f.have, p.PublicKey)
			continue
		}
		peer := f.have[p.PublicKey]
		if peer == nil && p.UpdateOnly {
			continue
		}
		if peer == nil {
			peer = new(fakePeer)
			f.have[p.PublicKey] = peer
		}
		if p.Endpoint != nil {
			peer.endpoint = p.Endpoint.AddrPort()
		}
		if p.ReplaceAllowedIPs {
			peer.allowed = nil
		}
		for _, a := range p.AllowedIPs {
			for _, other := range f.have { // an address belongs to the peer that got it last
				other.allowed = slices.DeleteFunc(other.allowed, func(b string) bool { return b == a.String() })
			}
			peer.allowed = append(peer.allowed, a.String())
		}
		if p.PersistentKeepaliveInterval != nil {
			seconds := int(p.PersistentKeepaliveInterval.Seconds())
			if peer.keepalive == 0 && seconds > 0 {
				f.greeting = append(f.greeting, p.PublicKey)
			}
			peer.keepalive = seconds
		}
	}
	return nil
}

func (f *fakeWireGuard) state() (deviceState, error) {
	s := deviceState{key: f.private, port: uint16(f.port), peers: make(map[wgtypes.Key]netip.AddrPort), greeted: f.completed}
	for k, p := range f.have {
		s.peers[k] = p.endpoint
	}
	return s, nil
}
func (f *fakeWireGuard) setMTU(int) {}
func (f *fakeWireGuard) close()     {}

// testKey is a public key that is easy to tell from others.
func testKey(i int) string {
	var k wgtypes.Key
	k[0] = byte(i)
	return k.String()
}

func wgPeer(node byte, key int, endpoint string) meshPeer {
	p := agentapi.Peer{Node: cluster.ID{node}, Name: fmt.Sprint("n", node), Subnet: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 210, node, 0}), 24), Key: testKey(key)}
	if endpoint != "" {
		p.Endpoint = netip.MustParseAddrPort(endpoint)
	}
	return meshPeer{Peer: p}
}

// Whatever the history, the device has exactly the wanted peers, and endpoints are left alone unless their peer's changed.
func TestWireGuardFollows(t *testing.T) {
	private, err := wgtypes.GeneratePrivateKey()
	check(t, err)
	rapid.Check(t, func(t *rapid.T) {
		f := newFakeWireGuard()
		tun := &tunnel{device: f}
		var before []meshPeer
		for range rapid.IntRange(1, 8).Draw(t, "steps") {
			var want []meshPeer
			for _, id := range rapid.SliceOfNDistinct(rapid.ByteRange(1, 5), 0, 5, rapid.ID[byte]).Draw(t, "nodes") {
				generation := rapid.IntRange(0, 1).Draw(t, "key")
				address := rapid.SampledFrom([]string{"192.0.2.1:1", "192.0.2.2:1", ""}).Draw(t, "endpoint")
				p := wgPeer(id, int(id)*2+generation, address)
				p.Name += rapid.SampledFrom([]string{"", " renamed"}).Draw(t, "name")
				want = append(want, p)
			}
			roamed := make(map[wgtypes.Key]netip.AddrPort)
			for k, p := range f.have { // every peer moves to where only the device knows
				p.endpoint = netip.AddrPortFrom(netip.MustParseAddr("198.51.100.1"), uint16(k[0]))
				roamed[k] = p.endpoint
			}
			if err := tun.follow(private.String(), 51820, want); err != nil {
				t.Fatal(err)
			}
			if len(f.have) != len(want) {
				t.Fatalf("the device has %d peers, want %d", len(f.have), len(want))
			}
			for _, w := range want {
				k, _ := parseKey(w.Key)
				p := f.have[k]
				if p == nil || len(p.allowed) != 1 || p.allowed[0] != w.Subnet.String() || p.keepalive != 25 {
					t.Fatalf("%s: got %+v", w.Name, p)
				}
				endpoint := w.Endpoint
				for _, b := range before {
					if old, _ := parseKey(b.Key); b.Node == w.Node && (b.Endpoint == w.Endpoint || b.Key == w.Key && !w.Endpoint.IsValid()) {
						endpoint = roamed[old]
					}
				}
				if p.endpoint != endpoint {
					t.Fatalf("%s: got endpoint %v, want %v", w.Name, p.endpoint, endpoint)
				}
			}
			calls := len(f.calls)
			if err := tun.follow(private.String(), 51820, want); err != nil || len(f.calls) != calls {
				t.Fatalf("the same again: got %d calls, %v; want none", len(f.calls)-calls, err)
			}
			before = want
		}
	})
}

// With a new key, every peer is called at once: its sessions ended, and it cannot know.
func TestWireGuardCallsPeersWithANewKey(t *testing.T) {
	f := newFakeWireGuard()
	tun := &tunnel{device: f}
	peers := []meshPeer{wgPeer(1, 1, "192.0.2.1:1"), wgPeer(2, 2, "")}
	for i := range 2 {
		k, err := wgtypes.GeneratePrivateKey()
		check(t, err)
		f.greeting = nil
		check(t, tun.follow(k.String(), 51820, peers))
		if f.private != k || f.port != 51820 || len(f.greeting) != 2 {
			t.Errorf("key %d: got private key set %v, port %d, %d peers called; want 2 called", i, f.private == k, f.port, len(f.greeting))
		}
	}
}

// A handshake that came to nothing is begun again, at the endpoint that the device knows; others are left alone.
func TestWireGuardRepeatsCalls(t *testing.T) {
	private, err := wgtypes.GeneratePrivateKey()
	check(t, err)
	done, lost, passive := wgPeer(1, 1, "192.0.2.1:1"), wgPeer(2, 2, "192.0.2.2:1"), wgPeer(3, 3, "")
	f := newFakeWireGuard()
	tun := &tunnel{device: f}
	check(t, tun.follow(private.String(), 51820, []meshPeer{done, lost, passive}))
	begin := time.Now()
	doneKey, err := parseKey(done.Key)
	check(t, err)
	lostKey, err := parseKey(lost.Key)
	check(t, err)
	f.completed[doneKey], f.completed[lostKey] = begin.Add(1), begin
	roamed := netip.MustParseAddrPort("198.51.100.1:7")
	f.have[lostKey].endpoint = roamed
	f.greeting = nil
	missing, err := tun.repeatCalls(begin)
	if err != nil || missing != 1 || !slices.Equal(f.greeting, []wgtypes.Key{lostKey}) || f.have[lostKey].endpoint != roamed || !slices.Equal(f.have[lostKey].allowed, []string{lost.Subnet.String()}) {
		t.Errorf("got %d missing, %v; called %v; peer %+v; want one called again", missing, err, f.greeting, f.have[lostKey])
	}
	f.completed[lostKey] = begin.Add(1)
	if missing, err := tun.repeatCalls(begin); err != nil || missing != 0 {
		t.Errorf("after it was answered: got %d missing, %v", missing, err)
	}
}

// A device of the kernel goes on while the process is away; the new one takes it over without touching what is right.
func TestWireGuardAdopts(t *testing.T) {
	private, err := wgtypes.GeneratePrivateKey()
	check(t, err)
	known, unknown := wgPeer(1, 1, "192.0.2.1:1"), wgPeer(2, 2, "192.0.2.2:1")
	f := newFakeWireGuard()
	check(t, (&tunnel{device: f}).follow(private.String(), 51820, []meshPeer{known, unknown}))
	k, err := parseKey(known.Key)
	check(t, err)
	roamed := netip.MustParseAddrPort("198.51.100.1:7")
	f.have[k].endpoint = roamed
	tun := &tunnel{device: f}
	record := meshRecord{Node: agentapi.NodeConfig{Mesh: cluster.MeshWireGuard, MeshPort: 51820}, Peers: []meshPeer{known}}
	check(t, tun.adopt(record))
	check(t, tun.follow(private.String(), 51820, record.Peers))
	if len(f.have) != 1 || f.have[k].endpoint != roamed {
		t.Errorf("after adoption: got %d peers, endpoint %v; want 1, where it roamed to", len(f.have), f.have[k].endpoint)
	}
	if calls := f.calls[1:]; len(calls) != 1 || len(calls[0].Peers) != 1 || !calls[0].Peers[0].Remove {
		t.Errorf("configurations of the new process: got %+v, want one, that removes the peer nobody wrote down", calls)
	}
}

func TestUAPI(t *testing.T) {
	private, err := wgtypes.ParseKey(testKey(9))
	check(t, err)
	changed := wgPeer(2, 3, "[2001:db8::1]:51820")
	c, err := wireGuardChange([]meshPeer{wgPeer(1, 1, "192.0.2.1:1"), wgPeer(2, 2, "192.0.2.2:1")}, []meshPeer{changed}, nil)
	check(t, err)
	port := 51820
	c.PrivateKey, c.ListenPort = &private, &port
	hexKey := func(i byte) string { return hex.EncodeToString(append([]byte{i}, make([]byte, 31)...)) }
	want := strings.Join([]string{
		"private_key=" + hexKey(9), "listen_port=51820",
		"public_key=" + hexKey(1), "update_only=true", "remove=true",
		"public_key=" + hexKey(2), "update_only=true", "remove=true",
		"public_key=" + hexKey(3), "endpoint=[2001:db8::1]:51820", "persistent_keepalive_interval=25",
		"replace_allowed_ips=true", "allowed_ip=10.210.2.0/24", "",
	}, "\n")
	if got := uapi(c); got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
}

func TestParseUAPI(t *testing.T) {
	private, public := testKey(9), testKey(1)
	hexKey := func(i byte) string { return hex.EncodeToString(append([]byte{i}, make([]byte, 31)...)) }
	got, err := parseUAPI("private_key=" + hexKey(9) + "\nlisten_port=51820\npublic_key=" + hexKey(1) + "\nprotocol_version=1\nlast_handshake_time_sec=5\nlast_handshake_time_nsec=7\nendpoint=192.0.2.1:7\npublic_key=" + hexKey(2) + "\n")
	check(t, err)
	k, err := parseKey(public)
	check(t, err)
	if got.key.String() != private || got.port != 51820 || len(got.peers) != 2 || got.peers[k] != netip.MustParseAddrPort("192.0.2.1:7") || !got.greeted[k].Equal(time.Unix(5, 7)) {
		t.Errorf("got port %d, peers %v", got.port, got.peers)
	}
	if _, err := parseUAPI("private_key=" + hexKey(9)[:10]); err == nil || strings.Contains(err.Error(), hexKey(9)[:10]) {
		t.Errorf("damaged key: got %v, want an error without it", err)
	}
}

// Marks are kept while their peer is there, and are different.
func TestMarks(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var before []meshPeer
		for range rapid.IntRange(1, 6).Draw(t, "steps") {
			var peers []meshPeer
			for _, id := range rapid.SliceOfDistinct(rapid.ByteRange(1, 255), rapid.ID[byte]).Draw(t, "nodes") {
				peers = append(peers, wgPeer(id, 1, ""))
			}
			assignMarks(before, peers)
			seen := make(map[uint8]bool)
			for _, p := range peers {
				if len(peers) > marksMax {
					if p.Mark != 0 {
						t.Fatalf("%d peers: got mark %d, want none", len(peers), p.Mark)
					}
					continue
				}
				i := slices.IndexFunc(before, func(b meshPeer) bool { return b.Node == p.Node })
				if p.Mark == 0 || seen[p.Mark] || i >= 0 && before[i].Mark != 0 && before[i].Mark != p.Mark {
					t.Fatalf("%v: got mark %d", p.Node, p.Mark)
				}
				seen[p.Mark] = true
			}
			before = peers
		}
	})
}

// A peer that is named wrongly is left out; the others are not.
func TestUsablePeers(t *testing.T) {
	w := newWorld(t)
	for _, mesh := range meshes {
		n := w.newNodeOf(210, 1, "", 0)
		n.node.Mesh = mesh
		good := agentapi.Peer{Node: cluster.ID{9}, Name: "good", Subnet: netip.MustParsePrefix("10.210.9.0/24"), Endpoint: netip.MustParseAddrPort("192.0.2.9:1"), Key: testKey(9)}
		self := good
		self.Node, self.Subnet = n.cfg.NodeID, n.config.Subnet
		bad := func(change func(*agentapi.Peer)) agentapi.Peer {
			p := good
			p.Node = cluster.NewID(nil)
			p.Subnet = netip.MustParsePrefix("10.210.10.0/24")
			change(&p)
			return p
		}
		peers := []agentapi.Peer{
			good, self,
			bad(func(p *agentapi.Peer) { p.Subnet = n.config.Subnet }),
			bad(func(p *agentapi.Peer) { p.Subnet = good.Subnet }),
			bad(func(p *agentapi.Peer) { p.Subnet = netip.MustParsePrefix("10.0.0.0/8") }),
			bad(func(p *agentapi.Peer) { p.Subnet = netip.MustParsePrefix("192.0.2.0/24") }),
			bad(func(p *agentapi.Peer) { p.Subnet = netip.Prefix{} }),
			bad(func(p *agentapi.Peer) { p.Key, p.Endpoint = "short", netip.AddrPort{} }),
			bad(func(p *agentapi.Peer) {
				p.Key, p.Endpoint = (wgtypes.Key{}).String(), netip.MustParseAddrPort("[2001:db8::1]:1")
			}),
		}
		local, usable := n.usablePeers(peers)
		if local != good.Endpoint.Addr() || len(usable) != 1 || usable[0].Name != "good" {
			t.Errorf("%s: got own endpoint %v and peers %+v; want the good one only", mesh, local, usable)
		}
		n.node.Mesh = ""
	}
}

func TestConfigureRefusesMeshes(t *testing.T) {
	w := newWorld(t)
	n := w.newNode(210)
	for _, c := range []struct {
		mesh cluster.Mesh
		port uint16
	}{{"carrier-pigeon", 1}, {cluster.MeshWireGuard, 0}, {cluster.MeshVXLAN, 0}} {
		config := n.config
		config.Mesh, config.MeshPort = c.mesh, c.port
		if err := n.Configure(t.Context(), config); err == nil {
			t.Errorf("mesh %q with port %d: got no error", c.mesh, c.port)
		}
	}
}

// The narrowest link to a peer decides, not the one to the world.
func TestMeshMTUOfThePrivateLink(t *testing.T) {
	u := newUnderlay(t, cluster.MeshWireGuard, 2)
	link, err := u.nodes[0].links.LinkByName("uplink")
	check(t, err)
	check(t, u.nodes[0].links.LinkSetMTU(link, 1400))
	// The world is by another, wider link.
	check(t, u.nodes[0].links.RouteDel(&netlink.Route{Gw: outsideAddress.AsSlice()}))
	tk := u.attach(0, 10)
	tk.wantMTU(1420)
	u.apply(nil, tk)
	tk.wantMTU(1320)
}
