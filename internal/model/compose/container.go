package compose

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/compose-spec/compose-go/v2/types"

	"baton/internal/model/spec"
)

func (c *converter) container() spec.Container {
	in := c.in
	out := spec.Container{
		Entrypoint: in.Entrypoint,
		Command:    in.Command,
		Env:        environment(in.Environment),
		User:       in.User,
		GroupAdd:   in.GroupAdd,
		Dir:        in.WorkingDir,
		Hostname:   in.Hostname,
		Labels:     emptyNil(in.Labels),
		TTY:        in.Tty,
		Stdin:      in.StdinOpen,
		Init:       in.Init != nil && *in.Init,

		ReadOnly:    in.ReadOnly,
		Privileged:  in.Privileged,
		CapAdd:      in.CapAdd,
		CapDrop:     in.CapDrop,
		SecurityOpt: in.SecurityOpt,
		Sysctls:     emptyNil(in.Sysctls),
		Ulimits:     ulimits(in.Ulimits),
		Devices:     c.devices(),
		ShmSize:     spec.Bytes(in.ShmSize),
		DNS:         in.DNS,
		DNSSearch:   in.DNSSearch,
		DNSOptions:  in.DNSOpts,
		ExtraHosts:  extraHosts(in.ExtraHosts),
		StopSignal:  in.StopSignal,
	}
	if in.OomScoreAdj < -1000 || in.OomScoreAdj > 1000 {
		c.rep.errf(c.at("oom_score_adj"), "%d; use -1000 to 1000", in.OomScoreAdj)
	} else {
		out.OOMScoreAdj = int(in.OomScoreAdj)
	}
	if d := in.StopGracePeriod; d != nil {
		out.StopGracePeriod = explicit(time.Duration(*d))
	}
	return out
}

// explicit keeps a zero that a file asks for apart from one that stands for the default.
func explicit(d time.Duration) time.Duration {
	if d == 0 {
		return atOnce
	}
	return d
}

// environment lists the variables that have a value; those without one are unset, as docker compose does.
func environment(in types.MappingWithEquals) []string {
	var out []string
	for _, k := range slices.Sorted(maps.Keys(in)) {
		if v := in[k]; v != nil {
			out = append(out, k+"="+*v)
		}
	}
	return out
}

func extraHosts(in types.HostsList) []string {
	var out []string
	for _, name := range slices.Sorted(maps.Keys(in)) {
		for _, addr := range in[name] {
			out = append(out, name+"="+addr)
		}
	}
	return out
}

func ulimits(in map[string]*types.UlimitsConfig) []spec.Ulimit {
	var out []spec.Ulimit
	for _, name := range slices.Sorted(maps.Keys(in)) {
		u := in[name]
		if u == nil {
			continue
		}
		l := spec.Ulimit{Name: name, Soft: int64(u.Soft), Hard: int64(u.Hard)}
		if u.Single != 0 {
			l.Soft, l.Hard = int64(u.Single), int64(u.Single)
		}
		out = append(out, l)
	}
	return out
}

func (c *converter) devices() []spec.Device {
	var out []spec.Device
	for i, d := range c.in.Devices {
		if !strings.HasPrefix(d.Source, "/") && strings.Contains(d.Source, "=") {
			c.rep.err(fmt.Sprintf("%s[%d]", c.at("devices"), i), "CDI devices are not supported", "name the device's file under /dev")
			continue
		}
		out = append(out, spec.Device{Source: d.Source, Target: d.Target, Permissions: d.Permissions})
	}
	return out
}

// resources reads deploy.resources and the older keys that stand directly in the service.
func (c *converter) resources() {
	in := c.in
	limits, reservations := &types.Resource{}, &types.Resource{}
	if d := in.Deploy; d != nil {
		if d.Resources.Limits != nil {
			limits = d.Resources.Limits
		}
		if d.Resources.Reservations != nil {
			reservations = d.Resources.Reservations
		}
	}
	l, r := &c.out.Resources.Limits, &c.out.Resources.Reservations
	l.CPU = c.cpus("deploy.resources.limits.cpus", float64(limits.NanoCPUs))
	l.Memory = spec.Bytes(limits.MemoryBytes)
	l.PIDs = limits.Pids
	r.CPU = c.cpus("deploy.resources.reservations.cpus", float64(reservations.NanoCPUs))
	r.Memory = spec.Bytes(reservations.MemoryBytes)

	quota := 0.0
	if in.CPUQuota > 0 {
		period := in.CPUPeriod
		if period <= 0 {
			period = 100_000 // the kernel's, in microseconds
		}
		quota = float64(in.CPUQuota) / float64(period)
	}
	older(c, "cpu_quota", &l.CPU, c.cpus("cpu_quota", quota))
	older(c, "cpus", &l.CPU, c.cpus("cpus", float64(in.CPUS)))
	older(c, "mem_limit", &l.Memory, spec.Bytes(in.MemLimit))
	older(c, "pids_limit", &l.PIDs, in.PidsLimit)
	older(c, "mem_reservation", &r.Memory, spec.Bytes(in.MemReservation))
	if swap := spec.Bytes(in.MemSwapLimit); swap == -1 {
		l.MemorySwap = math.MaxInt64 // unlimited swap
	} else {
		l.MemorySwap = swap
	}
	if l.PIDs == -1 {
		l.PIDs = 0 // unlimited
	}
}

// older takes the value of an older key where deploy.resources gives none, and reports two that differ.
func older[T comparable](c *converter, key string, field *T, value T) {
	var zero T
	switch {
	case value == zero || *field == value:
	case *field == zero:
		*field = value
	default:
		c.rep.err(c.at(key), "differs from the same amount given elsewhere", "keep the one in deploy.resources")
	}
}

// maxCPUs bounds a number of processors; more is a slip of the pen.
const maxCPUs = 10_000

func (c *converter) cpus(key string, n float64) spec.MilliCPU {
	if math.IsNaN(n) || n < 0 || n > maxCPUs {
		c.rep.errf(c.at(key), "%v is no number of processors", n)
		return 0
	}
	m := spec.MilliCPU(math.Round(n * 1000))
	if m == 0 && n > 0 {
		m = 1
	}
	return m
}
