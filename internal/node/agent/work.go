package agent

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"baton/internal/model/cluster"
	"baton/internal/model/spec"
	"baton/internal/wire/agentapi"
)

// result is what a worker tells the loop.
type result struct {
	task   cluster.ID
	kind   ActionKind
	err    error
	probes *spec.Probes
}

// act starts a worker for the task. The loop leaves the task alone until its result arrives.
func (a *Agent) act(ctx context.Context, t *task, action Action) {
	wctx, cancel := context.WithCancel(ctx)
	t.local.Busy, t.cancel, t.acting = true, cancel, action.Kind
	want := t.want
	if action.Kind == ActStart && t.local.Status.Observed < cluster.ObservedPreparing {
		t.local.Status.Observed, t.local.Status.At = cluster.ObservedPreparing, time.Now()
		a.outbox.status(t.local.Status)
	}
	if action.Kind == ActForget {
		delete(a.tasks, t.id)
		a.outbox.forget(t.id)
	}
	a.spawn(func() {
		defer cancel()
		r := a.work(wctx, t.id, want, action)
		select {
		case a.done <- r:
		case <-ctx.Done():
		}
	})
}

func (a *Agent) work(ctx context.Context, id cluster.ID, want *agentapi.Assignment, action Action) result {
	r := result{task: id, kind: action.Kind}
	switch action.Kind {
	case ActStart:
		r.probes, r.err = a.start(ctx, want)
	case ActAdopt:
		r.probes, r.err = a.adopt(ctx, want)
	case ActStop:
		r.err = a.cfg.Executor.Stop(ctx, id, action.Grace)
	case ActClean:
		r.err = errors.Join(
			a.cfg.Executor.Remove(ctx, id),
			a.cfg.Network.Detach(ctx, id),
			a.cfg.Files.Remove(ctx, id),
		)
	case ActForget:
		r.err = a.cfg.Logs.Remove(id)
	}
	return r
}

// start brings a task from its assignment to a running process.
func (a *Agent) start(ctx context.Context, as *agentapi.Assignment) (*spec.Probes, error) {
	ex := a.cfg.Executor
	if err := ex.Pull(ctx, as.Spec.Image, as.Spec.Pull); err != nil {
		return nil, &stageError{stage: "pull", err: err}
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

// stageError tells an error of getting the image, which is retried for as long as it takes, from others.
type stageError struct {
	stage string
	err   error
}

func (e *stageError) Error() string { return e.err.Error() }
func (e *stageError) Unwrap() error { return e.err }

// finish takes a worker's result.
func (a *Agent) finish(r result) {
	t := a.tasks[r.task]
	if t == nil {
		return
	}
	t.local.Busy, t.cancel, t.acting = false, nil, ""
	if r.err != nil {
		a.failed(t, r)
		return
	}
	t.tries, t.local.RetryAt = 0, time.Time{}
	switch r.kind {
	case ActStart, ActAdopt:
		t.local.Attached, t.probes = true, r.probes
		t.local.Probed = r.probes.Ready != nil || r.probes.Start != nil
	case ActClean:
		t.local.Cleaned, t.local.Attached, t.have = true, false, nil
	}
	a.look()
}

// failed decides what an error means: a rejection is final, anything else is tried again.
func (a *Agent) failed(t *task, r result) {
	t.tries++
	t.local.RetryAt = time.Now().Add(min(retryMin<<min(t.tries-1, 6), retryMax))
	if errors.Is(r.err, context.Canceled) {
		t.local.RetryAt = time.Time{}
		return
	}
	a.cfg.Log.Warn("task action did not work", "task", t.id, "action", r.kind, "try", t.tries, "err", r.err)
	if r.kind != ActStart {
		return
	}
	s := t.local.Status
	s.Reason, s.At = r.err.Error(), time.Now()
	var reject *RejectError
	var stage *stageError
	switch {
	case errors.As(r.err, &reject):
		s.Observed, s.Reason = cluster.ObservedRejected, reject.Error()
	case t.tries >= startTriesMax && !errors.As(r.err, &stage):
		s.Observed, s.Reason = cluster.ObservedFailed, fmt.Sprintf("could not be started in %d tries: %v", t.tries, r.err)
	}
	t.local.Status = s
	a.outbox.status(s)
	a.look()
}

// look asks for a fresh observation.
func (a *Agent) look() {
	select {
	case a.wake <- struct{}{}:
	default:
	}
}

func (a *Agent) removeVolume(ctx context.Context, name string) {
	if a.volumes[name] {
		return
	}
	a.volumes[name] = true
	a.spawn(func() {
		for wait := retryMin; ; wait = min(2*wait, retryMax) {
			err := a.cfg.Volumes.Remove(ctx, name)
			if err == nil {
				break
			}
			a.cfg.Log.Warn("volume could not be removed", "volume", name, "err", err)
			if !sleep(ctx, wait) {
				return
			}
		}
		select {
		case a.removed <- name:
		case <-ctx.Done():
		}
	})
}
