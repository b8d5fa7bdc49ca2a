package cli

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"baton/client"
	"baton/client/api"
)

// forwardMax is how many connections of one command are open at once; the server has a limit for all its streams.
const forwardMax = 256

// acceptPause is how long to wait when the machine cannot take a connection now.
const acceptPause = 100 * time.Millisecond

// portPair is one port of this machine and the port of the task that it stands for.
type portPair struct{ local, remote uint16 }

func (a *app) portForwardCmd() *cobra.Command {
	var address string
	cmd := &cobra.Command{
		Use: "port-forward TARGET [LOCAL:]REMOTE...", Args: cobra.MinimumNArgs(2),
		Short: "Reach TCP ports of a task from this machine, published or not, on whichever node it is",
		Example: `  baton port-forward db 5432            127.0.0.1:5432 leads to port 5432 of a ready task of db
  baton port-forward api/2 8080:80      port 80 of one replica
  baton port-forward web 0:80 0:9090    free ports, which it prints
  baton port-forward web 80 --address 0.0.0.0   for others, too: they need no password`,
		ValidArgsFunction: a.completeServices,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.portForward(cmd.Context(), args[0], args[1:], address)
		},
	}
	cmd.Flags().StringVar(&address, "address", "127.0.0.1", "address of this machine to listen on")
	return cmd
}

// parsePair reads [LOCAL:]REMOTE. LOCAL may be 0: any free port.
func parsePair(s string) (portPair, error) {
	bad := func() (portPair, error) {
		return portPair{}, api.Errorf(api.CodeInvalid, "%q is no pair of ports", s).WithMend("write REMOTE or LOCAL:REMOTE, like 8080:80; LOCAL may be 0 for a free one")
	}
	ports, proto, found := strings.Cut(s, "/")
	if found && proto != "tcp" {
		return portPair{}, api.Errorf(api.CodeInvalid, "%q: only TCP ports can be forwarded", s).WithMend("publish the port in the Compose file to reach it with %s", proto)
	}
	local, remote, both := strings.Cut(ports, ":")
	if !both {
		remote = local
	}
	l, err := strconv.ParseUint(local, 10, 16)
	if err != nil {
		return bad()
	}
	r, err := strconv.ParseUint(remote, 10, 16)
	if err != nil || r == 0 {
		return bad()
	}
	return portPair{uint16(l), uint16(r)}, nil
}

func (a *app) portForward(ctx context.Context, target string, args []string, address string) error {
	var pairs []portPair
	for _, s := range args {
		p, err := parsePair(s)
		if err != nil {
			return err
		}
		pairs = append(pairs, p)
	}
	c, err := a.dial()
	if err != nil {
		return err
	}
	stack, err := a.hint(ctx)
	if err != nil {
		return err
	}
	if _, err := c.Tasks(ctx, stack, target, false); err != nil {
		return err // a name that is wrong is told now, not to the first connection
	}
	ctx, cancel := context.WithCancel(ctx)
	f := &forwarder{app: a, client: c, stack: stack, target: target, slots: make(chan struct{}, forwardMax), broken: make(chan error, len(pairs))}
	defer f.wg.Wait()
	defer cancel()
	for _, p := range pairs {
		l, err := new(net.ListenConfig).Listen(ctx, "tcp", net.JoinHostPort(address, strconv.Itoa(int(p.local))))
		if err != nil {
			return api.Errorf(api.CodeConflict, "cannot listen on port %d of %s: %s", p.local, address, cause(err)).
				WithMend("choose another port, like 0:%d for a free one", p.remote)
		}
		context.AfterFunc(ctx, func() { _ = l.Close() })
		f.say("forwarding %s to port %d of %s", l.Addr(), p.remote, target)
		f.wg.Go(func() { f.accept(ctx, l, p.remote) })
	}
	select {
	case <-ctx.Done():
	case err := <-f.broken:
		return err
	}
	return followEnd(ctx, true, ctx.Err())
}

// cause is what the system says, without the names of calls around it.
func cause(err error) error {
	for next := errors.Unwrap(err); next != nil; next = errors.Unwrap(err) {
		err = next
	}
	return err
}

// forwarder is a running port-forward.
type forwarder struct {
	*app
	client        *client.Client
	stack, target string
	slots         chan struct{}
	broken        chan error // of listeners
	wg            sync.WaitGroup
	mu            sync.Mutex // one line at a time
}

func (f *forwarder) say(format string, args ...any) {
	f.mu.Lock()
	defer f.mu.Unlock()
	fmt.Fprintf(f.err, format+"\n", args...)
}

// accept serves the connections to one port until ctx ends. What keeps one of them from its task is told and ends that one only.
func (f *forwarder) accept(ctx context.Context, l net.Listener, remote uint16) {
	for {
		select {
		case f.slots <- struct{}{}:
		case <-ctx.Done():
			return
		}
		conn, err := l.Accept()
		if err != nil {
			<-f.slots
			var ne net.Error
			switch {
			case ctx.Err() != nil:
				return
			case errors.As(err, &ne) && ne.Timeout():
				select {
				case <-ctx.Done():
				case <-time.After(acceptPause): // too many files are open: some will be closed
				}
				continue
			}
			f.broken <- fmt.Errorf("listen on %s: %w", l.Addr(), err)
			return
		}
		f.wg.Go(func() {
			defer func() { <-f.slots }()
			err := f.client.Connect(ctx, f.stack, f.target, remote, conn.(*net.TCPConn))
			var e *api.Error
			if errors.As(err, &e) && ctx.Err() == nil {
				f.say("port %d of %s: %s", remote, f.target, e)
			}
		})
	}
}
