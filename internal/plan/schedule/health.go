package schedule

import (
	"fmt"
	"slices"
	"time"

	"baton/internal/model/cluster"
)

const (
	// failureWindow is how long a failure speaks against a node.
	failureWindow = 5 * time.Minute
	// failuresDefer is how many failures of a revision within the window put a node behind all others for it. It must be less
	// than the failures of one slot that fail a first deployment, or one bad node could fail it.
	failuresDefer = 2
	// failuresMax bounds the failures remembered per node and service.
	failuresMax = 8
	// suspectServices is how many services must fail on a node, and not as often on any other, before the node itself is
	// taken to be the cause. One service alone may have only itself to blame.
	suspectServices = 2
	// suspectFailures is how many failures more than elsewhere that must be in all.
	suspectFailures = 3
)

// failure is one task's bad end.
type failure struct {
	at       time.Time
	revision cluster.ID
}

// fail notes that a task of the service ended badly on its node.
func (v *View) fail(t *cluster.Task) {
	bad := t.Observed == cluster.ObservedFailed || t.Observed == cluster.ObservedRejected
	if !bad || !t.StopSince.IsZero() || !t.DrainSince.IsZero() {
		return
	}
	if v.failures[t.Node] == nil {
		v.failures[t.Node] = make(map[cluster.ID][]failure)
	}
	list := append(v.failures[t.Node][t.Service], failure{t.Ended, t.Revision})
	slices.SortFunc(list, func(a, b failure) int { return a.at.Compare(b.at) }) // what is stored is not read in the order in which it ended
	v.failures[t.Node][t.Service] = list[max(0, len(list)-failuresMax):]
}

// failed counts the recent failures of a service on a node, and forgets older ones.
func (v *View) failed(node, service cluster.ID, now time.Time) int {
	list := v.failures[node][service]
	if len(list) == 0 {
		return 0
	}
	list = slices.DeleteFunc(list, func(f failure) bool { return now.Sub(f.at) > failureWindow })
	if len(list) > 0 {
		v.failures[node][service] = list
		return len(list)
	}
	delete(v.failures[node], service)
	if len(v.failures[node]) == 0 {
		delete(v.failures, node)
	}
	return 0
}

// failedAs counts the recent failures of one revision on a node. Those of others say nothing about it: what replaces a
// revision that crashes, or comes back after it, may go anywhere.
func (v *View) failedAs(node cluster.ID, rev *cluster.Revision, service cluster.ID, now time.Time) int {
	if v.failed(node, service, now) == 0 {
		return 0
	}
	n := 0
	for _, f := range v.failures[node][service] {
		if f.revision == rev.ID {
			n++
		}
	}
	return n
}

// Suspect is a node where tasks of several services fail that do not fail as often elsewhere.
type Suspect struct {
	Node     cluster.ID
	Name     string
	Services int // that fail there more often than on any other node
	Failures int // by how much, in all
}

// String is the reason why the node is avoided.
func (s Suspect) String() string {
	return fmt.Sprintf("%s is avoided: tasks of %d services failed there in the last %s, more often than anywhere else", s.Name, s.Services, window())
}

func window() string { return count(int(failureWindow/time.Minute), "minute", "minutes") }

// Suspects lists the nodes that every service should avoid now, sorted by id. A service that fails on several nodes counts
// against one only by how much more often it fails there than on the second worst: one that crashes everywhere speaks
// against no node.
func (v *View) Suspects(now time.Time) []Suspect {
	type worst struct{ first, second int }
	by := make(map[cluster.ID]worst)
	for node, services := range v.failures {
		for service := range services {
			n, w := v.failed(node, service, now), by[service]
			switch {
			case n > w.first:
				w = worst{n, w.first}
			case n > w.second:
				w.second = n
			}
			by[service] = w
		}
	}
	var out []Suspect
	for id, services := range v.failures {
		n, ok := v.byID[id]
		if !ok {
			continue
		}
		s := Suspect{Node: id, Name: n.Name}
		for service, list := range services {
			if more := len(list) - by[service].second; more > 0 && len(list) == by[service].first {
				s.Services++
				s.Failures += more
			}
		}
		if s.Services >= suspectServices && s.Failures >= suspectFailures {
			out = append(out, s)
		}
	}
	slices.SortFunc(out, func(a, b Suspect) int { return slices.Compare(a.Node[:], b.Node[:]) })
	return out
}
