package agent

import (
	"context"
	"reflect"
	"slices"
	"sync"
	"time"

	"baton/internal/model/cluster"
	"baton/internal/wire/agentapi"
)

// Outbox gathers what is to be reported; only the latest status of a task is kept. It may be used by the loop's goroutine
// and one that sends.
type Outbox struct {
	mu       sync.Mutex
	known    map[cluster.ID]cluster.Status // last status of every task, for a new session
	tasks    map[cluster.ID]cluster.Status
	volumes  []string
	notes    []agentapi.Note
	desc     *cluster.NodeDescription
	lastDesc cluster.NodeDescription
	applied  cluster.Version
	sent     cluster.Version
	ready    chan struct{}
}

func newOutbox() *Outbox {
	return &Outbox{
		known: make(map[cluster.ID]cluster.Status),
		tasks: make(map[cluster.ID]cluster.Status),
		ready: make(chan struct{}, 1),
	}
}

func (o *Outbox) change(f func()) {
	o.mu.Lock()
	f()
	o.mu.Unlock()
	select {
	case o.ready <- struct{}{}:
	default:
	}
}

func (o *Outbox) status(s cluster.Status) {
	o.change(func() { o.tasks[s.Task], o.known[s.Task] = s, s })
}

func (o *Outbox) volumeRemoved(name string) {
	o.change(func() { o.volumes = append(o.volumes, name) })
}

func (o *Outbox) note(n agentapi.Note) {
	o.change(func() {
		o.notes = append(o.notes, n)
		if len(o.notes) > notesMax {
			o.notes = o.notes[len(o.notes)-notesMax:]
		}
	})
}

func (o *Outbox) describe(d cluster.NodeDescription) {
	o.mu.Lock()
	same := reflect.DeepEqual(d, o.lastDesc)
	o.mu.Unlock()
	if !same {
		o.change(func() { o.lastDesc, o.desc = d, &d })
	}
}

func (o *Outbox) acknowledge(v cluster.Version) {
	o.mu.Lock()
	same := v == o.applied
	o.mu.Unlock()
	if !same {
		o.change(func() { o.applied = v })
	}
}

// Resend makes the next report carry every task's status: a new session's manager may have missed the last ones.
func (o *Outbox) Resend() {
	o.change(func() {
		for id, s := range o.known {
			o.tasks[id] = s
		}
		o.sent = 0
	})
}

// forget drops what is known of a task.
func (o *Outbox) forget(id cluster.ID) {
	o.change(func() { delete(o.known, id) })
}

// next waits for something to report. It gathers for a moment, so that a burst becomes one report.
func (o *Outbox) next(ctx context.Context) (agentapi.Report, bool) {
	for {
		select {
		case <-o.ready:
		case <-ctx.Done():
			return agentapi.Report{}, false
		}
		if !sleep(ctx, gather) {
			return agentapi.Report{}, false
		}
		if r, ok := o.Collect(); ok {
			return r, true
		}
	}
}

// Collect takes everything that is to be reported now, statuses by task id, and reports whether there was anything.
func (o *Outbox) Collect() (agentapi.Report, bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	r := agentapi.Report{Applied: o.applied, VolumesRemoved: o.volumes, Notes: o.notes, Description: o.desc}
	for _, s := range o.tasks {
		r.Tasks = append(r.Tasks, s)
	}
	slices.SortFunc(r.Tasks, func(a, b cluster.Status) int { return slices.Compare(a.Task[:], b.Task[:]) })
	empty := len(r.Tasks) == 0 && len(r.VolumesRemoved) == 0 && len(r.Notes) == 0 && r.Description == nil && o.sent == o.applied
	clear(o.tasks)
	o.volumes, o.notes, o.desc, o.sent = nil, nil, nil, o.applied
	return r, !empty
}

// gather is how long a report waits for more to join it.
const gather = 5 * time.Millisecond

// PutBack returns a report that could not be sent; statuses that changed meanwhile stay.
func (o *Outbox) PutBack(r agentapi.Report) {
	o.change(func() {
		for _, s := range r.Tasks {
			if latest, ok := o.known[s.Task]; ok {
				s = latest // what came later may be on its way already: an older word must not follow it
			}
			o.tasks[s.Task] = s
		}
		o.volumes = append(r.VolumesRemoved, o.volumes...)
		o.notes = append(r.Notes, o.notes...)
		if o.desc == nil {
			o.desc = r.Description
		}
	})
}
