package logger

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
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

const (
	// idleMax is how long the start of a line waits for its rest before it is kept as a part of one: a prompt has no newline.
	idleMax = 250 * time.Millisecond
	// quietMax is how long a stream must be quiet after its task has ended for all to be read. The pipes are held open at both ends, so
	// their end does not come by itself.
	quietMax = 50 * time.Millisecond
	// aloneMax is how long the process has had neither a baton nor anything to keep when it ends, once or twice.
	aloneMax = 2 * time.Second
	// suffixes of the pipes' names, in the order of the streams.
	suffixOut, suffixErr = ".out", ".err"
	// bufferSize is what is read at a time.
	bufferSize = 2 * LineMax
)

// Main is the whole program: args are its command line without the program's name: Command, the directory of the logs, that of the
// pipes. The socket to listen on is descriptor 3, the lock that this is the only one 4, and a pipe to say that it is ready 5.
func Main(args []string) int {
	if len(args) != 3 || args[0] != Command {
		_, _ = os.Stderr.WriteString("baton logger: it is started by baton, with " + Command + " LOGS FIFOS\n")
		return 2
	}
	if err := run(args[1], args[2]); err != nil {
		say(err)
		return 1
	}
	return 0
}

func say(err error) {
	_, _ = fmt.Fprintf(os.Stderr, "%s baton logger: %v\n", time.Now().UTC().Format(time.RFC3339), err)
}

// run is the whole life of the process.
func run(logs, fifos string) error {
	debug.SetGCPercent(20) // memory counts more than the rare collection
	_ = os.WriteFile("/proc/self/oom_score_adj", []byte(loggerScore), 0)
	signal.Ignore(syscall.SIGINT, syscall.SIGHUP) // a terminal's signals are not for us
	l, err := net.FileListener(os.NewFile(3, "socket"))
	if err != nil {
		return err
	}
	s := &server{logs: logs, fifos: fifos, tasks: make(map[string]*keeper)}
	if err := s.resume(); err != nil {
		return err
	}
	ready := os.NewFile(5, "ready")
	if _, err := ready.Write([]byte{0}); err != nil {
		return err
	}
	_ = ready.Close()
	go s.accept(l)
	s.waitAlone() // a client that comes just now finds its connection closed, and starts another one
	return nil
}

// server is the process.
type server struct {
	logs, fifos string

	mu      sync.Mutex
	tasks   map[string]*keeper
	clients int
}

// resume goes on with the tasks whose pipes are there.
func (s *server) resume() error {
	es, err := os.ReadDir(s.fifos)
	if err != nil {
		return err
	}
	for _, e := range es {
		name, ok := strings.CutSuffix(e.Name(), suffixOut)
		if !ok {
			continue // of an exec, or the other one
		}
		if err := s.open(name); err != nil {
			say(fmt.Errorf("go on with %s: %w", name, err)) // the others go on
		}
	}
	return nil
}

func (s *server) accept(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			say(err)
			time.Sleep(time.Second) // out of files: those who hold them go on
			continue
		}
		s.count(1)
		go func() {
			defer s.count(-1)
			defer c.Close()
			s.serve(c)
		}()
	}
}

// serve answers one client until it goes.
func (s *server) serve(c net.Conn) {
	in := bufio.NewScanner(c)
	for in.Scan() {
		verb, arg, _ := strings.Cut(in.Text(), " ")
		answer, err := "ok", error(nil)
		switch verb {
		case "hello":
			answer = os.Args[0]
		case "open":
			err = s.open(arg)
		case "end":
			s.end(arg)
		case "watch":
			_, _ = io.Copy(io.Discard, c)
			return
		case "leave":
			s.leave()
			os.Exit(0)
		default:
			err = fmt.Errorf("unknown request %q", verb)
		}
		if err != nil {
			answer = "error: " + strings.ReplaceAll(err.Error(), "\n", " ")
		}
		if _, err := io.WriteString(c, answer+"\n"); err != nil {
			return
		}
	}
}

// parse is the opposite of Name.
func parse(name string) (task string, a Args, err error) {
	f := strings.Split(name, ",")
	if len(f) != 3 || f[0] == "" || strings.ContainsAny(f[0], "/.") {
		return "", a, fmt.Errorf("want TASK,SIZE,FILES, got %q", name)
	}
	size, err1 := strconv.ParseInt(f[1], 10, 64)
	files, err2 := strconv.Atoi(f[2])
	return f[0], Args{MaxSize: size, MaxFiles: files}, errors.Join(err1, err2)
}

// open begins to keep a task's output. A task whose output is kept is left as it is, so that a request may be repeated.
func (s *server) open(name string) error {
	task, a, err := parse(name)
	if err != nil {
		return err
	}
	for {
		s.mu.Lock()
		before := s.tasks[task]
		if before == nil {
			break
		}
		s.mu.Unlock()
		if before.name == name && !before.ended() {
			return nil
		}
		before.end() // another container of the task
		<-before.done
	}
	k := &keeper{name: name, done: make(chan struct{})}
	s.tasks[task] = k // claims it
	s.mu.Unlock()
	a.Dir = filepath.Join(s.logs, task)
	if err = k.open(s.fifos, a); err == nil {
		go func() {
			k.keep()
			s.forget(task, k)
		}()
		return nil
	}
	s.forget(task, k)
	return err
}

func (s *server) forget(task string, k *keeper) {
	s.mu.Lock()
	delete(s.tasks, task)
	s.mu.Unlock()
	close(k.done)
}

// end closes a task's log once all is read.
func (s *server) end(task string) {
	s.mu.Lock()
	k := s.tasks[task]
	s.mu.Unlock()
	if k != nil {
		k.end()
	}
}

func (s *server) count(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.clients += n
}

// waitAlone returns when nobody has needed the process for a while.
func (s *server) waitAlone() {
	for empty := 0; empty < 2; {
		time.Sleep(aloneMax)
		s.mu.Lock()
		if empty++; s.clients > 0 || len(s.tasks) > 0 {
			empty = 0
		}
		s.mu.Unlock()
	}
}

// leave writes what was read of unfinished lines; the rest is the next process's.
func (s *server) leave() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, k := range s.tasks {
		k.leave()
	}
}

// keeper keeps the output of one task.
type keeper struct {
	name    string
	writer  *Writer
	streams []*stream
	done    chan struct{} // closed when it has ended

	mu     sync.Mutex
	ending bool
}

// open makes the task's pipes, unless they are there, and opens them.
func (k *keeper) open(fifos string, a Args) error {
	for i, suffix := range []string{suffixOut, suffixErr} {
		path := filepath.Join(fifos, k.name+suffix)
		if err := syscall.Mkfifo(path, 0o600); err != nil && !errors.Is(err, fs.ErrExist) {
			k.close()
			return fmt.Errorf("make %s: %w", path, err)
		}
		// For writing too: the end of a pipe would come before the shim has opened it.
		f, err := os.OpenFile(path, os.O_RDWR|syscall.O_NONBLOCK, 0)
		if err != nil {
			k.close()
			return err
		}
		st := &stream{name: []string{Stdout, Stderr}[i], file: f}
		if st.conn, err = f.SyscallConn(); err != nil {
			k.close()
			return err
		}
		k.streams = append(k.streams, st)
	}
	w, err := Open(a)
	if err != nil {
		k.close()
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.writer = w
	if k.ending {
		k.finish()
	}
	return nil
}

// close removes the pipes.
func (k *keeper) close() {
	for _, s := range k.streams {
		_ = os.Remove(s.file.Name())
		_ = s.file.Close()
	}
}

// keep writes until the task's output has ended.
func (k *keeper) keep() {
	var wg sync.WaitGroup
	for _, s := range k.streams {
		wg.Go(func() { k.writer.copy(s) })
	}
	wg.Wait()
	k.close()
	if err := os.WriteFile(filepath.Join(k.writer.args.Dir, closedFile), nil, 0o600); err != nil {
		say(err)
	}
	k.writer.Close()
}

// end makes keep return once the streams are quiet.
func (k *keeper) end() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.ending = true
	if k.writer != nil {
		k.finish()
	}
}

func (k *keeper) ended() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.ending
}

func (k *keeper) finish() {
	for _, s := range k.streams {
		s.finish()
	}
}

// leave takes the files from the copying goroutines, for good, and writes what they have.
func (k *keeper) leave() {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, s := range k.streams {
		s.mu.Lock() // it is not given back: the process ends
		_ = s.file.SetReadDeadline(time.Unix(1, 0))
	}
	if k.writer != nil {
		k.writer.leave(k.streams)
	}
}
