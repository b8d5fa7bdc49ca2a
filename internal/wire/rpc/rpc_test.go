package rpc_test

import (
	"bytes"
	"context"
	"encoding/pem"
	"errors"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"baton/internal/manager/identity"
	"baton/internal/wire/rpc"
	"baton/internal/wire/transport"
	"baton/internal/wire/transport/memnet"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const greeter = "baton.Greeter"

type (
	helloIn  struct{ Text string }
	helloOut struct {
		Text string
		Peer transport.Peer
	}
)

// greetings are the functions of the service under test.
func greetings(table *rpc.Table) {
	rpc.Unary(table, "Hello", func(ctx context.Context, in helloIn) (helloOut, error) {
		switch in.Text {
		case "fail":
			return helloOut{}, errors.New("the greeter is in a bad mood")
		case "deny":
			return helloOut{}, status.Error(codes.PermissionDenied, "not you")
		case "wait":
			<-ctx.Done()
			return helloOut{}, ctx.Err()
		}
		return helloOut{Text: "hello " + in.Text, Peer: rpc.Peer(ctx)}, nil
	})
	rpc.Streaming(table, "Echo", func(s rpc.Stream[helloIn, helloOut]) error {
		for {
			m, err := s.Recv()
			if errors.Is(err, io.EOF) {
				return nil
			}
			if err != nil {
				return err
			}
			if err := s.Send(helloOut{Text: m.Text}); err != nil {
				return err
			}
		}
	})
}

// serve answers greetings on a port of its own and returns a way to it as a worker.
func serve(t *testing.T) (dial func(context.Context) (net.Conn, error)) {
	t.Helper()
	a, err := identity.NewAuthority("ours", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	n := memnet.New(func(string, string) time.Duration { return time.Millisecond })
	creds := func(name, role string) *transport.Files {
		f, err := transport.OpenFiles(filepath.Join(t.TempDir(), name))
		if err != nil {
			t.Fatal(err)
		}
		r, err := transport.NewRequest(name)
		if err != nil {
			t.Fatal(err)
		}
		cert, err := a.Sign(r.CSR, identity.Subject{Name: name, Role: role}, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		if err := f.Install(r, cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.Certificate()})); err != nil {
			t.Fatal(err)
		}
		return f
	}
	port, err := transport.Listen(t.Context(), "m1:1", transport.Config{
		Network: n.Host("m1"), Credentials: creds("m1", transport.RoleManager), Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	table := rpc.NewTable(greeter)
	greetings(table)
	s := rpc.NewServer()
	table.Register(s)
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- rpc.Serve(ctx, s, port.Protocol(transport.ProtocolAgent)) }()
	t.Cleanup(func() {
		stop()
		if err := errors.Join(<-ended, port.Close()); err != nil {
			t.Error(err)
		}
	})
	d := transport.Dialer{Network: n.Host("w1"), Credentials: creds("w1", transport.RoleWorker)}
	return func(ctx context.Context) (net.Conn, error) {
		return d.Dial(ctx, "m1:1", transport.ProtocolAgent, transport.NameManager)
	}
}

func TestCalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := rpc.NewClient(serve(t))
		defer c.Close()
		out, err := rpc.Call[helloOut](t.Context(), c, greeter, "Hello", helloIn{"world"})
		if err != nil || out.Text != "hello world" {
			t.Fatalf("%+v, %v", out, err)
		}
		if out.Peer.Name != "w1" || out.Peer.Role != transport.RoleWorker || out.Peer.Serial == "" {
			t.Errorf("the handler sees the caller as %+v", out.Peer)
		}
		for text, want := range map[string]codes.Code{"fail": codes.Unknown, "deny": codes.PermissionDenied} {
			_, err := rpc.Call[helloOut](t.Context(), c, greeter, "Hello", helloIn{text})
			if status.Code(err) != want || strings.Contains(rpc.Message(err), "rpc error") {
				t.Errorf("%s: %v, %q", text, err, rpc.Message(err))
			}
		}
		if _, err := rpc.Call[helloOut](t.Context(), c, greeter, "Nothing", helloIn{}); status.Code(err) != codes.Unimplemented {
			t.Errorf("an unknown function: %v", err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		begun := time.Now()
		if _, err := rpc.Call[helloOut](ctx, c, greeter, "Hello", helloIn{"wait"}); status.Code(err) != codes.DeadlineExceeded || time.Since(begun) != time.Second {
			t.Errorf("%v after %s", err, time.Since(begun))
		}
	})
}

func TestStreams(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := rpc.NewClient(serve(t))
		defer c.Close()
		s, err := rpc.Open[helloOut, helloIn](t.Context(), c, greeter, "Echo")
		if err != nil {
			t.Fatal(err)
		}
		for _, text := range []string{"a", "", strings.Repeat("x", 1<<20)} {
			if err := s.Send(helloIn{text}); err != nil {
				t.Fatal(err)
			}
			if out, err := s.Recv(); err != nil || out.Text != text {
				t.Fatalf("%d bytes came back of %d, %v", len(out.Text), len(text), err)
			}
		}
		if err := s.CloseSend(); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Recv(); !errors.Is(err, io.EOF) {
			t.Errorf("the end: %v", err)
		}
	})
}

func TestMessagesHaveALimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := rpc.NewClient(serve(t))
		defer c.Close()
		big := string(bytes.Repeat([]byte("x"), rpc.MessageBytesMax))
		if _, err := rpc.Call[helloOut](t.Context(), c, greeter, "Hello", helloIn{big}); status.Code(err) != codes.ResourceExhausted {
			t.Errorf("got %v", status.Code(err))
		}
		if out, err := rpc.Call[helloOut](t.Context(), c, greeter, "Hello", helloIn{"still"}); err != nil || out.Text != "hello still" {
			t.Errorf("the connection does not go on: %v", err)
		}
	})
}

// A client on one connection ends with it, and does not wait for another.
func TestClientOnOneConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		conn, err := serve(t)(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		c := rpc.NewClientOn(conn)
		defer c.Close()
		if _, err := rpc.Call[helloOut](t.Context(), c, greeter, "Hello", helloIn{"x"}); err != nil {
			t.Fatal(err)
		}
		_ = conn.Close()
		synctest.Wait()
		if _, err := rpc.Call[helloOut](t.Context(), c, greeter, "Hello", helloIn{"x"}); status.Code(err) != codes.Unavailable {
			t.Errorf("got %v", err)
		}
	})
}
