package noderpc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"baton/internal/model/cluster"
	"baton/internal/wire/agentapi"
	"baton/internal/wire/rpc"
)

// execIn is one message to a command: Start first, then any of the others.
type execIn struct {
	Start  *execStart `json:"start,omitempty"`
	Stdin  []byte     `json:"stdin,omitempty"`
	End    bool       `json:"end,omitempty"` // of standard input
	Resize [2]uint16  `json:"resize,omitzero"`
}

type execStart struct {
	Task   cluster.ID `json:"task"`
	Argv   []string   `json:"argv"`
	Env    []string   `json:"env,omitempty"`
	User   string     `json:"user,omitempty"`
	Dir    string     `json:"dir,omitempty"`
	TTY    bool       `json:"tty,omitempty"`
	Width  uint16     `json:"width,omitempty"`
	Height uint16     `json:"height,omitempty"`
	Stdin  bool       `json:"stdin,omitempty"`
}

// execOut is one message from a command; Code is the last.
type execOut struct {
	Stdout []byte `json:"stdout,omitempty"`
	Stderr []byte `json:"stderr,omitempty"`
	Code   *int   `json:"code,omitempty"`
}

// resizeWait is how many window sizes may wait; only the last one matters.
const resizeWait = 4

func serveExec(s rpc.Stream[execIn, execOut], find Find) error {
	first, err := s.Recv()
	if err != nil {
		return err
	}
	if first.Start == nil {
		return errors.New("exec: the first message names no command")
	}
	n, err := target(s.Context(), find)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(s.Context())
	defer cancel()
	in := first.Start
	var mu sync.Mutex // one sender at a time
	send := func(m execOut) error {
		mu.Lock()
		defer mu.Unlock()
		return s.Send(m)
	}
	resize := make(chan [2]uint16, resizeWait)
	stdin, feed := io.Pipe()
	e := agentapi.Execution{
		Argv: in.Argv, Env: in.Env, User: in.User, Dir: in.Dir, TTY: in.TTY, Width: in.Width, Height: in.Height, Resize: resize,
		Stdout: writer(func(p []byte) error { return send(execOut{Stdout: p}) }),
	}
	if !in.TTY {
		e.Stderr = writer(func(p []byte) error { return send(execOut{Stderr: p}) })
	}
	if in.Stdin {
		e.Stdin = stdin
	}
	// It ends with the stream at the latest, which is when this function has returned: nobody can wait for it here.
	go func() {
		defer close(resize)
		err := takeInput(s, feed, resize)
		_ = feed.CloseWithError(err)
		if err != nil {
			cancel() // the caller is gone: so is the command's reason
		}
	}()
	code, err := n.Exec(ctx, in.Task, e)
	_ = stdin.Close() // a writer that nobody reads from any more must not block
	if err != nil {
		return err
	}
	return send(execOut{Code: &code})
}

// takeInput feeds the command until its caller has closed the stream.
func takeInput(s rpc.Stream[execIn, execOut], feed *io.PipeWriter, resize chan<- [2]uint16) error {
	for {
		m, err := s.Recv()
		if err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		if len(m.Stdin) > 0 {
			_, _ = feed.Write(m.Stdin) // a command that no longer reads is its own affair
		}
		if m.End {
			_ = feed.Close()
		}
		if m.Resize != [2]uint16{} {
			select {
			case resize <- m.Resize:
			default: // the command is slow to follow; the next size will do
			}
		}
	}
}

// writer sends what is written in pieces.
type writer func([]byte) error

// Write implements io.Writer.
func (w writer) Write(p []byte) (int, error) {
	n := 0
	for len(p) > 0 {
		part := p[:min(len(p), chunkSize)]
		if err := w(append([]byte(nil), part...)); err != nil {
			return n, err
		}
		n, p = n+len(part), p[len(part):]
	}
	return n, nil
}

// Exec implements agentapi.NodeServices.
func (c Client) Exec(ctx context.Context, task cluster.ID, e agentapi.Execution) (int, error) {
	sub, cancel := context.WithCancel(ctx)
	defer cancel()
	s, err := rpc.Open[execOut, execIn](c.context(sub), c.conn, service, "Exec")
	if err != nil {
		return 0, said(ctx, err)
	}
	var mu sync.Mutex // one sender at a time
	send := func(m execIn) error {
		mu.Lock()
		defer mu.Unlock()
		return s.Send(m)
	}
	start := &execStart{
		Task: task, Argv: e.Argv, Env: e.Env, User: e.User, Dir: e.Dir, TTY: e.TTY, Width: e.Width, Height: e.Height, Stdin: e.Stdin != nil,
	}
	if err := send(execIn{Start: start}); err == nil {
		// Reading from the user may take until their next key: it is left behind when the command has ended.
		if e.Stdin != nil {
			go giveInput(e.Stdin, send)
		}
		if e.Resize != nil {
			go func() {
				for {
					select {
					case size, ok := <-e.Resize:
						if !ok || send(execIn{Resize: size}) != nil {
							return
						}
					case <-sub.Done():
						return
					}
				}
			}()
		}
	}
	for {
		m, err := s.Recv()
		switch {
		case errors.Is(err, io.EOF):
			return 0, errors.New("exec: the node ended the call without an exit code")
		case err != nil:
			return 0, said(ctx, err)
		case m.Code != nil:
			return *m.Code, nil
		}
		if err := output(e, m); err != nil {
			return 0, fmt.Errorf("exec: %w", err)
		}
	}
}

func output(e agentapi.Execution, m execOut) error {
	if len(m.Stdout) > 0 && e.Stdout != nil {
		if _, err := e.Stdout.Write(m.Stdout); err != nil {
			return err
		}
	}
	if len(m.Stderr) > 0 && e.Stderr != nil {
		if _, err := e.Stderr.Write(m.Stderr); err != nil {
			return err
		}
	}
	return nil
}

func giveInput(r io.Reader, send func(execIn) error) {
	for {
		buf := make([]byte, chunkSize)
		n, err := r.Read(buf)
		if n > 0 && send(execIn{Stdin: buf[:n]}) != nil {
			return
		}
		if err != nil {
			_ = send(execIn{End: true}) // the call may be over: then there is nobody to tell
			return
		}
	}
}
