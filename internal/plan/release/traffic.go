package release

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"baton/internal/model/cluster"
)

// WhyCounted is the type of the event that tells what clients had of a release.
const WhyCounted = "release.counted"

// Changed lists the services of a release whose requests are counted and that it changed, by name: those that an earlier release had with
// another revision or another number of replicas. A service that is new served nobody before, so that nothing fails because of it.
func Changed(view View, r *cluster.Release) []*cluster.Service {
	var before *cluster.Release
	for _, o := range view.Releases(r.Stack) {
		if o.Number < r.Number && (before == nil || o.Number > before.Number) {
			before = o
		}
	}
	if before == nil {
		return nil
	}
	var out []*cluster.Service
	for _, svc := range view.Services(r.Stack) {
		rev, ok := r.Services[svc.Name]
		was, had := before.Services[svc.Name]
		if !ok || !had || rev == was && r.Replicas[svc.Name] == before.Replicas[svc.Name] {
			continue
		}
		if !ruled(view, rev) && !ruled(view, was) {
			continue // its requests do not pass an edge
		}
		out = append(out, svc)
	}
	slices.SortFunc(out, func(a, b *cluster.Service) int { return cmp.Compare(a.Name, b.Name) })
	return out
}

func ruled(view View, revision cluster.ID) bool {
	rev := view.Revision(revision)
	return rev != nil && len(rev.Spec.Ingress) > 0
}

// Ended reports whether nothing more happens in a release.
func Ended(r *cluster.Release) bool {
	return !r.Ended.IsZero() && r.State != cluster.ReleaseDeploying && r.State != cluster.ReleasePaused
}

// beforeMax bounds the time before a release with which it is compared.
const beforeMax = 5 * time.Minute

// Count makes the traffic of a release, from its beginning to an end, of what its changed services had. requested tells that of a
// service between two times, and why it may not be all.
func Count(r *cluster.Release, changed []*cluster.Service, to time.Time, requested func(service cluster.ID, from, to time.Time) (cluster.Requested, string)) *cluster.Traffic {
	t := &cluster.Traffic{From: r.Created, To: to}
	span := min(max(to.Sub(r.Created), 0), beforeMax)
	for _, svc := range changed {
		t.Services = append(t.Services, svc.Name)
		n, partial := requested(svc.ID, r.Created, to)
		t.Add(n)
		t.Partial = cmp.Or(t.Partial, partial)
		n, _ = requested(svc.ID, r.Created.Add(-span), r.Created)
		t.Before.Add(n)
	}
	return t
}

// CountText tells it in words: "3,214 requests during the deploy, 0 failed because of it".
func CountText(t *cluster.Traffic) string {
	s := fmt.Sprintf("%d requests during the deploy, %d failed because of it", t.Requests, t.Failed())
	if t.Failed() > 0 {
		s += fmt.Sprintf(" (no ready task %d, not reached %d, broken off %d)", t.NoEndpoint, t.Unreached, t.Broken)
	}
	if t.Errors > 0 || t.Before.Errors > 0 {
		s += fmt.Sprintf("; the application answered %s with 5xx, %s in the time before", share(t.Errors, t.Requests), share(t.Before.Errors, t.Before.Requests))
	}
	if t.Partial != "" {
		s += " (not all may be counted: " + t.Partial + ")"
	}
	return s
}

func share(n, of uint64) string {
	if of == 0 {
		return "none"
	}
	return fmt.Sprintf("%d of %d (%.2g%%)", n, of, 100*float64(n)/float64(of))
}
