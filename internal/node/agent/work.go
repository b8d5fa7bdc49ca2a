package agent

import (
	"context"
	"errors"
	"fmt"
	"strconv"

	"baton/internal/model/cluster"
	"baton/internal/model/spec"
	"baton/internal/wire/agentapi"
)

func (a *Agent) work(ctx context.Context, id cluster.ID, want *agentapi.Assignment, action Action) Result {
	r := Result{Task: id, Kind: action.Kind}
	switch action.Kind {
	case ActStart:
		r.Probes, r.Err = a.start(ctx, want, action.Refreshed)
	case ActAdopt:
		r.Probes, r.Err = a.adopt(ctx, want)
	case ActStop:
		r.Err = a.cfg.Executor.Stop(ctx, id, action.Grace)
	case ActClean:
		r.Err = errors.Join(
			a.cfg.Executor.Remove(ctx, id),
			a.cfg.Fence.Unguard(ctx, id),
			a.cfg.Network.Detach(ctx, id),
			a.cfg.Files.Remove(ctx, id),
		)
	case ActForget:
		r.Err = a.cfg.Logs.Remove(id)
	}
	return r
}

// start brings a task from its assignment to a running process.
func (a *Agent) start(ctx context.Context, as *agentapi.Assignment, refreshed bool) (*spec.Probes, error) {
	ex, policy := a.cfg.Executor, as.Spec.Pull
	if refreshed && policy == spec.PullAlways {
		policy = spec.PullMissing
	}
	if err := ex.Pull(withAuth(ctx, as.Auth), as.Spec.Image, policy); err != nil {
		return nil, &PullError{Err: err}
	}
	c := Container{Assignment: *as, Hostname: hostname(as)}
	var err error
	if c.Mounts, err = a.mounts(ctx, as); err != nil {
		return nil, err
	}
	if len(as.Files) > 0 {
		if c.FilesDir, err = a.cfg.Files.Write(ctx, as.Task.ID, as.Files); err != nil {
			return nil, fmt.Errorf("secrets and configs: %w", err)
		}
	}
	if as.Spec.NetworkMode != "host" {
		box, err := a.cfg.Network.Attach(ctx, attachment(as))
		if err != nil {
			return nil, fmt.Errorf("network: %w", err)
		}
		c.NetNS, c.ResolvConf, c.Hosts = box.NetNS, box.ResolvConf, box.Hosts
	}
	probes, err := a.probesOf(ctx, as.Spec)
	if err != nil {
		return nil, err
	}
	if as.Task.Leased {
		if err := a.cfg.Fence.Guard(ctx, as.Task.ID); err != nil {
			return nil, fmt.Errorf("fence: %w", err)
		}
	}
	if err := ex.Start(ctx, c); err != nil {
		return nil, err
	}
	for _, m := range c.Mounts {
		if m.Fresh {
			if err := a.cfg.Volumes.MarkUsed(ctx, as.Volumes[m.Source]); err != nil {
				return nil, err
			}
		}
	}
	return probes, nil
}

// adopt finds the place of a task whose container an earlier agent started.
func (a *Agent) adopt(ctx context.Context, as *agentapi.Assignment) (*spec.Probes, error) {
	if as.Spec.NetworkMode != "host" {
		if _, err := a.cfg.Network.Attach(ctx, attachment(as)); err != nil {
			return nil, fmt.Errorf("network: %w", err)
		}
	}
	return a.probesOf(ctx, as.Spec)
}

func (a *Agent) probesOf(ctx context.Context, s *spec.Service) (*spec.Probes, error) {
	p := s.Probes
	if !p.FromImage {
		return &p, nil
	}
	health, err := a.cfg.Executor.ImageHealthcheck(ctx, s.Image)
	if err != nil {
		return nil, fmt.Errorf("health check of image %s: %w", s.Image, err)
	}
	if p.Ready == nil {
		p.Ready = health
	}
	if p.Live == nil {
		p.Live = health
	}
	return &p, nil
}

func (a *Agent) mounts(ctx context.Context, as *agentapi.Assignment) ([]Mount, error) {
	out := make([]Mount, 0, len(as.Spec.Mounts))
	for _, m := range as.Spec.Mounts {
		pm := Mount{Mount: m}
		switch m.Kind {
		case spec.MountBind:
			pm.HostPath = m.Source
		case spec.MountVolume:
			name := as.Volumes[m.Source]
			if name == "" {
				return nil, &RejectError{Reason: "volume " + strconv.Quote(m.Source) + " is not known to the cluster; deploy the stack again"}
			}
			path, fresh, err := a.cfg.Volumes.Ensure(ctx, name)
			if err != nil {
				return nil, fmt.Errorf("volume %s: %w", name, err)
			}
			pm.HostPath, pm.Fresh = path, fresh
		}
		out = append(out, pm)
	}
	return out, nil
}

func attachment(as *agentapi.Assignment) Attachment {
	c := as.Spec.Container
	at := Attachment{
		Task: as.Task.ID, Address: as.Task.Address, Hostname: hostname(as), Stack: as.StackName, Networks: as.Networks,
		DNS: c.DNS, DNSSearch: c.DNSSearch, DNSOptions: c.DNSOptions, ExtraHosts: c.ExtraHosts, Sysctls: c.Sysctls,
		Internal: as.Internal,
	}
	for _, p := range as.Spec.Ports {
		if p.Mode == spec.PortHost {
			at.HostPorts = append(at.HostPorts, p)
		}
	}
	return at
}

// hostname is what a task calls itself: the spec's name, else its service and slot.
func hostname(as *agentapi.Assignment) string {
	if h := as.Spec.Container.Hostname; h != "" {
		return h
	}
	if as.Task.Slot > 0 {
		return as.ServiceName + "-" + strconv.Itoa(as.Task.Slot)
	}
	return as.ServiceName
}

// PullError is an error of getting the image: it is retried for as long as it takes.
type PullError struct{ Err error }

func (e *PullError) Error() string { return e.Err.Error() }
func (e *PullError) Unwrap() error { return e.Err }
