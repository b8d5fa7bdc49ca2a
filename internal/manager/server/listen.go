package server

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/user"
	"strconv"
	"syscall"
	"time"
)

// socketGroup may use the API of a node, and so is as powerful as root on it.
const socketGroup = "baton"

// dialTimeout is how long a live server may take to accept before its socket counts as stale.
const dialTimeout = 2 * time.Second

// ListenUnix makes the API socket of a node: for root and the group baton (0660) when that group exists, else for its owner
// only (0600). A socket that somebody serves is an error; one that a dead process left is replaced. Closing the listener
// removes the socket.
func ListenUnix(path string) (net.Listener, error) {
	if err := removeStale(path); err != nil {
		return nil, err
	}
	// Others must not be able to connect between bind and chmod. The umask belongs to the whole process, so a directory of
	// our own with mode 0700 is used instead: made, bound in, renamed out of.
	dir, err := os.MkdirTemp(dirOf(path), ".api-")
	if err != nil {
		return nil, fmt.Errorf("make api socket %s: %w", path, err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	inner := dir + "/s"
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: inner, Net: "unix"})
	if err != nil {
		if len(inner) > 107 {
			return nil, fmt.Errorf("api socket %s: the path is longer than the 90 characters that a socket may have: choose a shorter data directory", path)
		}
		return nil, fmt.Errorf("make api socket %s: %w", path, err)
	}
	l.SetUnlinkOnClose(false)
	if err = protect(inner); err == nil {
		err = os.Rename(inner, path)
	}
	if err != nil {
		_ = l.Close()
		return nil, fmt.Errorf("make api socket %s: %w", path, err)
	}
	return &socket{UnixListener: l, path: path}, nil
}

// socket removes its path when it is closed, unless another server has taken the path since.
type socket struct {
	*net.UnixListener
	path string
}

func (s *socket) Close() error {
	err := s.UnixListener.Close()
	if !live(s.path) {
		_ = os.Remove(s.path)
	}
	return err
}

func removeStale(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("api socket %s: %w", path, err)
	}
	if info.Mode()&os.ModeSocket == 0 {
		return fmt.Errorf("api socket %s: there is a file of another kind: move it away", path)
	}
	if live(path) {
		return fmt.Errorf("api socket %s: another server is running with this data directory: stop it, or choose another --data-dir", path)
	}
	if err := os.Remove(path); err != nil {
		return fmt.Errorf("remove stale api socket: %w", err)
	}
	return nil
}

// live reports whether somebody listens. Anything but a refusal counts as somebody.
func live(path string) bool {
	c, err := net.DialTimeout("unix", path, dialTimeout)
	if err == nil {
		_ = c.Close()
		return true
	}
	return !errors.Is(err, syscall.ECONNREFUSED) && !errors.Is(err, fs.ErrNotExist)
}

func protect(path string) error {
	g, err := user.LookupGroup(socketGroup)
	if err != nil {
		return os.Chmod(path, 0o600)
	}
	gid, err := strconv.Atoi(g.Gid)
	if err != nil {
		return fmt.Errorf("group %s has id %q: %w", socketGroup, g.Gid, err)
	}
	if err := os.Chown(path, -1, gid); err != nil {
		// Not root and not a member: the owner alone then.
		return os.Chmod(path, 0o600)
	}
	return os.Chmod(path, 0o660)
}

func dirOf(path string) string {
	for i := len(path) - 1; i >= 0; i-- {
		if path[i] == '/' {
			return path[:max(i, 1)]
		}
	}
	return "."
}
