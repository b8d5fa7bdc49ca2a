package compose

import (
	"fmt"
	"strconv"
	"strings"
)

// The keys of x-rollout and of the gates in it.
var (
	rolloutKeys = []string{"strategy", "steps", "bake", "gates", "drain", "deadline", "manual"}
	gateKeys    = []string{"error_rate", "p95"}
)

// judged reads the keys of x-rollout that say what a rollout is judged by.
func (c *converter) judged(path string, m map[string]any) {
	switch s := text(c.rep, path+".strategy", m["strategy"]); s {
	case "", "rolling":
	case "canary", "blue-green":
		c.rep.warn(path+".strategy", s+" is not honoured yet: tasks are replaced as deploy.update_config says, and judged by the gates",
			"give it gates, and few tasks at once by update_config.parallelism")
	default:
		c.rep.err(path+".strategy", fmt.Sprintf("unknown strategy %q", s), choose(s, "rolling", "canary", "blue-green"))
	}
	if _, set := m["steps"]; set {
		c.rep.warn(path+".steps", "steps are not honoured yet: requests go to all ready tasks alike", "deploy.update_config.parallelism says how many tasks move at once")
	}
	if v, set := m["manual"]; set && v != false {
		c.rep.err(path+".manual", "nobody can be waited for yet: all clients would meet the new revision unasked", "remove it, or use gates")
	}
	if v, ok := m["bake"]; ok {
		c.out.Update.Bake = explicit(duration(c.rep, path+".bake", v))
	}
	g := c.submapping(path+".gates", m["gates"], gateKeys)
	if v, ok := g["error_rate"]; ok {
		c.out.Update.Gates.ErrorRate = c.share(path+".gates.error_rate", below(c.rep, path+".gates.error_rate", v))
	}
	if v, ok := g["p95"]; ok {
		c.latencyGate(path+".gates.p95", below(c.rep, path+".gates.p95", v))
	}
}

// below cuts off the sign of "< 1%". It must be there: a gate is a bound, and no aim.
func below(rep *report, path string, v any) string {
	s := text(rep, path, v)
	rest, ok := strings.CutPrefix(s, "<")
	if !ok {
		rep.err(path, fmt.Sprintf("%q does not say what it must be below", s), `write it as "< 1%", "< 300ms" or "< 1.2x stable"`)
	}
	return strings.TrimSpace(rest)
}

// latencyGate reads 300ms or 1.2x stable.
func (c *converter) latencyGate(path, s string) {
	factor, ok := strings.CutSuffix(s, "stable")
	if !ok {
		if c.out.Update.Gates.P95 = duration(c.rep, path, s); c.out.Update.Gates.P95 == 0 && strings.HasPrefix(s, "0") {
			c.rep.err(path, "no answer takes no time", `write it as "< 300ms" or "< 1.2x stable"`)
		}
		return
	}
	n, err := strconv.ParseFloat(strings.TrimSuffix(strings.TrimSpace(factor), "x"), 64)
	if err != nil || !(n > 0) {
		c.rep.err(path, fmt.Sprintf("%q is no multiple of what the stable revision takes", s), `write it as "< 1.2x stable"`)
		n = 1 // one message is enough
	}
	c.out.Update.Gates.P95Stable = n
}
