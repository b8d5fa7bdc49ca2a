package runtime

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	goruntime "runtime"
	"strconv"
	"syscall"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"golang.org/x/sys/unix"

	"baton/internal/model/cluster"
	"baton/internal/wire/agentapi"
)

// dialMax bounds one attempt to connect. Inside a namespace an answer takes microseconds, unless the task's backlog is full.
const dialMax = 5 * time.Second

// Dial connects to a TCP port of a running task, from within its network namespace: also what listens on the loopback only is
// reached, and no service or port of the task need be published.
func (r *Runtime) Dial(ctx context.Context, id cluster.ID, port uint16) (agentapi.Conn, error) {
	if port == 0 {
		return nil, errors.New("dial: port 0 is none")
	}
	fd, err := r.openOf(ctx, id, "ns/net", unix.O_RDONLY)
	if err != nil {
		return nil, fmt.Errorf("connect to task %s: %w", id.Short(), err)
	}
	defer func() { _ = unix.Close(fd) }()
	type result struct {
		conn *net.TCPConn
		err  error
	}
	done := make(chan result, 1)
	go func() {
		// Never unlocked: the thread ends with this goroutine, so nobody else gets one that is in the task's namespace.
		goruntime.LockOSThread()
		if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
			done <- result{err: fmt.Errorf("join its network namespace: %w", err)}
			return
		}
		conn, err := dialHere(ctx, port)
		done <- result{conn, err}
	}()
	got := <-done // dialHere is bounded, and fd is in use until then
	if got.err != nil {
		return nil, fmt.Errorf("connect to task %s: %w", id.Short(), got.err)
	}
	return got.conn, nil
}

// openOf opens a file about the main process of a running task in /proc.
func (r *Runtime) openOf(ctx context.Context, id cluster.ID, name string, flags int) (int, error) {
	c, err := r.client.LoadContainer(ctx, id.String())
	if err != nil {
		return -1, err
	}
	running := func() (uint32, error) {
		t, err := c.Task(ctx, nil)
		if err != nil {
			return 0, fmt.Errorf("it is not running: %w", err)
		}
		st, err := t.Status(ctx)
		if err != nil {
			return 0, err
		}
		if st.Status != containerd.Running {
			return 0, fmt.Errorf("it is not running but %s", st.Status)
		}
		return t.Pid(), nil
	}
	pid, err := running()
	if err != nil {
		return -1, err
	}
	fd, err := unix.Open(fmt.Sprintf("/proc/%d/%s", pid, name), flags|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("/proc/%d/%s: %w", pid, name, err)
	}
	// The process may have ended before the file was opened, and its number be another's: only a task that still runs is known
	// to own it.
	if again, err := running(); err != nil || again != pid {
		_ = unix.Close(fd)
		return -1, errors.New("it has just ended")
	}
	return fd, nil
}

// dialHere connects to the first address of this thread's namespace where the port is open. A dial of one address runs in the
// calling goroutine, so its socket belongs to the namespace.
func dialHere(ctx context.Context, port uint16) (*net.TCPConn, error) {
	for _, a := range addresses() {
		d := net.Dialer{Timeout: dialMax}
		conn, err := d.DialContext(ctx, "tcp", net.JoinHostPort(a.String(), strconv.Itoa(int(port))))
		switch {
		case err == nil:
			return conn.(*net.TCPConn), nil
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, syscall.EADDRNOTAVAIL), errors.Is(err, syscall.ENETUNREACH):
			continue // nobody at this address; perhaps at the next
		}
		return nil, err
	}
	return nil, fmt.Errorf("nothing listens on TCP port %d", port)
}

// addresses are those of this thread's namespace, loopback first.
func addresses() []netip.Addr {
	list := []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()}
	found, err := net.InterfaceAddrs()
	if err != nil {
		return list // the loopback is known without asking
	}
	for _, f := range found {
		ip, ok := f.(*net.IPNet)
		if !ok {
			continue
		}
		if a, ok := netip.AddrFromSlice(ip.IP); ok && a.Unmap().IsGlobalUnicast() {
			list = append(list, a.Unmap())
		}
	}
	return list
}
