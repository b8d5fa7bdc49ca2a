package runtime

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"

	"baton/internal/model/spec"
	"baton/internal/node/agent"
)

// The files that every container gets from its task's record directory.
var recordFiles = []string{"resolv.conf", "hosts", "hostname"}

// mounts lists everything that is mounted into the container, parents before children.
func (p *plan) mounts() ([]specs.Mount, error) {
	sc := &p.c.Spec.Container
	shm := spec.Bytes(shmDefault)
	if sc.ShmSize > 0 {
		shm = sc.ShmSize
	}
	ms := []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
		{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: []string{"nosuid", "noexec", "nodev", "mode=1777", fmt.Sprintf("size=%d", shm)}},
		{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", "ro"}},
		{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"nosuid", "noexec", "nodev", "relatime", "ro"}},
	}
	for _, f := range recordFiles {
		ms = append(ms, bind(filepath.Join(p.dir, f), "/etc/"+f, sc.ReadOnly))
	}
	if sc.Init {
		ms = append(ms, bind(p.init, initTarget, true))
	}
	for _, m := range p.c.Mounts {
		om, err := mountOf(m)
		if err != nil {
			return nil, err
		}
		ms = append(ms, om)
	}
	for i, f := range p.c.Files {
		fm := bind(filepath.Join(p.c.FilesDir, fmt.Sprint(i)), f.Target, true)
		// The bind does not inherit these from the tmpfs: it is mounted anew as read-only. A config may be a script to run.
		fm.Options = append(fm.Options, "nosuid", "nodev")
		ms = append(ms, fm)
	}
	// A mount on a place that has one already takes its place; docker allows replacing /dev/shm this way.
	seen := map[string]int{}
	var out []specs.Mount
	for _, m := range ms {
		m.Destination = path.Clean(m.Destination)
		if !path.IsAbs(m.Destination) || m.Destination == "/" {
			return nil, reject("mount target %q must be an absolute path below /", m.Destination)
		}
		if i, ok := seen[m.Destination]; ok {
			out[i] = m
			continue
		}
		seen[m.Destination] = len(out)
		out = append(out, m)
	}
	slices.SortStableFunc(out, func(a, b specs.Mount) int {
		return strings.Count(a.Destination, "/") - strings.Count(b.Destination, "/")
	})
	return out, nil
}

func bind(source, target string, readOnly bool) specs.Mount {
	m := specs.Mount{Destination: target, Type: "bind", Source: source, Options: []string{"rbind", "rprivate"}}
	if readOnly {
		m.Options = append(m.Options, "ro")
	}
	return m
}

// mountOf translates one mount of the service.
func mountOf(m agent.Mount) (specs.Mount, error) {
	if m.Kind == spec.MountTmpfs {
		o := []string{"nosuid", "nodev", "noexec", fmt.Sprintf("mode=%o", first32(m.FileMode, 0o1777))}
		if m.Size > 0 {
			o = append(o, fmt.Sprintf("size=%d", m.Size))
		}
		if m.ReadOnly {
			o = append(o, "ro")
		}
		return specs.Mount{Destination: m.Target, Type: "tmpfs", Source: "tmpfs", Options: o}, nil
	}
	src, err := sourceOf(m)
	if err != nil {
		return specs.Mount{}, err
	}
	om := bind(src, m.Target, m.ReadOnly)
	if p := m.Propagation; p != "" {
		if !slices.Contains([]string{"private", "rprivate", "shared", "rshared", "slave", "rslave"}, p) {
			return specs.Mount{}, reject("mount %s: unknown propagation %q", m.Target, p)
		}
		om.Options[1] = p
	}
	return om, nil
}

// sourceOf is the host path of a bind or volume, its SubPath included, which may not lead out of the volume.
func sourceOf(m agent.Mount) (string, error) {
	if !filepath.IsAbs(m.HostPath) {
		return "", reject("mount %s: source %q is not an absolute path", m.Target, m.HostPath)
	}
	if m.SubPath == "" {
		return m.HostPath, nil
	}
	if !filepath.IsLocal(m.SubPath) {
		return "", reject("mount %s: subpath %q leads out of the volume", m.Target, m.SubPath)
	}
	return filepath.Join(m.HostPath, m.SubPath), nil
}

func first32(a, b uint32) uint32 {
	if a != 0 {
		return a
	}
	return b
}

// prepareMounts checks that the sources exist, and makes those that may be made.
func prepareMounts(ms []agent.Mount) error {
	for _, m := range ms {
		if m.Kind == spec.MountTmpfs {
			continue
		}
		src, err := sourceOf(m)
		if err != nil {
			return err
		}
		if m.Kind == spec.MountVolume {
			if _, err := os.Stat(m.HostPath); err != nil {
				return fmt.Errorf("volume %s: %w", m.Source, err) // the node's own; it may be made again
			}
		}
		if err := insideVolume(m, src); err != nil {
			return err
		}
		_, err = os.Stat(src)
		if errors.Is(err, fs.ErrNotExist) {
			switch {
			case m.Kind == spec.MountBind && m.CreateHostPath:
				if err := os.MkdirAll(src, 0o755); err != nil {
					return &agent.RejectError{Reason: fmt.Sprintf("bind source %s cannot be made on this node", src), Err: err}
				}
			case m.SubPath != "":
				return reject("volume %s has no subpath %s: create it first", m.Source, m.SubPath)
			default:
				return reject("bind source %s does not exist on this node: create it, or place the service on a node that has it", src)
			}
		} else if err != nil {
			return &agent.RejectError{Reason: fmt.Sprintf("mount source %s cannot be used", src), Err: err}
		}
	}
	return nil
}

// insideVolume refuses a SubPath that a link leads out of the volume.
func insideVolume(m agent.Mount, src string) error {
	if m.SubPath == "" {
		return nil
	}
	root, err := filepath.EvalSymlinks(m.HostPath)
	if err != nil {
		return fmt.Errorf("volume %s: %w", m.Source, err)
	}
	real, err := filepath.EvalSymlinks(src)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("volume %s: %w", m.Source, err)
	}
	if rel, err := filepath.Rel(root, real); err != nil || !filepath.IsLocal(rel) {
		return reject("mount %s: subpath %q leads out of the volume", m.Target, m.SubPath)
	}
	return nil
}

// writeRecordFiles puts hostname, hosts and resolv.conf into the task's record directory.
func writeRecordFiles(dir string, c agent.Container) error {
	resolv := c.ResolvConf
	if resolv == nil {
		b, err := os.ReadFile("/etc/resolv.conf")
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("the node's DNS configuration: %w", err)
		}
		resolv = b
	}
	hosts := c.Hosts
	if hosts == nil {
		hosts = []byte("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n")
		if c.NetNS != "" || c.Spec.NetworkMode == "none" {
			hosts = append(hosts, "127.0.1.1\t"+c.Hostname+"\n"...)
		}
	}
	for i, b := range [][]byte{resolv, hosts, []byte(c.Hostname + "\n")} {
		// Nobody reads them before the container is made, and one that is not gets them anew.
		path := filepath.Join(dir, recordFiles[i])
		if err := errors.Join(os.WriteFile(path, b, 0o644), os.Chmod(path, 0o644)); err != nil { // whatever the umask
			return fmt.Errorf("container files: %w", err)
		}
	}
	return nil
}
