package server

import (
	"slices"

	"baton/client/api"
	"baton/internal/manager/store"
	"baton/internal/model/cluster"
	"baton/internal/model/spec"
)

// ingressConflicts refuses rules for requests that go to a service of another stack, and rules beside a published port where
// the nodes serve them. What collides within the stack is found by its validation.
func ingressConflicts(snap store.Snapshot, want *spec.Stack) error {
	rules, ruled := make(map[string]string), ""
	published := ""
	for i := range want.Services {
		v := &want.Services[i]
		for _, g := range v.Ingress {
			rules[g.Key()], ruled = v.Name, v.Name
		}
		if takesIngressPort(v) {
			published = v.Name
		}
	}
	if ruled == "" && published == "" {
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
		for _, g := range rev.Spec.Ingress {
			if name, taken := rules[g.Key()]; taken {
				return api.Errorf(api.CodeConflict, "requests for %s go to service %s/%s already", g, svc.StackName, svc.Name).
					At("services." + name + ".x-ingress").WithMend("choose another host or path, or remove the other service first")
			}
		}
		switch {
		case ruled != "" && takesIngressPort(&rev.Spec):
			return api.Errorf(api.CodeConflict, "ingress rules are served on port %d/tcp, which service %s/%s publishes", spec.IngressPort, svc.StackName, svc.Name).
				At("services." + ruled + ".x-ingress").WithMend("give the other service a rule instead of the port, or remove it first")
		case published != "" && len(rev.Spec.Ingress) > 0:
			return api.Errorf(api.CodeConflict, "published port %d/tcp is where ingress rules are served, and service %s/%s has some", spec.IngressPort, svc.StackName, svc.Name).
				At("services." + published + ".ports").WithMend("give the service a rule instead, or publish another port")
		}
	}
	return nil
}

func takesIngressPort(v *spec.Service) bool {
	return slices.ContainsFunc(v.Ports, func(p spec.Port) bool { return p.Published == spec.IngressPort && p.Protocol == "tcp" })
}
