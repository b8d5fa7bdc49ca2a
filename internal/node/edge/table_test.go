package edge

import (
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"baton/internal/model/cluster"
	"baton/internal/model/spec"
	"baton/internal/wire/agentapi"
)

func TestRouting(t *testing.T) {
	named := func(n byte, name string, rules ...spec.Ingress) agentapi.Service {
		return agentapi.Service{ID: cluster.ID{15: n}, Stack: "s", Name: name, Ingress: rules}
	}
	table := newTable([]agentapi.Service{
		named(9, "late", spec.Ingress{Host: "shop.example.com", Path: "/"}),
		named(1, "front", spec.Ingress{Host: "shop.example.com", Path: "/"}),
		named(2, "api", spec.Ingress{Host: "shop.example.com", Path: "/api"}),
		named(3, "v2", spec.Ingress{Host: "shop.example.com", Path: "/api/v2"}),
		named(4, "wild", spec.Ingress{Host: "*.example.com", Path: "/"}),
		named(5, "health", spec.Ingress{Path: "/health"}),
		named(6, "admin", spec.Ingress{Host: "admin.example.com", Path: "/admin"}),
	}, newSource())
	for _, tc := range []struct{ name, host, path, want string }{
		{"exact", "shop.example.com", "/", "front"},
		{"case, port and dot", "Shop.Example.COM.:8080", "/x", "front"},
		{"longest path", "shop.example.com", "/api/v2/items", "v2"},
		{"whole prefix", "shop.example.com", "/api", "api"},
		{"slash after the prefix", "shop.example.com", "/api/", "api"},
		{"whole segments only", "shop.example.com", "/apis", "front"},
		{"dots are resolved", "shop.example.com", "/api/../x", "front"},
		{"dots into a rule", "shop.example.com", "/x/..//api/v1", "api"},
		{"wildcard", "blog.example.com", "/health", "wild"},
		{"one label only", "a.b.example.com", "/", ""},
		{"not the name itself", "example.com", "/", ""},
		{"any host", "other.example.org", "/health/db", "health"},
		{"any host, other path", "other.example.org", "/", ""},
		{"exact host without that path falls to the wildcard", "admin.example.com", "/", "wild"},
		{"address", "[2001:db8::1]:80", "/health", "health"},
		{"no host", "", "/health", "health"},
		{"no path", "shop.example.com", "*", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got := ""
			if r := table.find(tc.host, tc.path); r != nil {
				got = r.service[len("s/"):]
			}
			if got != tc.want {
				t.Errorf("got %q, want %q", got, tc.want)
			}
		})
	}
}

func TestNoRuleAndNoEndpoint(t *testing.T) {
	e := newEdge(t)
	at, _ := serve(t, e)
	c := newClient(t)
	if code, _, _ := get(t, c, "http://"+at+"/"); code != http.StatusNotFound {
		t.Errorf("without a rule: got %d, want 404", code)
	}
	e.Apply(anyHost())
	if code, _, h := get(t, c, "http://"+at+"/"); code != http.StatusServiceUnavailable || h.Get("Retry-After") == "" {
		t.Errorf("without an endpoint: got %d, Retry-After %q; want 503 and a time", code, h.Get("Retry-After"))
	}
	req, err := http.NewRequest(http.MethodConnect, "http://"+at, nil)
	if err != nil {
		t.Fatal(err)
	}
	res, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if res.StatusCode != http.StatusMethodNotAllowed {
		t.Errorf("CONNECT: got %d, want 405", res.StatusCode)
	}
}

// Of two endpoints the one with less to do is chosen, one that was not reached comes last, one that was tried never.
func TestPick(t *testing.T) {
	now := time.Now()
	list := make([]*backend, 3)
	for i := range list {
		list[i] = newBackend(netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}), 80))
	}
	r := &route{backends: list}
	list[0].inflight.Store(5)
	list[1].failed(now)
	counts := make(map[*backend]int)
	for range 300 {
		counts[r.pick(nil, now)]++
	}
	// With two of three drawn, the worst is never the better one, and the best wins two draws of three.
	if counts[list[1]] != 0 || counts[list[0]] == 0 || counts[list[2]] < counts[list[0]] {
		t.Errorf("got %d busy, %d failed, %d idle; want none failed, most idle", counts[list[0]], counts[list[1]], counts[list[2]])
	}
	if got := r.pick(list[:2], now); got != list[2] {
		t.Errorf("got %v, want the one that was not tried", got)
	}
	if got := r.pick(list, now); got != nil {
		t.Errorf("got %v although all were tried", got.address)
	}
	later := now.Add(avoidFor)
	list[0].inflight.Store(0)
	found := false
	for range 300 {
		found = found || r.pick(nil, later) == list[1]
	}
	if !found {
		t.Error("an endpoint that failed is not tried again")
	}
}

func TestSampler(t *testing.T) {
	var s sampler
	now := time.Unix(1000, 0)
	logged := 0
	for range 100 {
		if _, ok := s.take(now); ok {
			logged++
		}
	}
	if logged != linesPerSecond {
		t.Errorf("%d lines in one second, want %d", logged, linesPerSecond)
	}
	if skipped, ok := s.take(now.Add(time.Second)); !ok || skipped != 100-linesPerSecond {
		t.Errorf("got %d skipped, %v; want %d and a line", skipped, ok, 100-linesPerSecond)
	}
}

// No host and path of a client's make the table fail, and a rule that is found matches.
func FuzzFind(f *testing.F) {
	for _, seed := range [][2]string{{"shop.example.com:80", "/api/x"}, {"[::1]:80", "/../.."}, {".", ""}, {"a..b", "//api"}, {"[", "*"}} {
		f.Add(seed[0], seed[1])
	}
	rules := []spec.Ingress{{Host: "shop.example.com", Path: "/api"}, {Host: "*.example.com", Path: "/api/v1"}, {Path: "/health"}}
	table := newTable([]agentapi.Service{{Ingress: rules}}, newSource())
	f.Fuzz(func(t *testing.T, host, path string) {
		r := table.find(host, path)
		if r == nil {
			return
		}
		if r.path != "/health" && !strings.HasSuffix(hostname(host), ".example.com") {
			t.Errorf("%q %q found the rule for %s of another host", host, path, r.path)
		}
	})
}
