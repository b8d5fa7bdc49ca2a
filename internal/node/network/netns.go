package network

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"baton/internal/model/cluster"
)

// openNS opens the namespace at path, or that of this process.
func openNS(path string) (netns.NsHandle, error) {
	if path == "" {
		path = "/proc/self/ns/net"
	}
	h, err := netns.GetFromPath(path)
	if err != nil {
		return h, fmt.Errorf("network namespace %s: %w", path, err)
	}
	return h, nil
}

// within runs f on a thread that has joined ns. Sockets that f opens stay in ns; f must not start goroutines that count on
// being there. When the thread cannot come back, it stays locked and ends with the goroutine, so nobody else gets it.
func within(ns netns.NsHandle, f func() error) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		home, err := netns.GetFromPath("/proc/thread-self/ns/net")
		if err != nil {
			runtime.UnlockOSThread()
			result <- fmt.Errorf("network namespace of this thread: %w", err)
			return
		}
		defer func() { _ = home.Close() }()
		if err := netns.Set(ns); err != nil {
			runtime.UnlockOSThread()
			result <- fmt.Errorf("join network namespace: %w", err)
			return
		}
		err = f()
		if back := netns.Set(home); back == nil {
			runtime.UnlockOSThread()
		}
		result <- err
	}()
	return <-result
}

// nsPath is where a task's namespace is pinned.
func (n *Network) nsPath(task cluster.ID) string {
	return filepath.Join(n.cfg.StateDir, "netns", task.String())
}

// nsAlive reports whether path is a pinned namespace, not the plain file that is left of one after a reboot.
func nsAlive(path string) bool {
	var st unix.Statfs_t
	return unix.Statfs(path, &st) == nil && st.Type == unix.NSFS_MAGIC
}

// ensureNS makes and pins a namespace at path unless there is one.
func ensureNS(path string) error {
	if nsAlive(path) {
		return nil
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDONLY, 0o600)
	if err != nil {
		return fmt.Errorf("pin namespace: %w", err)
	}
	if err := f.Close(); err != nil {
		return err
	}
	result := make(chan error, 1)
	go func() {
		// The thread ends with this goroutine: it never goes back to the pool with the wrong namespace.
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			result <- fmt.Errorf("make network namespace (needs root): %w", err)
			return
		}
		if err := unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, ""); err != nil {
			result <- fmt.Errorf("pin namespace at %s: %w", path, err)
			return
		}
		result <- nil
	}()
	return <-result
}

// removeNS unpins the namespace at path; the kernel removes it once no process is in it.
func removeNS(path string) error {
	// A namespace may be pinned twice when an earlier process died between the mount and its record.
	for {
		err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
			break
		}
		if err != nil {
			return fmt.Errorf("unpin namespace %s: %w", path, err)
		}
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("unpin namespace: %w", err)
	}
	return nil
}
