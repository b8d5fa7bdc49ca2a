package bubble

import (
	"errors"
	"fmt"
	"time"

	"baton/internal/manager/control"
	"baton/internal/manager/store"
	"baton/internal/model/cluster"
	"baton/internal/model/spec"
)

// scaled are the policies of the services of a stack, by place; nil: the file's number holds.
var scaled = [3]*spec.Autoscale{
	1: {Min: 1, Max: 12, Target: spec.ScaleTarget{RPS: 50}, Down: spec.ScaleDown{After: 15 * time.Second}},
	2: {Min: 0, Max: 5, Down: spec.ScaleDown{After: 10 * time.Second}},
}

// calmRate is the load once faults are over, in requests per second: six replicas' worth. Before, it jumps every ten seconds.
const (
	calmRate     = 300
	calmReplicas = 6
)

var _ control.Measures = (*World)(nil)

// Window implements control.Measures: services with a load have the same one, and now and then nothing is known of it.
func (w *World) Window(service cluster.ID, from, to time.Time) control.Load {
	w.mu.Lock()
	calm, busy := w.calm, w.busy[service]
	w.mu.Unlock()
	if !busy {
		return control.Load{}
	}
	rate := float64(calmRate)
	if calm.IsZero() {
		turn := uint64(time.Since(w.begun)/(10*time.Second)) + w.cfg.Seed
		if turn%7 == 0 {
			return control.Load{}
		}
		rate = float64(turn * 2654435761 % 1000)
	}
	return control.Load{Counts: 1, Requests: rate * to.Sub(from).Seconds(), InFlight: rate / 20, P95: 60 * time.Millisecond}
}

// want says on some machine that a service that may rest is wanted.
func (w *World) want() {
	m := w.anyOf(w.workers())
	if m == nil || w.rng.IntN(4) > 0 {
		return
	}
	for s := range store.All[*cluster.Service](w.snapshot()) {
		if s.Name == "c" && w.rng.IntN(2) == 0 {
			m.agent.Want(s.ID)
		}
	}
}

// checkScale checks that no number leaves its bounds. It also finds the services that have a load.
func (w *World) checkScale() {
	w.t.Helper()
	for s := range store.All[*cluster.Service](w.snapshot()) {
		if s.Name == "b" {
			w.mu.Lock()
			w.busy[s.ID] = true
			w.mu.Unlock()
		}
		a := scaled[s.Name[0]-'a']
		if a != nil && (s.Replicas < a.Min || s.Replicas > a.Max) {
			w.t.Fatalf("seed %d, after %s: service %s/%s has %d replicas, and %d to %d are allowed", w.cfg.Seed, time.Since(w.begun), s.StackName, s.Name, s.Replicas, a.Min, a.Max)
		}
	}
}

// scaledRight says which number is not that of the calm load.
func scaledRight(snap store.Snapshot) error {
	for s := range store.All[*cluster.Service](snap) {
		want, scales := map[string]int{"b": calmReplicas, "c": 0}[s.Name]
		if scales && !s.Removing && s.Replicas != want {
			return fmt.Errorf("service %s/%s has %d replicas, want %d", s.StackName, s.Name, s.Replicas, want)
		}
	}
	return nil
}

// wakes checks that every service that rests is awake at once when somebody wants it.
func (w *World) wakes() {
	w.t.Helper()
	say := func() error {
		awake := errors.New("no service may rest")
		for s := range store.All[*cluster.Service](w.snapshot()) {
			if s.Name != "c" || s.Removing {
				continue
			}
			if s.Replicas == 0 {
				w.anyOf(w.workers()).agent.Want(s.ID)
				return fmt.Errorf("service %s/%s rests", s.StackName, s.Name)
			}
			awake = nil
		}
		return awake
	}
	w.eventually("services wake", 10*time.Second, say)
}
