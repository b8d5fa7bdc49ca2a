package rpc

import (
	"context"

	"google.golang.org/grpc"
)

func fullName(service, method string) string { return "/" + service + "/" + method }

// Table collects the functions of one service; Register makes a server answer them.
type Table struct{ desc grpc.ServiceDesc }

// NewTable makes an empty table for the named service.
func NewTable(service string) *Table {
	return &Table{grpc.ServiceDesc{ServiceName: service, HandlerType: (*any)(nil)}}
}

// Register makes s answer what is in the table.
func (t *Table) Register(s *grpc.Server) { s.RegisterService(&t.desc, nil) }

// Unary adds a function with one message each way.
func Unary[I, O any](t *Table, method string, f func(context.Context, I) (O, error)) {
	t.desc.Methods = append(t.desc.Methods, grpc.MethodDesc{
		MethodName: method,
		Handler: func(_ any, ctx context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
			var in I
			if err := decode(&in); err != nil {
				return nil, err
			}
			out, err := f(ctx, in)
			if err != nil {
				return nil, err
			}
			return &out, nil
		},
	})
}

// Streaming adds a function that exchanges any number of messages; its return ends the stream.
func Streaming[I, O any](t *Table, method string, f func(Stream[I, O]) error) {
	t.desc.Streams = append(t.desc.Streams, grpc.StreamDesc{
		StreamName: method, ServerStreams: true, ClientStreams: true,
		Handler: func(_ any, s grpc.ServerStream) error { return f(Stream[I, O]{s}) },
	})
}

// rawStream is what the two ends of a grpc stream have in common.
type rawStream interface {
	Context() context.Context
	SendMsg(any) error
	RecvMsg(any) error
}

// Stream is one end of a stream that receives I and sends O. One goroutine may send while another receives.
type Stream[I, O any] struct{ raw rawStream }

// Context is that of the stream.
func (s Stream[I, O]) Context() context.Context { return s.raw.Context() }

// Send sends one message. It waits while the other end reads too slowly.
func (s Stream[I, O]) Send(m O) error { return s.raw.SendMsg(&m) }

// Recv waits for the next message; io.EOF is the other end's regular end.
func (s Stream[I, O]) Recv() (I, error) {
	var m I
	err := s.raw.RecvMsg(&m)
	return m, err
}

// CloseSend tells the server that no more will come; only the client's end has it.
func (s Stream[I, O]) CloseSend() error {
	if c, ok := s.raw.(grpc.ClientStream); ok {
		return c.CloseSend()
	}
	return nil
}

// Call calls a function with one message each way.
func Call[O, I any](ctx context.Context, c grpc.ClientConnInterface, service, method string, in I) (O, error) {
	var out O
	err := c.Invoke(ctx, fullName(service, method), &in, &out)
	return out, err
}

// Open opens a stream that sends O and receives I; it ends with ctx at the latest.
func Open[I, O any](ctx context.Context, c grpc.ClientConnInterface, service, method string) (Stream[I, O], error) {
	desc := &grpc.StreamDesc{StreamName: method, ServerStreams: true, ClientStreams: true}
	s, err := c.NewStream(ctx, desc, fullName(service, method))
	return Stream[I, O]{s}, err
}
