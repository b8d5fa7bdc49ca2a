package runtime

import (
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"baton/internal/model/cluster"
	"baton/internal/node/agent"
	"baton/internal/node/logger"
	"baton/internal/wire/agentapi"
)

// LoggerCommand is the first argument of a task's logger; see package logger.
const LoggerCommand = logger.Command

// Names of the streams.
const (
	Stdout = logger.Stdout
	Stderr = logger.Stderr
)

// endLogger tells the logger of an ended task that no more will come: it keeps what is still under way and ends, and with it those
// that follow the log.
func endLogger(dir string) {
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

// checkLoggers notes, once per task, that a running task has lost its logger: what it writes now goes nowhere and may end it.
func (r *Runtime) checkLoggers(seen []agent.Observed) {
	for _, o := range seen {
		if o.State != agent.ContainerRunning {
			continue
		}
		alive, closed := logger.Alive(filepath.Join(r.cfg.LogsDir(), o.Task.String()))
		if alive || closed || !r.firstReport(o.Task) {
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
