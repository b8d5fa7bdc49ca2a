// Package uplink is a node's way to the managers: it opens the agent's sessions, keeps them alive, and lets managers use the
// node's services.
//
// For each session it opens two connections to one manager, chosen by chance so that a cluster's agents spread: the
// session itself, and the way back, on which the node serves (see noderpc). When the manager falls silent, or says
// goodbye, both end and the agent connects again, to another one.
//
// Invariants: a session that got no echo of its heartbeats for SilentMax is over; what a manager says of the membership is
// passed on before the update that it came with; nothing here changes what the node runs.
//
// Concurrency: Connect may be called again once the last session has ended. A session owns four goroutines (heartbeats,
// the watch over their answers, the node's load, the way back) that end with it; Close waits for them.
package uplink

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"sync"
	"time"

	"google.golang.org/grpc"

	"baton/internal/model/cluster"
	"baton/internal/wire/agentapi"
	"baton/internal/wire/noderpc"
	"baton/internal/wire/rpc"
	"baton/internal/wire/transport"
)

// Config is what an uplink needs; all fields are required.
type Config struct {
	Node   cluster.ID
	Dialer *transport.Dialer
	// Managers are where a session can be opened now.
	Managers func() []agentapi.Manager
	// Services are what managers may use of this node; it must be ready when the first session opens.
	Services func() agentapi.NodeServices
	Logger   *slog.Logger
}

// connectMax bounds the attempt to open a session with one manager.
const connectMax = 3 * time.Second

// Uplink opens sessions. Make one with New.
type Uplink struct{ cfg Config }

// New makes an uplink; it connects to nobody yet.
func New(cfg Config) *Uplink { return &Uplink{cfg: cfg} }

var _ agentapi.Connector = (*Uplink)(nil)

// ErrNoManager means that no manager could be reached.
var ErrNoManager = errors.New("no manager could be reached")

// Connect implements agentapi.Connector: it tries the managers in an order drawn anew each time.
func (u *Uplink) Connect(ctx context.Context, h agentapi.Hello) (agentapi.Session, error) {
	managers := u.cfg.Managers()
	rand.Shuffle(len(managers), func(i, j int) { managers[i], managers[j] = managers[j], managers[i] })
	err := ErrNoManager
	for _, m := range managers {
		if m.Address == "" || m.Node == u.cfg.Node {
			continue
		}
		s, cerr := u.open(ctx, m, h)
		if cerr == nil {
			return s, nil
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		err = errors.Join(err, cerr)
	}
	return nil, err
}

// open opens a session with one manager.
func (u *Uplink) open(ctx context.Context, m agentapi.Manager, h agentapi.Hello) (_ agentapi.Session, err error) {
	ctx, cancel := context.WithTimeout(ctx, connectMax)
	defer cancel()
	conn, err := u.cfg.Dialer.Dial(ctx, m.Address, transport.ProtocolAgent, transport.NameManager)
	if err != nil {
		return nil, fmt.Errorf("manager %s: %w", m.Address, err)
	}
	life, end := context.WithCancel(context.WithoutCancel(ctx))
	s := &session{client: rpc.NewClientOn(conn), life: life, end: end}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("manager %s: %w", m.Address, err), s.Close())
		}
	}()
	if s.stream, err = rpc.Open[agentapi.Update, agentapi.FromAgent](life, s.client, agentapi.CallService, agentapi.CallSession); err != nil {
		return nil, err
	}
	if err := s.stream.Send(agentapi.FromAgent{Hello: &h}); err != nil {
		return nil, err
	}
	s.work.Go(func() { u.serveBack(life, m) })
	return s, nil
}

// backPause is how long the way back waits before it is opened again.
const backPause = time.Second

// serveBack keeps the way back open as long as the session lives.
func (u *Uplink) serveBack(ctx context.Context, m agentapi.Manager) {
	for {
		if err := u.serveOnce(ctx, m); err != nil && ctx.Err() == nil {
			u.cfg.Logger.Debug("the way back broke off", "manager", m.Address, "err", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(backPause):
		}
	}
}

func (u *Uplink) serveOnce(ctx context.Context, m agentapi.Manager) error {
	conn, err := u.cfg.Dialer.Dial(ctx, m.Address, transport.ProtocolNode, transport.NameManager)
	if err != nil {
		return err
	}
	server := rpc.NewServer()
	noderpc.Serve(server, func(_ context.Context, id cluster.ID) (agentapi.NodeServices, error) {
		if !id.IsZero() && id != u.cfg.Node {
			return nil, fmt.Errorf("this is node %s, not %s", u.cfg.Node.Short(), id.Short())
		}
		return u.cfg.Services(), nil
	})
	return rpc.Serve(ctx, server, newSingle(conn))
}

// single is a listener that has one connection, and ends with it.
type single struct {
	conn chan net.Conn
	done chan struct{}
	once sync.Once
	addr net.Addr
}

func newSingle(c net.Conn) *single {
	l := &single{conn: make(chan net.Conn, 1), done: make(chan struct{}), addr: c.LocalAddr()}
	l.conn <- &lone{Conn: c, closed: l.Close}
	return l
}

// lone tells its listener when it is closed.
type lone struct {
	net.Conn
	closed func() error
}

// Close implements net.Conn.
func (c *lone) Close() error { return errors.Join(c.Conn.Close(), c.closed()) }

// Accept implements net.Listener.
func (l *single) Accept() (net.Conn, error) {
	select {
	case c := <-l.conn:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (l *single) Close() error {
	l.once.Do(func() { close(l.done) })
	return nil
}

// Addr implements net.Listener.
func (l *single) Addr() net.Addr { return l.addr }

// session is one stream to a manager.
type session struct {
	client *grpc.ClientConn
	stream rpc.Stream[agentapi.Update, agentapi.FromAgent]
	life   context.Context
	end    context.CancelFunc
	work   sync.WaitGroup

	sending sync.Mutex // one sender at a time
}

var _ agentapi.Session = (*session)(nil)

// Send implements agentapi.Session.
func (s *session) Send(_ context.Context, r agentapi.Report) error {
	s.sending.Lock()
	defer s.sending.Unlock()
	if err := s.stream.Send(agentapi.FromAgent{Report: &r}); err != nil {
		return errors.New("session ended: " + rpc.Message(err))
	}
	return nil
}

// Recv implements agentapi.Session. The context is that of the session: Close ends a wait.
func (s *session) Recv(ctx context.Context) (agentapi.Update, error) {
	stop := context.AfterFunc(ctx, s.end)
	defer stop()
	u, err := s.stream.Recv()
	if err != nil {
		if ctx.Err() != nil {
			return u, ctx.Err()
		}
		return u, errors.New("session ended: " + rpc.Message(err))
	}
	return u, nil
}

// Close implements agentapi.Session.
func (s *session) Close() error {
	s.end()
	err := s.client.Close()
	s.work.Wait()
	return err
}
