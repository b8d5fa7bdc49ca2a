package runtime

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"

	"golang.org/x/sys/unix"
)

// InitCommand is the hidden subcommand that must run InitMain.
const InitCommand = "__init"

// InitMain is the first process of a container with init: true. It runs the container's command, passes signals on to it, collects
// orphaned processes and ends as the command does. args are those after InitCommand. It returns the exit code.
func InitMain(args []string) int {
	if len(args) > 0 && args[0] == "--" {
		args = args[1:]
	}
	if len(args) == 0 {
		fmt.Fprintln(os.Stderr, "init: no command named")
		return codeNotFound
	}
	path, err := exec.LookPath(args[0])
	if err != nil {
		fmt.Fprintf(os.Stderr, "init: %s: %v\n", args[0], err)
		if errors.Is(err, os.ErrPermission) {
			return codeNotRunnable
		}
		return codeNotFound
	}
	// Before the command starts, so that no signal is lost in between.
	sigs := make(chan os.Signal, 64)
	signal.Notify(sigs)
	p, err := os.StartProcess(path, args, &os.ProcAttr{Files: []*os.File{os.Stdin, os.Stdout, os.Stderr}})
	if err != nil {
		fmt.Fprintf(os.Stderr, "init: %s: %v\n", args[0], err)
		return codeNotRunnable
	}
	// A command that ended before signals were looked at has sent its SIGCHLD already; the first round is therefore free.
	sigs <- unix.SIGCHLD
	for s := range sigs {
		switch s {
		case unix.SIGCHLD:
			if code, over := reap(p.Pid); over {
				return code
			}
		case unix.SIGURG: // the Go runtime's own
		default:
			_ = unix.Kill(p.Pid, s.(unix.Signal))
		}
	}
	return 0
}

// reap collects every ended child. over is true once that was main.
func reap(main int) (code int, over bool) {
	for {
		var ws unix.WaitStatus
		pid, err := unix.Wait4(-1, &ws, unix.WNOHANG, nil)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil || pid == 0:
			return code, over
		case pid == main && ws.Signaled():
			code, over = signalBase+int(ws.Signal()), true
		case pid == main:
			code, over = ws.ExitStatus(), true
		}
	}
}
