package measure

import (
	"math"
	"time"

	"baton/internal/model/cluster"
	"baton/internal/model/spec"
)

const (
	// sizeHalf is after how long what a task used counts half as much, as in Kubernetes' vertical autoscaler: a day, so that each hour of a day
	// has its say.
	sizeHalf = 24 * time.Hour
	// sizeStep is between the bounds of two buckets: what is told of a use is at most a tenth too high.
	sizeStep = 1.1
	// sizeBuckets reach from 1 milli-CPU to over 1,000 processors, and from 1 MiB to 1 TiB.
	sizeBuckets = 150
	// sizeForgotten is the weight below which a use counts no more: that of a single one after nearly a week.
	sizeForgotten = 1.0 / 100
	// sizeMargin is what is recommended above what was used.
	sizeMargin = 1.15
	// sizeSamples is how many uses must be known for a recommendation; a task tells one every 6 s.
	sizeSamples = 10
)

// uses is how often a service's tasks used how much: a histogram whose weights halve with sizeHalf. It takes 1.2 KB.
type uses struct {
	first   float64 // the upper bound of the first bucket
	at      time.Time
	weights [sizeBuckets]float32 // as of at
	most    float64
}

// bound is the upper bound of a bucket.
func (u *uses) bound(bucket int) float64 { return u.first * math.Pow(sizeStep, float64(bucket)) }

func (u *uses) add(v float64, now time.Time) {
	age := now.Sub(u.at)
	if u.at.IsZero() || age < 0 {
		u.at, age = now, 0
	}
	if age > sizeHalf { // later uses weigh more; before they weigh too much, all are made lighter
		for i := range u.weights {
			u.weights[i] *= float32(math.Exp2(-age.Hours() / sizeHalf.Hours()))
		}
		u.at, age = now, 0
	}
	bucket := 0
	if v > u.first {
		bucket = min(sizeBuckets-1, int(math.Ceil(math.Log(v/u.first)/math.Log(sizeStep)-1e-9)))
	}
	u.weights[bucket] += float32(math.Exp2(age.Hours() / sizeHalf.Hours()))
	u.most = max(u.most, v)
}

// quantile is the use that a share p of all did not exceed, peak the highest that is not forgotten.
func (u *uses) quantile(p float64) float64 {
	sum := float32(0)
	for _, w := range u.weights {
		sum += w
	}
	part := float32(0)
	for i, w := range u.weights {
		if part += w; w > 0 && part >= float32(p)*sum {
			return min(u.most, u.bound(i))
		}
	}
	return u.most
}

func (u *uses) peak(now time.Time) float64 {
	light := float32(math.Exp2(now.Sub(u.at).Hours()/sizeHalf.Hours()) * sizeForgotten)
	for i := sizeBuckets - 1; i >= 0; i-- {
		if u.weights[i] > light {
			return min(u.most, u.bound(i))
		}
	}
	return 0
}

// sizes is what a service's tasks used.
type sizes struct {
	cpu, memory uses
	since       time.Time
	samples     uint64
}

func (s *sizes) add(cores float64, memory uint64, now time.Time) {
	if s.samples == 0 {
		s.since, s.cpu.first, s.memory.first = now, 0.001, 1<<20
	}
	s.samples++
	s.cpu.add(cores, now)
	s.memory.add(float64(memory), now)
}

// Size is how much a task of a service used, and how much it should be given.
type Size struct {
	// Since is when the manager first heard of the service's use. What it used a day ago counts half, a week ago not at all.
	Since time.Time
	// CPUMedian, CPU95 and CPUPeak are what a task did not exceed half of the time, 95 % of it, ever; each in the mean of 6 s.
	CPUMedian, CPU95, CPUPeak spec.MilliCPU
	MemoryMedian, MemoryPeak  spec.Bytes
	// CPU and Memory are recommended: 15 % above what 95 % of the time was enough, and above the peak: a task that lacks processor time is
	// slower, one that lacks memory is killed.
	CPU    spec.MilliCPU
	Memory spec.Bytes
}

// Used tells what the tasks of a service used; false when too little is known.
func (k *Keeper) Used(id cluster.ID, now time.Time) (Size, bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	svc := k.services[id]
	if svc == nil || svc.sizes.samples < sizeSamples {
		return Size{}, false
	}
	s := &svc.sizes
	milli := func(cores float64) spec.MilliCPU { return spec.MilliCPU(math.Ceil(cores * 1000)) }
	peak := s.memory.peak(now)
	return Size{
		Since:     s.since,
		CPUMedian: milli(s.cpu.quantile(0.5)), CPU95: milli(s.cpu.quantile(0.95)), CPUPeak: milli(s.cpu.peak(now)),
		MemoryMedian: spec.Bytes(s.memory.quantile(0.5)), MemoryPeak: spec.Bytes(peak),
		CPU:    max(10, (milli(s.cpu.quantile(0.95)*sizeMargin)+9)/10*10),
		Memory: max(1<<20, spec.Bytes(math.Ceil(peak*sizeMargin/(1<<20)))<<20),
	}, true
}
