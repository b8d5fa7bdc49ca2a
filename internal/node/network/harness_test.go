package network

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"baton/internal/model/cluster"
	"baton/internal/node/agent"
	"baton/internal/wire/agentapi"
)

const stateDirPrefix = "baton-network-test-"

func TestMain(m *testing.M) {
	removeLeftovers()
	goleak.VerifyTestMain(m)
}

// removeLeftovers unpins the namespaces of a killed run of these tests.
func removeLeftovers() {
	dirs, _ := filepath.Glob(filepath.Join(os.TempDir(), stateDirPrefix+"*"))
	for _, dir := range dirs {
		pid, _, _ := strings.Cut(strings.TrimPrefix(filepath.Base(dir), stateDirPrefix), "-")
		if n, err := strconv.Atoi(pid); err != nil || unix.Kill(n, 0) == nil {
			continue
		}
		pins, _ := filepath.Glob(filepath.Join(dir, "*", "netns", "*"))
		for _, pin := range pins {
			_ = removeNS(pin)
		}
		_ = os.RemoveAll(dir)
	}
}

// world is a machine ("host") and what is outside of it ("outside"), joined by a link, each a network namespace.
type world struct {
	t             testing.TB
	host, outside netns.NsHandle
	dir           string
}

var (
	hostAddress    = netip.MustParseAddr("192.0.2.1")
	outsideAddress = netip.MustParseAddr("192.0.2.2")
	farAddress     = netip.MustParseAddr("198.51.100.1") // behind the outside: "the internet"
)

func newDir(t testing.TB) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("this test makes network namespaces and needs root: run it as root (sudo go test …)")
	}
	dir, err := os.MkdirTemp("", fmt.Sprintf("%s%d-", stateDirPrefix, os.Getpid()))
	check(t, err)
	t.Cleanup(func() { check(t, os.RemoveAll(dir)) })
	return dir
}

func newWorld(t testing.TB) *world {
	t.Helper()
	w := &world{t: t, dir: newDir(t)}
	w.host, w.outside = w.newNS(), w.newNS()
	hostLinks, err := netlink.NewHandleAt(w.host)
	check(t, err)
	defer hostLinks.Close()
	outLinks, err := netlink.NewHandleAt(w.outside)
	check(t, err)
	defer outLinks.Close()
	pair := netlink.NewVeth(netlink.LinkAttrs{Name: "uplink"})
	pair.PeerName, pair.PeerNamespace = "uplink", netlink.NsFd(int(w.outside))
	check(t, hostLinks.LinkAdd(pair))
	setUp(t, hostLinks, "lo")
	setUp(t, hostLinks, "uplink", "192.0.2.1/24")
	setUp(t, outLinks, "lo", "198.51.100.1/32")
	setUp(t, outLinks, "uplink", "192.0.2.2/24")
	check(t, hostLinks.RouteAdd(&netlink.Route{Gw: outsideAddress.AsSlice()}))
	check(t, within(w.host, func() error {
		// Otherwise bridges would hide what works only with them.
		return setSysctlIfThere("net/bridge/bridge-nf-call-iptables", "0")
	}))
	return w
}

func setUp(t testing.TB, h *netlink.Handle, link string, addresses ...string) {
	t.Helper()
	l, err := h.LinkByName(link)
	check(t, err)
	for _, a := range addresses {
		parsed, err := netlink.ParseAddr(a)
		check(t, err)
		check(t, h.AddrAdd(l, parsed))
	}
	check(t, h.LinkSetUp(l))
}

func (w *world) newNS() netns.NsHandle {
	w.t.Helper()
	type result struct {
		ns  netns.NsHandle
		err error
	}
	made := make(chan result)
	go func() {
		runtime.LockOSThread() // the thread ends with this goroutine
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			made <- result{err: err}
			return
		}
		ns, err := netns.GetFromPath("/proc/thread-self/ns/net")
		made <- result{ns, err}
	}()
	r := <-made
	check(w.t, r.err)
	w.t.Cleanup(func() { _ = r.ns.Close() })
	return r.ns
}

// node is a Network in a world, with pools of its own.
type node struct {
	*Network
	w      *world
	cfg    Config
	config agentapi.NodeConfig
}

func (w *world) newNode(second byte) *node { return w.newNodeOf(second, 1, "", 0) }

// newNodeOf makes a node with the given subnet of its pools, and a mesh.
func (w *world) newNodeOf(second, third byte, mesh cluster.Mesh, port uint16) *node {
	w.t.Helper()
	cfg := Config{
		NodeID: cluster.NewID(nil), NetNS: fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), int(w.host)),
		Logger: slog.New(slog.NewTextHandler(testWriter{w.t}, nil)), ResolvConf: filepath.Join(w.dir, "resolv.conf"),
	}
	cfg.StateDir = filepath.Join(w.dir, cfg.NodeID.String())
	prefix := func(second byte) netip.Prefix { return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, second}), 16) }
	n := &node{w: w, cfg: cfg, config: agentapi.NodeConfig{
		Subnet:   netip.PrefixFrom(netip.AddrFrom4([4]byte{10, second, third, 0}), 24),
		TaskPool: prefix(second), ServicePool: prefix(second + 1), Mesh: mesh, MeshPort: port,
	}}
	n.open()
	w.t.Cleanup(func() {
		check(w.t, n.Close())
		check(w.t, RemoveAll(context.Background(), cfg))
	})
	return n
}

func (n *node) open() {
	n.w.t.Helper()
	network, err := New(n.cfg)
	check(n.w.t, err)
	n.Network = network
	check(n.w.t, n.Configure(context.Background(), n.config))
}

// restart is what a kill and a new start of the process come to for the network.
func (n *node) restart() {
	n.w.t.Helper()
	check(n.w.t, n.Close())
	n.open()
}

type testWriter struct{ t testing.TB }

func (w testWriter) Write(b []byte) (int, error) {
	w.t.Log(strings.TrimSpace(string(b)))
	return len(b), nil
}

// task is an attached task with servers in its namespace.
type task struct {
	agent.Attachment
	sandbox agent.Sandbox
	ns      netns.NsHandle
	node    *node
}

// attach makes a task with the last byte of its address, on networks.
func (n *node) attach(last byte, change func(*agent.Attachment), networks ...cluster.ID) *task {
	n.w.t.Helper()
	a := n.config.Subnet.Addr().As4()
	a[3] = last
	tk := &task{node: n, Attachment: agent.Attachment{
		Task: cluster.NewID(nil), Address: netip.AddrFrom4(a), Hostname: fmt.Sprintf("host%d", last), Stack: "shop", Networks: networks,
	}}
	if change != nil {
		change(&tk.Attachment)
	}
	var err error
	tk.sandbox, err = n.Attach(context.Background(), tk.Attachment)
	check(n.w.t, err)
	tk.ns, err = openNS(tk.sandbox.NetNS)
	check(n.w.t, err)
	n.w.t.Cleanup(func() { _ = tk.ns.Close() })
	return tk
}

// serve answers on TCP and UDP with the task's hostname, then echoes.
func (tk *task) serve(port int) { tk.node.w.serve(tk.ns, at(tk.Address, port), tk.Hostname) }

func (w *world) serve(ns netns.NsHandle, address, name string) {
	w.t.Helper()
	var l net.Listener
	var p net.PacketConn
	check(w.t, within(ns, func() (err error) {
		if l, err = net.Listen("tcp4", address); err != nil {
			return err
		}
		p, err = net.ListenPacket("udp4", address)
		return err
	}))
	var all sync.WaitGroup
	var mu sync.Mutex
	conns := make(map[net.Conn]bool)
	all.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			conns[c] = true
			mu.Unlock()
			all.Go(func() {
				from, _, _ := net.SplitHostPort(c.RemoteAddr().String())
				_, _ = fmt.Fprintf(c, "%s %s\n", name, from)
				_, _ = io.Copy(c, c)
				mu.Lock()
				delete(conns, c)
				mu.Unlock()
				_ = c.Close()
			})
		}
	})
	all.Go(func() {
		b := make([]byte, 2048)
		for {
			_, from, err := p.ReadFrom(b)
			if err != nil {
				return
			}
			host, _, _ := net.SplitHostPort(from.String())
			_, _ = p.WriteTo([]byte(name+" "+host+"\n"), from)
		}
	})
	w.t.Cleanup(func() {
		_ = l.Close()
		_ = p.Close()
		mu.Lock()
		for c := range conns {
			_ = c.Close()
		}
		mu.Unlock()
		all.Wait()
	})
}

const dialTimeout = 2 * time.Second

// dial connects from ns.
func (w *world) dial(ns netns.NsHandle, network, address string) (net.Conn, error) {
	return w.dialWithin(dialTimeout, ns, network, address)
}

func (w *world) dialWithin(patience time.Duration, ns netns.NsHandle, network, address string) (net.Conn, error) {
	var c net.Conn
	err := within(ns, func() (err error) {
		c, err = net.DialTimeout(network, address, patience)
		return err
	})
	return c, err
}

// ask connects from ns and returns who answered, and the client's address that it saw.
func (w *world) ask(ns netns.NsHandle, network, address string) (name, from string, err error) {
	return w.askWithin(dialTimeout, ns, network, address)
}

func (w *world) askWithin(patience time.Duration, ns netns.NsHandle, network, address string) (name, from string, err error) {
	c, err := w.dialWithin(max(patience, dialTimeout), ns, network, address)
	if err != nil {
		return "", "", err
	}
	defer func() { _ = c.Close() }()
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		return "", "", err
	}
	if network == "udp" {
		if _, err := c.Write([]byte("hello")); err != nil {
			return "", "", err
		}
	}
	line, err := bufio.NewReader(c).ReadString('\n')
	if err != nil {
		return "", "", err
	}
	name, from, _ = strings.Cut(strings.TrimSpace(line), " ")
	return name, from, nil
}

func (tk *task) ask(network, address string) (name, from string, err error) {
	return tk.node.w.ask(tk.ns, network, address)
}

func (tk *task) endpoint() agentapi.Endpoint {
	return agentapi.Endpoint{Task: tk.Task, Node: tk.node.cfg.NodeID, Address: tk.Address}
}

// state lists every task as a member.
func state(services []agentapi.Service, tasks ...*task) agentapi.NetworkState {
	s := agentapi.NetworkState{Services: services}
	for _, tk := range tasks {
		s.Members = append(s.Members, agentapi.Member{Task: tk.Task, Node: tk.node.cfg.NodeID, Address: tk.Address, Networks: tk.Networks})
	}
	return s
}

func (n *node) vip(last byte) netip.Addr {
	a := n.config.ServicePool.Addr().As4()
	a[3] = last
	return netip.AddrFrom4(a)
}

func service(name string, vip netip.Addr, network cluster.ID, tasks ...*task) agentapi.Service {
	s := agentapi.Service{ID: cluster.NewID(nil), Name: name, Stack: "shop", Address: vip, Networks: map[cluster.ID][]string{network: nil}}
	for _, tk := range tasks {
		s.Endpoints = append(s.Endpoints, tk.endpoint())
	}
	return s
}

func (n *node) apply(s agentapi.NetworkState) {
	n.w.t.Helper()
	check(n.w.t, n.Apply(context.Background(), s))
}

func at(a netip.Addr, port int) string { return net.JoinHostPort(a.String(), strconv.Itoa(port)) }

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func isTimeout(err error) bool {
	var e net.Error
	return errors.As(err, &e) && e.Timeout()
}

func (w *world) fromHost(network, address string) (name, from string, err error) {
	return w.ask(w.host, network, address)
}

func (w *world) fromOutside(network, address string) (name, from string, err error) {
	return w.ask(w.outside, network, address)
}
