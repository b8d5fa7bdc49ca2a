// Package files keeps the contents of secrets and configs for the containers of a node.
//
// They live on one tmpfs per node, mounted under a directory that only root may enter: nothing reaches a disk, and a
// restart of the machine forgets them. Each task has a directory with its files named "0", "1"… in the order of its assignment;
// the runtime mounts each where the container wants it.
//
// Concurrency: methods for different tasks may run at the same time; the agent runs one at a time per task.
package files

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"

	"baton/internal/model/cluster"
	"baton/internal/node/agent"
	"baton/internal/wire/agentapi"
)

var _ agent.Files = (*Dir)(nil)

// sizeMax bounds the tmpfs, so that files cannot take the machine's memory.
const sizeMax = "size=256m,nr_inodes=65536"

// Dir is the files of one node.
type Dir struct {
	path  string
	mount sync.Mutex
}

// New keeps the files under path, which must be on the node's own data directory.
func New(path string) *Dir { return &Dir{path: path} }

// Write implements agent.Files.
func (d *Dir) Write(_ context.Context, task cluster.ID, files []agentapi.File) (string, error) {
	if err := d.mounted(); err != nil {
		return "", err
	}
	dir := filepath.Join(d.path, task.String())
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	for i, f := range files {
		if err := write(filepath.Join(dir, strconv.Itoa(i)), f); err != nil {
			return "", fmt.Errorf("%s: %w", f.Name, err)
		}
	}
	return dir, nil
}

// write gives the file its owner and mode before it gets its name, so that it is never readable by others for a moment.
func write(path string, f agentapi.File) error {
	tmp := path + ".new"
	if err := os.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.WriteFile(tmp, f.Content, 0o600); err != nil {
		return err
	}
	if err := os.Chown(tmp, int(f.UID), int(f.GID)); err != nil {
		return err
	}
	if err := os.Chmod(tmp, fs.FileMode(f.Mode).Perm()); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}

// Remove implements agent.Files.
func (d *Dir) Remove(_ context.Context, task cluster.ID) error {
	return os.RemoveAll(filepath.Join(d.path, task.String()))
}

// Sweep implements agent.Files.
func (d *Dir) Sweep(ctx context.Context, keep []cluster.ID) error {
	entries, err := os.ReadDir(d.path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	var errs []error
	for _, e := range entries {
		if id, err := cluster.ParseID(e.Name()); err == nil && !slices.Contains(keep, id) {
			errs = append(errs, d.Remove(ctx, id))
		}
	}
	return errors.Join(errs...)
}

// Unmount takes the tmpfs away, with everything on it.
func (d *Dir) Unmount() error {
	err := unix.Unmount(d.path, unix.MNT_DETACH)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
		return nil // was not mounted
	}
	return err
}

// mounted makes sure that path is a tmpfs.
func (d *Dir) mounted() error {
	d.mount.Lock()
	defer d.mount.Unlock()
	if err := os.MkdirAll(d.path, 0o700); err != nil {
		return err
	}
	var st unix.Statfs_t
	if err := unix.Statfs(d.path, &st); err != nil {
		return fmt.Errorf("statfs %s: %w", d.path, err)
	}
	if st.Type == unix.TMPFS_MAGIC && isMountPoint(d.path) {
		return nil
	}
	if err := unix.Mount("baton-files", d.path, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, sizeMax+",mode=0700"); err != nil {
		return fmt.Errorf("mount a tmpfs for secrets on %s: %w", d.path, err)
	}
	return nil
}

// isMountPoint tells a tmpfs of our own from a directory on somebody else's.
func isMountPoint(path string) bool {
	var here, above unix.Stat_t
	if unix.Stat(path, &here) != nil || unix.Stat(filepath.Dir(path), &above) != nil {
		return false
	}
	return here.Dev != above.Dev
}
