package edge

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"baton/internal/model/cluster"
	"baton/internal/model/spec"
	"baton/internal/wire/agentapi"
)

// ruled serves a rule for all requests with these keys before the tasks.
func ruled(t *testing.T, e *Edge, keys spec.RuleKeys, tasks ...*task) string {
	t.Helper()
	e.Apply(ruledState(keys, tasks...))
	at, _ := serve(t, e)
	return "http://" + at
}

func ruledState(keys spec.RuleKeys, tasks ...*task) agentapi.NetworkState {
	s := anyHost(tasks...)
	g := &s.Services[0].Ingress[0]
	g.RuleKeys = keys
	for i := range s.Services[0].Endpoints {
		s.Services[0].Endpoints[i].Task = cluster.ID{15: byte(i + 1)}
	}
	return s
}

// do sends a request, and does not follow redirects.
func do(t *testing.T, method, url string, body io.Reader, header ...string) (int, string, http.Header) {
	t.Helper()
	req, err := http.NewRequest(method, url, body)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Add(header[i], header[i+1])
	}
	res, err := newClient(t).Transport.RoundTrip(req)
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

func TestRedirect(t *testing.T) {
	for _, tc := range []struct {
		to, path, want string
		code           int
	}{
		{"https://shop.example", "/a%2Fb?c=d", "https://shop.example/a%2Fb?c=d", 308},
		{"https://shop.example", "//evil.example", "https://shop.example//evil.example", 301},
		{"https://shop.example/new", "/a?c=d", "https://shop.example/new?c=d", 302},
		{"https://shop.example/new?x=y", "/a?c=d", "https://shop.example/new?x=y", 307},
	} {
		at := ruled(t, newEdge(t), spec.RuleKeys{Redirect: &spec.Redirect{URL: tc.to, Code: tc.code}})
		code, _, h := do(t, "GET", at+tc.path, nil)
		if code != tc.code || h.Get("Location") != tc.want {
			t.Errorf("%s to %s: got %d %q, want %d %q", tc.path, tc.to, code, h.Get("Location"), tc.code, tc.want)
		}
	}
}

func TestHeaderChanges(t *testing.T) {
	k := startTask(t, "127.0.1.1", 0, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Server", "secret/1.0")
		w.Header().Set("X-Kept", "yes")
		shower(w, r)
	}))
	at := ruled(t, newEdge(t), spec.RuleKeys{
		RequestHeaders:  &spec.HeaderChange{Remove: []string{"x-debug"}, Set: map[string]string{"X-Env": "prod"}, Add: map[string]string{"X-Hop": "b"}},
		ResponseHeaders: &spec.HeaderChange{Remove: []string{"Server"}, Set: map[string]string{"X-Frame-Options": "DENY"}},
	}, k)
	// A client that names a header in Connection must not get rid of what the rule sets.
	_, body, h := do(t, "GET", at, nil, "X-Debug", "1", "X-Env", "mine", "X-Hop", "a", "Connection", "X-Env")
	if !strings.Contains(body, "X-Env: prod\n") || !strings.Contains(body, "X-Hop: a | b\n") || strings.Contains(body, "X-Debug") {
		t.Errorf("the task got\n%s", body)
	}
	if h.Get("Server") != "" || h.Get("X-Frame-Options") != "DENY" || h.Get("X-Kept") != "yes" {
		t.Errorf("the client got %v", h)
	}
}

func TestBodyLimit(t *testing.T) {
	k := startTask(t, "127.0.1.1", 0, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n, err := io.Copy(io.Discard, r.Body)
		fmt.Fprint(w, n, err)
	}))
	at := ruled(t, newEdge(t), spec.RuleKeys{BodyLimit: 1000}, k)
	for _, n := range []int{0, 999, 1000, 1001, 1 << 20} {
		for name, body := range map[string]io.Reader{"sized": bytes.NewReader(make([]byte, n)), "chunked": io.MultiReader(bytes.NewReader(make([]byte, n)))} {
			want := http.StatusOK
			if n > 1000 {
				want = http.StatusRequestEntityTooLarge
			}
			if code, text, _ := do(t, "POST", at, body); code != want || code == 200 && text != fmt.Sprint(n, error(nil)) {
				t.Errorf("%d bytes, %s: got %d %q, want %d", n, name, code, text, want)
			}
		}
	}
}

func TestRuleTimeouts(t *testing.T) {
	ended := make(chan struct{}, 10)
	k := startTask(t, "127.0.1.1", 0, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/silent" {
			w.WriteHeader(200)
			_, _ = io.WriteString(w, "begun")
			_ = http.NewResponseController(w).Flush()
		}
		if r.URL.Path == "/short" {
			return
		}
		<-r.Context().Done()
		ended <- struct{}{}
	}))
	for _, tc := range []struct {
		name, path string
		limit      spec.RuleTimeout
		code       int
		whole      bool
	}{
		{"header", "/silent", spec.RuleTimeout{Header: 50 * time.Millisecond}, 504, true},
		{"total before the header", "/silent", spec.RuleTimeout{Total: 50 * time.Millisecond}, 504, true},
		{"total after the header", "/begun", spec.RuleTimeout{Total: 50 * time.Millisecond}, 200, false},
		{"idle", "/begun", spec.RuleTimeout{Idle: 50 * time.Millisecond}, 200, false},
		{"in time", "/short", spec.RuleTimeout{Header: time.Minute, Idle: time.Minute, Total: time.Minute}, 200, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			at := ruled(t, newEdge(t), spec.RuleKeys{Timeout: &tc.limit}, k)
			res, err := newClient(t).Get(at + tc.path)
			if err != nil {
				t.Fatal(err)
			}
			defer res.Body.Close()
			_, err = io.ReadAll(res.Body)
			if res.StatusCode != tc.code || (err == nil) != tc.whole {
				t.Errorf("got %d, %v; want %d, whole: %v", res.StatusCode, err, tc.code, tc.whole)
			}
			if tc.path != "/short" {
				select {
				case <-ended: // the task is told
				case <-time.After(waitMax):
					t.Error("the task was not told that nobody waits")
				}
			}
		})
	}
}

func TestAllowAndTrusted(t *testing.T) {
	k := startTask(t, "127.0.1.1", 0, shower)
	for _, tc := range []struct {
		name    string
		keys    spec.RuleKeys
		headers []string
		code    int
		want    string // in what the task got
	}{
		{"allowed", spec.RuleKeys{Allow: []string{"127.0.0.0/8"}}, nil, 200, "X-Forwarded-For: 127.0.0.1\n"},
		{"not allowed", spec.RuleKeys{Allow: []string{"10.0.0.0/8"}}, nil, 403, ""},
		{"a client that says it is allowed", spec.RuleKeys{Allow: []string{"10.0.0.0/8"}}, []string{"X-Forwarded-For", "10.0.0.1"}, 403, ""},
		{"by a trusted proxy", spec.RuleKeys{Allow: []string{"10.0.0.0/8"}, Trusted: []string{"127.0.0.1/32"}},
			[]string{"X-Forwarded-For", "10.0.0.1", "X-Forwarded-Proto", "https"}, 200,
			"Forwarded: for=10.0.0.1;proto=https, for=127.0.0.1;"},
		{"the list is extended", spec.RuleKeys{Trusted: []string{"127.0.0.1/32"}}, []string{"X-Forwarded-For", "1.1.1.1, 2.2.2.2"}, 200, "X-Forwarded-For: 1.1.1.1, 2.2.2.2, 127.0.0.1\n"},
		{"made up before the proxy's word", spec.RuleKeys{Allow: []string{"10.0.0.0/8"}, Trusted: []string{"127.0.0.1/32"}},
			[]string{"X-Forwarded-For", "10.0.0.1, 192.0.2.1"}, 403, ""},
		{"made up in a line of its own", spec.RuleKeys{Allow: []string{"10.0.0.0/8"}, Trusted: []string{"127.0.0.1/32"}},
			[]string{"X-Forwarded-For", "10.0.0.1", "X-Forwarded-For", "192.0.2.1"}, 403, ""},
		{"other proxies' names are dropped all the same", spec.RuleKeys{Trusted: []string{"127.0.0.1/32"}},
			[]string{"Forwarded", "for=6.6.6.6", "X_Forwarded_For", "6.6.6.6", "X-Forwarded-Proto", "gopher"}, 200, "Forwarded: for=127.0.0.1, for=127.0.0.1;"},
		{"unreadable networks let nobody in", spec.RuleKeys{Allow: []string{"all"}}, nil, 403, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			at := ruled(t, newEdge(t), tc.keys, k)
			code, body, _ := do(t, "GET", at, nil, tc.headers...)
			if code != tc.code || !strings.Contains(body, tc.want) || strings.Contains(body, "6.6.6.6") || strings.Contains(body, "gopher") {
				t.Errorf("got %d, want %d with %q:\n%s", code, tc.code, tc.want, body)
			}
		})
	}
}

func TestCallerOf(t *testing.T) {
	trusted := prefixes([]string{"10.0.0.0/8", "2001:db8::/32"})
	for _, tc := range []struct{ peer, hops, want string }{
		{"192.0.2.1:1", "1.1.1.1", "192.0.2.1"},
		{"10.0.0.1:1", "", "10.0.0.1"},
		{"10.0.0.1:1", "1.1.1.1, 2.2.2.2, 10.0.0.2", "2.2.2.2"},
		{"10.0.0.1:1", "10.0.0.3,10.0.0.2", "10.0.0.3"},
		{"10.0.0.1:1", "1.1.1.1, unknown", "10.0.0.1"},
		{"10.0.0.1:1", "1.1.1.1,", "10.0.0.1"},
		{"10.0.0.1:1", "1.1.1.1:99", "1.1.1.1"},
		{"[2001:db8::1]:1", "[2a00::1]:99", "2a00::1"},
		{"[::ffff:10.0.0.1]:1", "::ffff:1.1.1.1", "1.1.1.1"},
	} {
		r := &http.Request{RemoteAddr: tc.peer, Header: http.Header{}}
		if tc.hops != "" {
			r.Header.Set("X-Forwarded-For", tc.hops)
		}
		if got := callerOf(r, trusted).address; got.String() != tc.want {
			t.Errorf("%s with %q: got %v, want %s", tc.peer, tc.hops, got, tc.want)
		}
	}
}

func TestRateLimit(t *testing.T) {
	k := startTask(t, "127.0.1.1", 0, says("ok"))
	e := newEdge(t)
	keys := spec.RuleKeys{RateLimit: &spec.RateLimit{Rate: 0.01, Burst: 2, Header: "X-Key"}}
	at := ruled(t, e, keys, k)
	for i, want := range []int{200, 200, 429} {
		if code, _, h := do(t, "GET", at, nil, "X-Key", "a"); code != want || code == 429 && h.Get("Retry-After") != "100" {
			t.Errorf("request %d: got %d %v, want %d", i, code, h, want)
		}
	}
	if code, _, _ := do(t, "GET", at, nil, "X-Key", "b"); code != 200 {
		t.Errorf("another client: got %d", code)
	}
	e.Apply(ruledState(keys, k)) // what every change of any service does
	if code, _, _ := do(t, "GET", at, nil, "X-Key", "a"); code != 429 {
		t.Errorf("after another table: got %d, want 429", code)
	}
	e.Apply(agentapi.NetworkState{})
	if len(e.limits) != 0 {
		t.Error("limits are kept without their rule")
	}
}

func TestRateLimitClients(t *testing.T) {
	l := newLimiter(spec.RateLimit{Rate: 1, Burst: 1})
	now := time.Unix(1e9, 0)
	r := &http.Request{Header: http.Header{}}
	take := func(a string) time.Duration { return l.take(r, netip.MustParseAddr(a), now) }
	if take("192.0.2.1") != 0 || take("192.0.2.1") == 0 || take("192.0.2.2") != 0 {
		t.Error("clients are not told apart by address")
	}
	if take("2001:db8::1") != 0 || take("2001:db8::2") == 0 || take("2001:db8:0:1::1") != 0 {
		t.Error("addresses of one /64 are not one client")
	}
	now = now.Add(time.Second)
	if take("192.0.2.1") != 0 {
		t.Error("a client that waited is refused: what was refused must not count")
	}
	for i := range 4 * limitedClients {
		take(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}).String())
	}
	if n := len(l.fresh) + len(l.old); n > 2*limitedClients {
		t.Errorf("%d clients are kept", n)
	}
}

func TestSticky(t *testing.T) {
	tasks := startTasks(t, 4, func(i int) http.Handler { return says(fmt.Sprint(i)) })
	e := newEdge(t)
	at := ruled(t, e, spec.RuleKeys{Sticky: true}, tasks...)
	_, first, h := do(t, "GET", at, nil)
	set := h.Get("Set-Cookie")
	if !strings.Contains(set, "; HttpOnly; SameSite=Lax") || strings.Contains(set, "Secure") {
		t.Errorf("Set-Cookie: %q", set)
	}
	cookie, _, _ := strings.Cut(set, ";")
	for range 20 {
		if _, got, h := do(t, "GET", at, nil, "Cookie", cookie); got != first || h.Get("Set-Cookie") != "" {
			t.Fatalf("got task %s and cookie %q, want task %s and no cookie", got, h.Get("Set-Cookie"), first)
		}
	}
	// Another node's edge knows the cookie too.
	other := ruled(t, newEdge(t), spec.RuleKeys{Sticky: true}, tasks...)
	if _, got, _ := do(t, "GET", other, nil, "Cookie", cookie); got != first {
		t.Errorf("another edge: got task %s, want %s", got, first)
	}
	// It breaks without leaving the table, then it leaves.
	n := int(first[0] - '0')
	tasks[n].stop()
	_, got, h := do(t, "GET", at, nil, "Cookie", cookie)
	if got == first || h.Get("Set-Cookie") == "" {
		t.Errorf("task %s is gone: got %s with cookie %q", first, got, h.Get("Set-Cookie"))
	}
	state := ruledState(spec.RuleKeys{Sticky: true}, tasks...)
	state.Services[0].Endpoints = slices.Delete(state.Services[0].Endpoints, n, n+1)
	e.Apply(state)
	if code, got, h := do(t, "GET", at, nil, "Cookie", cookie); code != 200 || got == first || h.Get("Set-Cookie") == "" {
		t.Errorf("task %s left: got %d %s with cookie %q", first, code, got, h.Get("Set-Cookie"))
	}
	if code, _, _ := do(t, "GET", at, nil, "Cookie", strings.Split(cookie, "=")[0]+"=made-up"); code != 200 {
		t.Errorf("an unknown cookie: got %d", code)
	}
}

func TestProtocol(t *testing.T) {
	k := startTask(t, "127.0.1.1", 0, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, r.Proto) }))
	for protocol, want := range map[spec.Protocol]string{"": "HTTP/1.1", spec.ProtocolHTTP: "HTTP/1.1", spec.ProtocolH2C: "HTTP/2.0", spec.ProtocolGRPC: "HTTP/2.0"} {
		at := ruled(t, newEdge(t), spec.RuleKeys{Protocol: protocol}, k)
		if _, got, _ := do(t, "GET", at, nil); got != want {
			t.Errorf("protocol %q: the task was spoken to in %s, want %s", protocol, got, want)
		}
	}
}

func TestAccessLogOfRule(t *testing.T) {
	k := startTask(t, "127.0.1.1", 0, says("ok"))
	for mode, want := range map[spec.AccessLog][2]int{spec.LogFull: {20, 20}, spec.LogOff: {0, 0}, spec.LogSampled: {linesPerSecond, 19}} {
		var out bytes.Buffer
		e := newEdge(t, func(c *Config) { c.Log = slog.New(slog.NewTextHandler(&out, nil)) })
		e.Apply(ruledState(spec.RuleKeys{AccessLog: mode}, k))
		for range 20 {
			r := httptest.NewRequest("GET", "http://a/", nil).WithContext(context.Background())
			e.ServeHTTP(httptest.NewRecorder(), r)
		}
		if n := strings.Count(out.String(), "msg=request"); n < want[0] || n > want[1] {
			t.Errorf("%s: %d lines, want %v", mode, n, want)
		}
	}
}
