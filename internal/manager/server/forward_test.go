package server

import (
	"context"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"
)

// silent is a node that says nothing until it is closed.
type silent struct {
	once          sync.Once
	ended, closed chan struct{}
}

func (s *silent) Read([]byte) (int, error) {
	<-s.closed
	return 0, context.Canceled
}
func (s *silent) Write(b []byte) (int, error) { return len(b), nil }
func (s *silent) CloseWrite() error           { close(s.ended); return nil }
func (s *silent) Close() error {
	s.once.Do(func() { close(s.closed) })
	return nil
}

// A client that has said all it had to say and then goes away takes its connection with it, also when the node has nothing to say.
func TestClientThatOnlyListenedIsMissed(t *testing.T) {
	node := &silent{ended: make(chan struct{}), closed: make(chan struct{})}
	done := make(chan struct{})
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer close(done)
		conn, err := websocket.Accept(w, r, nil)
		if err != nil {
			t.Error(err)
			return
		}
		defer func() { _ = conn.CloseNow() }()
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		relay(ctx, cancel, conn, node)
	}))
	defer srv.Close()
	client, _, err := websocket.Dial(t.Context(), srv.URL, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := client.Write(t.Context(), websocket.MessageBinary, nil); err != nil {
		t.Fatal(err)
	}
	<-node.ended
	if err := client.CloseNow(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-done:
	case <-time.After(20 * time.Second):
		_ = node.Close() // so that the server can end
		t.Error("the connection to the node is still open")
	}
}
