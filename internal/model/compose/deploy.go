package compose

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/compose-spec/compose-go/v2/types"

	"baton/internal/model/spec"
)

func (c *converter) deploy() {
	d := c.in.Deploy
	if d == nil {
		d = &types.DeployConfig{}
	}
	switch d.Mode {
	case "", "replicated":
		c.out.Mode = spec.Replicated
	case "global":
		c.out.Mode = spec.Global
	case "replicated-job", "global-job":
		c.rep.err(c.at("deploy.mode"), "jobs are not run yet", "remove the service, or give it a profile")
	default:
		mend := suggest(d.Mode, []string{"replicated", "global"})
		if mend == "" {
			mend = "use replicated or global"
		}
		c.rep.err(c.at("deploy.mode"), fmt.Sprintf("unknown mode %q", d.Mode), mend)
	}
	c.replicas(d)
	switch e := d.EndpointMode; e {
	case "", string(spec.EndpointVIP), string(spec.EndpointDNSRR):
		c.out.EndpointMode = spec.EndpointMode(e)
	default:
		c.rep.err(c.at("deploy.endpoint_mode"), fmt.Sprintf("unknown mode %q", e), choose(e, "vip", "dnsrr"))
	}
	c.out.Labels = emptyNil(d.Labels)
	c.restart(d.RestartPolicy)
	c.out.Update = c.update("deploy.update_config", d.UpdateConfig)
	c.out.Rollback = c.update("deploy.rollback_config", d.RollbackConfig)
}

func (c *converter) replicas(d *types.DeployConfig) {
	c.out.Replicas = 1
	if c.out.Mode == spec.Global {
		c.out.Replicas = 0
		if d.Replicas != nil || c.in.Scale != nil {
			c.rep.err(c.at("deploy.replicas"), "a global service runs one task on every node", "remove replicas, or use mode: replicated")
		}
		return
	}
	if d.Replicas != nil {
		c.out.Replicas = *d.Replicas
	}
	if c.in.Scale != nil {
		if d.Replicas != nil && *d.Replicas != *c.in.Scale {
			c.rep.err(c.at("scale"), "differs from deploy.replicas", "keep deploy.replicas")
		}
		c.out.Replicas = *c.in.Scale
	}
}

func (c *converter) restart(p *types.RestartPolicy) {
	out := &c.out.Restart
	if p == nil {
		c.restartKey()
		return
	}
	switch p.Condition {
	case "", "any":
		out.Condition = spec.RestartAny
	case "on-failure", "none":
		out.Condition = spec.RestartCondition(p.Condition)
	default:
		c.rep.err(c.at("deploy.restart_policy.condition"), fmt.Sprintf("unknown condition %q", p.Condition), choose(p.Condition, "none", "on-failure", "any"))
	}
	if p.Delay != nil {
		out.Delay = explicit(time.Duration(*p.Delay))
	}
	if p.Window != nil {
		out.ResetAfter = explicit(time.Duration(*p.Window))
	}
	if p.MaxAttempts != nil {
		out.MaxAttempts = int(min(*p.MaxAttempts, math.MaxInt32))
	}
}

// restartKey maps the container's own restart key, which counts where deploy.restart_policy is silent.
func (c *converter) restartKey() {
	out := &c.out.Restart
	policy, count, counted := strings.Cut(c.in.Restart, ":")
	switch policy {
	case "":
		out.Condition = spec.RestartAny
	case "no", "false":
		out.Condition = spec.RestartNone
	case "always", "unless-stopped":
		out.Condition = spec.RestartAny
	case "on-failure":
		out.Condition = spec.RestartOnFailure
		if counted {
			n, err := strconv.ParseUint(count, 10, 31)
			if err != nil {
				c.rep.err(c.at("restart"), fmt.Sprintf("%q is no number of attempts", count), "write on-failure:3")
			}
			out.MaxAttempts = int(n)
		}
	default:
		c.rep.err(c.at("restart"), fmt.Sprintf("unknown policy %q", c.in.Restart), choose(policy, "no", "always", "on-failure", "unless-stopped"))
	}
}

func (c *converter) update(key string, u *types.UpdateConfig) spec.UpdatePolicy {
	if u == nil {
		return spec.UpdatePolicy{}
	}
	out := spec.UpdatePolicy{
		Order: spec.UpdateOrder(u.Order), Delay: time.Duration(u.Delay), Monitor: time.Duration(u.Monitor),
		FailureAction: spec.FailureAction(u.FailureAction), MaxFailureRatio: decimal(u.MaxFailureRatio),
	}
	if u.Monitor == 0 && c.rep.src.has(c.at(key+".monitor")) {
		out.Monitor = atOnce // asked for, not left out
	}
	if u.Parallelism != nil {
		out.Parallelism = spec.AllAtOnce
		if *u.Parallelism > 0 {
			out.Parallelism = int(min(*u.Parallelism, spec.AllAtOnce))
		}
	}
	return out
}

// decimal gives the number that was written: 0.1, not the nearest float32.
func decimal(f float32) float64 {
	d, err := strconv.ParseFloat(strconv.FormatFloat(float64(f), 'g', -1, 32), 64)
	if err != nil {
		return math.NaN() // Validate refuses it
	}
	return d
}

func (c *converter) placement() {
	out := &c.out.Placement
	if c.in.Platform != "" {
		out.Platforms = []string{c.in.Platform}
	}
	if d := c.in.Deploy; d != nil {
		out.Constraints = d.Placement.Constraints
		out.MaxReplicasPerNode = int(min(d.Placement.MaxReplicas, math.MaxInt32))
		for _, p := range d.Placement.Preferences {
			out.Spread = append(out.Spread, p.Spread)
		}
	}
	x, ok := c.in.Extensions["x-placement"]
	if !ok {
		return
	}
	path, strategy := c.at("x-placement"), x
	if m, ok := x.(map[string]any); ok {
		path, strategy = path+".strategy", m["strategy"]
	}
	switch s := text(c.rep, path, strategy); s {
	case "", spec.StrategySpread, spec.StrategyPack:
		out.Strategy = s
	default:
		c.rep.err(path, fmt.Sprintf("unknown strategy %q", s), choose(s, spec.StrategyPack, spec.StrategySpread))
	}
}

// rollout reads x-rollout.
func (c *converter) rollout() {
	x, ok := c.in.Extensions["x-rollout"]
	if !ok {
		return
	}
	path := c.at("x-rollout")
	m := mapping(c.rep, path, x)
	if v, ok := m["drain"]; ok {
		c.out.Container.DrainDeadline = explicit(duration(c.rep, path+".drain", v))
	}
	if v, ok := m["deadline"]; ok {
		c.out.Update.Deadline = duration(c.rep, path+".deadline", v)
		c.out.Rollback.Deadline = c.out.Update.Deadline
	}
	c.judged(path, m)
}

// duration reads a time of one of our own keys.
func duration(rep *report, path string, v any) time.Duration {
	var d types.Duration
	if err := d.DecodeMapstructure(v); err != nil || d < 0 {
		rep.errf(path, "%q is not a duration such as 10s", fmt.Sprint(v))
		return 0
	}
	return time.Duration(d)
}
