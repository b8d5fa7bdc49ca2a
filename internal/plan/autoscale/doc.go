// Package autoscale decides how many tasks a service is to have, from what was measured of its load.
//
// Every target becomes a demand: how many replicas would be needed for the load to be exactly the target,
//
//	demand = ready · (load per ready replica / target) = load of the service / target
//
// which is the formula of Kubernetes' horizontal autoscaler, on ready capacity: a task that still starts is no divisor. The
// target for requests under way rests on Little's law (under way = rate · time). Requests that came and did not end are demand too, so a
// saturated service is not taken for one that is as busy as it can be. Of several targets the highest demand counts.
//
// Up: two looks at the load. The mean over the fast window (6 s), and the last sample alone, less two standard deviations of
// its count: a jump counts at once as far as it cannot be chance (Knative's panic window has that purpose). The number grows when
// demand is above it by more than the tolerance, to the demand rounded up, by one step at most.
//
// Down: the mean over the stable window (60 s), and of all results of the last `after` the highest (Kubernetes' stabilisation).
// Never within `after` of growing, never during a rollout, never on samples that are missing or partial, and one step in a minute.
//
// A latency target (p95) is no demand: latency is not proportional to load. latency.go says how it counts.
//
// To rest (Min 0): when nobody has used the service for `after`. Awake again: at once when somebody wants it.
//
// Invariants: the number is within the bounds; a greater load never gives a smaller number; under a constant load the number comes to
// rest and stays; each change has its reason. Plan is pure: what it must remember is in State, which is bounded by the service's Max.
package autoscale
