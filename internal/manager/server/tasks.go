package server

import (
	"context"
	"iter"
	"reflect"
	"slices"
	"sync"
	"time"

	"baton/client/api"
	"baton/internal/manager/store"
	"baton/internal/model/cluster"
	"baton/internal/wire/agentapi"
)

func typeOf(v any) reflect.Type { return reflect.TypeOf(v) }

// logQuery chooses lines of output.
type logQuery struct {
	stack, target string
	follow        bool
	tail          int
	since, until  time.Time
}

// logTasksMax is how many tasks one stream of logs reads at once.
const logTasksMax = 512

// lineBuffer is how many lines wait for a slow reader before the nodes have to.
const lineBuffer = 256

// source is one task's output with what its lines are labelled with.
type source struct {
	task *cluster.Task
	doc  api.Task
	last time.Time // of the newest line sent
	same int       // lines sent with that time
}

func (x *source) line(l agentapi.LogLine) api.LogLine {
	return api.LogLine{
		Time: l.Time, Stream: l.Stream, Text: l.Text, Partial: l.Partial,
		Task: x.task.ID, Service: x.doc.ServiceName, Slot: x.task.Slot, Node: x.doc.NodeName,
	}
}

// logs merges the output of the tasks by time; following, it then sends lines as they come, also of tasks that start later.
func (s *Server) logs(ctx context.Context, q logQuery) (func(emit) error, error) {
	snap := s.cfg.Store.Snapshot()
	pick, err := s.logPick(snap, q)
	if err != nil {
		return nil, err
	}
	return func(out emit) error {
		sources := pick(snap)
		if len(sources) > logTasksMax {
			return api.Errorf(api.CodeTooLarge, "%d tasks have output, at most %d can be read at once", len(sources), logTasksMax).WithMend("name a service")
		}
		if err := s.merge(ctx, sources, q, out); err != nil {
			return err
		}
		if !q.follow {
			return nil
		}
		return s.follow(ctx, snap.Version(), sources, pick, out)
	}, nil
}

// logPick returns what chooses the tasks of a target from any later snapshot.
func (s *Server) logPick(snap store.Snapshot, q logQuery) (func(store.Snapshot) []*source, error) {
	t, err := resolver{snap: snap, hint: q.stack}.any(q.target)
	if err != nil {
		return nil, err
	}
	want := func(task *cluster.Task) bool { return true }
	switch t.kind {
	case cluster.KindStack:
		want = func(task *cluster.Task) bool { return task.Stack == t.stack.ID }
	case cluster.KindService:
		want = func(task *cluster.Task) bool { return task.Service == t.service.ID }
	case cluster.KindTask:
		want = func(task *cluster.Task) bool {
			return task.ID == t.task.ID || t.slot > 0 && task.Service == t.task.Service && task.Slot == t.slot
		}
	default:
		return nil, api.Errorf(api.CodeInvalid, "a %s has no output", t.kind).WithMend("name a service, service/slot, task or stack")
	}
	return func(snap store.Snapshot) []*source {
		var out []*source
		for _, svc := range (reader{snap}).services(nil) {
			for task := range snap.TasksByService(svc.ID) {
				if want(task) && !task.Node.IsZero() && task.Observed >= cluster.ObservedPreparing {
					out = append(out, &source{task: task, doc: reader{snap}.task(task)})
				}
			}
		}
		return out
	}, nil
}

// read opens one task's output. A node that is gone yields nothing: the others' lines are still worth having.
func (s *Server) read(ctx context.Context, x *source, o agentapi.LogOptions) iter.Seq2[agentapi.LogLine, error] {
	ns, ok := s.cfg.Nodes(x.task.Node)
	if !ok {
		return func(func(agentapi.LogLine, error) bool) {}
	}
	return ns.Logs(ctx, x.task.ID, o)
}

// merge sends what there is, in the order of time.
func (s *Server) merge(ctx context.Context, sources []*source, q logQuery, out emit) error {
	type head struct {
		src  *source
		line agentapi.LogLine
		next func() (agentapi.LogLine, error, bool)
	}
	var heads []*head
	for _, x := range sources {
		next, stop := iter.Pull2(s.read(ctx, x, agentapi.LogOptions{Since: q.since, Until: q.until, Tail: q.tail}))
		defer stop()
		if line, err, ok := next(); ok && err == nil {
			heads = append(heads, &head{x, line, next})
		}
	}
	for len(heads) > 0 {
		h := slices.MinFunc(heads, func(a, b *head) int { return a.line.Time.Compare(b.line.Time) })
		if err := out(h.src.line(h.line)); err != nil {
			return err
		}
		h.src.note(h.line.Time)
		line, err, ok := h.next()
		if !ok || err != nil {
			heads = slices.DeleteFunc(heads, func(x *head) bool { return x == h })
			continue
		}
		h.line = line
	}
	return ctx.Err()
}

// note remembers how far the output was sent, so that following neither repeats nor leaves out a line.
func (x *source) note(at time.Time) {
	if at.Equal(x.last) {
		x.same++
		return
	}
	x.last, x.same = at, 1
}

// follow sends lines as they come, until ctx ends.
func (s *Server) follow(ctx context.Context, from store.Version, sources []*source, pick func(store.Snapshot) []*source, out emit) error {
	ctx, cancel := context.WithCancel(ctx)
	lines := make(chan api.LogLine, lineBuffer)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	known := make(map[cluster.ID]bool)
	open := func(list []*source) {
		for _, x := range list {
			if known[x.task.ID] || len(known) >= 4*logTasksMax {
				continue
			}
			known[x.task.ID] = true
			wg.Go(func() { s.pump(ctx, x, lines) })
		}
	}
	open(sources)
	c := s.cfg.Store.Changes(from, store.Filter{Kinds: []cluster.Kind{cluster.KindTask}})
	defer c.Close()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case l := <-lines:
			if err := out(l); err != nil {
				return err
			}
		case <-c.Wait():
			if d := c.Collect(); !d.Empty() {
				open(pick(d.Snapshot))
			}
		}
	}
}

// pump follows one task's output from where merge ended.
func (s *Server) pump(ctx context.Context, x *source, lines chan<- api.LogLine) {
	skip := x.same
	for l, err := range s.read(ctx, x, agentapi.LogOptions{Since: x.last, Tail: -1, Follow: true}) {
		if err != nil {
			return
		}
		if !x.last.IsZero() && !l.Time.After(x.last) {
			if l.Time.Before(x.last) || skip > 0 {
				if l.Time.Equal(x.last) {
					skip--
				}
				continue
			}
		}
		select {
		case lines <- x.line(l):
		case <-ctx.Done():
			return
		}
	}
}
