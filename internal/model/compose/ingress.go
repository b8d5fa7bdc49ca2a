package compose

import (
	"fmt"

	"baton/internal/model/spec"
)

// ingressList gives the rules of x-ingress, which may be written as one mapping or as a list of them.
func ingressList(v any) []any {
	switch v := v.(type) {
	case nil:
		return nil
	case []any:
		return v
	}
	return []any{v}
}

// ingress reads x-ingress.
func (c *converter) ingress() {
	v := c.in.Extensions["x-ingress"]
	_, listed := v.([]any)
	for i, rule := range ingressList(v) {
		path := c.at("x-ingress")
		if listed {
			path = fmt.Sprintf("%s[%d]", path, i)
		}
		if m := mapping(c.rep, path, rule); m != nil {
			c.ingressRule(path, m)
		}
	}
}

func (c *converter) ingressRule(path string, m map[string]any) {
	closed := false
	for _, key := range []string{"auth"} {
		if _, set := m[key]; set {
			c.rep.err(join(path, key), "this key cannot be honoured yet", "remove the rule: without "+key+" it would be open to everybody")
			closed = true
		}
	}
	if closed {
		return
	}
	g := spec.Ingress{Host: text(c.rep, join(path, "host"), m["host"]), Path: text(c.rep, join(path, "path"), m["path"])}
	g.TLS = c.ingressTLS(join(path, "tls"), m["tls"])
	g.RuleKeys = c.ruleKeys(path, m)
	if g.Redirect != nil {
		if _, set := m["port"]; set {
			c.rep.err(join(path, "port"), "a rule that redirects sends no request to a port", "remove port, or redirect")
		}
		c.out.Ingress = append(c.out.Ingress, g)
		return
	}
	if port := text(c.rep, join(path, "port"), m["port"]); port != "" {
		g.Port = c.port(join(path, "port"), port)
	} else if found := c.shownPorts(); len(found) == 1 {
		g.Port = c.port(path, found[0])
	} else {
		c.rep.err(path, fmt.Sprintf("ports and expose show %d ports to send requests to", len(found)), "name one: port: 8080")
		return
	}
	c.out.Ingress = append(c.out.Ingress, g)
}
