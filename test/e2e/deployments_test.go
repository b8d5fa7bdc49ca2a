package e2e

import (
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"
)

// deploymentsEnv is how many deployments TestDeploymentsFailNoRequest makes.
const deploymentsEnv = "BATON_DEPLOYMENTS"

// liveOverride adds to the shop what speaks over connections that last: WebSockets and gRPC streams.
const liveOverride = `services:
  live:
    image: baton.test/web:v1
    networks: [front]
    healthcheck: {test: [NONE]}
    x-probes: {ready: {http: ":8080/ready", every: 200ms}}
    x-ingress: [{path: /ws, port: 8080}, {path: /echo.Echo, port: 8080}]
    deploy: {replicas: 3, update_config: {monitor: 0s}}
`

// roundOverride makes another release of all that takes requests.
const roundOverride = `services:
  frontend: {environment: {ROUND: "%[1]d"}}
  backend: {environment: {ROUND: "%[1]d"}}
  live: {environment: {ROUND: "%[1]d"}}
`

// mixedLoads asks every machine's ingress port for all that the shop serves there.
func (c *machines) mixedLoads() map[string]*load {
	loads := make(map[string]*load)
	for _, m := range c.list {
		start := func(what string, r request) {
			r.URL, r.Least = "http://"+m.ip+r.URL, 3
			loads[m.name+" "+what] = startLoad(c.t, c.hub, r)
		}
		start("HTTP/1.1", request{URL: "/", KeepAlive: true, Pause: 20 * time.Millisecond, Want: []string{shopProduct, shopCounted}})
		start("h2c", request{URL: "/api/products", H2C: true, KeepAlive: true, Pause: 20 * time.Millisecond, Want: []string{shopProduct}})
		start("WebSocket", request{URL: "/ws", Socket: socketEach, Pause: time.Second})
		start("gRPC", request{URL: "/echo.Echo/Stream", GRPC: 20, Pause: 100 * time.Millisecond})
	}
	return loads
}

// Deployments of the shop on three nodes fail no request that comes through any node's ingress, whatever it speaks.
func TestDeploymentsFailNoRequest(t *testing.T) {
	rounds, err := strconv.Atoi(cmp.Or(os.Getenv(deploymentsEnv), "4"))
	if err != nil || rounds < 1 {
		t.Fatalf("%s=%q: want a number from 1", deploymentsEnv, os.Getenv(deploymentsEnv))
	}
	c := newCluster(t, 3, 0)
	m1 := c.list[0]
	c.shop(c.list[2])
	live := m1.write("live.yaml", liveOverride)
	deploy := func(round int) {
		m1.baton("up", "-f", "../../examples/shop/compose.yaml", "-f", filepath.Join(m1.dir, "override.yaml"), "-f", live,
			"-f", m1.write("round.yaml", fmt.Sprintf(roundOverride, round)), "-y")
	}
	deploy(0)
	for _, m := range c.list { // the last of them has heard of the rules
		r := request{URL: "http://" + m.ip + "/echo.Echo/Stream", GRPC: 1, Count: 1}
		eventually(t, 20*time.Second, m.name+" serves the rules", func() error {
			if got := startLoad(t, c.hub, r).wait(); got.Failures > 0 {
				return fmt.Errorf("%v", got.Errors)
			}
			return nil
		})
	}
	loads := c.mixedLoads()
	begin := time.Now()
	for round := 1; round <= rounds; round++ {
		deploy(round)
		if took := time.Since(begin).Round(time.Second); round%10 == 0 || round == rounds {
			t.Logf("%d deployments after %v", round, took)
		}
	}
	judgeLoads(t, fmt.Sprint(rounds, " deployments"), loads)
}
