package dispatch

import (
	"context"
	"errors"
	"io"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"baton/internal/wire/agentapi"
	"baton/internal/wire/rpc"
)

// Serve adds the agents' sessions to a table of calls. The node that calls is who its certificate says.
func (d *Dispatcher) Serve(t *rpc.Table) {
	rpc.Streaming(t, agentapi.CallSession, d.serve)
}

// serve holds one remote agent's session until either end gives up.
func (d *Dispatcher) serve(stream rpc.Stream[agentapi.FromAgent, agentapi.Update]) error {
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	h := first.Hello
	if h == nil || h.Node.String() != rpc.Peer(stream.Context()).Name {
		return status.Error(codes.PermissionDenied, "a session is for the node that the certificate names, and begins with Hello")
	}
	ctx, cancel := context.WithCancel(stream.Context())
	defer cancel()
	s, err := d.Connect(ctx, *h)
	if err != nil {
		return status.Error(codes.FailedPrecondition, err.Error())
	}
	received := make(chan error, 1)
	go func() {
		defer cancel()
		received <- receive(ctx, stream, s)
	}()
	err = post(ctx, stream, s)
	cancel()
	// Receiving ends with the stream, whose context ends when this returns: waiting for it here would be for ever.
	closed := s.Close()
	select {
	case rerr := <-received:
		if errors.Is(rerr, io.EOF) {
			return closed // the agent said goodbye
		}
		return errors.Join(rerr, closed)
	default:
		return errors.Join(err, closed)
	}
}

// receive passes an agent's reports on.
func receive(ctx context.Context, stream rpc.Stream[agentapi.FromAgent, agentapi.Update], s agentapi.Session) error {
	for {
		m, err := stream.Recv()
		if err != nil {
			return err
		}
		if m.Report == nil {
			continue // of a newer version: something that this one does not know
		}
		if err := s.Send(ctx, *m.Report); err != nil {
			return err
		}
	}
}

// post passes updates on to the agent.
func post(ctx context.Context, stream rpc.Stream[agentapi.FromAgent, agentapi.Update], s agentapi.Session) error {
	for {
		u, err := s.Recv(ctx)
		if err != nil {
			return err
		}
		if err := stream.Send(u); err != nil {
			return err
		}
	}
}
