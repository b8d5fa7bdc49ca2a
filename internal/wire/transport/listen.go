package transport

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Config is what a Listener needs; all fields but Allow are required.
type Config struct {
	Network     Network
	Credentials Credentials
	// Allow says whether a peer whose certificate is good may speak a protocol; nil: yes. It is also asked for callers
	// without a certificate, where the protocol needs none.
	Allow  func(p Peer, protocol string) error
	Logger *slog.Logger
}

// Listener is the one port. Protocol gives a net.Listener for each protocol.
type Listener struct {
	cfg   Config
	inner net.Listener
	queue map[string]chan *Conn
	slots chan struct{} // one token per handshake under way

	stop   context.CancelFunc
	ctx    context.Context
	worker sync.WaitGroup

	mu    sync.Mutex
	conns map[*Conn]struct{}
	hosts map[string]int // handshakes under way, by where they come from
}

var protocols = []string{ProtocolRaft, ProtocolManager, ProtocolAgent, ProtocolNode, ProtocolJoin, ProtocolImage, ProtocolAPI}

// Listen opens the port. The caller closes it.
func Listen(ctx context.Context, address string, cfg Config) (*Listener, error) {
	if cfg.Allow == nil {
		cfg.Allow = func(Peer, string) error { return nil }
	}
	inner, err := cfg.Network.Listen(ctx, address)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", address, err)
	}
	l := &Listener{cfg: cfg, inner: inner, queue: make(map[string]chan *Conn), slots: make(chan struct{}, handshakesMax), conns: make(map[*Conn]struct{}), hosts: make(map[string]int)}
	for _, p := range protocols {
		l.queue[p] = make(chan *Conn, backlog)
	}
	l.ctx, l.stop = context.WithCancel(context.WithoutCancel(ctx))
	l.worker.Go(l.accept)
	return l, nil
}

// Addr is the address of the port.
func (l *Listener) Addr() net.Addr { return l.inner.Addr() }

// Close ends the port, what waits to be accepted and the connections that were, and waits for its goroutines.
func (l *Listener) Close() error {
	l.stop()
	err := l.inner.Close()
	l.mu.Lock()
	open := make([]*Conn, 0, len(l.conns))
	for c := range l.conns {
		open = append(open, c)
	}
	l.mu.Unlock()
	for _, c := range open {
		_ = c.Close() // the other end learns of it by the reset at the latest
	}
	l.worker.Wait()
	for _, q := range l.queue { // nobody accepts what waits there any more
		for waits := true; waits; {
			select {
			case c := <-q:
				_ = c.Close()
			default:
				waits = false
			}
		}
	}
	return err
}

// Recheck asks Allow again for every open connection and ends those that it refuses now.
func (l *Listener) Recheck() {
	l.mu.Lock()
	open := make([]*Conn, 0, len(l.conns))
	for c := range l.conns {
		open = append(open, c)
	}
	l.mu.Unlock()
	for _, c := range open {
		if err := l.cfg.Allow(c.Peer, c.Protocol); err != nil {
			l.cfg.Logger.Info("connection ended", "peer", c.Peer.Name, "protocol", c.Protocol, "reason", err)
			_ = c.Close()
		}
	}
}

func (l *Listener) forget(c *Conn) {
	l.mu.Lock()
	delete(l.conns, c)
	l.mu.Unlock()
}

func (l *Listener) accept() {
	const pauseMax = time.Second
	pause := time.Millisecond
	for {
		raw, err := l.inner.Accept()
		switch {
		case l.ctx.Err() != nil:
			if err == nil {
				_ = raw.Close()
			}
			return
		case err != nil: // no file descriptors left, for example: it passes
			l.cfg.Logger.Warn("cannot accept connections", "err", err)
			select {
			case <-time.After(pause):
			case <-l.ctx.Done():
				return
			}
			pause = min(2*pause, pauseMax)
			continue
		}
		pause = time.Millisecond
		host := hostOf(raw)
		if !l.share(host) {
			_ = raw.Close() // whoever is honest tries again
			continue
		}
		select {
		case l.slots <- struct{}{}:
		case <-l.ctx.Done():
			_ = raw.Close()
			return
		}
		l.worker.Go(func() {
			defer func() { l.unshare(host); <-l.slots }()
			l.greet(raw)
		})
	}
}

// hostOf is the address of the machine that a connection comes from.
func hostOf(c net.Conn) string {
	from := c.RemoteAddr().String()
	if host, _, err := net.SplitHostPort(from); err == nil {
		return host
	}
	return from
}

// share counts a handshake of a host, unless it has its share of them under way: who starts them and says nothing must not
// keep all others out.
func (l *Listener) share(host string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.hosts[host] >= handshakesOfHost {
		return false
	}
	l.hosts[host]++
	return true
}

func (l *Listener) unshare(host string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.hosts[host]--; l.hosts[host] == 0 {
		delete(l.hosts, host)
	}
}

// greet does the handshake and hands the connection to who serves its protocol.
func (l *Listener) greet(raw net.Conn) {
	ctx, cancel := context.WithTimeout(l.ctx, handshakeMax)
	defer cancel()
	c := tls.Server(raw, &tls.Config{MinVersion: tls.VersionTLS13, GetConfigForClient: l.configFor})
	if err := c.HandshakeContext(ctx); err != nil {
		l.cfg.Logger.Debug("handshake failed", "from", raw.RemoteAddr(), "err", err)
		_ = raw.Close()
		return
	}
	st := c.ConnectionState()
	conn := &Conn{Conn: c, Peer: peerOf(st), Protocol: st.NegotiatedProtocol, listener: l}
	if _, known := l.queue[conn.Protocol]; !known {
		conn.Protocol = ProtocolAPI // h2, http/1.1, or a caller without ALPN
	}
	err := l.cfg.Allow(conn.Peer, conn.Protocol)
	if err == nil && (conn.Protocol == ProtocolAPI || l.enter(conn)) {
		select {
		case l.queue[conn.Protocol] <- conn:
			return
		case <-ctx.Done():
			err = errors.New("nobody serves it in time")
		}
	}
	l.cfg.Logger.Info("connection refused", "from", raw.RemoteAddr(), "peer", conn.Peer.Name, "protocol", conn.Protocol, "reason", err)
	_ = conn.Close()
}

// enter puts the connection on the list, unless the port is closing.
func (l *Listener) enter(c *Conn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ctx.Err() != nil {
		return false
	}
	l.conns[c] = struct{}{}
	return true
}

// configFor chooses what is asked of a caller by what it wants to speak.
func (l *Listener) configFor(hello *tls.ClientHelloInfo) (*tls.Config, error) {
	cert, err := l.cfg.Credentials.Certificate()
	if err != nil {
		return nil, err
	}
	conf := &tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{*cert}, ClientCAs: l.cfg.Credentials.Roots(),
		ClientAuth: tls.VerifyClientCertIfGiven, NextProtos: []string{"h2", "http/1.1"}, SessionTicketsDisabled: true,
	}
	if len(hello.SupportedProtos) != 1 {
		return conf, nil
	}
	switch p := hello.SupportedProtos[0]; p {
	case ProtocolJoin:
		conf.NextProtos, conf.ClientAuth = []string{p}, tls.NoClientCert
	case ProtocolRaft, ProtocolManager, ProtocolAgent, ProtocolNode, ProtocolImage:
		conf.NextProtos, conf.ClientAuth = []string{p}, tls.RequireAndVerifyClientCert
	}
	return conf, nil
}

// Protocol is the listener of one protocol's connections: what it accepts are *Conn, and *tls.Conn for the API. Closing it
// closes nothing: the port belongs to all of them.
func (l *Listener) Protocol(p string) net.Listener {
	q, ok := l.queue[p]
	if !ok {
		panic(fmt.Sprintf("transport: no protocol %q", p))
	}
	ctx, stop := context.WithCancel(l.ctx)
	return &part{port: l, queue: q, ctx: ctx, stop: stop}
}

// part is one protocol's share of the port.
type part struct {
	port  *Listener
	queue chan *Conn
	ctx   context.Context // ends with the part or the port
	stop  context.CancelFunc
}

var _ net.Listener = (*part)(nil)

// Accept implements net.Listener.
func (p *part) Accept() (net.Conn, error) {
	select {
	case c := <-p.queue:
		if c.Protocol == ProtocolAPI {
			return c.Conn, nil // net/http knows HTTP/2 and certificates only of this type, and asks who it is at each request
		}
		return c, nil
	case <-p.ctx.Done():
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (p *part) Close() error { p.stop(); return nil }

// Addr implements net.Listener.
func (p *part) Addr() net.Addr { return p.port.Addr() }

// userTimeout bounds how long sent data may stay unacknowledged.
func userTimeout(_, _ string, raw syscall.RawConn) error {
	var err error
	cerr := raw.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(deadAfter.Milliseconds()))
	})
	return errors.Join(cerr, err)
}
