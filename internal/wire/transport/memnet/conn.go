package memnet

import (
	"io"
	"net"
	"os"
	"sync"
	"time"
)

// pipe is one direction of a connection.
type pipe struct {
	net      *Network
	from, to string

	mu      sync.Mutex
	chunks  []chunk
	size    int
	eof     bool          // the writer has closed it; what is under way still arrives
	err     error         // it was reset
	changed chan struct{} // closed at each change, and made anew
}

// chunk is what one Write sent.
type chunk struct {
	data []byte
	at   time.Time // when it arrives, if the way is free
}

func newPipe(n *Network, from, to string) *pipe {
	return &pipe{net: n, from: from, to: to, changed: make(chan struct{})}
}

// change wakes both ends. The caller holds the lock.
func (p *pipe) change() {
	close(p.changed)
	p.changed = make(chan struct{})
}

func (p *pipe) fail(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.err == nil {
		p.err = err
		p.change()
	}
}

// way tells whether the direction is cut, and since when.
func (p *pipe) way() (since time.Time, cut bool, changed chan struct{}) {
	p.net.mu.Lock()
	defer p.net.mu.Unlock()
	since, cut = p.net.closed(p.from, p.to)
	return since, cut, p.net.changed
}

// read takes what has arrived. wait says when to look again at the latest, zero: only after a change.
func (p *pipe) read(b []byte, cut bool) (n int, wait time.Duration, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.err != nil:
		return 0, 0, p.err
	case len(p.chunks) == 0 && p.eof && !cut:
		return 0, 0, io.EOF
	case len(p.chunks) == 0 || cut:
		return 0, 0, nil
	}
	first := &p.chunks[0]
	if wait = time.Until(first.at); wait > 0 {
		return 0, wait, nil
	}
	n = copy(b, first.data)
	p.size -= n
	if first.data = first.data[n:]; len(first.data) == 0 {
		p.chunks = p.chunks[1:]
	}
	p.change()
	return n, 0, nil
}

// write sends as much as the window takes.
func (p *pipe) write(b []byte, at time.Time) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.err != nil {
		return 0, p.err
	}
	if p.eof {
		return 0, net.ErrClosed
	}
	n := min(len(b), windowMax-p.size)
	if n <= 0 {
		return 0, nil
	}
	if k := len(p.chunks); k > 0 && p.chunks[k-1].at.After(at) {
		at = p.chunks[k-1].at // order is kept when the latency shrinks
	}
	p.chunks = append(p.chunks, chunk{data: append([]byte(nil), b[:n]...), at: at})
	p.size += n
	p.change()
	return n, nil
}

func (p *pipe) pending() (size int, changed chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.size, p.changed
}

// conn is one end of a connection.
type conn struct {
	net           *Network
	local, remote string
	in, out       *pipe

	mu            sync.Mutex
	closed        bool
	err           error     // it was reset
	readBy, write time.Time // deadlines
	moved         chan struct{}
}

// fail resets this end: what it reads and writes fails from now on.
func (c *conn) fail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed, c.err = true, err
	c.wake()
}

// wake makes waiting calls look at the deadlines again. The caller holds the lock.
func (c *conn) wake() {
	if c.moved != nil {
		close(c.moved)
		c.moved = nil
	}
}

// state is what a waiting call must watch.
func (c *conn) state(read bool) (closed bool, deadline time.Time, moved chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.moved == nil {
		c.moved = make(chan struct{})
	}
	deadline = c.write
	if read {
		deadline = c.readBy
	}
	return c.closed, deadline, c.moved
}

// Read implements net.Conn.
func (c *conn) Read(b []byte) (int, error) {
	for {
		closed, deadline, moved := c.state(true)
		if closed {
			return 0, c.ended()
		}
		if !deadline.IsZero() && !time.Now().Before(deadline) {
			return 0, os.ErrDeadlineExceeded
		}
		if c.dead() {
			c.fail(errReset)
			return 0, errReset
		}
		_, cut, netChanged := c.in.way()
		_, changed := c.in.pending()
		n, wait, err := c.in.read(b, cut)
		if n > 0 || err != nil || len(b) == 0 {
			return n, err
		}
		c.sleep(wait, deadline, moved, changed, netChanged)
	}
}

// Write implements net.Conn.
func (c *conn) Write(b []byte) (int, error) {
	done := 0
	for {
		closed, deadline, moved := c.state(false)
		if closed {
			return done, c.ended()
		}
		if !deadline.IsZero() && !time.Now().Before(deadline) {
			return done, os.ErrDeadlineExceeded
		}
		if c.dead() {
			c.fail(errReset)
			return done, errReset
		}
		_, changed := c.out.pending()
		n, err := c.out.write(b[done:], time.Now().Add(c.net.latency(c.local, c.remote)))
		done += n
		if err != nil || done == len(b) {
			return done, err
		}
		_, _, netChanged := c.out.way()
		c.sleep(0, deadline, moved, changed, netChanged)
	}
}

func (c *conn) ended() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return c.err
	}
	return net.ErrClosed
}

// dead reports whether this end has something under way that was not acknowledged for too long: either direction is cut.
func (c *conn) dead() bool {
	size, _ := c.out.pending()
	if size == 0 {
		return false
	}
	for _, p := range []*pipe{c.out, c.in} { // the data does not get there, or its acknowledgement not back
		if since, cut, _ := p.way(); cut && time.Since(since) > DeadAfter {
			return true
		}
	}
	return false
}

// deadLook is how often a waiting call looks whether its connection is dead.
const deadLook = time.Second

// sleep waits for a change, at most for wait when that is set, and not past the deadline.
func (c *conn) sleep(wait time.Duration, deadline time.Time, moved, changed, netChanged chan struct{}) {
	if wait <= 0 || wait > deadLook {
		wait = deadLook
	}
	if !deadline.IsZero() {
		wait = min(wait, max(time.Until(deadline), 0))
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-moved:
	case <-changed:
	case <-netChanged:
	}
}

// Close implements net.Conn: what was written still arrives.
func (c *conn) Close() error {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return nil
	}
	c.closed = true
	c.wake()
	c.mu.Unlock()
	c.out.mu.Lock()
	c.out.eof = true
	c.out.change()
	c.out.mu.Unlock()
	// The other end's writes have nobody to read them; it finds out as from a reset.
	c.in.fail(errReset)
	c.net.mu.Lock()
	delete(c.net.conns, c)
	c.net.mu.Unlock()
	return nil
}

// LocalAddr implements net.Conn.
func (c *conn) LocalAddr() net.Addr { return addr(c.local) }

// RemoteAddr implements net.Conn.
func (c *conn) RemoteAddr() net.Addr { return addr(c.remote) }

// SetDeadline implements net.Conn.
func (c *conn) SetDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.readBy, c.write = t, t
	c.wake()
	return nil
}

// SetReadDeadline implements net.Conn.
func (c *conn) SetReadDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.readBy = t
	c.wake()
	return nil
}

// SetWriteDeadline implements net.Conn.
func (c *conn) SetWriteDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.write = t
	c.wake()
	return nil
}
