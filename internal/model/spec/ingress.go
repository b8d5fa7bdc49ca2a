package spec

import (
	"fmt"
	"path"
	"regexp"
	"strings"
)

// IngressPort is where every node serves the ingress rules. No service can publish it beside them.
const IngressPort = 80

// maxIngress bounds the rules of a service.
const maxIngress = 100

// maxIngressPath bounds a rule's path; no program has longer ones to tell services apart.
const maxIngressPath = 1024

// Ingress is an L7 rule: HTTP requests that it matches go to a ready task of the service. Of several rules the one with the
// more exact host wins, then the one with the longer path.
type Ingress struct {
	// Host is a name, "*." and a name for every name one label below it, or empty for every host.
	Host string `json:"host,omitempty"`
	// Path is a prefix of whole segments: /api matches /api and /api/x, not /apis. Default "/".
	Path string `json:"path"`
	// Port of the tasks; default: the only TCP port that the service publishes. Zero with Redirect.
	Port uint16 `json:"port"`
	RuleKeys
	// TLS says whose certificate the rule is served with; zero: it is served as plain HTTP.
	TLS IngressTLS `json:"tls,omitzero"`
}

// Key is the same for two rules that match the same requests.
func (g Ingress) Key() string { return g.Host + g.Path }

// String is the rule as a user would say it.
func (g Ingress) String() string {
	if g.Host == "" {
		return "(any host)" + g.Path
	}
	return g.Key()
}

func (v *Service) setIngressDefaults() {
	only := v.onlyPort()
	for i := range v.Ingress {
		g := &v.Ingress[i]
		g.Host = strings.TrimSuffix(strings.ToLower(g.Host), ".")
		setDefault(&g.Path, "/")
		if len(g.Path) > 1 {
			g.Path = strings.TrimSuffix(g.Path, "/")
		}
		if g.Redirect == nil {
			setDefault(&g.Port, only)
		}
		g.setDefaults()
	}
}

// onlyPort is the TCP port that the service publishes, zero when there are several.
func (v *Service) onlyPort() uint16 {
	only := uint16(0)
	for _, p := range v.Ports {
		if p.Protocol != "tcp" || p.Target == only {
			continue
		}
		if only != 0 {
			return 0
		}
		only = p.Target
	}
	return only
}

var (
	hostRE = regexp.MustCompile(`^(\*\.)?([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)*[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)
	pathRE = regexp.MustCompile(`^/[^\x00-\x20\x7f?#*%\\]*$`)
)

func (c *checker) ingress(at string, v *Service) {
	if len(v.Ingress) == 0 {
		return
	}
	if len(v.Ingress) > maxIngress {
		c.add(at+"ingress", fmt.Sprintf("%d rules; at most %d are allowed", len(v.Ingress), maxIngress), "split the service, or use wider rules")
	}
	if v.NetworkMode != "" {
		c.add(at+"ingress", "a service with network mode "+v.NetworkMode+" has no address to send requests to", "join it to a network")
	}
	for i, g := range v.Ingress {
		p := fmt.Sprintf("%singress[%d].", at, i)
		switch {
		case g.Host == "":
		case g.Host == "*":
			c.add(p+"host", "* alone is no host", "leave host out to match every host")
		case len(g.Host) > 253 || !hostRE.MatchString(g.Host):
			c.add(p+"host", "invalid host "+quote(g.Host), "write a name such as shop.example.com or *.example.com, without scheme and port")
		}
		switch {
		case !pathRE.MatchString(g.Path) || len(g.Path) > maxIngressPath:
			c.add(p+"path", "invalid path "+quote(g.Path), "write a prefix such as /api, without query and wildcards")
		case path.Clean(g.Path) != g.Path:
			c.add(p+"path", "path "+quote(g.Path)+" has empty or dot segments", "write "+path.Clean(g.Path))
		}
		c.ingressTLS(p, g)
		c.ruleKeys(p, &g.RuleKeys)
		if g.Redirect != nil {
			if g.Port != 0 {
				c.add(p+"port", "a rule that redirects sends no request to a port", "remove the port")
			}
			continue
		}
		if g.Port == 0 {
			c.add(p+"port", "no port of the service to send requests to", "give one from 1 to 65535")
		}
	}
}

// ingressRules finds two rules that match the same requests, and ports published where the rules are served.
func (c *checker) ingressRules() {
	owners := make(map[string]string)
	for i := range c.stack.Services {
		v := &c.stack.Services[i]
		for j, g := range v.Ingress {
			p := fmt.Sprintf("services.%s.ingress[%d]", v.Name, j)
			if other, taken := owners[g.Key()]; taken {
				c.add(p, fmt.Sprintf("requests for %s go to service %s already", g, other), "choose another host or path")
				continue
			}
			owners[g.Key()] = v.Name
		}
	}
	if len(owners) == 0 {
		return
	}
	secure := c.ingressHosts()
	for i := range c.stack.Services {
		v := &c.stack.Services[i]
		for j, p := range v.Ports {
			if p.Protocol == "tcp" && (p.Published == IngressPort || secure && p.Published == IngressPortTLS) {
				c.add(fmt.Sprintf("services.%s.ports[%d].published", v.Name, j),
					fmt.Sprintf("port %d/tcp is where ingress rules are served", p.Published), "give the service a rule instead, or choose another port")
			}
		}
	}
}
