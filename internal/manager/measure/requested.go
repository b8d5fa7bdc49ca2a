package measure

import "baton/internal/model/cluster"

// Requested is what became of the requests. An answer that was cut short has the status with which it began, and others that failed have
// 502 or 503; so what tasks answered themselves with 5xx are at least those beyond.
func (l Load) Requested() cluster.Requested {
	r := cluster.Requested{Requests: l.Requests, NoEndpoint: l.NoEndpoint, Unreached: l.Unreached, Broken: l.Broken}
	r.Errors = l.Classes[5] - min(l.Classes[5], r.Failed())
	return r
}
