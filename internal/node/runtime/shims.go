package runtime

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	task "github.com/containerd/containerd/api/runtime/task/v3"
	tasktypes "github.com/containerd/containerd/api/types/task"
	"github.com/containerd/ttrpc"
	"google.golang.org/protobuf/types/known/timestamppb"

	"baton/internal/model/cluster"
	"baton/internal/node/shim"
)

const (
	// shimAnswerMax is how long a shim may take to tell its state.
	shimAnswerMax = 5 * time.Second
	// shimsAtOnce is how many shims are asked at the same time.
	shimsAtOnce = 16
	// shimSearches is how often abandoned shims are looked for: one that was being forked appears only later.
	shimSearches = 10
	// shimLooksMax is how long Observe waits for the word of a shim that containerd found too slow.
	shimLooksMax = time.Second
)

// harvest asks the live shims for each task's state and notes the exits: a containerd that starts takes a shim whose process has
// ended for a leak and throws it away, exit code included. For tasks that still run, a wait stays open at their shim, so that an end
// between the question and containerd's own start is noted too. done ends these waits.
func (r *Runtime) harvest(ctx context.Context) (done func()) {
	dir := filepath.Join(r.cfg.stateDir(), "io.containerd.runtime.v2.task", namespace)
	es, err := os.ReadDir(dir)
	if err != nil {
		return func() {} // no containerd was ever here
	}
	watch, cancel := context.WithCancel(ctx)
	var asking, waiting sync.WaitGroup
	slots := make(chan struct{}, shimsAtOnce)
	for _, e := range es {
		id, err := cluster.ParseID(e.Name())
		if err != nil || r.tasks.exit(id) != nil {
			continue
		}
		slots <- struct{}{}
		asking.Go(func() {
			defer func() { <-slots }()
			s, err := dialShim(filepath.Join(dir, e.Name()))
			if err != nil {
				r.log.Warn("a shim does not answer; its task's exit code may be lost", "task", id, "err", err)
				return
			}
			if r.askShim(watch, s, id) {
				_ = s.Close()
				return
			}
			waiting.Go(func() {
				defer s.Close()
				w, err := task.NewTTRPCTaskClient(s).Wait(watch, &task.WaitRequest{ID: id.String()})
				if err == nil {
					r.noteExit(id, w.ExitStatus, w.ExitedAt)
				}
			})
		})
	}
	asking.Wait()
	return func() {
		cancel()
		waiting.Wait()
	}
}

// askShim notes the task's exit if it has ended, and reports whether there is nothing to wait for.
func (r *Runtime) askShim(ctx context.Context, s *ttrpc.Client, id cluster.ID) (over bool) {
	ctx, cancel := context.WithTimeout(ctx, shimAnswerMax)
	defer cancel()
	st, err := task.NewTTRPCTaskClient(s).State(ctx, &task.StateRequest{ID: id.String()})
	if err != nil {
		r.log.Warn("a shim does not tell its task's state", "task", id, "err", err)
		return true
	}
	if st.Status == tasktypes.Status_STOPPED {
		r.noteExit(id, st.ExitStatus, st.ExitedAt)
		return true
	}
	return false
}

// noteExit keeps a task's end as the shim or containerd tells it.
func (r *Runtime) noteExit(id cluster.ID, status uint32, at *timestamppb.Timestamp) *cluster.Exit {
	if e := r.tasks.exit(id); e != nil {
		return e
	}
	r.groups.ended(id)
	r.endOutput(id)
	oom := r.tasks.oomed(id) || oomKills(r.v2, r.taskCgroup(id)) > 0
	e, err := r.tasks.end(id, exitOf(status, at.AsTime(), oom))
	if err != nil {
		r.log.Error("an exit code is not on disk", "task", id, "err", err)
		x := exitOf(status, at.AsTime(), oom)
		return &x
	}
	return e
}

// dialShim connects to the shim of a bundle directory.
func dialShim(bundle string) (*ttrpc.Client, error) {
	b, err := os.ReadFile(filepath.Join(bundle, "bootstrap.json"))
	if err != nil {
		return nil, err
	}
	var boot struct {
		Address  string `json:"address"`
		Protocol string `json:"protocol"`
	}
	if err := json.Unmarshal(b, &boot); err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Join(bundle, "bootstrap.json"), err)
	}
	path, ok := strings.CutPrefix(boot.Address, "unix://")
	if !ok || boot.Protocol != "ttrpc" {
		return nil, fmt.Errorf("shim at %q speaks %q: want ttrpc on a unix socket", boot.Address, boot.Protocol)
	}
	c, err := net.DialTimeout("unix", path, shimAnswerMax)
	if err != nil {
		return nil, err
	}
	return ttrpc.NewClient(c), nil
}

// shimLives reports whether the task's shim has it still, or is too slow to say: containerd leaves out tasks whose shim does not answer
// in time, and taking that for an end would start a second one. That a shim listens says nothing: it may serve others.
func (r *Runtime) shimLives(id cluster.ID) bool {
	s, err := dialShim(filepath.Join(r.cfg.stateDir(), "io.containerd.runtime.v2.task", namespace, id.String()))
	if err != nil {
		return false
	}
	defer s.Close()
	ctx, cancel := context.WithTimeout(context.Background(), shimLooksMax)
	defer cancel()
	_, err = task.NewTTRPCTaskClient(s).State(ctx, &task.StateRequest{ID: id.String()})
	return err == nil || ctx.Err() != nil
}

// shimGone reports whether a start failed because the shim of the group that it was to join has ended, or is about to.
func (r *Runtime) shimGone(founder cluster.ID, err error) bool {
	if msg := err.Error(); strings.Contains(msg, shim.GoneSign) || strings.Contains(msg, ttrpc.ErrClosed.Error()) {
		return true
	}
	return !listens(r.shimSocket(founder))
}

// listens reports whether a process serves a unix socket. A shim does from before it is forked until its very end.
func listens(socket string) bool {
	c, err := net.DialTimeout("unix", socket, shimAnswerMax)
	if err != nil {
		return false
	}
	_ = c.Close()
	return true
}

// shimSocket is where containerd lets the shim of a group listen.
func (r *Runtime) shimSocket(founder cluster.ID) string {
	return shim.SocketPath(r.cfg.socket(), namespace, founder.String())
}

// endShim makes sure that the shim of a removed task is gone if no other task lives in it. One whose containerd or agent died while
// the task was being made is not known to containerd, which would hand the next attempt to it in the middle of the first. After an
// orderly end there is none unless it still listens.
func (r *Runtime) endShim(ctx context.Context, id cluster.ID, orderly bool) error {
	founder, shared := r.groups.groupOf(id)
	if shared {
		return nil
	}
	if _, err := os.Stat(r.tasks.path(id)); errors.Is(err, fs.ErrNotExist) {
		return nil // never begun
	}
	if !orderly || listens(r.shimSocket(founder)) {
		err := r.killShims(ctx, func(of cluster.ID) bool { return of == founder || of == id })
		if err != nil {
			return err
		}
	}
	return os.RemoveAll(r.shimSocket(founder))
}

// killShims ends the shims, and the commands that start them, of the groups that abandoned names.
func (r *Runtime) killShims(ctx context.Context, abandoned func(founder cluster.ID) bool) error {
	for range shimSearches {
		ps, err := processes(func(args []string) bool {
			id, ok := shimOf(args, r.cfg.socket())
			return ok && abandoned(id)
		})
		if err != nil {
			return err
		}
		for _, p := range ps {
			r.log.Warn("killing an abandoned shim", "pid", p.pid, "args", p.args)
			if err := p.end(ctx, 0); err != nil {
				return err
			}
		}
		if len(ps) == 0 {
			break
		}
	}
	return nil
}

// shimOf reads the command line of a shim of the containerd with this socket, or of a command that starts one. Commands that clean up end
// by themselves.
func shimOf(args []string, socket string) (id cluster.ID, ok bool) {
	if base := filepath.Base(args[0]); base != shim.Executable && base != shim.Program {
		return id, false
	}
	i := slices.Index(args, "-id")
	if i < 0 || args[len(args)-1] == "delete" || i+1 >= len(args) || !slices.Contains(args, socket) {
		return id, false
	}
	id, err := cluster.ParseID(args[i+1])
	return id, err == nil
}

// sweepShims ends the shims whose tasks are all forgotten. Nothing is being started yet.
func (r *Runtime) sweepShims(ctx context.Context) error {
	return r.killShims(ctx, func(founder cluster.ID) bool { return !r.groups.known(founder) })
}
