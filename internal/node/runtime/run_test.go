package runtime_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"baton/internal/model/spec"
	"baton/internal/node/agent"
	"baton/internal/node/runtime"
)

func TestRun(t *testing.T) {
	n := start(t)
	t.Run("both streams", func(t *testing.T) { runBothStreams(t, n) })
	t.Run("exit code", func(t *testing.T) { runExitCode(t, n) })
	t.Run("stop asks first", func(t *testing.T) { runStopAsksFirst(t, n) })
	t.Run("stop kills then", func(t *testing.T) { runStopKillsThen(t, n) })
	t.Run("out of memory", func(t *testing.T) { runOutOfMemory(t, n) })
	t.Run("safe from collection", func(t *testing.T) { runSafeFromCollection(t, n) })
	n.empty()
}

// A snapshot is not collected while its container is being recorded, and no lease is taken for that.
func runSafeFromCollection(t *testing.T, n *node) {
	id := n.mustStart(container("sleep"))
	info, err := n.Client().SnapshotService("overlayfs").Stat(t.Context(), id.String())
	if err != nil || info.Labels["containerd.io/gc.root"] == "" {
		t.Errorf("snapshot %+v, %v; want it marked as needed", info, err)
	}
	if ls, err := n.Client().LeasesService().List(t.Context()); err != nil || len(ls) != 0 {
		t.Errorf("leases %v, %v; want none", ls, err)
	}
}

func runBothStreams(t *testing.T, n *node) {
	id := n.mustStart(container("say", "to out", "to err"))
	if e := n.waitExit(id); e.Code != 0 || e.Signal != "" || e.OOM || e.Unknown || e.At.IsZero() {
		t.Errorf("exit = %+v, want a plain 0", e)
	}
	n.waitOutput(id, "to err")
	if got := n.output(id, runtime.Stdout); got != "to out\n" {
		t.Errorf("stdout = %q", got)
	}
	if got := n.output(id, runtime.Stderr); got != "to err\n" {
		t.Errorf("stderr = %q", got)
	}
}

func runExitCode(t *testing.T, n *node) {
	id := n.mustStart(container("exit", "42"))
	if e := n.waitExit(id); e.Code != 42 || e.Signal != "" {
		t.Errorf("exit = %+v, want 42", e)
	}
	// Starting it again neither runs it again nor fails.
	c := container("exit", "42")
	c.Task.ID = id
	n.mustStart(c)
	if e := n.waitExit(id); e.Code != 42 {
		t.Errorf("exit after a repeated start = %+v, want 42", e)
	}
}

func runStopAsksFirst(t *testing.T, n *node) {
	c := container("sleep")
	c.Spec.Container.StopSignal = "USR1"
	id := n.mustStart(c)
	n.mustStart(c)
	n.waitOutput(id, "ready")
	if o := n.observed(id); o.State != agent.ContainerRunning || o.PID == 0 || o.Started.IsZero() {
		t.Errorf("observed = %+v, want it running, with its process and start", o)
	}
	if err := n.Stop(t.Context(), id, 30*time.Second); err != nil {
		t.Fatal(err)
	}
	if o := n.observed(id); o.State != agent.ContainerExited || o.Exit.Code != 7 {
		t.Errorf("after stop = %+v, want exit code 7 of the signal's handler", o.Exit)
	}
	n.waitOutput(id, "got user defined signal 1")
	for range 2 {
		if err := n.Remove(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		if err := n.Stop(t.Context(), id, time.Second); err != nil {
			t.Fatal(err)
		}
	}
	if o := n.observed(id); o != nil {
		t.Errorf("after remove = %+v, want nothing", o)
	}
	if n.output(id) == "" {
		t.Error("the logs are gone with the container")
	}
}

func runStopKillsThen(t *testing.T, n *node) {
	id := n.mustStart(container("stubborn"))
	n.waitOutput(id, "ready")
	began := time.Now()
	if err := n.Stop(t.Context(), id, 300*time.Millisecond); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); took < 300*time.Millisecond {
		t.Errorf("killed after %s, before the grace period", took)
	}
	if e := n.observed(id).Exit; e == nil || e.Code != 137 || e.Signal != "SIGKILL" || e.OOM {
		t.Errorf("exit = %+v, want SIGKILL without OOM", e)
	}
}

func runOutOfMemory(t *testing.T, n *node) {
	c := container("eat", "200")
	c.Spec.Resources.Limits.Memory = 40 << 20
	id := n.mustStart(c)
	if e := n.waitExit(id); e.Code != 137 || !e.OOM || e.Signal != "SIGKILL" {
		t.Errorf("exit = %+v, want 137 by SIGKILL for memory", e)
	}
}

func TestRejected(t *testing.T) {
	n := start(t)
	for name, tt := range map[string]struct {
		change func(c *agent.Container)
		want   string
	}{
		"bad command":    {func(c *agent.Container) { c.Spec.Container.Entrypoint = []string{"/nothing"} }, "does not exist in the image"},
		"no program":     {func(c *agent.Container) { c.Spec.Container.Entrypoint = []string{"/text"} }, "may not be used"},
		"no command":     {func(c *agent.Container) { c.Spec.Container.Entrypoint, c.Spec.Container.Command = []string{}, nil }, "names no command"},
		"missing user":   {func(c *agent.Container) { c.Spec.Container.User = "nobody-here" }, "user does not exist"},
		"missing group":  {func(c *agent.Container) { c.Spec.Container.GroupAdd = []string{"wheel"} }, "group of group_add"},
		"missing image":  {func(c *agent.Container) { c.Spec.Image = "baton.test/none:1" }, "is not on this node"},
		"bad image name": {func(c *agent.Container) { c.Spec.Image = "UPPER CASE" }, "not valid"},
		"missing bind": {func(c *agent.Container) {
			c.Mounts = []agent.Mount{{Mount: spec.Mount{Kind: spec.MountBind, Target: "/x"}, HostPath: "/no/such/place"}}
		}, "bind source /no/such/place does not exist"},
		"capability":   {func(c *agent.Container) { c.Spec.Container.CapAdd = []string{"FLY"} }, "unknown capability"},
		"security_opt": {func(c *agent.Container) { c.Spec.Container.SecurityOpt = []string{"seccomp=/my.json"} }, "not supported"},
		"sysctl":       {func(c *agent.Container) { c.Spec.Container.Sysctls = map[string]string{"vm.swappiness": "1"} }, "whole machine"},
		"ulimit":       {func(c *agent.Container) { c.Spec.Container.Ulimits = []spec.Ulimit{{Name: "files"}} }, "unknown ulimit"},
		"stop signal":  {func(c *agent.Container) { c.Spec.Container.StopSignal = "SIGNOTHING" }, "unknown stop signal"},
		"device":       {func(c *agent.Container) { c.Spec.Container.Devices = []spec.Device{{Source: "/dev/none"}} }, "/dev/none"},
	} {
		t.Run(name, func(t *testing.T) {
			c := container("sleep")
			tt.change(&c)
			err := n.Start(t.Context(), c)
			var re *agent.RejectError
			if !errors.As(err, &re) {
				t.Fatalf("start = %v (%T), want a RejectError", err, err)
			}
			if !strings.Contains(re.Reason, tt.want) {
				t.Errorf("reason = %q (%v), want it to say %q", re.Reason, re.Err, tt.want)
			}
			if o := n.observed(c.Task.ID); o != nil {
				t.Errorf("left behind: %+v", o)
			}
		})
	}
	n.empty()
}
