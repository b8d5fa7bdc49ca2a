package rpc

import (
	"context"
	"errors"
	"math"
	"net"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"baton/internal/wire/transport"
)

const (
	// MessageBytesMax is the size of the largest message: a node's full set with the network of a large cluster.
	MessageBytesMax = 64 << 20
	streamsMax      = 4096 // of one connection
	keepAliveEvery  = 10 * time.Second
	keepAliveMax    = 5 * time.Second // without an answer the connection is dead
	keepAliveMin    = 5 * time.Second // a peer that asks more often is cut off
	connectMax      = 5 * time.Second
)

// NewServer makes a server without services.
func NewServer() *grpc.Server {
	return grpc.NewServer(
		grpc.ForceServerCodecV2(newCodec()), grpc.Creds(shaken{}),
		grpc.MaxRecvMsgSize(MessageBytesMax), grpc.MaxSendMsgSize(math.MaxInt32), grpc.MaxConcurrentStreams(streamsMax),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: keepAliveEvery, Timeout: keepAliveMax}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: keepAliveMin, PermitWithoutStream: true}),
	)
}

// Serve answers calls on l until ctx ends, and then waits for those under way, whose contexts end, too.
func Serve(ctx context.Context, s *grpc.Server, l net.Listener) error {
	stop := context.AfterFunc(ctx, s.Stop)
	defer stop()
	err := s.Serve(l)
	if ctx.Err() != nil || errors.Is(err, grpc.ErrServerStopped) {
		return nil
	}
	return err
}

// NewClient makes a client whose connections come from dial, which is asked anew after each failure, with a growing pause.
// The caller closes it.
func NewClient(dial func(context.Context) (net.Conn, error)) *grpc.ClientConn {
	c, err := grpc.NewClient("passthrough:///peer",
		grpc.WithContextDialer(paced(dial)),
		grpc.WithTransportCredentials(insecure.NewCredentials()), // the connections are encrypted already
		grpc.WithDefaultCallOptions(grpc.ForceCodecV2(newCodec()), grpc.MaxCallRecvMsgSize(MessageBytesMax), grpc.MaxCallSendMsgSize(math.MaxInt32)),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: keepAliveEvery, Timeout: keepAliveMax, PermitWithoutStream: true}),
		grpc.WithConnectParams(grpc.ConnectParams{MinConnectTimeout: connectMax}),
		grpc.WithDisableServiceConfig(), grpc.WithNoProxy(),
	)
	if err != nil {
		panic("rpc: a fixed target does not parse: " + err.Error())
	}
	return c
}

// redialMin is the shortest time between two connections of a client.
const redialMin = 20 * time.Millisecond

// paced keeps a client from connecting again and again without a pause: gRPC has none after a connection that came about, and a peer that is
// about to end takes connections and drops them at once.
func paced(dial func(context.Context) (net.Conn, error)) func(context.Context, string) (net.Conn, error) {
	var mu sync.Mutex
	var next time.Time
	return func(ctx context.Context, _ string) (net.Conn, error) {
		mu.Lock()
		now := time.Now()
		wait := next.Sub(now)
		next = now.Add(max(wait, 0) + redialMin)
		mu.Unlock()
		if wait > 0 {
			select {
			case <-time.After(wait):
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		}
		return dial(ctx)
	}
}

// NewClientOn makes a client on one open connection, which it closes. When that ends, all calls fail.
func NewClientOn(conn net.Conn) *grpc.ClientConn {
	var once sync.Once
	c := NewClient(func(context.Context) (net.Conn, error) {
		err := net.ErrClosed
		once.Do(func() { err = nil })
		if err != nil {
			return nil, err
		}
		return conn, nil
	})
	c.Connect()
	return c
}

// Peer is who made the call that ctx belongs to.
func Peer(ctx context.Context) transport.Peer {
	if p, ok := peer.FromContext(ctx); ok {
		if a, ok := p.AuthInfo.(authInfo); ok {
			return a.peer
		}
	}
	return transport.Peer{}
}

// authInfo carries a connection's peer to the handlers.
type authInfo struct{ peer transport.Peer }

// AuthType implements credentials.AuthInfo.
func (authInfo) AuthType() string { return "transport" }

// shaken are credentials for connections whose handshake package transport has done.
type shaken struct{}

var _ credentials.TransportCredentials = shaken{}

// ServerHandshake implements credentials.TransportCredentials.
func (shaken) ServerHandshake(c net.Conn) (net.Conn, credentials.AuthInfo, error) {
	var a authInfo
	if t, ok := c.(*transport.Conn); ok {
		a.peer = t.Peer
	}
	return c, a, nil
}

// ClientHandshake implements credentials.TransportCredentials.
func (shaken) ClientHandshake(context.Context, string, net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("rpc: server credentials used by a client")
}

// Info implements credentials.TransportCredentials.
func (shaken) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "tls"}
}

// Clone implements credentials.TransportCredentials.
func (s shaken) Clone() credentials.TransportCredentials { return s }

// OverrideServerName implements credentials.TransportCredentials.
func (shaken) OverrideServerName(string) error { return nil }

// Message is the text of an error that came over the wire, without what grpc adds.
func Message(err error) string {
	if st, ok := status.FromError(err); ok {
		return st.Message()
	}
	return err.Error()
}
