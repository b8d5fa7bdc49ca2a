package control

import (
	"fmt"
	"time"

	"baton/internal/manager/store"
	"baton/internal/model/cluster"
	"baton/internal/model/spec"
	"baton/internal/plan/autoscale"
)

// Load is what was measured of a service between two times.
type Load struct {
	// Span is how much of the time is covered; zero: all of it.
	Span time.Duration
	// Counts is how many reports of requests it rests on, Weights how many of cpu and memory; without any, the numbers mean nothing.
	Counts, Weights int
	Requests        float64       // that ended
	InFlight        float64       // mean
	P95             time.Duration // zero: no request ended
	CPUUsed         float64       // cores, mean per ready task
	Memory          float64       // bytes, mean per ready task
	Missing         int           // nodes with tasks of the service, or an edge, that have not reported
}

// Measures tells what was measured of services; an empty Load means that nothing is known.
type Measures interface {
	Window(service cluster.ID, from, to time.Time) Load
}

// Wants tells when a service that may rest was last used or wanted, and since when that would be known.
type Wants interface {
	Wanted(service cluster.ID) (last, since time.Time)
}

// Answers are the results of the services' Prometheus queries.
type Answers interface {
	Answer(service cluster.ID) (value float64, at time.Time, ok bool)
}

// Sources are what was measured, for autoscaling and for judging releases; each may be nil, and then says nothing: numbers are held as they
// are, and releases are not counted.
type Sources struct {
	Measures Measures
	Wants    Wants
	Answers  Answers
	Counts   Counts
	Requests Requests
}

const (
	samplesMax  = 64 // of one service: more than a minute of them
	sampleMin   = time.Second
	sampleMax   = 30 * time.Second // a longer gap is no sample
	answerMax   = 15 * time.Second // age up to which an answer counts
	shortestGap = 500 * time.Millisecond
)

// scaler is the part of an Engine that scales by load. What it remembers of a service may be lost: then nothing shrinks for a
// while.
type scaler struct {
	on       bool
	sources  Sources
	services map[cluster.ID]*scaling
	resting  map[cluster.ID]bool // services without a task that may be woken
}

type scaling struct {
	state   autoscale.State
	samples []autoscale.Sample
	sampled time.Time
	next    time.Time // evaluation
	looked  []string
}

// Autoscale makes the engine change the numbers of services with x-autoscale. It is for the leader: a preview shows what a
// deployment does, not what the load will be.
func (e *Engine) Autoscale(s Sources) {
	e.scaler.on, e.scaler.sources = true, s
}

// scaleKey is the agenda's entry for a service's number.
func scaleKey(id cluster.ID) key { return key{kind: cluster.KindService, id: id, scale: true} }

// MarkWanted marks the resting services that somebody wants.
func (e *Engine) MarkWanted(now time.Time) {
	for id := range e.scaler.resting {
		if last, _ := e.wanted(id); now.Sub(last) <= autoscale.WantedFor {
			e.agenda.mark(scaleKey(id))
		}
	}
}

func (e *Engine) wanted(id cluster.ID) (last, since time.Time) {
	if e.scaler.sources.Wants == nil {
		return last, since
	}
	return e.scaler.sources.Wants.Wanted(id)
}

// markScale follows a change of a service.
func (e *Engine) markScale(s *cluster.Service) {
	if !e.scaler.on {
		return
	}
	if s.Replicas == 0 {
		e.scaler.resting[s.ID] = true
	} else {
		delete(e.scaler.resting, s.ID)
	}
	e.agenda.mark(scaleKey(s.ID))
}

func (e *Engine) forgetScale(id cluster.ID) {
	delete(e.scaler.resting, id)
	delete(e.scaler.services, id)
	e.agenda.drop(scaleKey(id))
}

// decideScale sets the number of a service by its load.
func (e *Engine) decideScale(id cluster.ID, now time.Time) (Decision, error) {
	d := Decision{About: "scale of service " + id.Short()}
	svc, ok := store.Get[*cluster.Service](e.snap, id)
	if !ok {
		return d, nil
	}
	rev, ok := store.Get[*cluster.Revision](e.snap, svc.Revision)
	if !ok || rev.Spec.Autoscale == nil || rev.Spec.Mode == spec.Global || svc.Scaled || svc.Removing {
		e.forgetScale(id)
		return d, nil
	}
	d.About = "scale of service " + svc.StackName + "/" + svc.Name
	s := e.scaler.services[id]
	if s == nil {
		s = &scaling{}
		e.scaler.services[id] = s
	}
	in := e.scaleInput(svc, rev, s, now)
	urgent := svc.Replicas < in.Bounds.Min || svc.Replicas > in.Bounds.Max || svc.Replicas == 0
	if now.Before(s.next) && !urgent {
		d.wake = s.next // whatever changed, the load is measured in its own time
		return d, nil
	}
	p := autoscale.Plan(in)
	s.state, s.looked, s.next = p.State, p.Looked, p.WakeAt
	d.wake = p.WakeAt
	if p.Replicas == svc.Replicas {
		return d, nil
	}
	c := cluster.Copy(svc)
	if c.Replicas = p.Replicas; p.Replicas > svc.Replicas {
		c.Scaling.UpAt = now
	} else {
		c.Scaling.DownAt = now
	}
	c.Status.Converged = false
	d.Txn.Put(c)
	d.Txn.Put(&cluster.Event{
		Meta: cluster.Meta{ID: e.newID(), Created: now}, At: now, Type: "service.scaled", Who: "autoscale", Stack: svc.Stack, Service: svc.ID,
		Message: scaledText(svc, p),
	})
	return d, nil
}

func scaledText(svc *cluster.Service, p autoscale.Decision) string {
	return fmt.Sprintf("service %s was scaled from %d to %d: %s", svc.Name, svc.Replicas, p.Replicas, p.Reason)
}

// scaleInput is what the planner looks at.
func (e *Engine) scaleInput(svc *cluster.Service, rev *cluster.Revision, s *scaling, now time.Time) autoscale.Input {
	a := rev.Spec.Autoscale
	in := autoscale.Input{
		Spec: a, Bounds: a.Bounds(now), Memory: memoryTarget(&rev.Spec), Replicas: svc.Replicas,
		Moving: svc.Rollout.State == cluster.RolloutUpdating, UpAt: svc.Scaling.UpAt, DownAt: svc.Scaling.DownAt, State: s.state, Now: now,
	}
	for t := range e.snap.TasksByService(svc.ID) {
		if t.Endpoint() {
			in.Ready++
		}
	}
	if a.Rests() {
		in.Wanted, in.Since = e.wanted(svc.ID)
		for _, n := range e.nodesByID() {
			in.Silent = in.Silent || n.State == cluster.NodeUnknown
		}
	}
	e.sample(svc.ID, rev, s, in.Ready, now)
	in.Samples = s.samples
	return in
}

// memoryTarget is the target in bytes per task.
func memoryTarget(v *spec.Service) float64 {
	t := v.Autoscale.Target
	if t.MemoryBytes > 0 {
		return float64(t.MemoryBytes)
	}
	of := v.Resources.Reservations.Memory
	if of == 0 {
		of = v.Resources.Limits.Memory
	}
	return t.Memory * float64(of)
}

// cpuShare is so many cores as a share of what a task reserved, else of its limit.
func cpuShare(v *spec.Service, cores float64) float64 {
	of := v.Resources.Reservations.CPU
	if of == 0 {
		of = v.Resources.Limits.CPU
	}
	if of == 0 {
		return 0
	}
	return cores * 1000 / float64(of)
}

// sample adds what was measured since the last sample.
func (e *Engine) sample(id cluster.ID, rev *cluster.Revision, s *scaling, ready int, now time.Time) {
	from := s.sampled
	if now.Sub(from) < sampleMin {
		return
	}
	s.sampled = now
	if now.Sub(from) > sampleMax {
		return // the first one, or one after a pause: it begins now
	}
	v := autoscale.Sample{At: now, Span: now.Sub(from), Ready: ready}
	if m := e.scaler.sources.Measures; m != nil {
		l := m.Window(id, from, now)
		if l.Span > 0 {
			v.Span = l.Span
		}
		v.Counted, v.Requests, v.InFlight, v.P95 = l.Counts > 0 && v.Span >= shortestGap, l.Requests, l.InFlight, l.P95
		v.Weighed, v.CPU, v.Memory = l.Weights > 0, cpuShare(&rev.Spec, l.CPUUsed), l.Memory
		v.Partial = l.Missing > 0
	}
	if a := e.scaler.sources.Answers; a != nil && rev.Spec.Autoscale.Target.Prometheus != nil {
		if value, at, ok := a.Answer(id); ok && now.Sub(at) <= answerMax {
			v.Asked, v.Other = true, value
		}
	}
	if !v.Counted && !v.Weighed && !v.Asked {
		return // nothing is known of this time
	}
	s.samples = append(s.samples, v)
	if len(s.samples) > samplesMax {
		s.samples = append(s.samples[:0], s.samples[len(s.samples)-samplesMax:]...)
	}
}
