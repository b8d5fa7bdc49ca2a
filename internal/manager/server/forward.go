package server

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"sync"

	"github.com/coder/websocket"
	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"baton/client/api"
	"baton/internal/model/cluster"
	"baton/internal/wire/agentapi"
)

type connectIn struct {
	TargetPath
	Port uint16 `query:"port" required:"true" minimum:"1" doc:"TCP port in the task"`
}

type filesIn struct {
	TargetPath
	Path   string `query:"path" required:"true" doc:"absolute path in the task"`
	Write  bool   `query:"write" doc:"copy into the task"`
	Follow bool   `query:"follow" doc:"when the path is a symbolic link, copy what it leads to"`
	Owners bool   `query:"owners" doc:"keep uid and gid when writing"`
}

// filesRoute is a tar stream out of a task or into it, over a WebSocket like that of connect.
func (s *Server) filesRoute() {
	op := s.operation(operation{method: http.MethodGet, path: "/v1/tasks/{target}/files", id: "files", summary: "Copy files out of a task or into it; a WebSocket", tag: "tasks"})
	op.Description = "The messages are those of connect; what they carry is a tar stream. The server's end (an empty message) tells that all is there."
	op.Responses["101"] = &huma.Response{Description: "the copy has begun"}
	huma.Register(s.api, op, func(_ context.Context, in *filesIn) (*huma.StreamResponse, error) {
		o := agentapi.FilesOptions{Path: in.Path, Write: in.Write, Follow: in.Follow, Owners: in.Owners}
		return s.socket(in.TargetPath, "check the path", func(ctx context.Context, n agentapi.NodeServices, task cluster.ID) (agentapi.Conn, error) {
			return n.Files(ctx, task, o)
		}), nil
	})
}

// forwardRoute is one TCP connection to a task over a WebSocket.
func (s *Server) forwardRoute() {
	op := s.operation(operation{method: http.MethodGet, path: "/v1/tasks/{target}/connect", id: "connect", summary: "Connect to a TCP port of a task; a WebSocket", tag: "tasks"})
	op.Description = "Each binary message carries bytes as they are; an empty one ends its sender's direction, and the other goes on. " +
		"When nothing listens on the port, no WebSocket is opened."
	op.Responses["101"] = &huma.Response{Description: "the connection is open"}
	huma.Register(s.api, op, func(_ context.Context, in *connectIn) (*huma.StreamResponse, error) {
		mend := "check the port; `baton logs` tells whether it is open yet"
		return s.socket(in.TargetPath, mend, func(ctx context.Context, n agentapi.NodeServices, task cluster.ID) (agentapi.Conn, error) {
			return n.Dial(ctx, task, in.Port)
		}), nil
	})
}

// opener opens what a WebSocket is connected to.
type opener func(ctx context.Context, n agentapi.NodeServices, task cluster.ID) (agentapi.Conn, error)

func (s *Server) socket(target TargetPath, mend string, open opener) *huma.StreamResponse {
	return &huma.StreamResponse{Body: func(hc huma.Context) {
		r, w := humago.Unwrap(hc)
		ctx, done, err := s.openStream(r.Context())
		if err != nil {
			writeError(w, s.problem(err))
			return
		}
		defer done()
		if err := s.connect(ctx, w, r, target, mend, open); err != nil {
			writeError(w, s.problem(err))
		}
	}}
}

// connect returns an error only as long as no WebSocket was opened.
func (s *Server) connect(ctx context.Context, w http.ResponseWriter, r *http.Request, in TargetPath, mend string, open opener) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	snap := s.cfg.Store.Snapshot()
	t, err := resolver{snap: snap, hint: in.Stack}.readiest(in.Target)
	if err != nil {
		return err
	}
	doc, ns, err := s.reach(snap, t)
	if err != nil {
		return err
	}
	node, err := open(ctx, ns, t.ID)
	if err != nil {
		return api.Errorf(api.CodeUnavailable, "%s on %s: %s", doc.Label(), doc.NodeName, execError(err)).WithMend("%s", mend)
	}
	defer func() { _ = node.Close() }()
	conn, err := websocket.Accept(w, r, nil)
	if err != nil {
		// Accept has answered already.
		return nil
	}
	defer func() { _ = conn.CloseNow() }()
	conn.SetReadLimit(frameMax)
	relay(ctx, cancel, conn, node)
	return nil
}

// readiest is the task that target names. For a service it is a ready one, if there is any.
func (r resolver) readiest(target string) (*cluster.Task, error) {
	t, err := r.any(target)
	if err != nil {
		return nil, err
	}
	if t.kind == cluster.KindService {
		var best *cluster.Task
		for task := range r.snap.TasksByService(t.service.ID) {
			if task.Ready && task.Desired == cluster.DesiredRun && (best == nil || task.Slot < best.Slot) {
				best = task
			}
		}
		if best != nil {
			return best, nil
		}
	}
	return r.task(target)
}

// relay copies both ways until both are at their end, or one of them broke.
func relay(ctx context.Context, cancel context.CancelFunc, conn *websocket.Conn, node agentapi.Conn) {
	var wg sync.WaitGroup
	var errIn error
	wg.Go(func() {
		if errIn = fromSocket(ctx, conn, node); errIn != nil {
			cancel() // half of what was said must not pass for all of it
			_ = node.Close()
		}
	})
	errOut := toSocket(ctx, conn, node)
	if errOut != nil {
		// The client gets the reason before it can see that the connection is gone.
		_ = conn.Close(websocket.StatusInternalError, reason(errOut))
		cancel()
		_ = node.Close()
	}
	wg.Wait()
	if errIn == nil && errOut == nil {
		_ = conn.Close(websocket.StatusNormalClosure, "")
	}
}

func fromSocket(ctx context.Context, conn *websocket.Conn, node agentapi.Conn) error {
	for {
		_, b, err := conn.Read(ctx)
		if err != nil {
			return err
		}
		if len(b) == 0 {
			_ = node.CloseWrite() // as above
			// A client that only listens from now on may go away while the node has nothing to say: somebody must notice.
			context.AfterFunc(conn.CloseRead(ctx), func() { _ = node.Close() })
			return nil
		}
		if _, err := node.Write(b); err != nil {
			return nil // the node no longer listens: what it says in the other direction tells why
		}
	}
}

func toSocket(ctx context.Context, conn *websocket.Conn, node io.Reader) error {
	buf := make([]byte, frameMax)
	for {
		n, err := node.Read(buf)
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

// reasonMax is the room for words in a WebSocket's end.
const reasonMax = 120

func reason(err error) string {
	s := execError(err)
	return strings.ToValidUTF8(s[:min(len(s), reasonMax)], "")
}
