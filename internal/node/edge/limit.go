package edge

import (
	"net"
	"sync"
)

// limited is a listener with room for so many connections at once; others wait in the kernel. Unlike netutil's it leaves
// connections their CloseWrite, without which a client that is refused while it still sends loses the answer.
type limited struct {
	net.Listener
	room   chan struct{}
	closed chan struct{}
	once   sync.Once
}

func newLimited(l net.Listener, most int) *limited {
	return &limited{Listener: l, room: make(chan struct{}, most), closed: make(chan struct{})}
}

// Accept implements net.Listener.
func (l *limited) Accept() (net.Conn, error) {
	select {
	case l.room <- struct{}{}:
	case <-l.closed:
		return nil, net.ErrClosed
	}
	c, err := l.Listener.Accept()
	if err != nil {
		l.leave()
		return nil, err
	}
	if tcp, ok := c.(*net.TCPConn); ok {
		return &roomed{TCPConn: tcp, leave: sync.OnceFunc(l.leave)}, nil
	}
	l.leave() // no such listener is used: it has no limit
	return c, nil
}

func (l *limited) leave() { <-l.room }

// Close implements net.Listener.
func (l *limited) Close() error {
	l.once.Do(func() { close(l.closed) })
	return l.Listener.Close()
}

// roomed is a connection that takes up room until it is closed.
type roomed struct {
	*net.TCPConn
	leave func()
}

// Close implements net.Conn.
func (c *roomed) Close() error {
	defer c.leave()
	return c.TCPConn.Close()
}
