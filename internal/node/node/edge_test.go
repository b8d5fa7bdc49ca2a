package node

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"testing"
	"time"

	"baton/internal/model/spec"
	"baton/internal/node/agent"
	"baton/internal/node/edge"
	"baton/internal/wire/agentapi"
)

// underlay is a network that shows nothing.
type underlay struct {
	agent.Network
	err  error
	open int
}

func (u underlay) Apply(context.Context, agentapi.NetworkState) error { return u.err }

func (u underlay) Connections(context.Context, netip.Addr) (int, error) { return u.open, u.err }

// inside is an edge in this process.
type inside struct{ *edge.Edge }

func (i inside) Apply(_ context.Context, s agentapi.NetworkState) error {
	i.Edge.Apply(s)
	return nil
}

func (i inside) Connections(_ context.Context, address netip.Addr) (int, error) {
	return i.Edge.Connections(address), nil
}

// What the agent acknowledges holds for the edge too, and a drain sees the edge's requests.
func TestEdgeFollowsWithTheNetwork(t *testing.T) {
	hold, held := make(chan struct{}), make(chan struct{})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	task := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		close(held)
		<-hold
		_, _ = io.WriteString(w, "hello")
	})}
	go func() { _ = task.Serve(l) }()
	defer task.Close()
	address := l.Addr().(*net.TCPAddr).AddrPort()
	state := agentapi.NetworkState{Services: []agentapi.Service{{
		Ingress:   []spec.Ingress{{Path: "/", Port: address.Port()}},
		Endpoints: []agentapi.Endpoint{{Address: address.Addr()}},
	}}}

	listening := make(chan string, 1)
	e := edge.New(edge.Config{Log: slog.New(slog.DiscardHandler), Listen: func(context.Context) (net.Listener, error) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err == nil {
			listening <- l.Addr().String()
		}
		return l, err
	}})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		e.Run(ctx)
	}()
	defer func() {
		cancel()
		<-ended
	}()

	broken := fronted{underlay{err: errors.New("no rules")}, inside{e}, &wakener{}}
	if err := broken.Apply(ctx, state); err == nil {
		t.Error("a state was acknowledged that the network does not follow")
	}
	f := fronted{underlay{open: 2}, inside{e}, &wakener{}}
	if err := f.Apply(ctx, state); err != nil {
		t.Fatal(err)
	}
	client := &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	got := make(chan error, 1)
	go func() {
		res, err := client.Get("http://" + <-listening)
		if err == nil {
			res.Body.Close()
		}
		got <- err
	}()
	<-held
	if err := f.Apply(ctx, agentapi.NetworkState{}); err != nil {
		t.Fatal(err)
	}
	if n, err := f.Connections(ctx, address.Addr()); err != nil || n != 3 {
		t.Errorf("got %d, %v; want the network's 2 and the edge's 1", n, err)
	}
	close(hold)
	if err := <-got; err != nil {
		t.Error(err)
	}
}
