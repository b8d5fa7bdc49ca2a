package runtime

import (
	"context"
	"iter"
	"sync"
	"time"

	apievents "github.com/containerd/containerd/api/events"
	"github.com/containerd/containerd/v2/core/events"
	"github.com/containerd/typeurl/v2"

	"baton/internal/model/cluster"
	"baton/internal/node/agent"
)

const (
	// eventsMax is how many events a slow reader may lag behind before it misses some.
	eventsMax = 256
	// resubscribe is the pause before events are asked for again from a containerd that went away.
	resubscribe = 100 * time.Millisecond
)

// bus hands events to any number of readers. It never waits for one.
type bus struct {
	mu     sync.Mutex
	subs   map[chan agent.Event]struct{}
	closed chan struct{}
}

func newBus() *bus {
	return &bus{subs: map[chan agent.Event]struct{}{}, closed: make(chan struct{})}
}

func (b *bus) publish(e agent.Event) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for c := range b.subs {
		select {
		case c <- e:
		default: // the reader observes periodically anyway
		}
	}
}

func (b *bus) close() { close(b.closed) }

// Events implements agent.Executor. The sequence also ends when the runtime is closed.
func (r *Runtime) Events(ctx context.Context) iter.Seq2[agent.Event, error] {
	c := make(chan agent.Event, eventsMax)
	return func(yield func(agent.Event, error) bool) {
		r.bus.mu.Lock()
		r.bus.subs[c] = struct{}{}
		r.bus.mu.Unlock()
		defer func() {
			r.bus.mu.Lock()
			delete(r.bus.subs, c)
			r.bus.mu.Unlock()
		}()
		for {
			select {
			case <-ctx.Done():
				return
			case <-r.bus.closed:
				return
			case e := <-c:
				if !yield(e, nil) {
					return
				}
			}
		}
	}
}

// pump reads containerd's events until ctx ends, over its restarts.
func (r *Runtime) pump(ctx context.Context) {
	for ctx.Err() == nil {
		sub, cancel := context.WithCancel(ctx)
		msgs, errs := r.client.EventService().Subscribe(sub,
			`topic=="/tasks/exit",namespace==`+namespace, `topic=="/tasks/oom",namespace==`+namespace)
		r.drain(sub, msgs, errs)
		cancel()
		select {
		case <-ctx.Done():
		case <-time.After(resubscribe):
		}
	}
}

func (r *Runtime) drain(ctx context.Context, msgs <-chan *events.Envelope, errs <-chan error) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-errs:
			return
		case m := <-msgs:
			if m != nil {
				r.handle(m)
			}
		}
	}
}

func (r *Runtime) handle(m *events.Envelope) {
	v, err := typeurl.UnmarshalAny(m.Event)
	if err != nil {
		r.log.Warn("unreadable event", "topic", m.Topic, "err", err)
		return
	}
	switch e := v.(type) {
	case *apievents.TaskOOM:
		id, err := cluster.ParseID(e.ContainerID)
		if err != nil {
			return
		}
		if err := r.tasks.oom(id); err != nil {
			r.log.Debug("note an out-of-memory kill", "task", id, "err", err)
		}
		r.bus.publish(agent.Event{Kind: agent.EventOOM, Task: id})
	case *apievents.TaskExit:
		id, err := cluster.ParseID(e.ContainerID)
		if err != nil || e.ID != e.ContainerID { // another process of the container
			return
		}
		r.endOutput(id)
		// Observe keeps the exit, from the task's state: unlike this event, that comes from a shim that surely knows it.
		r.bus.publish(agent.Event{Kind: agent.EventExited, Task: id})
	}
}
