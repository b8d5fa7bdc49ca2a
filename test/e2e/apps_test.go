package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"baton/client/api"
)

func TestShopServesFromPostgreSQLAndRedis(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	m.load("postgres", "redis", "shop-backend", "shop-frontend")
	if r := m.tryIn([]byte("correct-horse-42"), "secret", "set", "db_password", "-"); r.code != 0 {
		t.Fatal(r.stderr)
	}
	m.baton("up", "-f", "../../examples/shop/compose.yaml", "-y")
	products, err := m.ask(m.outside, url("/api/products"))
	if err != nil || !strings.Contains(products, `"id":`) {
		t.Fatalf("products: %q, %v", products, err)
	}
	before, err := m.ask(m.outside, url("/api/hits"))
	if err != nil {
		t.Fatal(err)
	}
	if page, err := m.ask(m.outside, url("/")); err != nil || !strings.Contains(page, "<html") {
		t.Fatalf("the page: %v", err)
	}
	for path, want := range map[string]string{"/": "<html", "/api/products": `"id":`} {
		if body, err := m.ask(m.outside, "http://"+machineIP+path); err != nil || !strings.Contains(body, want) {
			t.Errorf("%s by the ingress rules: %q, %v", path, body, err)
		}
	}
	if after, err := m.ask(m.outside, url("/api/hits")); err != nil || after == before {
		t.Errorf("the hit counter stays at %s, %v", before, err)
	}
	// What is in the volume survives the stack.
	m.baton("down", "-y", "shop")
	m.baton("up", "-f", "../../examples/shop/compose.yaml", "-y")
	if again, err := m.ask(m.outside, url("/api/products")); err != nil || again != products {
		t.Errorf("after down and up the products differ: %v", err)
	}
	m.baton("down", "-y", "--volumes", "shop")
	eventually(t, 20*time.Second, "the volume is deleted", func() error {
		list, err := os.ReadDir(filepath.Join(m.data, "volumes"))
		if err != nil || len(list) == 0 {
			return err
		}
		return gone(filepath.Join(m.data, "volumes", list[0].Name()))
	})
}

func TestTwentyServicesWithOneUp(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	m.load("redis", "svc")
	m.baton("up", "-f", "../../examples/microservices/compose.yaml", "-y", "--timeout", "4m")
	list := batonJSON[[]api.Service](m, "ls")
	if len(list) < 20 {
		t.Errorf("%d services, want 20 or more", len(list))
	}
	for _, s := range list {
		if s.Status.Ready != s.Status.Desired || s.Status.Desired == 0 {
			t.Errorf("service %s: %d of %d ready", s.Name, s.Status.Ready, s.Status.Desired)
		}
	}
	body, err := m.ask(m.outside, "http://"+machineIP+":8088/")
	if err != nil || !strings.Contains(body, "gateway") {
		t.Errorf("the gateway answers %q, %v", body, err)
	}
}
