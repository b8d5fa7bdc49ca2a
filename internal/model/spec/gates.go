package spec

import (
	"fmt"
	"time"
)

const (
	// bakeMax is how far back what tasks had to do is remembered.
	bakeMax = time.Hour
	// factorMax bounds the multiple of the stable latency: beyond it, the gate would judge nothing.
	factorMax = 100
)

// gates checks what a rollout is judged by.
func (c *checker) gates(at string, v *Service) {
	u, g := v.Update, v.Update.Gates
	if v.Rollback.Gates.Any() || v.Rollback.Bake != 0 {
		c.addf(at+"rollback.gates", "a rollback is not judged by traffic: it must not wait")
	}
	if !g.Any() {
		if u.Bake != 0 {
			c.add(at+"update.bake", "there is no gate to wait for", "add gates: {error_rate: \"< 1%\"}")
		}
		return
	}
	if len(v.Ingress) == 0 {
		c.add(at+"update.gates", "only requests that come by x-ingress are counted, and the service has no rule", "add x-ingress, or remove gates")
	}
	if u.Order == StopFirst {
		c.add(at+"update.gates", "with stop-first there is no old task beside the new one to compare it with", "remove gates, or use start-first")
	}
	if !(g.ErrorRate >= 0 && g.ErrorRate < 1) {
		c.add(at+"update.gates.errorRate", fmt.Sprintf("%v is no share of requests", g.ErrorRate), "write it as \"< 1%\"")
	}
	if g.P95 < 0 || g.P95 > maxDuration || !(g.P95Stable >= 0 && g.P95Stable <= factorMax) || g.P95 > 0 && g.P95Stable > 0 {
		c.add(at+"update.gates.p95", "is out of range", "write it as \"< 1.2x stable\" or \"< 300ms\"")
	}
	if g.P95Stable > 0 && g.P95Stable < 1 {
		c.add(at+"update.gates.p95", fmt.Sprintf("%gx stable would refuse a revision that is as fast as the stable one", g.P95Stable), "use 1x stable or more")
	}
	if u.Bake < time.Second || u.Bake > bakeMax {
		c.add(at+"update.bake", fmt.Sprintf("%v is out of range", u.Bake), "use 1s to 1h")
	}
}
