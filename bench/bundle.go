package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	shimgroup "baton/internal/node/shim"
)

// template makes the containers that runc and the shim start without baton. It is the very specification that baton gave one of its
// own containers, so that all three start the same process with the same mounts, capabilities and seccomp profile; only the
// network differs: an empty namespace that runc makes, instead of one that baton made and connected.
type template struct {
	spec   specs.Spec
	dir    string // holds the files below
	rootfs string // a copy of the image's files
}

// newTemplate takes the specification of a running task of the machine.
func newTemplate(m *machine, task string) (*template, error) {
	t := &template{dir: runTop + "/bundles"}
	t.rootfs = t.dir + "/image"
	b, err := os.ReadFile(filepath.Join(m.runDir(), "state/io.containerd.runtime.v2.task/baton", task, "config.json"))
	if err != nil {
		return nil, fmt.Errorf("specification of a task: %w", err)
	}
	if err := json.Unmarshal(b, &t.spec); err != nil {
		return nil, err
	}
	pid, err := firstProcess(m, task)
	if err != nil {
		return nil, err
	}
	if err := copyTree(fmt.Sprintf("/proc/%d/root", pid), t.rootfs); err != nil {
		return nil, fmt.Errorf("copy the image's files: %w", err)
	}
	t.spec.Root.Path = "rootfs"
	delete(t.spec.Annotations, shimgroup.GroupAnnotation) // else the reference's containers would share one shim, too
	for i, n := range t.spec.Linux.Namespaces {
		if n.Type == specs.NetworkNamespace {
			t.spec.Linux.Namespaces[i].Path = ""
		}
	}
	return t, t.keepFiles(m.data)
}

// keepFiles copies the files of the task's record that are mounted into it: hostname, hosts, resolv.conf.
func (t *template) keepFiles(below string) error {
	for i, mount := range t.spec.Mounts {
		if mount.Type != "bind" && !slices.Contains(mount.Options, "bind") && !slices.Contains(mount.Options, "rbind") || !strings.HasPrefix(mount.Source, below) {
			continue
		}
		to := filepath.Join(t.dir, fmt.Sprintf("file%d", i))
		if err := copyFile(mount.Source, to, 0o644); err != nil {
			return err
		}
		t.spec.Mounts[i].Source = to
	}
	return nil
}

// box is the bundle directory of one container.
type box struct {
	id, dir string
	overlay string // options of the mount that is its root
}

// write makes a box whose container has the cgroup parent/ID.
func (t *template) write(id, parent string) (*box, error) {
	b := &box{id: id, dir: filepath.Join(t.dir, id)}
	for _, d := range []string{"rootfs", "upper", "work"} {
		if err := os.MkdirAll(filepath.Join(b.dir, d), 0o755); err != nil {
			return nil, err
		}
	}
	b.overlay = fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", t.rootfs, b.dir+"/upper", b.dir+"/work")
	s := t.spec
	l := *s.Linux
	l.CgroupsPath = parent + "/" + id
	s.Linux = &l
	data, err := json.Marshal(s)
	if err != nil {
		return nil, err
	}
	return b, os.WriteFile(b.dir+"/config.json", data, 0o600)
}

func (b *box) rootfs() string { return b.dir + "/rootfs" }

// mount puts the root together, as the shim does for its containers.
func (b *box) mount() error {
	if err := unix.Mount("overlay", b.rootfs(), "overlay", 0, b.overlay); err != nil {
		return fmt.Errorf("mount %s: %w", b.rootfs(), err)
	}
	return nil
}

// remove deletes the box; the root may be mounted or not.
func (b *box) remove() error {
	if err := unix.Unmount(b.rootfs(), unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("unmount %s: %w", b.rootfs(), err)
	}
	return os.RemoveAll(b.dir)
}

// copyTree copies one file system's files; images of the bench hold directories, files and symbolic links.
func copyTree(from, to string) error {
	var top unix.Stat_t
	if err := unix.Stat(from, &top); err != nil {
		return err
	}
	return filepath.WalkDir(from+"/", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		target := filepath.Join(to, rel)
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		switch {
		case d.IsDir():
			if err := os.MkdirAll(target, fs.FileMode(st.Mode&0o7777)); err != nil {
				return err
			}
			if st.Dev != top.Dev && rel != "." { // mounted in the container, such as /proc
				return fs.SkipDir
			}
			return nil
		case st.Dev != top.Dev:
			return copyFile("/dev/null", target, 0o644) // what is mounted on it needs a file there
		case d.Type() == fs.ModeSymlink:
			link, err := os.Readlink(path)
			if err != nil {
				return err
			}
			return os.Symlink(link, target)
		}
		return copyFile(path, target, fs.FileMode(st.Mode&0o7777))
	})
}

func copyFile(from, to string, mode fs.FileMode) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, mode)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Chmod(mode), out.Close())
}
