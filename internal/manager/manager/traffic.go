package manager

import (
	"fmt"
	"time"

	"baton/internal/manager/control"
	"baton/internal/manager/measure"
	"baton/internal/model/cluster"
)

// counts tells what became of requests, as far as this manager knows.
type counts struct {
	keeper *measure.Keeper
	began  time.Time // when the manager began to know of them
}

var _ control.Counts = counts{}

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
