package manager

import (
	"fmt"
	"time"

	"baton/internal/manager/control"
	"baton/internal/manager/measure"
	"baton/internal/model/cluster"
	"baton/internal/plan/gate"
	"baton/internal/wire/agentapi"
)

// counts tells what became of requests, as far as this manager knows.
type counts struct {
	keeper *measure.Keeper
	began  time.Time // when the manager began to know of them
}

var (
	_ control.Counts   = counts{}
	_ control.Requests = counts{}
)

// Requested implements control.Counts.
func (c counts) Requested(service cluster.ID, from, to time.Time) (cluster.Requested, string) {
	l := c.keeper.Window(service, from, to)
	partial := ""
	switch {
	case from.Before(c.began):
		partial = "the leader's measures began after the release"
	case l.Missing > 0:
		partial = fmt.Sprintf("%d nodes did not tell", l.Missing)
	}
	return l.Requested(), partial
}

// Lag implements control.Counts.
func (counts) Lag() time.Duration { return measure.Lag }

// Task implements control.Requests.
func (c counts) Task(id cluster.ID) (gate.Counts, bool) {
	l, ok := c.keeper.TaskTotal(id)
	if !ok {
		return gate.Counts{}, false
	}
	r := l.Requested()
	// An answer that was cut short may have begun with any status: those that failed count once, whatever they say.
	return gate.Counts{Requests: l.Requests, Errors: r.Errors + r.Failed(), Latency: l.Latency[:]}, true
}

// Bound implements control.Requests.
func (counts) Bound(bucket int) time.Duration {
	if d, ok := agentapi.LatencyBound(bucket); ok {
		return d
	}
	return time.Hour // the last bucket has none: what is in it is slower than whatever is asked for
}
