package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func ask(h http.Handler, method, target string) (int, string) {
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(method, target, nil))
	return w.Code, w.Body.String()
}

func TestHandlers(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(path, []byte("content"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("WEB_TEST", "set")
	cases := []struct {
		method, target string
		code           int
		body           string
	}{
		{"GET", "/", 200, "version: v9\n"},
		{"GET", "/healthz", 200, "ok"},
		{"GET", "/ready", 200, "ok"},
		{"GET", "/live", 200, "ok"},
		{"GET", "/slow?ms=1", 200, "slept 1 ms"},
		{"GET", "/slow?ms=-1", 400, "ms must be"},
		{"GET", "/file?path=" + path, 200, "content"},
		{"GET", "/file?path=" + path + "x", 404, "no such file"},
		{"GET", "/env", 200, "WEB_TEST=set\n"},
		{"POST", "/eat?mb=1", 200, "ate 1 MiB"},
		{"POST", "/eat?mb=x", 400, "mb must be"},
		{"POST", "/exit?code=256", 400, "code must be"},
		{"POST", "/admin/nonsense?ok=true", 404, "no probe"},
		{"POST", "/admin/ready?ok=maybe", 400, "true or false"},
		{"GET", "/stats", 200, `"in_flight":0`},
		{"GET", "/nothing", 404, ""},
	}
	h := newApp("v9").handler()
	for _, c := range cases {
		code, body := ask(h, c.method, c.target)
		if code != c.code || !strings.Contains(body, c.body) {
			t.Errorf("%s %s = %d %q, want %d with %q", c.method, c.target, code, body, c.code, c.body)
		}
	}
}

func TestProbesSwitch(t *testing.T) {
	h := newApp("v1").handler()
	for probe, path := range map[string]string{"health": "/healthz", "ready": "/ready", "live": "/live"} {
		ask(h, "POST", "/admin/"+probe+"?ok=false")
		if code, _ := ask(h, "GET", path); code != 503 {
			t.Errorf("%s after switching off = %d, want 503", path, code)
		}
		ask(h, "POST", "/admin/"+probe+"?ok=true")
		if code, _ := ask(h, "GET", path); code != 200 {
			t.Errorf("%s after switching on = %d, want 200", path, code)
		}
	}
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// A request in flight when the server is told to stop is answered, a new one is
// refused, and echo connections do not hold the end up.
func TestGracefulStop(t *testing.T) {
	defer http.DefaultClient.CloseIdleConnections()
	web, echo := listen(t), listen(t)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- run(ctx, config{version: "v1", drain: 10 * time.Second}, web, echo) }()

	conn, err := net.Dial("tcp", echo.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprintln(conn, "hello")
	if line, err := bufio.NewReader(conn).ReadString('\n'); line != "hello\n" {
		t.Fatalf("echo = %q, %v; want hello", line, err)
	}

	base := "http://" + web.Addr().String()
	slow := make(chan string, 1)
	go func() {
		res, err := http.Get(base + "/slow?ms=500")
		if err != nil {
			slow <- err.Error()
			return
		}
		defer res.Body.Close()
		body, err := io.ReadAll(res.Body)
		slow <- fmt.Sprint(res.StatusCode, string(body), err)
	}()
	waitFor(t, "the slow request to be in flight", func() bool {
		res, err := http.Get(base + "/stats")
		if err != nil {
			return false
		}
		defer res.Body.Close()
		body, _ := io.ReadAll(res.Body)
		return strings.Contains(string(body), `"in_flight":1`)
	})
	cancel()
	waitFor(t, "new connections to be refused", func() bool {
		c, err := net.Dial("tcp", web.Addr().String())
		if err == nil {
			c.Close()
		}
		return err != nil
	})
	if got := <-slow; !strings.HasPrefix(got, "200slept 500 ms") && !strings.HasPrefix(got, "200 slept 500 ms") {
		t.Errorf("request in flight = %q, want 200", got)
	}
	if err := <-done; err != nil {
		t.Errorf("run = %v, want nil", err)
	}
}

func TestDrainTimeout(t *testing.T) {
	defer http.DefaultClient.CloseIdleConnections()
	web := listen(t)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	a := config{version: "v1", drain: 50 * time.Millisecond}
	go func() { done <- run(ctx, a, web, nil) }()
	got := make(chan error, 1)
	go func() {
		res, err := http.Get("http://" + web.Addr().String() + "/slow?ms=60000")
		if err == nil {
			res.Body.Close()
		}
		got <- err
	}()
	waitFor(t, "the slow request to be in flight", func() bool {
		res, err := http.Get("http://" + web.Addr().String() + "/stats")
		if err != nil {
			return false
		}
		defer res.Body.Close()
		body, _ := io.ReadAll(res.Body)
		return strings.Contains(string(body), `"in_flight":1`)
	})
	cancel()
	if err := <-done; err == nil {
		t.Error("run = nil, want an error about requests in flight")
	}
	if err := <-got; err == nil {
		t.Error("the request outlived the drain time")
	}
}

func TestCheckHealth(t *testing.T) {
	defer http.DefaultClient.CloseIdleConnections()
	a := newApp("v1")
	srv := httptest.NewServer(a.handler())
	defer srv.Close()
	if err := checkHealth(t.Context(), srv.URL+"/healthz"); err != nil {
		t.Errorf("healthy: %v", err)
	}
	a.off["health"].Store(true)
	if err := checkHealth(t.Context(), srv.URL+"/healthz"); err == nil {
		t.Error("unhealthy: no error")
	}
	if err := checkHealth(t.Context(), "http://127.0.0.1:1/"); err == nil {
		t.Error("nothing listens: no error")
	}
}

func TestParse(t *testing.T) {
	env := map[string]string{"PORT": "9000", "VERSION": "v3", "DRAIN": "2s"}
	c, err := parse([]string{"-version", "v4"}, func(k string) string { return env[k] })
	want := config{port: "9000", echoPort: "7777", version: "v4", drain: 2 * time.Second}
	if err != nil || c != want {
		t.Errorf("parse = %+v, %v; want %+v", c, err, want)
	}
	env["DRAIN"] = "soon"
	if _, err := parse(nil, func(k string) string { return env[k] }); err == nil {
		t.Error("DRAIN=soon: no error")
	}
}

func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !ok(); {
		if time.Now().After(end) {
			t.Fatalf("waited 10 s for %s", what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}
