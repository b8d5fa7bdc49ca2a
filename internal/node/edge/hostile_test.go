package edge

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/textproto"
	"strings"
	"sync"
	"testing"
	"time"

	"baton/internal/model/cluster"
	"baton/internal/model/spec"
	"baton/internal/wire/agentapi"
)

// witness is a task that keeps every byte that it is sent, and answers each request of the stream as a simple program would read it.
type witness struct {
	at   string
	port uint16
	mu   sync.Mutex
	all  []*bytes.Buffer // by connection
}

func startWitness(t *testing.T) *witness {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.1.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w := &witness{at: "127.0.1.1", port: uint16(l.Addr().(*net.TCPAddr).Port)}
	var serving sync.WaitGroup
	open := make(map[net.Conn]bool)
	serving.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			w.mu.Lock()
			b := new(bytes.Buffer)
			w.all, open[c] = append(w.all, b), true
			w.mu.Unlock()
			serving.Go(func() { w.answer(c, b) })
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		w.mu.Lock()
		for c := range open {
			_ = c.Close()
		}
		w.mu.Unlock()
		serving.Wait()
	})
	return w
}

func (w *witness) answer(c net.Conn, b *bytes.Buffer) {
	defer c.Close()
	r := bufio.NewReader(io.TeeReader(c, lockedWriter{&w.mu, b}))
	for {
		req, err := http.ReadRequest(r)
		if err != nil {
			return
		}
		body, err := io.ReadAll(req.Body)
		if err != nil {
			return
		}
		text := fmt.Sprintf("%s %s %s %d", req.Method, req.RequestURI, req.Host, len(body))
		if _, err := fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(text), text); err != nil {
			return
		}
	}
}

type lockedWriter struct {
	mu *sync.Mutex
	w  io.Writer
}

func (l lockedWriter) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(p)
}

// check reads what came as strictly as can be: every head on every connection is one that the edge wrote, framed in one way only.
// It returns the request lines.
func (w *witness) check(t *testing.T) (lines []string) {
	t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, b := range w.all {
		raw := b.String()
		for rest := raw; rest != ""; {
			head, after, ok := strings.Cut(rest, "\r\n\r\n")
			if !ok {
				t.Errorf("the task got a head without end: %q", rest)
				break
			}
			fields := strings.Split(head, "\r\n")
			lines = append(lines, fields[0])
			if strings.ContainsAny(strings.ReplaceAll(head, "\r\n", ""), "\r\n\x00") {
				t.Errorf("the task got a stray line end in %q", head)
			}
			h := make(http.Header)
			for _, f := range fields[1:] {
				name, value, ok := strings.Cut(f, ":")
				if !ok || name != textproto.TrimString(name) {
					t.Errorf("the task got the line %q", f)
				}
				h.Add(name, textproto.TrimString(value))
			}
			if len(h["X-Forwarded-For"]) != 1 {
				t.Errorf("the task got a request that the edge did not frame: %q", head)
			}
			te, cl := h["Transfer-Encoding"], h["Content-Length"]
			if len(te)+len(cl) > 1 || len(te) == 1 && te[0] != "chunked" {
				t.Errorf("the task got a body framed by %q and %q", te, cl)
			}
			r := bufio.NewReader(strings.NewReader(rest))
			req, err := http.ReadRequest(r)
			if err != nil {
				t.Errorf("the task cannot read %q: %v", head, err)
				break
			}
			if _, err := io.Copy(io.Discard, req.Body); err != nil && len(te)+len(cl) > 0 {
				break // the client broke off, and so did the edge
			}
			left, _ := io.ReadAll(r)
			rest = string(left)
			_ = after
		}
	}
	return lines
}

func (w *witness) state() agentapi.NetworkState {
	return agentapi.NetworkState{Services: []agentapi.Service{{
		ID: cluster.ID{0: 's'}, Stack: "shop", Name: "web",
		Ingress:   []spec.Ingress{{Host: "a.example", Path: "/", Port: w.port}, {Host: "b.example", Path: "/public", Port: w.port}},
		Endpoints: []agentapi.Endpoint{{Address: netip.MustParseAddr(w.at)}},
	}}}
}

// sendRaw sends bytes as they are and returns the statuses of the answers: of so many, and of those that still come once it has said that it
// sends no more. It must not say so before: the edge takes that for a client that has gone.
func sendRaw(t *testing.T, at, raw string, n int) (statuses []int) {
	t.Helper()
	c, err := net.Dial("tcp", at)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(waitMax)); err != nil {
		t.Fatal(err)
	}
	_, _ = io.WriteString(c, raw) // the edge may have refused it before it has read all of it
	r := bufio.NewReader(c)
	for {
		if len(statuses) == n {
			_ = c.(*net.TCPConn).CloseWrite()
		}
		res, err := http.ReadResponse(r, nil)
		if err != nil {
			return statuses
		}
		_, _ = io.Copy(io.Discard, res.Body)
		if res.StatusCode >= 200 {
			statuses = append(statuses, res.StatusCode)
		}
	}
}

// TestSmuggling sends requests whose end a second reader may see elsewhere. Each is refused, or reaches the task framed anew; what stands
// behind it is at most another request of the same client, which the edge has seen as such.
func TestSmuggling(t *testing.T) {
	const next = "GET /next HTTP/1.1\r\nHost: a.example\r\n\r\n"
	post := func(headers, body string) string {
		return "POST /first HTTP/1.1\r\nHost: a.example\r\n" + headers + "\r\n" + body
	}
	for _, tc := range []struct{ name, raw, want string }{
		{"CL.TE", post("Content-Length: 6\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\nG"), "[200]"},
		{"CL.TE with a request behind", post("Content-Length: 47\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n"+next), "[200]"},
		{"TE.CL", post("Content-Length: 4\r\nTransfer-Encoding: chunked\r\n", "27\r\n"+next+"\r\n0\r\n\r\n"), "[200]"},
		{"TE.TE, two of them", post("Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n", "0\r\n\r\n"+next), "[501]"},
		{"TE.TE, a list", post("Transfer-Encoding: identity, chunked\r\n", "0\r\n\r\n"+next), "[501]"},
		{"TE with a tab", post("Transfer-Encoding:\tchunked\r\n", "0\r\n\r\n"+next), "[200 200]"},
		{"TE with a vertical tab", post("Transfer-Encoding: \x0bchunked\r\n", "0\r\n\r\n"+next), "[400]"},
		{"TE of another name", post("Transfer-Encoding: xchunked\r\nContent-Length: 5\r\n", "0\r\n\r\n"+next), "[501]"},
		{"space before the colon", post("Transfer-Encoding : chunked\r\nContent-Length: 5\r\n", "0\r\n\r\n"+next), "[400]"},
		{"space before the name", post(" Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", "0\r\n\r\n"+next), "[400]"},
		{"obs-fold", post("X-A: b\r\n Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", "0\r\n\r\n"+next), "[200 200]"},
		{"two lengths", post("Content-Length: 5\r\nContent-Length: 6\r\n", "0\r\n\r\nG"+next), "[400]"},
		{"two equal lengths", post("Content-Length: 5\r\nContent-Length: 5\r\n", "0\r\n\r\n"+next), "[200 200]"},
		{"a list of lengths", post("Content-Length: 5, 5\r\n", "0\r\n\r\n"+next), "[400]"},
		{"a signed length", post("Content-Length: +5\r\n", "0\r\n\r\n"+next), "[400]"},
		{"a negative length", post("Content-Length: -1\r\n", next), "[400]"},
		{"a length in hex", post("Content-Length: 0x5\r\n", "0\r\n\r\n"+next), "[400]"},
		{"a huge length", post("Content-Length: 99999999999999999999\r\n", next), "[400]"},
		{"chunk extension", post("Transfer-Encoding: chunked\r\n", "2;a=\"b\"\r\nhi\r\n0\r\n\r\n"+next), "[200 200]"},
		{"chunk size with a sign", post("Transfer-Encoding: chunked\r\n", "+2\r\nhi\r\n0\r\n\r\n"+next), "[502]"},
		{"chunk size too long", post("Transfer-Encoding: chunked\r\n", "fffffffffffffffff\r\nhi\r\n0\r\n\r\n"+next), "[502]"},
		{"chunk without its end", post("Transfer-Encoding: chunked\r\n", "2\r\nhiXX0\r\n\r\n"+next), "[502]"},
		{"trailer that is a header", post("Transfer-Encoding: chunked\r\n", "0\r\nContent-Length: 40\r\n\r\n"+next), "[200 200]"},
		{"bare LF", "GET /first HTTP/1.1\nHost: a.example\nX: y\n\n" + next, "[200 200]"},
		{"bare CR in a value", post("X-A: b\rTransfer-Encoding: chunked\r\nContent-Length: 0\r\n", next), "[400]"},
		{"NUL in a value", post("X-A: b\x00c\r\nContent-Length: 0\r\n", next), "[400]"},
		{"no colon", post("X-A\r\nContent-Length: 0\r\n", next), "[400]"},
		{"HTTP/1.0 with chunks", "POST /first HTTP/1.0\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + next, "[200]"},
		{"HTTP/0.9", "GET /first\r\n\r\n" + next, "[400]"},
		{"HTTP/1.1 in lower case", "GET /first http/1.1\r\nHost: a.example\r\n\r\n", "[400]"},
		{"space in the path", "GET /first /next HTTP/1.1\r\nHost: a.example\r\n\r\n", "[400]"},
		{"GET with a body", "GET /first HTTP/1.1\r\nHost: a.example\r\nContent-Length: 39\r\n\r\n" + next, "[200]"},
		{"Content-Length named in Connection", post("Connection: Content-Length\r\nContent-Length: 39\r\n", next), "[200]"},
		{"Expect", post("Expect: 100-continue\r\nContent-Length: 5\r\n", "0\r\n\r\n"+next), "[200 200]"},
		{"Expect something else", post("Expect: more\r\nContent-Length: 5\r\n", "0\r\n\r\n"+next), "[417]"},
		{"upgrade to h2c", "GET /first HTTP/1.1\r\nHost: a.example\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n" + next, "[200 200]"},
		{"WebSocket that the task refuses", "GET /first HTTP/1.1\r\nHost: a.example\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 1\r\n\r\n" + next, "[200 200]"},
		{"WebSocket with a body", post("Connection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: 39\r\n", next), "[200]"},
		{"two upgrades", "GET /first HTTP/1.1\r\nHost: a.example\r\nConnection: Upgrade\r\nUpgrade: websocket, h2c\r\n\r\n" + next, "[200 200]"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := startWitness(t)
			e := newEdge(t)
			e.Apply(w.state())
			at, _ := serve(t, e)
			got := sendRaw(t, at, tc.raw, len(strings.Fields(tc.want)))
			lines := w.check(t)
			served := 0
			for _, s := range got {
				if s == http.StatusOK {
					served++
				}
			}
			if fmt.Sprint(got) != tc.want {
				t.Errorf("answers %v, want %s; the task got %q", got, tc.want, lines)
			}
			if len(lines) < served {
				t.Errorf("%d answers of a task that got %q", served, lines)
			}
		})
	}
}

// TestHostTricks holds that a request is led by the host that the task is shown.
func TestHostTricks(t *testing.T) {
	for _, tc := range []struct{ name, raw, want string }{
		{"absolute form", "GET http://a.example/x HTTP/1.1\r\nHost: evil.example\r\n\r\n", "200 a.example"},
		{"absolute form of another rule", "GET http://b.example/private HTTP/1.1\r\nHost: a.example\r\n\r\n", "404"},
		{"userinfo", "GET / HTTP/1.1\r\nHost: a.example@evil.example\r\n\r\n", "400"},
		{"userinfo in the absolute form", "GET http://a.example@evil.example/ HTTP/1.1\r\nHost: a.example\r\n\r\n", "404"},
		{"two hosts", "GET / HTTP/1.1\r\nHost: a.example\r\nHost: evil.example\r\n\r\n", "400"},
		{"no host", "GET / HTTP/1.1\r\n\r\n", "400"},
		{"empty host", "GET / HTTP/1.1\r\nHost:\r\n\r\n", "404"},
		{"port", "GET / HTTP/1.1\r\nHost: a.example:8080\r\n\r\n", "200 a.example:8080"},
		{"port that is none", "GET / HTTP/1.1\r\nHost: a.example:evil\r\n\r\n", "200 a.example:evil"},
		{"trailing dot", "GET / HTTP/1.1\r\nHost: a.example.\r\n\r\n", "200 a.example."},
		{"case", "GET / HTTP/1.1\r\nHost: A.eXample\r\n\r\n", "200 A.eXample"},
		{"unicode", "GET / HTTP/1.1\r\nHost: \xef\xbd\x81.example\r\n\r\n", "400"},
		{"percent", "GET / HTTP/1.1\r\nHost: %61.example\r\n\r\n", "404"},
		{"path in it", "GET / HTTP/1.1\r\nHost: a.example/../b\r\n\r\n", "400"},
		{"space in it", "GET / HTTP/1.1\r\nHost: a.example evil\r\n\r\n", "400"},
		{"dots out of the rule's path", "GET /public/../private HTTP/1.1\r\nHost: b.example\r\n\r\n", "404"},
		{"written dots", "GET /public/%2e%2e/private HTTP/1.1\r\nHost: b.example\r\n\r\n", "404"},
		{"slash written out", "GET /public%2f..%2fprivate HTTP/1.1\r\nHost: b.example\r\n\r\n", "404"},
		{"backslash", "GET /public\\..\\private HTTP/1.1\r\nHost: b.example\r\n\r\n", "404"},
		{"CONNECT", "CONNECT a.example:80 HTTP/1.1\r\nHost: a.example\r\n\r\n", "405"},
		{"asterisk", "OPTIONS * HTTP/1.1\r\nHost: b.example\r\n\r\n", "200"}, // the edge says it of itself
		{"scheme of another kind", "GET file:///x HTTP/1.1\r\nHost: a.example\r\n\r\n", "200 a.example"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := startWitness(t)
			e := newEdge(t)
			e.Apply(w.state())
			at, _ := serve(t, e)
			got := strings.Trim(fmt.Sprint(sendRaw(t, at, tc.raw, 1)), "[]")
			lines := w.check(t)
			w.mu.Lock()
			for _, b := range w.all {
				if _, rest, ok := strings.Cut(b.String(), "\r\nHost: "); ok {
					host, _, _ := strings.Cut(rest, "\r\n")
					got += " " + host
				}
			}
			w.mu.Unlock()
			if got != tc.want {
				t.Errorf("got %q, want %q; the task got %q", got, tc.want, lines)
			}
		})
	}
}

func TestLargeHeaders(t *testing.T) {
	w := startWitness(t)
	e := newEdge(t)
	e.Apply(w.state())
	at, _ := serve(t, e)
	get := func(headers string) string {
		return fmt.Sprint(sendRaw(t, at, "GET / HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\n"+headers+"\r\n", 1))
	}
	for _, tc := range []struct{ name, headers, want string }{
		{"one of 60 KiB", "X-A: " + strings.Repeat("a", 60<<10) + "\r\n", "[200]"},
		{"one of 80 KiB", "X-A: " + strings.Repeat("a", 80<<10) + "\r\n", "[431]"},
		{"many", strings.Repeat("X-A: b\r\n", 20_000), "[431]"},
		{"a long name", strings.Repeat("a", 80<<10) + ": b\r\n", "[431]"},
	} {
		if got := get(tc.headers); got != tc.want {
			t.Errorf("%s: got %s, want %s", tc.name, got, tc.want)
		}
	}
	if lines := w.check(t); len(lines) != 1 {
		t.Errorf("the task got %d requests, want one", len(lines))
	}
}
