package measure

import (
	"time"

	"baton/internal/model/cluster"
)

// Requested is what became of the requests. An answer that was cut short has the status with which it began, and others that failed have
// 502 or 503; so what tasks answered themselves with 5xx are at least those beyond.
func (l Load) Requested() cluster.Requested {
	r := cluster.Requested{Requests: l.Requests, NoEndpoint: l.NoEndpoint, Unreached: l.Unreached, Broken: l.Broken}
	r.Errors = l.Classes[5] - min(l.Classes[5], r.Failed())
	return r
}

// count adds to what the task had since it was heard of.
func (t *task) count(s *sums) {
	all := *s
	all.unpack(t.total)
	t.total = all.pack()
}

// TaskTotal is what a task had to do since the manager heard of it; it only grows. False when nothing was told of it.
func (k *Keeper) TaskTotal(id cluster.ID) (Load, bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	t := k.tasks[id]
	if t == nil {
		return Load{}, false
	}
	var s sums
	s.unpack(t.total)
	return s.load(time.Time{}, time.Time{}), true
}
