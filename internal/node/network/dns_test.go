package network

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"baton/internal/model/cluster"
	"baton/internal/node/agent"
	"baton/internal/wire/agentapi"
)

// resolve asks the task's own name service and returns the answers, sorted.
func (tk *task) resolve(network, name string, kind uint16) (answers []string, rcode int, err error) {
	c, err := tk.node.w.dial(tk.ns, network, dnsAddress+":53")
	if err != nil {
		return nil, 0, err
	}
	defer func() { _ = c.Close() }()
	client := &dns.Client{Net: network, Timeout: 3 * dialTimeout}
	reply, _, err := client.ExchangeWithConn(new(dns.Msg).SetQuestion(dns.Fqdn(name), kind), &dns.Conn{Conn: c})
	if err != nil {
		return nil, 0, err
	}
	for _, rr := range reply.Answer {
		switch rr := rr.(type) {
		case *dns.A:
			answers = append(answers, rr.A.String())
		case *dns.PTR:
			answers = append(answers, rr.Ptr)
		}
	}
	slices.Sort(answers)
	return answers, reply.Rcode, nil
}

// serveInternet runs a name server outside that knows one name.
func (w *world) serveInternet() {
	w.t.Helper()
	var p net.PacketConn
	check(w.t, within(w.outside, func() (err error) {
		p, err = net.ListenPacket("udp4", farAddress.String()+":53")
		return err
	}))
	done := make(chan struct{})
	server := &dns.Server{PacketConn: p, Handler: dns.HandlerFunc(func(rw dns.ResponseWriter, q *dns.Msg) {
		m := new(dns.Msg).SetReply(q)
		if q.Question[0].Name == "example.org." {
			m.Answer = []dns.RR{&dns.A{Hdr: dns.RR_Header{Name: "example.org.", Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 60}, A: net.IPv4(198, 51, 100, 7)}}
		} else {
			m.Rcode = dns.RcodeNameError
		}
		_ = rw.WriteMsg(m)
	})}
	started := make(chan struct{})
	server.NotifyStartedFunc = func() { close(started) }
	go func() {
		_ = server.ActivateAndServe()
		close(done)
	}()
	<-started
	w.t.Cleanup(func() {
		_ = server.Shutdown()
		<-done
	})
	check(w.t, os.WriteFile(w.dir+"/resolv.conf", []byte("nameserver 198.51.100.1\nsearch corp.example\n"), 0o600))
}

func TestNames(t *testing.T) {
	w := newWorld(t)
	w.serveInternet()
	n := w.newNode(210)
	front, back, other := cluster.NewID(nil), cluster.NewID(nil), cluster.NewID(nil)
	a := n.attach(10, nil, front)
	b := n.attach(11, nil, front, back)
	inner := n.attach(12, func(a *agent.Attachment) { a.Internal = true }, back)
	stranger := n.attach(13, func(a *agent.Attachment) { a.Stack = "blog" }, other)
	web := service("web", n.vip(5), front, a, b)
	web.Networks[front] = []string{"www", "Alias"}
	db := service("db", netip.Addr{}, back, b, inner) // no service address
	idle := service("idle", n.vip(7), front)
	blog := service("web", n.vip(8), other, stranger)
	blog.Stack = "blog"
	shared := service("web", n.vip(9), front) // another stack's, on a network that is shared
	shared.Stack = "zoo"
	n.apply(state([]agentapi.Service{web, db, idle, blog, shared}, a, b, inner, stranger))

	v := func(last byte) string { return n.vip(last).String() }
	arpa := func(a netip.Addr) string { s, _ := dns.ReverseAddr(a.String()); return s }
	pair := []string{a.Address.String(), b.Address.String()}
	for _, c := range []struct {
		who   *task
		name  string
		kind  uint16
		want  []string
		rcode int
	}{
		{a, "web", dns.TypeA, []string{v(5)}, 0},
		{a, "WeB", dns.TypeA, []string{v(5)}, 0},
		{a, "web.shop", dns.TypeA, []string{v(5)}, 0},
		{a, "web.zoo", dns.TypeA, []string{v(9)}, 0},
		{a, "www", dns.TypeA, []string{v(5)}, 0},
		{a, "alias.shop", dns.TypeA, []string{v(5)}, 0},
		{a, "tasks.web", dns.TypeA, pair, 0},
		{a, "tasks.web.shop", dns.TypeA, pair, 0},
		{a, "web", dns.TypeAAAA, nil, 0},
		{a, "idle", dns.TypeA, []string{v(7)}, 0},
		{a, "tasks.idle", dns.TypeA, nil, 0},
		{a, "host10", dns.TypeA, []string{a.Address.String()}, 0},
		{a, "db", dns.TypeA, nil, dns.RcodeNameError}, // not on its network
		{b, "db", dns.TypeA, []string{b.Address.String(), inner.Address.String()}, 0},
		{inner, "db.shop", dns.TypeA, []string{b.Address.String(), inner.Address.String()}, 0},
		{inner, "web", dns.TypeA, nil, dns.RcodeRefused},
		{stranger, "web", dns.TypeA, []string{v(8)}, 0},
		{stranger, "web.shop", dns.TypeA, nil, dns.RcodeNameError},
		{a, arpa(n.vip(5)), dns.TypePTR, []string{"web.shop."}, 0},
		{a, arpa(b.Address), dns.TypePTR, []string{"tasks.web.shop."}, 0},
		{a, arpa(a.Address), dns.TypePTR, []string{"host10."}, 0},
		{a, arpa(n.vip(8)), dns.TypePTR, nil, dns.RcodeNameError},
		{a, "example.org", dns.TypeA, []string{"198.51.100.7"}, 0},
		{a, "nosuch.example.org", dns.TypeA, nil, dns.RcodeNameError},
		{inner, "example.org", dns.TypeA, nil, dns.RcodeRefused},
	} {
		got, rcode, err := c.who.resolve("udp", c.name, c.kind)
		if err != nil || rcode != c.rcode || !slices.Equal(got, c.want) {
			t.Errorf("%s asks %s %s: got %v, %s, %v; want %v, %s", c.who.Hostname, dns.TypeToString[c.kind], c.name,
				got, dns.RcodeToString[rcode], err, c.want, dns.RcodeToString[c.rcode])
		}
	}
	if got, _, err := a.resolve("tcp", "tasks.web", dns.TypeA); err != nil || !slices.Equal(got, pair) {
		t.Errorf("over TCP: got %v, %v; want %v", got, err, pair)
	}
	check(t, os.WriteFile(w.dir+"/resolv.conf", nil, 0o600))
	if _, rcode, err := a.resolve("udp", "example.org", dns.TypeA); err != nil || rcode != dns.RcodeServerFailure {
		t.Errorf("without servers: got %s, %v; want SERVFAIL", dns.RcodeToString[rcode], err)
	}
}

func TestOwnServers(t *testing.T) {
	w := newWorld(t)
	w.serveInternet()
	check(t, os.WriteFile(w.dir+"/resolv.conf", nil, 0o600))
	n := w.newNode(210)
	a := n.attach(10, func(a *agent.Attachment) {
		a.DNS, a.DNSSearch, a.DNSOptions = []string{"198.51.100.1"}, []string{"a.example", "b.example"}, []string{"ndots:2", "timeout:1"}
		a.ExtraHosts = []string{"db=10.1.2.3", "node=host-gateway"}
	})
	n.apply(state(nil, a))
	if got, rcode, err := a.resolve("udp", "example.org", dns.TypeA); err != nil || !slices.Equal(got, []string{"198.51.100.7"}) {
		t.Errorf("example.org: got %v, %s, %v", got, dns.RcodeToString[rcode], err)
	}
	if got, want := string(a.sandbox.ResolvConf), "nameserver 127.0.0.11\nsearch a.example b.example\noptions ndots:2 timeout:1 attempts:5\n"; got != want {
		t.Errorf("resolv.conf: got %q, want %q", got, want)
	}
	for _, line := range []string{"10.1.2.3\tdb\n", n.nodeAddress().String() + "\tnode\n", a.Address.String() + "\thost10\n", "127.0.0.1\tlocalhost\n"} {
		if !strings.Contains(string(a.sandbox.Hosts), line) {
			t.Errorf("hosts: got %q, want a line %q", a.sandbox.Hosts, line)
		}
	}
}

// While the process is away a question is not refused, so that resolvers ask again; until the first state it is held.
func TestNamesDuringOutage(t *testing.T) {
	w := newWorld(t)
	n := w.newNode(210)
	front := cluster.NewID(nil)
	a := n.attach(10, nil, front)
	s := state([]agentapi.Service{service("web", n.vip(5), front, a)}, a)
	n.apply(s)
	check(t, n.Close())
	c, err := w.dial(a.ns, "udp", dnsAddress+":53")
	check(t, err)
	defer func() { _ = c.Close() }()
	question, err := new(dns.Msg).SetQuestion("web.", dns.TypeA).Pack()
	check(t, err)
	for range 3 { // a refusal would show at the second write or the read
		_, err = c.Write(question)
		check(t, err)
		check(t, c.SetReadDeadline(time.Now().Add(50*time.Millisecond)))
		if _, err := c.Read(make([]byte, 512)); !isTimeout(err) {
			t.Fatalf("answer of nobody: got %v, want silence", err)
		}
	}
	n.open()
	answered := make(chan error, 1)
	go func() {
		got, rcode, err := a.resolve("udp", "web", dns.TypeA)
		if err == nil && !slices.Equal(got, []string{n.vip(5).String()}) {
			err = fmt.Errorf("got %v, %s", got, dns.RcodeToString[rcode])
		}
		answered <- err
	}()
	select {
	case err := <-answered:
		t.Fatalf("before the first state: got an answer (%v), want it held", err)
	case <-time.After(100 * time.Millisecond):
	}
	n.apply(s)
	if err := <-answered; err != nil {
		t.Error(err)
	}
}
