package runtime

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/pkg/oci"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/opencontainers/runtime-spec/specs-go"

	"baton/internal/model/spec"
	"baton/internal/node/agent"
)

const (
	pathDefault = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	shmDefault  = 64 << 20
	// initTarget is where our init is in containers that want one.
	initTarget = "/.baton-init"
	// cfsPeriod is the period in microseconds over which a CPU limit is enforced.
	cfsPeriod = 100_000
	// weightMin is the share of a task that reserves nothing, in thousandths of a core: with less it could starve, with the
	// kernel's default (a whole core's) it would outweigh those that reserve a part of one.
	weightMin = 100
)

// plan is what the OCI spec of a container is made from.
type plan struct {
	c       agent.Container
	image   ocispec.ImageConfig
	dir     string // the task's record directory, with hostname, hosts and resolv.conf
	cgroup  string
	init    string // host path of our init
	unified bool
}

// build makes the OCI spec, but for what needs the image's files (user and groups); finish completes it then. It only computes:
// what it names on the host is checked and made by prepareMounts.
func (p *plan) build() (*specs.Spec, error) {
	sc := &p.c.Spec.Container
	args, err := arguments(sc, p.image)
	if err != nil {
		return nil, err
	}
	s := &specs.Spec{
		Version:  specs.Version,
		Hostname: p.c.Hostname,
		Root:     &specs.Root{Path: "rootfs", Readonly: sc.ReadOnly},
		Process: &specs.Process{
			Args: args, Cwd: first(sc.Dir, p.image.WorkingDir, "/"), Terminal: sc.TTY,
			Env: environment(p.image.Env, sc.Env, p.c.Hostname, sc.TTY),
		},
		Linux: &specs.Linux{CgroupsPath: p.cgroup, Namespaces: p.namespaces()},
	}
	if !strings.HasPrefix(s.Process.Cwd, "/") {
		return nil, reject("working directory %q is not absolute", s.Process.Cwd)
	}
	if sc.Init {
		s.Process.Args = append([]string{initTarget, "__init", "--"}, args...)
	}
	if sc.OOMScoreAdj != 0 {
		s.Process.OOMScoreAdj = &sc.OOMScoreAdj
	}
	if s.Process.Rlimits, err = rlimits(sc.Ulimits); err != nil {
		return nil, err
	}
	if s.Linux.Sysctl, err = sysctls(sc.Sysctls); err != nil {
		return nil, err
	}
	s.Linux.Resources = resources(p.c.Spec.Resources)
	if s.Mounts, err = p.mounts(); err != nil {
		return nil, err
	}
	return s, p.secure(s)
}

func (p *plan) namespaces() []specs.LinuxNamespace {
	ns := []specs.LinuxNamespace{{Type: specs.PIDNamespace}, {Type: specs.IPCNamespace}, {Type: specs.UTSNamespace}, {Type: specs.MountNamespace}}
	if p.c.NetNS != "" {
		ns = append(ns, specs.LinuxNamespace{Type: specs.NetworkNamespace, Path: p.c.NetNS})
	} else if p.c.Spec.NetworkMode == "none" {
		ns = append(ns, specs.LinuxNamespace{Type: specs.NetworkNamespace})
	}
	if p.unified {
		ns = append(ns, specs.LinuxNamespace{Type: specs.CgroupNamespace})
	}
	return ns
}

// arguments merges entrypoint and command as docker does: a service that sets its own entrypoint drops the image's command.
func arguments(c *spec.Container, img ocispec.ImageConfig) ([]string, error) {
	entry, cmd := img.Entrypoint, img.Cmd
	if c.Entrypoint != nil {
		entry, cmd = c.Entrypoint, nil
	}
	if c.Command != nil {
		cmd = c.Command
	}
	args := slices.Concat(entry, cmd)
	if len(args) == 0 || args[0] == "" {
		return nil, reject("the image names no command: set command or entrypoint")
	}
	return args, nil
}

// environment lays the service's variables over the image's.
func environment(image, own []string, hostname string, tty bool) []string {
	env := []string{pathDefault}
	if hostname != "" {
		env = append(env, "HOSTNAME="+hostname)
	}
	if tty {
		env = append(env, "TERM=xterm")
	}
	at := map[string]int{}
	var out []string
	for _, kv := range slices.Concat(env, image, own) {
		k, _, _ := strings.Cut(kv, "=")
		if i, ok := at[k]; ok {
			out[i] = kv
			continue
		}
		at[k] = len(out)
		out = append(out, kv)
	}
	return out
}

var rlimitNames = []string{"as", "core", "cpu", "data", "fsize", "locks", "memlock", "msgqueue", "nice", "nofile", "nproc", "rss", "rtprio", "rttime", "sigpending", "stack"}

func rlimits(us []spec.Ulimit) ([]specs.POSIXRlimit, error) {
	var out []specs.POSIXRlimit
	for _, u := range us {
		if !slices.Contains(rlimitNames, u.Name) {
			return nil, reject("unknown ulimit %q: use one of %s", u.Name, strings.Join(rlimitNames, ", "))
		}
		// -1 is "unlimited", which is what the conversion makes of it.
		soft, hard := uint64(u.Soft), uint64(u.Hard)
		if soft > hard {
			return nil, reject("ulimit %s: the soft limit %d is above the hard limit %d", u.Name, u.Soft, u.Hard)
		}
		out = append(out, specs.POSIXRlimit{Type: "RLIMIT_" + strings.ToUpper(u.Name), Soft: soft, Hard: hard})
	}
	return out, nil
}

// sysctls keeps those that belong to the container. The net ones are set in the network namespace by whoever made it.
func sysctls(in map[string]string) (map[string]string, error) {
	out := map[string]string{}
	for _, k := range slices.Sorted(maps.Keys(in)) {
		switch {
		case strings.HasPrefix(k, "net."):
		case strings.HasPrefix(k, "fs.mqueue."), strings.HasPrefix(k, "kernel.shm"), strings.HasPrefix(k, "kernel.msg"), k == "kernel.sem":
			out[k] = in[k]
		default:
			return nil, reject("sysctl %s is the whole machine's, not a container's: set it on the node", k)
		}
	}
	return out, nil
}

// resources are the cgroup's limits. The weight follows the reservation, so that under contention each task gets at least what it
// reserved; a hard CPU quota comes from a limit only, because it costs latency even on an idle machine.
func resources(r spec.Resources) *specs.LinuxResources {
	out := &specs.LinuxResources{CPU: &specs.LinuxCPU{}}
	shares := uint64(max(r.Reservations.CPU, weightMin)) * 1024 / 1000
	out.CPU.Shares = &shares
	if r.Limits.CPU > 0 {
		quota, period := int64(r.Limits.CPU)*cfsPeriod/1000, uint64(cfsPeriod)
		out.CPU.Quota, out.CPU.Period = &quota, &period
	}
	if r.Limits.Memory > 0 {
		limit, swap := int64(r.Limits.Memory), int64(max(r.Limits.MemorySwap, r.Limits.Memory))
		if r.Limits.MemorySwap < 0 {
			swap = -1
		}
		out.Memory = &specs.LinuxMemory{Limit: &limit, Swap: &swap}
	}
	if r.Reservations.Memory > 0 {
		low := int64(r.Reservations.Memory)
		if out.Memory == nil {
			out.Memory = &specs.LinuxMemory{}
		}
		if out.Memory.Limit == nil || low < *out.Memory.Limit {
			out.Memory.Reservation = &low
		}
	}
	if r.Limits.PIDs > 0 {
		pids := r.Limits.PIDs
		out.Pids = &specs.LinuxPids{Limit: &pids}
	}
	return out
}

// userOpts resolve the user and its groups in the image's files.
func (p *plan) userOpts() []oci.SpecOpts {
	user := first(p.c.Spec.Container.User, p.image.User, "0")
	name, _, grouped := strings.Cut(user, ":")
	opts := []oci.SpecOpts{oci.WithUser(user)}
	if !grouped {
		opts = append(opts, oci.WithAdditionalGIDs(name))
	}
	if g := p.c.Spec.Container.GroupAdd; len(g) > 0 {
		opts = append(opts, oci.WithAppendAdditionalGroups(g...))
	}
	return opts
}

func first(s ...string) string {
	for _, v := range s {
		if v != "" {
			return v
		}
	}
	return ""
}

// reject says that the task can never run here.
func reject(format string, args ...any) *agent.RejectError {
	return &agent.RejectError{Reason: fmt.Sprintf(format, args...)}
}
