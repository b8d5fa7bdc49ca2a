// Package rpc carries calls between the machines of a cluster: gRPC over package transport's connections, with plain Go
// structs encoded as CBOR in place of generated messages.
//
// A service is a table of typed functions:
//
//	s := rpc.NewServer()
//	t := rpc.NewTable("baton.Greeter")
//	rpc.Unary(t, "Hello", func(ctx context.Context, in HelloIn) (HelloOut, error) { … })
//	t.Register(s)
//	go rpc.Serve(ctx, s, port.Protocol(transport.ProtocolManager))
//
//	c := rpc.NewClient(func(ctx context.Context) (net.Conn, error) { return dialer.Dial(ctx, …) })
//	out, err := rpc.Call[HelloOut](ctx, c, "baton.Greeter", "Hello", HelloIn{…})
//
// Invariants: the other end's limits are enforced here (message size, streams per connection, nesting); unknown fields of
// a message are ignored, so that neighbouring versions understand each other; a handler's error reaches the caller as a
// status with its text, so handlers return nothing that a peer may not read.
//
// Concurrency: that of grpc: one goroutine per call at the server; a client may be used from any goroutine.
package rpc
