package agent

import (
	"context"
	"maps"
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
	mu    sync.Mutex
	known map[cluster.ID]cluster.Status // last status of every task, for a new session
	tasks map[cluster.ID]cluster.Status
	// stands are the stand-ins by the task whose place they have. Until a manager has decided on one, neither is reported
	// by itself.
	stands   map[cluster.ID]*stand
	volumes  []string
	notes    []agentapi.Note
	images   *agentapi.PreparedImages // to be reported
	last     *agentapi.PreparedImages // reported last, for a new session
	desc     *cluster.NodeDescription
	lastDesc cluster.NodeDescription
	wanted   map[cluster.ID]bool // services that somebody wants
	applied  cluster.Version
	sent     cluster.Version
	ready    chan struct{}
}

// stand is a stand-in that a manager has to decide on.
type stand struct {
	agentapi.StandIn
	told bool // reported as it is now
}

func newOutbox() *Outbox {
	return &Outbox{
		wanted: make(map[cluster.ID]bool),
		stands: make(map[cluster.ID]*stand),
		known:  make(map[cluster.ID]cluster.Status),
		tasks:  make(map[cluster.ID]cluster.Status),
		ready:  make(chan struct{}, 1),
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
	o.change(func() {
		for _, st := range o.stands {
			switch s.Task {
			case st.Status.Task:
				st.Status, st.told = s, false
				return
			case st.For.Task:
				st.For, st.told = s, false
			}
		}
		o.tasks[s.Task], o.known[s.Task] = s, s
	})
}

// stand notes a stand-in, in place of an earlier one for the same task.
func (o *Outbox) stand(root cluster.Status, s agentapi.StandIn) {
	s.For = root
	o.change(func() { o.stands[root.Task] = &stand{StandIn: s} })
}

// prepared notes how every wanted image is.
func (o *Outbox) prepared(list []cluster.Prepared) {
	o.change(func() {
		o.last = &agentapi.PreparedImages{Images: list}
		o.images = o.last
	})
}

// settle makes the two reported each by itself, if the second still stands in for the first.
func (o *Outbox) settle(root, id cluster.ID) {
	o.change(func() {
		if s := o.stands[root]; s != nil && s.Status.Task == id {
			delete(o.stands, root)
			o.tasks[root], o.known[root] = s.For, s.For
			o.tasks[id], o.known[id] = s.Status, s.Status
		}
	})
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
		for _, s := range o.stands {
			s.told = false
		}
		o.sent, o.images = 0, o.last
	})
}

// want notes that somebody wants a service. It is not kept for a later session: whoever wants it still says so again.
func (o *Outbox) want(service cluster.ID) {
	o.change(func() {
		if len(o.wanted) < wantedMax {
			o.wanted[service] = true
		}
	})
}

// wantedMax bounds the services of one report that are wanted.
const wantedMax = 1000

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
	r := agentapi.Report{Applied: o.applied, VolumesRemoved: o.volumes, Notes: o.notes, Description: o.desc, Prepared: o.images}
	for id, s := range o.tasks {
		if o.stands[id] == nil {
			r.Tasks = append(r.Tasks, s)
		}
	}
	for _, s := range o.stands {
		if !s.told {
			s.told = true
			r.StandIns = append(r.StandIns, s.StandIn)
		}
	}
	slices.SortFunc(r.Tasks, func(a, b cluster.Status) int { return slices.Compare(a.Task[:], b.Task[:]) })
	slices.SortFunc(r.StandIns, func(a, b agentapi.StandIn) int { return slices.Compare(a.For.Task[:], b.For.Task[:]) })
	r.Wanted = slices.SortedFunc(maps.Keys(o.wanted), func(a, b cluster.ID) int { return slices.Compare(a[:], b[:]) })
	empty := r.Empty() && o.sent == o.applied && len(r.Wanted) == 0
	clear(o.tasks)
	clear(o.wanted)
	o.volumes, o.notes, o.desc, o.images, o.sent = nil, nil, nil, nil, o.applied
	return r, !empty
}

// gather is how long a report waits for more to join it.
const gather = 5 * time.Millisecond

// PutBack returns a report that could not be sent; statuses that changed meanwhile stay.
func (o *Outbox) PutBack(r agentapi.Report) {
	o.change(func() {
		for _, s := range r.StandIns {
			if st := o.stands[s.For.Task]; st != nil {
				st.told = false
			}
		}
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
		if r.Prepared != nil {
			o.images = o.last
		}
	})
}
