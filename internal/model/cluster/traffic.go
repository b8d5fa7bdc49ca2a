package cluster

import "time"

// Traffic is what clients had of the services that a release changed, while it did so, as the edges counted it.
type Traffic struct {
	Services []string  `json:"services"` // those that it changed and that served before, by name
	From     time.Time `json:"from"`
	To       time.Time `json:"to"`
	Requested
	// Before is what they had in the time before, at most five minutes.
	Before Requested `json:"before"`
	// Partial says why something may not have been counted; empty: all of it was.
	Partial string `json:"partial,omitempty"`
}

// Requested is what became of requests.
type Requested struct {
	Requests uint64 `json:"requests"`
	// NoEndpoint, Unreached and Broken failed between client and task.
	NoEndpoint uint64 `json:"noEndpoint,omitempty"`
	Unreached  uint64 `json:"unreached,omitempty"`
	Broken     uint64 `json:"broken,omitempty"`
	// Errors are those that a task answered itself with 5xx.
	Errors uint64 `json:"errors,omitempty"`
}

// Failed are the requests that failed between client and task: because of how the service was run, not by its own word.
func (r Requested) Failed() uint64 { return r.NoEndpoint + r.Unreached + r.Broken }

// Add adds what another service, or another time, had.
func (r *Requested) Add(o Requested) {
	r.Requests += o.Requests
	r.NoEndpoint += o.NoEndpoint
	r.Unreached += o.Unreached
	r.Broken += o.Broken
	r.Errors += o.Errors
}
