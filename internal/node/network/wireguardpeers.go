package network

import (
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// Handshakes that fail are repeated by WireGuard after 5 s. Two that cross each other fail both, and after a restart or with a
// new key every peer may begin one at the same time: they are repeated sooner until then.
const (
	callInterval = 250 * time.Millisecond
	callsMax     = 20
)

// callAgain sees to it that every peer has completed a handshake since the given time.
func (n *Network) callAgain(t *tunnel, since time.Time) {
	n.background.Go(func() {
		for range callsMax {
			select {
			case <-t.done:
				return
			case <-time.After(callInterval + rand.N(callInterval)): // out of step with the other side
			}
			n.mu.Lock()
			missing, err := 0, error(nil)
			if n.mesh.wg == t {
				missing, err = t.repeatCalls(since)
			}
			n.mu.Unlock()
			if err != nil {
				n.log.Warn("other nodes are called again in a few seconds", "err", err)
			}
			if missing == 0 {
				return
			}
		}
	})
}

// repeatCalls makes the peers anew that have completed no handshake since then, and returns how many there are: a device
// does not begin another one within 5 s with a peer that it knows.
func (t *tunnel) repeatCalls(since time.Time) (missing int, err error) {
	s, err := t.device.state()
	if err != nil {
		return 0, err
	}
	var remove, add wgtypes.Config
	for _, p := range t.peers {
		key, err := parseKey(p.Key)
		if err != nil {
			return 0, fmt.Errorf("key of node %s: %w", p.Name, err)
		}
		if s.greeted[key].After(since) || !s.peers[key].IsValid() { // or it is one that calls first
			continue
		}
		missing++
		interval := keepalive
		remove.Peers = append(remove.Peers, wgtypes.PeerConfig{PublicKey: key, Remove: true, UpdateOnly: true})
		add.Peers = append(add.Peers, wgtypes.PeerConfig{
			PublicKey: key, Endpoint: net.UDPAddrFromAddrPort(s.peers[key]), PersistentKeepaliveInterval: &interval,
			ReplaceAllowedIPs: true, AllowedIPs: []net.IPNet{*ipNet(p.Subnet)},
		})
	}
	if missing == 0 {
		return 0, nil
	}
	remove.Peers = append(remove.Peers, add.Peers...)
	return missing, t.device.configure(remove)
}

// keepRoaming copies where peers roamed to, unless they have a new key or endpoint.
func keepRoaming(before, peers []meshPeer) {
	for i, p := range peers {
		for _, b := range before {
			if b.Node == p.Node && b.Key == p.Key && b.Endpoint == p.Endpoint {
				peers[i].Roamed = b.Roamed
			}
		}
	}
}

// rememberRoaming writes down where peers are, until the tunnel is closed: a killed process leaves it to the next one.
func (n *Network) rememberRoaming(t *tunnel) {
	tick := time.NewTicker(keepalive)
	defer tick.Stop()
	for {
		select {
		case <-t.done:
			return
		case <-tick.C:
		}
		n.mu.Lock()
		if n.mesh.wg == t {
			n.saveRoamed()
		}
		n.mu.Unlock()
	}
}

func (n *Network) saveRoamed() {
	s, err := n.mesh.wg.device.state()
	if err != nil {
		n.log.Warn("where other nodes are is not known", "err", err)
		return
	}
	r := n.mesh.record
	r.Peers = slices.Clone(r.Peers)
	for i, p := range r.Peers {
		r.Peers[i].Roamed = netip.AddrPort{}
		if k, err := parseKey(p.Key); err == nil && s.peers[k] != p.Endpoint {
			r.Peers[i].Roamed = s.peers[k]
		}
	}
	if r.equal(n.mesh.record) {
		return
	}
	if err := writeJSON(n.meshPath("peers"), r); err != nil {
		n.log.Warn("where other nodes are is not written down", "err", err)
		return
	}
	n.mesh.record = r
}
