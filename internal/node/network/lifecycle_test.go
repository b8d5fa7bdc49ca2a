package network

import (
	"bufio"
	"context"
	"fmt"
	"math"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"baton/internal/model/cluster"
	"baton/internal/model/spec"
	"baton/internal/node/agent"
	"baton/internal/wire/agentapi"
)

func (tk *task) addAddress(a netip.Addr) {
	h, err := netlink.NewHandleAt(tk.ns)
	check(tk.node.w.t, err)
	defer h.Close()
	l, err := h.LinkByName(taskLink)
	check(tk.node.w.t, err)
	check(tk.node.w.t, h.AddrAdd(l, &netlink.Addr{IPNet: hostNet(a)}))
}

// askFrom is ask with a source address of choice.
func (tk *task) askFrom(source netip.Addr, address string) (name, from string, err error) {
	var c net.Conn
	err = within(tk.ns, func() (err error) {
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: source.AsSlice()}, Timeout: dialTimeout / 2}
		c, err = d.Dial("tcp", address)
		return err
	})
	if err != nil {
		return "", "", err
	}
	defer func() { _ = c.Close() }()
	line, err := bufio.NewReader(c).ReadString('\n')
	name, from, _ = strings.Cut(strings.TrimSpace(line), " ")
	return name, from, err
}

// 10,000 connections over 10 tasks spread within 3 sigma, through the service address and through a published port.
func TestBalance(t *testing.T) {
	const connections, replicas = 10000, 10
	w := newWorld(t)
	n := w.newNode(210)
	front := cluster.NewID(nil)
	client := n.attach(100, nil, front)
	tasks := []*task{client}
	svc := service("web", n.vip(5), front)
	svc.Ports = []spec.Port{{Target: 80, Published: 8080, Protocol: "tcp"}}
	for i := range replicas {
		tk := n.attach(byte(10+i), nil, front)
		tk.serve(80)
		tasks = append(tasks, tk)
		svc.Endpoints = append(svc.Endpoints, tk.endpoint())
	}
	n.apply(state([]agentapi.Service{svc}, tasks...))
	for _, c := range []struct {
		what    string
		ask     func(network, address string) (string, string, error)
		address string
	}{
		{"service", client.ask, at(n.vip(5), 80)},
		{"published port", w.fromOutside, at(hostAddress, 8080)},
	} {
		wantEvenSpread(t, c.what, replicas, connections, func() (string, error) {
			name, _, err := c.ask("tcp", c.address)
			return name, err
		})
	}
}

// Chains for numbers of endpoints that no service has any more do not gather.
func TestIdleChainsAreRemoved(t *testing.T) {
	w := newWorld(t)
	n := w.newNode(214)
	front := cluster.NewID(nil)
	client, server := n.attach(100, nil, front), n.attach(10, nil, front)
	server.serve(80)
	svc := service("web", n.vip(5), front)
	svc.Ports = []spec.Port{{Target: 80, Published: 8080, Protocol: "tcp"}}
	chains := func() int {
		c, err := n.nftConn()
		check(t, err)
		list, err := c.ListChains()
		check(t, err)
		return len(list)
	}
	n.apply(state([]agentapi.Service{svc}, client, server))
	before, most := chains(), 0
	for range 3 * chainsFew {
		svc.Endpoints = append(svc.Endpoints, server.endpoint())
		svc.Endpoints[len(svc.Endpoints)-1].Address = netip.AddrFrom4([4]byte{10, 214, 1, byte(len(svc.Endpoints))})
		n.apply(state([]agentapi.Service{svc}, client, server))
		most = max(most, chains()-before)
	}
	if most > chainsFew+2 {
		t.Errorf("there were %d chains at once, want at most %d", most, chainsFew+2)
	}
	// What was removed is made again when it is needed.
	svc.Endpoints = []agentapi.Endpoint{server.endpoint()}
	n.apply(state([]agentapi.Service{svc}, client, server))
	for what, ask := range map[string]func() error{
		"service":        func() error { _, _, err := client.ask("tcp", at(n.vip(5), 80)); return err },
		"published port": func() error { _, _, err := w.fromOutside("tcp", at(hostAddress, 8080)); return err },
	} {
		if err := ask(); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// wantEvenSpread asks many times, and wants every replica to have answered its share.
func wantEvenSpread(t *testing.T, what string, replicas, connections int, ask func() (string, error)) {
	t.Helper()
	const workers = 8
	counts := make(map[string]int)
	var mu sync.Mutex
	var all sync.WaitGroup
	for range workers {
		all.Go(func() {
			for range connections / workers {
				name, err := ask()
				if err != nil {
					t.Errorf("%s: %v", what, err)
					return
				}
				mu.Lock()
				counts[name]++
				mu.Unlock()
			}
		})
	}
	all.Wait()
	p := 1 / float64(replicas)
	mean, sigma := float64(connections)*p, math.Sqrt(float64(connections)*p*(1-p))
	if len(counts) != replicas {
		t.Errorf("%s: %d tasks answered, want %d", what, len(counts), replicas)
	}
	// The chance that one of 10 honest counts is beyond 3 sigma is 2.7%; a skewed balancer is far beyond 4.5.
	far := 0
	for name, count := range counts {
		distance := math.Abs(float64(count)-mean) / sigma
		if distance > 3 {
			far++
		}
		if distance > 4.5 || far > 1 {
			t.Errorf("%s: %s got %d of %d connections, %.1f sigma from the mean", what, name, count, connections, distance)
		}
	}
	t.Logf("%s: %v (mean %.0f, sigma %.0f)", what, counts, mean, sigma)
}

// A task that leaves gets no new connection once Apply returns; what is open goes on and is counted.
func TestDrain(t *testing.T) {
	w := newWorld(t)
	n := w.newNode(210)
	front := cluster.NewID(nil)
	old, fresh, client := n.attach(10, nil, front), n.attach(11, nil, front), n.attach(12, nil, front)
	old.serve(80)
	fresh.serve(80)
	svc := service("web", n.vip(5), front, old)
	svc.Ports = []spec.Port{{Target: 80, Published: 8080, Protocol: "tcp"}, {Target: 80, Published: 8080, Protocol: "udp"}}
	members := []*task{old, fresh, client}
	n.apply(state([]agentapi.Service{svc}, members...))

	held, err := w.dial(client.ns, "tcp", at(n.vip(5), 80))
	check(t, err)
	defer func() { _ = held.Close() }()
	lines := bufio.NewReader(held)
	if line, err := lines.ReadString('\n'); err != nil || !strings.HasPrefix(line, "host10") {
		t.Fatalf("before: got %q, %v", line, err)
	}
	datagrams := make(map[string]net.Conn) // senders that keep their port, so that tracking keeps their target
	for what, c := range map[string]struct {
		from    func() (net.Conn, error)
		address string
	}{
		"service":   {func() (net.Conn, error) { return w.dial(client.ns, "udp", at(n.vip(5), 80)) }, ""},
		"published": {func() (net.Conn, error) { return w.dial(w.outside, "udp", at(hostAddress, 8080)) }, ""},
	} {
		conn, err := c.from()
		check(t, err)
		defer func() { _ = conn.Close() }()
		datagrams[what] = conn
		if got := exchange(conn); got != "host10" {
			t.Fatalf("UDP %s before: got %q", what, got)
		}
	}
	wantConnections(t, n, old.Address, 1)
	svc.Endpoints = []agentapi.Endpoint{fresh.endpoint()}
	n.apply(state([]agentapi.Service{svc}, members...))
	for range 50 {
		if name, _, err := client.ask("tcp", at(n.vip(5), 80)); err != nil || name != "host11" {
			t.Fatalf("new connection: got %q, %v; want host11", name, err)
		}
	}
	for what, conn := range datagrams {
		if got := exchange(conn); got != "host11" {
			t.Errorf("UDP %s after: got %q, want host11 at once", what, got)
		}
	}
	_, err = fmt.Fprintln(held, "still here")
	check(t, err)
	check(t, held.SetReadDeadline(time.Now().Add(dialTimeout)))
	if line, err := lines.ReadString('\n'); err != nil || line != "still here\n" {
		t.Errorf("open connection after the change: got %q, %v", line, err)
	}
	wantConnections(t, n, old.Address, 1)
	check(t, held.Close())
	wantConnections(t, n, old.Address, 0)
}

func exchange(c net.Conn) string {
	b := make([]byte, 100)
	if _, err := c.Write([]byte("hello")); err != nil {
		return err.Error()
	}
	_ = c.SetReadDeadline(time.Now().Add(dialTimeout))
	size, err := c.Read(b)
	if err != nil {
		return err.Error()
	}
	name, _, _ := strings.Cut(string(b[:size]), " ")
	return name
}

// wantConnections polls: the last packets of a connection take a moment.
func wantConnections(t *testing.T, n *node, a netip.Addr, want int) {
	t.Helper()
	got := -1
	for deadline := time.Now().Add(3 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		var err error
		got, err = n.Connections(t.Context(), a)
		check(t, err)
		if got == want {
			return
		}
	}
	t.Errorf("connections to %v: got %d, want %d", a, got, want)
}

// A client that never stops must not notice that the process was killed and came back.
func TestRestart(t *testing.T) {
	w := newWorld(t)
	n := w.newNode(210)
	front := cluster.NewID(nil)
	a, b, client := n.attach(10, nil, front), n.attach(11, nil, front), n.attach(12, nil, front)
	a.serve(80)
	b.serve(80)
	svc := service("web", n.vip(5), front, a, b)
	svc.Ports = []spec.Port{{Target: 80, Published: 8080, Protocol: "tcp"}}
	s := state([]agentapi.Service{svc}, a, b, client)
	n.apply(s)
	held, err := w.dial(client.ns, "tcp", at(n.vip(5), 80))
	check(t, err)
	defer func() { _ = held.Close() }()
	lines := bufio.NewReader(held)
	_, err = lines.ReadString('\n')
	check(t, err)

	var stop atomic.Bool
	var asked, failed atomic.Int64
	var all sync.WaitGroup
	hammer := func(ask func(network, address string) (string, string, error), address string) {
		all.Go(func() {
			for !stop.Load() {
				asked.Add(1)
				if _, _, err := ask("tcp", address); err != nil {
					failed.Add(1)
					t.Errorf("%s: %v", address, err)
				}
			}
		})
	}
	hammer(client.ask, at(n.vip(5), 80))
	hammer(w.fromOutside, at(hostAddress, 8080))
	const restarts = 20
	for range restarts {
		n.restart()
		for _, tk := range []*task{a, b, client} { // as the agent does for what still runs
			sandbox, err := n.Attach(t.Context(), tk.Attachment)
			check(t, err)
			if sandbox.NetNS != tk.sandbox.NetNS {
				t.Errorf("namespace after restart: got %s, want %s", sandbox.NetNS, tk.sandbox.NetNS)
			}
		}
		n.apply(s)
		_, err := fmt.Fprintln(held, "ping")
		check(t, err)
		if line, err := lines.ReadString('\n'); err != nil || line != "ping\n" {
			t.Fatalf("open connection after restart: got %q, %v", line, err)
		}
	}
	stop.Store(true)
	all.Wait()
	if asked.Load() < restarts {
		t.Errorf("only %d connections were tried during %d restarts", asked.Load(), restarts)
	}
	t.Logf("%d connections, %d failed", asked.Load(), failed.Load())
	if got, _, err := client.resolve("udp", "web", 1); err != nil || !slices.Equal(got, []string{n.vip(5).String()}) {
		t.Errorf("name after restart: got %v, %v", got, err)
	}
}

// Changes of the targets under load lose no connection either.
func TestRollingChanges(t *testing.T) {
	w := newWorld(t)
	n := w.newNode(210)
	front := cluster.NewID(nil)
	client := n.attach(100, nil, front)
	var web []*task
	for i := range 6 {
		tk := n.attach(byte(10+i), nil, front)
		tk.serve(80)
		web = append(web, tk)
	}
	s := state(nil, append([]*task{client}, web...)...)
	svc := service("web", n.vip(5), front)
	svc.Ports = []spec.Port{{Target: 80, Published: 8080, Protocol: "tcp"}}
	choose := func(from, count int) map[string]bool {
		svc.Endpoints = nil
		names := make(map[string]bool)
		for i := range count {
			tk := web[(from+i)%len(web)]
			svc.Endpoints = append(svc.Endpoints, tk.endpoint())
			names[tk.Hostname] = true
		}
		s.Services = []agentapi.Service{svc}
		n.apply(s)
		return names // from now on nobody else may answer
	}
	choose(0, 3)
	var stop atomic.Bool
	var slow atomic.Int64
	var all sync.WaitGroup
	for _, c := range []struct {
		ask     func(network, address string) (string, string, error)
		address string
	}{{client.ask, at(n.vip(5), 80)}, {w.fromOutside, at(hostAddress, 8080)}} {
		all.Go(func() {
			for !stop.Load() {
				start := time.Now()
				if _, _, err := c.ask("tcp", c.address); err != nil {
					t.Errorf("%s: %v", c.address, err)
				}
				if time.Since(start) > 900*time.Millisecond { // a lost first packet costs a second
					slow.Add(1)
				}
			}
		})
	}
	for i := range 200 {
		allowed := choose(i, 1+(i*7)%5)
		for range 2 {
			name, _, err := client.ask("tcp", at(n.vip(5), 80))
			if err != nil || !allowed[name] {
				t.Fatalf("after Apply %d: got %q, %v; want one of %v", i, name, err, allowed)
			}
		}
	}
	stop.Store(true)
	all.Wait()
	if slow.Load() > 2 {
		t.Errorf("%d connections lost their first packet, want hardly any", slow.Load())
	}
}

func TestDetachAndSweep(t *testing.T) {
	w := newWorld(t)
	n := w.newNode(210)
	front := cluster.NewID(nil)
	var tasks []*task
	for i := range 5 {
		tk := n.attach(byte(10+i), nil, front)
		tk.serve(80)
		tasks = append(tasks, tk)
	}
	n.apply(state(nil, tasks...))
	if _, _, err := tasks[0].ask("tcp", at(tasks[1].Address, 80)); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second time changes nothing
		check(t, n.Detach(t.Context(), tasks[1].Task))
	}
	again, err := n.Attach(t.Context(), tasks[2].Attachment)
	check(t, err)
	if again.NetNS != tasks[2].sandbox.NetNS {
		t.Errorf("Attach again: got %s, want %s", again.NetNS, tasks[2].sandbox.NetNS)
	}
	n.restart() // Sweep must find what it never attached itself
	keep := tasks[2].Task
	for range 2 {
		check(t, n.Sweep(t.Context(), []cluster.ID{keep}))
	}
	links, err := n.links.LinkList()
	check(t, err)
	for _, l := range links {
		if name := l.Attrs().Name; n.names.isTaskLink(name) && name != n.names.link(keep) {
			t.Errorf("link %s is left", name)
		}
	}
	for _, dir := range []string{"netns", "tasks"} {
		entries, err := os.ReadDir(n.cfg.StateDir + "/" + dir)
		check(t, err)
		if len(entries) != 1 || entries[0].Name() != keep.String() {
			t.Errorf("%s: got %v, want only %s", dir, entries, keep)
		}
	}
	for _, tk := range tasks {
		if tk.Task != keep {
			wantNoFlows(t, n, tk.Address)
		}
	}
	n.apply(state(nil, tasks[2]))
	if name, _, err := w.fromHost("tcp", at(tasks[2].Address, 80)); err != nil || name != "host12" {
		t.Errorf("the kept task: got %q, %v", name, err)
	}
}

func wantNoFlows(t *testing.T, n *node, a netip.Addr) {
	t.Helper()
	ct, err := openConntrack(n.host)
	check(t, err)
	defer ct.close()
	for _, filter := range []flowFilter{{originalSource: a}, {replySource: a}} {
		check(t, ct.each(filter, func(f flow) error {
			t.Errorf("flow of %v is left: %+v", a, f)
			return nil
		}))
	}
}

// Two nodes in one namespace do not disturb each other, and RemoveAll of one leaves the other whole.
func TestTwoNodesAndRemoveAll(t *testing.T) {
	w := newWorld(t)
	one, two := w.newNode(210), w.newNode(212)
	front := cluster.NewID(nil)
	build := func(n *node, port uint16) (web, client *task) {
		web, client = n.attach(10, func(a *agent.Attachment) { a.Hostname = fmt.Sprint("web", port) }, front), n.attach(11, nil, front)
		web.serve(80)
		svc := service("web", n.vip(5), front, web)
		svc.Ports = []spec.Port{{Target: 80, Published: port, Protocol: "tcp"}}
		n.apply(state([]agentapi.Service{svc}, web, client))
		return web, client
	}
	web1, client1 := build(one, 8001)
	_, client2 := build(two, 8002)
	works := func(n *node, client *task, port int) {
		t.Helper()
		want := fmt.Sprint("web", port)
		for address, ask := range map[string]func(network, address string) (string, string, error){
			at(n.vip(5), 80): client.ask, at(hostAddress, port): w.fromOutside, at(netip.MustParseAddr("127.0.0.1"), port): w.fromHost,
		} {
			if name, _, err := ask("tcp", address); err != nil || name != want {
				t.Errorf("%s: got %q, %v; want %s", address, name, err, want)
			}
		}
	}
	works(one, client1, 8001)
	works(two, client2, 8002)
	if _, _, err := client2.ask("tcp", at(web1.Address, 80)); err == nil {
		t.Error("a task of one node reached a task of the other by its address")
	}
	if name, _, err := client2.ask("tcp", at(hostAddress, 8001)); err != nil || name != "web8001" {
		t.Errorf("published port of the other node: got %q, %v", name, err)
	}
	check(t, one.Close())
	check(t, RemoveAll(context.Background(), one.cfg))
	wantNothingOf(t, one)
	works(two, client2, 8002)
	one.open()
	check(t, two.Sweep(t.Context(), nil))
	wantNoLinks(t, two)
}

func wantNoLinks(t *testing.T, n *node) {
	t.Helper()
	links, err := n.links.LinkList()
	check(t, err)
	for _, l := range links {
		if n.names.isTaskLink(l.Attrs().Name) {
			t.Errorf("link %s is left", l.Attrs().Name)
		}
	}
}

// wantNothingOf checks the kernel for traces of a removed node.
func wantNothingOf(t *testing.T, n *node) {
	t.Helper()
	if _, err := os.Stat(n.cfg.StateDir); !os.IsNotExist(err) {
		t.Errorf("state directory: got %v, want it gone", err)
	}
	again, err := New(n.cfg)
	check(t, err)
	defer func() { check(t, again.Close()) }()
	wantNoLinks(t, &node{Network: again})
	if exists, err := again.tableExists(); err != nil || exists {
		t.Errorf("nft table: got %v, %v; want none", exists, err)
	}
	lo, err := again.links.LinkByName("lo")
	check(t, err)
	addresses, err := again.links.AddrList(lo, netlink.FAMILY_V4)
	check(t, err)
	for _, a := range addresses {
		if a.Label == again.names.label {
			t.Errorf("address %v is left", a)
		}
	}
	routes, err := again.links.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Protocol: routeProtocol}, netlink.RT_FILTER_PROTOCOL)
	check(t, err)
	for _, r := range routes {
		if ip, ok := netip.AddrFromSlice(r.Dst.IP.To4()); ok && (n.config.TaskPool.Contains(ip) || n.config.ServicePool.Contains(ip)) {
			t.Errorf("route %v is left", r)
		}
	}
}
