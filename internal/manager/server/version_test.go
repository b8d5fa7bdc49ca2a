package server

import (
	"context"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"baton/client/api"
	"baton/internal/manager/store"
	"baton/internal/model/cluster"
)

// behind is a server over a store that follows a log by hand.
func behind(t *testing.T) (*Server, *store.Store) {
	t.Helper()
	st := store.New()
	s := New(Config{
		Log: nil, Store: st, ClusterName: "test", Version: "1.0.0", Logger: slog.New(slog.DiscardHandler),
	})
	t.Cleanup(s.Close)
	return s, st
}

func apply(t *testing.T, st *store.Store, at store.Version) {
	t.Helper()
	var txn store.Txn
	txn.Put(&cluster.Node{Meta: cluster.Meta{ID: cluster.NewID(nil)}, Name: strconv.Itoa(int(at))})
	for _, err := range st.Apply(at, []store.Txn{txn}) {
		if err != nil {
			t.Fatal(err)
		}
	}
}

func ask(ctx context.Context, s *Server, path, least string) *httptest.ResponseRecorder {
	r := httptest.NewRequestWithContext(ctx, http.MethodGet, path, nil)
	if least != "" {
		r.Header.Set(api.HeaderVersionMin, least)
	}
	w := httptest.NewRecorder()
	s.Handler().ServeHTTP(w, r)
	return w
}

// Every answer, an error too, tells the version of the store.
func TestAnswersTellTheVersion(t *testing.T) {
	s, st := behind(t)
	apply(t, st, 7)
	for _, path := range []string{"/v1/version", "/v1/nodes", "/v1/nodes/none", "/nowhere", "/v1/openapi.json"} {
		if got := ask(t.Context(), s, path, "").Header().Get(api.HeaderVersion); got != "7" {
			t.Errorf("%s: version %q, want 7", path, got)
		}
	}
}

// A manager that is behind answers once it has caught up, and not with what is older than its client has seen.
func TestBehindManagerWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, st := behind(t)
		apply(t, st, 3)
		if w := ask(t.Context(), s, "/v1/nodes", "3"); w.Code != http.StatusOK {
			t.Fatalf("what it has: %d %s", w.Code, w.Body)
		}
		answer := make(chan *httptest.ResponseRecorder)
		go func() { answer <- ask(t.Context(), s, "/v1/nodes", "5") }()
		time.Sleep(time.Second)
		apply(t, st, 4)
		synctest.Wait()
		select {
		case w := <-answer:
			t.Fatalf("answered at version 4: %s", w.Body)
		default:
		}
		begun := time.Now()
		apply(t, st, 6)
		w := <-answer
		if w.Code != http.StatusOK || w.Header().Get(api.HeaderVersion) != "6" || !strings.Contains(w.Body.String(), `"6"`) || time.Since(begun) > 100*time.Millisecond {
			t.Errorf("%d at version %s after %s: %s", w.Code, w.Header().Get(api.HeaderVersion), time.Since(begun), w.Body)
		}
	})
}

// One that does not catch up says so, with what to do, after a bounded time; or at once when it shuts down.
func TestManagerThatStaysBehindRefuses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, st := behind(t)
		apply(t, st, 3)
		begun := time.Now()
		w := ask(t.Context(), s, "/v1/nodes", "5")
		if w.Code != http.StatusServiceUnavailable || time.Since(begun) != versionWait || !strings.Contains(w.Body.String(), "ask another manager") {
			t.Errorf("%d after %s: %s", w.Code, time.Since(begun), w.Body)
		}
		if w := ask(t.Context(), s, "/v1/nodes", "five"); w.Code != http.StatusUnprocessableEntity {
			t.Errorf("not a number: %d %s", w.Code, w.Body)
		}
		go func() { time.Sleep(time.Second); s.Close() }()
		begun = time.Now()
		if w := ask(t.Context(), s, "/v1/nodes", "5"); w.Code != http.StatusServiceUnavailable || time.Since(begun) != time.Second {
			t.Errorf("while it shuts down: %d after %s", w.Code, time.Since(begun))
		}
	})
}
