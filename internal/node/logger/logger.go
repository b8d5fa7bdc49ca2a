// Package logger is the process that keeps a task's output: one per task, started by the task's shim, so that restarts of baton and of
// containerd lose nothing. It owns the files of a task's log directory while it runs; readers are in package runtime.
//
// The process is an executable of its own, cmd/baton-logger, and this package imports the standard library only: there is one logger
// per container, and what baton itself needs (tables of regular expressions, schemas, messages) would cost each of them 4 MB and 5 ms of
// CPU. A logger outlives the baton that it came with, so the layout of the directory, the lock and the command line are what the next
// version finds; a test holds them.
//
// Concurrency: a Writer may be used by several goroutines.
package logger

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Command is the first argument of a logger, by which its process is recognized. Loggers of earlier versions have it too.
const Command = "__logger"

const (
	// What a task keeps of its output when the service says nothing.
	logSizeDefault  = 10 << 20
	logFilesDefault = 3
	// LineMax is the length in bytes from which a line is kept in parts.
	LineMax = 16 << 10
	// idleMax is how long the start of a line waits for its rest before it is kept as a part of one: a prompt has no newline.
	idleMax = 250 * time.Millisecond
	// quietMax is how long a stream must be quiet for a logger that was told to end to believe that all is read. The shim holds the
	// streams open, so their end does not come by itself.
	quietMax = 50 * time.Millisecond
	// loggerScore makes the kernel spare loggers when memory runs out: without its logger a task cannot write.
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

// Args is what a logger must know, as one command-line argument.
type Args struct {
	Dir      string
	MaxSize  int64 // bytes of one file; zero: 10 MiB
	MaxFiles int   // zero: 3
}

// Encode writes what the process reads.
func (a Args) Encode() string { return fmt.Sprintf("%d:%d:%s", a.MaxSize, a.MaxFiles, a.Dir) }

// ParseArgs is the opposite of Encode, with the defaults filled in.
func ParseArgs(s string) (a Args, err error) {
	f := strings.SplitN(s, ":", 3)
	if len(f) != 3 {
		return a, fmt.Errorf("logger: want SIZE:FILES:DIR, got %q", s)
	}
	size, err1 := strconv.ParseInt(f[0], 10, 64)
	files, err2 := strconv.Atoi(f[1])
	if err := errors.Join(err1, err2); err != nil {
		return a, fmt.Errorf("logger: %w", err)
	}
	a = Args{Dir: f[2], MaxSize: size, MaxFiles: files}
	if a.MaxSize <= 0 {
		a.MaxSize = logSizeDefault
	}
	if a.MaxFiles <= 0 {
		a.MaxFiles = logFilesDefault
	}
	return a, nil
}

// Main is the whole program: args are its command line without the program's name, Command and an encoded Args.
func Main(args []string) int {
	if len(args) == 0 || args[0] != Command {
		_, _ = os.Stderr.WriteString("baton logger: it is started by a task's shim, with " + Command + " SIZE:FILES:DIR\n")
		return 2
	}
	if err := run(args[1:]); err != nil {
		_, _ = os.Stderr.WriteString("baton logger: " + err.Error() + "\n")
		return 1
	}
	return 0
}

// run is the whole life of a logger. The shim starts it with the task's output as descriptors 3 and 4, and a pipe to say that it is
// ready as 5. args are the arguments after Command.
func run(args []string) error {
	if len(args) != 1 {
		return fmt.Errorf("want one argument, got %d", len(args))
	}
	a, err := ParseArgs(args[0])
	if err != nil {
		return err
	}
	debug.SetGCPercent(20) // there is one of us per task: memory counts more than the rare collection
	_ = os.WriteFile("/proc/self/oom_score_adj", []byte(loggerScore), 0)
	term := make(chan os.Signal, 1)
	signal.Notify(term, syscall.SIGTERM)
	signal.Ignore(syscall.SIGINT, syscall.SIGHUP) // a terminal's signals are not for us
	w, err := Open(a)
	if err != nil {
		return err
	}
	defer w.Close()
	var streams []*stream
	for i, name := range []string{Stdout, Stderr} {
		// So that reads have deadlines. The writers' ends are not affected.
		if err := syscall.SetNonblock(3+i, true); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		streams = append(streams, &stream{name: name, file: os.NewFile(uintptr(3+i), name)})
	}
	ready := os.NewFile(5, "ready")
	if _, err := ready.Write([]byte{0}); err != nil {
		return err
	}
	_ = ready.Close()
	var wg sync.WaitGroup
	for _, s := range streams {
		wg.Go(func() { w.copy(s) })
	}
	go func() { // waits for the signal, at most as long as the process lives
		<-term
		for _, s := range streams {
			s.finish()
		}
	}()
	wg.Wait()
	return os.WriteFile(filepath.Join(a.Dir, closedFile), nil, 0o600)
}

// stream is one end of a task's output.
type stream struct {
	name string
	file *os.File

	mu     sync.Mutex
	ending bool
}

// finish makes copy return once the stream is quiet.
func (s *stream) finish() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ending = true
	_ = s.file.SetReadDeadline(time.Now().Add(quietMax))
}

// wait sets how long the next read may take, and reports whether the stream is to end when nothing comes.
func (s *stream) wait(half bool) (ending bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.ending:
		_ = s.file.SetReadDeadline(time.Now().Add(quietMax))
	case half:
		_ = s.file.SetReadDeadline(time.Now().Add(idleMax))
	default:
		_ = s.file.SetReadDeadline(time.Time{})
	}
	return s.ending
}

// Writer appends lines to a task's log files and rotates them.
type Writer struct {
	args Args
	lock *os.File

	mu   sync.Mutex
	file *os.File
	size int64
}

// Open opens a task's log for writing. It waits for an earlier logger of the task to end: a task's containers follow each other, and so
// do their loggers.
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
	w := &Writer{args: a, lock: lock}
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

// copy keeps what comes from a stream until it ends. Errors of the disk are survived: a task must not stop because its log cannot be
// written.
func (w *Writer) copy(s *stream) {
	buf := make([]byte, 0, 2*LineMax)
	for {
		ending := s.wait(len(buf) > 0)
		n, err := s.file.Read(buf[len(buf):cap(buf)])
		buf = buf[:len(buf)+n]
		used := w.Keep(s.name, buf, err != nil)
		buf = buf[:copy(buf, buf[used:])]
		if err != nil && (ending || !errors.Is(err, os.ErrDeadlineExceeded)) {
			return
		}
	}
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

// PID is the number that the newest logger of a log wrote down; zero when there is none. The process may be gone and the number
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
