package logger

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	// answerMax bounds one request: the process does nothing that takes long but wait for a disk.
	answerMax = 30 * time.Second
	// startMax bounds the wait for a process that is being started or replaced.
	startMax = 10 * time.Second
	// restartWait is between two looks after a process that does not stay.
	restartWait = time.Second
)

// Process is baton's way to the process, which it starts when there is none and something to keep.
type Process struct {
	// Program is the executable; Logs holds the tasks' log directories, Fifos the pipes. Run is where the socket, the lock and what the
	// process says are.
	Program, Logs, Fifos, Run string
	// Restarted is told when the process was found dead though it had something to keep, and started again. It must not block.
	Restarted func()

	mu       sync.Mutex // one request at a time
	conn     net.Conn   // nil: none
	in       *bufio.Reader
	watching net.Conn // ends with the process; nil with conn
	closed   bool
	watches  sync.WaitGroup
}

func (p *Process) socket() string { return filepath.Join(p.Run, "l.sock") }

// Name is what a task's pipes are called, without what tells the streams apart.
func Name(task string, a Args) string { return fmt.Sprintf("%s,%d,%d", task, a.MaxSize, a.MaxFiles) }

// Open makes the process keep a task's output, and returns the pipes to write it to. a.Dir is not used: it follows from Logs.
func (p *Process) Open(ctx context.Context, task string, a Args) (stdout, stderr string, err error) {
	name := Name(task, a)
	if _, err := p.ask(ctx, "open "+name); err != nil {
		return "", "", fmt.Errorf("keep the output of task %s: %w", task, err)
	}
	return filepath.Join(p.Fifos, name+suffixOut), filepath.Join(p.Fifos, name+suffixErr), nil
}

// End says that a task has ended. One that is not known is no error.
func (p *Process) End(ctx context.Context, task string) error {
	if !p.Keeps(task) {
		return nil // it would be started for nothing
	}
	_, err := p.ask(ctx, "end "+task)
	return err
}

// Keeps reports whether the output of a task is kept by the process, or would be if it ran.
func (p *Process) Keeps(task string) bool {
	left, _ := filepath.Glob(filepath.Join(p.Fifos, task+",*")) // the pattern is sound
	return len(left) > 0
}

// Resume starts the process if there is something to keep, and replaces one of another version.
func (p *Process) Resume(ctx context.Context) error {
	if !p.keeping() {
		return nil
	}
	_, err := p.ask(ctx, "hello")
	return err
}

// Close ends what this baton has of the process, which goes on.
func (p *Process) Close() {
	p.mu.Lock()
	p.closed = true
	p.drop()
	p.mu.Unlock()
	p.watches.Wait()
}

// drop forgets the connections; the caller holds mu.
func (p *Process) drop() {
	for _, c := range []net.Conn{p.conn, p.watching} {
		if c != nil {
			_ = c.Close()
		}
	}
	p.conn, p.watching = nil, nil
}

// follow starts the process again should the one that watching leads to end.
func (p *Process) follow(watching net.Conn) {
	_, _ = watching.Read(make([]byte, 1))
	for {
		p.mu.Lock()
		if p.watching == watching {
			p.drop()
		}
		over := p.closed || p.conn != nil // somebody was faster
		p.mu.Unlock()
		if over {
			return
		}
		ctx, cancel := context.WithTimeout(context.Background(), startMax)
		err := p.Resume(ctx)
		cancel()
		if err == nil {
			return
		}
		time.Sleep(restartWait)
	}
}

// ask makes one request, of a process that is started if need be. A process may end before it answers; then the next one is asked: all
// requests can be repeated.
func (p *Process) ask(ctx context.Context, request string) (answer string, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for range 3 {
		if p.closed {
			return "", errors.New("baton is ending")
		}
		if p.conn == nil {
			if err = p.connect(ctx); err != nil {
				return "", err
			}
		}
		if answer, err = p.exchange(ctx, request); err == nil {
			break
		}
		p.drop()
		if ctx.Err() != nil {
			break
		}
	}
	if err != nil {
		return "", fmt.Errorf("the logger does not answer: %w", err)
	}
	if text, bad := strings.CutPrefix(answer, "error: "); bad {
		return "", errors.New(text)
	}
	return answer, nil
}

func (p *Process) exchange(ctx context.Context, request string) (string, error) {
	until := time.Now().Add(answerMax)
	if d, ok := ctx.Deadline(); ok && d.Before(until) {
		until = d
	}
	if err := p.conn.SetDeadline(until); err != nil {
		return "", err
	}
	if _, err := p.conn.Write([]byte(request + "\n")); err != nil {
		return "", err
	}
	line, err := p.in.ReadString('\n')
	return strings.TrimSuffix(line, "\n"), err
}

// connect finds the process or starts it; one of another version is replaced. The caller holds mu.
func (p *Process) connect(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startMax)
	defer cancel()
	told := false // one was told to leave
	for {
		lock, err := p.lock()
		if err == nil {
			missed := !told && p.keeping()
			err = p.launch(lock)
			_ = lock.Close()
			if err == nil && missed && p.Restarted != nil {
				p.Restarted()
			}
		}
		if err != nil && !errors.Is(err, syscall.EWOULDBLOCK) {
			return fmt.Errorf("start the logger: %w", err)
		}
		program, err := p.dial(ctx)
		if err == nil && program == p.Program {
			watching := p.watching
			p.watches.Go(func() { p.follow(watching) })
			return nil
		}
		if err == nil {
			_, _ = p.exchange(ctx, "leave") // its end is the answer
			told = true
		}
		p.drop()
		select {
		case <-ctx.Done():
			return fmt.Errorf("the logger cannot be reached: %w", errors.Join(err, ctx.Err()))
		case <-time.After(10 * time.Millisecond): // it ends, or begins
		}
	}
}

// keeping reports whether there is output to keep.
func (p *Process) keeping() bool {
	left, _ := filepath.Glob(filepath.Join(p.Fifos, "*,*"+suffixOut)) // the pattern is sound
	return len(left) > 0
}

// dial connects to the process and returns its executable.
func (p *Process) dial(ctx context.Context) (program string, err error) {
	d := new(net.Dialer)
	if p.watching, err = d.DialContext(ctx, "unix", p.socket()); err != nil {
		p.watching = nil // not an interface that holds nothing
		return "", err
	}
	if _, err := p.watching.Write([]byte("watch\n")); err != nil {
		return "", err
	}
	if p.conn, err = d.DialContext(ctx, "unix", p.socket()); err != nil {
		p.conn = nil
		return "", err
	}
	p.in = bufio.NewReader(p.conn)
	return p.exchange(ctx, "hello")
}

// lock is held by the process as long as it lives.
func (p *Process) lock() (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(p.Run, "l.lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// launch starts the process, with the lock, and waits until it has what the one before left.
func (p *Process) launch(lock *os.File) error {
	if err := os.Remove(p.socket()); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: p.socket(), Net: "unix"})
	if err != nil {
		return err
	}
	l.SetUnlinkOnClose(false)
	defer l.Close()
	if err := os.Chmod(p.socket(), 0o600); err != nil {
		return err
	}
	socket, err := l.File()
	if err != nil {
		return err
	}
	defer socket.Close()
	ready, told, err := os.Pipe()
	if err != nil {
		return err
	}
	defer ready.Close()
	said, err := os.OpenFile(filepath.Join(p.Run, "logger.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return errors.Join(err, told.Close())
	}
	defer said.Close()
	cmd := exec.Command(p.Program, Command, p.Logs, p.Fifos)
	cmd.Dir, cmd.Stderr, cmd.ExtraFiles = "/", said, []*os.File{socket, lock, told}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // a terminal's signals are not for it
	err = cmd.Start()
	_ = told.Close()
	if err != nil {
		return err
	}
	go func() { _ = cmd.Wait() }() // so that it leaves no zombie; it ends when it is not needed any more
	if _, err := ready.Read(make([]byte, 1)); err != nil {
		return fmt.Errorf("it ended at once; see %s: %w", said.Name(), err)
	}
	return nil
}
