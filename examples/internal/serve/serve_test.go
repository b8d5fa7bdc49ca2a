package serve

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m)
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// A stop in the middle of a request must let that request finish and must refuse new ones.
func TestRunFinishesRequestsInFlight(t *testing.T) {
	inside, release := make(chan struct{}), make(chan struct{})
	h := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		close(inside)
		<-release
		_, _ = io.WriteString(w, "done")
	})
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	l := listen(t)
	ended := make(chan error, 1)
	go func() { ended <- Run(ctx, Config{Listener: l, Handler: h, Log: slog.New(slog.DiscardHandler)}) }()

	type answer struct {
		body string
		err  error
	}
	got := make(chan answer, 1)
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	go func() {
		resp, err := client.Get("http://" + l.Addr().String())
		if err != nil {
			got <- answer{err: err}
			return
		}
		b, err := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		got <- answer{string(b), err}
	}()
	<-inside
	stop()
	deadline := time.Now().Add(5 * time.Second)
	for {
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			break
		}
		_ = c.Close()
		if time.Now().After(deadline) {
			t.Fatal("still accepts connections 5 s after the stop")
		}
	}
	select {
	case err := <-ended:
		t.Fatalf("Run returned (%v) while a request was in flight", err)
	default:
	}
	close(release)
	if a := <-got; a.err != nil || a.body != "done" {
		t.Errorf("request in flight: got %q, %v; want %q", a.body, a.err, "done")
	}
	if err := <-ended; err != nil {
		t.Errorf("Run: got %v, want nil", err)
	}
}

func TestRunReportsRequestsThatOutlastTheGrace(t *testing.T) {
	inside, release := make(chan struct{}), make(chan struct{})
	h := http.HandlerFunc(func(http.ResponseWriter, *http.Request) { close(inside); <-release })
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	l := listen(t)
	ended := make(chan error, 1)
	go func() {
		ended <- Run(ctx, Config{Listener: l, Handler: h, Log: slog.New(slog.DiscardHandler), Grace: time.Millisecond})
	}()
	asked := make(chan struct{})
	go func() {
		defer close(asked)
		client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
		if resp, err := client.Get("http://" + l.Addr().String()); err == nil {
			_ = resp.Body.Close()
		}
	}()
	<-inside
	stop()
	err := <-ended
	close(release)
	<-asked
	if err == nil || !strings.Contains(err.Error(), "still running after 1ms") {
		t.Errorf("got %v, want an error that names the grace", err)
	}
}

func TestOldConnectionsAreToldToClose(t *testing.T) {
	for _, tc := range []struct {
		name string
		age  time.Duration
		want bool
	}{{"young", time.Minute, false}, {"old", 5 * time.Second, true}} {
		t.Run(tc.name, func(t *testing.T) {
			h := closeOld(http.NotFoundHandler(), tc.age)
			r := httptest.NewRequest(http.MethodGet, "/", nil)
			r = r.WithContext(context.WithValue(r.Context(), connStartKey{}, time.Now().Add(-10*time.Second)))
			w := httptest.NewRecorder()
			h.ServeHTTP(w, r)
			if got := w.Header().Get("Connection") == "close"; got != tc.want {
				t.Errorf("told to close: got %v, want %v", got, tc.want)
			}
		})
	}
}

func TestProbe(t *testing.T) {
	defer http.DefaultClient.CloseIdleConnections()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/ok" {
			http.Error(w, "no database", http.StatusServiceUnavailable)
		}
	}))
	defer srv.Close()
	if err := Probe(context.Background(), srv.URL+"/ok"); err != nil {
		t.Errorf("healthy: got %v, want nil", err)
	}
	err := Probe(context.Background(), srv.URL+"/bad")
	if err == nil || !strings.Contains(err.Error(), "no database") {
		t.Errorf("unhealthy: got %v, want the reason of the server", err)
	}
	if err := Probe(context.Background(), "http://127.0.0.1:1/"); err == nil {
		t.Error("unreachable: got nil, want an error")
	}
}
