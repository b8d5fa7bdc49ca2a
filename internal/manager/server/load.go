package server

import (
	"math"
	"strconv"
	"time"

	"baton/client/api"
	"baton/internal/manager/measure"
	"baton/internal/manager/store"
	"baton/internal/model/cluster"
	"baton/internal/model/spec"
)

// loadSpan is what the load that is shown is of.
const loadSpan = time.Minute

// loads answers what the load was of late; made for one request.
type loads struct {
	keeper          *measure.Keeper
	now             time.Time
	tasks, services map[cluster.ID]int64 // requests in flight
}

func (s *Server) loads() loads {
	l := loads{keeper: s.cfg.Measures, now: s.cfg.Now()}
	if l.keeper != nil {
		l.tasks, l.services = l.keeper.InFlight(l.now)
	}
	return l
}

// service is the load of a service; nil when nothing is known of it.
func (l loads) service(id cluster.ID) *api.Load {
	if l.keeper == nil {
		return nil
	}
	to := l.now.Add(-measure.Lag)
	return loadDoc(l.keeper.Window(id, to.Add(-loadSpan), to), l.services[id])
}

// task is the load of a task; nil when nothing is known of it.
func (l loads) task(id cluster.ID) *api.Load {
	if l.keeper == nil {
		return nil
	}
	to := l.now.Add(-measure.Lag)
	return loadDoc(l.keeper.TaskWindow(id, to.Add(-loadSpan), to), l.tasks[id])
}

// classNames are the names of the classes of statuses.
func className(class int) string {
	if class == 0 {
		return "none"
	}
	return strconv.Itoa(class) + "xx"
}

func loadDoc(l measure.Load, inflight int64) *api.Load {
	if l.Samples == 0 && inflight == 0 {
		return nil
	}
	out := &api.Load{
		From: l.From, To: l.To, Requests: l.Requests, Rate: l.Rate, NoEndpoint: l.NoEndpoint, Unreached: l.Unreached, Broken: l.Broken,
		InFlight: inflight, P50: l.Quantile(0.50), P95: l.Quantile(0.95), P99: l.Quantile(0.99),
		Tasks: l.Tasks, CPU: spec.MilliCPU(math.Round(1000 * l.CPUUsed)), Memory: l.Memory, Missing: l.Missing,
	}
	if l.Reserved {
		out.CPUShare = &l.CPU
	}
	for class, n := range l.Classes {
		if n > 0 {
			if out.Classes == nil {
				out.Classes = make(map[string]uint64)
			}
			out.Classes[className(class)] = n
		}
	}
	return out
}

// addLoads adds to a status what the services had to do.
func (s *Server) addLoads(snap store.Snapshot, out *api.Status) {
	l := s.loads()
	for svc := range snap.ServicesByStack(out.Stack.ID) {
		for i := range out.Services {
			if out.Services[i].Name == svc.Name {
				out.Services[i].Load = l.service(svc.ID)
			}
		}
	}
}

// topLoads adds to what tasks use what they and their services had to do.
func (s *Server) topLoads(out *api.Top, tasks []api.Task) {
	out.Services = []api.ServiceLoad{}
	if s.cfg.Measures == nil {
		return
	}
	l := s.loads()
	for i := range out.Tasks {
		out.Tasks[i].Load = l.task(out.Tasks[i].Task)
	}
	seen := make(map[cluster.ID]bool)
	for i := range tasks {
		t := &tasks[i]
		if seen[t.Service] {
			continue
		}
		seen[t.Service] = true
		if load := l.service(t.Service); load != nil {
			out.Services = append(out.Services, api.ServiceLoad{Stack: t.StackName, Service: t.ServiceName, Load: *load})
		}
	}
}
