package cli

import (
	"bytes"
	"context"
	"io"
	"net"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"baton/client/api"
)

func TestParsePair(t *testing.T) {
	for in, want := range map[string]portPair{"80": {80, 80}, "8080:80": {8080, 80}, "0:80": {0, 80}, "80/tcp": {80, 80}, "65535": {65535, 65535}} {
		if got, err := parsePair(in); err != nil || got != want {
			t.Errorf("%q: got %v, %v, want %v", in, got, err, want)
		}
	}
	for in, want := range map[string]string{
		"": "no pair", "0": "no pair", "80:0": "no pair", "65536": "no pair", "-1:80": "no pair", "1:2:3": "no pair", "http": "no pair", "53/udp": "only TCP",
	} {
		if got, err := parsePair(in); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, %v, want an error with %q", in, got, err, want)
		}
	}
}

// lines is what a command prints, to be awaited.
type lines struct {
	mu   sync.Mutex
	b    bytes.Buffer
	news chan struct{}
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	select {
	case l.news <- struct{}{}:
	default:
	}
	return l.b.Write(p)
}

// await waits until what was printed matches.
func (l *lines) await(t *testing.T, pattern string) []string {
	t.Helper()
	re := regexp.MustCompile(pattern)
	limit := time.After(20 * time.Second)
	for {
		l.mu.Lock()
		text := l.b.String()
		l.mu.Unlock()
		if m := re.FindStringSubmatch(text); m != nil {
			return m
		}
		select {
		case <-l.news:
		case <-limit:
			t.Fatalf("no %q in %q", pattern, text)
		}
	}
}

func TestPortForward(t *testing.T) {
	c := newCluster(t, true)
	write(t, "compose.yaml", webFile)
	c.want(0, "up", "-y")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	out := &lines{news: make(chan struct{}, 1)}
	a := newApp(strings.NewReader(""), io.Discard, out, Hooks{})
	ended := make(chan int, 1)
	go func() { ended <- a.run(ctx, []string{"port-forward", "web", "0:8080", "0:81"}) }()
	open := out.await(t, `forwarding (127\.0\.0\.1:\d+) to port 8080 of web`)[1]
	closed := out.await(t, `forwarding (127\.0\.0\.1:\d+) to port 81 of web`)[1]

	idle, err := net.Dial("tcp", open) // it hinders neither the others nor the end
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = idle.Close() }()
	var wg sync.WaitGroup
	big := strings.Repeat("abcdefgh", 64<<10)
	for range 20 {
		wg.Go(func() {
			if got, err := ask(open, big); got != strings.ToUpper(big) || err != nil {
				t.Errorf("%d bytes, %v, want %d in capitals", len(got), err, len(big))
			}
		})
	}
	wg.Wait()
	_, _ = ask(closed, "x") // it is closed or reset: the reason is printed
	out.await(t, `port 81 of web: .*nothing listens on port 81`)
	if got, err := ask(open, "on"); got != "ON" || err != nil {
		t.Errorf("after a failure: %q, %v", got, err)
	}
	cancel()
	if code := <-ended; code != api.ExitInterrupted {
		t.Errorf("exit code %d, want %d", code, api.ExitInterrupted)
	}
	if conn, err := net.Dial("tcp", open); err == nil {
		_ = conn.Close()
		t.Error("it still listens")
	}
}

// ask says text, ends its direction, and returns all that comes back.
func ask(address, text string) (string, error) {
	conn, err := net.Dial("tcp", address)
	if err != nil {
		return "", err
	}
	defer func() { _ = conn.Close() }()
	if _, err := io.WriteString(conn, text); err != nil {
		return "", err
	}
	if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
		return "", err
	}
	b, err := io.ReadAll(conn)
	return string(b), err
}

func TestPortForwardRefuses(t *testing.T) {
	c := newCluster(t, true)
	write(t, "compose.yaml", webFile)
	c.want(0, "up", "-y")
	contains(t, c.want(api.ExitError, "port-forward", "web", "53/udp"), "only TCP ports", "publish the port")
	contains(t, c.want(api.ExitError, "port-forward", "wbe", "80"), "web")
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	contains(t, c.want(api.ExitRefused, "port-forward", "web", port+":80"), "address already in use", "0:80")
}
