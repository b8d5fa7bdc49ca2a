package edgeproc

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"baton/internal/node/edge"
)

func mustAddr(s string) netip.Addr { return netip.MustParseAddr(s) }

// capture is a log that can be read while it is written.
type capture struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (c *capture) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.buf.Write(p)
}

func (c *capture) text() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.buf.String()
}

func (c *capture) logger() *slog.Logger { return slog.New(slog.NewTextHandler(c, nil)) }

// The process has no rights: another user, no capabilities and no way to get any, an empty root, no environment.
func TestRights(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root can give rights up")
	}
	s := newSite(t)
	e, _ := s.baton()
	s.apply(e, leads(startTask(t, "127.0.1.1:0")))
	s.served()
	proc := fmt.Sprintf("/proc/%d/", s.one())
	status, err := os.ReadFile(proc + "status")
	if err != nil {
		t.Fatal(err)
	}
	user := fmt.Sprintf("%d\t%[1]d\t%[1]d\t%[1]d\n", User)
	bound := "CapBnd:\t0000000000000000\n"
	if !mayDropBound(t) {
		bound = "CapBnd:\t"
	}
	for _, want := range []string{
		"Uid:\t" + user, "Gid:\t" + user, "Groups:\t \n", "NoNewPrivs:\t1\n", "CapInh:\t0000000000000000\n", "CapPrm:\t0000000000000000\n",
		"CapEff:\t0000000000000000\n", bound, "CapAmb:\t0000000000000000\n",
	} {
		if !strings.Contains(string(status), want) {
			t.Errorf("status lacks %q:\n%s", want, status)
		}
	}
	tasks, err := filepath.Glob(proc + "task/*/status")
	if err != nil || len(tasks) == 0 {
		t.Fatal(err)
	}
	for _, path := range tasks {
		if b, err := os.ReadFile(path); err == nil && (!strings.Contains(string(b), "CapEff:\t0000000000000000\n") || !strings.Contains(string(b), bound) || !strings.Contains(string(b), "NoNewPrivs:\t1\n")) {
			t.Errorf("%s has more rights than the first thread", path)
		}
	}
	for _, link := range []string{"root", "cwd"} {
		if to, err := os.Readlink(proc + link); err != nil || to != filepath.Join(s.cfg.Dir, emptyDir) {
			t.Errorf("%s is %s, %v; want the empty directory", link, to, err)
		}
	}
	if env, err := os.ReadFile(proc + "environ"); err != nil || len(env) > 0 {
		t.Errorf("its environment is %q, %v", env, err)
	}
	session, err := unix.Getsid(s.one())
	if err != nil || session != s.one() {
		t.Errorf("its session is %d, %v; want its own", session, err)
	}
}

// mayDropBound reports whether this process may make its bounding set smaller: the machines of tests may not.
func mayDropBound(t *testing.T) bool {
	t.Helper()
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var have [2]unix.CapUserData
	if err := unix.Capget(&head, &have[0]); err != nil {
		t.Fatal(err)
	}
	return have[0].Effective&(1<<unix.CAP_SETPCAP) != 0
}

// Nobody but root and baton's own user commands the process, whatever the socket's mode.
func TestRefusesOtherUsers(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root can be somebody else")
	}
	s := newSite(t)
	e, _ := s.baton()
	s.apply(e, leads(startTask(t, "127.0.1.1:0")))
	s.served()
	socks, err := filepath.Glob(filepath.Join(s.cfg.Dir, "*.sock"))
	if err != nil || len(socks) != 1 {
		t.Fatal(socks, err)
	}
	for path, mode := range map[string]os.FileMode{filepath.Dir(s.cfg.Dir): 0o755, s.cfg.Dir: 0o755, socks[0]: 0o777} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
	}
	// Root comes last, for it takes baton's place, and baton replaces a process that it has lost.
	for _, user := range []int{12345, User, 0} {
		said := make(chan error, 1)
		go func() {
			runtime.LockOSThread() // not unlocked: the thread, which is somebody else, ends with the goroutine
			if _, _, e := unix.RawSyscall(unix.SYS_SETRESUID, uintptr(user), uintptr(user), uintptr(user)); e != 0 {
				said <- e
				return
			}
			c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: socks[0], Net: "unix"})
			if err != nil {
				said <- err
				return
			}
			defer c.Close()
			_ = c.SetDeadline(time.Now().Add(waitMax))
			w := newWire(c, reportMax)
			_ = w.send(message{ID: 1, Kind: callConnections, Body: []byte(`"127.0.0.1"`)}) // it may be closed already
			_, _, err = w.receive()
			said <- err
		}()
		if err := <-said; (err == nil) != (user == 0) {
			t.Errorf("user %d: %v; want an answer for root only", user, err)
		}
	}
}

// newServer runs the process' side in this one.
func newServer(t *testing.T, idle time.Duration) (dial func() *wire, ended chan error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	log := newJournal()
	s := &server{
		owner: os.Getuid(), log: log, idleMax: idle, changed: make(chan struct{}, 1),
		edge: edge.New(edge.Config{Log: slog.New(log)}),
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended = make(chan error, 1)
	done := make(chan struct{})
	go func() {
		defer close(done)
		ended <- s.run(ctx, l)
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
	return func() *wire {
		c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		_ = c.SetReadDeadline(time.Now().Add(waitMax))
		return newWire(c, reportMax)
	}, ended
}

// ask makes a call.
func ask(t *testing.T, w *wire, m message, files ...*os.File) (message, []*os.File) {
	t.Helper()
	m.ID = 7
	if err := w.send(m, files...); err != nil {
		t.Fatal(err)
	}
	for {
		got, back, err := w.receive()
		if err != nil {
			t.Fatal(err)
		}
		if got.ID == m.ID {
			return got, back
		}
	}
}

// A process that nobody needs ends by itself.
func TestIdleProcessEnds(t *testing.T) {
	_, ended := newServer(t, 20*time.Millisecond)
	select {
	case err := <-ended:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(waitMax):
		t.Error("it runs on without a listener")
	}
}

// A process that was given a listener soon after it started is not idle.
func TestServingProcessStays(t *testing.T) {
	const idle = 300 * time.Millisecond
	dial, ended := newServer(t, idle)
	l, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	f, err := share(l)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if got, _ := ask(t, dial(), message{Kind: callListen}, f); got.Error != "" {
		t.Fatal(got.Error)
	}
	select {
	case err := <-ended:
		t.Fatalf("it ended while it served: %v", err)
	case <-time.After(4 * idle):
	}
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
}

// Fields that a newer baton sends are passed over, commands that this build does not know are refused, and the connection goes on.
func TestNewerBaton(t *testing.T) {
	dial, _ := newServer(t, time.Minute)
	w := dial()
	if got, _ := ask(t, w, message{Kind: "dance"}); !strings.Contains(got.Error, `cannot "dance"`) {
		t.Errorf("an unknown command is answered by %+v", got)
	}
	if got, _ := ask(t, w, message{Kind: callTable, Body: []byte(`{"services":[{"name":"web","weather":"fine"}],"moon":1}`)}); got.Error != "" {
		t.Error(got.Error)
	}
	for _, bad := range []message{
		{Kind: callTable, Body: []byte(`[]`)}, {Kind: callTable}, {Kind: callConnections, Body: []byte(`"x"`)}, {Kind: callListen},
	} {
		if got, _ := ask(t, w, bad); got.Error == "" {
			t.Errorf("%s with %q is answered without an error", bad.Kind, bad.Body)
		}
	}
}

// A listener comes back as it went, and its descriptors do not block: a blocking one would hang whoever accepts beside another process.
func TestListenerThereAndBack(t *testing.T) {
	dial, ended := newServer(t, time.Minute)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	f, err := share(l.(*net.TCPListener))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	w := dial()
	for range 2 { // asking twice is no harm
		if got, _ := ask(t, w, message{Kind: callListen}, f); got.Error != "" {
			t.Fatal(got.Error)
		}
	}
	_, back := ask(t, dial(), message{Kind: callHello}) // of another baton
	if len(back) != 1 {
		t.Fatalf("%d listeners came back", len(back))
	}
	defer back[0].Close()
	flags, err := unix.FcntlInt(back[0].Fd(), unix.F_GETFL, 0)
	if err != nil || flags&unix.O_NONBLOCK == 0 {
		t.Errorf("the listener blocks (%#x, %v)", flags, err)
	}
	again, err := net.FileListener(back[0])
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if again.Addr().String() != l.Addr().String() {
		t.Errorf("%s came back, %s went", again.Addr(), l.Addr())
	}
	if got, _ := ask(t, dial(), message{Kind: callLeave}); got.Error != "" {
		t.Fatal(got.Error)
	}
	if err := <-ended; err != nil { // it had no requests
		t.Error(err)
	}
}

// The log is bounded: the oldest lines go, and how many is told.
func TestJournalIsBounded(t *testing.T) {
	j := newJournal()
	log := slog.New(j).With("a", 1).WithGroup("g")
	log.Debug("not kept")
	for n := range linesMax + 10 {
		log.Info("line", "n", n, "took", time.Second)
	}
	first := <-j.lines
	if n := first.Attrs[1]; n.Key != "g.n" || fmt.Sprint(n.Value) != "10" || j.lost.Load() != 10 || first.Attrs[2].Value != "1s" {
		t.Errorf("the oldest line is %+v after %d lost, want number 10 after 10", first, j.lost.Load())
	}
}

// Whatever comes on the wire, reading it ends without a panic and without more than its bound.
func FuzzReceive(f *testing.F) {
	f.Add([]byte("\x00\x00\x00\x02{}"))
	f.Add([]byte("\xff\xff\xff\xff{}"))
	f.Add([]byte("\x00\x00\x00\x0a{\"id\":1}"))
	f.Fuzz(func(t *testing.T, data []byte) {
		pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Skip(err)
		}
		out, in := os.NewFile(uintptr(pair[0]), "out"), os.NewFile(uintptr(pair[1]), "in")
		c, err := net.FileConn(in)
		_ = in.Close()
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_, _ = io.Copy(out, bytes.NewReader(data[:min(len(data), 4<<10)]))
		_ = out.Close()
		w := newWire(c.(*net.UnixConn), 1<<10)
		for {
			m, files, err := w.receive()
			if err != nil {
				return
			}
			closeAll(files)
			replay(slog.New(slog.DiscardHandler), m.Body)
		}
	})
}
