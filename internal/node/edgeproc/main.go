package edgeproc

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"baton/internal/model/cluster"
	"baton/internal/node/edge"
	"baton/internal/wire/agentapi"
)

const (
	// Program is the name of the process' executable.
	Program = "baton-edge"
	// drainMax is how long requests may go on when a process leaves: an hour suits WebSockets, whose clients come back.
	drainMax = time.Hour
	// idleMax is how long a process without listeners waits for another rule.
	idleMax = time.Minute
	// emptyDir is where the process is confined to, below the directory of the control sockets.
	emptyDir = "empty"
	// wakesMax bounds the services that wait to be told of.
	wakesMax = 256
	// filesSpare are what the process has open beside connections, and those that are about to close.
	filesSpare = 512
)

// Main is the whole program. Its command line is the directory of the control sockets, the process' id and the hash of its executable;
// descriptor 3 is its control socket.
func Main(args []string) int {
	if err := run(args); err != nil {
		_, _ = os.Stderr.WriteString(Program + ": " + err.Error() + "\n")
		return 1
	}
	return 0
}

func run(args []string) error {
	if len(args) != 3 {
		return errors.New("it is started by baton, with a directory, an id and a hash")
	}
	owner := os.Getuid()
	signal.Ignore(syscall.SIGHUP, syscall.SIGINT)
	files, err := confine(filepath.Join(args[0], emptyDir))
	if err != nil {
		return fmt.Errorf("it runs only with fewer rights: %w", err)
	}
	f := os.NewFile(3, "control")
	l, err := net.FileListener(f)
	if err != nil {
		return fmt.Errorf("control socket: %w", err)
	}
	_ = f.Close()
	control, ok := l.(*net.UnixListener)
	if !ok {
		return errors.New("descriptor 3 is no unix socket")
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	log := newJournal()
	// A request takes two files: its client's connection and the one to the task. Each of the two ports has its own bound.
	most := int(min(8<<10, (files-min(files, filesSpare))/8))
	s := &server{
		program: args[2], owner: owner, log: log, wakes: make(chan cluster.ID, wakesMax), idleMax: idleMax, changed: make(chan struct{}, 1),
	}
	s.edge = edge.New(edge.Config{
		Log: slog.New(log).With("edge", args[1]), ConnectionsMax: most, RequestsMax: 2 * most, Wake: s.wake,
	})
	return s.run(ctx, control)
}

// server is the process' side of the protocol.
type server struct {
	program string
	owner   int // the user that may command
	edge    *edge.Edge
	log     *journal
	wakes   chan cluster.ID
	idleMax time.Duration
	changed chan struct{} // something to look at for who decides to end

	mu       sync.Mutex
	ctx      context.Context // of what is served
	ports    []*port
	leaving  bool
	broken   error // why a listener ended that nobody gave up: another process is to take its place
	sessions sync.WaitGroup
	newest   context.CancelFunc // ends the session before
}

// port is a listener at work.
type port struct {
	name  string
	file  *os.File // the listener, to give back; nil once it was given up
	quit  chan struct{}
	ended bool
}

// run serves until it is not needed any more, or ctx ends.
func (s *server) run(ctx context.Context, control *net.UnixListener) error {
	ctx, cancel := context.WithCancel(ctx)
	defer s.sessions.Wait()
	defer cancel()
	s.ctx = ctx
	context.AfterFunc(ctx, func() { _ = control.Close() })
	failed := make(chan error, 1)
	s.sessions.Go(func() { failed <- s.accept(ctx, control) })
	for {
		busy, leaving, err := s.state()
		if err != nil || !busy && leaving {
			return err
		}
		var idle <-chan time.Time
		if !busy {
			idle = time.After(s.idleMax)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-idle:
			if busy, _, _ := s.state(); !busy {
				return nil
			}
		case err := <-failed:
			return fmt.Errorf("control socket: %w", err)
		case <-s.changed:
		}
	}
}

// state says whether anything is served or about to end, whether the process is to end after that, and what broke.
func (s *server) state() (busy, leaving bool, broken error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ports = slices.DeleteFunc(s.ports, func(p *port) bool { return p.ended })
	return len(s.ports) > 0, s.leaving, s.broken
}

// look lets run look at the state again.
func (s *server) look() {
	select {
	case s.changed <- struct{}{}:
	default:
	}
}

// accept takes baton's connections.
func (s *server) accept(ctx context.Context, control *net.UnixListener) error {
	for {
		c, err := control.AcceptUnix()
		if err != nil {
			return err
		}
		if err := s.admit(c); err != nil {
			_ = c.Close()
			slog.New(s.log).Warn("a command was refused", "err", err)
			continue
		}
		// A new baton takes the place of an old one whose end was not noticed yet.
		own, cancel := context.WithCancel(ctx)
		s.mu.Lock()
		if s.newest != nil {
			s.newest()
		}
		s.newest = cancel
		s.mu.Unlock()
		s.sessions.Go(func() {
			defer cancel()
			s.session(own, c)
		})
	}
}

// admit refuses everybody but root and who started the process.
func (s *server) admit(c *net.UnixConn) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var peer *unix.Ucred
	var perr error
	if err := raw.Control(func(fd uintptr) { peer, perr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); err != nil {
		return err
	}
	if perr != nil {
		return perr
	}
	if peer.Uid != 0 && int(peer.Uid) != s.owner {
		return fmt.Errorf("user %d is not the one that commands this process", peer.Uid)
	}
	return nil
}

// session answers one baton.
func (s *server) session(ctx context.Context, c *net.UnixConn) {
	w := newWire(c, messageMax)
	ctx, cancel := context.WithCancel(ctx)
	var writers sync.WaitGroup
	defer writers.Wait()
	defer cancel()
	context.AfterFunc(ctx, func() { _ = c.Close() })
	writers.Go(func() { s.tell(ctx, w) })
	for {
		m, files, err := w.receive()
		if err != nil {
			return
		}
		answer := message{ID: m.ID}
		body, back, err := s.do(m, files)
		closeAll(files)
		if err == nil && body != nil {
			answer.Body, err = json.Marshal(body)
		}
		if err != nil {
			answer.Error, back = err.Error(), nil
		}
		if w.send(answer, back...) != nil {
			return
		}
	}
}

// tell sends log lines, and which services are wanted, while there is a baton to take them.
func (s *server) tell(ctx context.Context, w *wire) {
	for {
		select {
		case <-ctx.Done():
			return
		case id := <-s.wakes:
			body, err := json.Marshal(id)
			if err != nil || w.send(message{Kind: reportWake, Body: body}) != nil {
				return
			}
		case l := <-s.log.lines:
			l.Lost = s.log.lost.Swap(0)
			body, err := json.Marshal(l)
			if err != nil {
				continue // a text that is no text
			}
			if w.send(message{Kind: reportLog, Body: body}) != nil {
				s.log.put(l) // for the next baton; nobody has read it
				return
			}
		}
	}
}

// wake tells baton that a service is wanted. Without baton, or with too many of them, it is said again in a second.
func (s *server) wake(service cluster.ID) {
	select {
	case s.wakes <- service:
	default:
	}
}

// do carries a command out. The files are the caller's to close, those that are returned stay the server's.
func (s *server) do(m message, files []*os.File) (body any, back []*os.File, err error) {
	switch m.Kind {
	case callHello:
		h, back := s.hello()
		return h, back, nil
	case callTable:
		var t table
		if err := json.Unmarshal(m.Body, &t); err != nil {
			return nil, nil, fmt.Errorf("read the table: %w", err)
		}
		s.edge.Apply(agentapi.NetworkState{Services: t.Services, Certificates: t.Certificates, Challenges: t.Challenges})
		return nil, nil, nil
	case callListen:
		name, err := m.port()
		if err != nil {
			return nil, nil, err
		}
		if len(files) != 1 {
			return nil, nil, fmt.Errorf("%d listeners came, want one", len(files))
		}
		return nil, nil, s.listen(cmp.Or(name, portHTTP), files[0])
	case callUnlisten, callLeave:
		name, err := m.port()
		if err != nil {
			return nil, nil, err
		}
		s.unlisten(name, m.Kind == callLeave)
		return nil, nil, nil
	case callConnections:
		var address netip.Addr
		if err := json.Unmarshal(m.Body, &address); err != nil {
			return nil, nil, fmt.Errorf("read the address: %w", err)
		}
		return s.edge.Connections(address), nil, nil
	case callMeasures:
		return s.edge.Measures(), nil, nil
	default:
		return nil, nil, fmt.Errorf("this build of %s cannot %q", Program, m.Kind)
	}
}

func (s *server) hello() (hello, []*os.File) {
	s.mu.Lock()
	defer s.mu.Unlock()
	h := hello{Protocol: protocol, PID: os.Getpid(), Program: s.program, Leaving: s.leaving}
	var files []*os.File
	for _, p := range s.ports {
		if p.file != nil {
			h.Listening = true
			h.Ports, files = append(h.Ports, p.name), append(files, p.file)
		}
	}
	return h, files
}

// port reads the name of a port; empty when there is none.
func (m message) port() (name string, err error) {
	if len(m.Body) == 0 {
		return "", nil
	}
	if err := json.Unmarshal(m.Body, &name); err != nil {
		return "", fmt.Errorf("read the name of the port: %w", err)
	}
	return name, nil
}

// serving is how the edge serves a port.
func (s *server) serving(name string) (func(context.Context, <-chan struct{}, time.Duration, net.Listener) error, error) {
	switch name {
	case portHTTP:
		return s.edge.ServeUntil, nil
	case portTLS:
		return s.edge.ServeTLSUntil, nil
	}
	return nil, fmt.Errorf("this build of %s has no port %q", Program, name)
}

// listen serves a listener. A process serves one of each port at a time.
func (s *server) listen(name string, f *os.File) error {
	serve, err := s.serving(name)
	if err != nil {
		return err
	}
	l, err := net.FileListener(f)
	if err != nil {
		return fmt.Errorf("listener: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.leaving {
		return errors.Join(errors.New("the process leaves"), l.Close())
	}
	for _, p := range s.ports {
		if p.file != nil && p.name == name {
			return l.Close() // it was asked twice
		}
	}
	tcp, ok := l.(*net.TCPListener)
	if !ok {
		return errors.Join(errors.New("the listener is not of TCP"), l.Close())
	}
	p := &port{name: name, quit: make(chan struct{})}
	if p.file, err = share(tcp); err != nil {
		return errors.Join(err, l.Close())
	}
	s.ports = append(s.ports, p)
	s.sessions.Go(func() {
		err := serve(s.ctx, p.quit, drainMax, l)
		s.mu.Lock()
		s.broken = errors.Join(s.broken, err)
		p.ended = true
		p.giveUp()
		s.mu.Unlock()
		s.look()
	})
	s.look() // the process is not idle any more
	return nil
}

// giveUp closes the process' descriptor of a listener. The caller holds mu.
func (p *port) giveUp() {
	if p.file != nil {
		_ = p.file.Close()
		p.file = nil
	}
}

// unlisten accepts nothing any more on a port, or without a name on none, for good if the process leaves.
func (s *server) unlisten(name string, leave bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.leaving = s.leaving || leave
	for _, p := range s.ports {
		if p.file != nil && (name == "" || p.name == name) {
			p.giveUp()
			close(p.quit)
		}
	}
	s.look()
}
