package uplink

import (
	"context"
	"crypto/tls"
	"errors"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"baton/internal/wire/agentapi"
	"baton/internal/wire/rpc"
	"baton/internal/wire/transport"
)

// Joining is a machine that wants to become a member.
type Joining struct {
	Network transport.Network
	Token   transport.Token
	Address string // of a manager
	// Request says who the machine is; Join fills in the secret and the request for a certificate.
	Request     agentapi.JoinRequest
	Credentials *transport.Files
}

// Join asks a manager, once, to make this machine a member, and installs the certificate that it gets.
func (j Joining) Join(ctx context.Context) (agentapi.JoinReply, error) {
	var reply agentapi.JoinReply
	conn, err := transport.Handshake(ctx, j.Network, j.Address, &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: []string{transport.ProtocolJoin}, ServerName: transport.NameManager,
		InsecureSkipVerify: true, // who it is, is checked against the token instead
		VerifyConnection:   func(st tls.ConnectionState) error { return j.Token.VerifyManager(st.PeerCertificates) },
	})
	if err != nil {
		return reply, err
	}
	client := rpc.NewClientOn(conn)
	defer client.Close()
	r, err := transport.NewRequest(j.Request.Node.String())
	if err != nil {
		return reply, err
	}
	in := j.Request
	in.Secret, in.CSR = j.Token.Secret, r.CSR
	reply, err = rpc.Call[agentapi.JoinReply](ctx, client, agentapi.JoinService, agentapi.CallJoin, in)
	if err != nil {
		return reply, err
	}
	return reply, j.Credentials.Install(r, reply.Certificate.Certificate, reply.Roots)
}

// Passing reports whether an error of Join may be gone a moment later.
func Passing(err error) bool {
	if errors.Is(err, transport.ErrOtherCluster) {
		return false
	}
	st, ok := status.FromError(err)
	return !ok || st.Code() == codes.Unavailable || st.Code() == codes.Aborted || st.Code() == codes.DeadlineExceeded
}
