package api

import (
	"time"

	"baton/internal/model/spec"
)

// Load is what a service or a task had to do over the last minute or so, as far as the manager that answers was told.
type Load struct {
	From     time.Time `json:"from" doc:"the span that the numbers are of"`
	To       time.Time `json:"to"`
	Requests uint64    `json:"requests" doc:"HTTP requests through ingress rules that ended"`
	Rate     float64   `json:"rate" doc:"of them, per second"`
	// Classes counts them by status: 1xx (tunnels) to 5xx, and none, when the client went before there was a status.
	Classes map[string]uint64 `json:"classes,omitempty"`
	// NoEndpoint, Unreached and Broken are those that failed between client and task.
	NoEndpoint uint64        `json:"noEndpoint,omitempty" doc:"no task was ready"`
	Unreached  uint64        `json:"unreached,omitempty" doc:"no task could be connected to"`
	Broken     uint64        `json:"broken,omitempty" doc:"the task broke off before its answer was complete"`
	InFlight   int64         `json:"inFlight" doc:"requests under way now"`
	P50        time.Duration `json:"p50" doc:"latency that half of the requests did not exceed, in nanoseconds; right but for a factor of 1.2"`
	P95        time.Duration `json:"p95"`
	P99        time.Duration `json:"p99"`

	Tasks    int           `json:"tasks,omitempty" doc:"whose use is known"`
	CPU      spec.MilliCPU `json:"cpu" doc:"processors in use, of all tasks together, in thousandths"`
	CPUShare *float64      `json:"cpuShare,omitempty" doc:"of what ready tasks have reserved; absent without a reservation"`
	Memory   spec.Bytes    `json:"memory" doc:"of a task, in the mean"`
	Missing  int           `json:"missing,omitempty" doc:"nodes that should report their load and do not"`
}

// Errors are the requests that were answered with 5xx or broken off.
func (l *Load) Errors() uint64 {
	n := l.Classes["5xx"]
	return n + min(l.Broken, l.Requests-n)
}

// ServiceLoad is the load of a service.
type ServiceLoad struct {
	Stack   string `json:"stack"`
	Service string `json:"service"`
	Load
}
