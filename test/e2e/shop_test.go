package e2e

import (
	"encoding/json"
	"path/filepath"
	"time"
)

// shopOverride puts the shop on a cluster. The volume of the database has one writer and lives on one node, and what the cache has
// counted is in its memory: both are pinned to a machine that no test drains, kills or cuts off, as a reader of the shop would do
// with the one that has the good disk. What asks from inside is there too. Frontends and backends are everywhere.
const shopOverride = `services:
  frontend:
    deploy: {replicas: 5, update_config: {monitor: 0s, parallelism: 2}}
  backend:
    deploy: {replicas: 5, update_config: {monitor: 0s, parallelism: 2}}
  db:
    deploy: {placement: {constraints: [node.labels.place == pinned]}}
  cache:
    deploy: {placement: {constraints: [node.labels.place == pinned]}}
  inside:
    image: baton.test/web:v1
    networks: [front]
    healthcheck: {test: [NONE]}
    deploy: {placement: {constraints: [node.labels.place == pinned]}}
`

const (
	shopProduct = "Maple baton" // a row of PostgreSQL: on the page and in the API's list
	shopCounted = "counted in Redis"
)

// shop deploys the shop with its database on the machine.
func (c *machines) shop(pinned *machine) {
	c.t.Helper()
	m1 := c.list[0]
	m1.load("shop-backend", "shop-frontend", "web-v1")
	for _, name := range []string{"postgres", "redis"} {
		m1.baton("image", "load", "--node", pinned.name, filepath.Join(images, name+".tar"))
	}
	m1.baton("node", "label", pinned.name, "place=pinned")
	if r := m1.tryIn([]byte("correct-horse-42"), "secret", "set", "db_password", "-"); r.code != 0 {
		c.t.Fatal(r.stderr)
	}
	m1.baton("up", "-f", "../../examples/shop/compose.yaml", "-f", m1.write("override.yaml", shopOverride), "-y")
	for _, service := range []string{"frontend", "backend"} {
		nodes := make(map[string]bool)
		for _, task := range m1.live(service) {
			nodes[task.NodeName] = true
		}
		if len(nodes) != len(c.list) {
			c.t.Fatalf("%s is on %d nodes, want it on each of %d:\n%s", service, len(nodes), len(c.list), m1.baton("ps"))
		}
	}
}

// page asks for the shop's front page, which is whole only with the products of PostgreSQL and the count of Redis: frontend, backend,
// database and cache, on several nodes.
func page(m *machine) request {
	return request{URL: "http://" + m.ip + ":8080/", Pause: 10 * time.Millisecond, Least: 20, Want: []string{shopProduct, shopCounted}}
}

// products asks the backend by its name, as a task does, for what is in PostgreSQL.
func products() request {
	return request{URL: "http://backend:8080/api/products", Pause: 10 * time.Millisecond, Least: 20, DNS: true, Want: []string{shopProduct}}
}

// hits is what the cache has counted.
func (c *machines) hits(inside string) int {
	c.t.Helper()
	body, err := c.list[0].ask(inside, "http://backend:8080/api/hits")
	var v struct{ Hits int }
	if err == nil {
		err = json.Unmarshal([]byte(body), &v)
	}
	if err != nil {
		c.t.Fatalf("hits: %v in %q", err, body)
	}
	return v.Hits
}
