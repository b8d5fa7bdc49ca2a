// Package memnet is a network in memory, for simulations of whole clusters: connections between named hosts, with latency,
// partitions in either direction, and resets.
//
// It behaves as TCP does where that matters. What is written while the way is cut waits and arrives once it is healed, in
// order and once. A sender whose data was not read for DeadAfter, because the way there or back is cut, has its end reset. Stop is a machine that loses its power: the others hear nothing more from it until Start, and then that it
// does not know them. Reset is a process that is killed on a machine that goes on: the others hear of it at once.
//
// Time is plain package time, so that in a synctest bubble everything takes simulated time only.
//
// Concurrency: everything may be called from any goroutine. A Network starts no goroutine.
package memnet

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"baton/internal/wire/transport"
)

const (
	// DeadAfter is how long a sender waits for an acknowledgement until the connection is reset.
	DeadAfter = 10 * time.Second
	// windowMax is how many bytes may be under way in one direction until a writer waits.
	windowMax = 1 << 20
	backlog   = 128
)

// Errors of connections.
var (
	errRefused = errors.New("connection refused")
	errReset   = errors.New("connection reset")
)

// Network connects hosts.
type Network struct {
	mu        sync.Mutex
	latency   func(from, to string) time.Duration
	cut       map[[2]string]time.Time // from, to → since when
	down      map[string]time.Time    // host → since when
	listeners map[string]*listener
	conns     map[*conn]struct{}
	changed   chan struct{} // closed at each change, and made anew
}

// New makes a network without hosts. latency tells how long a byte takes from one host to another.
func New(latency func(from, to string) time.Duration) *Network {
	return &Network{
		latency: latency, cut: make(map[[2]string]time.Time), down: make(map[string]time.Time), listeners: make(map[string]*listener),
		conns: make(map[*conn]struct{}), changed: make(chan struct{}),
	}
}

// change wakes everybody who waits. The caller holds the lock.
func (n *Network) change() {
	close(n.changed)
	n.changed = make(chan struct{})
}

// Cut lets nothing pass from one host to another, until Heal.
func (n *Network) Cut(from, to string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if _, ok := n.cut[[2]string{from, to}]; !ok {
		n.cut[[2]string{from, to}] = time.Now()
		n.change()
	}
}

// Heal lets everything pass between all hosts.
func (n *Network) Heal() {
	n.mu.Lock()
	defer n.mu.Unlock()
	clear(n.cut)
	n.change()
}

// closed tells whether nothing passes from one host to another, and since when. The caller holds the lock.
func (n *Network) closed(from, to string) (since time.Time, closed bool) {
	if since, closed = n.cut[[2]string{from, to}]; closed {
		return since, true
	}
	if since, closed = n.down[from]; closed {
		return since, true
	}
	since, closed = n.down[to]
	return since, closed
}

// Reset ends all connections and listeners of a host, and tells the other ends at once.
func (n *Network) Reset(host string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.end(host)
	n.forget(host)
	n.change()
}

// Stop ends all connections and listeners of a host without a word, and lets nothing through to it or from it.
func (n *Network) Stop(host string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.end(host)
	n.down[host] = time.Now()
	n.change()
}

// Start brings a stopped host back.
func (n *Network) Start(host string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.down, host)
	n.forget(host)
	n.change()
}

// end ends what a host has. The caller holds the lock.
func (n *Network) end(host string) {
	for address, l := range n.listeners {
		if l.host == host {
			delete(n.listeners, address)
			l.closed = true
		}
	}
	for c := range n.conns {
		if c.local == host {
			c.fail(errReset)
			delete(n.conns, c)
		}
	}
}

// forget ends what others have with a host. The caller holds the lock.
func (n *Network) forget(host string) {
	for c := range n.conns {
		if c.remote == host {
			c.fail(errReset)
			delete(n.conns, c)
		}
	}
}

// Host is a machine's place in the network; it implements transport.Network.
func (n *Network) Host(name string) transport.Network { return host{n, name} }

type host struct {
	net  *Network
	name string
}

// addr is an address in the network.
type addr string

// Network implements net.Addr.
func (addr) Network() string { return "memory" }

// String implements net.Addr.
func (a addr) String() string { return string(a) }

// Listen implements transport.Network. The host part of the address is the host's own name, whatever it says.
func (h host) Listen(_ context.Context, address string) (net.Listener, error) {
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	at := net.JoinHostPort(h.name, port)
	n := h.net
	n.mu.Lock()
	defer n.mu.Unlock()
	if _, taken := n.listeners[at]; taken {
		return nil, fmt.Errorf("listen on %s: address in use", at)
	}
	l := &listener{net: n, host: h.name, at: at, queue: make(chan *conn, backlog)}
	n.listeners[at] = l
	return l, nil
}

// Dial implements transport.Network.
func (h host) Dial(ctx context.Context, address string) (net.Conn, error) {
	to, _, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	// The question and its answer both have to arrive.
	for _, way := range [][2]string{{h.name, to}, {to, h.name}} {
		if err := h.net.pass(ctx, way); err != nil {
			return nil, fmt.Errorf("dial %s: %w", address, err)
		}
	}
	n := h.net
	n.mu.Lock()
	defer n.mu.Unlock()
	l := n.listeners[address]
	if l == nil {
		return nil, fmt.Errorf("dial %s: %w", address, errRefused)
	}
	out, in := newPipe(n, h.name, to), newPipe(n, to, h.name)
	near := &conn{net: n, local: h.name, remote: to, in: in, out: out}
	far := &conn{net: n, local: to, remote: h.name, in: out, out: in}
	select {
	case l.queue <- far:
	default:
		return nil, fmt.Errorf("dial %s: %w", address, errRefused)
	}
	n.conns[near], n.conns[far] = struct{}{}, struct{}{}
	n.change()
	return near, nil
}

// pass waits as long as a packet takes one way.
func (n *Network) pass(ctx context.Context, way [2]string) error {
	deadline := time.Now().Add(DeadAfter)
	timer := time.NewTimer(n.latency(way[0], way[1]))
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
		return ctx.Err()
	}
	for {
		n.mu.Lock()
		_, cut := n.closed(way[0], way[1])
		changed := n.changed
		n.mu.Unlock()
		if !cut {
			return nil
		}
		timer.Reset(max(time.Until(deadline), 0))
		select {
		case <-timer.C:
			return os.ErrDeadlineExceeded
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		}
	}
}

type listener struct {
	net    *Network
	host   string
	at     string
	queue  chan *conn
	closed bool // guarded by net.mu
}

// Accept implements net.Listener.
func (l *listener) Accept() (net.Conn, error) {
	for {
		l.net.mu.Lock()
		closed, changed := l.closed, l.net.changed
		l.net.mu.Unlock()
		if closed {
			return nil, net.ErrClosed
		}
		select {
		case c := <-l.queue:
			return c, nil
		case <-changed:
		}
	}
}

// Close implements net.Listener.
func (l *listener) Close() error {
	l.net.mu.Lock()
	defer l.net.mu.Unlock()
	if l.net.listeners[l.at] == l {
		delete(l.net.listeners, l.at)
	}
	l.closed = true
	l.net.change()
	return nil
}

// Addr implements net.Listener.
func (l *listener) Addr() net.Addr { return addr(l.at) }
