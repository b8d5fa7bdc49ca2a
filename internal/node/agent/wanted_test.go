package agent

import (
	"slices"
	"testing"

	"baton/internal/model/cluster"
)

// TestWantedIsReportedOnce checks that a service that somebody wants makes a report, and is told once.
func TestWantedIsReportedOnce(t *testing.T) {
	o := newOutbox()
	for range 3 {
		o.want(cluster.ID{2})
		o.want(cluster.ID{1})
	}
	r, ok := o.Collect()
	if want := []cluster.ID{{1}, {2}}; !ok || !slices.Equal(r.Wanted, want) {
		t.Errorf("got %v, %v; want a report of %v", r.Wanted, ok, want)
	}
	if r, ok := o.Collect(); ok {
		t.Errorf("it is reported again: %+v", r)
	}
	for i := range 2 * wantedMax {
		o.want(cluster.ID{byte(i), byte(i >> 8), 1})
	}
	if r, _ := o.Collect(); len(r.Wanted) > wantedMax {
		t.Errorf("a report has %d services", len(r.Wanted))
	}
}
