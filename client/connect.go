package client

import (
	"context"
	"errors"
	"io"
	"net/http"
	"sync"

	"github.com/coder/websocket"

	"baton/client/api"
)

// Connect makes a TCP connection to a port of a task, and copies between it and local until both directions have ended or one
// is broken. A direction that ends first is ended at the other side (CloseWrite), and the other goes on. It closes local. An error
// that comes before anything was copied is an *api.Error which tells why there is no connection.
func (c *Client) Connect(ctx context.Context, stack, target string, port uint16, local HalfCloser) error {
	return c.socket(ctx, path("tasks", target, "connect"), query{}.set("stack", stack).set("port", port), local)
}

// Copy says what Files copies.
type Copy struct {
	Stack, Target, Path string
	Write               bool // into the task
	Follow              bool // when Path is a symbolic link, read what it leads to
	Owners              bool // keep uid and gid when writing
}

// Files copies a tar stream out of a task, to local, or into it, from local. The end of the stream that comes from the task tells that
// all is there. It closes local.
func (c *Client) Files(ctx context.Context, o Copy, local HalfCloser) error {
	q := query{}.set("stack", o.Stack).set("path", o.Path).set("write", o.Write).set("follow", o.Follow).set("owners", o.Owners)
	return c.socket(ctx, path("tasks", o.Target, "files"), q, local)
}

func (c *Client) socket(ctx context.Context, path string, q query, local HalfCloser) error {
	defer func() { _ = local.Close() }()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	r, err := c.request(ctx, http.MethodGet, path, q, nil)
	if err != nil {
		return err
	}
	conn, resp, err := websocket.Dial(ctx, r.URL.String(), &websocket.DialOptions{HTTPClient: c.upgrade, HTTPHeader: r.Header})
	if err != nil {
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case resp != nil && resp.StatusCode >= 400:
			return decodeError(resp)
		}
		return c.unreachable(err)
	}
	defer func() { _ = conn.CloseNow() }()
	conn.SetReadLimit(lineMax)
	stop := context.AfterFunc(ctx, func() { _ = local.Close() }) // neither side need say anything
	defer stop()
	var wg sync.WaitGroup
	var errUp error
	wg.Go(func() {
		if errUp = say(ctx, conn, local); errUp != nil {
			cancel()
		}
	})
	errDown := hear(ctx, conn, local)
	if errDown != nil {
		cancel()
	}
	wg.Wait()
	if errUp == nil && errDown == nil {
		_ = conn.Close(websocket.StatusNormalClosure, "")
	}
	var end websocket.CloseError
	if errors.As(errDown, &end) && end.Code == websocket.StatusInternalError && end.Reason != "" {
		return api.Errorf(api.CodeUnavailable, "%s", end.Reason) // what broke it; the rest follows from that
	}
	return errors.Join(errUp, errDown)
}

// HalfCloser is a connection whose directions end on their own, like *net.TCPConn.
type HalfCloser interface {
	io.ReadWriteCloser
	CloseWrite() error
}

func say(ctx context.Context, conn *websocket.Conn, local io.Reader) error {
	buf := make([]byte, stdinChunk)
	for {
		n, err := local.Read(buf)
		if n > 0 {
			if err := conn.Write(ctx, websocket.MessageBinary, buf[:n]); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return conn.Write(ctx, websocket.MessageBinary, nil)
		}
		if err != nil {
			return err
		}
	}
}

func hear(ctx context.Context, conn *websocket.Conn, local HalfCloser) error {
	for {
		_, b, err := conn.Read(ctx)
		if err != nil {
			return err
		}
		if len(b) == 0 {
			return local.CloseWrite()
		}
		if _, err := local.Write(b); err != nil {
			return err
		}
	}
}
