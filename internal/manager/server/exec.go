package server

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"sync"
	"time"

	"github.com/coder/websocket"
	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"baton/client/api"
	"baton/internal/manager/store"
	"baton/internal/model/cluster"
	"baton/internal/wire/agentapi"
)

const (
	frameMax   = 64 << 10 // bytes of one frame of exec
	argvMax    = 256
	resizeWait = 4 // window sizes that may wait; only the last one matters
	closeWait  = 5 * time.Second
)

type execIn struct {
	TargetPath
	Command []string `query:"command,explode" required:"true" doc:"the command and its arguments"`
	Env     []string `query:"env,explode" doc:"KEY=VALUE"`
	User    string   `query:"user"`
	Dir     string   `query:"dir"`
	TTY     bool     `query:"tty"`
	Stdin   bool     `query:"stdin"`
	Width   uint16   `query:"width"`
	Height  uint16   `query:"height"`
}

// execRoute runs a command in a task over a WebSocket. Every message is binary; its first byte is the channel (api.Exec…).
func (s *Server) execRoute() {
	op := s.operation(operation{method: http.MethodGet, path: "/v1/tasks/{target}/exec", id: "exec", summary: "Run a command in a task; a WebSocket", tag: "tasks"})
	op.Description = "Each binary message is one byte of channel and the rest its payload: 0 standard input (empty: its end), 1 standard output, " +
		"2 standard error, 3 a window size as JSON {\"width\",\"height\"}, 4 the end as JSON {\"code\"} or {\"error\"}."
	op.Responses["101"] = &huma.Response{Description: "the WebSocket is open"}
	huma.Register(s.api, op, func(_ context.Context, in *execIn) (*huma.StreamResponse, error) {
		return &huma.StreamResponse{Body: func(hc huma.Context) {
			r, w := humago.Unwrap(hc)
			ctx, done, err := s.openStream(r.Context())
			if err != nil {
				writeError(w, s.problem(err))
				return
			}
			defer done()
			if err := s.exec(ctx, w, r, in); err != nil {
				writeError(w, s.problem(err))
			}
		}}, nil
	})
}

// reach is what there is to say of a task that has not ended, and the way to its node.
func (s *Server) reach(snap store.Snapshot, t *cluster.Task) (api.Task, agentapi.NodeServices, error) {
	doc := reader{snap}.task(t)
	if t.Observed.Terminal() || t.Node.IsZero() {
		return doc, nil, api.Errorf(api.CodeUnavailable, "task %s is %s", doc.Label(), t.Observed).WithMend("ask `baton why %s`", doc.Label())
	}
	ns, err := s.services(t.Node, doc.NodeName)
	return doc, ns, err
}

// exec returns an error only as long as no WebSocket was opened.
func (s *Server) exec(ctx context.Context, w http.ResponseWriter, r *http.Request, in *execIn) error {
	if len(in.Command) == 0 || len(in.Command) > argvMax || in.Command[0] == "" {
		return api.Errorf(api.CodeInvalid, "no command was given, or one of more than %d words", argvMax).At("command")
	}
	snap := s.cfg.Store.Snapshot()
	t, err := resolver{snap: snap, hint: in.Stack}.task(in.Target)
	if err != nil {
		return err
	}
	_, ns, err := s.reach(snap, t)
	if err != nil {
		return err
	}
	conn, err := websocket.Accept(w, r, nil)
	if err != nil {
		// Accept has answered already.
		return nil
	}
	conn.SetReadLimit(frameMax + 1)
	x := &execution{conn: conn, in: in}
	defer func() { _ = conn.CloseNow() }()
	x.run(ctx, func(ctx context.Context, e agentapi.Execution) (int, error) { return ns.Exec(ctx, t.ID, e) })
	return nil
}

// execution is one command over a WebSocket.
type execution struct {
	conn *websocket.Conn
	in   *execIn
	mu   sync.Mutex // one writer at a time
}

// run starts the command and copies between it and the connection, until the command ends or the client is gone.
func (x *execution) run(ctx context.Context, start func(context.Context, agentapi.Execution) (int, error)) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	resize := make(chan [2]uint16, resizeWait)
	e := agentapi.Execution{
		Argv: x.in.Command, Env: x.in.Env, User: x.in.User, Dir: x.in.Dir, TTY: x.in.TTY,
		Width: x.in.Width, Height: x.in.Height, Stdout: x.writer(ctx, api.ExecStdout), Resize: resize,
	}
	if !x.in.TTY {
		e.Stderr = x.writer(ctx, api.ExecStderr)
	}
	stdin, feed := io.Pipe()
	if x.in.Stdin {
		e.Stdin = stdin
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		defer close(resize)
		err := x.receive(ctx, feed, resize)
		_ = feed.CloseWithError(err)
		if err != nil {
			cancel() // the client is gone: so is the command's reason
		}
	})
	code, err := start(ctx, e)
	_ = stdin.Close() // a writer that nobody reads from any more must not block
	if err == nil {
		x.sendExit(ctx, api.ExecExitStatus{Code: code})
	} else {
		x.sendExit(ctx, api.ExecExitStatus{Error: execError(err)})
	}
	_ = x.conn.Close(websocket.StatusNormalClosure, "")
	cancel()
	wg.Wait()
}

func execError(err error) string {
	if errors.Is(err, context.Canceled) {
		return "the connection was lost"
	}
	return err.Error()
}

// receive takes the client's messages until the connection ends.
func (x *execution) receive(ctx context.Context, stdin io.WriteCloser, resize chan<- [2]uint16) error {
	open := true
	for {
		_, b, err := x.conn.Read(ctx)
		if err != nil {
			return err
		}
		f, err := api.ParseExecFrame(b)
		if err != nil {
			return err
		}
		switch f.Channel {
		case api.ExecStdin:
			if !open {
				continue
			}
			if len(f.Payload) == 0 {
				open = false
				_ = stdin.Close()
			} else if _, err := stdin.Write(f.Payload); err != nil {
				open = false // the command no longer reads; that is its affair
			}
		case api.ExecResize:
			select {
			case resize <- [2]uint16{f.Width, f.Height}:
			default: // the command is slow to follow; the next size will do
			}
		}
	}
}

func (x *execution) writer(ctx context.Context, channel byte) io.Writer {
	return writerFunc(func(p []byte) (int, error) {
		n := 0
		for len(p) > 0 {
			part := p[:min(len(p), frameMax)]
			if err := x.send(ctx, channel, part); err != nil {
				return n, err
			}
			n, p = n+len(part), p[len(part):]
		}
		return n, nil
	})
}

func (x *execution) send(ctx context.Context, channel byte, payload []byte) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.conn.Write(ctx, websocket.MessageBinary, append([]byte{channel}, payload...))
}

func (x *execution) sendExit(ctx context.Context, e api.ExecExitStatus) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeWait)
	defer cancel()
	b, _ := json.Marshal(e)
	_ = x.send(ctx, api.ExecExit, b)
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }
