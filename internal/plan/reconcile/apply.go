package reconcile

import (
	"encoding/binary"
	"slices"

	"baton/internal/model/cluster"
)

// Apply returns the input as it is once the plan was stored: what the control loop does, without nodes and addresses. It
// serves tests and simulations. New tasks get ids that follow from the service, the highest version and their place in the
// plan, and come last; everything that is written gets the next version.
func Apply(in Input, p Plan) Input {
	if p.Empty(in.Service) {
		return in
	}
	var version cluster.Version
	for _, t := range in.Tasks {
		version = max(version, t.Version)
	}
	version = max(version, in.Service.Version, in.Acked) + 1
	svc := cluster.Copy(in.Service)
	if p.Rollout != nil {
		svc.Rollout = *p.Rollout
	}
	svc.Status = p.Status
	svc.Version = version
	in.Service = svc

	changes := make(map[cluster.ID]Change, len(p.Stop))
	for _, c := range p.Stop {
		changes[c.Task] = c
	}
	tasks := make([]*cluster.Task, 0, len(in.Tasks)+len(p.Create))
	for _, t := range in.Tasks {
		if slices.Contains(p.Delete, t.ID) {
			continue
		}
		if c, ok := changes[t.ID]; ok {
			t = cluster.Copy(t)
			c.Apply(t, in.Now)
			t.Version = version
		}
		tasks = append(tasks, t)
	}
	for i, t := range p.Create {
		t = cluster.Copy(t)
		t.ID = svc.ID
		binary.BigEndian.PutUint64(t.ID[0:], uint64(version))
		binary.BigEndian.PutUint32(t.ID[8:], uint32(i+1))
		t.Version = version
		tasks = append(tasks, t)
	}
	in.Tasks = tasks
	return in
}
