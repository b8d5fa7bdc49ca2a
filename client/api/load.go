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

// ServiceSize is what the tasks of a service reserve, what they used, and what they should reserve. Of uses long ago less is known:
// those of a day ago count half, those of a week ago not at all.
type ServiceSize struct {
	Stack   string `json:"stack"`
	Service string `json:"service"`
	Tasks   int    `json:"tasks" doc:"wanted"`

	ReservedCPU    spec.MilliCPU `json:"reservedCpu" doc:"of a task, in thousandths of a processor; zero: nothing"`
	ReservedMemory spec.Bytes    `json:"reservedMemory"`
	LimitMemory    spec.Bytes    `json:"limitMemory,omitempty"`

	// Known is false when too little was heard of the service's use: then nothing below is set.
	Known        bool          `json:"known"`
	Since        time.Time     `json:"since,omitzero" doc:"when the manager that answers first heard of the service's use"`
	CPUMedian    spec.MilliCPU `json:"cpuMedian,omitempty" doc:"that a task did not exceed half of the time, in the mean of some seconds"`
	CPU95        spec.MilliCPU `json:"cpu95,omitempty" doc:"that it did not exceed 95 % of the time"`
	CPUPeak      spec.MilliCPU `json:"cpuPeak,omitempty"`
	MemoryMedian spec.Bytes    `json:"memoryMedian,omitempty"`
	MemoryPeak   spec.Bytes    `json:"memoryPeak,omitempty"`
	CPU          spec.MilliCPU `json:"cpu,omitempty" doc:"recommended: 15 % above cpu95"`
	Memory       spec.Bytes    `json:"memory,omitempty" doc:"recommended: 15 % above the peak; above the limit after a task was killed for memory"`
	OOM          int           `json:"oom,omitempty" doc:"tasks of the last ones that the kernel killed for memory"`
}

// Saves is how much less all of the service's tasks would reserve as recommended; less than nothing when they need more. Of a service that
// reserves nothing, nothing can be saved.
func (s ServiceSize) Saves() (cpu spec.MilliCPU, memory spec.Bytes) {
	if s.Known && s.ReservedCPU > 0 {
		cpu = (s.ReservedCPU - s.CPU) * spec.MilliCPU(s.Tasks)
	}
	if s.Known && s.ReservedMemory > 0 {
		memory = (s.ReservedMemory - s.Memory) * spec.Bytes(s.Tasks)
	}
	return cpu, memory
}
