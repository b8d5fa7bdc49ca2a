package spec

import "time"

// Bytes is an amount of memory or storage.
type Bytes int64

// MilliCPU is an amount of processor time in thousandths of a core.
type MilliCPU int64

// Resources bounds what a task may use and says what it needs.
type Resources struct {
	Limits       Limits       `json:"limits,omitzero"`
	Reservations Reservations `json:"reservations,omitzero"`
}

// Limits are enforced by the kernel; zero means unlimited.
type Limits struct {
	CPU        MilliCPU `json:"cpu,omitempty"`
	Memory     Bytes    `json:"memory,omitempty"`
	MemorySwap Bytes    `json:"memorySwap,omitempty"` // memory plus swap; zero: as memory (no swap)
	PIDs       int64    `json:"pids,omitempty"`
}

// Reservations are what the scheduler sets aside on a node.
type Reservations struct {
	CPU    MilliCPU `json:"cpu,omitempty"`
	Memory Bytes    `json:"memory,omitempty"`
}

// Placement restricts and steers where tasks run.
type Placement struct {
	// Constraints in Swarm's language, all of which must hold: `node.labels.zone == eu`, `node.role != manager`.
	Constraints []string `json:"constraints,omitempty"`
	// Spread lists node attributes (node.labels.zone) over whose values tasks are spread evenly, most important first.
	Spread []string `json:"spread,omitempty"`
	// MaxReplicasPerNode is zero for no limit.
	MaxReplicasPerNode int `json:"maxReplicasPerNode,omitempty"`
	// Platforms as os/arch; empty: any.
	Platforms []string `json:"platforms,omitempty"`
	// Strategy is StrategySpread (default) or StrategyPack.
	Strategy string `json:"strategy,omitempty"`
}

// The placement strategies.
const (
	StrategySpread = "spread" // over many nodes
	StrategyPack   = "pack"   // onto few nodes
)

// RestartCondition says after which exits a task is replaced.
type RestartCondition string

// The restart conditions.
const (
	RestartAny       RestartCondition = "any" // default
	RestartOnFailure RestartCondition = "on-failure"
	RestartNone      RestartCondition = "none"
)

// RestartPolicy says when and how soon an ended task is replaced. The delay is none at the first failure, then Delay
// doubling up to DelayMax, and it starts over after a task ran for ResetAfter.
type RestartPolicy struct {
	Condition RestartCondition `json:"condition"`
	Delay     time.Duration    `json:"delay"`    // default 1 s
	DelayMax  time.Duration    `json:"delayMax"` // default 5 min
	// MaxAttempts of consecutive replacements in a slot; zero: no limit.
	MaxAttempts int `json:"maxAttempts,omitempty"`
	// ResetAfter is how long a task must have run for its slot's failures to be forgotten; default 1 min.
	ResetAfter time.Duration `json:"resetAfter"`
}

// UpdateOrder says whether the new task starts before or after the old one stops.
type UpdateOrder string

// The update orders.
const (
	StartFirst UpdateOrder = "start-first"
	StopFirst  UpdateOrder = "stop-first"
)

// FailureAction says what happens when a rollout fails.
type FailureAction string

// The failure actions.
const (
	FailureRollback FailureAction = "rollback" // default: the whole release
	FailurePause    FailureAction = "pause"
	FailureContinue FailureAction = "continue"
)

// AllAtOnce is the Parallelism that moves every slot in one batch.
const AllAtOnce = 1<<31 - 1

// UpdatePolicy says how a service moves from one revision to another.
type UpdatePolicy struct {
	Order UpdateOrder `json:"order"`
	// Parallelism is how many slots move at once; AllAtOnce: all. Zero takes the default: 1, a quarter of the replicas above 8.
	Parallelism int `json:"parallelism"`
	// Delay between batches; default none.
	Delay time.Duration `json:"delay,omitempty"`
	// Monitor is how long a new task must stay ready to count as updated; default 5 s.
	Monitor time.Duration `json:"monitor"`
	// Deadline for a new task to become ready; default 10 min.
	Deadline      time.Duration `json:"deadline"`
	FailureAction FailureAction `json:"failureAction"`
	// MaxFailureRatio of failed new tasks, in [0,1], that is tolerated; default 0.
	MaxFailureRatio float64 `json:"maxFailureRatio,omitempty"`
	// Gates judge the new tasks by their requests before the first old task they replace goes, for Bake at most; default 1 min. Not
	// for rollbacks.
	Gates Gates         `json:"gates,omitzero"`
	Bake  time.Duration `json:"bake,omitempty"`
}

// Gates are what the requests of a new revision must show; zero fields are not looked at.
type Gates struct {
	// ErrorRate is the share of requests, in (0,1), of which fewer must fail.
	ErrorRate float64 `json:"errorRate,omitempty"`
	// P95 is within what 95 of 100 requests must be answered; P95Stable is that as a multiple of what the stable revision takes.
	P95       time.Duration `json:"p95,omitempty"`
	P95Stable float64       `json:"p95Stable,omitempty"`
}

// Any reports whether there is anything to look at.
func (g Gates) Any() bool { return g != Gates{} }

// DependencyCondition says what a service waits for.
type DependencyCondition string

// The dependency conditions.
const (
	DependStarted   DependencyCondition = "service_started"
	DependHealthy   DependencyCondition = "service_healthy"
	DependCompleted DependencyCondition = "service_completed_successfully"
)

// Dependency delays the first tasks of a revision until another service of the stack has come so far.
type Dependency struct {
	Service   string              `json:"service"`
	Condition DependencyCondition `json:"condition"`
	// Restart this service after the other one was updated.
	Restart bool `json:"restart,omitempty"`
	// Required false: a dependency that is not in the stack is ignored.
	Required bool `json:"required"`
}

// Probes ask a task how it is. Compose's healthcheck serves as Ready and Live at once unless x-probes sets them.
type Probes struct {
	// Ready decides whether the task is an endpoint; it never kills.
	Ready *Probe `json:"ready,omitempty"`
	// Live failing Failures times in a row ends the task.
	Live *Probe `json:"live,omitempty"`
	// Start holds back the other two until it passed once.
	Start *Probe `json:"start,omitempty"`
	// FromImage is true when the image's own HEALTHCHECK is to be used because the file sets none.
	FromImage bool `json:"fromImage,omitempty"`
}

// Probe is one question. Exactly one of Exec, HTTP and TCP is set.
type Probe struct {
	Exec []string   `json:"exec,omitempty"` // argv, run in the container; exit code 0 is a pass
	HTTP *HTTPProbe `json:"http,omitempty"`
	TCP  *TCPProbe  `json:"tcp,omitempty"`

	Interval      time.Duration `json:"interval"`                // default 30 s for healthcheck, 2 s for x-probes
	Timeout       time.Duration `json:"timeout"`                 // default 30 s for healthcheck, 1 s for x-probes
	Failures      int           `json:"failures"`                // consecutive, default 3
	Successes     int           `json:"successes"`               // consecutive, default 1
	StartPeriod   time.Duration `json:"startPeriod,omitempty"`   // failures do not count before
	StartInterval time.Duration `json:"startInterval,omitempty"` // interval until the first pass; default min(interval, 1 s)
}

// HTTPProbe passes on a status from 200 to 399.
type HTTPProbe struct {
	Path   string `json:"path"`
	Port   uint16 `json:"port"`
	Scheme string `json:"scheme,omitempty"` // default http
	Host   string `json:"host,omitempty"`   // Host header
}

// TCPProbe passes when a connection is accepted.
type TCPProbe struct {
	Port uint16 `json:"port"`
}
