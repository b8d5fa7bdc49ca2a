package server

import (
	"context"
	"math"
	"net/http"
	"time"

	"baton/client/api"
	"baton/internal/manager/store"
	"baton/internal/model/cluster"
	"baton/internal/model/spec"
)

// oomMore is how much more memory than its limit a service is recommended after a task was killed for memory: what it would have used
// nobody saw. It is the factor of Kubernetes' vertical autoscaler.
const oomMore = 1.2

func (s *Server) sizesRoute() {
	type sizesIn struct {
		InStack
		Target string `query:"target" doc:"service or stack; the stack, or all services, without it"`
	}
	handle(s, operation{method: http.MethodGet, path: "/v1/sizes", id: "sizes", summary: "What tasks reserve, used, and should reserve", tag: "services"},
		func(_ context.Context, in *sizesIn) ([]api.ServiceSize, error) { return s.sizes(in.Stack, in.Target) })
}

// sizes tells for the services of a target what they use.
func (s *Server) sizes(stack, target string) ([]api.ServiceSize, error) {
	snap := s.cfg.Store.Snapshot()
	services, err := servicesOf(snap, stack, target)
	if err != nil {
		return nil, err
	}
	out := []api.ServiceSize{}
	for _, svc := range services {
		if !svc.Removing {
			out = append(out, s.size(snap, svc, s.cfg.Now()))
		}
	}
	return out, nil
}

// servicesOf finds the service that a target names, or those of a stack.
func servicesOf(snap store.Snapshot, stack, target string) ([]*cluster.Service, error) {
	st, err := optionalStack(snap, stack)
	if err != nil {
		return nil, err
	}
	if target == "" {
		return reader{snap}.services(st), nil
	}
	t, err := resolver{snap: snap, hint: stack}.any(target)
	switch {
	case err != nil:
		return nil, err
	case t.kind == cluster.KindStack:
		return reader{snap}.services(t.stack), nil
	case t.kind == cluster.KindNode:
		return nil, api.Errorf(api.CodeInvalid, "%s is a node: sizes are of services", target).WithMend("name a service, or nothing for all")
	}
	return []*cluster.Service{t.service}, nil
}

func (s *Server) size(snap store.Snapshot, svc *cluster.Service, now time.Time) api.ServiceSize {
	out := api.ServiceSize{Stack: svc.StackName, Service: svc.Name, Tasks: svc.Status.Desired}
	if rev := (reader{snap}).revision(svc.Revision); rev != nil {
		r := rev.Spec.Resources
		out.ReservedCPU, out.ReservedMemory, out.LimitMemory = r.Reservations.CPU, r.Reservations.Memory, r.Limits.Memory
	}
	for t := range snap.TasksByService(svc.ID) {
		if t.Exit != nil && t.Exit.OOM && t.Revision == svc.Revision {
			out.OOM++
		}
	}
	if s.cfg.Measures == nil {
		return out
	}
	u, known := s.cfg.Measures.Used(svc.ID, now)
	if !known {
		return out
	}
	out.Known, out.Since = true, u.Since
	out.CPUMedian, out.CPU95, out.CPUPeak, out.CPU = u.CPUMedian, u.CPU95, u.CPUPeak, u.CPU
	out.MemoryMedian, out.MemoryPeak, out.Memory = u.MemoryMedian, u.MemoryPeak, u.Memory
	if out.OOM > 0 {
		out.Memory = max(out.Memory, spec.Bytes(math.Ceil(float64(out.LimitMemory)*oomMore/(1<<20)))<<20)
	}
	return out
}
