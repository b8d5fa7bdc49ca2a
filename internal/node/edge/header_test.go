package edge

import (
	"bufio"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"baton/internal/wire/agentapi"
)

// exchangeRaw sends bytes and returns the answer's status and body.
func exchangeRaw(t *testing.T, at, request string) (int, string) {
	t.Helper()
	c, err := net.Dial("tcp", at)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(waitMax)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(c, strings.ReplaceAll(request, "\n", "\r\n")); err != nil {
		t.Fatal(err)
	}
	res, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, string(b)
}

// shower answers with the request's first line and headers, sorted.
var shower = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
	_, _ = io.WriteString(w, r.Method+" "+r.RequestURI+" "+r.Host+"\n")
	for _, k := range slices.Sorted(maps.Keys(r.Header)) {
		_, _ = io.WriteString(w, k+": "+strings.Join(r.Header[k], " | ")+"\n")
	}
})

func TestHeadersForTasks(t *testing.T) {
	k := startTask(t, "127.0.1.1", 0, shower)
	e := newEdge(t)
	e.Apply(anyHost(k))
	at, _ := serve(t, e)
	forwarded := "Forwarded: for=127.0.0.1;host=\"a.example\";proto=http\n"
	standard := "X-Forwarded-For: 127.0.0.1\nX-Forwarded-Host: a.example\nX-Forwarded-Proto: http\n"
	for _, tc := range []struct{ name, request, want string }{
		{
			"path, query and host pass as they are", "GET /a%2Fb/../c?x=1;y=%zz HTTP/1.1\nHost: a.example\n\n",
			"GET /a%2Fb/../c?x=1;y=%zz a.example\n" + forwarded + standard,
		},
		{
			"posing ones are replaced", "GET / HTTP/1.1\nHost: a.example\nX-Forwarded-For: 10.0.0.1\nx-forwarded-proto: https\nX_Forwarded_For: 10.0.0.2\n" +
				"Forwarded: for=10.0.0.3\nX-Real-IP: 10.0.0.4\nX-Forwarded-Prefix: /x\nTrue-Client-IP: 10.0.0.5\nProxy: http://evil\nX-Mine: 1\n\n",
			"GET / a.example\n" + forwarded + standard + "X-Mine: 1\n",
		},
		{
			"a client cannot have ours removed", "GET / HTTP/1.1\nHost: a.example\nConnection: close, X-Forwarded-For, Forwarded, X-Secret\nX-Secret: 1\n\n",
			"GET / a.example\n" + forwarded + standard,
		},
		{
			"hop-by-hop", "GET / HTTP/1.1\nHost: a.example\nKeep-Alive: 5\nProxy-Authorization: x\nTE: trailers, gzip\nTrailer: a\n\n",
			"GET / a.example\n" + forwarded + "Te: trailers\n" + standard,
		},
		{
			"h2c is no way round the rules", "GET / HTTP/1.1\nHost: a.example\nConnection: Upgrade, HTTP2-Settings\nUpgrade: h2c\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\n\n",
			"GET / a.example\n" + forwarded + standard,
		},
		{
			"absolute form", "GET http://a.example/x HTTP/1.1\nHost: other.example\n\n",
			"GET /x a.example\n" + forwarded + standard,
		},
		{
			"HTTP/1.0 without a host", "GET / HTTP/1.0\n\n",
			"GET / " + k.address.String() + ":", // its own address
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			code, got := exchangeRaw(t, at, strings.Replace(tc.request, "\n\n", "\nConnection: close\n\n", 1))
			if code != http.StatusOK || !strings.HasPrefix(got, tc.want) {
				t.Errorf("got %d\n%s\nwant\n%s", code, got, tc.want)
			}
			if strings.HasSuffix(tc.want, "\n") && got != tc.want {
				t.Errorf("got more than\n%s\n%s", tc.want, got)
			}
		})
	}
}

func TestRequestsThatAreRefused(t *testing.T) {
	reached := make(chan string, 100)
	k := startTask(t, "127.0.1.1", 0, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { reached <- r.RequestURI }))
	e := newEdge(t)
	e.Apply(anyHost(k))
	at, _ := serve(t, e)
	for _, tc := range []struct {
		name, request string
		want          int
	}{
		{"two lengths", "POST / HTTP/1.1\nHost: a\nContent-Length: 1\nContent-Length: 2\n\nab", http.StatusBadRequest},
		{"signed length", "POST / HTTP/1.1\nHost: a\nContent-Length: +1\n\na", http.StatusBadRequest},
		{"unknown coding", "POST / HTTP/1.1\nHost: a\nTransfer-Encoding: xchunked\n\n0\n\n", http.StatusNotImplemented},
		{"two codings", "POST / HTTP/1.1\nHost: a\nTransfer-Encoding: chunked\nTransfer-Encoding: identity\n\n0\n\n", http.StatusNotImplemented},
		{"space before colon", "GET / HTTP/1.1\nHost: a\nX-A : b\n\n", http.StatusBadRequest},
		{"no host", "GET / HTTP/1.1\n\n", http.StatusBadRequest},
		{"two hosts", "GET / HTTP/1.1\nHost: a\nHost: b\n\n", http.StatusBadRequest},
		{"large header", "GET / HTTP/1.1\nHost: a\nX-A: " + strings.Repeat("x", 2*headerMax) + "\n\n", http.StatusRequestHeaderFieldsTooLarge},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if code, _ := exchangeRaw(t, at, tc.request); code != tc.want {
				t.Errorf("got %d, want %d", code, tc.want)
			}
		})
	}
	select {
	case uri := <-reached:
		t.Errorf("%s reached the task", uri)
	default:
	}
}

// A length beside chunks, the classic of smuggling: the task sees one request, framed by the edge.
func TestLengthBesideChunksIsReframed(t *testing.T) {
	bodies := make(chan string, 10)
	k := startTask(t, "127.0.1.1", 0, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		bodies <- r.Header.Get("Content-Length") + string(b)
	}))
	e := newEdge(t)
	e.Apply(anyHost(k))
	at, _ := serve(t, e)
	code, _ := exchangeRaw(t, at, "POST / HTTP/1.1\nHost: a\nContent-Length: 4\nTransfer-Encoding: chunked\nConnection: close\n\n5\nhello\n0\n\nGET /smuggled HTTP/1.1\nHost: a\n\n")
	if code != http.StatusOK {
		t.Errorf("got %d", code)
	}
	if got := <-bodies; got != "hello" {
		t.Errorf("the task got %q, want the chunk", got)
	}
	select {
	case got := <-bodies:
		t.Errorf("a second request with %q reached the task", got)
	default:
	}
}

// The log says who asked for what and what came of it, and nothing of the query.
func TestAccessLog(t *testing.T) {
	k := startTask(t, "127.0.1.1", 0, says("hello"))
	var out strings.Builder
	e := New(Config{Log: slog.New(slog.NewTextHandler(&out, nil))})
	e.Apply(anyHost(k))
	at, stop := serve(t, e)
	get(t, newClient(t), "http://"+at+"/x?token=secret")
	e.Apply(agentapi.NetworkState{})
	stop()
	got := out.String()
	for _, want := range []string{"method=GET", "path=/x", "status=200", "bytes=5", "service=shop/web", "task=127.0.1.1:"} {
		if !strings.Contains(got, want) {
			t.Errorf("%q is not in %s", want, got)
		}
	}
	if strings.Contains(got, "secret") {
		t.Errorf("the query was logged: %s", got)
	}
}
