package spec

import (
	"slices"
	"strings"
	"time"
)

// The defaults of fields that a file leaves out.
const (
	DefaultNetwork = "default"

	defaultRestartDelay     = time.Second
	defaultRestartDelayMax  = 5 * time.Minute
	defaultRestartReset     = time.Minute
	defaultMonitor          = 5 * time.Second
	defaultUpdateDeadline   = 10 * time.Minute
	defaultStopGrace        = 10 * time.Second
	defaultDrain            = 10 * time.Second
	defaultHealthInterval   = 30 * time.Second // docker's, for commands
	defaultHealthTimeout    = 30 * time.Second
	defaultProbeInterval    = 2 * time.Second // for http and tcp, which cost little
	defaultProbeTimeout     = time.Second
	defaultProbeFailures    = 3
	defaultStartIntervalMax = time.Second
	defaultShmSize          = 64 << 20
	defaultLogSize          = 10 << 20
	defaultLogFiles         = 3
	defaultFileMode         = 0o444

	defaultBake = time.Minute

	// parallelismAbove is the number of replicas up to which a rollout moves one slot at a time.
	parallelismAbove = 8
)

// SetDefaults fills every field that is empty and has a default. It is idempotent and does not depend on the order of the
// stack's parts. Call it before Validate.
func (s *Stack) SetDefaults() {
	if s.OnFailure == "" {
		s.OnFailure = FailureRollback
	}
	s.setNetworkDefaults()
	s.setVolumeDefaults()
	for i := range s.Secrets {
		setRef(&s.Secrets[i].Ref, s.Name, s.Secrets[i].Name, s.Secrets[i].External)
	}
	for i := range s.Configs {
		setRef(&s.Configs[i].Ref, s.Name, s.Configs[i].Name, s.Configs[i].External)
	}
	for i := range s.Services {
		s.Services[i].setDefaults(s)
	}
}

// setNetworkDefaults joins services without a network to "default", and declares that one when it is used.
func (s *Stack) setNetworkDefaults() {
	used := false
	for i := range s.Services {
		v := &s.Services[i]
		if v.NetworkMode == "" && len(v.Networks) == 0 {
			v.Networks = []Attachment{{Network: DefaultNetwork}}
		}
		used = used || slices.ContainsFunc(v.Networks, func(a Attachment) bool { return a.Network == DefaultNetwork })
	}
	declared := slices.ContainsFunc(s.Networks, func(n Network) bool { return n.Name == DefaultNetwork })
	if used && !declared {
		s.Networks = append(s.Networks, Network{Name: DefaultNetwork})
	}
	for i := range s.Networks {
		setRef(&s.Networks[i].Ref, s.Name, s.Networks[i].Name, s.Networks[i].External)
	}
}

// setVolumeDefaults names volumes and finds those that only one task may use: two database processes on one directory
// destroy it, and plain Compose files do not say so.
func (s *Stack) setVolumeDefaults() {
	for i := range s.Volumes {
		v := &s.Volumes[i]
		setRef(&v.Ref, s.Name, v.Name, v.External)
		if v.Shared || v.SingleWriter {
			continue
		}
		users, lone := 0, false
		for j := range s.Services {
			mounted, writable := s.Services[j].mounts(v.Name)
			if mounted {
				users++
				lone = writable && s.Services[j].oneTask()
			}
		}
		v.SingleWriter = users == 1 && lone
	}
}

func setRef(ref *string, stack, name string, external bool) {
	switch {
	case *ref != "":
	case external:
		*ref = name
	default:
		*ref = stack + "_" + name
	}
}

// mounts reports whether the service mounts the named volume, and whether it may write to it.
func (v *Service) mounts(volume string) (mounted, writable bool) {
	for _, m := range v.Mounts {
		if m.Kind == MountVolume && m.Source == volume {
			mounted = true
			writable = writable || !m.ReadOnly
		}
	}
	return mounted, writable
}

// oneTask reports whether the service never wants two tasks. One that is scaled to zero counts: it comes back as one.
func (v *Service) oneTask() bool {
	return (v.Mode == Replicated || v.Mode == "") && v.Replicas <= 1 && (v.Autoscale == nil || v.Autoscale.Max <= 1)
}

// exclusive reports whether the service's old and new task may not run at the same time, and why.
func (v *Service) exclusive(s *Stack) (string, bool) {
	for _, p := range v.Ports {
		if p.Mode == PortHost {
			return "a port published in host mode", true
		}
	}
	for _, vol := range s.Volumes {
		mounted, writable := v.mounts(vol.Name)
		if !mounted || vol.Shared {
			continue
		}
		// A global service has one task per node, and the volume is the node's.
		if vol.SingleWriter || writable && (v.oneTask() || v.Mode == Global) {
			return "volume " + vol.Name, true
		}
	}
	return "", false
}

func (v *Service) setDefaults(s *Stack) {
	setDefault(&v.Mode, Replicated)
	setDefault(&v.Pull, PullMissing)
	setDefault(&v.EndpointMode, EndpointVIP)
	setDefault(&v.Placement.Strategy, StrategySpread)
	v.Container.setDefaults()
	for _, p := range []*Probe{v.Probes.Ready, v.Probes.Live, v.Probes.Start} {
		p.setDefaults()
	}
	for i := range v.Ports {
		setDefault(&v.Ports[i].Protocol, "tcp")
		setDefault(&v.Ports[i].Mode, PortIngress)
	}
	v.setIngressDefaults()
	v.setAutoscaleDefaults()
	for i := range v.Secrets {
		v.Secrets[i].setDefaults("/run/secrets/")
	}
	for i := range v.Configs {
		v.Configs[i].setDefaults("/")
	}
	setDefault(&v.Logging.MaxSize, defaultLogSize)
	setDefault(&v.Logging.MaxFiles, defaultLogFiles)
	v.Restart.setDefaults()

	order := StartFirst
	if _, exclusive := v.exclusive(s); exclusive {
		order = StopFirst
	}
	v.Update.setDefaults(v, order, FailureRollback)
	if v.Update.Gates.Any() {
		setDefault(&v.Update.Bake, defaultBake)
	}
	v.Rollback.setDefaults(v, v.Update.Order, FailurePause)
}

func (c *Container) setDefaults() {
	setDefault(&c.StopGracePeriod, defaultStopGrace)
	setDefault(&c.DrainDeadline, defaultDrain)
	setDefault(&c.ShmSize, defaultShmSize)
	for i := range c.Devices {
		setDefault(&c.Devices[i].Target, c.Devices[i].Source)
		setDefault(&c.Devices[i].Permissions, "rwm")
	}
}

func (p *Probe) setDefaults() {
	if p == nil {
		return
	}
	interval, timeout := defaultHealthInterval, defaultHealthTimeout
	if p.HTTP != nil || p.TCP != nil {
		interval, timeout = defaultProbeInterval, defaultProbeTimeout
	}
	setDefault(&p.Interval, interval)
	setDefault(&p.Timeout, timeout)
	setDefault(&p.Failures, defaultProbeFailures)
	setDefault(&p.Successes, 1)
	setDefault(&p.StartInterval, min(p.Interval, defaultStartIntervalMax))
	if p.HTTP != nil {
		setDefault(&p.HTTP.Scheme, "http")
		setDefault(&p.HTTP.Path, "/")
	}
}

func (f *FileRef) setDefaults(dir string) {
	setDefault(&f.Target, f.Source)
	if !strings.HasPrefix(f.Target, "/") {
		f.Target = dir + f.Target
	}
	setDefault(&f.Mode, defaultFileMode)
}

func (r *RestartPolicy) setDefaults() {
	setDefault(&r.Condition, RestartAny)
	setDefault(&r.Delay, defaultRestartDelay)
	setDefault(&r.DelayMax, max(defaultRestartDelayMax, r.Delay))
	setDefault(&r.ResetAfter, defaultRestartReset)
}

func (u *UpdatePolicy) setDefaults(v *Service, order UpdateOrder, onFailure FailureAction) {
	setDefault(&u.Order, order)
	parallelism := 1
	if v.Mode == Replicated && v.Replicas > parallelismAbove {
		parallelism = v.Replicas / 4
	}
	setDefault(&u.Parallelism, parallelism)
	setDefault(&u.Monitor, defaultMonitor)
	setDefault(&u.Deadline, defaultUpdateDeadline)
	setDefault(&u.FailureAction, onFailure)
}

// setDefault gives *p the value v when it is zero.
func setDefault[T comparable](p *T, v T) {
	var zero T
	if *p == zero {
		*p = v
	}
}
