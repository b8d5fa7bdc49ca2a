package edge

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"testing"
	"time"

	"github.com/coder/websocket"
)

// shared opens the same listening socket twice, as two processes have it.
func shared(t *testing.T) (a, b net.Listener) {
	t.Helper()
	a, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f, err := a.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if b, err = net.FileListener(f); err != nil {
		t.Fatal(err)
	}
	return a, b
}

// serveUntil serves an edge on a listener until the returned function is called.
func serveUntil(t *testing.T, e *Edge, l net.Listener) (quit func()) {
	ctx, cancel := context.WithCancel(context.Background())
	leave, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		if err := e.ServeUntil(ctx, leave, time.Minute, l); err != nil {
			t.Error(err)
		}
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
	return func() { close(leave) }
}

// echo sends bodies back, and messages at /ws.
func echo(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path != "/ws" {
		_, _ = io.Copy(w, r.Body)
		return
	}
	c, err := websocket.Accept(w, r, nil)
	if err != nil {
		return
	}
	defer c.CloseNow()
	for {
		kind, data, err := c.Read(r.Context())
		if err != nil || c.Write(r.Context(), kind, data) != nil {
			return
		}
	}
}

// An edge that gives its listener up loses no request while another one takes over: kept connections end with an answer, HTTP/2 ones
// with a GOAWAY, and WebSockets go on.
func TestHandOverLosesNothing(t *testing.T) {
	k := startTask(t, "127.0.1.1", 0, http.HandlerFunc(echo))
	old, next := newEdge(t), newEdge(t)
	old.Apply(anyHost(k))
	next.Apply(anyHost(k))
	l, same := shared(t)
	at := "http://" + l.Addr().String()
	leave := serveUntil(t, old, l)
	ctx, cancel := context.WithTimeout(t.Context(), waitMax)
	defer cancel()
	tunnel, _, err := websocket.Dial(ctx, "ws"+at[len("http"):]+"/ws", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer tunnel.CloseNow()
	stop := make(chan struct{})
	ended := make(chan error)
	clients := []*http.Client{newClient(t), newClient(t), newClient(t), newClient(t)}
	for i, c := range clients {
		if i%2 == 1 {
			tr := c.Transport.(*http.Transport)
			tr.Protocols = new(http.Protocols)
			tr.Protocols.SetUnencryptedHTTP2(true)
		}
		go func() {
			// A POST that was sent is not repeated by the client: what is lost shows.
			var err error
			for n := 0; err == nil && !isClosed(stop); n++ {
				err = postOne(c, at+"/", fmt.Sprint(i, " body ", n))
			}
			ended <- err
		}()
	}
	time.Sleep(100 * time.Millisecond) // of load
	serveUntil(t, next, same)
	leave()
	time.Sleep(linger + 500*time.Millisecond) // past the moment at which idle connections are closed
	for i := range 3 {
		text := fmt.Sprint("message ", i)
		if err := tunnel.Write(ctx, websocket.MessageText, []byte(text)); err != nil {
			t.Fatal(err)
		}
		if _, got, err := tunnel.Read(ctx); err != nil || string(got) != text {
			t.Fatalf("the WebSocket says %q, %v; want %q", got, err, text)
		}
	}
	if n := old.Connections(k.address); n != 1 {
		t.Errorf("the old one counts %d requests, want the WebSocket", n)
	}
	close(stop)
	for range clients {
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
}

// The first answer after the listener was given up tells the client that its connection ends.
func TestLeavingTellsClients(t *testing.T) {
	k := startTask(t, "127.0.1.1", 0, says("hello"))
	e := newEdge(t)
	e.Apply(anyHost(k))
	l, same := shared(t)
	defer same.Close()
	leave := serveUntil(t, e, l)
	c := newClient(t)
	ask := func() bool {
		res, err := c.Get("http://" + l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		_, _ = io.Copy(io.Discard, res.Body)
		return res.Close
	}
	if ask() {
		t.Error("it closes a connection without need")
	}
	leave()
	if !ask() {
		t.Error("it keeps a connection that it ought to end")
	}
}
