// Package noderpc lets managers use a node's services (agentapi.NodeServices) over rpc: logs, commands, connections, images, usage.
//
// A node serves them on a connection that it opened itself, so that managers reach nodes behind address translation, too. A
// manager that has no such connection to a node asks one that has: which node a call is for travels in its metadata.
//
// Invariants: what a node says in an error is meant for users; a call ends with its context at both ends; nothing is held in
// memory as a whole that may be large (logs, archives, a command's output).
//
// Concurrency: a Client may be used from any goroutine; each call of the server runs in its own.
package noderpc

import (
	"context"
	"errors"
	"io"
	"iter"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"baton/internal/model/cluster"
	"baton/internal/wire/agentapi"
	"baton/internal/wire/rpc"
)

const (
	service   = "baton.Node"
	nodeKey   = "baton-node"
	chunkSize = 64 << 10
)

type (
	logsIn struct {
		Task    cluster.ID          `json:"task"`
		Options agentapi.LogOptions `json:"options"`
	}
	imageIn struct {
		Ref string `json:"ref"`
	}
	imagesOut struct {
		Images []agentapi.Image `json:"images"`
	}
	loadIn struct {
		Data []byte `json:"data,omitempty"`
		End  bool   `json:"end,omitempty"` // the archive is complete: without it, what came is thrown away
	}
	loadOut struct {
		Refs []string `json:"refs"`
	}
	diagnoseIn struct {
		Ways []agentapi.Way `json:"ways,omitempty"`
	}
	empty = agentapi.Empty
)

// Find gives the services of the node that a call is for. The zero id stands for the node that serves itself.
type Find func(ctx context.Context, node cluster.ID) (agentapi.NodeServices, error)

// Serve adds the services of the nodes that find knows to a server.
func Serve(s *grpc.Server, find Find) {
	t := rpc.NewTable(service)
	rpc.Unary(t, "Usage", func(ctx context.Context, _ empty) (agentapi.Usage, error) {
		n, err := target(ctx, find)
		if err != nil {
			return agentapi.Usage{}, err
		}
		return n.Usage(ctx)
	})
	rpc.Unary(t, "Images", func(ctx context.Context, _ empty) (imagesOut, error) {
		n, err := target(ctx, find)
		if err != nil {
			return imagesOut{}, err
		}
		list, err := n.Images(ctx)
		return imagesOut{list}, err
	})
	rpc.Unary(t, "RemoveImage", func(ctx context.Context, in imageIn) (empty, error) {
		n, err := target(ctx, find)
		if err != nil {
			return empty{}, err
		}
		return empty{}, n.RemoveImage(ctx, in.Ref)
	})
	rpc.Unary(t, "Diagnose", func(ctx context.Context, in diagnoseIn) (agentapi.Diagnosis, error) {
		n, err := target(ctx, find)
		if err != nil {
			return agentapi.Diagnosis{}, err
		}
		return n.Diagnose(ctx, in.Ways)
	})
	rpc.Streaming(t, "Logs", func(s rpc.Stream[logsIn, agentapi.LogLine]) error { return serveLogs(s, find) })
	rpc.Streaming(t, "LoadImage", func(s rpc.Stream[loadIn, loadOut]) error { return serveLoad(s, find) })
	rpc.Streaming(t, "Exec", func(s rpc.Stream[execIn, execOut]) error { return serveExec(s, find) })
	rpc.Streaming(t, "Dial", func(s rpc.Stream[dialIn, dialOut]) error { return serveDial(s, find) })
	t.Register(s)
}

// target is the node that the call names.
func target(ctx context.Context, find Find) (agentapi.NodeServices, error) {
	var id cluster.ID
	if md, ok := metadata.FromIncomingContext(ctx); ok && len(md.Get(nodeKey)) > 0 {
		var err error
		if id, err = cluster.ParseID(md.Get(nodeKey)[0]); err != nil {
			return nil, err
		}
	}
	return find(ctx, id)
}

func serveLogs(s rpc.Stream[logsIn, agentapi.LogLine], find Find) error {
	in, err := s.Recv()
	if err != nil {
		return err
	}
	n, err := target(s.Context(), find)
	if err != nil {
		return err
	}
	for line, err := range n.Logs(s.Context(), in.Task, in.Options) {
		if err != nil {
			return err
		}
		if err := s.Send(line); err != nil {
			return err
		}
	}
	return nil
}

func serveLoad(s rpc.Stream[loadIn, loadOut], find Find) error {
	n, err := target(s.Context(), find)
	if err != nil {
		return err
	}
	refs, err := n.LoadImage(s.Context(), &chunks{next: s.Recv})
	if err != nil {
		return err
	}
	return s.Send(loadOut{refs})
}

// chunks reads an archive that comes in pieces.
type chunks struct {
	next func() (loadIn, error)
	rest []byte
	end  bool
}

// Read implements io.Reader.
func (c *chunks) Read(p []byte) (int, error) {
	for len(c.rest) == 0 {
		if c.end {
			return 0, io.EOF
		}
		m, err := c.next()
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF // who sends it gave up
		}
		if err != nil {
			return 0, err
		}
		c.rest, c.end = m.Data, m.End
	}
	n := copy(p, c.rest)
	c.rest = c.rest[n:]
	return n, nil
}

// Client uses the services of one node.
type Client struct {
	conn grpc.ClientConnInterface
	node cluster.ID
}

var _ agentapi.NodeServices = Client{}

// NewClient uses conn, which leads to the node itself (zero id) or to a manager that passes calls on to it.
func NewClient(conn grpc.ClientConnInterface, node cluster.ID) Client { return Client{conn, node} }

func (c Client) context(ctx context.Context) context.Context {
	if c.node.IsZero() {
		return ctx
	}
	return metadata.AppendToOutgoingContext(ctx, nodeKey, c.node.String())
}

// said makes an error of a call what the node said.
func said(ctx context.Context, err error) error {
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return ctx.Err()
	}
	return errors.New(rpc.Message(err))
}

// Usage implements agentapi.NodeServices.
func (c Client) Usage(ctx context.Context) (agentapi.Usage, error) {
	out, err := rpc.Call[agentapi.Usage](c.context(ctx), c.conn, service, "Usage", empty{})
	return out, said(ctx, err)
}

// Images implements agentapi.NodeServices.
func (c Client) Images(ctx context.Context) ([]agentapi.Image, error) {
	out, err := rpc.Call[imagesOut](c.context(ctx), c.conn, service, "Images", empty{})
	return out.Images, said(ctx, err)
}

// RemoveImage implements agentapi.NodeServices.
func (c Client) RemoveImage(ctx context.Context, ref string) error {
	_, err := rpc.Call[empty](c.context(ctx), c.conn, service, "RemoveImage", imageIn{ref})
	return said(ctx, err)
}

// Diagnose implements agentapi.NodeServices.
func (c Client) Diagnose(ctx context.Context, ways []agentapi.Way) (agentapi.Diagnosis, error) {
	out, err := rpc.Call[agentapi.Diagnosis](c.context(ctx), c.conn, service, "Diagnose", diagnoseIn{ways})
	return out, said(ctx, err)
}

// Logs implements agentapi.NodeServices.
func (c Client) Logs(ctx context.Context, task cluster.ID, o agentapi.LogOptions) iter.Seq2[agentapi.LogLine, error] {
	return func(yield func(agentapi.LogLine, error) bool) {
		sub, cancel := context.WithCancel(ctx)
		defer cancel()
		s, err := rpc.Open[agentapi.LogLine, logsIn](c.context(sub), c.conn, service, "Logs")
		if err == nil {
			err = errors.Join(s.Send(logsIn{task, o}), s.CloseSend())
		}
		if err != nil {
			yield(agentapi.LogLine{}, said(ctx, err))
			return
		}
		for {
			line, err := s.Recv()
			if errors.Is(err, io.EOF) {
				return
			}
			if err != nil {
				yield(agentapi.LogLine{}, said(ctx, err))
				return
			}
			if !yield(line, nil) {
				return
			}
		}
	}
}

// LoadImage implements agentapi.NodeServices.
func (c Client) LoadImage(ctx context.Context, archive io.Reader) ([]string, error) {
	sub, cancel := context.WithCancel(ctx)
	defer cancel()
	s, err := rpc.Open[loadOut, loadIn](c.context(sub), c.conn, service, "LoadImage")
	if err != nil {
		return nil, said(ctx, err)
	}
	for {
		buf := make([]byte, chunkSize) // the message keeps it until it is sent
		n, rerr := fill(archive, buf)
		end := errors.Is(rerr, io.EOF)
		if rerr != nil && !end {
			return nil, rerr
		}
		// A send that fails tells only that the call is over; Recv tells why.
		if err := s.Send(loadIn{Data: buf[:n], End: end}); err != nil || end {
			break
		}
	}
	out, err := s.Recv()
	return out.Refs, said(ctx, err)
}

// fill reads until buf is full or r ends. Unlike io.ReadFull it does not make one error of the regular end and of one that
// came too early (io.ErrUnexpectedEOF), which is what is read of a sender that gave up.
func fill(r io.Reader, buf []byte) (int, error) {
	n := 0
	for n < len(buf) {
		m, err := r.Read(buf[n:])
		n += m
		if err != nil {
			return n, err
		}
	}
	return n, nil
}
