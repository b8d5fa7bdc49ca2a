package e2e

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/coder/websocket"
)

// socketUse is how a client uses WebSockets.
type socketUse string

const (
	socketEach socketUse = "each" // opened for each message
	socketKept socketUse = "kept" // one per worker for all of its messages; one that broke is a failure, and another is opened
)

// sender returns what makes a worker's next request, and what ends its last.
func (r request) sender(c *http.Client) (send func() (string, error), hangUp func()) {
	if r.GRPC > 0 {
		return r.caller()
	}
	if r.Socket == "" {
		return func() (string, error) { return r.send(c) }, func() {}
	}
	var s *websocket.Conn
	n := 0
	hangUp = func() {
		if s != nil {
			_ = s.CloseNow()
		}
		s = nil
	}
	return func() (_ string, err error) {
		ctx, cancel := context.WithTimeout(context.Background(), 15*time.Second)
		defer cancel()
		n++
		if s == nil {
			if s, err = r.open(ctx); err != nil {
				s = nil
				return "", fmt.Errorf("open the WebSocket: %w", err)
			}
		}
		if err = exchange(ctx, s, fmt.Sprint("message ", n)); err != nil {
			hangUp()
			return "", fmt.Errorf("message %d: %w", n, err)
		}
		if r.Socket == socketEach {
			err = s.Close(websocket.StatusNormalClosure, "")
			s = nil
		}
		return "echo", err
	}, hangUp
}

func (r request) open(ctx context.Context) (*websocket.Conn, error) {
	s, _, err := websocket.Dial(ctx, strings.Replace(r.URL, "http://", "ws://", 1), &websocket.DialOptions{Host: r.Host})
	return s, err
}

// exchange sends a message and awaits it.
func exchange(ctx context.Context, s *websocket.Conn, text string) error {
	if err := s.Write(ctx, websocket.MessageText, []byte(text)); err != nil {
		return err
	}
	_, got, err := s.Read(ctx)
	if err == nil && string(got) != text {
		err = fmt.Errorf("the echo of %q is %q", text, got)
	}
	return err
}
