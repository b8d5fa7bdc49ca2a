package server

import (
	"baton/client/api"
	"baton/internal/manager/store"
	"baton/internal/model/cluster"
	"baton/internal/model/spec"
)

// ingressConflicts refuses rules for requests that go to a service of another stack or want another certificate for its host, and rules
// beside a published port where the nodes serve them. What collides within the stack is found by its validation.
func ingressConflicts(snap store.Snapshot, want *spec.Stack) error {
	mine := newIngressUse()
	for i := range want.Services {
		mine.add(&want.Services[i])
	}
	if len(mine.ruled) == 0 && len(mine.published) == 0 {
		return nil
	}
	for svc := range store.All[*cluster.Service](snap) {
		if svc.StackName == want.Name {
			continue
		}
		rev, ok := store.Get[*cluster.Revision](snap, svc.Revision)
		if !ok {
			continue
		}
		name := svc.StackName + "/" + svc.Name
		for _, g := range rev.Spec.Ingress {
			if own, taken := mine.rules[g.Key()]; taken {
				return api.Errorf(api.CodeConflict, "requests for %s go to service %s already", g, name).
					At("services." + own + ".x-ingress").WithMend("choose another host or path, or remove the other service first")
			}
			if own, same := mine.hosts[g.Host]; same && own.tls != g.TLS {
				return api.Errorf(api.CodeConflict, "host %s has tls %s here and %s with service %s: a host has one certificate", g.Host, own.tls, g.TLS, name).
					At("services." + own.service + ".x-ingress").WithMend("give all rules of the host the same tls; secrets are of one stack, so its rules must be too")
			}
		}
		theirs := newIngressUse()
		theirs.add(&rev.Spec)
		for port := range mine.ruled {
			if _, taken := theirs.published[port]; taken {
				return api.Errorf(api.CodeConflict, "ingress rules are served on port %d/tcp, which service %s publishes", port, name).
					At("services." + mine.ruled[port] + ".x-ingress").WithMend("give the other service a rule instead of the port, or remove it first")
			}
		}
		for port := range mine.published {
			if _, taken := theirs.ruled[port]; taken {
				return api.Errorf(api.CodeConflict, "published port %d/tcp is where ingress rules are served, and service %s has some", port, name).
					At("services." + mine.published[port] + ".ports").WithMend("give the service a rule instead, or publish another port")
			}
		}
	}
	return nil
}

// ingressUse is what services have of the edge, and what they publish where it serves.
type ingressUse struct {
	rules            map[string]string // service by rule
	hosts            map[string]hostUse
	ruled, published map[uint16]string // service by port
}

type hostUse struct {
	service string
	tls     spec.IngressTLS
}

func newIngressUse() ingressUse {
	return ingressUse{rules: make(map[string]string), hosts: make(map[string]hostUse), ruled: make(map[uint16]string), published: make(map[uint16]string)}
}

func (u ingressUse) add(v *spec.Service) {
	for _, g := range v.Ingress {
		u.rules[g.Key()], u.ruled[spec.IngressPort] = v.Name, v.Name
		u.hosts[g.Host] = hostUse{v.Name, g.TLS}
		if g.TLS.Enabled() {
			u.ruled[spec.IngressPortTLS] = v.Name
		}
	}
	for _, p := range v.Ports {
		if p.Protocol == "tcp" && (p.Published == spec.IngressPort || p.Published == spec.IngressPortTLS) {
			u.published[p.Published] = v.Name
		}
	}
}
