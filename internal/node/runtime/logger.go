package runtime

import (
	"context"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"baton/internal/model/cluster"
	"baton/internal/node/agent"
	"baton/internal/node/logger"
	"baton/internal/wire/agentapi"
)

// endMax bounds the word to the logger that a task has ended; it does nothing then that takes long.
const endMax = 10 * time.Second

// LoggerCommand is the first argument of the logger; see package logger.
const LoggerCommand = logger.Command

// Names of the streams.
const (
	Stdout = logger.Stdout
	Stderr = logger.Stderr
)

// endOutput says that no more will come of an ended task: what is still under way is kept, then its log is closed, and with it those that
// follow it.
func (r *Runtime) endOutput(id cluster.ID) {
	ctx, cancel := context.WithTimeout(context.Background(), endMax)
	defer cancel()
	if err := r.output.End(ctx, id.String()); err != nil {
		r.log.Warn("the log of an ended task is not closed; its removal closes it", "task", id, "err", err)
	}
	endOwnLogger(filepath.Join(r.cfg.LogsDir(), id.String()))
}

// endOwnLogger is endOutput for a task that an earlier version started: it has a process of its own.
func endOwnLogger(dir string) {
	pid := logger.PID(dir)
	if pid == 0 {
		return
	}
	p, err := openProcess(pid)
	if err != nil {
		return
	}
	defer p.close()
	// The number may by now be another's.
	if len(p.args) == 3 && p.args[1] == LoggerCommand && strings.HasSuffix(p.args[2], ":"+dir) {
		_ = p.signal(unix.SIGTERM)
	}
}

// loggerRestarted tells that the process that keeps the output was found dead.
func (r *Runtime) loggerRestarted() {
	r.note(agentapi.Note{
		Type: "node.logger-restarted", At: time.Now(),
		Message: "the process that keeps the tasks' output ended and was started again; tasks that wrote much waited for it",
	})
}

// checkLoggers notes, once per task, that a running task of an earlier version has lost the process of its own that kept its output: what it
// writes now goes nowhere and may end it.
func (r *Runtime) checkLoggers(seen []agent.Observed) {
	for _, o := range seen {
		if o.State != agent.ContainerRunning {
			continue
		}
		alive, closed := logger.Alive(filepath.Join(r.cfg.LogsDir(), o.Task.String()))
		if alive || closed || r.output.Keeps(o.Task.String()) || !r.firstReport(o.Task) {
			continue
		}
		r.log.Warn("the logger of a running task died", "task", o.Task)
		r.note(agentapi.Note{
			Task: o.Task, Type: "task.logger-died", At: time.Now(),
			Message: "the process that keeps the task's output died: its output is lost from here, and writing may end it; restart the service",
		})
	}
}

func (r *Runtime) firstReport(id cluster.ID) bool {
	r.logMu.Lock()
	defer r.logMu.Unlock()
	if r.logged[id] {
		return false
	}
	r.logged[id] = true
	return true
}
