package network

import (
	"context"
	"encoding/hex"
	"fmt"
	"log/slog"
	"net/netip"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// processWireGuard is WireGuard in this process, for kernels that lack it. Its link outlives the process, with its
// routes: while nobody serves it, packets are dropped there without a word, so that senders repeat them, instead of being
// refused for want of a route.
type processWireGuard struct {
	ns  netns.NsHandle
	dev *device.Device
	tun *quietTUN
}

// openProcessWireGuard makes the link, or takes over the one that an earlier process left.
func openProcessWireGuard(ns netns.NsHandle, name string, mtu int, log *slog.Logger) (*processWireGuard, error) {
	w := &processWireGuard{ns: ns}
	err := within(ns, func() error {
		native, err := tun.CreateTUN(name, mtu)
		if err != nil {
			return fmt.Errorf("tun device %s (needs root and /dev/net/tun; is another process of this node running?): %w", name, err)
		}
		w.tun = newQuietTUN(native, mtu)
		var persist error
		raw, err := native.File().SyscallConn()
		if err == nil {
			err = raw.Control(func(fd uintptr) { persist = unix.IoctlSetInt(int(fd), unix.TUNSETPERSIST, 1) })
		}
		if err == nil {
			err = persist
		}
		if err != nil {
			_ = w.tun.Close()
			return fmt.Errorf("tun device %s: %w", name, err)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	quiet := func(string, ...any) {}
	w.dev = device.NewDevice(w.tun, conn.NewDefaultBind(), &device.Logger{Verbosef: quiet, Errorf: func(format string, args ...any) {
		// A peer that is away makes one of these every few seconds.
		if log.Enabled(context.Background(), slog.LevelDebug) {
			log.Debug("WireGuard: " + fmt.Sprintf(format, args...))
		}
	}})
	return w, nil
}

// configure runs in the namespace: a change of the port opens sockets. The device comes up with its first configuration.
func (w *processWireGuard) configure(c wgtypes.Config) error {
	return within(w.ns, func() error {
		if err := w.dev.IpcSet(uapi(c)); err != nil {
			return err
		}
		return w.dev.Up()
	})
}

func (w *processWireGuard) state() (deviceState, error) {
	text, err := w.dev.IpcGet()
	if err != nil {
		return deviceState{}, err
	}
	return parseUAPI(text)
}

// parseUAPI reads what the device says of itself. Its text holds the private key, so errors must not quote it.
func parseUAPI(text string) (deviceState, error) {
	s := deviceState{peers: make(map[wgtypes.Key]netip.AddrPort), greeted: make(map[wgtypes.Key]time.Time)}
	var peer wgtypes.Key
	for line := range strings.Lines(text) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		var err error
		switch name {
		case "private_key":
			s.key, err = parseHexKey(value)
		case "listen_port":
			var port uint64
			port, err = strconv.ParseUint(value, 10, 16)
			s.port = uint16(port)
		case "public_key":
			peer, err = parseHexKey(value)
			s.peers[peer] = netip.AddrPort{}
		case "endpoint":
			s.peers[peer], err = netip.ParseAddrPort(value)
		case "last_handshake_time_sec":
			var seconds int64
			if seconds, err = strconv.ParseInt(value, 10, 64); seconds > 0 {
				s.greeted[peer] = time.Unix(seconds, 0)
			}
		case "last_handshake_time_nsec":
			var part int64
			if part, err = strconv.ParseInt(value, 10, 64); !s.greeted[peer].IsZero() {
				s.greeted[peer] = s.greeted[peer].Add(time.Duration(part))
			}
		}
		if err != nil {
			return deviceState{}, fmt.Errorf("state of WireGuard: unusable %s", name)
		}
	}
	return s, nil
}

func parseHexKey(s string) (wgtypes.Key, error) {
	b, err := hex.DecodeString(s)
	if err != nil {
		return wgtypes.Key{}, err
	}
	return wgtypes.NewKey(b)
}

func (w *processWireGuard) setMTU(mtu int) { w.tun.setMTU(mtu) }
func (w *processWireGuard) close()         { w.dev.Close() }

// uapi renders a configuration as the cross-platform text that the device takes.
func uapi(c wgtypes.Config) string {
	var b strings.Builder
	line := func(name string, value any) { fmt.Fprintf(&b, "%s=%v\n", name, value) }
	key := func(name string, k wgtypes.Key) { line(name, hex.EncodeToString(k[:])) }
	if c.PrivateKey != nil {
		key("private_key", *c.PrivateKey)
	}
	if c.ListenPort != nil {
		line("listen_port", *c.ListenPort)
	}
	for _, p := range c.Peers {
		key("public_key", p.PublicKey)
		if p.UpdateOnly {
			line("update_only", true)
		}
		if p.Remove {
			line("remove", true)
			continue
		}
		if p.Endpoint != nil {
			line("endpoint", p.Endpoint.AddrPort())
		}
		if p.PersistentKeepaliveInterval != nil {
			line("persistent_keepalive_interval", int(p.PersistentKeepaliveInterval.Seconds()))
		}
		if p.ReplaceAllowedIPs {
			line("replace_allowed_ips", true)
		}
		for _, a := range p.AllowedIPs {
			line("allowed_ip", a.String())
		}
	}
	return b.String()
}

// quietTUN is a tun device that tells of no events: those of the library look at links in whatever namespace their thread is
// in, and would close and open the device's sockets there. This package says itself when something changes.
type quietTUN struct {
	tun.Device
	mtu     atomic.Int64
	events  chan tun.Event
	drained chan struct{}
}

func newQuietTUN(d tun.Device, mtu int) *quietTUN {
	t := &quietTUN{Device: d, events: make(chan tun.Event, 1), drained: make(chan struct{})}
	t.mtu.Store(int64(mtu))
	go func() {
		for range d.Events() {
			continue // the device stops when nobody takes them
		}
		close(t.drained)
	}()
	return t
}

// MTU implements tun.Device.
func (t *quietTUN) MTU() (int, error) { return int(t.mtu.Load()), nil }

// Events implements tun.Device.
func (t *quietTUN) Events() <-chan tun.Event { return t.events }

func (t *quietTUN) setMTU(mtu int) {
	if t.mtu.Swap(int64(mtu)) == int64(mtu) {
		return
	}
	select {
	case t.events <- tun.EventMTUUpdate:
	default: // one is waiting: its reader will see the newest value
	}
}

// Close implements tun.Device. The device calls it once.
func (t *quietTUN) Close() error {
	err := t.Device.Close()
	<-t.drained
	close(t.events)
	return err
}
