package runtime

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/containerd/containerd/v2/core/mount"
	cfs "github.com/containerd/continuity/fs"

	"baton/internal/model/cluster"
	"baton/internal/model/spec"
	"baton/internal/node/agent"
)

// fillingFile marks a volume that is being filled: after an interruption its content is not a user's and the filling starts over.
const fillingFile = ".baton-filling"

// fillVolumes gives new volumes what the image has at their target, with owners and modes, as docker does. A volume that has content
// of its own is never touched.
func (r *Runtime) fillVolumes(ctx context.Context, id cluster.ID, ms []agent.Mount) error {
	var todo []agent.Mount
	for _, m := range ms {
		if m.Kind == spec.MountVolume && m.Fresh && !m.NoCopy && m.SubPath == "" {
			todo = append(todo, m)
		}
	}
	if len(todo) == 0 {
		return nil
	}
	mounts, err := r.client.SnapshotService(snapshotter).Mounts(ctx, id.String())
	if err != nil {
		return fmt.Errorf("fill volumes: %w", err)
	}
	root := filepath.Join(r.tasks.path(id), "rootfs")
	if err := os.MkdirAll(root, 0o700); err != nil {
		return err
	}
	ro := make([]mount.Mount, len(mounts))
	for i, m := range mounts {
		ro[i] = m
		ro[i].Options = append([]string{"ro"}, m.Options...)
	}
	if err := mount.All(ro, root); err != nil {
		return fmt.Errorf("fill volumes: %w", err)
	}
	for _, m := range todo {
		if err = r.fillVolume(ctx, root, m); err != nil {
			err = fmt.Errorf("fill volume %s from the image: %w", m.Source, err)
			break
		}
	}
	return errors.Join(err, mount.UnmountAll(root, 0), os.Remove(root))
}

// fillVolume fills one volume from the image's files at root. Tasks that share the volume wait for each other.
func (r *Runtime) fillVolume(ctx context.Context, root string, m agent.Mount) error {
	leave, err := r.busy.enter(ctx, "volume "+m.HostPath)
	if err != nil {
		return err
	}
	defer leave()
	fresh, err := emptyOrFilling(m.HostPath)
	if err != nil || !fresh {
		return err
	}
	src, err := cfs.RootPath(root, m.Target)
	if err != nil {
		return err
	}
	st, err := os.Stat(src)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if !st.IsDir() {
		return reject("the image has a file at %s, where a volume is to be mounted", m.Target)
	}
	mark := filepath.Join(m.HostPath, fillingFile)
	if err := os.WriteFile(mark, nil, 0o600); err != nil {
		return err
	}
	if err := cfs.CopyDir(m.HostPath, src); err != nil {
		return err
	}
	return os.Remove(mark)
}

// emptyOrFilling reports whether a volume may be filled, and empties one whose filling was interrupted.
func emptyOrFilling(dir string) (bool, error) {
	es, err := os.ReadDir(dir)
	if err != nil || len(es) == 0 {
		return err == nil, err
	}
	if _, err := os.Lstat(filepath.Join(dir, fillingFile)); errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	for _, e := range es {
		if e.Name() == fillingFile {
			continue // last, so that another interruption is noticed too
		}
		if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
			return false, err
		}
	}
	return true, nil
}
