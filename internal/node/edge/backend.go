package edge

import (
	"context"
	"net"
	"net/http"
	"net/netip"
	"sync/atomic"
	"time"
)

const (
	// dialTimeout bounds the wait for a task that does not answer; then another one is tried.
	dialTimeout = 2 * time.Second
	// avoidFor is how long an endpoint that could not be reached is chosen only for want of others. The managers take it out
	// once they know.
	avoidFor = time.Second
	// idleTimeout is below the 5 s after which common servers close an idle connection: a request that meets that end on its way is lost.
	idleTimeout = 4 * time.Second
	idleMax     = 128 // idle connections per endpoint; more are closed after their request
	// pingAfter and pingTimeout find out that the other end of an HTTP/2 connection is gone.
	pingAfter   = 15 * time.Second
	pingTimeout = 5 * time.Second
	// responseHeaderMax bounds what a task's response header may take of the node's memory.
	responseHeaderMax = 256 << 10
	// failurePenalty outweighs any number of requests in flight.
	failurePenalty = 1 << 40
)

// backend is an endpoint: one port of one task. It has transports of its own, so that its idle connections can be closed
// alone.
type backend struct {
	address  netip.AddrPort
	inflight atomic.Int64
	counter  atomic.Pointer[counter] // of the task that has the address now
	gone     atomic.Bool             // no table has it
	avoid    atomic.Int64            // until then, in nanoseconds since 1970
	http1    *http.Transport
	http2    *http.Transport // without TLS, for gRPC
}

func newBackend(address netip.AddrPort) *backend {
	b := &backend{address: address}
	b.http1, b.http2 = newTransport(), newTransport()
	b.http1.Protocols.SetHTTP1(true)
	b.http2.Protocols.SetUnencryptedHTTP2(true)
	return b
}

func newTransport() *http.Transport {
	dialer := &net.Dialer{Timeout: dialTimeout}
	return &http.Transport{
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			c, err := dialer.DialContext(ctx, network, address)
			if err != nil {
				return nil, &dialError{err}
			}
			return c, nil
		},
		Protocols:              new(http.Protocols),
		HTTP2:                  &http.HTTP2Config{SendPingTimeout: pingAfter, PingTimeout: pingTimeout},
		DisableCompression:     true, // what the client and the task agree on passes as it is
		MaxIdleConnsPerHost:    idleMax,
		IdleConnTimeout:        idleTimeout,
		ExpectContinueTimeout:  time.Second,
		MaxResponseHeaderBytes: responseHeaderMax,
	}
}

// dialError says that no connection came about, so nothing of the request was sent.
type dialError struct{ err error }

func (e *dialError) Error() string { return e.err.Error() }
func (e *dialError) Unwrap() error { return e.err }

func (b *backend) load(now time.Time) int64 {
	n := b.inflight.Load()
	if now.UnixNano() < b.avoid.Load() {
		n += failurePenalty
	}
	return n
}

func (b *backend) failed(now time.Time) { b.avoid.Store(now.Add(avoidFor).UnixNano()) }

// closeIdle closes the idle connections, and each other one after its request, unless another request comes.
func (b *backend) closeIdle() {
	b.http1.CloseIdleConnections()
	b.http2.CloseIdleConnections()
}
