package transport

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"slices"
	"time"
)

// The protocols.
const (
	ProtocolRaft    = "baton-raft/1"
	ProtocolManager = "baton-manager/1"
	ProtocolAgent   = "baton-agent/1"
	ProtocolNode    = "baton-node/1"
	ProtocolJoin    = "baton-join/1"
	ProtocolImage   = "baton-image/1"
	// ProtocolAPI stands for "h2" and "http/1.1".
	ProtocolAPI = "api"
)

// The roles that a certificate gives, in the organizational unit of its subject.
const (
	RoleManager = "manager"
	RoleWorker  = "worker"
	RoleAdmin   = "admin" // a user of the API, not a node
)

// PortDefault is the TCP port of a manager and the UDP port of the mesh.
const PortDefault = 7701

// The names that nodes' certificates carry.
const (
	// NameManager is in the certificate of every manager, and in no other.
	NameManager = "manager.baton.internal"
	nodeDomain  = ".node.baton.internal"
)

// NodeName is the name in the certificate of one node, by the text form of its id.
func NodeName(id string) string { return id + nodeDomain }

// Limits.
const (
	handshakeMax = 5 * time.Second
	// handshakesMax is how many handshakes are under way at a time: strangers can start them.
	handshakesMax = 256
	// handshakesOfHost is how many of them one address may have: more than the agents behind one address translation need.
	handshakesOfHost = 64
	// backlog is how many connections of one protocol wait to be accepted.
	backlog = 64
)

// Peer is who is at the other end, as its certificate says.
type Peer struct {
	Name string // the text form of a node's id, or a user's name; empty without a certificate
	Role string
	// Serial is that of the certificate.
	Serial string
}

// Credentials are this machine's certificate and whom it trusts. Both may change at any time; what they return is not
// changed afterwards.
type Credentials interface {
	Certificate() (*tls.Certificate, error)
	Roots() *x509.CertPool
}

// Network is what carries the connections.
type Network interface {
	Listen(ctx context.Context, address string) (net.Listener, error)
	Dial(ctx context.Context, address string) (net.Conn, error)
}

// Conn is a connection after its handshake.
type Conn struct {
	*tls.Conn
	Peer     Peer
	Protocol string
	listener *Listener // that accepted it; nil when dialled
}

// Close implements net.Conn.
func (c *Conn) Close() error {
	if c.listener != nil {
		c.listener.forget(c)
	}
	return c.Conn.Close()
}

// peerOf reads who a verified certificate is.
func peerOf(st tls.ConnectionState) Peer {
	if len(st.PeerCertificates) == 0 {
		return Peer{}
	}
	leaf := st.PeerCertificates[0]
	p := Peer{Name: leaf.Subject.CommonName, Serial: leaf.SerialNumber.Text(16)}
	if len(leaf.Subject.OrganizationalUnit) == 1 {
		p.Role = leaf.Subject.OrganizationalUnit[0]
	}
	return p
}

// Dialer opens connections to managers and nodes.
type Dialer struct {
	Network     Network
	Credentials Credentials
}

// Dial connects to address for a protocol. The other side must show a certificate with the given name (NameManager or that
// of NodeName), signed by one of the roots.
func (d *Dialer) Dial(ctx context.Context, address, protocol, name string) (*Conn, error) {
	cert, err := d.Credentials.Certificate()
	if err != nil {
		return nil, err
	}
	return Handshake(ctx, d.Network, address, &tls.Config{
		MinVersion: tls.VersionTLS13, ServerName: name, NextProtos: []string{protocol},
		RootCAs: d.Credentials.Roots(), Certificates: []tls.Certificate{*cert},
	})
}

// Handshake connects and agrees on the one protocol in conf.
func Handshake(ctx context.Context, n Network, address string, conf *tls.Config) (*Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, handshakeMax)
	defer cancel()
	raw, err := n.Dial(ctx, address)
	if err != nil {
		return nil, err
	}
	c := tls.Client(raw, conf)
	if err := c.HandshakeContext(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("connect to %s: %w", address, explain(err)), raw.Close())
	}
	st := c.ConnectionState()
	if !slices.Contains(conf.NextProtos, st.NegotiatedProtocol) {
		return nil, errors.Join(fmt.Errorf("connect to %s: it does not speak %v: is it a manager of this version of Baton?", address, conf.NextProtos), c.Close())
	}
	return &Conn{Conn: c, Peer: peerOf(st), Protocol: st.NegotiatedProtocol}, nil
}

// explain says in plain words what is behind the usual errors of a handshake.
func explain(err error) error {
	var unknown x509.UnknownAuthorityError
	var invalid x509.CertificateInvalidError
	var host x509.HostnameError
	switch {
	case errors.As(err, &unknown):
		return fmt.Errorf("its certificate is from another cluster's authority: %w", err)
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return fmt.Errorf("a certificate has expired, or a clock is wrong: %w", err)
	case errors.As(err, &host):
		return fmt.Errorf("it is not the node that was expected, or not a manager: %w", err)
	}
	return err
}

// TCP is the real network.
type TCP struct{}

var _ Network = TCP{}

// deadAfter is how long the kernel waits for a peer that does not answer before a connection ends with an error: without
// it, a session to a machine that vanished would hang for many minutes.
const deadAfter = 10 * time.Second

var keepAlive = net.KeepAliveConfig{Enable: true, Idle: 5 * time.Second, Interval: 2 * time.Second, Count: 3}

// Listen implements Network.
func (TCP) Listen(ctx context.Context, address string) (net.Listener, error) {
	lc := net.ListenConfig{KeepAliveConfig: keepAlive, Control: userTimeout}
	return lc.Listen(ctx, "tcp", address)
}

// Dial implements Network.
func (TCP) Dial(ctx context.Context, address string) (net.Conn, error) {
	d := net.Dialer{KeepAliveConfig: keepAlive, Control: userTimeout}
	return d.DialContext(ctx, "tcp", address)
}
