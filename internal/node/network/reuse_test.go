package network

import (
	"bufio"
	"net"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"baton/internal/model/cluster"
	"baton/internal/wire/agentapi"
)

// dialFrom connects from a port that an earlier connection may just have left.
func (w *world) dialFrom(tk *task, port int, address string) *net.TCPConn {
	w.t.Helper()
	d := net.Dialer{
		Timeout: dialTimeout, LocalAddr: &net.TCPAddr{IP: tk.Address.AsSlice(), Port: port},
		Control: func(_, _ string, c syscall.RawConn) (err error) {
			cerr := c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1) })
			if err != nil {
				return err
			}
			return cerr
		},
	}
	var c net.Conn
	check(w.t, within(tk.ns, func() (err error) {
		c, err = d.Dial("tcp", address)
		return err
	}))
	w.t.Cleanup(func() { _ = c.Close() })
	check(w.t, c.SetDeadline(time.Now().Add(2*dialTimeout)))
	return c.(*net.TCPConn)
}

// TestForgettingATargetSparesItsClientsNextConnection removes the flows of a gone task after its client has used the same
// port for a new connection, which another task serves: between listing flows and removing them there is always a moment.
func TestForgettingATargetSparesItsClientsNextConnection(t *testing.T) {
	w := newWorld(t)
	n := w.newNode(210)
	net1 := cluster.NewID(nil)
	client, old, next := n.attach(100, nil, net1), n.attach(11, nil, net1), n.attach(12, nil, net1)
	old.serve(80)
	next.serve(80)
	to := func(tk *task) {
		n.apply(state([]agentapi.Service{service("web", n.vip(5), net1, tk)}, client, old, next))
	}
	const port = 40000
	to(old)
	c := w.dialFrom(client, port, at(n.vip(5), 80))
	if line, err := bufio.NewReader(c).ReadString('\n'); err != nil {
		t.Fatalf("first connection: %q, %v", line, err)
	}
	check(t, c.SetLinger(0)) // a reset frees the port at once
	check(t, c.Close())
	tracking, err := openConntrack(n.host)
	check(t, err)
	defer tracking.close()
	var stale []flow
	check(t, tracking.each(flowFilter{replySource: old.Address}, func(f flow) error {
		stale = append(stale, f)
		return nil
	}))
	if len(stale) == 0 {
		t.Fatal("the first connection is not tracked any more: nothing is tested")
	}
	to(next)
	c = w.dialFrom(client, port, at(n.vip(5), 80))
	r := bufio.NewReader(c)
	if _, err := r.ReadString('\n'); err != nil {
		t.Fatal("second connection: ", err)
	}
	for _, f := range stale {
		check(t, tracking.removeByTarget(f))
	}
	to(old) // where its packets would go if its flow were forgotten
	if _, err := c.Write([]byte("still there?\n")); err != nil {
		t.Fatal(err)
	}
	if line, err := r.ReadString('\n'); err != nil || line != "still there?\n" {
		t.Fatalf("the second connection broke: %q, %v", line, err)
	}
}
