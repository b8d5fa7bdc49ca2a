package spec

import (
	"fmt"
	"slices"
	"strings"
)

// IngressPortTLS is where every node serves the ingress rules with TLS.
const IngressPortTLS = 443

// IngressTLS is whose certificate a rule is served with. Its zero value is plain HTTP.
type IngressTLS struct {
	From TLSSource `json:"from,omitempty"`
	// Cert and Key name secrets of the stack that hold a certificate with its chain and its private key (PEM); for TLSSecret.
	Cert string `json:"cert,omitempty"`
	Key  string `json:"key,omitempty"`
}

// TLSSource is where a certificate comes from.
type TLSSource string

// The sources of certificates.
const (
	TLSAuto     TLSSource = "auto"     // an authority that speaks ACME
	TLSInternal TLSSource = "internal" // the cluster's own authority for services
	TLSSecret   TLSSource = "secret"   // the stack's own, in secrets
)

// Enabled reports whether a rule is served with TLS.
func (t IngressTLS) Enabled() bool { return t.From != "" }

// String is the setting as a user would say it.
func (t IngressTLS) String() string {
	switch t.From {
	case "":
		return "off"
	case TLSSecret:
		return "secrets " + t.Cert + " and " + t.Key
	}
	return string(t.From)
}

// ingressTLS checks the certificate of one rule.
func (c *checker) ingressTLS(at string, g Ingress) {
	if !g.TLS.Enabled() {
		return
	}
	c.oneOf(at+"tls", string(g.TLS.From), string(TLSAuto), string(TLSInternal), string(TLSSecret))
	switch {
	case g.Host == "":
		c.add(at+"tls", "a certificate is for a host, and the rule is for every host", "give the rule a host, or leave tls out")
	case g.TLS.From == TLSAuto && strings.HasPrefix(g.Host, "*."):
		c.add(at+"tls", "a certificate for "+quote(g.Host)+" cannot be obtained: that needs control over its DNS zone",
			"name each host in a rule of its own, or give a certificate in secrets")
	}
	if g.TLS.From != TLSSecret {
		return
	}
	for _, name := range []string{g.TLS.Cert, g.TLS.Key} {
		if !slices.ContainsFunc(c.stack.Secrets, func(x Secret) bool { return x.Name == name }) {
			c.add(at+"tls", "there is no secret "+quote(name), "declare it under secrets")
		}
	}
}

// ingressHosts finds hosts with two kinds of certificate, and reports whether any rule has TLS.
func (c *checker) ingressHosts() (secure bool) {
	first := make(map[string]Ingress)
	for i := range c.stack.Services {
		v := &c.stack.Services[i]
		for j, g := range v.Ingress {
			secure = secure || g.TLS.Enabled()
			other, seen := first[g.Host]
			if !seen {
				first[g.Host] = g
				continue
			}
			if other.TLS != g.TLS {
				c.add(fmt.Sprintf("services.%s.ingress[%d].tls", v.Name, j),
					fmt.Sprintf("rules of host %s have tls %s and %s: a host has one certificate", g.Host, other.TLS, g.TLS), "give all rules of the host the same tls")
			}
		}
	}
	return secure
}
