package edge

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"testing"
	"time"

	"go.uber.org/goleak"

	"baton/internal/model/cluster"
	"baton/internal/model/spec"
	"baton/internal/wire/agentapi"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// waitMax bounds every wait of these tests.
const waitMax = 20 * time.Second

// task is a server on a loopback address of its own, as a task has it.
type task struct {
	address netip.Addr
	port    uint16
	server  *http.Server
	done    chan struct{}
}

// startTask serves h on an address; port zero takes a free one.
func startTask(t *testing.T, address string, port uint16, h http.Handler, change ...func(*http.Server)) *task {
	t.Helper()
	l, err := net.Listen("tcp", netip.AddrPortFrom(netip.MustParseAddr(address), port).String())
	if err != nil {
		t.Fatal(err)
	}
	at := l.Addr().(*net.TCPAddr).AddrPort()
	k := &task{address: at.Addr(), port: at.Port(), server: &http.Server{Handler: h, Protocols: new(http.Protocols)}, done: make(chan struct{})}
	k.server.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	k.server.Protocols.SetHTTP1(true)
	k.server.Protocols.SetUnencryptedHTTP2(true)
	for _, c := range change {
		c(k.server)
	}
	go func() {
		defer close(k.done)
		_ = k.server.Serve(l)
	}()
	t.Cleanup(k.stop)
	return k
}

// stop ends it as a container ends: its connections are cut.
func (k *task) stop() {
	_ = k.server.Close()
	<-k.done
}

// startTasks starts several with one port.
func startTasks(t *testing.T, n int, h func(i int) http.Handler) []*task {
	t.Helper()
	list := []*task{startTask(t, "127.0.1.1", 0, h(0))}
	for i := 1; i < n; i++ {
		list = append(list, startTask(t, netip.AddrFrom4([4]byte{127, 0, 1, byte(i + 1)}).String(), list[0].port, h(i)))
	}
	return list
}

// service is one whose tasks are the given ones.
func service(n byte, rules []spec.Ingress, tasks ...*task) agentapi.Service {
	s := agentapi.Service{ID: cluster.ID{0: 's', 15: n}, Stack: "shop", Name: "web", Ingress: rules}
	for _, k := range tasks {
		s.Endpoints = append(s.Endpoints, agentapi.Endpoint{Address: k.address})
	}
	return s
}

// anyHost leads every request to the tasks.
func anyHost(tasks ...*task) agentapi.NetworkState {
	port := uint16(1)
	if len(tasks) > 0 {
		port = tasks[0].port
	}
	return agentapi.NetworkState{Services: []agentapi.Service{service(1, []spec.Ingress{{Path: "/", Port: port}}, tasks...)}}
}

// newSource gives tables what they need, of an edge that serves nobody.
func newSource() *source {
	return &source{edge: New(Config{Log: slog.New(slog.DiscardHandler)}), used: make(map[netip.AddrPort]bool), counters: make(map[*counter]bool), limits: make(map[limiterKey]bool)}
}

func newEdge(t *testing.T, change ...func(*Config)) *Edge {
	cfg := Config{Log: slog.New(slog.DiscardHandler)}
	for _, c := range change {
		c(&cfg)
	}
	e := New(cfg)
	t.Cleanup(func() { e.Apply(agentapi.NetworkState{}) })
	return e
}

// serve serves an edge until the test or the returned function ends it.
func serve(t *testing.T, e *Edge) (address string, stop func()) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := e.Serve(ctx, l); err != nil {
			t.Error(err)
		}
	}()
	stop = func() {
		cancel()
		<-done
	}
	t.Cleanup(stop)
	return l.Addr().String(), stop
}

// newClient is a client with connections of its own.
func newClient(t *testing.T) *http.Client {
	tr := &http.Transport{MaxIdleConnsPerHost: 100}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: waitMax}
}

func get(t *testing.T, c *http.Client, url string) (int, string, http.Header) {
	t.Helper()
	res, err := c.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, string(b), res.Header
}

// until waits for a condition.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(waitMax); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited %v for %s", waitMax, what)
		}
	}
}

func says(text string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, text) })
}

// requestFor is a request as forward passes it on.
func requestFor(host, path string) *http.Request {
	r := httptest.NewRequest(http.MethodGet, "http://"+host+path, nil)
	return r.WithContext(withExchange(r.Context(), &exchange{}))
}
