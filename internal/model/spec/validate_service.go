package spec

import (
	"fmt"
	"net/netip"
	"path"
	"regexp"
	"slices"
	"strings"
	"time"
)

var (
	signalRE  = regexp.MustCompile(`^(SIG)?[A-Z][A-Z0-9+-]{1,12}$|^[0-9]{1,2}$`)
	envRE     = regexp.MustCompile(`^[^=\x00]+=[^\x00]*$`)
	capRE     = regexp.MustCompile(`^(CAP_)?[A-Z_]+$`)
	aliasRE   = regexp.MustCompile(`^[a-zA-Z0-9]([a-zA-Z0-9_.-]{0,251}[a-zA-Z0-9])?$`)
	platforms = regexp.MustCompile(`^[a-z0-9]+/[a-z0-9_]+(/[a-z0-9]+)?$`)
)

// maxDuration bounds every time a file may give; more is a slip of the pen.
const maxDuration = 366 * 24 * time.Hour

func (c *checker) service(v *Service) {
	at := "services." + v.Name + "."
	switch {
	case v.Image == "":
		c.add(at+"image", "the service has no image", "name one")
	case strings.ContainsAny(v.Image, " \t\r\n"):
		c.addf(at+"image", "invalid image reference %q", v.Image)
	}
	c.oneOf(at+"mode", string(v.Mode), string(Replicated), string(Global))
	c.oneOf(at+"pull", string(v.Pull), string(PullMissing), string(PullAlways), string(PullNever))
	c.oneOf(at+"endpointMode", string(v.EndpointMode), string(EndpointVIP), string(EndpointDNSRR))
	if v.Replicas < 0 || v.Replicas > MaxReplicas {
		c.addf(at+"replicas", "%d replicas; use 0 to %d", v.Replicas, MaxReplicas)
	}
	for _, l := range []int{
		len(v.Ports), len(v.Mounts), len(v.Secrets), len(v.Configs), len(v.DependsOn), len(v.Networks),
		len(v.Container.Env), len(v.Labels), len(v.Container.Labels), len(v.Container.Devices),
	} {
		if l > maxList {
			c.addf(strings.TrimSuffix(at, "."), "a list of %d entries; at most %d are allowed", l, maxList)
		}
	}
	c.networks(at, v)
	c.ports(at, v)
	c.ingress(at, v)
	c.autoscale(at, v)
	c.mounts(at, v)
	c.files(at, v)
	c.resources(at+"resources.", v.Resources)
	c.placement(at+"placement.", v)
	c.policies(at, v)
	c.dependencies(at, v)
	c.probes(at+"probes.", v.Probes)
	c.container(at+"container.", &v.Container)
	if v.Logging.MaxSize < 0 || v.Logging.MaxFiles < 0 {
		c.addf(at+"logging", "sizes and counts cannot be negative")
	}
}

func (c *checker) networks(at string, v *Service) {
	c.oneOf(at+"networkMode", v.NetworkMode, "", "host", "none")
	if v.NetworkMode != "" && len(v.Networks) > 0 {
		c.add(at+"networkMode", "a service with network mode "+v.NetworkMode+" cannot join networks", "remove one of the two")
	}
	if v.NetworkMode == "none" && len(v.Ports) > 0 {
		c.add(at+"ports", "a service without a network cannot publish ports", "remove the ports")
	}
	seen := map[string]bool{}
	for _, a := range v.Networks {
		p := at + "networks." + a.Network
		if !slices.ContainsFunc(c.stack.Networks, func(n Network) bool { return n.Name == a.Network }) {
			c.undefined(p, "network", a.Network, names(c.stack.Networks, func(n Network) string { return n.Name }))
		}
		if seen[a.Network] {
			c.addf(p, "joined twice")
		}
		seen[a.Network] = true
		for _, alias := range a.Aliases {
			if !aliasRE.MatchString(alias) {
				c.add(p+".aliases", "invalid alias "+quote(alias), "use letters, digits, . - and _")
			}
		}
	}
}

// undefined reports a reference to something that the stack does not define.
func (c *checker) undefined(path, kind, name string, defined []string) {
	mend := fmt.Sprintf("define it under %ss", kind)
	if near := Nearest(name, defined); near != "" {
		mend = "did you mean " + quote(near) + "?"
	}
	c.add(path, fmt.Sprintf("%s %q is not defined", kind, name), mend)
}

func names[T any](list []T, name func(T) string) []string {
	out := make([]string, len(list))
	for i, v := range list {
		out[i] = name(v)
	}
	return out
}

func (c *checker) ports(at string, v *Service) {
	for i, p := range v.Ports {
		pp := fmt.Sprintf("%sports[%d].", at, i)
		if p.Target == 0 {
			c.add(pp+"target", "port 0 cannot be published", "give the container's port, 1 to 65535")
		}
		if p.Published == 0 {
			c.add(pp+"published", "no port to publish on", "give one from 1 to 65535")
		}
		c.oneOf(pp+"protocol", p.Protocol, "tcp", "udp")
		c.oneOf(pp+"mode", string(p.Mode), string(PortIngress), string(PortHost))
		if p.HostIP != "" {
			if _, err := netip.ParseAddr(p.HostIP); err != nil {
				c.addf(pp+"hostIP", "%q is no IP address", p.HostIP)
			}
		}
		if p.Mode == PortIngress && v.EndpointMode == EndpointDNSRR {
			c.add(pp+"mode", "endpoint mode dnsrr has no balanced address to publish", "use mode: host, or endpoint_mode: vip")
		}
	}
}

func (c *checker) mounts(at string, v *Service) {
	targets := map[string]bool{}
	for i, m := range v.Mounts {
		mp := fmt.Sprintf("%smounts[%d].", at, i)
		c.target(mp+"target", m.Target)
		clean := path.Clean(m.Target)
		if targets[clean] {
			c.addf(mp+"target", "%s is mounted twice", clean)
		}
		targets[clean] = true
		switch m.Kind {
		case MountVolume:
			c.volumeMount(mp, v, m)
		case MountBind:
			if !path.IsAbs(m.Source) {
				c.addf(mp+"source", "a bind mount needs an absolute path on the node, not %q", m.Source)
			}
			c.oneOf(mp+"propagation", m.Propagation, "", "rprivate", "private", "rshared", "shared", "rslave", "slave")
		case MountTmpfs:
			if m.Source != "" {
				c.addf(mp+"source", "a tmpfs has no source")
			}
		default:
			c.oneOf(mp+"kind", string(m.Kind), string(MountVolume), string(MountBind), string(MountTmpfs))
		}
		if m.Size < 0 {
			c.addf(mp+"size", "a size cannot be negative")
		}
	}
}

func (c *checker) volumeMount(mp string, v *Service, m Mount) {
	if m.SubPath != "" && (path.IsAbs(m.SubPath) || !localPath(m.SubPath)) {
		c.add(mp+"subPath", "path "+quote(m.SubPath)+" leaves the volume", "give a relative path without ..")
	}
	if m.Source == "" {
		return
	}
	i := slices.IndexFunc(c.stack.Volumes, func(o Volume) bool { return o.Name == m.Source })
	if i < 0 {
		c.undefined(mp+"source", "volume", m.Source, names(c.stack.Volumes, func(o Volume) string { return o.Name }))
		return
	}
	if c.stack.Volumes[i].SingleWriter && (v.Mode == Global || v.Replicas > 1 || v.Autoscale != nil && v.Autoscale.Max > 1) {
		c.add(mp+"source", fmt.Sprintf("volume %s has one writer at a time, and the service runs several tasks", m.Source),
			"use one replica, or say x-storage: {access: shared} if the program can share its files")
	}
}

// localPath reports whether p stays below the directory it is relative to.
func localPath(p string) bool {
	clean := path.Clean(p)
	return clean != ".." && !strings.HasPrefix(clean, "../")
}

func (c *checker) target(at, target string) {
	switch {
	case !path.IsAbs(target):
		c.addf(at, "the path in the container must be absolute, not %q", target)
	case path.Clean(target) == "/":
		c.addf(at, "nothing can be mounted over /")
	case strings.ContainsRune(target, 0):
		c.addf(at, "a path cannot hold a zero byte")
	}
}

func (c *checker) files(at string, v *Service) {
	check := func(kind string, refs []FileRef, defined []string) {
		seen := map[string]bool{}
		for i, f := range refs {
			fp := fmt.Sprintf("%s%ss[%d].", at, kind, i)
			if !slices.Contains(defined, f.Source) {
				c.undefined(fp+"source", kind, f.Source, defined)
			}
			c.target(fp+"target", f.Target)
			if seen[path.Clean(f.Target)] {
				c.addf(fp+"target", "%s is given twice", f.Target)
			}
			seen[path.Clean(f.Target)] = true
			if f.Mode > 0o7777 {
				c.add(fp+"mode", fmt.Sprintf("%#o is no file mode", f.Mode), "use an octal number such as 0440")
			}
		}
	}
	check("secret", v.Secrets, names(c.stack.Secrets, func(s Secret) string { return s.Name }))
	check("config", v.Configs, names(c.stack.Configs, func(s Config) string { return s.Name }))
}

// minMemory is the least memory limit under which runc can start a container.
const minMemory = 6 << 20

func (c *checker) resources(at string, r Resources) {
	for _, n := range []struct {
		path  string
		value int64
	}{
		{"limits.cpu", int64(r.Limits.CPU)},
		{"limits.memory", int64(r.Limits.Memory)},
		{"reservations.cpu", int64(r.Reservations.CPU)},
		{"reservations.memory", int64(r.Reservations.Memory)},
	} {
		if n.value < 0 {
			c.addf(at+n.path, "an amount cannot be negative")
		}
	}
	if r.Limits.Memory > 0 && r.Limits.Memory < minMemory {
		c.add(at+"limits.memory", fmt.Sprintf("%d bytes are too few to start a container", r.Limits.Memory), "give at least 6M")
	}
	if r.Limits.PIDs < -1 {
		c.addf(at+"limits.pids", "a number of processes cannot be negative")
	}
	if r.Limits.MemorySwap > 0 && r.Limits.MemorySwap < r.Limits.Memory {
		c.add(at+"limits.memorySwap", "memory and swap together are less than the memory alone", "raise it or leave it out")
	}
	if r.Limits.CPU > 0 && r.Limits.CPU < r.Reservations.CPU {
		c.add(at+"limits.cpu", "the limit is below the reservation", "raise the limit or lower the reservation")
	}
	if r.Limits.Memory > 0 && r.Limits.Memory < r.Reservations.Memory {
		c.add(at+"limits.memory", "the limit is below the reservation", "raise the limit or lower the reservation")
	}
}

func (c *checker) placement(at string, v *Service) {
	for i, s := range v.Placement.Constraints {
		if _, err := ParseConstraint(s); err != nil {
			c.addf(fmt.Sprintf("%sconstraints[%d]", at, i), "%v", err)
		}
	}
	for i, s := range v.Placement.Spread {
		if err := checkAttribute(s); err != nil {
			c.addf(fmt.Sprintf("%sspread[%d]", at, i), "%v", err)
		}
	}
	if v.Placement.MaxReplicasPerNode < 0 {
		c.addf(at+"maxReplicasPerNode", "a number of replicas cannot be negative")
	}
	for _, p := range v.Placement.Platforms {
		if !platforms.MatchString(p) {
			c.add(at+"platforms", "invalid platform "+quote(p), "write it as linux/amd64")
		}
	}
	c.oneOf(at+"strategy", v.Placement.Strategy, StrategySpread, StrategyPack)
}

func (c *checker) policies(at string, v *Service) {
	r := v.Restart
	c.oneOf(at+"restart.condition", string(r.Condition), string(RestartAny), string(RestartOnFailure), string(RestartNone))
	c.duration(at+"restart.delay", r.Delay)
	c.duration(at+"restart.delayMax", r.DelayMax)
	c.duration(at+"restart.resetAfter", r.ResetAfter)
	if r.MaxAttempts < 0 {
		c.addf(at+"restart.maxAttempts", "a number of attempts cannot be negative")
	}
	c.update(at+"update.", v.Update, FailureRollback, FailurePause, FailureContinue)
	c.update(at+"rollback.", v.Rollback, FailurePause, FailureContinue)
	c.gates(at, v)
	if why, exclusive := v.exclusive(c.stack); exclusive {
		// The rollback's order defaults to the update's: one message is enough.
		path := "update.order"
		if v.Update.Order != StartFirst {
			path = "rollback.order"
		}
		if v.Update.Order == StartFirst || v.Rollback.Order == StartFirst {
			c.add(at+path, "start-first would run the old and the new task at once, which "+why+" forbids", "use stop-first")
		}
	}
}

func (c *checker) update(at string, u UpdatePolicy, actions ...FailureAction) {
	c.oneOf(at+"order", string(u.Order), string(StartFirst), string(StopFirst))
	c.oneOf(at+"failureAction", string(u.FailureAction), names(actions, func(a FailureAction) string { return string(a) })...)
	c.duration(at+"delay", u.Delay)
	c.duration(at+"monitor", u.Monitor)
	c.duration(at+"deadline", u.Deadline)
	if u.Parallelism < 0 {
		c.addf(at+"parallelism", "a number of slots cannot be negative")
	}
	if !(u.MaxFailureRatio >= 0 && u.MaxFailureRatio <= 1) { // also refuses NaN
		c.add(at+"maxFailureRatio", fmt.Sprintf("%v is no ratio", u.MaxFailureRatio), "use 0 to 1")
	}
}

func (c *checker) duration(at string, d time.Duration) {
	if d < 0 || d > maxDuration {
		c.add(at, fmt.Sprintf("%v is out of range", d), "use 0 to a year")
	}
}

func (c *checker) dependencies(at string, v *Service) {
	all := names(c.stack.Services, func(s Service) string { return s.Name })
	for _, d := range v.DependsOn {
		dp := at + "dependsOn." + d.Service
		if d.Required && !slices.Contains(all, d.Service) {
			c.undefined(dp, "service", d.Service, all)
		}
		c.oneOf(dp+".condition", string(d.Condition), string(DependStarted), string(DependHealthy), string(DependCompleted))
	}
}

func (c *checker) probes(at string, p Probes) {
	for _, n := range []struct {
		name  string
		probe *Probe
	}{{"ready", p.Ready}, {"live", p.Live}, {"start", p.Start}} {
		if n.probe != nil {
			c.probe(at+n.name+".", n.probe)
		}
	}
}

func (c *checker) probe(at string, p *Probe) {
	actions := 0
	if len(p.Exec) > 0 {
		actions++
	}
	if p.HTTP != nil {
		actions++
		if p.HTTP.Port == 0 {
			c.add(at+"http.port", "no port to ask", "give one from 1 to 65535")
		}
		if !strings.HasPrefix(p.HTTP.Path, "/") {
			c.addf(at+"http.path", "%q does not start with /", p.HTTP.Path)
		}
		c.oneOf(at+"http.scheme", p.HTTP.Scheme, "http", "https")
	}
	if p.TCP != nil {
		actions++
		if p.TCP.Port == 0 {
			c.add(at+"tcp.port", "no port to ask", "give one from 1 to 65535")
		}
	}
	if actions != 1 {
		c.add(strings.TrimSuffix(at, "."), fmt.Sprintf("a probe asks one thing, this one %d", actions), "give exactly one of http, tcp and exec")
	}
	for _, d := range []struct {
		name  string
		value time.Duration
	}{{"interval", p.Interval}, {"timeout", p.Timeout}, {"startInterval", p.StartInterval}} {
		if d.value < time.Millisecond || d.value > maxDuration {
			c.add(at+d.name, fmt.Sprintf("%v is out of range", d.value), "use 1ms to a year")
		}
	}
	c.duration(at+"startPeriod", p.StartPeriod)
	if p.Failures < 1 {
		c.addf(at+"failures", "%d; at least one failure must count", p.Failures)
	}
	if p.Successes < 1 {
		c.addf(at+"successes", "%d; at least one success must count", p.Successes)
	}
}

func (c *checker) container(at string, k *Container) {
	for i, e := range k.Env {
		if !envRE.MatchString(e) {
			c.add(fmt.Sprintf("%senv[%d]", at, i), "invalid variable "+quote(e), "write it as NAME=value")
		}
	}
	if k.Dir != "" && !path.IsAbs(k.Dir) {
		c.addf(at+"dir", "the working directory must be absolute, not %q", k.Dir)
	}
	if k.Hostname != "" && (len(k.Hostname) > 64 || !aliasRE.MatchString(k.Hostname)) {
		c.addf(at+"hostname", "invalid host name %q", k.Hostname)
	}
	if k.StopSignal != "" && !signalRE.MatchString(k.StopSignal) {
		c.add(at+"stopSignal", "invalid signal "+quote(k.StopSignal), "use a name such as SIGTERM")
	}
	c.duration(at+"stopGracePeriod", k.StopGracePeriod)
	c.duration(at+"drainDeadline", k.DrainDeadline)
	for _, l := range []struct {
		name string
		caps []string
	}{{"capAdd", k.CapAdd}, {"capDrop", k.CapDrop}} {
		for _, capability := range l.caps {
			if !capRE.MatchString(strings.ToUpper(capability)) {
				c.add(at+l.name, "invalid capability "+quote(capability), "use a name such as NET_ADMIN")
			}
		}
	}
	for _, u := range k.Ulimits {
		if u.Soft < -1 || u.Hard < -1 || u.Hard >= 0 && (u.Soft > u.Hard || u.Soft == -1) {
			c.add(at+"ulimits."+u.Name, fmt.Sprintf("soft limit %d is above the hard limit %d", u.Soft, u.Hard), "-1 means unlimited")
		}
	}
	for i, d := range k.Devices {
		if !path.IsAbs(d.Source) || !path.IsAbs(d.Target) || strings.Trim(d.Permissions, "rwm") != "" {
			c.add(fmt.Sprintf("%sdevices[%d]", at, i), fmt.Sprintf("invalid device %s:%s:%s", d.Source, d.Target, d.Permissions),
				"write it as /dev/source:/dev/target:rwm")
		}
	}
	if k.ShmSize < 0 {
		c.addf(at+"shmSize", "a size cannot be negative")
	}
	if k.OOMScoreAdj < -1000 || k.OOMScoreAdj > 1000 {
		c.addf(at+"oomScoreAdj", "%d; use -1000 to 1000", k.OOMScoreAdj)
	}
	c.resolver(at, k)
}

func (c *checker) resolver(at string, k *Container) {
	for i, d := range k.DNS {
		if _, err := netip.ParseAddr(d); err != nil {
			c.addf(fmt.Sprintf("%sdns[%d]", at, i), "%q is no IP address", d)
		}
	}
	for i, h := range k.ExtraHosts {
		name, addr, _ := strings.Cut(h, "=")
		if _, err := netip.ParseAddr(strings.Trim(addr, "[]")); name == "" || err != nil && addr != "host-gateway" {
			c.add(fmt.Sprintf("%sextraHosts[%d]", at, i), "invalid entry "+quote(h), "write it as name=10.0.0.1 or name=host-gateway")
		}
	}
}
