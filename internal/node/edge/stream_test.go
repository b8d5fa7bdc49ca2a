package edge

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coder/websocket"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
)

// A WebSocket goes on with its task after the task left, counts there until it is closed, and ends when the edge does.
func TestWebSocketSurvivesASwap(t *testing.T) {
	echo := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, err := websocket.Accept(w, r, nil)
		if err != nil {
			return
		}
		defer func() { _ = c.CloseNow() }()
		for {
			kind, b, err := c.Read(r.Context())
			if err != nil || c.Write(r.Context(), kind, b) != nil {
				return
			}
		}
	})
	tasks := startTasks(t, 2, func(int) http.Handler { return echo })
	e := newEdge(t)
	e.Apply(anyHost(tasks[0]))
	at, stop := serve(t, e)
	ctx, cancel := context.WithTimeout(t.Context(), waitMax)
	defer cancel()
	dial := func() *websocket.Conn {
		c, _, err := websocket.Dial(ctx, "ws://"+at+"/chat", &websocket.DialOptions{HTTPClient: newClient(t)})
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	say := func(c *websocket.Conn, text string) {
		t.Helper()
		if err := c.Write(ctx, websocket.MessageText, []byte(text)); err != nil {
			t.Fatal(err)
		}
		if _, b, err := c.Read(ctx); err != nil || string(b) != text {
			t.Fatalf("got %q, %v; want %q", b, err, text)
		}
	}
	first := dial()
	defer func() { _ = first.CloseNow() }()
	say(first, "before")
	e.Apply(anyHost(tasks[1]))
	say(first, "after")
	second := dial()
	defer func() { _ = second.CloseNow() }()
	say(second, "new")
	if a, b := e.Connections(tasks[0].address), e.Connections(tasks[1].address); a != 1 || b != 1 {
		t.Errorf("got %d and %d in flight, want one each", a, b)
	}
	if err := first.Close(websocket.StatusNormalClosure, ""); err != nil {
		t.Error(err)
	}
	until(t, "the first task to be idle", func() bool { return e.Connections(tasks[0].address) == 0 })
	stopped := make(chan struct{})
	go func() {
		stop()
		close(stopped)
	}()
	until(t, "the port to close", func() bool {
		c, err := net.DialTimeout("tcp", at, time.Second)
		if err == nil {
			c.Close()
		}
		return err != nil
	})
	say(second, "still")
	<-stopped
	if _, _, err := second.Read(ctx); err == nil {
		t.Error("the WebSocket is still open although the edge stopped")
	}
}

// Events arrive one by one, also after a swap.
func TestServerSentEventsAreNotHeldBack(t *testing.T) {
	more := make(chan string)
	tasks := startTasks(t, 2, func(int) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "text/event-stream")
			for s := range more {
				_, _ = fmt.Fprintf(w, "data: %s\n\n", s)
				_ = http.NewResponseController(w).Flush()
			}
		})
	})
	e := newEdge(t)
	e.Apply(anyHost(tasks[0]))
	at, _ := serve(t, e)
	go func() { more <- "one" }()
	res, err := newClient(t).Get("http://" + at + "/events")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	lines := bufio.NewScanner(res.Body)
	next := func(want string) {
		t.Helper()
		for lines.Scan() {
			if s, ok := strings.CutPrefix(lines.Text(), "data: "); ok {
				if s != want {
					t.Fatalf("got %q, want %q", s, want)
				}
				return
			}
		}
		t.Fatalf("the stream ended before %q: %v", want, lines.Err())
	}
	next("one")
	e.Apply(anyHost(tasks[1]))
	more <- "two"
	next("two")
	close(more)
	if lines.Scan() {
		lines.Scan()
	}
	until(t, "the stream's end", func() bool { return e.Connections(tasks[0].address) == 0 })
}

// What a task has sent so far arrives, also of an answer whose length is known.
func TestAnswersAreNotHeldBack(t *testing.T) {
	seen := make(chan struct{})
	k := startTask(t, "127.0.1.1", 0, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "6")
		_, _ = io.WriteString(w, "one")
		_ = http.NewResponseController(w).Flush()
		<-seen
		_, _ = io.WriteString(w, "two")
	}))
	e := newEdge(t)
	e.Apply(anyHost(k))
	at, _ := serve(t, e)
	res, err := newClient(t).Get("http://" + at + "/")
	if err != nil {
		close(seen)
		t.Fatal(err)
	}
	defer res.Body.Close()
	half := make([]byte, 3)
	_, err = io.ReadFull(res.Body, half)
	close(seen)
	if err != nil || string(half) != "one" {
		t.Errorf("got %q, %v before the rest was sent; want its beginning", half, err)
	}
}

// gRPC needs HTTP/2 on both sides, trailers, and messages as they come.
func TestGRPC(t *testing.T) {
	var checks [2]*health.Server
	var open atomic.Int64
	serving := func(i int) http.Handler {
		checks[i] = health.NewServer()
		srv := grpc.NewServer()
		grpc_health_v1.RegisterHealthServer(srv, checks[i])
		t.Cleanup(srv.Stop)
		return srv
	}
	first := startTask(t, "127.0.1.1", 0, serving(0), counting(&open))
	tasks := []*task{first, startTask(t, "127.0.1.2", first.port, serving(1))}
	e := newEdge(t)
	e.Apply(anyHost(tasks[0]))
	keepIdle(e)
	at, _ := serve(t, e)
	conn, err := grpc.NewClient("passthrough:///"+at, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	client := grpc_health_v1.NewHealthClient(conn)
	ctx, cancel := context.WithTimeout(t.Context(), waitMax)
	defer cancel()

	// The status is in the trailers.
	if _, err := client.Check(ctx, &grpc_health_v1.HealthCheckRequest{Service: "none"}); status.Code(err) != codes.NotFound {
		t.Errorf("got %v, want NotFound", err)
	}
	watch, err := client.Watch(ctx, &grpc_health_v1.HealthCheckRequest{})
	if err != nil {
		t.Fatal(err)
	}
	next := func(want grpc_health_v1.HealthCheckResponse_ServingStatus) {
		t.Helper()
		if r, err := watch.Recv(); err != nil || r.Status != want {
			t.Fatalf("got %v, %v; want %v", r, err, want)
		}
	}
	next(grpc_health_v1.HealthCheckResponse_SERVING)
	e.Apply(anyHost(tasks[1]))
	checks[0].SetServingStatus("", grpc_health_v1.HealthCheckResponse_NOT_SERVING)
	next(grpc_health_v1.HealthCheckResponse_NOT_SERVING)
	if a := e.Connections(tasks[0].address); a != 1 {
		t.Errorf("%d in flight with the task that left, want the stream", a)
	}
	// A new call on the client's one connection goes to the new task.
	if r, err := client.Check(ctx, &grpc_health_v1.HealthCheckRequest{}); err != nil || r.Status != grpc_health_v1.HealthCheckResponse_SERVING {
		t.Errorf("got %v, %v; want the new task's answer", r, err)
	}
	cancel()
	until(t, "the stream's end", func() bool { return e.Connections(tasks[0].address) == 0 })
	until(t, "no open connection to the task that left", func() bool { return open.Load() == 0 })
	// Without an endpoint a client learns that it may try again.
	e.Apply(anyHost())
	again, done := context.WithTimeout(t.Context(), waitMax)
	defer done()
	if _, err := client.Check(again, &grpc_health_v1.HealthCheckRequest{}); status.Code(err) != codes.Unavailable {
		t.Errorf("without an endpoint: got %v, want Unavailable", err)
	}
}

// A client may speak HTTP/2 without TLS to a task that knows HTTP/1.1 only, and gets its trailers.
func TestHTTP2ToHTTP1WithTrailers(t *testing.T) {
	k := startTask(t, "127.0.1.1", 0, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Trailer", "X-Sum")
		_, _ = io.WriteString(w, r.Proto)
		w.Header().Set("X-Sum", "42")
		w.Header().Set(http.TrailerPrefix+"X-Late", "yes")
	}))
	e := newEdge(t)
	e.Apply(anyHost(k))
	at, _ := serve(t, e)
	tr := &http.Transport{Protocols: new(http.Protocols)}
	tr.Protocols.SetUnencryptedHTTP2(true)
	defer tr.CloseIdleConnections()
	res, err := (&http.Client{Transport: tr, Timeout: waitMax}).Get("http://" + at + "/")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	if res.ProtoMajor != 2 || string(b) != "HTTP/1.1" || res.Trailer.Get("X-Sum") != "42" || res.Trailer.Get("X-Late") != "yes" {
		t.Errorf("got %s, %q, trailers %v; want HTTP/2.0, HTTP/1.1 and both trailers", res.Proto, b, res.Trailer)
	}
}
