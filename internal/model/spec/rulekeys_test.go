package spec

import (
	"strings"
	"testing"
	"time"
)

func TestRuleKeysValidate(t *testing.T) {
	many := make([]string, maxPrefixes+1)
	for i := range many {
		many[i] = "10.0.0.0/8"
	}
	request := func(h HeaderChange) RuleKeys { return RuleKeys{RequestHeaders: &h} }
	for _, tc := range []struct {
		name string
		keys RuleKeys
		want string // part of the message; empty: valid
	}{
		{"redirect", RuleKeys{Redirect: &Redirect{URL: "https://shop.example.com/a?b"}}, ""},
		{"redirect by script", RuleKeys{Redirect: &Redirect{URL: "javascript:alert(1)"}}, "redirect.url: invalid URL"},
		{"redirect without host", RuleKeys{Redirect: &Redirect{URL: "https:///a"}}, "redirect.url: invalid URL"},
		{"redirect with user", RuleKeys{Redirect: &Redirect{URL: "https://a@b.example"}}, "a user or a fragment"},
		{"redirect code", RuleKeys{Redirect: &Redirect{URL: "https://b.example", Code: 200}}, "status 200 does not redirect"},
		{"headers", request(HeaderChange{Set: map[string]string{"X-A": "b\tc"}, Remove: []string{"Cookie"}}), ""},
		{"framing", request(HeaderChange{Set: map[string]string{"Transfer-Encoding": "chunked"}}), "says where a message ends"},
		{"framing with underscores", request(HeaderChange{Add: map[string]string{"content_length": "1"}}), "says where a message ends"},
		{"hop by hop", RuleKeys{ResponseHeaders: &HeaderChange{Remove: []string{"Connection"}}}, "responseHeaders.remove: header Connection belongs to the connection"},
		{"client", request(HeaderChange{Set: map[string]string{"x_forwarded_for": "1.2.3.4"}}), "says who the client is"},
		{"line break", request(HeaderChange{Set: map[string]string{"X-A": "a\r\nB: c"}}), "requestHeaders.set.X-A: invalid value"},
		{"name", request(HeaderChange{Remove: []string{"a b"}}), "invalid header name"},
		{"body", RuleKeys{BodyLimit: -1}, "fewer than 0 bytes"},
		{"timeout", RuleKeys{Timeout: &RuleTimeout{Idle: 25 * time.Hour}}, "timeout.idle: 25h0m0s is no time to wait"},
		{"rate", RuleKeys{RateLimit: &RateLimit{Rate: 0.5}}, ""},
		{"no rate", RuleKeys{RateLimit: &RateLimit{}}, "is no rate"},
		{"burst", RuleKeys{RateLimit: &RateLimit{Rate: 1, Burst: -1}}, "are no burst"},
		{"allow", RuleKeys{Allow: []string{"10.0.0.0/8", "::/0"}}, ""},
		{"allow an address", RuleKeys{Allow: []string{"10.0.0.1"}}, "allow[0]: invalid network"},
		{"many trusted", RuleKeys{Trusted: many}, "trusted: 257 networks"},
		{"protocol", RuleKeys{Protocol: "spdy"}, "protocol: unknown value"},
		{"log", RuleKeys{AccessLog: "some"}, "accessLog: unknown value"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := web(func(s *Stack) {
				g := Ingress{RuleKeys: tc.keys}
				if g.Redirect == nil {
					g.Port = 80
				}
				s.Services[0].Ingress = []Ingress{g}
			})
			err := s.Validate()
			switch {
			case tc.want == "" && err != nil:
				t.Errorf("Validate: %v", err)
			case tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)):
				t.Errorf("got %v, want %q in it", err, tc.want)
			}
		})
	}
}

// TestFurther holds that every key is one that an older edge would not honour.
func TestFurther(t *testing.T) {
	for name, k := range map[string]RuleKeys{
		"redirect": {Redirect: &Redirect{}}, "request": {RequestHeaders: &HeaderChange{}}, "response": {ResponseHeaders: &HeaderChange{}},
		"body": {BodyLimit: 1}, "timeout": {Timeout: &RuleTimeout{}}, "rate": {RateLimit: &RateLimit{}}, "allow": {Allow: []string{"::/0"}},
		"trusted": {Trusted: []string{"::/0"}}, "sticky": {Sticky: true}, "protocol": {Protocol: ProtocolH2C}, "log": {AccessLog: LogOff},
	} {
		if !k.Further() {
			t.Errorf("%s is not seen", name)
		}
	}
	if g := (Ingress{Host: "a", Path: "/", Port: 1}); g.Further() || g.Summary() != "1" {
		t.Errorf("a plain rule: further %v, summary %q", g.Further(), g.Summary())
	}
}
