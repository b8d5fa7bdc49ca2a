package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"baton/client/api"
	"baton/internal/model/cluster"
	"baton/internal/model/compose"
)

// stackName is the name of the bench's stack, and webName that of its service.
const (
	stackName = "bench"
	webName   = "web"
)

// under starts containers as a user does: a stack is deployed and removed through the API, and watched as `baton up` watches it.
type under struct {
	m *machine
	// resident is how many processes the node has without containers.
	resident int
	// last is what the newest start cost those processes that were there before.
	last map[string]time.Duration
}

// stack is the Compose file of a service with n replicas; more is added to its deploy section. The image's health check is off: it
// runs a command in the container, which is a cost of its own that runc and the shim alone have no counterpart for.
func stack(ctx context.Context, n int, round int, more string) (api.UpRequest, error) {
	file := fmt.Sprintf(`name: %s
services:
  %s:
    image: baton.test/web:v1
    environment: {ROUND: "%d"}
    healthcheck: {disable: true}
    deploy: {replicas: %d%s}
`, stackName, webName, round, n, more)
	res, err := compose.Load(ctx, compose.Options{Files: []string{"-"}, Content: []byte(file), WorkingDir: "/"})
	if err != nil {
		return api.UpRequest{}, err
	}
	return api.UpRequest{Stack: *res.Stack}, nil
}

func (u *under) cpu() (time.Duration, error) { return u.m.cpu() }

// start returns when n tasks get traffic; `baton up` would go on and watch them for the time of the monitor.
func (u *under) start(ctx context.Context, n int) error {
	before, err := u.m.usages()
	if err != nil {
		return err
	}
	err = u.deploy(ctx, n, 0, "", func(st api.Status) bool {
		return len(st.Services) == 1 && st.Services[0].Status.Ready == n
	})
	if err != nil {
		return err
	}
	after, err := u.m.usages()
	if err != nil {
		return err
	}
	u.last = make(map[string]time.Duration)
	for _, b := range before {
		for _, a := range after {
			if a.pid == b.pid {
				u.last[a.name] += a.cpu - b.cpu
			}
		}
	}
	for _, a := range after {
		if a.name == "shim" {
			u.last[a.name] += a.cpu
		}
	}
	return nil
}

// shares tells what the newest start of n containers cost per container, by process.
func (u *under) shares(n int) string {
	var out []string
	for _, name := range []string{"baton", "containerd", "shim", "logger"} {
		out = append(out, name+" "+short(u.last[name]/time.Duration(n)))
	}
	return strings.Join(out, ", ") + " each"
}

// up deploys the stack and waits until it is healthy.
func (u *under) up(ctx context.Context, n, round int, more string) error {
	return u.deploy(ctx, n, round, more, func(st api.Status) bool { return st.Healthy })
}

func (u *under) deploy(ctx context.Context, n, round int, more string, done func(api.Status) bool) error {
	req, err := stack(ctx, n, round, more)
	if err != nil {
		return err
	}
	res, err := u.m.client.Up(ctx, req)
	if err != nil {
		return err
	}
	for st, err := range u.m.client.WatchStack(ctx, stackName) {
		switch {
		case err != nil:
			return err
		case st.Version < res.Version:
		case st.Release.State == cluster.ReleaseFailed, st.Release.Number != res.Release:
			return fmt.Errorf("release %d is %s: %s", res.Release, st.Release.State, st.Release.Reason)
		case done(st):
			return nil
		}
	}
	return errors.Join(ctx.Err(), errors.New("the watch ended before the stack was healthy"))
}

// remove returns when the stack is gone from the store and its shims from the machine; without a stack, at once.
func (u *under) remove(ctx context.Context) error {
	var missing *api.Error
	_, err := u.m.client.Down(ctx, stackName, false)
	if errors.As(err, &missing) && missing.Code == api.CodeNotFound {
		return nil
	}
	if err != nil {
		return err
	}
	for st, err := range u.m.client.WatchStack(ctx, stackName) {
		var e *api.Error
		switch {
		case errors.As(err, &e) && e.Code == api.CodeNotFound, err == nil && st.Gone:
			return emptied(ctx, u.m.group, u.resident)
		case err != nil:
			return err
		}
	}
	return errors.Join(ctx.Err(), errors.New("the watch ended before the stack was gone"))
}

// tasks lists the tasks that get traffic.
func (u *under) tasks(ctx context.Context) ([]api.Task, error) {
	all, err := u.m.client.Tasks(ctx, stackName, webName, false)
	if err != nil {
		return nil, err
	}
	var out []api.Task
	for _, t := range all {
		if t.Ready && t.Desired == cluster.DesiredRun {
			out = append(out, t)
		}
	}
	return out, nil
}

// killed ends the only task's process from outside and returns how long it takes until another one is ready.
func (u *under) killed(ctx context.Context) (time.Duration, error) {
	before, err := u.tasks(ctx)
	if err != nil || len(before) != 1 {
		return 0, fmt.Errorf("want one ready task, got %d: %w", len(before), err)
	}
	pid, err := firstProcess(u.m, before[0].ID.String())
	if err != nil {
		return 0, err
	}
	changes, end := context.WithCancel(ctx)
	defer end()
	began := time.Now()
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		return 0, err
	}
	for st, err := range u.m.client.WatchStack(changes, stackName) {
		if err != nil {
			return 0, err
		}
		if len(st.Services) != 1 || st.Services[0].Status.Ready != 1 {
			continue
		}
		now, err := u.tasks(ctx)
		if err != nil {
			return 0, err
		}
		if len(now) == 1 && now[0].ID != before[0].ID {
			return time.Since(began), nil
		}
	}
	return 0, errors.Join(ctx.Err(), errors.New("the watch ended before the task was replaced"))
}

// firstProcess finds a task's main process by its cgroup.
func firstProcess(m *machine, task string) (int, error) {
	for _, top := range []string{"/sys/fs/cgroup/pids", "/sys/fs/cgroup"} {
		b, err := os.ReadFile(filepath.Join(top, m.cgroup(), task, "cgroup.procs"))
		if err != nil {
			continue
		}
		if f := strings.Fields(string(b)); len(f) > 0 {
			return strconv.Atoi(f[0])
		}
	}
	return 0, fmt.Errorf("task %s has no process", task)
}
