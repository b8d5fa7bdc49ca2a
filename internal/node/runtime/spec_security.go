package runtime

import (
	"context"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/contrib/seccomp"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/pkg/cap"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// capsDefault are what docker leaves to a container.
var capsDefault = []string{
	"CAP_AUDIT_WRITE", "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_MKNOD",
	"CAP_NET_BIND_SERVICE", "CAP_NET_RAW", "CAP_SETFCAP", "CAP_SETGID", "CAP_SETPCAP", "CAP_SETUID", "CAP_SYS_CHROOT",
}

// Parts of /proc and /sys that tell about, or change, the machine and not the container.
var maskedPaths = []string{
	"/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/sched_debug",
	"/proc/scsi", "/proc/timer_list", "/proc/timer_stats", "/sys/devices/virtual/powercap", "/sys/firmware",
}
var readonlyPaths = []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}

// confinement is the service's security_opt, understood.
type confinement struct {
	noNewPrivileges *bool // nil: not said
	unconfined      bool  // seccomp
	unmasked        bool  // system paths
}

func securityOptions(in []string) (o confinement, err error) {
	for _, s := range in {
		k, v, ok := strings.Cut(s, "=")
		if !ok {
			k, v, _ = strings.Cut(s, ":")
		}
		switch {
		case k == "no-new-privileges" && (v == "" || v == "true" || v == "false"):
			yes := v != "false"
			o.noNewPrivileges = &yes
		case k == "seccomp" && v == "unconfined":
			o.unconfined = true
		case k == "systempaths" && v == "unconfined":
			o.unmasked = true
		case k == "apparmor" && v == "unconfined", k == "label" && v == "disable":
			// There is no such confinement to lift.
		default:
			return o, reject("security_opt %q is not supported: use no-new-privileges, seccomp=unconfined or systempaths=unconfined", s)
		}
	}
	return o, nil
}

// secure sets what does not depend on the user: devices, masked paths, bounding capabilities.
func (p *plan) secure(s *specs.Spec) error {
	sc := &p.c.Spec.Container
	o, err := securityOptions(sc.SecurityOpt)
	if err != nil {
		return err
	}
	caps, err := capabilities(sc.CapAdd, sc.CapDrop, sc.Privileged)
	if err != nil {
		return err
	}
	s.Process.Capabilities = &specs.LinuxCapabilities{Bounding: caps, Permitted: caps, Effective: caps}
	if !sc.Privileged && !o.unmasked {
		s.Linux.MaskedPaths, s.Linux.ReadonlyPaths = maskedPaths, readonlyPaths
	}
	if sc.Privileged {
		for i := range s.Mounts {
			if m := &s.Mounts[i]; m.Type == "sysfs" || m.Type == "cgroup" {
				m.Options = slices.DeleteFunc(slices.Clone(m.Options), func(v string) bool { return v == "ro" })
			}
		}
	}
	return nil
}

// finish completes the spec once the user is known.
func (p *plan) finish(ctx context.Context, c oci.Client, rec *containers.Container, s *specs.Spec) error {
	sc := &p.c.Spec.Container
	o, err := securityOptions(sc.SecurityOpt)
	if err != nil {
		return err
	}
	root := s.Process.User.UID == 0
	if !root {
		// exec would take these away from a user other than root; so would docker.
		s.Process.Capabilities.Permitted, s.Process.Capabilities.Effective = nil, nil
	}
	s.Process.NoNewPrivileges = !root && len(sc.CapAdd) == 0 && !sc.Privileged
	if o.noNewPrivileges != nil {
		s.Process.NoNewPrivileges = *o.noNewPrivileges
	}
	devices := []oci.SpecOpts{func(_ context.Context, _ oci.Client, _ *containers.Container, s *specs.Spec) error {
		s.Linux.Resources.Devices = []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}}
		return nil
	}, oci.WithDefaultUnixDevices}
	if sc.Privileged {
		devices = []oci.SpecOpts{oci.WithHostDevices, oci.WithAllDevicesAllowed}
	}
	for _, d := range sc.Devices {
		devices = append(devices, oci.WithDevices(d.Source, first(d.Target, d.Source), first(d.Permissions, "rwm")))
	}
	for i, opt := range devices {
		if err := opt(ctx, c, rec, s); err != nil {
			if n := i - len(devices) + len(sc.Devices); n >= 0 {
				return reject("device %s cannot be given to the container: %v", sc.Devices[n].Source, err)
			}
			return err
		}
	}
	if !sc.Privileged && !o.unconfined {
		s.Linux.Seccomp = seccomp.DefaultProfile(s)
	}
	return nil
}

// capabilities are docker's defaults, changed as asked. Names may come with or without CAP_.
func capabilities(add, drop []string, privileged bool) ([]string, error) {
	known := cap.Known()
	norm := func(in []string) (names []string, all bool, err error) {
		for _, c := range in {
			n := strings.ToUpper(c)
			if n == "ALL" {
				all = true
				continue
			}
			if !strings.HasPrefix(n, "CAP_") {
				n = "CAP_" + n
			}
			if !slices.Contains(known, n) {
				return nil, false, reject("unknown capability %q", c)
			}
			names = append(names, n)
		}
		return names, all, nil
	}
	adds, addAll, err := norm(add)
	if err != nil {
		return nil, err
	}
	drops, dropAll, err := norm(drop)
	if err != nil {
		return nil, err
	}
	if privileged || addAll && len(drops) == 0 && !dropAll {
		return cap.Current()
	}
	base := capsDefault
	switch {
	case addAll:
		if base, err = cap.Current(); err != nil {
			return nil, err
		}
	case dropAll:
		base = nil
	}
	out := slices.Concat(base, adds)
	out = slices.DeleteFunc(out, func(c string) bool { return slices.Contains(drops, c) })
	slices.Sort(out)
	return slices.Compact(out), nil
}
