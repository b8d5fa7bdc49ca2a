package runtime

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"baton/internal/archive"
	"baton/internal/model/cluster"
	"baton/internal/wire/agentapi"
)

// inRoot resolves paths as the task does, absolute links included, and never leaves its root. Links of /proc, which lead
// anywhere, are refused.
const inRoot = unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS

// Files opens a copy out of a running task or into it. It needs nothing in the container, and sees its volumes as the task does.
func (r *Runtime) Files(ctx context.Context, id cluster.ID, o agentapi.FilesOptions) (agentapi.Conn, error) {
	if !path.IsAbs(o.Path) {
		return nil, fmt.Errorf("copy: %q is not an absolute path", o.Path)
	}
	root, err := r.openOf(ctx, id, "root", unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return nil, fmt.Errorf("copy: task %s: %w", id.Short(), err)
	}
	defer func() { _ = unix.Close(root) }()
	open := readFiles
	if o.Write {
		open = writeFiles
	}
	c, err := open(ctx, root, o)
	if err != nil {
		return nil, fmt.Errorf("copy: %s in task %s: %w", o.Path, id.Short(), err)
	}
	return c, nil
}

func openIn(root int, name string, flags uint64) (*os.File, error) {
	fd, err := unix.Openat2(root, name, &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC | flags, Resolve: inRoot})
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}

func readFiles(ctx context.Context, root int, o agentapi.FilesOptions) (agentapi.Conn, error) {
	var flags uint64
	if !o.Follow {
		flags = unix.O_NOFOLLOW
	}
	f, err := openIn(root, o.Path, flags)
	if err != nil {
		return nil, err
	}
	name := path.Base(o.Path)
	if name == "/" {
		name = "."
	}
	ctx, cancel := context.WithCancel(ctx)
	out, feed := io.Pipe()
	c := &filesConn{out: out, cancel: cancel, ended: make(chan struct{})}
	go func() {
		defer close(c.ended)
		defer func() { _ = f.Close() }()
		_ = feed.CloseWithError(archive.Pack(ctx, feed, f, name))
	}()
	return c, nil
}

func writeFiles(ctx context.Context, root int, o agentapi.FilesOptions) (agentapi.Conn, error) {
	dir, rename := o.Path, ""
	f, err := openIn(root, dir, unix.O_DIRECTORY)
	if (errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR)) && !strings.HasSuffix(o.Path, "/") {
		dir, rename = path.Split(o.Path)
		f, err = openIn(root, dir, unix.O_DIRECTORY)
	}
	if err != nil {
		return nil, fmt.Errorf("there is no directory %s: %w", dir, err)
	}
	defer func() { _ = f.Close() }()
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &st); err == nil && st.Flags&unix.ST_RDONLY != 0 {
		return nil, fmt.Errorf("%s is read-only there; copy to a volume or tmpfs of the task", dir)
	}
	at, err := os.OpenRoot(fmt.Sprintf("/proc/self/fd/%d", f.Fd()))
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	in, feed := io.Pipe()
	out, result := io.Pipe()
	c := &filesConn{out: out, in: feed, cancel: cancel, ended: make(chan struct{})}
	go func() {
		defer close(c.ended)
		defer func() { _ = at.Close() }()
		err := archive.Unpack(ctx, at, in, archive.Options{Rename: rename, Owners: o.Owners})
		if err == nil {
			_, err = io.Copy(io.Discard, in) // what fills the last block
		}
		_ = result.CloseWithError(err) // first: who writes must find the reason, not only that nobody reads
		_ = in.CloseWithError(io.ErrClosedPipe)
	}()
	return c, nil
}

// filesConn is a copy that goes on. In is nil when nothing is written.
type filesConn struct {
	out    *io.PipeReader
	in     *io.PipeWriter
	cancel context.CancelFunc
	ended  chan struct{}
}

// Read implements io.Reader.
func (c *filesConn) Read(p []byte) (int, error) { return c.out.Read(p) }

// Write implements io.Writer.
func (c *filesConn) Write(p []byte) (int, error) {
	if c.in == nil {
		return 0, errors.New("copy: nothing can be written to a copy out of a task")
	}
	return c.in.Write(p)
}

// CloseWrite tells that all was written.
func (c *filesConn) CloseWrite() error {
	if c.in == nil {
		return nil
	}
	return c.in.Close()
}

// Close ends a copy that is not complete, and waits until what it made in part is gone.
func (c *filesConn) Close() error {
	c.cancel()
	if c.in == nil {
		_ = c.out.Close()
	} else {
		_ = c.in.CloseWithError(context.Canceled) // after CloseWrite it changes nothing
	}
	<-c.ended
	return nil
}
