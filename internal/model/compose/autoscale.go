package compose

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/docker/go-units"

	"baton/internal/model/spec"
)

// The keys of x-autoscale and of the mappings in it.
var (
	autoscaleKeys  = []string{"min", "max", "target", "scale_up", "scale_down", "schedule", "tolerance", "hold"}
	targetKeys     = []string{"rps", "inflight", "p95", "cpu", "memory", "prometheus"}
	scaleUpKeys    = []string{"window", "max_step"}
	scaleDownKeys  = []string{"after", "max_step"}
	scheduleKeys   = []string{"cron", "tz", "for", "min", "max"}
	holdKeys       = []string{"wait", "requests"}
	prometheusKeys = []string{"url", "query", "per_replica"}
)

// autoscale reads x-autoscale.
func (c *converter) autoscale() {
	x, ok := c.in.Extensions["x-autoscale"]
	if !ok {
		return
	}
	path := c.at("x-autoscale")
	m := mapping(c.rep, path, x)
	if m == nil {
		return
	}
	a := &spec.Autoscale{Min: 1, Max: c.replicaCount(path+".max", m["max"])}
	if v, ok := m["min"]; ok {
		a.Min = c.replicaCount(path+".min", v)
	}
	c.scaleTarget(path+".target", m["target"], &a.Target)
	if up := c.submapping(path+".scale_up", m["scale_up"], scaleUpKeys); up != nil {
		if v, ok := up["window"]; ok {
			a.Up.Window = explicit(duration(c.rep, path+".scale_up.window", v))
		}
		a.Up.Step = c.scaleStep(path+".scale_up.max_step", up["max_step"])
	}
	if down := c.submapping(path+".scale_down", m["scale_down"], scaleDownKeys); down != nil {
		if v, ok := down["after"]; ok {
			a.Down.After = explicit(duration(c.rep, path+".scale_down.after", v))
		}
		a.Down.Step = c.scaleStep(path+".scale_down.max_step", down["max_step"])
	}
	if v, ok := m["tolerance"]; ok {
		a.Tolerance = c.share(path+".tolerance", v)
	}
	c.scaleSchedule(path+".schedule", m["schedule"], a)
	if hold := c.submapping(path+".hold", m["hold"], holdKeys); hold != nil {
		if v, ok := hold["wait"]; ok {
			a.Hold.Wait = explicit(duration(c.rep, path+".hold.wait", v))
		}
		if v, ok := hold["requests"]; ok {
			a.Hold.Requests = int(c.positive(path+".hold.requests", v))
		}
		if !a.Rests() {
			c.rep.warn(path+".hold", "requests are held only for a service that may rest", "set min: 0, or remove hold")
			a.Hold = spec.ScaleHold{}
		}
	}
	c.out.Autoscale = a
}

// submapping reads a mapping that has these keys and no others; nil when there is none.
func (c *converter) submapping(path string, v any, keys []string) map[string]any {
	m := mapping(c.rep, path, v)
	for k := range m {
		if !slices.Contains(keys, k) {
			c.rep.err(join(path, k), fmt.Sprintf("unknown key %q", k), choose(k, keys...))
		}
	}
	return m
}

func (c *converter) scaleTarget(path string, v any, out *spec.ScaleTarget) {
	m := mapping(c.rep, path, v)
	if _, ok := m["queue"]; ok {
		c.rep.err(path+".queue", "lengths of queues are not measured", "use prometheus with a query for the length")
		m = withoutKey(m, "queue")
	}
	m = c.submapping(path, any(m), targetKeys)
	if v, ok := m["rps"]; ok {
		out.RPS = c.positive(path+".rps", v)
	}
	if v, ok := m["inflight"]; ok {
		out.InFlight = c.positive(path+".inflight", v)
	}
	if v, ok := m["p95"]; ok {
		if out.P95 = duration(c.rep, path+".p95", v); out.P95 == 0 {
			c.rep.err(path+".p95", "no answer takes no time", "write it as 250ms")
		}
	}
	if v, ok := m["cpu"]; ok {
		out.CPU = c.share(path+".cpu", v)
	}
	if v, ok := m["memory"]; ok {
		s := text(c.rep, path+".memory", v)
		if strings.HasSuffix(s, "%") {
			out.Memory = c.share(path+".memory", v)
		} else if n, err := units.RAMInBytes(s); err != nil || n <= 0 {
			c.rep.err(path+".memory", fmt.Sprintf("%q is no amount of memory", s), "write a share such as 80%, or an amount such as 200M")
		} else {
			out.MemoryBytes = spec.Bytes(n)
		}
	}
	if p := c.submapping(path+".prometheus", m["prometheus"], prometheusKeys); p != nil {
		at := path + ".prometheus"
		out.Prometheus = &spec.PrometheusTarget{URL: text(c.rep, at+".url", p["url"]), Query: text(c.rep, at+".query", p["query"])}
		if v, ok := p["per_replica"]; ok {
			out.Prometheus.PerReplica = c.positive(at+".per_replica", v)
		}
	}
}

func withoutKey(m map[string]any, key string) map[string]any {
	out := make(map[string]any, len(m))
	for k, v := range m {
		if k != key {
			out[k] = v
		}
	}
	return out
}

func (c *converter) scaleSchedule(path string, v any, a *spec.Autoscale) {
	if v == nil {
		return
	}
	list, ok := v.([]any)
	if !ok {
		c.rep.err(path, "must be a list", `write [{cron: "0 18 * * 5", for: 5h, min: 6}]`)
		return
	}
	for i, e := range list {
		p := fmt.Sprintf("%s[%d]", path, i)
		m := c.submapping(p, e, scheduleKeys)
		w := spec.ScaleWindow{Cron: text(c.rep, p+".cron", m["cron"]), TZ: text(c.rep, p+".tz", m["tz"])}
		if v, ok := m["for"]; ok {
			w.For = duration(c.rep, p+".for", v)
		}
		for _, n := range []struct {
			key string
			to  **int
		}{{"min", &w.Min}, {"max", &w.Max}} {
			if v, ok := m[n.key]; ok {
				count := c.replicaCount(p+"."+n.key, v)
				*n.to = &count
			}
		}
		a.Schedule = append(a.Schedule, w)
	}
}

// scaleStep reads 50% or a number of replicas; zero when it is not given.
func (c *converter) scaleStep(path string, v any) spec.ScaleStep {
	if v == nil {
		return spec.ScaleStep{}
	}
	if s := text(c.rep, path, v); strings.HasSuffix(s, "%") {
		return spec.ScaleStep{Percent: int(math.Round(100 * c.share(path, v)))}
	}
	return spec.ScaleStep{Count: int(c.positive(path, v))}
}

// replicaCount reads a number of replicas.
func (c *converter) replicaCount(path string, v any) int {
	if v == nil {
		return 0
	}
	n, err := strconv.ParseInt(text(c.rep, path, v), 10, 32)
	if err != nil || n < 0 || n > spec.MaxReplicas {
		c.rep.err(path, fmt.Sprintf("%q is no number of replicas", fmt.Sprint(v)), fmt.Sprintf("use 0 to %d", spec.MaxReplicas))
		return 1 // one message is enough
	}
	return int(n)
}

// positive reads a number above zero.
func (c *converter) positive(path string, v any) float64 {
	n, err := strconv.ParseFloat(text(c.rep, path, v), 64)
	if err != nil || !(n > 0 && n <= math.MaxInt32) {
		c.rep.err(path, fmt.Sprintf("%q is no number above zero", fmt.Sprint(v)), "")
		return 1 // one message is enough
	}
	return n
}

// share reads 65%.
func (c *converter) share(path string, v any) float64 {
	s, ok := strings.CutSuffix(text(c.rep, path, v), "%")
	n, err := strconv.ParseFloat(strings.TrimSpace(s), 64)
	if !ok || err != nil || !(n > 0 && n <= 10_000) {
		c.rep.err(path, fmt.Sprintf("%q is no share", fmt.Sprint(v)), "write it as 65%")
		return 0.1 // one message is enough
	}
	return n / 100
}
