package client

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strings"
	"sync"

	"github.com/coder/websocket"

	"baton/client/api"
)

// stdinChunk is how much input travels in one message.
const stdinChunk = 32 << 10

// Execution is one command to run in a task.
type Execution struct {
	Stack, Target string
	Command       []string
	Env           []string
	User, Dir     string
	TTY           bool
	Width, Height uint16    // of the terminal
	Stdin         io.Reader // nil: none
	Stdout        io.Writer
	Stderr        io.Writer        // not used with TTY
	Resize        <-chan [2]uint16 // columns and rows; may be nil
}

// Exec runs a command in a task and returns its exit code. A Stdin that blocks in Read is left behind when the command ends:
// its goroutine ends with the next byte.
func (c *Client) Exec(ctx context.Context, e Execution) (int, error) {
	q := query{}.set("stack", e.Stack).set("user", e.User).set("dir", e.Dir).set("tty", e.TTY).set("stdin", e.Stdin != nil).
		set("width", e.Width).set("height", e.Height)
	q["command"], q["env"] = e.Command, e.Env
	if len(e.Env) == 0 {
		delete(q, "env")
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	r, err := c.request(ctx, http.MethodGet, path("tasks", e.Target, "exec"), q, nil)
	if err != nil {
		return 0, err
	}
	conn, resp, err := websocket.Dial(ctx, r.URL.String(), &websocket.DialOptions{HTTPClient: c.upgrade, HTTPHeader: r.Header})
	if err != nil {
		switch {
		case ctx.Err() != nil:
			return 0, ctx.Err()
		case resp != nil && resp.StatusCode >= 400:
			return 0, decodeError(resp)
		}
		return 0, c.unreachable(err)
	}
	defer func() { _ = conn.CloseNow() }()
	conn.SetReadLimit(lineMax)
	x := &session{conn: conn}
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	if e.Stdin != nil {
		// Not waited for: a terminal's Read returns only with the next key.
		go x.input(ctx, e.Stdin)
	}
	if e.Resize != nil {
		wg.Go(func() { x.resize(ctx, e.Resize) })
	}
	return x.output(ctx, c, e)
}

type session struct {
	conn *websocket.Conn
	mu   sync.Mutex
}

func (x *session) send(ctx context.Context, channel byte, payload []byte) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.conn.Write(ctx, websocket.MessageBinary, append([]byte{channel}, payload...))
}

func (x *session) input(ctx context.Context, r io.Reader) {
	buf := make([]byte, stdinChunk)
	for {
		n, err := r.Read(buf)
		if n > 0 && x.send(ctx, api.ExecStdin, buf[:n]) != nil {
			return
		}
		if err != nil {
			_ = x.send(ctx, api.ExecStdin, nil)
			return
		}
	}
}

func (x *session) resize(ctx context.Context, sizes <-chan [2]uint16) {
	for {
		select {
		case <-ctx.Done():
			return
		case s, ok := <-sizes:
			if !ok {
				return
			}
			b, _ := json.Marshal(map[string]uint16{"width": s[0], "height": s[1]})
			if x.send(ctx, api.ExecResize, b) != nil {
				return
			}
		}
	}
}

// output copies until the command's end is told.
func (x *session) output(ctx context.Context, c *Client, e Execution) (int, error) {
	for {
		_, b, err := x.conn.Read(ctx)
		if err != nil {
			if cerr := ctx.Err(); cerr != nil {
				return 0, cerr
			}
			return 0, c.unreachable(err)
		}
		f, err := api.ParseExecFrame(b)
		if err != nil {
			return 0, err
		}
		switch f.Channel {
		case api.ExecStdout:
			err = writeAll(e.Stdout, f.Payload)
		case api.ExecStderr:
			err = writeAll(e.Stderr, f.Payload)
		case api.ExecExit:
			if f.Exit.Error != "" {
				return 0, api.Errorf(api.CodeUnavailable, "%s", strings.TrimSpace(f.Exit.Error))
			}
			return f.Exit.Code, nil
		}
		if err != nil {
			return 0, err
		}
	}
}

func writeAll(w io.Writer, b []byte) error {
	if w == nil {
		return nil
	}
	_, err := w.Write(b)
	return err
}

func readJSON(r io.Reader, out any) error {
	if err := json.NewDecoder(io.LimitReader(r, answerMax)).Decode(out); err != nil {
		return errors.Join(api.Errorf(api.CodeUnreachable, "the answer was cut short"), err)
	}
	return nil
}
