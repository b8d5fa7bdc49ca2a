// Package agenttest is the suite that every implementation of the agent's seams must pass: the one on real machines and the
// one in the simulation, so that what the simulation shows holds for machines.
//
//	func TestExecutor(t *testing.T) {
//		agenttest.Executor(t, agenttest.ExecutorEnv{Executor: r, Sleeps: …, Exits: …, Missing: …, Reach: …})
//	}
//
// Concurrency: a suite runs its tests one after another.
package agenttest

import (
	"errors"
	"reflect"
	"testing"
	"time"

	"baton/internal/model/cluster"
	"baton/internal/node/agent"
)

// ExecutorEnv is an executor with what the suite has to run on it.
type ExecutorEnv struct {
	Executor agent.Executor
	// Sleeps is a task that runs until it is stopped, and then ends; Exits one that ends at once with code 3; Missing one
	// whose image is nowhere. Each call makes another task.
	Sleeps, Exits, Missing func() agent.Container
	// Reach lets time pass until the condition holds, or fails the test.
	Reach func(t *testing.T, what string, done func() bool)
}

// grace is what tasks of the suite have after their stop signal.
const grace = 5 * time.Second

// Executor runs the suite.
func Executor(t *testing.T, env ExecutorEnv) {
	for _, c := range []struct {
		name string
		run  func(t *testing.T, env ExecutorEnv)
	}{
		{"a task runs until it is stopped", runsUntilStopped},
		{"starting a running task changes nothing", startsOnce},
		{"an ended task does not run again", staysEnded},
		{"a removed task is gone", goes},
		{"a running task can be removed", goesRunning},
		{"what is not there can be stopped and removed", nothingThere},
		{"a missing image is rejected", rejects},
	} {
		t.Run(c.name, func(t *testing.T) { c.run(t, env) })
	}
	if list, err := env.Executor.Observe(t.Context()); err != nil || len(list) != 0 {
		t.Errorf("after the suite %+v is observed, %v", list, err)
	}
}

// see observes one task; nil: it is not there.
func (env ExecutorEnv) see(t *testing.T, id cluster.ID) *agent.Observed {
	t.Helper()
	list, err := env.Executor.Observe(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	if len(list) == 0 {
		return nil
	}
	if len(list) > 1 || list[0].Task != id {
		t.Fatalf("asked for task %s, %+v is observed", id, list)
	}
	return &list[0]
}

// among observes all tasks, and picks one; nil: it is not there.
func (env ExecutorEnv) among(t *testing.T, id cluster.ID) *agent.Observed {
	t.Helper()
	list, err := env.Executor.Observe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for i := range list {
		if list[i].Task == id {
			return &list[i]
		}
	}
	return nil
}

func (env ExecutorEnv) start(t *testing.T, c agent.Container) {
	t.Helper()
	if err := env.Executor.Pull(t.Context(), c.Spec.Image, c.Spec.Pull); err != nil {
		t.Fatal("pull: ", err)
	}
	if err := env.Executor.Start(t.Context(), c); err != nil {
		t.Fatal("start: ", err)
	}
}

func (env ExecutorEnv) remove(t *testing.T, id cluster.ID) {
	t.Helper()
	if err := env.Executor.Remove(t.Context(), id); err != nil {
		t.Fatal("remove: ", err)
	}
	if o := env.see(t, id); o != nil {
		t.Errorf("after its removal it is observed as %+v", o)
	}
}

func runsUntilStopped(t *testing.T, env ExecutorEnv) {
	c := env.Sleeps()
	env.start(t, c)
	o := env.see(t, c.Task.ID)
	if o == nil || o.State != agent.ContainerRunning || o.Started.IsZero() || o.Exit != nil {
		t.Fatalf("observed %+v, want it running since its start", o)
	}
	if err := env.Executor.Stop(t.Context(), c.Task.ID, grace); err != nil {
		t.Fatal("stop: ", err)
	}
	if o = env.see(t, c.Task.ID); o == nil || o.State != agent.ContainerExited || o.Exit == nil || o.Exit.At.IsZero() {
		t.Fatalf("after the stop observed %+v, want it ended when Stop returns", o)
	}
	env.remove(t, c.Task.ID)
}

func startsOnce(t *testing.T, env ExecutorEnv) {
	c := env.Sleeps()
	env.start(t, c)
	first := env.see(t, c.Task.ID)
	env.start(t, c)
	if again := env.see(t, c.Task.ID); first == nil || again == nil || again.PID != first.PID || !again.Started.Equal(first.Started) {
		t.Errorf("observed %+v, then %+v", first, again)
	}
	if all := env.among(t, c.Task.ID); !reflect.DeepEqual(all, first) {
		t.Errorf("among all tasks %+v is observed, alone %+v", all, first)
	}
	if err := env.Executor.Stop(t.Context(), c.Task.ID, grace); err != nil {
		t.Fatal("stop: ", err)
	}
	env.remove(t, c.Task.ID)
}

func staysEnded(t *testing.T, env ExecutorEnv) {
	c := env.Exits()
	env.start(t, c)
	ended := func() bool {
		o := env.see(t, c.Task.ID)
		return o != nil && o.State == agent.ContainerExited
	}
	env.Reach(t, "the task ends", ended)
	first := env.see(t, c.Task.ID)
	if first.Exit == nil || first.Exit.Code != 3 || first.Exit.Unknown || first.Exit.OOM || first.Exit.Signal != "" {
		t.Errorf("ended with %+v, want code 3", first.Exit)
	}
	if all := env.among(t, c.Task.ID); !reflect.DeepEqual(all, first) {
		t.Errorf("among all tasks %+v is observed, alone %+v", all, first)
	}
	env.start(t, c)
	if o := env.see(t, c.Task.ID); o == nil || o.State != agent.ContainerExited || !o.Started.Equal(first.Started) {
		t.Errorf("after another start observed %+v, want it ended as before", o)
	}
	if err := env.Executor.Stop(t.Context(), c.Task.ID, grace); err != nil {
		t.Errorf("stop of an ended task: %v", err)
	}
	env.remove(t, c.Task.ID)
}

func goes(t *testing.T, env ExecutorEnv) {
	c := env.Exits()
	env.start(t, c)
	env.Reach(t, "the task ends", func() bool {
		o := env.see(t, c.Task.ID)
		return o != nil && o.State == agent.ContainerExited
	})
	for range 2 {
		env.remove(t, c.Task.ID)
	}
	if one, all := env.see(t, c.Task.ID), env.among(t, c.Task.ID); one != nil || all != nil {
		t.Errorf("a removed task is observed: alone %+v, among all %+v", one, all)
	}
}

func goesRunning(t *testing.T, env ExecutorEnv) {
	c := env.Sleeps()
	env.start(t, c)
	env.remove(t, c.Task.ID)
}

func nothingThere(t *testing.T, env ExecutorEnv) {
	id := cluster.ID{0: 9, 15: 9}
	if err := env.Executor.Stop(t.Context(), id, grace); err != nil {
		t.Errorf("stop: %v", err)
	}
	if err := env.Executor.Remove(t.Context(), id); err != nil {
		t.Errorf("remove: %v", err)
	}
}

func rejects(t *testing.T, env ExecutorEnv) {
	c := env.Missing()
	var reject *agent.RejectError
	if err := env.Executor.Pull(t.Context(), c.Spec.Image, c.Spec.Pull); !errors.As(err, &reject) || reject.Reason == "" {
		t.Errorf("pull: %v, want it rejected with the reason", err)
	}
	if o := env.see(t, c.Task.ID); o != nil {
		t.Errorf("observed %+v of a task that never was started", o)
	}
}
