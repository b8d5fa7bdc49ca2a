package e2e

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"
)

// shopHost is the host of the rule that these tests ask.
const shopHost = "shop.example.com"

// ingressWeb is a web service with a rule; round makes each an update of the last.
func ingressWeb(round int) string {
	return fmt.Sprintf(`services:
  web:
    image: baton.test/web:v1
    expose: ["8080"]
    environment: {ROUND: "%d"}
    healthcheck: {test: [NONE]}
    x-probes: {ready: {http: {path: /healthz, port: 8080}, every: 200ms, timeout: 2s}}
    x-ingress: {host: %s}
    x-rollout: {drain: 10s}
    stop_grace_period: 20s
    deploy: {replicas: 3, update_config: {monitor: 0s}}
`, round, shopHost)
}

// through is a request through a machine's ingress port.
func through(m *machine, path string) request {
	return request{URL: "http://" + m.ip + path, Host: shopHost, Pause: 10 * time.Millisecond, KeepAlive: true, Least: 3}
}

// ingressLoads asks every machine over kept connections, over HTTP/2 without TLS, and with a WebSocket per second.
func (c *machines) ingressLoads() map[string]*load {
	loads := make(map[string]*load)
	for _, m := range c.list {
		one := through(m, "/")
		one.Workers = 2
		loads[m.name+" HTTP/1.1"] = startLoad(c.t, c.hub, one)
		two := through(m, "/")
		two.Workers, two.H2C = 2, true
		loads[m.name+" h2c"] = startLoad(c.t, c.hub, two)
		socket := through(m, "/ws")
		socket.Socket, socket.Pause = socketEach, time.Second
		loads[m.name+" WebSocket"] = startLoad(c.t, c.hub, socket)
	}
	return loads
}

// judgeLoads ends loads of which no request may have failed.
func judgeLoads(t *testing.T, what string, loads map[string]*load) {
	t.Helper()
	for _, where := range slices.Sorted(maps.Keys(loads)) {
		got := loads[where].end()
		t.Logf("%-28s %-18s %6d requests, %d failed, longest %4.1f s", what, where, got.Requests, got.Failures, got.Longest.Seconds())
		if got.Failures > 0 {
			t.Errorf("%s: %s: %d of %d requests failed: %v", what, where, got.Failures, got.Requests, got.Errors)
		}
		if got.Requests < 3 {
			t.Errorf("%s: %s: only %d requests: no load", what, where, got.Requests)
		}
	}
}

// Every node's port 80 answers for a service with a rule, also one without a task of it; updates and a drained node fail no request.
func TestIngressThroughEveryNode(t *testing.T) {
	c := newCluster(t, 1, 2)
	m1 := c.list[0]
	c.loadAll("web-v1")
	m1.baton("up", "-f", m1.write("compose.yaml", ingressWeb(0)), "-s", "web", "-y")
	for _, m := range c.list {
		r := through(m, "/")
		r.Count = 1
		eventually(t, 20*time.Second, m.name+" answers", func() error {
			if got := startLoad(t, c.hub, r).wait(); got.Failures > 0 {
				return fmt.Errorf("%v", got.Errors)
			}
			return nil
		})
		r.Host = "other.example.com"
		if got := startLoad(t, c.hub, r).wait(); got.Failures == 0 || !strings.Contains(got.Errors[0], "status 404") {
			t.Errorf("%s answers %v for a host without a rule, want 404", m.name, got.Errors)
		}
	}
	loads := c.ingressLoads()
	for n := 1; n <= 4; n++ {
		m1.baton("up", "-f", m1.write("compose.yaml", ingressWeb(n)), "-s", "web", "-y")
	}
	judgeLoads(t, "4 updates", loads)
	loads = c.ingressLoads()
	m1.baton("node", "drain", "w1")
	eventually(t, time.Minute, "w1 has no task", func() error {
		if n := len(m1.on("web", "w1")); n > 0 {
			return fmt.Errorf("it has %d", n)
		}
		return nil
	})
	judgeLoads(t, "a drained node", loads)
	r := through(c.by("w1"), "/")
	r.Count = 20
	if got := startLoad(t, c.hub, r).wait(); got.Failures > 0 {
		t.Errorf("w1, without a task: %v", got.Errors)
	}
}
