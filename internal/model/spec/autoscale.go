package spec

import (
	"fmt"
	"math"
	"net/url"
	"strings"
	"time"
	_ "time/tzdata" // a machine without a time zone database must schedule as the others do

	"github.com/adhocore/gronx"
)

// Autoscale says how the number of a replicated service's tasks follows its load. docs/autoscaling.md explains it.
type Autoscale struct {
	// Min and Max bound the number. Min 0: the service rests without a task while nobody uses it, and the first request starts one.
	Min    int         `json:"min"`
	Max    int         `json:"max"`
	Target ScaleTarget `json:"target,omitzero"`
	Up     ScaleUp     `json:"up,omitzero"`
	Down   ScaleDown   `json:"down,omitzero"`
	// Schedule raises or lowers the bounds for a time; of several that hold, the highest Min and the highest Max count.
	Schedule []ScaleWindow `json:"schedule,omitempty"`
	// Tolerance is how far from the target the load may be without a change, as a share of it; default 0.1.
	Tolerance float64 `json:"tolerance,omitempty"`
	// Hold bounds the requests that wait for the first task of a service that rests.
	Hold ScaleHold `json:"hold,omitzero"`
}

// ScaleTarget is the load at which the number of tasks is right. Of several targets the one that wants the most tasks counts.
type ScaleTarget struct {
	RPS      float64       `json:"rps,omitempty"`      // requests per second and task
	InFlight float64       `json:"inflight,omitempty"` // requests under way per task
	P95      time.Duration `json:"p95,omitempty"`      // time within which 95 of 100 requests are answered
	CPU      float64       `json:"cpu,omitempty"`      // share of the reservation, else of the limit
	// Memory is a share of the reservation, else of the limit; MemoryBytes an amount per task.
	Memory      float64           `json:"memory,omitempty"`
	MemoryBytes Bytes             `json:"memoryBytes,omitempty"`
	Prometheus  *PrometheusTarget `json:"prometheus,omitempty"`
}

// PrometheusTarget is a number that a Prometheus server knows: the result of a query, to be divided among the tasks.
type PrometheusTarget struct {
	URL        string  `json:"url"` // of the server, as the managers reach it
	Query      string  `json:"query"`
	PerReplica float64 `json:"perReplica"`
}

// ScaleUp says how fast the number grows.
type ScaleUp struct {
	Window time.Duration `json:"window,omitempty"` // over which the load is looked at; default 6 s
	Step   ScaleStep     `json:"step,omitzero"`    // at most, per evaluation; default 300 % or 4, whichever is more
}

// ScaleDown says how slowly it shrinks.
type ScaleDown struct {
	// After is how long fewer tasks must have been enough; default 5 min. A service that may rest does so when nobody used it for that long.
	After time.Duration `json:"after,omitempty"`
	Step  ScaleStep     `json:"step,omitzero"` // at most, once a minute; default 50 %
}

// ScaleStep bounds one change; of the two the larger counts.
type ScaleStep struct {
	Percent int `json:"percent,omitempty"` // of the present number
	Count   int `json:"count,omitempty"`
}

// Of is the bound for a service of n tasks, at least one.
func (s ScaleStep) Of(n int) int {
	return max(1, s.Count, n*s.Percent/100)
}

// ScaleWindow is a time that comes again, with bounds of its own.
type ScaleWindow struct {
	Cron string        `json:"cron"`         // minute hour day month weekday
	TZ   string        `json:"tz,omitempty"` // default UTC
	For  time.Duration `json:"for"`
	Min  *int          `json:"min,omitempty"`
	Max  *int          `json:"max,omitempty"`
}

// ScaleHold bounds what waits for the first task.
type ScaleHold struct {
	Wait     time.Duration `json:"wait,omitempty"`     // default 30 s
	Requests int           `json:"requests,omitempty"` // on each node; default 100
}

// The defaults and bounds of autoscaling.
const (
	scaleUpWindow    = 6 * time.Second
	scaleUpPercent   = 300
	scaleUpCount     = 4
	scaleDownAfter   = 5 * time.Minute
	scaleDownPercent = 50
	scaleTolerance   = 0.1
	holdWait         = 30 * time.Second
	holdRequests     = 100

	scaleAfterMin  = 5 * time.Second // less would end a task between two requests of one user
	scaleAfterMax  = 24 * time.Hour
	scaleWindowMin = 2 * time.Second
	scaleWindowMax = time.Minute
	scheduleMax    = 20
	scheduleForMax = 31 * 24 * time.Hour
	holdWaitMax    = 5 * time.Minute
	holdMax        = 10_000
)

// Rests reports whether the service may be without tasks until somebody wants it.
func (a *Autoscale) Rests() bool { return a != nil && a.Min == 0 }

// Clamp brings a number within Min and Max.
func (a *Autoscale) Clamp(n int) int { return min(max(n, a.Min), a.Max) }

// Bounds are the least and the highest number of tasks at a time.
type Bounds struct {
	Min, Max int
	// Until is when they may change next; zero: never.
	Until time.Time
	// Why names the schedule that set them; empty: none does.
	Why string
}

// Bounds gives the bounds at a time. It depends on nothing else: the time zones are part of the program.
func (a *Autoscale) Bounds(now time.Time) Bounds {
	b := Bounds{Min: a.Min, Max: a.Max}
	for _, w := range a.Schedule {
		on, until := w.on(now)
		if !until.IsZero() && (b.Until.IsZero() || until.Before(b.Until)) {
			b.Until = until
		}
		if !on {
			continue
		}
		if w.Min != nil && (b.Why == "" || *w.Min > b.Min) {
			b.Min = *w.Min
		}
		if w.Max != nil && (b.Why == "" || *w.Max > b.Max) {
			b.Max = *w.Max
		}
		b.Why = w.String()
	}
	b.Max = max(b.Max, b.Min)
	return b
}

// String is the window as a user would say it.
func (w ScaleWindow) String() string {
	s := fmt.Sprintf("%q", w.Cron)
	if w.TZ != "" {
		s += " " + w.TZ
	}
	return s + " for " + shortDuration(w.For)
}

// shortDuration is 5h, not 5h0m0s.
func shortDuration(d time.Duration) string {
	s := d.String()
	s = strings.TrimSuffix(s, "m0s") + map[bool]string{true: "m"}[strings.HasSuffix(s, "m0s")]
	return strings.TrimSuffix(s, "h0m") + map[bool]string{true: "h"}[strings.HasSuffix(s, "h0m")]
}

// on reports whether the window is open, and when that changes; zero: not within the years that are looked at.
func (w ScaleWindow) on(now time.Time) (bool, time.Time) {
	local, err := time.LoadLocation(w.TZ)
	if err != nil {
		return false, time.Time{} // Validate refuses it
	}
	if last, err := gronx.PrevTickBefore(w.Cron, now.In(local), true); err == nil {
		if until := last.Truncate(time.Minute).Add(w.For); now.Before(until) {
			// A window that opens again before it closes goes on; then nothing changes, and looking again is harmless.
			return true, until
		}
	}
	next, err := gronx.NextTickAfter(w.Cron, now.In(local), false)
	if err != nil {
		return false, time.Time{}
	}
	return false, next
}

func (a *Autoscale) setDefaults() {
	if a == nil {
		return
	}
	setDefault(&a.Up.Window, scaleUpWindow)
	setDefault(&a.Up.Step, ScaleStep{Percent: scaleUpPercent, Count: scaleUpCount})
	setDefault(&a.Down.After, scaleDownAfter)
	setDefault(&a.Down.Step, ScaleStep{Percent: scaleDownPercent})
	setDefault(&a.Tolerance, scaleTolerance)
	if a.Rests() {
		setDefault(&a.Hold.Wait, holdWait)
		setDefault(&a.Hold.Requests, holdRequests)
	}
}

// setAutoscaleDefaults brings the number that a new service begins with within the bounds.
func (v *Service) setAutoscaleDefaults() {
	if v.Autoscale == nil {
		return
	}
	v.Autoscale.setDefaults()
	if v.Autoscale.Max > 0 {
		v.Replicas = v.Autoscale.Clamp(v.Replicas)
	}
}

func (c *checker) autoscale(at string, v *Service) {
	a := v.Autoscale
	if a == nil {
		return
	}
	at += "autoscale."
	if v.Mode != Replicated {
		c.add(strings.TrimSuffix(at, "."), "a global service has one task on each node, whatever its load", "remove x-autoscale, or use mode: replicated")
	}
	switch {
	case a.Max == 0:
		c.add(at+"max", "nothing says how many tasks there may be at most", "give max")
	case a.Max < 0 || a.Max > MaxReplicas:
		c.addf(at+"max", "%d replicas; use 1 to %d", a.Max, MaxReplicas)
	case a.Min < 0 || a.Min > a.Max:
		c.add(at+"min", fmt.Sprintf("%d is not between 0 and max, which is %d", a.Min, a.Max), "lower min or raise max")
	}
	if !(a.Tolerance >= 0.01 && a.Tolerance <= 0.5) {
		c.add(at+"tolerance", fmt.Sprintf("%v is out of range", a.Tolerance), "use 1% to 50%")
	}
	c.scaleTarget(at+"target.", v)
	c.within(at+"up.window", a.Up.Window, scaleWindowMin, scaleWindowMax)
	c.within(at+"down.after", a.Down.After, scaleAfterMin, scaleAfterMax)
	for _, n := range []struct {
		path string
		step ScaleStep
	}{{"up.step", a.Up.Step}, {"down.step", a.Down.Step}} {
		if n.step.Percent < 0 || n.step.Count < 0 || n.step == (ScaleStep{}) {
			c.add(at+n.path, "a step of nothing changes nothing", "give a share such as 50%, or a number of replicas")
		}
	}
	c.schedule(at+"schedule", a)
	if a.Rests() {
		c.within(at+"hold.wait", a.Hold.Wait, time.Second, holdWaitMax)
		if a.Hold.Requests < 1 || a.Hold.Requests > holdMax {
			c.add(at+"hold.requests", fmt.Sprintf("%d requests", a.Hold.Requests), fmt.Sprintf("use 1 to %d", holdMax))
		}
		if v.NetworkMode != "" {
			c.add(at+"min", "without a network of its own nothing can wake the service again", "use min: 1, or remove network_mode")
		}
	}
}

func (c *checker) within(at string, d, least, most time.Duration) {
	if d < least || d > most {
		c.add(at, fmt.Sprintf("%v is out of range", d), fmt.Sprintf("use %s to %s", shortDuration(least), shortDuration(most)))
	}
}

func (c *checker) scaleTarget(at string, v *Service) {
	t := v.Autoscale.Target
	if t == (ScaleTarget{}) && len(v.Autoscale.Schedule) == 0 && v.Autoscale.Min > 0 {
		c.add(strings.TrimSuffix(at, "."), "there is neither a target nor a schedule to scale by", "give a target such as {rps: 80}, or remove x-autoscale")
	}
	type number struct {
		name  string
		value float64
	}
	for _, n := range []number{{"rps", t.RPS}, {"inflight", t.InFlight}} {
		if !(n.value >= 0 && n.value <= math.MaxInt32) {
			c.add(at+n.name, fmt.Sprintf("%v is out of range", n.value), "give a number per replica, above zero")
		}
	}
	if t.P95 < 0 || t.P95 > time.Hour {
		c.add(at+"p95", fmt.Sprintf("%v is out of range", t.P95), "use 1ms to 1h")
	}
	for _, n := range []number{{"cpu", t.CPU}, {"memory", t.Memory}} {
		if !(n.value >= 0 && n.value <= 10) {
			c.add(at+n.name, fmt.Sprintf("%v is out of range", n.value), "use 1% to 1000%")
		}
	}
	r := v.Resources
	if t.CPU > 0 && r.Reservations.CPU == 0 && r.Limits.CPU == 0 {
		c.add(at+"cpu", "a share of the processor needs something to be a share of", "set deploy.resources.reservations.cpus")
	}
	if t.Memory > 0 && r.Reservations.Memory == 0 && r.Limits.Memory == 0 {
		c.add(at+"memory", "a share of the memory needs something to be a share of", "set deploy.resources.reservations.memory, or give an amount such as 200M")
	}
	if t.MemoryBytes < 0 {
		c.addf(at+"memory", "an amount cannot be negative")
	}
	c.prometheus(at+"prometheus.", t.Prometheus)
}

func (c *checker) prometheus(at string, p *PrometheusTarget) {
	if p == nil {
		return
	}
	u, err := url.Parse(p.URL)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		c.add(at+"url", fmt.Sprintf("%q is no address of a server", p.URL), "write it as http://prometheus.example:9090")
	} else if u.User != nil {
		c.add(at+"url", "a password does not belong into an address that everybody sees", "let the managers in without one")
	}
	if p.Query == "" || len(p.Query) > 4096 {
		c.add(at+"query", "there is no query, or it is longer than 4096 characters", "give one that results in one number")
	}
	if !(p.PerReplica > 0 && p.PerReplica < math.MaxInt64) {
		c.add(at+"perReplica", fmt.Sprintf("%v is no load for a replica", p.PerReplica), "give a number above zero")
	}
}

func (c *checker) schedule(at string, a *Autoscale) {
	if len(a.Schedule) > scheduleMax {
		c.addf(at, "%d entries, at most %d are allowed", len(a.Schedule), scheduleMax)
		return
	}
	for i, w := range a.Schedule {
		p := fmt.Sprintf("%s[%d].", at, i)
		if !validCron(w.Cron) {
			c.add(p+"cron", "invalid time "+quote(w.Cron), `write minute, hour, day, month and weekday, as in "0 18 * * 5"`)
		}
		if _, err := time.LoadLocation(w.TZ); err != nil || w.TZ == "Local" {
			c.add(p+"tz", "unknown time zone "+quote(w.TZ), "use a name such as Europe/London")
		}
		c.within(p+"for", w.For, time.Minute, scheduleForMax)
		if w.Min == nil && w.Max == nil {
			c.add(strings.TrimSuffix(p, "."), "it changes nothing", "give min or max")
		}
		lo, hi := a.Min, a.Max
		if w.Min != nil {
			lo = *w.Min
		}
		if w.Max != nil {
			hi = *w.Max
		} else {
			hi = max(hi, lo)
		}
		if lo < 0 || hi < lo || hi > MaxReplicas || lo > a.Max && w.Max == nil {
			c.add(strings.TrimSuffix(p, "."), fmt.Sprintf("from %d to %d replicas cannot be", lo, min(hi, a.Max)), "keep min at or below max")
		}
	}
}

// validCron reports whether s is a time of five fields. @daily and the like, seconds and years are left out: they read badly.
func validCron(s string) bool {
	return len(strings.Fields(s)) == 5 && gronx.IsValid(s)
}
