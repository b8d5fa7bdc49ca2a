package runtime

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
	"time"

	"golang.org/x/sys/unix"

	"baton/internal/model/cluster"
	"baton/internal/model/spec"
	"baton/internal/node/agent"
	"baton/internal/wire/agentapi"
)

// LoggerCommand is the hidden subcommand that must run LoggerMain.
const LoggerCommand = "__logger"

const (
	// What a task keeps of its output when the service says nothing.
	logSizeDefault  = 10 << 20
	logFilesDefault = 3
	// lineMax is the length in bytes from which a line is kept in parts.
	lineMax = 16 << 10
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
	logFile    = "log"    // the newest; log.1, log.2… are older
	lockFile   = "lock"   // locked while a logger is alive; its process id
	closedFile = "closed" // the output has ended: a logger that is gone is not missed
)

// Names of the streams.
const (
	Stdout = "stdout"
	Stderr = "stderr"
)

// loggerArgs is what a logger must know, as one command-line argument.
type loggerArgs struct {
	Dir      string
	MaxSize  spec.Bytes
	MaxFiles int
}

func (a loggerArgs) encode() string { return fmt.Sprintf("%d:%d:%s", a.MaxSize, a.MaxFiles, a.Dir) }

func decodeLoggerArgs(s string) (a loggerArgs, err error) {
	f := strings.SplitN(s, ":", 3)
	if len(f) != 3 {
		return a, fmt.Errorf("logger: want SIZE:FILES:DIR, got %q", s)
	}
	size, err1 := strconv.ParseInt(f[0], 10, 64)
	files, err2 := strconv.Atoi(f[1])
	if err := errors.Join(err1, err2); err != nil {
		return a, fmt.Errorf("logger: %w", err)
	}
	a = loggerArgs{Dir: f[2], MaxSize: spec.Bytes(size), MaxFiles: files}
	if a.MaxSize <= 0 {
		a.MaxSize = logSizeDefault
	}
	if a.MaxFiles <= 0 {
		a.MaxFiles = logFilesDefault
	}
	return a, nil
}

// LoggerMain is the logger process of one task. The shim starts it with the task's output as descriptors 3 and 4, and a pipe to say that
// it is ready as 5. args are the arguments after LoggerCommand. It returns the exit code.
func LoggerMain(args []string) int {
	if err := runLogger(args); err != nil {
		fmt.Fprintln(os.Stderr, "baton logger:", err)
		return 1
	}
	return 0
}

func runLogger(args []string) error {
	if len(args) != 1 {
		return fmt.Errorf("want one argument, got %d", len(args))
	}
	a, err := decodeLoggerArgs(args[0])
	if err != nil {
		return err
	}
	debug.SetGCPercent(20) // there is one of us per task: memory counts more than the rare collection
	_ = os.WriteFile("/proc/self/oom_score_adj", []byte(loggerScore), 0)
	term := make(chan os.Signal, 1)
	signal.Notify(term, unix.SIGTERM)
	signal.Ignore(unix.SIGINT, unix.SIGHUP) // a terminal's signals are not for us
	w, err := openLog(a)
	if err != nil {
		return err
	}
	defer w.close()
	var streams []*stream
	for i, name := range []string{Stdout, Stderr} {
		// So that reads have deadlines. The writers' ends are not affected.
		if err := unix.SetNonblock(3+i, true); err != nil {
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
	return writeFile(filepath.Join(a.Dir, closedFile), nil, 0o600)
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

// logWriter appends lines to a task's log files and rotates them.
type logWriter struct {
	args loggerArgs
	lock *os.File

	mu   sync.Mutex
	file *os.File
	size int64
}

// openLog opens a task's log for writing. It waits for an earlier logger of the task to end: a task's containers follow each other, and so
// do their loggers.
func openLog(a loggerArgs) (*logWriter, error) {
	if err := os.MkdirAll(a.Dir, 0o700); err != nil {
		return nil, err
	}
	lock, err := os.OpenFile(filepath.Join(a.Dir, lockFile), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return nil, fmt.Errorf("lock %s: %w", lock.Name(), err)
	}
	if err := errors.Join(lock.Truncate(0), writeAt(lock, strconv.Itoa(os.Getpid()))); err != nil {
		return nil, err
	}
	if err := os.Remove(filepath.Join(a.Dir, closedFile)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	w := &logWriter{args: a, lock: lock}
	return w, w.open()
}

func writeAt(f *os.File, s string) error {
	_, err := f.WriteAt([]byte(s), 0)
	return err
}

func (w *logWriter) open() error {
	f, err := os.OpenFile(filepath.Join(w.args.Dir, logFile), os.O_CREATE|os.O_APPEND|os.O_RDWR, 0o600)
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

// close flushes what the kernel has and lets readers know that there is no more.
func (w *logWriter) close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	_ = w.file.Close()
	_ = w.lock.Close()
}

// copy keeps what comes from a stream until it ends. Errors of the disk are survived: a task must not stop because its log cannot be
// written.
func (w *logWriter) copy(s *stream) {
	buf := make([]byte, 0, 2*lineMax)
	for {
		ending := s.wait(len(buf) > 0)
		n, err := s.file.Read(buf[len(buf):cap(buf)])
		buf = buf[:len(buf)+n]
		used := w.keep(s.name, buf, err != nil)
		buf = buf[:copy(buf, buf[used:])]
		if err != nil && (ending || !errors.Is(err, os.ErrDeadlineExceeded)) {
			return
		}
	}
}

// frame turns the whole lines at the start of b into records, and what is longer than lineMax, or not to be waited
// for any longer (flush), into partial ones. It returns how much of b it used.
func frame(stream string, at time.Time, b []byte, flush bool) (used int, out []byte) {
	for used < len(b) {
		rest := b[used:]
		i := bytes.IndexByte(rest, '\n')
		switch {
		case i >= 0 && i <= lineMax:
			out = appendRecord(out, at, stream, false, rest[:i])
			used += i + 1
		case len(rest) >= lineMax:
			out = appendRecord(out, at, stream, true, rest[:lineMax])
			used += lineMax
		case flush:
			out = appendRecord(out, at, stream, true, rest)
			used = len(b)
		default:
			return used, out
		}
	}
	return used, out
}

func appendRecord(out []byte, at time.Time, stream string, partial bool, text []byte) []byte {
	out = at.UTC().AppendFormat(out, timeFormat)
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

// keep writes the records at the start of b and returns how much of it that was. The time is taken under the lock, so that times only
// grow within a log.
func (w *logWriter) keep(stream string, b []byte, flush bool) (used int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	used, out := frame(stream, time.Now(), b, flush)
	if len(out) > 0 {
		w.write(out)
	}
	return used
}

// write appends records; w.mu is held.
func (w *logWriter) write(b []byte) {
	if w.size > 0 && w.size+int64(len(b)) > int64(w.args.MaxSize) {
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
func (w *logWriter) rotate() {
	path := filepath.Join(w.args.Dir, logFile)
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

// loggerAlive reports whether the task's log is being written, and whether its end was orderly.
func loggerAlive(dir string) (alive, closed bool) {
	f, err := os.OpenFile(filepath.Join(dir, lockFile), os.O_RDWR, 0)
	if err != nil {
		return false, true // there never was one
	}
	defer f.Close()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB); err != nil {
		return true, false
	}
	_, err = os.Stat(filepath.Join(dir, closedFile))
	return false, err == nil
}

// endLogger tells the logger of an ended task that no more will come: it keeps what is still under way and ends, and with it those
// that follow the log.
func endLogger(dir string) {
	b, err := os.ReadFile(filepath.Join(dir, lockFile))
	if err != nil {
		return
	}
	pid, err := strconv.Atoi(string(b))
	if err != nil || pid <= 1 {
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
		alive, closed := loggerAlive(filepath.Join(r.cfg.LogsDir(), o.Task.String()))
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
