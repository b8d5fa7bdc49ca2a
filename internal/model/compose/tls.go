package compose

import "baton/internal/model/spec"

// ingressTLS reads tls of a rule: a word, or the secrets that hold a certificate and its key.
func (c *converter) ingressTLS(path string, v any) spec.IngressTLS {
	m, own := v.(map[string]any)
	if !own {
		switch word := text(c.rep, path, v); word {
		case "", "off", "false": // YAML 1.1 reads off as false
			return spec.IngressTLS{}
		case string(spec.TLSAuto), string(spec.TLSInternal):
			return spec.IngressTLS{From: spec.TLSSource(word)}
		default:
			c.rep.err(path, "unknown source of certificates "+quote(word), choose(word, "auto", "internal", "off")+`, or {cert: SECRET, key: SECRET}`)
			return spec.IngressTLS{}
		}
	}
	for key := range m {
		if key != "cert" && key != "key" {
			c.rep.err(join(path, key), "unknown key", "a certificate of your own is {cert: SECRET, key: SECRET}")
		}
	}
	t := spec.IngressTLS{From: spec.TLSSecret, Cert: text(c.rep, join(path, "cert"), m["cert"]), Key: text(c.rep, join(path, "key"), m["key"])}
	if t.Cert == "" || t.Key == "" {
		c.rep.err(path, "a certificate of your own needs both cert and key", "name two secrets of the stack: {cert: SECRET, key: SECRET}; one that holds both may be named twice")
	}
	return t
}
