package fence

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// The files of a fence's directory.
const (
	untilFile = "until"
	tasksDir  = "tasks"
	lockFile  = "lock"
	doorFile  = "door"
	logFile   = "log" // what the process says
)

// Fence is the way from baton to the process.
type Fence struct {
	dir     string
	program string

	mu sync.Mutex // one at a time starts the process
}

// New makes a fence with its files in dir, on tmpfs; program is the executable of the process.
func New(dir, program string) *Fence { return &Fence{dir: dir, program: program} }

// Guard puts a task under the fence: its processes are those of these cgroup directories. Guarding it again replaces them.
func (f *Fence) Guard(_ context.Context, id string, groups []string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(groups) == 0 {
		return errors.New("the task has no cgroup")
	}
	if err := os.MkdirAll(filepath.Join(f.dir, tasksDir), 0o700); err != nil {
		return err
	}
	door, err := lock(filepath.Join(f.dir, doorFile), unix.LOCK_SH)
	if err != nil {
		return err
	}
	defer door.Close()
	if err := write(filepath.Join(f.dir, tasksDir, id), strings.Join(groups, "\n")); err != nil {
		return err
	}
	return f.ensure()
}

// Unguard takes a task out; one that is not there is no error.
func (f *Fence) Unguard(_ context.Context, id string) error {
	err := os.Remove(filepath.Join(f.dir, tasksDir, id))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// Renew lets the tasks under the fence run for some time from now; the last word counts. It looks after the process, too.
func (f *Fence) Renew(_ context.Context, left time.Duration) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := os.MkdirAll(filepath.Join(f.dir, tasksDir), 0o700); err != nil {
		return err
	}
	now, err := clock()
	if err != nil {
		return err
	}
	if err := write(filepath.Join(f.dir, untilFile), strconv.FormatInt(int64(now+left), 10)); err != nil {
		return err
	}
	ids, err := guarded(f.dir)
	if err != nil || len(ids) == 0 {
		return err
	}
	return f.ensure()
}

// ensure starts the process unless it runs. The caller holds mu.
func (f *Fence) ensure() error {
	l, err := lock(filepath.Join(f.dir, lockFile), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return nil
	}
	if err != nil {
		return err
	}
	defer l.Close() // the process inherits it; it is held as long as one of the two has it open
	ready, told, err := os.Pipe()
	if err != nil {
		return err
	}
	defer ready.Close()
	log, err := os.OpenFile(filepath.Join(f.dir, logFile), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(f.program, f.dir)
	cmd.Dir, cmd.Stderr, cmd.ExtraFiles = "/", log, []*os.File{l, told}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // a terminal's signals are not for it
	err = cmd.Start()
	_ = told.Close()
	if err != nil {
		return fmt.Errorf("start the fence: %w", err)
	}
	go func() { _ = cmd.Wait() }() // so that it leaves no zombie; it ends when it is not needed any more
	if _, err := ready.Read(make([]byte, 1)); err != nil {
		return fmt.Errorf("start the fence: it ended at once: %w", err)
	}
	return nil
}

// guarded lists the tasks under the fence.
func guarded(dir string) ([]string, error) {
	entries, err := os.ReadDir(filepath.Join(dir, tasksDir))
	var ids []string
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), ".") { // being written
			ids = append(ids, e.Name())
		}
	}
	return ids, err
}

// clock is the time since the machine started, suspensions included.
func clock() (time.Duration, error) {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return 0, fmt.Errorf("clock: %w", err)
	}
	return time.Duration(ts.Nano()), nil
}

// write replaces a file: who reads it sees the old content or the new one.
func write(path, text string) error {
	next := filepath.Join(filepath.Dir(path), "."+filepath.Base(path))
	if err := os.WriteFile(next, []byte(text), 0o600); err != nil {
		return err
	}
	return os.Rename(next, path)
}

// lock opens and locks a file; closing it unlocks.
func lock(path string, how int) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), how); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}
