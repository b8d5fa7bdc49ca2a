package runtime

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	task "github.com/containerd/containerd/api/runtime/task/v3"
	tasktypes "github.com/containerd/containerd/api/types/task"
	"github.com/containerd/ttrpc"
	"google.golang.org/protobuf/types/known/timestamppb"

	"baton/internal/model/cluster"
)

const (
	// shimAnswerMax is how long a shim may take to tell its state.
	shimAnswerMax = 5 * time.Second
	// shimsAtOnce is how many shims are asked at the same time.
	shimsAtOnce = 16
)

// harvest asks every live shim for its task's state and notes the exits: a containerd that starts takes a shim whose process has
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
	endLogger(filepath.Join(r.cfg.LogsDir(), id.String()))
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
