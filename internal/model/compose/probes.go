package compose

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/compose-spec/compose-go/v2/types"

	"baton/internal/model/spec"
)

// The defaults of x-probes; those of healthcheck are spec's.
const (
	probeInterval = 2 * time.Second
	probeTimeout  = time.Second
)

// probes reads healthcheck and x-probes. The healthcheck serves as ready and live wherever x-probes sets none.
func (c *converter) probes() {
	out := &c.out.Probes
	var known bool
	if x, ok := c.in.Extensions["x-probes"]; ok {
		path := c.at("x-probes")
		m := mapping(c.rep, path, x)
		out.Ready = c.probe(path+".ready", m["ready"])
		out.Live = c.probe(path+".live", m["live"])
		out.Start = c.probe(path+".start", m["start"])
		known = out.Ready != nil || out.Live != nil
	}
	health, set := c.healthcheck()
	if health != nil && out.Ready == nil {
		p := *health
		out.Ready = &p
	}
	if health != nil && out.Live == nil {
		p := *health
		out.Live = &p
	}
	out.FromImage = !set && !known
}

// healthcheck makes a probe of the Compose key. set is false when the image's own check counts.
func (c *converter) healthcheck() (p *spec.Probe, set bool) {
	h := c.in.HealthCheck
	if h == nil {
		return nil, false
	}
	if h.Disable {
		return nil, true
	}
	path := c.at("healthcheck")
	if len(h.Test) == 0 {
		c.rep.warn(path, "without a test the image's own health check is used as it is, also its times", "add the test")
		return nil, false
	}
	p = &spec.Probe{}
	switch kind, args := h.Test[0], h.Test[1:]; kind {
	case "NONE":
		return nil, true
	case "CMD":
		p.Exec = args
	case "CMD-SHELL":
		p.Exec = []string{"/bin/sh", "-c", strings.Join(args, " ")}
	default:
		c.rep.err(path+".test", fmt.Sprintf("a list starts with CMD, CMD-SHELL or NONE, not %q", kind), `write ["CMD", …], or one string for the shell`)
		return nil, true
	}
	if len(h.Test) < 2 || strings.TrimSpace(strings.Join(h.Test[1:], "")) == "" {
		c.rep.err(path+".test", "names no command", `write ["CMD", "program", "argument"]`)
		return nil, true
	}
	for _, d := range []struct {
		from *types.Duration
		to   *time.Duration
	}{{h.Interval, &p.Interval}, {h.Timeout, &p.Timeout}, {h.StartPeriod, &p.StartPeriod}, {h.StartInterval, &p.StartInterval}} {
		if d.from != nil {
			*d.to = time.Duration(*d.from)
		}
	}
	if h.Retries != nil {
		p.Failures = int(min(*h.Retries, math.MaxInt32))
	}
	return p, true
}

// probeKeys are the keys of one probe.
var probeKeys = []string{"http", "tcp", "exec", "grpc", "every", "timeout", "failures", "successes"}

func (c *converter) probe(path string, v any) *spec.Probe {
	if v == nil {
		return nil
	}
	m := mapping(c.rep, path, v)
	if m == nil {
		return nil
	}
	for k := range m {
		if !slices.Contains(probeKeys, k) {
			c.rep.err(join(path, k), fmt.Sprintf("unknown key %q", k), choose(k, probeKeys...))
		}
	}
	p := &spec.Probe{Interval: probeInterval, Timeout: probeTimeout}
	if v, ok := m["every"]; ok {
		p.Interval = explicit(duration(c.rep, path+".every", v))
	}
	if v, ok := m["timeout"]; ok {
		p.Timeout = explicit(duration(c.rep, path+".timeout", v))
	}
	p.Failures = c.count(path+".failures", m["failures"])
	p.Successes = c.count(path+".successes", m["successes"])
	if _, ok := m["grpc"]; ok {
		c.rep.err(path+".grpc", "gRPC probes are not run yet", "use http, tcp or exec")
		return nil
	}
	actions := 0
	if v, ok := m["http"]; ok {
		actions++
		p.HTTP = c.httpProbe(path+".http", v)
	}
	if v, ok := m["tcp"]; ok {
		actions++
		p.TCP = c.tcpProbe(path+".tcp", v)
	}
	if v, ok := m["exec"]; ok {
		actions++
		p.Exec = c.execProbe(path+".exec", v)
	}
	if actions != 1 {
		c.rep.err(path, fmt.Sprintf("a probe asks one thing, this one %d", actions), "give exactly one of http, tcp and exec")
		return nil
	}
	if p.HTTP == nil && p.TCP == nil && p.Exec == nil {
		return nil // reported
	}
	return p
}

// count reads a number of times; zero when it is not given.
func (c *converter) count(path string, v any) int {
	if v == nil {
		return 0
	}
	n, err := strconv.Atoi(fmt.Sprint(v))
	if err != nil || n < 1 || n > 1000 {
		c.rep.errf(path, "%q is not a number from 1 to 1000", fmt.Sprint(v))
		return 0
	}
	return n
}

// httpProbe reads "/path", ":port/path" or {path, port, scheme, host}.
func (c *converter) httpProbe(path string, v any) *spec.HTTPProbe {
	p := &spec.HTTPProbe{}
	port := ""
	switch v := v.(type) {
	case string:
		rest := v
		if after, ok := strings.CutPrefix(v, ":"); ok {
			port, rest, _ = strings.Cut(after, "/")
			rest = "/" + rest
		}
		p.Path = rest
	case map[string]any:
		for k, e := range v {
			switch k {
			case "path":
				p.Path = text(c.rep, path+".path", e)
			case "port":
				port = text(c.rep, path+".port", e)
			case "scheme":
				p.Scheme = text(c.rep, path+".scheme", e)
			case "host":
				p.Host = text(c.rep, path+".host", e)
			default:
				c.rep.err(join(path, k), fmt.Sprintf("unknown key %q", k), choose(k, "path", "port", "scheme", "host"))
			}
		}
	default:
		c.rep.err(path, "must be a path or a mapping", `write "/ready", ":8080/ready" or {path: /ready, port: 8080}`)
		return nil
	}
	if !strings.HasPrefix(p.Path, "/") && p.Path != "" {
		c.rep.err(path, fmt.Sprintf("%q does not start with /", p.Path), `write "/ready" or ":8080/ready"`)
		return nil
	}
	if port == "" {
		p.Port = c.onlyPort(path)
	} else {
		p.Port = c.port(path, port)
	}
	if p.Port == 0 {
		return nil
	}
	return p
}

// tcpProbe reads 6379, ":6379" or {port: 6379}.
func (c *converter) tcpProbe(path string, v any) *spec.TCPProbe {
	if m, ok := v.(map[string]any); ok {
		for k := range m {
			if k != "port" {
				c.rep.err(join(path, k), fmt.Sprintf("unknown key %q", k), "use port")
			}
		}
		v = m["port"]
	}
	return &spec.TCPProbe{Port: c.port(path, strings.TrimPrefix(text(c.rep, path, v), ":"))}
}

// execProbe reads a list of arguments, or one string for the shell.
func (c *converter) execProbe(path string, v any) []string {
	switch v := v.(type) {
	case string:
		if strings.TrimSpace(v) != "" {
			return []string{"/bin/sh", "-c", v}
		}
	case []any:
		var argv []string
		for i, e := range v {
			argv = append(argv, text(c.rep, fmt.Sprintf("%s[%d]", path, i), e))
		}
		if len(argv) > 0 && argv[0] != "" {
			return argv
		}
	}
	c.rep.err(path, "names no command", `write ["program", "argument"], or one string for the shell`)
	return nil
}

// onlyPort is the port of a probe that names none: the one that the service serves on, if the file shows only one.
func (c *converter) onlyPort(path string) uint16 {
	var rules []any
	for _, r := range ingressList(c.in.Extensions["x-ingress"]) {
		if m, ok := r.(map[string]any); ok {
			rules = append(rules, m["port"])
		}
	}
	found := c.shownPorts(rules...)
	if len(found) != 1 {
		c.rep.err(path, fmt.Sprintf("the service shows %d ports to ask", len(found)), `name one: ":8080/ready"`)
		return 0
	}
	return c.port(path, found[0])
}

// shownPorts are the ports that ports and expose show, and the given ones, each once.
func (c *converter) shownPorts(more ...any) []string {
	var found []string
	add := func(v any) {
		s, _, _ := strings.Cut(fmt.Sprint(v), "/")
		if v != nil && !slices.Contains(found, s) {
			found = append(found, s)
		}
	}
	for _, v := range more {
		add(v)
	}
	for _, p := range c.in.Ports {
		add(p.Target)
	}
	for _, e := range c.in.Expose {
		add(e)
	}
	return found
}
