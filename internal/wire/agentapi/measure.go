package agentapi

import (
	"errors"
	"math"
	"time"

	"baton/internal/model/cluster"
)

// Measures are what a node tells of its load, again and again. Counts are cumulative, so that a report that was lost loses
// nothing but detail. A manager that gets none (from an older node) knows nothing of the node's load.
type Measures struct {
	At time.Time `json:"at" cbor:"1,keyasint"` // by the node's clock; only differences count
	// Full says that every series that ever counted something is in Requests; else those that changed, and those with requests in flight.
	Full     bool             `json:"full,omitempty" cbor:"2,keyasint,omitempty"`
	Requests []RequestMeasure `json:"requests,omitempty" cbor:"3,keyasint,omitempty"`
	// Use is what the node and its tasks use; nil: it is told less often than requests are.
	Use *NodeUse `json:"use,omitempty" cbor:"4,keyasint,omitempty"`
}

// RequestClasses are the classes of a request's end: index 0 without a status, because the client went before there was
// one; then 1xx (tunnels) to 5xx.
const RequestClasses = 6

// RequestMeasure is what one edge has counted of the requests to one task, or of those to a service that no task had (Task
// is zero). A series is known by service, task and Since: one that begins anew has another Since.
type RequestMeasure struct {
	Service cluster.ID `json:"service" cbor:"1,keyasint"`
	Task    cluster.ID `json:"task,omitzero" cbor:"2,keyasint,omitzero"`
	Since   int64      `json:"since" cbor:"3,keyasint"` // when counting began: nanoseconds since 1970, by the node's clock
	// Classes are the requests that have ended, by class of their status.
	Classes [RequestClasses]uint64 `json:"classes" cbor:"4,keyasint"`
	// NoEndpoint, Unreached and Broken are those of them that failed between client and task: no task was ready; none could be
	// connected to; the task broke off before its answer was complete.
	NoEndpoint uint64 `json:"noEndpoint,omitempty" cbor:"5,keyasint,omitempty"`
	Unreached  uint64 `json:"unreached,omitempty" cbor:"6,keyasint,omitempty"`
	Broken     uint64 `json:"broken,omitempty" cbor:"7,keyasint,omitempty"`
	InFlight   int64  `json:"inFlight,omitempty" cbor:"8,keyasint,omitempty"` // now
	// Received and Sent are bytes of bodies, from the client and to it, without those of tunnels.
	Received uint64 `json:"received,omitempty" cbor:"9,keyasint,omitempty"`
	Sent     uint64 `json:"sent,omitempty" cbor:"10,keyasint,omitempty"`
	// Latency is of the requests that a task answered: until the last byte, but of gRPC, WebSockets and server-sent events until the
	// header, because such a stream takes as long as it likes.
	Latency Sparse `json:"latency,omitempty" cbor:"11,keyasint,omitempty"`
	// Took is the sum of these latencies.
	Took time.Duration `json:"took,omitempty" cbor:"12,keyasint,omitempty"`
}

// Requests is how many have ended.
func (r RequestMeasure) Requests() uint64 {
	n := uint64(0)
	for _, c := range r.Classes {
		n += c
	}
	return n
}

// NodeUse is what a machine and its running tasks use.
type NodeUse struct {
	CPU        time.Duration `json:"cpu" cbor:"1,keyasint"`   // used so far, by everything on the machine
	Cores      uint64        `json:"cores" cbor:"2,keyasint"` // in thousandths
	Memory     uint64        `json:"memory" cbor:"3,keyasint"`
	MemorySize uint64        `json:"memorySize" cbor:"4,keyasint"`
	Tasks      []TaskUse     `json:"tasks,omitempty" cbor:"5,keyasint,omitempty"`
}

// TaskUse is what a task uses: as Stats, small enough to be told all the time.
type TaskUse struct {
	Task        cluster.ID    `json:"task" cbor:"1,keyasint"`
	CPU         time.Duration `json:"cpu,omitempty" cbor:"2,keyasint,omitempty"` // used so far
	Memory      uint64        `json:"memory,omitempty" cbor:"3,keyasint,omitempty"`
	MemoryLimit uint64        `json:"memoryLimit,omitempty" cbor:"4,keyasint,omitempty"`
	Received    uint64        `json:"received,omitempty" cbor:"5,keyasint,omitempty"` // so far
	Sent        uint64        `json:"sent,omitempty" cbor:"6,keyasint,omitempty"`
}

const (
	// MeasureEvery is between two reports of requests.
	MeasureEvery = 2 * time.Second
	// UseEvery is how many reports there are to one that also tells what tasks use: reading that asks every container.
	UseEvery = 3
	// FullEvery is how many reports there are to a full one, by which managers forget series that ended.
	FullEvery = 30
)

// The buckets of latencies. Their bounds never change: counts of different nodes and versions are added.
const (
	// LatencyBuckets is how many there are; the last one has no upper bound.
	LatencyBuckets = 66
	latencyMin     = 500 * time.Microsecond
	latencyStep    = 1.2
)

// latencyBounds are the upper bounds of all buckets but the last one, each 1.2 times that before: 0.5 ms to 58 s.
var latencyBounds = func() (b [LatencyBuckets - 1]time.Duration) {
	f := float64(latencyMin)
	for i := range b {
		b[i] = time.Duration(math.Round(f))
		f *= latencyStep
	}
	return b
}()

// LatencyBound is the upper bound of a bucket, which is part of it. The last one has none.
func LatencyBound(bucket int) (time.Duration, bool) {
	if bucket >= len(latencyBounds) {
		return 0, false
	}
	return latencyBounds[bucket], true
}

// LatencyBucket is the bucket of a latency.
func LatencyBucket(d time.Duration) int {
	low, high := 0, len(latencyBounds)
	for low < high {
		if mid := (low + high) / 2; d <= latencyBounds[mid] {
			high = mid
		} else {
			low = mid + 1
		}
	}
	return low
}

// Histogram counts latencies by bucket.
type Histogram [LatencyBuckets]uint64

// Add adds the counts of another one.
func (h *Histogram) Add(o *Histogram) {
	for i, n := range o {
		h[i] += n
	}
}

// Count is how many latencies it has.
func (h *Histogram) Count() uint64 {
	n := uint64(0)
	for _, c := range h {
		n += c
	}
	return n
}

// Quantile is the latency that a share p of all does not exceed; zero when there are none. It lies in the bucket of the true
// one, so it is wrong by a factor of 1.2 at most, or by half a millisecond below that; beyond 58 s it is 58 s.
func (h *Histogram) Quantile(p float64) time.Duration {
	n := h.Count()
	if n == 0 {
		return 0
	}
	rank := uint64(max(1, math.Ceil(min(p, 1)*float64(n))))
	for i, c := range h {
		if rank > c {
			rank -= c
			continue
		}
		low := time.Duration(0)
		if i > 0 {
			low = latencyBounds[i-1]
		}
		if i == len(latencyBounds) {
			return low
		}
		return low + time.Duration(float64(latencyBounds[i]-low)*float64(rank)/float64(c))
	}
	panic("agentapi: a histogram's counts do not add up")
}

// Sparse is a histogram on its way: pairs of bucket and count, for those that are not zero.
type Sparse []uint64

// Sparse is h without its zeroes.
func (h *Histogram) Sparse() Sparse {
	var s Sparse
	for i, n := range h {
		if n > 0 {
			s = append(s, uint64(i), n)
		}
	}
	return s
}

var errSparse = errors.New("a histogram that cannot be")

// Histogram is the whole of s.
func (s Sparse) Histogram() (h Histogram, err error) {
	if len(s)%2 != 0 {
		return h, errSparse
	}
	for i := 0; i < len(s); i += 2 {
		if s[i] >= LatencyBuckets {
			return h, errSparse
		}
		h[s[i]] += s[i+1]
	}
	return h, nil
}
