package main

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"
)

// start runs a service on loopback and returns its URL.
func start(t *testing.T, name string, upstreams ...string) string {
	t.Helper()
	env := map[string]string{"NAME": name, "UPSTREAMS": strings.Join(upstreams, ", ")}
	s, err := LoadSettings(func(k string) string { return env[k] })
	if err != nil {
		t.Fatal(err)
	}
	svc, err := NewService(s, http.DefaultClient, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(svc.Handler())
	t.Cleanup(func() { srv.Close(); svc.Close() })
	return srv.URL
}

func ask(t *testing.T, target string) (int, Call) {
	t.Helper()
	resp, err := http.Get(target)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	var c Call
	if err := json.NewDecoder(resp.Body).Decode(&c); err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, c
}

// paths lists the tree as a/b/c, with an exclamation mark after a call that is not OK.
func paths(c Call, above string) []string {
	p := above + c.Name
	if !c.OK {
		p += "!"
	}
	list := []string{p}
	for _, below := range c.Calls {
		list = append(list, paths(below, strings.TrimSuffix(p, "!")+"/")...)
	}
	return list
}

func TestTree(t *testing.T) {
	d := start(t, "d")
	b, c := start(t, "b", "d="+d), start(t, "c", "d="+d)
	status, tree := ask(t, start(t, "a", "b="+b, "c="+c))
	if want := []string{"a", "a/b", "a/b/d", "a/c", "a/c/d"}; status != 200 || !slices.Equal(paths(tree, ""), want) {
		t.Errorf("got %d %v, want 200 %v", status, paths(tree, ""), want)
	}
	if below := tree.Calls[0]; tree.Millis < below.Millis || below.Millis < below.Calls[0].Millis {
		t.Errorf("a call took less than one below it: %+v", tree)
	}
}

func TestTreeWithDeadLeaf(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	dead := "http://" + l.Addr().String()
	_ = l.Close()
	c := start(t, "c")
	b := start(t, "b", "dead="+dead)
	a := start(t, "a", "b="+b, "c="+c)
	status, tree := ask(t, a)
	if want := []string{"a!", "a/b!", "a/b/dead!", "a/c"}; status != 502 || !slices.Equal(paths(tree, ""), want) {
		t.Errorf("got %d %v, want 502 %v", status, paths(tree, ""), want)
	}
	if got := tree.Calls[0].Calls[0].Error; !strings.Contains(got, "refused") {
		t.Errorf("the dead leaf: got error %q, want the connection's", got)
	}
	resp, err := http.Get(a + "/healthz")
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	if resp.StatusCode != 200 {
		t.Errorf("health with a dead leaf: got %d, want 200", resp.StatusCode)
	}
}

func TestCircleEnds(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	self, err := url.Parse("http://" + l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	svc, err := NewService(Settings{Name: "a", Upstreams: []Upstream{{"a", self}}}, http.DefaultClient, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewUnstartedServer(svc.Handler())
	_ = srv.Listener.Close()
	srv.Listener = l
	srv.Start()
	defer srv.Close()
	status, tree := ask(t, srv.URL)
	if list := paths(tree, ""); status != 502 || len(list) != depthMax+1 {
		t.Errorf("got %d with %d calls, want 502 with %d", status, len(list), depthMax+1)
	}
}

func TestUpstreamThatIsNoService(t *testing.T) {
	other := httptest.NewServer(http.NotFoundHandler())
	defer other.Close()
	status, tree := ask(t, start(t, "a", "x="+other.URL))
	if status != 502 || !strings.Contains(tree.Calls[0].Error, "404") {
		t.Errorf("got %d %+v, want 502 and the status of the other", status, tree)
	}
}

func TestLoadSettings(t *testing.T) {
	for _, tc := range []struct {
		name string
		env  map[string]string
		want string // of the settings, or of the error
	}{
		{"defaults", map[string]string{"NAME": "a"}, "a 8080 0s []"},
		{"named and unnamed upstreams", map[string]string{"NAME": "a", "PORT": "9", "WORK": "5ms", "UPSTREAMS": "b=http://x:1, http://c:2\nredis://r:3"},
			"a 9 5ms [b=http://x:1 c=http://c:2 r=redis://r:3]"},
		{"no name", nil, "NAME"},
		{"bad port", map[string]string{"NAME": "a", "PORT": "99999"}, "PORT"},
		{"bad work", map[string]string{"NAME": "a", "WORK": "1h"}, "WORK"},
		{"upstream without scheme", map[string]string{"NAME": "a", "UPSTREAMS": "b:8080"}, "UPSTREAMS"},
		{"upstream of another scheme", map[string]string{"NAME": "a", "UPSTREAMS": "ftp://b"}, "UPSTREAMS"},
		{"too many", map[string]string{"NAME": "a", "UPSTREAMS": strings.Repeat("http://b ", upstreamsMax+1)}, "too many"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s, err := LoadSettings(func(k string) string { return tc.env[k] })
			var ups []string
			for _, u := range s.Upstreams {
				ups = append(ups, u.Name+"="+u.URL.String())
			}
			got := fmt.Sprint(s.Name, " ", s.Port, " ", s.Work, " ", ups)
			if err != nil {
				got = err.Error()
			}
			if !strings.Contains(got, tc.want) {
				t.Errorf("got %q, want %q", got, tc.want)
			}
		})
	}
}
