package edgeproc

import (
	"context"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"baton/internal/model/cluster"
	"baton/internal/model/spec"
	"baton/internal/wire/agentapi"
)

// program is the executable of the process, as it is delivered: with cgo it could not give up rights on all of its threads.
var program string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "edge-program")
	if err != nil {
		log.Fatal(err)
	}
	program = filepath.Join(dir, Program)
	cmd := exec.Command("go", "build", "-trimpath", "-o", program, "baton/cmd/baton-edge")
	cmd.Env = append(cmd.Environ(), "CGO_ENABLED=0", "GOPROXY=off")
	if out, err := cmd.CombinedOutput(); err != nil {
		log.Fatalf("build: %v\n%s", err, out)
	}
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) {
		_ = os.RemoveAll(dir)
		os.Exit(code)
	}))
}

// waitMax bounds every wait of these tests.
const waitMax = 10 * time.Second

// build makes an executable of the process; note makes it differ from others.
func build(t *testing.T, note string) string {
	t.Helper()
	data, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), Program)
	if err := os.WriteFile(path, append(data, note...), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

// site is a node: a port, tasks, and one baton after the other.
type site struct {
	t       *testing.T
	cfg     Config
	address string
	secure  string // address of the port with TLS

	mu        sync.Mutex
	restarted []string
	failed    []error
}

func newSite(t *testing.T) *site {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &site{t: t, address: l.Addr().String()}
	more, err := net.Listen("tcp", "127.0.0.1:0") // before the first is closed: they must differ
	if err != nil {
		t.Fatal(err)
	}
	s.secure = more.Addr().String()
	_, _ = l.Close(), more.Close()
	// Not t.TempDir: its path is too long for a socket's.
	dir, err := os.MkdirTemp("", "edge")
	if err != nil {
		t.Fatal(err)
	}
	s.cfg = Config{
		Dir: filepath.Join(dir, "edge"), Program: build(t, ""), Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
		Listen: func(ctx context.Context) (net.Listener, error) {
			return new(net.ListenConfig).Listen(ctx, "tcp", s.address)
		},
		ListenTLS: func(ctx context.Context) (net.Listener, error) {
			return new(net.ListenConfig).Listen(ctx, "tcp", s.secure)
		},
		Restarted: func(reason string) {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.restarted = append(s.restarted, reason)
		},
		Failed: func(err error) {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.failed = append(s.failed, err)
		},
	}
	t.Cleanup(func() {
		for _, pid := range s.pids() {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
		s.until("no process is left", func() bool { return len(s.pids()) == 0 })
		_ = os.RemoveAll(dir)
	})
	return s
}

// baton looks after the edge until the returned function or the test ends it.
func (s *site) baton(change ...func(*Config)) (e *Edge, stop func()) {
	cfg := s.cfg
	for _, c := range change {
		c(&cfg)
	}
	e = New(cfg)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		e.Run(ctx)
	}()
	stop = func() {
		cancel()
		<-done
	}
	s.t.Cleanup(stop)
	return e, stop
}

// pids are the processes that run for this site, by age.
func (s *site) pids() (pids []int) {
	lines, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, path := range lines {
		b, err := os.ReadFile(path)
		args := strings.Split(string(b), "\x00")
		var pid int
		if _, perr := fmt.Sscanf(path, "/proc/%d/", &pid); err == nil && perr == nil && len(args) > 2 && args[1] == s.cfg.Dir {
			pids = append(pids, pid)
		}
	}
	return pids
}

// one is the only process.
func (s *site) one() int {
	s.t.Helper()
	pids := s.pids()
	if len(pids) != 1 {
		s.t.Fatalf("%d processes run, want one", len(pids))
	}
	return pids[0]
}

func (s *site) until(what string, ok func() bool) {
	s.t.Helper()
	for deadline := time.Now().Add(waitMax); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			s.t.Fatalf("waited %v: %s", waitMax, what)
		}
	}
}

func (s *site) apply(e *Edge, state agentapi.NetworkState) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), waitMax)
	defer cancel()
	if err := e.Apply(ctx, state); err != nil {
		s.t.Fatal(err)
	}
}

// served waits until the port answers.
func (s *site) served() {
	s.t.Helper()
	c := newClient(s.t)
	s.until("the port answers", func() bool {
		res, err := c.Get("http://" + s.address + "/")
		if err == nil {
			res.Body.Close()
		}
		return err == nil
	})
}

func newClient(t *testing.T) *http.Client {
	tr := &http.Transport{MaxIdleConnsPerHost: 100}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: waitMax}
}

// post makes a request that is not repeated once it was sent.
func (s *site) post(c *http.Client, body string) error {
	res, err := c.Post("http://"+s.address+"/", "text/plain", strings.NewReader(body))
	if err != nil {
		return err
	}
	defer res.Body.Close()
	got, err := io.ReadAll(res.Body)
	if err == nil && (res.StatusCode != http.StatusOK || string(got) != body) {
		err = fmt.Errorf("got %d, %q", res.StatusCode, got)
	}
	return err
}

// load posts on kept connections, of HTTP/1.1 and HTTP/2, until the returned function is called. It fails the test for each error.
func (s *site) load() (end func()) {
	stop := make(chan struct{})
	var all sync.WaitGroup
	for i := range 4 {
		c := newClient(s.t)
		if i%2 == 1 {
			tr := c.Transport.(*http.Transport)
			tr.Protocols = new(http.Protocols)
			tr.Protocols.SetUnencryptedHTTP2(true)
		}
		all.Go(func() {
			n := 0
			for ; n < 20 || !isClosed(stop); n++ {
				if err := s.post(c, fmt.Sprint("client ", i, " body ", n)); err != nil {
					s.t.Error(err)
					return
				}
			}
		})
	}
	return func() {
		close(stop)
		all.Wait()
	}
}

// tunnel opens a WebSocket.
func (s *site) tunnel() *websocket.Conn {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), waitMax)
	defer cancel()
	c, _, err := websocket.Dial(ctx, "ws://"+s.address+"/ws", nil)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = c.CloseNow() })
	return c
}

// echoes sends a message through a WebSocket and back.
func (s *site) echoes(c *websocket.Conn) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), waitMax)
	defer cancel()
	if err := c.Write(ctx, websocket.MessageText, []byte("hello")); err != nil {
		s.t.Fatal(err)
	}
	if _, got, err := c.Read(ctx); err != nil || string(got) != "hello" {
		s.t.Fatalf("the WebSocket says %q, %v", got, err)
	}
}

// connections waits until the edge counts n requests.
func (s *site) connections(e *Edge, task netip.AddrPort, n int) {
	s.t.Helper()
	s.until(fmt.Sprintf("%d requests are counted", n), func() bool {
		ctx, cancel := context.WithTimeout(context.Background(), waitMax)
		defer cancel()
		got, err := e.Connections(ctx, task.Addr())
		if err != nil {
			s.t.Fatal(err)
		}
		return got == n
	})
}

// startTask serves a task that echoes bodies, and messages at /ws.
func startTask(t *testing.T, address string) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
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
	})}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = srv.Serve(l)
	}()
	t.Cleanup(func() {
		_ = srv.Close()
		<-done
	})
	return l.Addr().(*net.TCPAddr).AddrPort()
}

// leads is a state in which every request goes to these tasks, which have one port.
func leads(tasks ...netip.AddrPort) agentapi.NetworkState {
	v := agentapi.Service{ID: cluster.ID{1}, Stack: "shop", Name: "web", Ingress: []spec.Ingress{{Path: "/", Port: tasks[0].Port()}}}
	for _, a := range tasks {
		v.Endpoints = append(v.Endpoints, agentapi.Endpoint{Address: a.Addr()})
	}
	return agentapi.NetworkState{Services: []agentapi.Service{{Name: "without rules"}, v}}
}
