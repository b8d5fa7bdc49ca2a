package network

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"

	"baton/internal/model/cluster"
)

// Limits of name service.
const (
	nameTTL        = 5               // seconds; service addresses are stable, lists of tasks are not
	forwardsMax    = 512             // questions under way to other servers, on the whole node
	forwardTimeout = 2 * time.Second // per server
	holdTimeout    = 4 * time.Second // how long questions wait for the first state; below the 5 s of common clients
	answersMax     = 64              // addresses in one answer; a client needs no more
)

// resolver answers the questions of every task of the node. Each task has a socket of its own within its namespace, which
// also tells who asks.
type resolver struct {
	log        *slog.Logger
	resolvConf string
	dial       dialFunc
	names      atomic.Pointer[directory]
	ready      chan struct{} // closed once names are known
	readyOnce  sync.Once
	forwards   chan struct{} // tokens
	ctx        context.Context
	cancel     context.CancelFunc

	mu      sync.Mutex
	servers map[cluster.ID]*nameServer
}

type dialFunc func(ctx context.Context, network, address string) (net.Conn, error)

// nameServer serves one task.
type nameServer struct {
	who     asker
	forward []string // servers to ask instead of the node's
	noWay   bool     // the task has no way out: nothing is forwarded
	ns      string   // identity of the namespace that the sockets are in
	r       *resolver
	udp     *dns.Server
	tcp     *dns.Server
	done    sync.WaitGroup
}

func newResolver(log *slog.Logger, resolvConf string, dial dialFunc) *resolver {
	ctx, cancel := context.WithCancel(context.Background())
	return &resolver{
		log: log, resolvConf: resolvConf, dial: dial, ready: make(chan struct{}), forwards: make(chan struct{}, forwardsMax),
		ctx: ctx, cancel: cancel, servers: make(map[cluster.ID]*nameServer),
	}
}

// publish makes answers follow d.
func (r *resolver) publish(d *directory) {
	r.names.Store(d)
	r.readyOnce.Do(func() { close(r.ready) })
}

// serves reports whether the task has a name service that answers as want would.
func (r *resolver) serves(task cluster.ID, want *nameServer) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	have := r.servers[task]
	return have != nil && have.ns == want.ns && have.noWay == want.noWay && slices.Equal(have.forward, want.forward) &&
		have.who.address == want.who.address && have.who.hostname == want.who.hostname && have.who.stack == want.who.stack &&
		slices.Equal(have.who.networks, want.who.networks)
}

// serveNames opens the task's sockets, anew when the attachment changed.
func (n *Network) serveNames(a *attachment) error {
	ns, err := openNS(n.nsPath(a.Task))
	if err != nil {
		return err
	}
	defer func() { _ = ns.Close() }()
	s := &nameServer{
		who:     asker{address: a.Address, hostname: strings.ToLower(a.Hostname), stack: a.Stack, networks: a.Networks},
		forward: a.DNS, noWay: a.Internal, ns: ns.UniqueId(), r: n.dns,
	}
	if n.dns.serves(a.Task, s) {
		return nil
	}
	n.dns.stop(a.Task)
	var packets net.PacketConn
	var listener net.Listener
	err = within(ns, func() (err error) {
		if packets, err = net.ListenPacket("udp4", dnsAddress+":53"); err != nil {
			return fmt.Errorf("name service: %w", err)
		}
		if listener, err = net.Listen("tcp4", dnsAddress+":53"); err != nil {
			return errors.Join(fmt.Errorf("name service: %w", err), packets.Close())
		}
		return nil
	})
	if err != nil {
		return err
	}
	s.start(packets, listener)
	n.dns.mu.Lock()
	n.dns.servers[a.Task] = s
	n.dns.mu.Unlock()
	return nil
}

func (s *nameServer) start(packets net.PacketConn, listener net.Listener) {
	s.udp = &dns.Server{PacketConn: packets, Handler: s}
	s.tcp = &dns.Server{Listener: listener, Handler: s}
	for _, server := range []*dns.Server{s.udp, s.tcp} {
		started := make(chan struct{})
		server.NotifyStartedFunc = func() { close(started) }
		s.done.Go(func() {
			if err := server.ActivateAndServe(); err != nil && s.r.ctx.Err() == nil {
				s.r.log.Debug("name service of a task ended", "address", s.who.address, "err", err)
			}
		})
		<-started // a shutdown before the start would be lost
	}
}

// stop ends the name service of a task and waits for its goroutines.
func (r *resolver) stop(task cluster.ID) {
	r.mu.Lock()
	s := r.servers[task]
	delete(r.servers, task)
	r.mu.Unlock()
	if s != nil {
		s.stop()
	}
}

func (s *nameServer) stop() {
	for _, server := range []*dns.Server{s.udp, s.tcp} {
		ctx, cancel := context.WithTimeout(context.Background(), forwardTimeout)
		if err := server.ShutdownContext(ctx); err != nil {
			s.r.log.Debug("name service of a task", "address", s.who.address, "err", err)
		}
		cancel()
	}
	s.done.Wait()
}

func (r *resolver) close() {
	r.cancel()
	r.mu.Lock()
	servers := r.servers
	r.servers = make(map[cluster.ID]*nameServer)
	r.mu.Unlock()
	for _, s := range servers {
		s.stop()
	}
}

// ServeDNS implements dns.Handler.
func (s *nameServer) ServeDNS(w dns.ResponseWriter, q *dns.Msg) {
	reply := s.answer(w.LocalAddr().Network(), q)
	if w.LocalAddr().Network() == "udp" {
		reply.Truncate(udpSize(q))
	}
	if err := w.WriteMsg(reply); err != nil && s.r.ctx.Err() == nil {
		s.r.log.Debug("answer to a task", "address", s.who.address, "err", err)
	}
}

func udpSize(q *dns.Msg) int {
	if o := q.IsEdns0(); o != nil && int(o.UDPSize()) > dns.MinMsgSize {
		return int(o.UDPSize())
	}
	return dns.MinMsgSize
}

func (s *nameServer) answer(network string, q *dns.Msg) *dns.Msg {
	if len(q.Question) != 1 || q.Opcode != dns.OpcodeQuery {
		return new(dns.Msg).SetRcode(q, dns.RcodeNotImplemented)
	}
	select {
	case <-s.r.ready:
	default:
		// After a restart nothing is known for a moment: to wait is better than to deny a name that exists.
		if !s.hold() {
			return new(dns.Msg).SetRcode(q, dns.RcodeServerFailure)
		}
	}
	question := q.Question[0]
	name := strings.ToLower(strings.TrimSuffix(question.Name, "."))
	if a, ok := reverseName(name); ok {
		if names := s.r.names.Load().reverse(s.who, a); len(names) > 0 {
			return replyNames(q, names)
		}
		return s.forwarded(network, q)
	}
	if addresses, known := s.r.names.Load().lookup(s.who, name); known {
		return replyAddresses(q, addresses)
	}
	return s.forwarded(network, q)
}

func (s *nameServer) hold() bool {
	timer := time.NewTimer(holdTimeout)
	defer timer.Stop()
	select {
	case <-s.r.ready:
		return true
	case <-timer.C:
	case <-s.r.ctx.Done():
	}
	return false
}

// replyAddresses answers with IPv4 addresses in random order; other types of a known name have no data.
func replyAddresses(q *dns.Msg, addresses []netip.Addr) *dns.Msg {
	m := new(dns.Msg).SetReply(q)
	m.RecursionAvailable = true
	if t := q.Question[0].Qtype; t != dns.TypeA && t != dns.TypeANY {
		return m
	}
	rand.Shuffle(len(addresses), func(i, j int) { addresses[i], addresses[j] = addresses[j], addresses[i] })
	for _, a := range addresses[:min(len(addresses), answersMax)] {
		m.Answer = append(m.Answer, &dns.A{
			Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: nameTTL}, A: a.AsSlice(),
		})
	}
	return m
}

func replyNames(q *dns.Msg, names []string) *dns.Msg {
	m := new(dns.Msg).SetReply(q)
	m.RecursionAvailable = true
	if t := q.Question[0].Qtype; t != dns.TypePTR && t != dns.TypeANY {
		return m
	}
	for _, name := range names {
		m.Answer = append(m.Answer, &dns.PTR{
			Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypePTR, Class: dns.ClassINET, Ttl: nameTTL}, Ptr: dns.Fqdn(name),
		})
	}
	return m
}

// reverseName reads d.c.b.a.in-addr.arpa.
func reverseName(name string) (netip.Addr, bool) {
	parts := strings.Split(strings.TrimSuffix(name, ".in-addr.arpa"), ".")
	if !strings.HasSuffix(name, ".in-addr.arpa") || len(parts) != 4 {
		return netip.Addr{}, false
	}
	a, err := netip.ParseAddr(parts[3] + "." + parts[2] + "." + parts[1] + "." + parts[0])
	return a, err == nil
}

// forwarded asks the servers in turn and answers SERVFAIL when none does.
func (s *nameServer) forwarded(network string, q *dns.Msg) *dns.Msg {
	if s.noWay {
		return new(dns.Msg).SetRcode(q, dns.RcodeRefused)
	}
	select {
	case s.r.forwards <- struct{}{}:
		defer func() { <-s.r.forwards }()
	default:
		return new(dns.Msg).SetRcode(q, dns.RcodeServerFailure)
	}
	servers := s.forward
	if len(servers) == 0 {
		if b, err := os.ReadFile(s.r.resolvConf); err == nil {
			servers = parseResolvConf(b).servers
		}
	}
	for _, server := range servers {
		reply, err := s.r.exchange(network, server, q)
		if err == nil && reply.Rcode != dns.RcodeServerFailure && reply.Rcode != dns.RcodeRefused {
			return reply
		}
		if s.r.ctx.Err() != nil {
			break
		}
	}
	return new(dns.Msg).SetRcode(q, dns.RcodeServerFailure)
}

// exchange asks one server, given as ADDRESS or ADDRESS:PORT.
func (r *resolver) exchange(network, server string, q *dns.Msg) (*dns.Msg, error) {
	if _, err := netip.ParseAddr(server); err == nil {
		server = net.JoinHostPort(server, "53")
	}
	ctx, cancel := context.WithTimeout(r.ctx, forwardTimeout)
	defer cancel()
	conn, err := r.dial(ctx, network, server)
	if err != nil {
		return nil, fmt.Errorf("name server %s: %w", server, err)
	}
	defer func() { _ = conn.Close() }()
	deadline, _ := ctx.Deadline()
	if err := conn.SetDeadline(deadline); err != nil {
		return nil, err
	}
	question := q.Copy()
	question.Id = dns.Id() // the task's own number would be easy to guess
	client := &dns.Client{Net: network, UDPSize: uint16(udpSize(q))}
	reply, _, err := client.ExchangeWithConnContext(ctx, question, &dns.Conn{Conn: conn, UDPSize: uint16(udpSize(q))})
	if err != nil {
		return nil, fmt.Errorf("name server %s: %w", server, err)
	}
	reply.Id = q.Id
	return reply, nil
}

// dialHost dials from the node's namespace.
func (n *Network) dialHost(ctx context.Context, network, address string) (net.Conn, error) {
	var d net.Dialer
	if n.cfg.NetNS == "" {
		return d.DialContext(ctx, network, address)
	}
	var c net.Conn
	err := within(n.host, func() (err error) {
		c, err = d.DialContext(ctx, network, address)
		return err
	})
	return c, err
}
