package server

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"baton/client/api"
	"baton/internal/manager/consensus"
	"baton/internal/manager/identity"
	"baton/internal/manager/store"
	"baton/internal/model/cluster"
	"baton/internal/model/spec"
	"baton/internal/wire/agentapi"
)

var update = flag.Bool("update", false, "write the golden files anew")

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// harness is a server over a real store and a log in memory.
type harness struct {
	t    testing.TB
	srv  *Server
	st   *store.Store
	log  *consensus.Memory
	logs *bytes.Buffer
}

func newHarness(t testing.TB) *harness {
	st := store.New()
	h := &harness{t: t, st: st, log: consensus.NewMemory(st), logs: new(bytes.Buffer)}
	sealer, err := identity.NewSealer(bytes.Repeat([]byte{1}, 32))
	if err != nil {
		t.Fatal(err)
	}
	h.srv = New(Config{
		Log: h.log, Store: st, Sealer: sealer, ClusterName: "test", Version: "1.0.0",
		Nodes:  func(cluster.ID) (agentapi.NodeServices, bool) { return nil, false },
		Logger: slog.New(slog.NewTextHandler(h.logs, &slog.HandlerOptions{Level: slog.LevelDebug})),
	})
	t.Cleanup(h.srv.Close)
	return h
}

// at gives the harness' cluster a feature level.
func (h *harness) at(t *testing.T, level cluster.Level) {
	t.Helper()
	var txn store.Txn
	txn.Put(&cluster.Settings{
		Meta: cluster.Meta{ID: cluster.SettingsID}, TaskPool: netip.MustParsePrefix("10.210.0.0/16"),
		ServicePool: netip.MustParsePrefix("10.211.0.0/16"), Level: level,
	})
	if _, err := h.log.Propose(t.Context(), txn); err != nil {
		t.Fatal(err)
	}
}

// do sends a request and returns the status and the body.
func (h *harness) do(method, path string, body any) (int, string) {
	var in io.Reader
	switch b := body.(type) {
	case nil:
	case string:
		in = strings.NewReader(b)
	default:
		enc, err := json.Marshal(b)
		if err != nil {
			h.t.Fatal(err)
		}
		in = bytes.NewReader(enc)
	}
	r := httptest.NewRequest(method, path, in)
	r.Header.Set("Content-Type", "application/json")
	w := httptest.NewRecorder()
	h.srv.Handler().ServeHTTP(w, r)
	return w.Code, w.Body.String()
}

func stack(name string) spec.Stack {
	s := spec.Stack{
		Name:     name,
		Services: []spec.Service{{Name: "web", Image: "web:1", Mode: spec.Replicated, Replicas: 1, Secrets: []spec.FileRef{{Source: "pw"}}}},
		Secrets:  []spec.Secret{{Name: "pw", Content: []byte("hunter2")}},
	}
	s.SetDefaults()
	return s
}

// The description checked in is the one that is served.
func TestOpenAPI(t *testing.T) {
	golden := filepath.Join("..", "..", "..", "docs", "openapi.json")
	got := newHarness(t).srv.OpenAPI()
	if *update {
		if err := os.WriteFile(golden, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("docs/openapi.json is not what the server serves: run go test ./internal/manager/server -run TestOpenAPI -update")
	}
	var doc struct{ OpenAPI string }
	if err := json.Unmarshal(got, &doc); err != nil || !strings.HasPrefix(doc.OpenAPI, "3.1") {
		t.Errorf("version %q, %v", doc.OpenAPI, err)
	}
}

// The same request twice makes one release; concurrent ones never lose or double anything.
func TestUpIsIdempotent(t *testing.T) {
	h := newHarness(t)
	const clients = 8
	var wg sync.WaitGroup
	for range clients {
		wg.Go(func() {
			if code, body := h.do("PUT", "/v1/stacks/shop", api.UpRequest{Stack: stack("shop")}); code != 200 {
				t.Errorf("%d %s", code, body)
			}
		})
	}
	wg.Wait()
	snap := h.st.Snapshot()
	for kind, want := range map[cluster.Kind]int{cluster.KindStack: 1, cluster.KindRelease: 1, cluster.KindService: 1, cluster.KindRevision: 1, cluster.KindSecret: 1} {
		if got := snap.Count(kind); got != want {
			t.Errorf("%d objects of kind %s, want %d", got, kind, want)
		}
	}
}

// An outcome that was not seen is looked up instead of tried blindly.
func TestUpUnknownOutcome(t *testing.T) {
	for _, applied := range []bool{true, false} {
		h := newHarness(t)
		first := true
		h.log.SetFault(func(*store.Txn) consensus.Fault {
			f := consensus.Fault{Unknown: first, Applied: applied}
			first = false
			return f
		})
		if code, body := h.do("PUT", "/v1/stacks/shop", api.UpRequest{Stack: stack("shop")}); code != 200 {
			t.Fatalf("applied %v: %d %s", applied, code, body)
		}
		if got := h.st.Snapshot().Count(cluster.KindRelease); got != 1 {
			t.Errorf("applied %v: %d releases, want 1", applied, got)
		}
	}
}

// A secret's content is in no answer, no error and no log line, whatever is asked.
func TestSecretsAreNotShown(t *testing.T) {
	h := newHarness(t)
	const content = "hunter2"
	seen := func(what, s string) {
		t.Helper()
		if strings.Contains(s, content) || strings.Contains(s, "aHVudGVyMg") {
			t.Errorf("%s shows the content: %s", what, s)
		}
	}
	_, body := h.do("PUT", "/v1/stacks/shop", api.UpRequest{Stack: stack("shop")})
	seen("up", body)
	_, body = h.do("PUT", "/v1/secrets/x", api.SetRequest{Content: []byte(content)})
	seen("set", body)
	_, body = h.do("PUT", "/v1/secrets/x", `{"content": {"a": "hunter2"}}`)
	seen("a malformed set", body)
	_, body = h.do("PUT", "/v1/stacks/shop", `{"stack": {"secrets": [{"name": 1, "content": "hunter2 aHVudGVyMg=="}]}}`)
	seen("a malformed up", body)
	_, body = h.do("PUT", "/v1/secrets/x", `{"content": "hunter2`)
	seen("broken JSON", body)
	for _, path := range []string{"/v1/stacks", "/v1/secrets", "/v1/secrets/x", "/v1/events", "/v1/services/web", "/v1/why?target=web", "/v1/stacks/shop/releases/1"} {
		code, body := h.do("GET", path, nil)
		if code != 200 {
			t.Errorf("%s: %d %s", path, code, body)
		}
		seen(path, body)
	}
	if h.logs.Len() == 0 {
		t.Error("nothing was logged, so that the log was not looked at")
	}
	seen("the log", h.logs.String())
}

// Of what is set by hand the newest versions are kept, and those that a revision has.
func TestVersionsSetByHandAreBounded(t *testing.T) {
	h := newHarness(t)
	set := func(kind string, i int) {
		t.Helper()
		if code, body := h.do("PUT", "/v1/"+kind+"/x", api.SetRequest{Content: fmt.Appendf(nil, "content %d", i)}); code != 200 {
			t.Fatalf("%d %s", code, body)
		}
	}
	for _, kind := range []string{"secrets", "configs"} {
		set(kind, 1)
		used := stack("uses-" + kind)
		ref := []spec.FileRef{{Source: "x", Target: "/x"}}
		if kind == "secrets" {
			used.Secrets, used.Services[0].Secrets = []spec.Secret{{Name: "x", External: true}}, ref
		} else {
			used.Configs, used.Services[0].Configs = []spec.Config{{Name: "x", External: true}}, ref
		}
		if code, body := h.do("PUT", "/v1/stacks/uses-"+kind, api.UpRequest{Stack: used}); code != 200 {
			t.Fatalf("%d %s", code, body)
		}
		for i := range 3 * versionsMax {
			set(kind, i+2)
		}
		_, body := h.do("GET", "/v1/"+kind+"/x", nil)
		var list []api.Material
		if err := json.Unmarshal([]byte(body), &list); err != nil {
			t.Fatal(err)
		}
		if len(list) != versionsMax+1 || list[0].Number != 1 || list[1].Number != 2*versionsMax+2 || list[versionsMax].Number != 3*versionsMax+1 {
			t.Errorf("%s: got %+v, want version 1, which is used, and the newest %d", kind, list, versionsMax)
		}
	}
}

// Every error is a problem document with a code and a message, and nothing is half made.
func TestErrors(t *testing.T) {
	h := newHarness(t)
	if code, body := h.do("PUT", "/v1/stacks/shop", api.UpRequest{Stack: stack("shop")}); code != 200 {
		t.Fatal(body)
	}
	invalid := stack("bad")
	invalid.Services[0].Image = ""
	missing := stack("bad")
	missing.Secrets = []spec.Secret{{Name: "pw", External: true}}
	version := h.st.Snapshot().Version()
	for _, x := range []struct {
		name, method, path string
		body               any
		status             int
		code               api.Code
		detail             string
	}{
		{"no such path", "GET", "/v2", nil, 404, api.CodeNotFound, "no such path"},
		{"wrong method", "POST", "/v1/stacks", nil, 405, api.CodeMethod, "POST"},
		{"no stack", "GET", "/v1/stacks/shpo", nil, 404, api.CodeNotFound, "shpo"},
		{"broken JSON", "PUT", "/v1/stacks/bad", "{", 400, api.CodeInvalid, ""},
		{"unknown field", "PUT", "/v1/secrets/a", `{"contents": "eA=="}`, 422, api.CodeInvalid, ""},
		{"unknown parameter", "GET", "/v1/tasks?services=a", nil, 422, api.CodeInvalid, ""},
		{"other name", "PUT", "/v1/stacks/bad", api.UpRequest{Stack: stack("good")}, 422, api.CodeInvalid, "good"},
		{"invalid stack", "PUT", "/v1/stacks/bad", api.UpRequest{Stack: invalid}, 422, api.CodeInvalid, "image"},
		{"missing secret", "PUT", "/v1/stacks/bad", api.UpRequest{Stack: missing}, 404, api.CodeNotFound, `external secret \"pw\"`},
		{"moved", "PUT", "/v1/stacks/shop", api.UpRequest{Stack: stack("shop"), Base: 99}, 409, api.CodeStateMoved, "changed since"},
		{"other plan", "PUT", "/v1/stacks/shop", api.UpRequest{Stack: stack("shop"), Plan: "0"}, 409, api.CodeStateMoved, "moved"},
		{"no release", "POST", "/v1/stacks/shop/rollback", api.RollbackRequest{To: 9}, 404, api.CodeNotFound, "release 9"},
		{"node away", "GET", "/v1/images?node=n1", nil, 404, api.CodeNotFound, "n1"},
		{"unwatchable", "GET", "/v1/watch?kinds=secret", nil, 422, api.CodeInvalid, "secret"},
		{"bad name", "PUT", "/v1/secrets/a%2Fb", api.SetRequest{Content: []byte("x")}, 422, api.CodeInvalid, "a/b"},
		{"too large", "PUT", "/v1/secrets/a", api.SetRequest{Content: make([]byte, ContentBytesMax+1)}, 413, api.CodeTooLarge, "at most"},
	} {
		t.Run(x.name, func(t *testing.T) {
			status, body := h.do(x.method, x.path, x.body)
			var e api.Error
			if err := json.Unmarshal([]byte(body), &e); err != nil {
				t.Fatalf("%d %q: %v", status, body, err)
			}
			if status != x.status || e.Code != x.code || e.Message == "" || !strings.Contains(body, x.detail) {
				t.Errorf("got %d %s, want %d with code %s and %q", status, body, x.status, x.code, x.detail)
			}
			if now := h.st.Snapshot().Version(); now != version {
				t.Errorf("something was written: version %d, was %d", now, version)
			}
		})
	}
}

// A manager that cannot write says why, in words for users.
func TestRefusedWrites(t *testing.T) {
	for _, x := range []struct {
		err  error
		code api.Code
	}{{consensus.ErrDiskFull, api.CodeStoreFull}, {consensus.ErrNotLeader, api.CodeNotLeader}, {consensus.ErrNoLeader, api.CodeUnavailable}, {store.ErrConflict, api.CodeStateMoved}, {errors.New("internals"), api.CodeInternal}} {
		h := newHarness(t)
		h.log.SetFault(func(*store.Txn) consensus.Fault { return consensus.Fault{Refuse: x.err} })
		_, body := h.do("PUT", "/v1/stacks/shop", api.UpRequest{Stack: stack("shop")})
		if !strings.Contains(body, `"`+string(x.code)+`"`) || strings.Contains(body, "internals") {
			t.Errorf("%v: %s", x.err, body)
		}
	}
}

func TestListenUnix(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "s")
	l, err := ListenUnix(path)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm()&0o007 != 0 {
		t.Errorf("others may use the socket: %v %v", info.Mode(), err)
	}
	if _, err := ListenUnix(path); err == nil || !strings.Contains(err.Error(), "another server") {
		t.Errorf("a live socket was taken: %v", err)
	}
	// What a killed server leaves: a socket that nobody serves.
	stale := l.(*socket)
	if err := stale.UnixListener.Close(); err != nil {
		t.Fatal(err)
	}
	l, err = ListenUnix(path)
	if err != nil {
		t.Fatalf("a stale socket was not replaced: %v", err)
	}
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	_ = c.Close()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); !os.IsNotExist(err) {
		t.Errorf("the socket is left: %v", err)
	}
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := ListenUnix(path); err == nil {
		t.Error("a plain file was replaced")
	}
}

// Whatever is sent as a stack, the answer is a document and the server lives.
func FuzzUp(f *testing.F) {
	good, _ := json.Marshal(api.UpRequest{Stack: stack("shop")})
	f.Add(string(good))
	f.Add(`{"stack":{"name":"shop","services":[{"name":"a"}]},"replicas":{"a":-1}}`)
	f.Add(`{"stack":null}`)
	h := newHarness(f)
	f.Fuzz(func(t *testing.T, body string) {
		for _, to := range []struct{ method, path string }{{"PUT", "/v1/stacks/shop"}, {"POST", "/v1/plan"}, {"PUT", "/v1/configs/a"}, {"PATCH", "/v1/nodes/n"}} {
			code, out := h.do(to.method, to.path, body)
			if code >= 500 || !json.Valid([]byte(out)) {
				t.Fatalf("%s %s: %d %s", to.method, to.path, code, out)
			}
		}
	})
}

// FuzzTarget looks for names that the resolver cannot bear.
func FuzzTarget(f *testing.F) {
	h := newHarness(f)
	if code, body := h.do("PUT", "/v1/stacks/shop", api.UpRequest{Stack: stack("shop")}); code != 200 {
		f.Fatal(body)
	}
	for _, s := range []string{"web", "shop/web", "web/1", "shop/web/1", "abc", "", "/", "web/", "a/b/c/d", "web/99999999999999999999"} {
		f.Add(s, "")
		f.Add(s, "shop")
	}
	f.Fuzz(func(t *testing.T, name, hint string) {
		target, err := resolver{snap: h.st.Snapshot(), hint: hint}.any(name)
		var e *api.Error
		if err != nil && (!errors.As(err, &e) || e.Message == "") {
			t.Fatalf("%q in %q: %v", name, hint, err)
		}
		if err == nil && target.service == nil && target.node == nil && target.stack == nil && target.task == nil {
			t.Fatalf("%q in %q: found nothing and no error", name, hint)
		}
	})
}

// Close ends open streams and tells them why.
func TestCloseEndsStreams(t *testing.T) {
	h := newHarness(t)
	ts := httptest.NewServer(h.srv.Handler())
	defer ts.Close()
	r, err := http.NewRequestWithContext(context.Background(), "GET", ts.URL+"/v1/events/stream", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	h.srv.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil || !strings.Contains(string(b), "shutting down") {
		t.Errorf("%q, %v", b, err)
	}
	http.DefaultClient.CloseIdleConnections()
}
