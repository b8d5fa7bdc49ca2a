package edgeproc

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"baton/internal/model/cluster"
)

const (
	// answerMax bounds the wait for a process' answer; one that takes longer is killed.
	answerMax = 30 * time.Second
	// endMax bounds the wait for a process to end after its connection ended.
	endMax = 5 * time.Second
	// saidMax is how much of what a broken process wrote is told.
	saidMax = 1 << 10
	// hashChars of the executable's hash tell two builds apart.
	hashChars = 16
)

// peer is a process, as baton sees it.
type peer struct {
	dir, id string
	answer  time.Duration // how long it may take
	hello   hello         // what it said when baton came
	w       *wire
	ended   chan struct{} // closed when its connection has ended, and so it has
	exit    chan string   // how a child ended; nil for an adopted one

	// Run's own.
	listening map[string]bool // by the name of a port
	leaving   bool
	seq       uint64 // of the newest table that it follows

	mu    sync.Mutex
	last  uint64
	calls map[uint64]chan message
}

// startPeer starts a process.
func startPeer(ctx context.Context, cfg Config, hash string) (*peer, error) {
	dir, id := cfg.Dir, strconv.FormatInt(time.Now().UnixNano(), 36) // sorts by age
	control, err := listenControl(dir, id)
	if err != nil {
		return nil, err
	}
	defer control.Close()
	said, err := os.OpenFile(filepath.Join(dir, id+".err"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer said.Close()
	cmd := exec.Command(cfg.Program, dir, id, hash)
	cmd.Dir, cmd.Env, cmd.Stderr, cmd.ExtraFiles = "/", []string{}, said, []*os.File{control}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // a terminal's signals are not for it
	if err := cmd.Start(); err != nil {
		removeFiles(dir, id)
		return nil, fmt.Errorf("start the edge: %w", err)
	}
	exit := make(chan string, 1)
	go func() { // so that it leaves no zombie; it ends with the process, which may outlive this
		_ = cmd.Wait()
		exit <- cmd.ProcessState.String()
	}()
	_ = control.Close() // so that the connection ends with the process
	p, files, err := dialPeer(ctx, cfg, id)
	closeAll(files) // a new one has none
	if err != nil {
		_ = cmd.Process.Kill()
		how := ""
		select {
		case how = <-exit:
		case <-time.After(endMax):
		}
		err = fmt.Errorf("start the edge: %w (%s)%s", err, how, whatItSaid(dir, id))
		removeFiles(dir, id)
		return nil, err
	}
	p.exit = exit
	return p, nil
}

// listenControl makes the control socket of a process.
func listenControl(dir, id string) (*os.File, error) {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, id+".sock"), Net: "unix"})
	if err != nil {
		return nil, err
	}
	defer l.Close()
	l.SetUnlinkOnClose(false)
	return l.File()
}

// dialPeer connects to a process, and returns its listeners.
func dialPeer(ctx context.Context, cfg Config, id string) (*peer, []*os.File, error) {
	c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: filepath.Join(cfg.Dir, id+".sock"), Net: "unix"})
	if err != nil {
		return nil, nil, err
	}
	p := &peer{dir: cfg.Dir, id: id, answer: cfg.answer, w: newWire(c, reportMax), ended: make(chan struct{}), calls: make(map[uint64]chan message)}
	// Listeners come with the first answer only, so it is read before there is anybody else to read.
	stop := context.AfterFunc(ctx, func() { _ = c.Close() })
	files, err := p.greet(cfg)
	if !stop() {
		err = errors.Join(ctx.Err(), err)
	}
	if err != nil {
		closeAll(files)
		_ = c.Close()
		return nil, nil, err
	}
	p.listening, p.leaving = make(map[string]bool), p.hello.Leaving
	if ports := p.hello.ports(); len(ports) == len(files) {
		for _, name := range ports {
			p.listening[name] = true
		}
	}
	go p.read(cfg)
	return p, files, nil
}

// greet asks a process what it is.
func (p *peer) greet(cfg Config) ([]*os.File, error) {
	if err := p.w.c.SetReadDeadline(time.Now().Add(p.answer)); err != nil {
		return nil, err
	}
	if err := p.w.send(message{ID: 1, Kind: callHello}); err != nil {
		return nil, err
	}
	p.last = 1
	for {
		m, files, err := p.w.receive()
		if err != nil {
			return nil, fmt.Errorf("it says nothing: %w", err)
		}
		if m.ID != 1 {
			closeAll(files)
			m.report(cfg)
			continue
		}
		if m.Error != "" {
			return files, errors.New(m.Error)
		}
		if err := json.Unmarshal(m.Body, &p.hello); err != nil {
			return files, err
		}
		return files, p.w.c.SetReadDeadline(time.Time{})
	}
}

// read takes answers and reports until the connection ends.
func (p *peer) read(cfg Config) {
	defer close(p.ended)
	defer p.w.c.Close()
	for {
		m, files, err := p.w.receive()
		if err != nil {
			return
		}
		closeAll(files)
		if m.ID == 0 {
			m.report(cfg)
			continue
		}
		p.mu.Lock()
		answer := p.calls[m.ID]
		delete(p.calls, m.ID)
		p.mu.Unlock()
		if answer != nil {
			answer <- m
		}
	}
}

// report does what a message asks that nobody answers. What does not make sense is left out: another build may say it.
func (m message) report(cfg Config) {
	switch m.Kind {
	case reportLog:
		replay(cfg.Log, m.Body)
	case reportWake:
		var service cluster.ID
		if json.Unmarshal(m.Body, &service) == nil && cfg.Wake != nil {
			cfg.Wake(service)
		}
	}
}

// errEnded says that a process has ended, or that baton has let go of it.
var errEnded = errors.New("the process has ended")

// call asks something of a process.
func (p *peer) call(ctx context.Context, what kind, body, answer any, files ...*os.File) error {
	m := message{Kind: what}
	if body != nil {
		text, err := json.Marshal(body)
		if err != nil {
			return err
		}
		m.Body = text
	}
	came := make(chan message, 1)
	p.mu.Lock()
	p.last++
	m.ID = p.last
	p.calls[m.ID] = came
	p.mu.Unlock()
	defer func() {
		p.mu.Lock()
		delete(p.calls, m.ID)
		p.mu.Unlock()
	}()
	if err := p.w.send(m, files...); err != nil {
		if p.gone() || errors.Is(err, io.ErrClosedPipe) || errors.Is(err, syscall.EPIPE) || errors.Is(err, net.ErrClosed) {
			return errEnded
		}
		return fmt.Errorf("%s: %w", what, err)
	}
	late := time.NewTimer(p.answer)
	defer late.Stop()
	select {
	case got := <-came:
		if got.Error != "" {
			return fmt.Errorf("%s: %s", what, got.Error)
		}
		if answer == nil {
			return nil
		}
		return json.Unmarshal(got.Body, answer)
	case <-p.ended:
		return errEnded
	case <-late.C:
		return fmt.Errorf("%s: no answer within %s", what, p.answer)
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (p *peer) gone() bool {
	select {
	case <-p.ended:
		return true
	default:
		return false
	}
}

// let go of it: it serves on.
func (p *peer) let() {
	_ = p.w.c.Close()
	<-p.ended
}

// obituary says how a process that has ended did so, and removes its files.
func (p *peer) obituary() string {
	how := "it ended"
	// A process that only lost its connection would serve on by its last table, beside the next one.
	if err := kill(p.dir, p.id); err != nil {
		how += ", or cannot be killed: " + err.Error()
	}
	if p.exit != nil {
		select {
		case how = <-p.exit:
		case <-time.After(endMax):
		}
	}
	how += whatItSaid(p.dir, p.id)
	removeFiles(p.dir, p.id)
	return how
}

// whatItSaid is the end of what a process wrote to its standard error.
func whatItSaid(dir, id string) string {
	b, err := os.ReadFile(filepath.Join(dir, id+".err"))
	if err != nil || len(b) == 0 {
		return ""
	}
	return ": " + strings.ToValidUTF8(string(bytes.TrimSpace(b[:min(len(b), saidMax)])), "?") // a panic's reason comes first
}

func removeFiles(dir, id string) {
	for _, suffix := range []string{".sock", ".err"} {
		_ = os.Remove(filepath.Join(dir, id+suffix)) // what cannot be removed goes with the directory
	}
}

// kill ends a process that does not answer, whoever started it. Its command line tells it from others.
func kill(dir, id string) error {
	lines, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return err
	}
	ours := func(path string) bool {
		b, err := os.ReadFile(path)
		args := strings.Split(string(b), "\x00")
		return err == nil && len(args) > 2 && args[1] == dir && args[2] == id
	}
	for _, path := range lines {
		if !ours(path) {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		if err != nil {
			return err
		}
		p, err := os.FindProcess(pid) // a descriptor: the number cannot become another process' now
		if err != nil {
			return err
		}
		defer p.Release()
		if ours(path) {
			return p.Kill()
		}
	}
	return nil
}

// hashOf tells builds of the process apart.
func hashOf(program string) (string, error) {
	f, err := os.Open(program)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil))[:hashChars], nil
}
