package runtime

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"baton/internal/model/cluster"
	"baton/internal/node/agent"
)

const (
	// execOutputMax is how much of a probe's output is kept.
	execOutputMax = 4 << 10
	// execCleanMax bounds the end of a command whose caller has gone.
	execCleanMax = 10 * time.Second
	// What a shell returns for commands that it cannot run.
	codeNotRunnable = 126
	codeNotFound    = 127
)

// Exec implements agent.Executor. When ctx ends first, the command is killed and ctx's error returned with the output so far.
func (r *Runtime) Exec(ctx context.Context, id cluster.ID, argv []string) (int, []byte, error) {
	out := &firstBytes{max: execOutputMax}
	code, err := r.ExecStream(ctx, id, agent.Execution{Argv: argv, Stdout: out, Stderr: out})
	return code, out.bytes(), err
}

// ExecStream runs a command in the task's container, connected to e's streams, and returns its exit code. Writing to e.Stdout and e.Stderr
// has ended when it returns; reading from e.Stdin may take up to the next byte more. When ctx ends first, the command is killed.
func (r *Runtime) ExecStream(ctx context.Context, id cluster.ID, e agent.Execution) (int, error) {
	if len(e.Argv) == 0 || e.Argv[0] == "" {
		return 0, errors.New("exec: no command named")
	}
	c, err := r.client.LoadContainer(ctx, id.String())
	if err != nil {
		return 0, fmt.Errorf("exec in task %s: %w", id.Short(), err)
	}
	t, err := c.Task(ctx, nil)
	if err != nil {
		return 0, fmt.Errorf("exec in task %s: it is not running: %w", id.Short(), err)
	}
	ps, err := r.execSpec(ctx, c, e)
	if err != nil {
		return 0, fmt.Errorf("exec in task %s: %w", id.Short(), err)
	}
	name := "exec-" + cluster.NewID(nil).String()
	var eof chan struct{}
	if e.Stdin != nil && !e.TTY {
		eof = make(chan struct{})
		e.Stdin = &ending{Reader: e.Stdin, end: sync.OnceFunc(func() { close(eof) })}
	}
	p, err := t.Exec(ctx, name, ps, cio.NewCreator(cio.WithFIFODir(r.cfg.fifos()), streams(e)))
	if err != nil {
		return 0, fmt.Errorf("exec in task %s: %w", id.Short(), err)
	}
	code, err := r.runExec(ctx, p, e, eof)
	if err != nil {
		return 0, fmt.Errorf("exec in task %s: %w", id.Short(), err)
	}
	return code, nil
}

// streams connects what e has. A stream that e does not have is still read, as the command would otherwise block on it.
func streams(e agent.Execution) cio.Opt {
	return func(s *cio.Streams) {
		s.Terminal = e.TTY
		s.Stdin = e.Stdin
		s.Stdout, s.Stderr = e.Stdout, e.Stderr
		if s.Stdout == nil {
			s.Stdout = io.Discard
		}
		if e.TTY {
			s.Stderr = nil
		} else if s.Stderr == nil {
			s.Stderr = io.Discard
		}
	}
}

// execSpec is the container's own process with another command. A user, variables and directory of e's own take precedence.
func (r *Runtime) execSpec(ctx context.Context, c containerd.Container, e agent.Execution) (*specs.Process, error) {
	s, err := c.Spec(ctx)
	if err != nil {
		return nil, err
	}
	if e.User != "" {
		info, err := c.Info(ctx)
		if err != nil {
			return nil, err
		}
		caps := s.Process.Capabilities
		name, _, grouped := strings.Cut(e.User, ":")
		opts := []oci.SpecOpts{oci.WithUser(e.User)}
		if !grouped {
			opts = append(opts, oci.WithAdditionalGIDs(name))
		}
		for _, o := range opts {
			if err := o(ctx, r.client, &info, s); err != nil {
				return nil, fmt.Errorf("user %s: %w", e.User, err)
			}
		}
		caps.Permitted, caps.Effective = nil, nil
		if s.Process.User.UID == 0 {
			caps.Permitted, caps.Effective = caps.Bounding, caps.Bounding
		}
	}
	p := s.Process
	p.Args, p.Terminal, p.OOMScoreAdj = e.Argv, e.TTY, nil
	p.Env = environment(p.Env, e.Env, "", e.TTY)
	p.Cwd = first(e.Dir, p.Cwd)
	if e.TTY && e.Width > 0 && e.Height > 0 {
		p.ConsoleSize = &specs.Box{Width: uint(e.Width), Height: uint(e.Height)}
	}
	return p, nil
}

// ending tells when a reader has come to its end.
type ending struct {
	io.Reader
	end func()
}

func (e *ending) Read(p []byte) (int, error) {
	n, err := e.Reader.Read(p)
	if err != nil {
		e.end()
	}
	return n, err
}

// runExec starts the command and sees it to its end. eof says when its input has ended, nil for never.
func (r *Runtime) runExec(ctx context.Context, p containerd.Process, e agent.Execution, eof <-chan struct{}) (code int, err error) {
	defer func() {
		// The clock of the clean-up starts when there is something to clean up.
		clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), execCleanMax)
		defer cancel()
		_, derr := p.Delete(clean, containerd.WithProcessKill)
		if derr != nil && !errdefs.IsNotFound(derr) && err == nil {
			r.log.Debug("remove an ended command", "err", derr)
		}
	}()
	ended, err := p.Wait(context.WithoutCancel(ctx))
	if err != nil {
		return 0, err
	}
	if err := p.Start(ctx); err != nil {
		if code := startFailure(err); code != 0 {
			if e.Stdout != nil {
				_, _ = io.WriteString(e.Stdout, "baton: "+e.Argv[0]+": "+reasonOf(code)+"\n")
			}
			return code, nil
		}
		return 0, err
	}
	var beside sync.WaitGroup
	over := make(chan struct{})
	defer beside.Wait()
	defer close(over)
	if e.TTY {
		beside.Go(func() { resize(ctx, p, e, over) })
	} else {
		beside.Go(func() { closeInput(ctx, p, eof, over) })
	}
	select {
	case s := <-ended:
		code, _, err := s.Result()
		if err == nil {
			p.IO().Wait()
		}
		return int(code), err
	case <-ctx.Done():
		clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), execCleanMax)
		defer cancel()
		if err := p.Kill(clean, unix.SIGKILL); err != nil && !errdefs.IsNotFound(err) {
			return 0, errors.Join(ctx.Err(), err)
		}
		return 0, ctx.Err()
	}
}

// closeInput passes the end of the input on: the shim holds the command's end of it open until told.
func closeInput(ctx context.Context, p containerd.Process, eof, over <-chan struct{}) {
	select {
	case <-over:
	case <-eof:
		_ = p.CloseIO(ctx, containerd.WithStdinCloser)
	}
}

// resize follows the sizes of the user's window. Nothing else may reach a tty command's input: closing it would hang the terminal up.
func resize(ctx context.Context, p containerd.Process, e agent.Execution, over <-chan struct{}) {
	if e.Width > 0 && e.Height > 0 {
		_ = p.Resize(ctx, uint32(e.Width), uint32(e.Height))
	}
	for {
		select {
		case <-over:
			return
		case <-ctx.Done():
			return
		case s, ok := <-e.Resize:
			if !ok {
				return
			}
			_ = p.Resize(ctx, uint32(s[0]), uint32(s[1]))
		}
	}
}

// startFailure is the exit code of a command that the container does not have, or zero for any other trouble.
func startFailure(err error) int {
	switch msg := err.Error(); {
	case strings.Contains(msg, "executable file not found"), strings.Contains(msg, "no such file or directory"):
		return codeNotFound
	case strings.Contains(msg, "permission denied"), strings.Contains(msg, "exec format error"):
		return codeNotRunnable
	}
	return 0
}

func reasonOf(code int) string {
	if code == codeNotFound {
		return "not found in the container"
	}
	return "cannot be run"
}

// firstBytes keeps the first max bytes written to it. Writers may be concurrent.
type firstBytes struct {
	max int

	mu sync.Mutex
	b  []byte
}

func (f *firstBytes) Write(p []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.b = append(f.b, p[:min(len(p), f.max-len(f.b))]...)
	return len(p), nil
}

func (f *firstBytes) bytes() []byte {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]byte(nil), f.b...)
}
