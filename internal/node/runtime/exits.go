package runtime

import (
	"time"

	"golang.org/x/sys/unix"

	"baton/internal/model/cluster"
)

// signalBase is what runc's shim adds to a signal's number in an exit status.
const signalBase = 128

// exitOf explains an exit status. A process that exits with 128+n by itself cannot be told from one that signal n ended; shells, which
// do so on purpose, mean the same by it. oom says that the kernel killed a process of the task for memory: that is the cause
// of the end only if a SIGKILL was.
func exitOf(status uint32, at time.Time, oom bool) cluster.Exit {
	e := cluster.Exit{Code: int(status), At: at.UTC()}
	if status > signalBase && status < signalBase+65 {
		e.Signal = unix.SignalName(unix.Signal(status - signalBase))
	}
	e.OOM = oom && status == signalBase+uint32(unix.SIGKILL)
	return e
}
