// Package logger is the process that keeps the output of a node's tasks. It is one per node, a child of nobody: it is started with the
// first task, and restarts of baton, containerd and of itself lose nothing.
//
// A task writes to pipes of its shim, which copies to two named pipes that the process reads. The shim holds both of their ends, so they
// outlive the process; what it has not read stays in them, and a task that writes more than they hold waits. The names of the pipes say
// all that the process must know of a task, so one that was killed goes on with what it finds:
//
//	FIFOS/TASK,SIZE,FILES.out   what comes from the task's standard output; its log's limits
//	FIFOS/TASK,SIZE,FILES.err   the same of its standard error
//
// The process (Main, cmd/baton-logger) owns the files of the tasks' log directories while it keeps them; readers are in package runtime. A
// Process is baton's way to it: lines of text over a unix socket.
//
//	hello        answered by the path of the executable: another version is told to leave and is replaced
//	open NAME    begins to keep a task's output and makes its pipes; NAME is TASK,SIZE,FILES
//	end TASK     the task has ended: what is under way is kept, then the log is closed
//	leave        ends the process, not the logs
//	watch        answered when the process ends, by the end of the connection
//
// The executable imports the standard library only: it stays small. It outlives the baton that it came with, so the layout of the
// directories, the lock and the protocol are what the next version finds; a test holds them.
//
// Concurrency: a Writer and a Process may be used by several goroutines.
package logger

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"
)

// Command is the first argument of the process, by which it is recognized. Earlier versions had a process per task, with it too.
const Command = "__logger"

const (
	// What a task keeps of its output when the service says nothing.
	logSizeDefault  = 10 << 20
	logFilesDefault = 3
	// LineMax is the length in bytes from which a line is kept in parts.
	LineMax = 16 << 10
	// loggerScore makes the kernel spare the process when memory runs out: without it no task can write.
	loggerScore = "-900"
)

// The files of a task's log directory.
const (
	File       = "log"    // the newest; log.1, log.2… are older
	lockFile   = "lock"   // locked while a logger is alive; its process id
	closedFile = "closed" // the output has ended: a logger that is gone is not missed
)

// TimeFormat has a fixed width, so that records can be compared as text.
const TimeFormat = "2006-01-02T15:04:05.000000000Z"

// Names of the streams.
const (
	Stdout = "stdout"
	Stderr = "stderr"
)

// Args is what there is to know of a task's log.
type Args struct {
	Dir      string
	MaxSize  int64 // bytes of one file; zero: 10 MiB
	MaxFiles int   // zero: 3
}

func (a Args) withDefaults() Args {
	if a.MaxSize <= 0 {
		a.MaxSize = logSizeDefault
	}
	if a.MaxFiles <= 0 {
		a.MaxFiles = logFilesDefault
	}
	return a
}

// Writer appends lines to a task's log files and rotates them.
type Writer struct {
	args Args
	lock *os.File

	mu   sync.Mutex
	file *os.File
	size int64
}

// Open opens a task's log for writing. It waits for an earlier writer of the task's log to end: a task's containers follow each other,
// and so do those who keep their output.
func Open(a Args) (*Writer, error) {
	if err := os.MkdirAll(a.Dir, 0o700); err != nil {
		return nil, err
	}
	lock, err := os.OpenFile(filepath.Join(a.Dir, lockFile), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return nil, fmt.Errorf("lock %s: %w", lock.Name(), err)
	}
	if err := errors.Join(lock.Truncate(0), writeAt(lock, strconv.Itoa(os.Getpid()))); err != nil {
		return nil, err
	}
	if err := os.Remove(filepath.Join(a.Dir, closedFile)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	w := &Writer{args: a.withDefaults(), lock: lock}
	return w, w.open()
}

func writeAt(f *os.File, s string) error {
	_, err := f.WriteAt([]byte(s), 0)
	return err
}

func (w *Writer) open() error {
	f, err := os.OpenFile(filepath.Join(w.args.Dir, File), os.O_CREATE|os.O_APPEND|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	st, err := f.Stat()
	if err != nil {
		return err
	}
	w.file, w.size = f, st.Size()
	if w.size > 0 {
		// A logger that was killed may have left half a line: end it, so that ours begins on its own.
		var last [1]byte
		if _, err := f.ReadAt(last[:], w.size-1); err == nil && last[0] != '\n' {
			n, err := f.Write([]byte{'\n'})
			w.size += int64(n)
			return err
		}
	}
	return nil
}

// Close flushes what the kernel has and lets readers know that there is no more.
func (w *Writer) Close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	_ = w.file.Close()
	_ = w.lock.Close()
}

// Frame turns the whole lines at the start of b into records, and what is longer than LineMax, or not to be waited
// for any longer (flush), into partial ones. It returns how much of b it used.
func Frame(stream string, at time.Time, b []byte, flush bool) (used int, out []byte) {
	for used < len(b) {
		rest := b[used:]
		i := bytes.IndexByte(rest, '\n')
		switch {
		case i >= 0 && i <= LineMax:
			out = AppendRecord(out, at, stream, false, rest[:i])
			used += i + 1
		case len(rest) >= LineMax:
			out = AppendRecord(out, at, stream, true, rest[:LineMax])
			used += LineMax
		case flush:
			out = AppendRecord(out, at, stream, true, rest)
			used = len(b)
		default:
			return used, out
		}
	}
	return used, out
}

// AppendRecord adds "TIME STREAM F|P TEXT\n": P marks a part of a line whose rest follows.
func AppendRecord(out []byte, at time.Time, stream string, partial bool, text []byte) []byte {
	out = at.UTC().AppendFormat(out, TimeFormat)
	out = append(out, ' ')
	out = append(out, stream...)
	if partial {
		out = append(out, " P "...)
	} else {
		out = append(out, " F "...)
	}
	out = append(out, text...)
	return append(out, '\n')
}

// Keep writes the records at the start of b and returns how much of it that was. The time is taken under the lock, so that times only
// grow within a log.
func (w *Writer) Keep(stream string, b []byte, flush bool) (used int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	used, out := Frame(stream, time.Now(), b, flush)
	if len(out) > 0 {
		w.write(out)
	}
	return used
}

// write appends records; w.mu is held.
func (w *Writer) write(b []byte) {
	if w.size > 0 && w.size+int64(len(b)) > w.args.MaxSize {
		w.rotate()
	}
	n, err := w.file.Write(b)
	w.size += int64(n)
	if err != nil && n > 0 {
		// Half a record: take it back, as the next would otherwise be glued to it.
		if w.file.Truncate(w.size-int64(n)) == nil {
			w.size -= int64(n)
		}
	}
}

// rotate makes log into log.1, log.1 into log.2 and so on, and drops the oldest. Where that fails, the file grows on.
func (w *Writer) rotate() {
	path := filepath.Join(w.args.Dir, File)
	name := func(i int) string { return fmt.Sprintf("%s.%d", path, i) }
	if w.args.MaxFiles == 1 {
		if w.file.Truncate(0) == nil {
			w.size = 0
		}
		return
	}
	_ = os.Remove(name(w.args.MaxFiles - 1))
	for i := w.args.MaxFiles - 2; i >= 1; i-- {
		_ = os.Rename(name(i), name(i+1))
	}
	if os.Rename(path, name(1)) != nil {
		return
	}
	old := w.file
	if err := w.open(); err != nil {
		w.file = old
		return
	}
	_ = old.Close()
}

// Alive reports whether the task's log is being written, and whether its end was orderly.
func Alive(dir string) (alive, closed bool) {
	f, err := os.OpenFile(filepath.Join(dir, lockFile), os.O_RDWR, 0)
	if err != nil {
		return false, true // there never was one
	}
	defer f.Close()
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_SH|syscall.LOCK_NB); err != nil {
		return true, false
	}
	_, err = os.Stat(filepath.Join(dir, closedFile))
	return false, err == nil
}

// PID is the number of the process that was the last to keep a log, as it wrote it down; zero when there is none. The process may be gone and the number
// another's.
func PID(dir string) int {
	b, err := os.ReadFile(filepath.Join(dir, lockFile))
	if err != nil {
		return 0
	}
	pid, err := strconv.Atoi(string(b))
	if err != nil || pid <= 1 {
		return 0
	}
	return pid
}
