package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"baton/client"
	"baton/client/api"
	"baton/internal/archive"
)

func (a *app) cpCmd() *cobra.Command {
	var o client.Copy
	cmd := &cobra.Command{
		Use: "cp TARGET:PATH LOCAL | cp LOCAL TARGET:PATH", Args: cobra.ExactArgs(2),
		Short: "Copy files and directories out of a running task or into it, on whichever node it is",
		Example: `  baton cp web:/etc/nginx ./nginx     a directory of any running task of web
  baton cp app.conf web/2:/etc/app/   a file, into one replica
  baton cp db:/data - > data.tar      a tar stream
  baton cp ./site/. web:/srv          what is in a directory`,
		RunE: func(cmd *cobra.Command, args []string) error { return a.cp(cmd.Context(), args[0], args[1], o) },
	}
	cmd.Flags().BoolVarP(&o.Owners, "archive", "a", false, "keep uid and gid")
	cmd.Flags().BoolVarP(&o.Follow, "follow-link", "L", false, "when the source is a symbolic link, copy what it leads to")
	return cmd
}

// inTask reads TARGET:PATH. A local name with a colon is written with ./ before it.
func inTask(s string) (target, name string, ok bool) {
	if strings.HasPrefix(s, ".") || strings.HasPrefix(s, "/") {
		return "", "", false
	}
	target, name, ok = strings.Cut(s, ":")
	if ok && !strings.HasPrefix(name, "/") {
		name = "/" + name
	}
	return target, name, ok && target != ""
}

func (a *app) cp(ctx context.Context, from, to string, o client.Copy) error {
	source, sourcePath, out := inTask(from)
	dest, destPath, in := inTask(to)
	if out == in {
		return api.Errorf(api.CodeInvalid, "one of %q and %q must be in a task, the other here", from, to).WithMend("write the one in the task as TARGET:PATH, like web:/etc/hosts")
	}
	c, err := a.dial()
	if err != nil {
		return err
	}
	if o.Stack, err = a.hint(ctx); err != nil {
		return err
	}
	o.Target, o.Path, o.Write = source, sourcePath, in
	work := func(s *stream) error { return a.receive(ctx, s, to, o.Owners) }
	if in {
		o.Target, o.Path = dest, destPath
		work = func(s *stream) error { return a.send(ctx, s, from, o.Follow) }
	}
	return a.transfer(ctx, c, o, work)
}

// transfer runs the copy, with work at this end of it.
func (a *app) transfer(ctx context.Context, c *client.Client, o client.Copy, work func(*stream) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	here, there := streamPair()
	if _, ok := terminal(a.err); ok && !a.quiet {
		defer showCopied(a.err, &here.copied)()
	}
	ended := make(chan error, 1)
	go func() {
		err := work(here)
		here.end(err)
		ended <- err
	}()
	err := c.Files(ctx, o, there)
	there.end(err)
	werr := <-ended
	var e *api.Error
	if errors.As(err, &e) || werr == nil || errors.Is(werr, io.ErrClosedPipe) {
		return err // the other end's reason comes before what it led to here
	}
	return werr
}

// stream is one end of a connection in memory.
type stream struct {
	*io.PipeReader
	out    *io.PipeWriter
	copied atomic.Int64 // bytes, both ways
}

func streamPair() (*stream, *stream) {
	r1, w1 := io.Pipe()
	r2, w2 := io.Pipe()
	return &stream{PipeReader: r1, out: w2}, &stream{PipeReader: r2, out: w1}
}

func (s *stream) Read(p []byte) (int, error) {
	n, err := s.PipeReader.Read(p)
	s.copied.Add(int64(n))
	return n, err
}

func (s *stream) Write(p []byte) (int, error) {
	n, err := s.out.Write(p)
	s.copied.Add(int64(n))
	return n, err
}

func (s *stream) CloseWrite() error { return s.out.Close() }
func (s *stream) Close() error {
	s.end(io.ErrClosedPipe)
	return nil
}

// end ends both directions; the other end reads err, or that all was said.
func (s *stream) end(err error) {
	_ = s.out.CloseWithError(err)
	_ = s.PipeReader.CloseWithError(err)
}

func (a *app) send(ctx context.Context, s *stream, name string, follow bool) error {
	if name == "-" {
		if _, err := io.Copy(s, a.in); err != nil {
			return err
		}
	} else {
		flags := unix.O_PATH | unix.O_CLOEXEC
		if !follow {
			flags |= unix.O_NOFOLLOW
		}
		fd, err := unix.Open(name, flags, 0)
		if err != nil {
			return api.Errorf(api.CodeInvalid, "%s", err).At(name).WithMend("give a file or directory, or - for a tar stream on standard input")
		}
		f := os.NewFile(uintptr(fd), name)
		defer func() { _ = f.Close() }()
		base := filepath.Base(name)
		if strings.HasSuffix(name, "/.") {
			base = "."
		} else if abs, err := filepath.Abs(name); err == nil && (base == "." || base == "..") {
			base = filepath.Base(abs)
		}
		if err := archive.Pack(ctx, s, f, base); err != nil {
			return err
		}
	}
	if err := s.CloseWrite(); err != nil {
		return err
	}
	_, err := io.Copy(io.Discard, s) // its end tells that all is there
	return err
}

func (a *app) receive(ctx context.Context, s *stream, name string, owners bool) error {
	if err := s.CloseWrite(); err != nil {
		return err
	}
	if name == "-" {
		_, err := io.Copy(a.out, s)
		return err
	}
	dir, rename := name, ""
	if info, err := os.Stat(name); (errors.Is(err, fs.ErrNotExist) || err == nil && !info.IsDir()) && !strings.HasSuffix(name, "/") {
		dir, rename = path.Split(name)
	}
	root, err := os.OpenRoot(filepath.Clean(dir))
	if err != nil {
		return api.Errorf(api.CodeInvalid, "%s", cause(err)).At(dir).WithMend("make the directory first, or give another")
	}
	defer func() { _ = root.Close() }()
	if err := archive.Unpack(ctx, root, s, archive.Options{Rename: rename, Owners: owners}); err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, s)
	return err
}

// copiedPause is how often a terminal is told how far a copy is.
const copiedPause = 250 * time.Millisecond

// showCopied keeps one line of a terminal at how much was copied, until the returned function takes it away.
func showCopied(w io.Writer, copied *atomic.Int64) func() {
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		tick := time.NewTicker(copiedPause)
		defer tick.Stop()
		for {
			select {
			case <-stop:
				fmt.Fprint(w, "\r\x1b[K")
				return
			case <-tick.C:
				fmt.Fprintf(w, "\r\x1b[Kcopied %s", size(copied.Load()))
			}
		}
	})
	return func() {
		close(stop)
		wg.Wait()
	}
}
