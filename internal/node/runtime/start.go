package runtime

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"time"

	tasksapi "github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/api/types/runc/options"
	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/typeurl/v2"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"baton/internal/model/cluster"
	"baton/internal/node/agent"
	"baton/internal/node/logger"
	"baton/internal/node/shim"
)

const (
	// leasePrefix marks the leases with which earlier versions kept a container's parts while it was made.
	leasePrefix = "baton-start-"
	// labelKeep keeps a snapshot from being collected before its container is recorded. It is removed by name, or swept by the next
	// runtime. (A lease would do the same for two more transactions of containerd's database, each with its fsync.)
	labelKeep = "containerd.io/gc.root"
	// startMax bounds one start, once it has its turn.
	startMax = 2 * time.Minute
	// undoMax bounds the removal of what a failed start had made.
	undoMax = 30 * time.Second
)

// Start implements agent.Executor. A container that ran already, or still runs, is left as it is; one whose start was interrupted is
// made anew, because what it was to get may have changed since.
func (r *Runtime) Start(ctx context.Context, c agent.Container) error {
	if c.Task == nil || c.Spec == nil {
		return errors.New("start: a container needs its task and its service's spec")
	}
	id := c.Task.ID
	leave, err := r.busy.enter(ctx, id.String())
	if err != nil {
		return err
	}
	defer leave()
	select {
	case r.starts <- struct{}{}:
		defer func() { <-r.starts }()
	case <-ctx.Done():
		return ctx.Err()
	}
	done, err := r.begun(ctx, id)
	if done || err != nil {
		return err
	}
	bound, cancel := context.WithTimeout(ctx, startMax)
	defer cancel()
	if err := r.startOrUndo(bound, id, c); err != nil {
		return fmt.Errorf("start task %s: %w", id.Short(), explain(err))
	}
	return nil
}

// startOrUndo starts the container, or leaves nothing of it. A shim that ends just when the task is to join it is answered by a second
// try with a shim of its own.
func (r *Runtime) startOrUndo(ctx context.Context, id cluster.ID, c agent.Container) error {
	err := r.start(ctx, id, c, false)
	if err == nil {
		return nil
	}
	founder, _ := r.groups.groupOf(id)
	r.undo(ctx, id)
	if founder == id || ctx.Err() != nil || !r.shimGone(founder, err) {
		return err
	}
	r.log.Info("the shim that a task was to join has ended; it gets one of its own", "task", id, "shim", founder)
	r.groups.shut(founder)
	if err = r.start(ctx, id, c, true); err != nil {
		r.undo(ctx, id)
	}
	return err
}

// undo removes what a failed start had made.
func (r *Runtime) undo(ctx context.Context, id cluster.ID) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoMax)
	defer cancel()
	if err := r.remove(ctx, id); err != nil {
		r.log.Warn("a failed start left something behind; it is removed later", "task", id, "err", err)
	}
}

// begun reports whether the task's main process runs or ran. What is half-made it removes.
func (r *Runtime) begun(ctx context.Context, id cluster.ID) (bool, error) {
	if _, err := os.Stat(r.tasks.path(id)); errors.Is(err, fs.ErrNotExist) {
		return false, nil // its record is the first of all that is made, and the last that goes
	}
	c, err := r.client.LoadContainer(ctx, id.String())
	if err != nil && !errdefs.IsNotFound(err) {
		return false, fmt.Errorf("start task %s: %w", id.Short(), err)
	}
	if err == nil {
		t, err := c.Task(ctx, nil)
		if err != nil && !errdefs.IsNotFound(err) {
			return false, fmt.Errorf("start task %s: %w", id.Short(), err)
		}
		if err == nil {
			st, err := t.Status(ctx)
			if err != nil {
				return false, fmt.Errorf("start task %s: %w", id.Short(), err)
			}
			if st.Status != containerd.Created {
				return true, nil
			}
		} else if !r.tasks.started(id).IsZero() {
			return true, nil
		}
	}
	return false, r.remove(ctx, id)
}

// start makes and runs the container, with alone in a shim of its own. On an error the caller removes what is there.
func (r *Runtime) start(ctx context.Context, id cluster.ID, c agent.Container, alone bool) error {
	if err := prepareMounts(c.Mounts); err != nil {
		return err
	}
	if c.NetNS != "" {
		if _, err := os.Stat(c.NetNS); err != nil {
			return fmt.Errorf("network namespace: %w", err) // it is made again before the next attempt
		}
	}
	img, err := r.images.Get(ctx, c.Spec.Image)
	if err != nil {
		return err
	}
	conf, err := img.Spec(ctx)
	if err != nil {
		return fmt.Errorf("image %s: %w", c.Spec.Image, err)
	}
	dir := r.tasks.path(id)
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return err
	}
	if err := writeRecordFiles(dir, c); err != nil {
		return err
	}
	p := &plan{c: c, image: conf.Config, dir: dir, cgroup: r.taskCgroup(id), init: r.cfg.Init, unified: r.v2}
	s, err := p.build()
	if err != nil {
		return err
	}
	sig, err := stopSignal(c, conf.Config)
	if err != nil {
		return err
	}
	// The last of all that takes no place in a shim: others wait for one that is being started.
	kin := kinOf(c.Task)
	founder, err := r.groups.join(ctx, id, kin, alone)
	if err != nil {
		return err
	}
	s.Annotations = map[string]string{shim.GroupAnnotation: founder.String()}
	rootfs, err := r.record(ctx, img, s, append(p.userOpts(), p.finish), containers.Container{
		ID: id.String(),
		Labels: map[string]string{
			labelSignal: sig, labelStack: c.StackName, labelService: c.ServiceName, labelSlot: strconv.Itoa(c.Task.Slot),
			labelGroup: founder.String(), labelKin: kin,
		},
	})
	if err != nil {
		return err
	}
	if err := r.fillVolumes(ctx, id, c.Mounts); err != nil {
		return err
	}
	return r.run(ctx, id, rootfs, c)
}

// record makes the container's snapshot and record, and returns the mounts of its root. It does by itself what containerd's client does
// in NewContainer and NewTask, which ask containerd for what is known here: of a start's calls these were two in three.
func (r *Runtime) record(ctx context.Context, img containerd.Image, s *oci.Spec, opts []oci.SpecOpts, c containers.Container) ([]mount.Mount, error) {
	layers, err := img.RootFS(ctx)
	if err != nil {
		return nil, err
	}
	keep := snapshots.WithLabels(map[string]string{labelKeep: time.Now().UTC().Format(time.RFC3339)})
	rootfs, err := r.client.SnapshotService(snapshotter).Prepare(ctx, c.ID, identity.ChainID(layers).String(), keep)
	if err != nil {
		return nil, fmt.Errorf("snapshot: %w", err)
	}
	c.Image, c.Snapshotter, c.SnapshotKey = img.Name(), snapshotter, c.ID
	c.Runtime.Name = r.cfg.Shim
	if c.Runtime.Options, err = typeurl.MarshalAny(&options.Options{BinaryName: r.cfg.Runc, Root: r.cfg.runcRoot()}); err != nil {
		return nil, err
	}
	for _, o := range opts {
		if err := o(ctx, r.client, &c, s); err != nil {
			return nil, err
		}
	}
	if c.Spec, err = typeurl.MarshalAny(s); err != nil {
		return nil, err
	}
	_, err = r.client.ContainerService().Create(ctx, c)
	return rootfs, err
}

// run starts the container's main process.
func (r *Runtime) run(ctx context.Context, id cluster.ID, rootfs []mount.Mount, c agent.Container) error {
	l := c.Spec.Logging
	stdout, stderr, err := r.output.Open(ctx, id.String(), logger.Args{MaxSize: int64(l.MaxSize), MaxFiles: l.MaxFiles})
	if err != nil {
		return err
	}
	create := &tasksapi.CreateTaskRequest{ContainerID: id.String(), Rootfs: mount.ToProto(rootfs), Terminal: c.Spec.Container.TTY, Stdout: stdout}
	if !create.Terminal {
		create.Stderr = stderr
	}
	if _, err := r.client.TaskService().Create(ctx, create); err != nil {
		return errgrpc.ToNative(err)
	}
	r.groups.opened(id)
	// From here the task counts as started: should we die now, its end is reported and it is not run a second time.
	if err := r.tasks.start(id, time.Now()); err != nil {
		return err
	}
	if _, err := r.client.TaskService().Start(ctx, &tasksapi.StartRequest{ContainerID: id.String()}); err != nil {
		return errgrpc.ToNative(err)
	}
	return nil
}

// stopSignal is the name of the signal that asks the task to end.
func stopSignal(c agent.Container, img ocispec.ImageConfig) (string, error) {
	s := strings.ToUpper(first(c.Spec.Container.StopSignal, img.StopSignal, "SIGTERM"))
	if n, err := strconv.Atoi(s); err == nil {
		if name := unix.SignalName(unix.Signal(n)); name != "" {
			return name, nil
		}
	}
	if !strings.HasPrefix(s, "SIG") {
		s = "SIG" + s
	}
	if unix.SignalNum(s) == 0 {
		return "", reject("unknown stop signal %q", s)
	}
	return s, nil
}

// permanent are the errors of the runtime that no further attempt mends, by what they contain, with what to say about each. The first
// that fits counts.
var permanent = []struct{ sign, and, reason string }{
	{`init: exec: "`, "no such file or directory", "the command does not exist in the image: check command and entrypoint"},
	{"executable file not found", "", "the command does not exist in the image: check command and entrypoint"},
	{"exec format error", "", "the command was built for another platform than this node's"},
	{"no users found", "", "the user does not exist in the image: check user, or give numbers as UID:GID"},
	{"no groups found", "", "the group does not exist in the image: check user, or give numbers as UID:GID"},
	{"unable to find group", "", "a group of group_add does not exist in the image: give its number"},
	{"invalid USER value", "", "the user is not valid"},
	{"setting rlimit", "", "a ulimit is above what this node may give"},
	{"memory limit too low", "", "the memory limit is too low to start the container: raise resources.limits.memory"},
	{"minimum memory limit", "", "the memory limit is too low to start the container: raise resources.limits.memory"},
	{": is a directory: permission denied", "", "the command is a directory"},
	{"permission denied", "", "the command, or a path of the container, may not be used"},
	{"not a directory", "", "a mount does not fit its target: a file goes on a file, a directory on a directory"},
	{"unable to apply sysctl", "", "a sysctl cannot be set"},
	{"no such file or directory", "", "a file that the container needs does not exist: check command, working directory and mounts"},
}

// explain turns an error that will not go away into a RejectError.
func explain(err error) error {
	var re *agent.RejectError
	if errors.As(err, &re) || errdefs.IsUnavailable(err) || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	msg := err.Error()
	userError := strings.Contains(msg, "no users found") || strings.Contains(msg, "no groups found") ||
		strings.Contains(msg, "unable to find group") || strings.Contains(msg, "invalid USER value")
	if !userError && !strings.Contains(msg, "runc") && !strings.Contains(msg, "OCI runtime") {
		return err
	}
	for _, p := range permanent {
		if strings.Contains(msg, p.sign) && strings.Contains(msg, p.and) {
			return &agent.RejectError{Reason: p.reason, Err: err}
		}
	}
	return err
}

// dropLeases ends the leases of starts that an earlier version was interrupted in.
func (r *Runtime) dropLeases(ctx context.Context) error {
	ls, err := r.client.LeasesService().List(ctx)
	if err != nil {
		return err
	}
	for _, l := range ls {
		if strings.HasPrefix(l.ID, leasePrefix) {
			if err := r.client.LeasesService().Delete(ctx, l); err != nil && !errdefs.IsNotFound(err) {
				return err
			}
		}
	}
	return nil
}

// taskSnapshots lists the tasks that have a snapshot.
func (r *Runtime) taskSnapshots(ctx context.Context) ([]cluster.ID, error) {
	var ids []cluster.ID
	err := r.client.SnapshotService(snapshotter).Walk(ctx, func(_ context.Context, i snapshots.Info) error {
		if id, err := cluster.ParseID(i.Name); err == nil {
			ids = append(ids, id)
		}
		return nil
	})
	return ids, err
}
