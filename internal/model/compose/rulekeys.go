package compose

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/docker/go-units"

	"baton/internal/model/spec"
)

// The keys of the mappings in a rule of x-ingress.
var (
	redirectKeys     = []string{"url", "code"}
	ruleHeaderKeys   = []string{"request", "response"}
	headerChangeKeys = []string{"set", "add", "remove"}
	ruleTimeoutKeys  = []string{"header", "idle", "total"}
	rateLimitKeys    = []string{"rate", "burst", "header"}
)

// ruleKeys reads what a rule does besides leading requests to tasks.
func (c *converter) ruleKeys(path string, m map[string]any) (k spec.RuleKeys) {
	if v, ok := m["redirect"]; ok {
		k.Redirect = c.redirect(path+".redirect", v)
	}
	if h := c.submapping(path+".headers", m["headers"], ruleHeaderKeys); h != nil {
		k.RequestHeaders = c.headerChange(path+".headers.request", h["request"])
		k.ResponseHeaders = c.headerChange(path+".headers.response", h["response"])
	}
	if v, ok := m["body_limit"]; ok {
		s := text(c.rep, path+".body_limit", v)
		n, err := units.RAMInBytes(s)
		if err != nil || n <= 0 {
			c.rep.err(path+".body_limit", fmt.Sprintf("%q is no size", s), "write it as 10m")
			n = 0
		}
		k.BodyLimit = spec.Bytes(n)
	}
	if v, ok := m["timeout"]; ok {
		k.Timeout = c.ruleTimeout(path+".timeout", v)
	}
	if v, ok := m["rate_limit"]; ok {
		k.RateLimit = c.rateLimit(path+".rate_limit", v)
	}
	k.Allow = c.prefixes(path, "allow", m)
	k.Trusted = c.prefixes(path, "trusted", m)
	if v, ok := m["sticky"]; ok {
		if k.Sticky, ok = v.(bool); !ok {
			c.rep.err(path+".sticky", "must be true or false", "write sticky: true; the cookie's name is the edge's")
		}
	}
	k.Protocol = spec.Protocol(text(c.rep, path+".protocol", m["protocol"]))
	if v, ok := m["access_log"]; ok {
		// YAML 1.1 reads off as false.
		if k.AccessLog = spec.AccessLog(text(c.rep, path+".access_log", v)); v == false {
			k.AccessLog = spec.LogOff
		}
	}
	return k
}

// redirect reads a URL, or a mapping with one.
func (c *converter) redirect(path string, v any) *spec.Redirect {
	if s, ok := v.(string); ok {
		return &spec.Redirect{URL: s}
	}
	m := c.submapping(path, v, redirectKeys)
	r := &spec.Redirect{URL: text(c.rep, path+".url", m["url"])}
	if v, ok := m["code"]; ok {
		n, err := strconv.Atoi(text(c.rep, path+".code", v))
		if err != nil || n == 0 {
			c.rep.err(path+".code", fmt.Sprintf("%q is no status", fmt.Sprint(v)), "use 301, 302, 303, 307 or 308")
		}
		r.Code = n
	}
	return r
}

func (c *converter) headerChange(path string, v any) *spec.HeaderChange {
	m := c.submapping(path, v, headerChangeKeys)
	if len(m) == 0 {
		return nil
	}
	h := &spec.HeaderChange{Set: c.headerValues(path+".set", m["set"]), Add: c.headerValues(path+".add", m["add"])}
	switch list := m["remove"].(type) {
	case nil:
	case string:
		h.Remove = []string{list}
	case []any:
		for i, e := range list {
			h.Remove = append(h.Remove, text(c.rep, fmt.Sprintf("%s.remove[%d]", path, i), e))
		}
	default:
		c.rep.err(path+".remove", "must be a list of names", "write [X-Powered-By]")
	}
	return h
}

func (c *converter) headerValues(path string, v any) map[string]string {
	m := mapping(c.rep, path, v)
	if len(m) == 0 {
		return nil
	}
	out := make(map[string]string, len(m))
	for name, v := range m {
		out[name] = text(c.rep, join(path, name), v)
	}
	return out
}

// ruleTimeout reads a mapping, or one time: that for the header.
func (c *converter) ruleTimeout(path string, v any) *spec.RuleTimeout {
	if _, ok := v.(map[string]any); !ok {
		return &spec.RuleTimeout{Header: duration(c.rep, path, v)}
	}
	m := c.submapping(path, v, ruleTimeoutKeys)
	t := new(spec.RuleTimeout)
	if v, ok := m["header"]; ok {
		t.Header = duration(c.rep, path+".header", v)
	}
	if v, ok := m["idle"]; ok {
		t.Idle = duration(c.rep, path+".idle", v)
	}
	if v, ok := m["total"]; ok {
		t.Total = duration(c.rep, path+".total", v)
	}
	return t
}

// rateLimit reads a rate such as 10/s, or a mapping with one.
func (c *converter) rateLimit(path string, v any) *spec.RateLimit {
	m, ok := v.(map[string]any)
	if !ok {
		return &spec.RateLimit{Rate: c.rate(path, v)}
	}
	m = c.submapping(path, m, rateLimitKeys)
	l := &spec.RateLimit{Rate: c.rate(path+".rate", m["rate"]), Header: text(c.rep, path+".header", m["header"])}
	if v, ok := m["burst"]; ok {
		l.Burst = int(c.positive(path+".burst", v))
	}
	return l
}

// rate reads 10, 10/s, 100/m or 1000/h as requests per second.
func (c *converter) rate(path string, v any) float64 {
	s := text(c.rep, path, v)
	count, unit, _ := strings.Cut(s, "/")
	n, err := strconv.ParseFloat(count, 64)
	per, known := map[string]float64{"": 1, "s": 1, "m": 60, "h": 3600}[unit]
	if err != nil || !known || !(n > 0) {
		c.rep.err(path, fmt.Sprintf("%q is no rate", s), "write it as 10/s, 100/m or 1000/h")
		return 1 // one message is enough
	}
	return n / per
}

// prefixes reads one network or address, or a list of them. A list that is there and empty would be open to everybody where the file
// says nobody: it is refused.
func (c *converter) prefixes(path, key string, m map[string]any) (out []string) {
	v, ok := m[key]
	if !ok {
		return nil
	}
	path = join(path, key)
	list, ok := v.([]any)
	if !ok {
		list = []any{v}
	}
	if len(list) == 0 || v == nil {
		c.rep.err(path, "names no network", "write [10.0.0.0/8], or remove the key")
	}
	for i, e := range list {
		s := text(c.rep, path, e)
		n, err := netip.ParsePrefix(s)
		if err != nil {
			var a netip.Addr
			if a, err = netip.ParseAddr(s); err == nil {
				n = netip.PrefixFrom(a.WithZone("").Unmap(), a.Unmap().BitLen())
			}
		}
		if err != nil {
			c.rep.err(fmt.Sprintf("%s[%d]", path, i), fmt.Sprintf("%q is no network", s), "write an address, or a network such as 10.0.0.0/8")
			continue
		}
		out = append(out, n.Masked().String())
	}
	return out
}
