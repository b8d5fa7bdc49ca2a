package noderpc

import (
	"context"
	"errors"
	"io"
	"sync"

	"baton/internal/model/cluster"
	"baton/internal/wire/agentapi"
	"baton/internal/wire/rpc"
)

// dialIn is one message to a connection: Start first, then any of the others.
type dialIn struct {
	Start *dialStart `json:"start,omitempty"`
	Data  []byte     `json:"data,omitempty"`
	End   bool       `json:"end,omitempty"` // of this direction
}

type dialStart struct {
	Task cluster.ID `json:"task"`
	Port uint16     `json:"port,omitempty"`
	// Files makes it a copy, which is a connection to the tree of files.
	Files *agentapi.FilesOptions `json:"files,omitempty"`
}

func (d dialStart) open(ctx context.Context, n agentapi.NodeServices) (agentapi.Conn, error) {
	if d.Files != nil {
		return n.Files(ctx, d.Task, *d.Files)
	}
	return n.Dial(ctx, d.Task, d.Port)
}

// dialOut is one message from a connection: Open first, then any of the others.
type dialOut struct {
	Open bool   `json:"open,omitempty"`
	Data []byte `json:"data,omitempty"`
	End  bool   `json:"end,omitempty"` // of this direction
}

func serveDial(s rpc.Stream[dialIn, dialOut], find Find) error {
	first, err := s.Recv()
	if err != nil {
		return err
	}
	if first.Start == nil {
		return errors.New("dial: the first message names no port")
	}
	n, err := target(s.Context(), find)
	if err != nil {
		return err
	}
	conn, err := first.Start.open(s.Context(), n)
	if err != nil {
		return err
	}
	// A connection that neither side uses ends with its caller, too.
	stop := context.AfterFunc(s.Context(), func() { _ = conn.Close() })
	defer func() {
		if stop() {
			_ = conn.Close()
		}
	}()
	if err := s.Send(dialOut{Open: true}); err != nil {
		return err
	}
	said := make(chan error, 1)
	// It ends with the stream at the latest, which is when this function has returned: nobody can wait for it here.
	go func() {
		err := takeData(s, conn)
		if err != nil {
			_ = conn.Close() // half of what was said must not pass for all of it
		}
		said <- err
	}()
	if _, err := io.Copy(writer(func(p []byte) error { return s.Send(dialOut{Data: p}) }), readOnly{conn}); err != nil {
		return err
	}
	if err := s.Send(dialOut{End: true}); err != nil {
		return err
	}
	select {
	case err := <-said:
		return err
	case <-s.Context().Done():
		return s.Context().Err()
	}
}

// readOnly hides the shortcuts of a connection, which would read more than a chunk at a time.
type readOnly struct{ io.Reader }

// takeData writes what the caller says until it ends its direction.
func takeData(s rpc.Stream[dialIn, dialOut], conn agentapi.Conn) error {
	for {
		m, err := s.Recv()
		if errors.Is(err, io.EOF) {
			return io.ErrUnexpectedEOF // the caller did not end its direction
		}
		if err != nil {
			return err
		}
		if len(m.Data) > 0 {
			if _, err := conn.Write(m.Data); err != nil {
				return err
			}
		}
		if m.End {
			return conn.CloseWrite()
		}
	}
}

// Dial implements agentapi.NodeServices.
func (c Client) Dial(ctx context.Context, task cluster.ID, port uint16) (agentapi.Conn, error) {
	return c.open(ctx, dialStart{Task: task, Port: port})
}

// Files implements agentapi.NodeServices.
func (c Client) Files(ctx context.Context, task cluster.ID, o agentapi.FilesOptions) (agentapi.Conn, error) {
	return c.open(ctx, dialStart{Task: task, Files: &o})
}

func (c Client) open(ctx context.Context, start dialStart) (agentapi.Conn, error) {
	sub, cancel := context.WithCancel(ctx)
	s, err := rpc.Open[dialOut, dialIn](c.context(sub), c.conn, service, "Dial")
	if err != nil {
		cancel()
		return nil, said(ctx, err)
	}
	// A Send that fails leaves the reason to Recv.
	_ = s.Send(dialIn{Start: &start})
	m, err := s.Recv()
	if err == nil && !m.Open {
		err = errors.New("dial: the node's first message does not tell that the connection is open")
	}
	if err != nil {
		err = said(ctx, err)
		cancel()
		return nil, err
	}
	return &conn{ctx: ctx, cancel: cancel, stream: s}, nil
}

// conn is a connection of a node. It owns ctx: that of the call which it is.
type conn struct {
	ctx    context.Context
	cancel context.CancelFunc
	stream rpc.Stream[dialOut, dialIn]
	mu     sync.Mutex // one sender at a time
	rest   []byte
	end    bool
}

// Read implements io.Reader.
func (c *conn) Read(p []byte) (int, error) {
	for len(c.rest) == 0 {
		if c.end {
			return 0, io.EOF
		}
		m, err := c.stream.Recv()
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF // the node did not end its direction
		}
		if err != nil {
			return 0, said(c.ctx, err)
		}
		c.rest, c.end = m.Data, m.End
	}
	n := copy(p, c.rest)
	c.rest = c.rest[n:]
	return n, nil
}

// Write implements io.Writer.
func (c *conn) Write(p []byte) (int, error) {
	return writer(func(b []byte) error { return c.send(dialIn{Data: b}) }).Write(p)
}

// CloseWrite ends this direction.
func (c *conn) CloseWrite() error { return c.send(dialIn{End: true}) }

func (c *conn) send(m dialIn) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.stream.Send(m)
}

// Close implements io.Closer.
func (c *conn) Close() error {
	c.cancel()
	return nil
}
