package spec

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestIngressDefaults(t *testing.T) {
	s := web(func(s *Stack) {
		s.Services[0].Ports = []Port{{Target: 80, Published: 8080}, {Target: 53, Published: 53, Protocol: "udp"}}
		s.Services[0].Ingress = []Ingress{{Host: "Shop.Example.com."}, {Host: "*.example.com", Path: "/api/", Port: 9000}}
	})
	want := []Ingress{{Host: "shop.example.com", Path: "/", Port: 80}, {Host: "*.example.com", Path: "/api", Port: 9000}}
	if diff := cmp.Diff(want, s.Services[0].Ingress); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if err := s.Validate(); err != nil {
		t.Error(err)
	}
}

func TestIngressValidate(t *testing.T) {
	long := "/" + strings.Repeat("a", maxIngressPath)
	for _, tc := range []struct {
		name   string
		rules  []Ingress
		change func(*Stack)
		want   string // part of the message; empty: valid
	}{
		{"any host", []Ingress{{Port: 80}}, nil, ""},
		{"address", []Ingress{{Host: "192.0.2.1", Port: 80}}, nil, ""},
		{"scheme", []Ingress{{Host: "http://a.example", Port: 80}}, nil, "services.web.ingress[0].host: invalid host"},
		{"port in the host", []Ingress{{Host: "a.example:80", Port: 80}}, nil, "without scheme and port"},
		{"star", []Ingress{{Host: "*", Port: 80}}, nil, "leave host out to match every host"},
		{"star inside", []Ingress{{Host: "a.*.example", Port: 80}}, nil, "invalid host"},
		{"relative path", []Ingress{{Path: "api", Port: 80}}, nil, "services.web.ingress[0].path: invalid path"},
		{"pattern", []Ingress{{Path: "/api/*", Port: 80}}, nil, "without query and wildcards"},
		{"dots", []Ingress{{Path: "/a/../b", Port: 80}}, nil, "write /b"},
		{"long", []Ingress{{Path: long, Port: 80}}, nil, "invalid path"},
		{"no port", []Ingress{{Path: "/"}}, nil, "services.web.ingress[0].port: no port"},
		{"several ports", []Ingress{{Path: "/"}}, func(s *Stack) {
			s.Services[0].Ports = []Port{{Target: 1, Published: 1}, {Target: 2, Published: 2}}
		}, "services.web.ingress[0].port: no port"},
		{"host mode", []Ingress{{Port: 80}}, func(s *Stack) { s.Services[0].NetworkMode, s.Services[0].Networks = "host", nil }, "network mode host has no address"},
		{"twice", []Ingress{{Host: "a.example", Port: 80}, {Host: "A.example", Path: "/", Port: 81}}, nil, "requests for a.example/ go to service web already"},
		{"many", make([]Ingress, maxIngress+1), nil, "at most 100 are allowed"},
		{"published beside", []Ingress{{Port: 80}}, func(s *Stack) {
			s.Services = append(s.Services, Service{Name: "old", Image: "a", Ports: []Port{{Target: 8080, Published: 80}}})
		}, "services.old.ports[0].published: port 80/tcp is where ingress rules are served"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := web(func(s *Stack) {
				s.Services[0].Ingress = tc.rules
				if tc.change != nil {
					tc.change(s)
				}
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
