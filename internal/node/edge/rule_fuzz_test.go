package edge

import (
	"net/http"
	"net/http/httputil"
	"net/url"
	"strings"
	"testing"

	"baton/internal/model/spec"
)

// FuzzCaller holds that no header makes a client that is not behind a trusted proxy somebody else, nor one behind it a trusted one.
func FuzzCaller(f *testing.F) {
	f.Add("192.0.2.1:1", "1.1.1.1")
	f.Add("10.0.0.1:1", "1.1.1.1, 10.0.0.2")
	f.Add("10.0.0.1:1", "[::1]:99,,")
	f.Add("[::ffff:10.0.0.1%a]:1", "::ffff:10.0.0.1%b")
	trusted := prefixes([]string{"10.0.0.0/8"})
	f.Fuzz(func(t *testing.T, peer, hops string) {
		r := &http.Request{RemoteAddr: peer, Header: http.Header{"X-Forwarded-For": {hops}}}
		c := callerOf(r, trusted)
		own := peerOf(r)
		if !within(trusted, own) && (c.proxied || c.address != own) {
			t.Errorf("%q with %q is %+v", peer, hops, c)
		}
		if c.address.IsValid() && c.address != own && !strings.Contains(hops, c.address.String()) && !strings.Contains(hops, ":") && !strings.Contains(hops, "%") {
			t.Errorf("%q with %q is %+v, which nobody said", peer, hops, c)
		}
		if s := c.forwarded(""); strings.ContainsAny(s, "\r\n") {
			t.Errorf("%q", s)
		}
	})
}

// FuzzHeaderRules holds that no name and value that a client sends, and no change that validation lets through, touch what the edge says of the client.
func FuzzHeaderRules(f *testing.F) {
	f.Add("X-Forwarded-For", "6.6.6.6", "x_forwarded_for")
	f.Add("forwarded", "for=6.6.6.6", "X-Env")
	f.Add("Connection", "X-Forwarded-For", "Content_Length")
	f.Fuzz(func(t *testing.T, name, value, set string) {
		s := spec.Stack{Name: "a", Services: []spec.Service{{Name: "web", Image: "a", Ingress: []spec.Ingress{{Port: 80, RuleKeys: spec.RuleKeys{
			RequestHeaders: &spec.HeaderChange{Set: map[string]string{set: "changed"}},
		}}}}}}
		s.SetDefaults()
		keys := &s.Services[0].Ingress[0].RuleKeys
		if err := s.Validate(); err != nil && strings.Contains(err.Error(), "requestHeaders") {
			keys = &spec.RuleKeys{}
		}
		x := &exchange{rule: &route{policy: newPolicy(keys, nil)}}
		in := (&http.Request{Method: "GET", Host: "a.example", RemoteAddr: "192.0.2.1:1", URL: &url.URL{Path: "/"}, Header: http.Header{}}).
			WithContext(withExchange(t.Context(), x))
		in.Header[http.CanonicalHeaderKey(name)] = []string{value}
		out := in.Clone(in.Context())
		rewrite(&httputil.ProxyRequest{In: in, Out: out})
		for n, v := range out.Header {
			switch spelt := http.CanonicalHeaderKey(strings.ReplaceAll(n, "_", "-")); spelt {
			case "X-Forwarded-For", "Forwarded", "X-Real-Ip", "Content-Length", "Transfer-Encoding":
				edges := map[string]string{"X-Forwarded-For": "192.0.2.1", "Forwarded": `for=192.0.2.1;host="a.example";proto=http`}
				client := n == http.CanonicalHeaderKey(name) && v[0] == value // framing is the server's to refuse, before
				if strings.Join(v, ",") != edges[spelt] && !(client && !spec.ClaimsClient(n)) {
					t.Errorf("client %q: %q, rule %q: the task gets %q: %q", name, value, set, n, v)
				}
			}
		}
	})
}
