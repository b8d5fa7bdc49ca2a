package network

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/wgctrl"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"baton/internal/model/cluster"
)

// keepalive keeps a NAT's entry for the way to a peer; most forget after 30 s.
const keepalive = 25 * time.Second

// Link types, as netlink names them.
const (
	linkTypeTUN       = "tuntap"
	linkTypeWireGuard = "wireguard"
)

// tunnel is the WireGuard device of this node, wherever it runs.
type tunnel struct {
	device wireGuard
	port   uint16
	key    string     // private
	peers  []meshPeer // that the device has
	done   chan struct{}

	inProcess bool
}

// wireGuard is a device in the kernel or in this process. Both take the same configuration.
type wireGuard interface {
	configure(c wgtypes.Config) error
	state() (deviceState, error)
	setMTU(mtu int)
	close()
}

func (t *tunnel) close() {
	close(t.done)
	t.device.close()
}

// deviceState is what a device has now.
type deviceState struct {
	key     wgtypes.Key
	port    uint16
	peers   map[wgtypes.Key]netip.AddrPort // their endpoints; zero for one that has none
	greeted map[wgtypes.Key]time.Time      // when the last handshake was completed, if one was
}

// followWireGuard makes the device follow want, and takes a new key of this node into use when the others know it.
func (n *Network) followWireGuard(want meshRecord, known string) ([]netlink.Route, error) {
	rotated, err := n.adoptKey(known)
	if err != nil {
		return nil, err
	}
	m := &n.mesh
	begin := time.Now()
	if m.wg != nil && m.wg.inProcess && m.wg.key != m.keys.Current {
		// The library may lock up when its key changes while it reads a handshake. A new device costs the same sessions.
		n.saveRoamed()
		keepRoaming(m.record.Peers, want.Peers)
		m.wg.close()
		m.wg = nil
	}
	if m.wg == nil {
		if err := n.openTunnel(want, n.mtu); err != nil {
			return nil, err
		}
	}
	link, err := n.meshLink()
	if err != nil {
		return nil, err
	}
	if link == nil { // somebody removed it
		m.wg.close()
		m.wg = nil
		return nil, fmt.Errorf("link %s of the mesh is gone; it is made again with the next change", n.names.mesh)
	}
	if err := m.wg.follow(m.keys.Current, want.Node.MeshPort, want.Peers); err != nil {
		return nil, err
	}
	if rotated {
		n.log.Info("the node has a new mesh key", "key", publicKey(m.keys.Current))
		if !m.wg.inProcess { // else it is a new device, for which that is done
			n.callAgain(m.wg, begin)
		}
	}
	m.wg.device.setMTU(n.mtu)
	if err := n.setUpMeshLink(link); err != nil {
		return nil, err
	}
	routes := make([]netlink.Route, len(want.Peers))
	for i, p := range want.Peers {
		routes[i] = netlink.Route{LinkIndex: link.Attrs().Index, Dst: ipNet(p.Subnet), Src: n.nodeAddress().AsSlice(), Scope: netlink.SCOPE_LINK}
	}
	return routes, nil
}

// openTunnel finds or makes the device: in the kernel where that has WireGuard, else in this process. One in the kernel is
// taken over as it is, with what the record says of it.
func (n *Network) openTunnel(want meshRecord, mtu int) error {
	link, err := n.meshLink()
	if err != nil {
		return err
	}
	if link != nil && link.Type() != linkTypeWireGuard && link.Type() != linkTypeTUN {
		if err := n.removeMeshLink(); err != nil {
			return err
		}
		link = nil
	}
	t, opened := &tunnel{done: make(chan struct{})}, time.Now()
	adopted := link != nil && link.Type() == linkTypeWireGuard
	inKernel := adopted
	if link == nil {
		err := n.links.LinkAdd(&netlink.Wireguard{LinkAttrs: netlink.LinkAttrs{Name: n.names.mesh, MTU: mtu}})
		if err != nil && !errors.Is(err, unix.EOPNOTSUPP) {
			return fmt.Errorf("make link %s: %w", n.names.mesh, err)
		}
		inKernel = err == nil
	}
	if inKernel {
		t.device = kernelWireGuard{n.host, n.names.mesh}
	} else if t.device, err = openProcessWireGuard(n.host, n.names.mesh, mtu, n.log); err != nil {
		return err
	}
	if adopted {
		if err := t.adopt(n.mesh.record); err != nil {
			return err
		}
	}
	t.inProcess = !inKernel
	if err := t.begin(n.mesh.keys.Current, want); err != nil {
		t.close()
		return err
	}
	n.mesh.wg = t
	if t.inProcess {
		n.background.Go(func() { n.rememberRoaming(t) })
		n.callAgain(t, opened)
	}
	return nil
}

// begin configures a device for the first time. One in this process is new, and does not know where peers roamed to.
func (t *tunnel) begin(key string, want meshRecord) error {
	if !t.inProcess {
		return t.follow(key, want.Node.MeshPort, want.Peers)
	}
	first := slices.Clone(want.Peers)
	for i, p := range first {
		if p.Roamed.IsValid() {
			first[i].Endpoint = p.Roamed
		}
	}
	err := t.follow(key, want.Node.MeshPort, first)
	t.peers = slices.Clone(want.Peers)
	return err
}

// adopt takes over a device that an earlier process made. Peers that the record does not know are removed: that process
// ended before it could write them down.
func (t *tunnel) adopt(r meshRecord) error {
	s, err := t.device.state()
	if err != nil {
		return err
	}
	t.key, t.port = s.key.String(), s.port
	have := s.peers
	if r.Node.Mesh == cluster.MeshWireGuard {
		for _, p := range r.Peers {
			k, err := parseKey(p.Key)
			if _, there := have[k]; err == nil && there {
				t.peers = append(t.peers, p)
				delete(have, k)
			}
		}
	}
	var c wgtypes.Config
	for k := range have {
		c.Peers = append(c.Peers, wgtypes.PeerConfig{PublicKey: k, Remove: true, UpdateOnly: true})
	}
	if len(c.Peers) == 0 {
		return nil
	}
	return t.device.configure(c)
}

// follow configures the difference.
func (t *tunnel) follow(key string, port uint16, peers []meshPeer) error {
	var roamed map[wgtypes.Key]netip.AddrPort
	if keysChanged(t.peers, peers) {
		s, err := t.device.state()
		if err != nil {
			return err
		}
		roamed = s.peers
	}
	c, err := wireGuardChange(t.peers, peers, roamed)
	if err != nil {
		return err
	}
	if port != t.port {
		p := int(port)
		c.ListenPort = &p
	}
	switched := key != t.key
	if switched {
		k, err := parseKey(key)
		if err != nil {
			return fmt.Errorf("mesh key: %w", err)
		}
		c.PrivateKey = &k
	}
	if c.PrivateKey == nil && c.ListenPort == nil && len(c.Peers) == 0 {
		return nil
	}
	if err := t.device.configure(c); err != nil {
		return fmt.Errorf("configure WireGuard: %w", err)
	}
	if switched && len(t.peers) > 0 {
		if err := t.callAll(peers); err != nil {
			return err
		}
	}
	t.key, t.port, t.peers = key, port, slices.Clone(peers)
	return nil
}

// callAll begins a handshake with every peer: a new key ends all sessions, and a device by itself waits for a packet to
// send. Turning keepalive on is what makes it send one.
func (t *tunnel) callAll(peers []meshPeer) error {
	for _, interval := range []time.Duration{0, keepalive} {
		var c wgtypes.Config
		for _, p := range peers {
			k, err := parseKey(p.Key)
			if err != nil {
				return fmt.Errorf("key of node %s: %w", p.Name, err)
			}
			c.Peers = append(c.Peers, wgtypes.PeerConfig{PublicKey: k, UpdateOnly: true, PersistentKeepaliveInterval: &interval})
		}
		if err := t.device.configure(c); err != nil {
			return fmt.Errorf("configure WireGuard: %w", err)
		}
	}
	return nil
}

func keysChanged(have, want []meshPeer) bool {
	return slices.ContainsFunc(want, func(w meshPeer) bool {
		return slices.ContainsFunc(have, func(h meshPeer) bool { return h.Node == w.Node && h.Key != w.Key })
	})
}

// wireGuardChange is the configuration that leads from have to want. An endpoint is set only when it is new: the device may
// know a better one by now, because it answers to where a peer's packets come from. For the same reason a peer that
// changed its key keeps the endpoint that the device had for the old key.
func wireGuardChange(have, want []meshPeer, roamed map[wgtypes.Key]netip.AddrPort) (c wgtypes.Config, err error) {
	before := make(map[cluster.ID]meshPeer, len(have))
	for _, p := range have {
		before[p.Node] = p
	}
	var added []wgtypes.PeerConfig
	for _, p := range want {
		old, known := before[p.Node]
		if known && old.Key == p.Key {
			delete(before, p.Node) // what remains is to be removed
		}
		if known && old.Peer == p.Peer {
			continue
		}
		key, err := parseKey(p.Key)
		if err != nil {
			return c, fmt.Errorf("key of node %s: %w", p.Name, err)
		}
		change := wgtypes.PeerConfig{PublicKey: key}
		if !known || old.Key != p.Key || old.Subnet != p.Subnet {
			change.ReplaceAllowedIPs, change.AllowedIPs = true, []net.IPNet{*ipNet(p.Subnet)}
		}
		endpoint := p.Endpoint
		if known && old.Endpoint == p.Endpoint {
			endpoint = netip.AddrPort{}
			if old.Key != p.Key {
				endpoint = p.Endpoint
				if oldKey, err := parseKey(old.Key); err == nil && roamed[oldKey].IsValid() {
					endpoint = roamed[oldKey]
				}
			}
		}
		if endpoint.IsValid() {
			change.Endpoint = net.UDPAddrFromAddrPort(endpoint)
		}
		if !known || old.Key != p.Key {
			interval := keepalive
			change.PersistentKeepaliveInterval = &interval
		}
		added = append(added, change)
	}
	for _, old := range have {
		if _, gone := before[old.Node]; !gone {
			continue
		}
		key, err := parseKey(old.Key)
		if err != nil {
			return c, fmt.Errorf("key of node %s: %w", old.Name, err)
		}
		c.Peers = append(c.Peers, wgtypes.PeerConfig{PublicKey: key, Remove: true, UpdateOnly: true})
	}
	c.Peers = append(c.Peers, added...)
	return c, nil
}

// kernelWireGuard is a link of the kernel's own type. It goes on without this process.
type kernelWireGuard struct {
	ns   netns.NsHandle
	name string
}

func (k kernelWireGuard) with(f func(c *wgctrl.Client) error) error {
	return within(k.ns, func() error {
		c, err := wgctrl.New()
		if err != nil {
			return fmt.Errorf("WireGuard of the kernel: %w", err)
		}
		return errors.Join(f(c), c.Close())
	})
}

func (k kernelWireGuard) configure(c wgtypes.Config) error {
	return k.with(func(client *wgctrl.Client) error { return client.ConfigureDevice(k.name, c) })
}

func (k kernelWireGuard) state() (s deviceState, err error) {
	err = k.with(func(client *wgctrl.Client) error {
		d, err := client.Device(k.name)
		if err != nil {
			return fmt.Errorf("WireGuard link %s: %w", k.name, err)
		}
		s = deviceState{key: d.PrivateKey, port: uint16(d.ListenPort), peers: make(map[wgtypes.Key]netip.AddrPort), greeted: make(map[wgtypes.Key]time.Time)}
		for _, p := range d.Peers {
			s.peers[p.PublicKey], s.greeted[p.PublicKey] = netip.AddrPort{}, p.LastHandshakeTime
			if p.Endpoint != nil {
				e := p.Endpoint.AddrPort()
				s.peers[p.PublicKey] = netip.AddrPortFrom(e.Addr().Unmap(), e.Port())
			}
		}
		return nil
	})
	return s, err
}

func (k kernelWireGuard) setMTU(int) {}
func (k kernelWireGuard) close()     {}
