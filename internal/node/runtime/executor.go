package runtime

import (
	"context"
	"errors"
	"fmt"
	"time"

	tasksapi "github.com/containerd/containerd/api/services/tasks/v1"
	tasktypes "github.com/containerd/containerd/api/types/task"
	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"golang.org/x/sys/unix"

	"baton/internal/model/cluster"
	"baton/internal/node/agent"
)

const (
	// retryPause is between attempts while containerd is away.
	retryPause = 200 * time.Millisecond
	// killMax is how long the kernel may take to end a killed process before Stop reports an error.
	killMax = 30 * time.Second
)

// Labels of our containers.
const (
	labelSignal  = "baton/stop-signal" // number
	labelStack   = "baton/stack"
	labelService = "baton/service"
	labelSlot    = "baton/slot"
	labelGroup   = "baton/shim-group" // the task that founded the group whose shim this one lives in
	labelKin     = "baton/shim-kin"   // tasks of equal kin are spread over shims
)

// Observe implements agent.Executor.
func (r *Runtime) Observe(ctx context.Context, of ...cluster.ID) ([]agent.Observed, error) {
	if len(of) > 0 {
		return r.observeEach(ctx, of)
	}
	cs, procs, err := r.listAll(ctx)
	if err != nil {
		return nil, err
	}
	var out []agent.Observed
	for _, c := range cs {
		if id, err := cluster.ParseID(c.ID); err == nil {
			out = append(out, r.observe(id, procs[c.ID]))
		}
	}
	r.checkLoggers(out)
	return out, nil
}

// observeEach observes some tasks. To list all containers makes containerd ask every shim.
func (r *Runtime) observeEach(ctx context.Context, of []cluster.ID) ([]agent.Observed, error) {
	var out []agent.Observed
	for _, id := range of {
		resp, err := r.client.TaskService().Get(ctx, &tasksapi.GetRequest{ContainerID: id.String()})
		if err == nil {
			out = append(out, r.observe(id, resp.Process))
			continue
		}
		if err = errgrpc.ToNative(err); !errdefs.IsNotFound(err) {
			return nil, fmt.Errorf("process of task %s: %w", id.Short(), err)
		}
		_, err = r.client.ContainerService().Get(ctx, id.String())
		if err == nil {
			out = append(out, r.observe(id, nil))
		} else if !errdefs.IsNotFound(err) {
			return nil, fmt.Errorf("container of task %s: %w", id.Short(), err)
		}
	}
	return out, nil
}

// listAll lists the containers, and their processes by container.
func (r *Runtime) listAll(ctx context.Context) ([]containers.Container, map[string]*tasktypes.Process, error) {
	// Containers before tasks: one that is made in between is seen as created at worst, one that is removed as gone.
	cs, err := r.client.ContainerService().List(ctx)
	if err != nil {
		return nil, nil, fmt.Errorf("list containers: %w", err)
	}
	resp, err := r.client.TaskService().List(ctx, &tasksapi.ListTasksRequest{})
	if err != nil {
		return nil, nil, fmt.Errorf("list tasks: %w", errgrpc.ToNative(err))
	}
	procs := make(map[string]*tasktypes.Process, len(resp.Tasks))
	for _, p := range resp.Tasks {
		procs[p.ID] = p
	}
	return cs, procs, nil
}

// observe judges one container by its process as containerd sees it, nil for none, and by our own record.
func (r *Runtime) observe(id cluster.ID, p *tasktypes.Process) agent.Observed {
	o := agent.Observed{Task: id, State: agent.ContainerCreated}
	if p != nil && p.Status == tasktypes.Status_CREATED {
		return o
	}
	o.Started = r.tasks.started(id)
	switch {
	case p != nil && p.Status == tasktypes.Status_STOPPED:
		o.State, o.Exit = agent.ContainerExited, r.noteExit(id, p.ExitStatus, p.ExitedAt)
	case p != nil:
		o.State, o.PID = agent.ContainerRunning, int(p.Pid)
	case r.tasks.exit(id) != nil:
		o.State, o.Exit = agent.ContainerExited, r.tasks.exit(id)
	case o.Started.IsZero():
	case r.shimLives(id):
		// containerd leaves out tasks whose shim is too slow to tell; taking that for an end would start a second one.
		o.State = agent.ContainerRunning
	default:
		founder, _ := r.groups.groupOf(id)
		r.groups.ended(id)
		r.groups.shut(founder)
		o.State, o.Exit = agent.ContainerExited, &cluster.Exit{Unknown: true, At: time.Now().UTC()}
		if e, err := r.tasks.end(id, *o.Exit); err == nil {
			o.Exit = e
		}
	}
	return o
}

// Stop implements agent.Executor.
func (r *Runtime) Stop(ctx context.Context, id cluster.ID, grace time.Duration) error {
	c, err := r.client.LoadContainer(ctx, id.String())
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("stop task %s: %w", id.Short(), err)
	}
	labels, err := c.Labels(ctx)
	if err != nil {
		return fmt.Errorf("stop task %s: %w", id.Short(), err)
	}
	if grace > 0 {
		soft, cancel := context.WithTimeout(ctx, grace)
		over, err := r.signalAndWait(soft, c, signalNumber(labels[labelSignal]))
		cancel()
		if over || ctx.Err() != nil {
			return errors.Join(ctx.Err(), err)
		}
	}
	hard, cancel := context.WithTimeout(ctx, killMax)
	defer cancel()
	over, err := r.signalAndWait(hard, c, unix.SIGKILL)
	if !over {
		return fmt.Errorf("stop task %s: its process does not end: %w", id.Short(), errors.Join(err, hard.Err()))
	}
	return nil
}

// signalAndWait signals the main process and waits for its end, over restarts of containerd. over is true when it has ended, or never
// ran.
func (r *Runtime) signalAndWait(ctx context.Context, c containerd.Container, sig unix.Signal) (over bool, err error) {
	sent := false
	for {
		over, err = r.tryWait(ctx, c, sig, &sent)
		if over {
			return true, nil
		}
		select {
		case <-ctx.Done():
			return false, err
		case <-time.After(retryPause):
		}
	}
}

func (r *Runtime) tryWait(ctx context.Context, c containerd.Container, sig unix.Signal, sent *bool) (over bool, err error) {
	t, err := c.Task(ctx, nil)
	if errdefs.IsNotFound(err) {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ended, err := t.Wait(ctx) // before the signal, so that the end cannot be missed
	if err != nil {
		return errdefs.IsNotFound(err), err
	}
	if !*sent {
		switch err := t.Kill(ctx, sig); {
		case err == nil:
			*sent = true
		case errdefs.IsNotFound(err):
			return true, nil
		case errdefs.IsFailedPrecondition(err): // created, not started
			_, err = t.Delete(ctx, containerd.WithProcessKill)
			return err == nil, err
		default:
			return false, err
		}
	}
	select {
	case s := <-ended:
		_, _, err := s.Result()
		return err == nil, err
	case <-ctx.Done():
		return false, ctx.Err()
	}
}

// signalNumber reads a label; a container without one gets SIGTERM.
func signalNumber(label string) unix.Signal {
	if n := unix.SignalNum(label); n != 0 {
		return n
	}
	return unix.SIGTERM
}

// Remove implements agent.Executor. A container that still runs is killed.
func (r *Runtime) Remove(ctx context.Context, id cluster.ID) error {
	leave, err := r.busy.enter(ctx, id.String())
	if err != nil {
		return err
	}
	defer leave()
	if err := r.remove(ctx, id); err != nil {
		return fmt.Errorf("remove task %s: %w", id.Short(), err)
	}
	return nil
}

// remove deletes everything of a task but its logs. The record goes last: until then Observe still knows how the task ended.
func (r *Runtime) remove(ctx context.Context, id cluster.ID) error {
	orderly, err := r.removeContainer(ctx, id)
	if err != nil {
		return err
	}
	if err := r.endShim(ctx, id, orderly); err != nil {
		return err
	}
	r.endOutput(id)
	if err := r.client.SnapshotService(snapshotter).Remove(ctx, id.String()); err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("snapshot: %w", err)
	}
	killCgroup(r.taskCgroup(id))
	if err := removeCgroup(r.taskCgroup(id)); err != nil {
		return err
	}
	r.logMu.Lock()
	delete(r.logged, id)
	r.logMu.Unlock()
	r.groups.leave(id)
	return r.tasks.remove(id)
}

// removeContainer deletes the container, and its process from its shim. It is orderly when there was one and the shim let go of it.
func (r *Runtime) removeContainer(ctx context.Context, id cluster.ID) (orderly bool, err error) {
	c, err := r.client.LoadContainer(ctx, id.String())
	if err != nil {
		if errdefs.IsNotFound(err) {
			err = nil
		}
		return false, err
	}
	t, err := c.Task(ctx, nil)
	if err == nil {
		r.groups.depart(ctx, id)
		_, err = t.Delete(ctx, containerd.WithProcessKill)
		orderly = err == nil
	}
	if err != nil && !errdefs.IsNotFound(err) {
		return false, err
	}
	if err := c.Delete(ctx); err != nil && !errdefs.IsNotFound(err) {
		return false, err
	}
	return orderly, nil
}

// sweep removes what an earlier runtime left half-made: records and snapshots without a container, and its leases. Containers
// themselves are the agent's to judge; a half-made one is observed as created.
func (r *Runtime) sweep(ctx context.Context) error {
	if err := r.dropLeases(ctx); err != nil {
		return err
	}
	cs, err := r.client.ContainerService().List(ctx)
	if err != nil {
		return err
	}
	have := map[string]bool{}
	for _, c := range cs {
		have[c.ID] = true
	}
	ids, err := r.tasks.list()
	if err != nil {
		return err
	}
	snaps, err := r.taskSnapshots(ctx)
	if err != nil {
		return err
	}
	for _, id := range append(ids, snaps...) {
		if !have[id.String()] {
			if err := r.remove(ctx, id); err != nil {
				return err
			}
		}
	}
	return nil
}
