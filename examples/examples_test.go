// Package examples tests the Compose files of the examples as far as that needs no containers.
package examples

import (
	"context"
	"slices"
	"strings"
	"testing"

	"baton/internal/model/compose"
	"baton/internal/model/spec"
)

func load(t *testing.T, file string) *spec.Stack {
	t.Helper()
	res, err := compose.Load(context.Background(), compose.Options{Files: []string{file}})
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range res.Warnings {
		t.Errorf("%s: an example must be honoured in full: %v", file, w)
	}
	return res.Stack
}

func service(t *testing.T, s *spec.Stack, name string) spec.Service {
	t.Helper()
	i := slices.IndexFunc(s.Services, func(v spec.Service) bool { return v.Name == name })
	if i < 0 {
		t.Fatalf("stack %s has no service %q", s.Name, name)
	}
	return s.Services[i]
}

func TestShop(t *testing.T) {
	s := load(t, "shop/compose.yaml")
	if len(s.Services) != 4 || len(s.Configs) != 1 || len(s.Configs[0].Content) == 0 || len(s.Secrets) != 1 || !s.Secrets[0].External {
		t.Errorf("got %+v", s)
	}
	front := service(t, s, "frontend")
	if len(front.Ports) != 1 || front.Ports[0].Published != 8080 || front.Ports[0].Target != 3000 || front.Replicas != 2 {
		t.Errorf("frontend: got %d replicas on ports %+v", front.Replicas, front.Ports)
	}
	if db := service(t, s, "db"); db.Update.Order != spec.StopFirst {
		t.Errorf("db: got update order %s, want stop-first: two servers must not share a data directory", db.Update.Order)
	}
	for _, v := range s.Services {
		if v.Probes.Ready == nil || v.Container.StopGracePeriod <= 0 {
			t.Errorf("%s has no health check or no stop grace", v.Name)
		}
	}
}

// Every upstream must share a network with its caller and must be waited for, or the tree cannot answer.
func TestMicroservices(t *testing.T) {
	s := load(t, "microservices/compose.yaml")
	if len(s.Services) < 20 {
		t.Errorf("got %d services, want 20 or more", len(s.Services))
	}
	for _, v := range s.Services {
		if v.Probes.Ready == nil {
			t.Errorf("%s has no health check", v.Name)
		}
		for _, e := range v.Container.Env {
			list, ok := strings.CutPrefix(e, "UPSTREAMS=")
			if !ok {
				continue
			}
			for u := range strings.FieldsSeq(list) {
				_, host, _ := strings.Cut(u, "://")
				host, _, _ = strings.Cut(host, ":")
				up := service(t, s, host)
				if !share(v, up) {
					t.Errorf("%s calls %s but shares no network with it", v.Name, host)
				}
				if !slices.ContainsFunc(v.DependsOn, func(d spec.Dependency) bool { return d.Service == host && d.Condition == spec.DependHealthy }) {
					t.Errorf("%s calls %s but does not wait for it", v.Name, host)
				}
			}
		}
	}
	if share(service(t, s, "gateway"), service(t, s, "cache")) {
		t.Error("the gateway shares a network with the cache: the tiers are not apart")
	}
}

func share(a, b spec.Service) bool {
	return slices.ContainsFunc(a.Networks, func(x spec.Attachment) bool {
		return slices.ContainsFunc(b.Networks, func(y spec.Attachment) bool { return x.Network == y.Network })
	})
}
