package fence

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Program is the name of the process' executable.
const Program = "baton-fence"

const (
	// lookEvery is how often the time is looked at.
	lookEvery = 250 * time.Millisecond
	// idleLooks is how many looks without a task end the process.
	idleLooks = 40
	// fenceScore makes the kernel spare it when memory runs out.
	fenceScore = "-900"
)

// Main is the whole program: args are its command line without the program's name. Descriptor 3 is the lock, 4 the pipe that says that it
// has begun.
func Main(args []string) int {
	if len(args) != 1 {
		_, _ = os.Stderr.WriteString(Program + ": it is started by baton, with a directory\n")
		return 2
	}
	debug.SetGCPercent(20)
	_ = os.WriteFile("/proc/self/oom_score_adj", []byte(fenceScore), 0)
	signal.Ignore(syscall.SIGHUP, syscall.SIGINT)
	ready := os.NewFile(4, "ready")
	if _, err := ready.Write([]byte{0}); err != nil {
		return 1
	}
	_ = ready.Close()
	if err := watch(args[0]); err != nil {
		_, _ = os.Stderr.WriteString(Program + ": " + err.Error() + "\n")
		return 1
	}
	return 0
}

// watch ends what has no lease, until no task is under the fence.
func watch(dir string) error {
	for idle := 0; ; {
		ids, err := guarded(dir)
		if errors.Is(err, fs.ErrNotExist) {
			return nil // the node was reset
		}
		if len(ids) > 0 || err != nil {
			idle = 0
		} else if idle++; idle >= idleLooks && leave(dir) {
			return nil
		}
		if over(dir) {
			for _, id := range ids {
				end(dir, id)
			}
		}
		time.Sleep(lookEvery)
	}
}

// leave gives the lock back, unless a task has come. Who brings one waits until that is decided.
func leave(dir string) bool {
	door, err := lock(filepath.Join(dir, doorFile), unix.LOCK_EX)
	if err != nil {
		return false
	}
	defer door.Close()
	ids, err := guarded(dir)
	return err == nil && len(ids) == 0 && unix.Flock(3, unix.LOCK_UN) == nil
}

// over reports whether the lease is over, or nothing is known of it.
func over(dir string) bool {
	b, err := os.ReadFile(filepath.Join(dir, untilFile))
	if err != nil {
		return true
	}
	until, err := strconv.ParseInt(string(b), 10, 64)
	now, cerr := clock()
	return err != nil || cerr != nil || now > time.Duration(until)
}

// end kills every process of a task. It stays under the fence, so that what has come meanwhile is killed at the next look.
func end(dir, id string) {
	b, err := os.ReadFile(filepath.Join(dir, tasksDir, id))
	if err != nil {
		return // taken out in this moment
	}
	for group := range bytes.SplitSeq(b, []byte("\n")) {
		if err := kill(string(group)); err != nil {
			_, _ = fmt.Fprintf(os.Stderr, "%s: task %s: %v\n", Program, id, err)
		}
	}
}

// kill kills the processes of a cgroup and of those below it.
func kill(group string) error {
	if f, err := os.OpenFile(filepath.Join(group, "cgroup.kill"), os.O_WRONLY, 0); err == nil {
		_, err = f.WriteString("1")
		return errors.Join(err, f.Close())
	}
	// The machine has cgroups of the first version, or the group is gone.
	return filepath.WalkDir(group, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.Name() != "cgroup.procs" {
			return nil
		}
		b, err := os.ReadFile(path)
		for _, f := range strings.Fields(string(b)) {
			if pid, perr := strconv.Atoi(f); perr == nil && pid > 1 {
				if kerr := unix.Kill(pid, unix.SIGKILL); kerr != nil && !errors.Is(kerr, unix.ESRCH) {
					err = errors.Join(err, kerr)
				}
			}
		}
		if errors.Is(err, unix.ENODEV) { // the group went away while it was read
			return nil
		}
		return err
	})
}
