package server

import (
	"context"
	"encoding/json"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"baton/client/api"
	"baton/internal/manager/store"
	"baton/internal/model/cluster"
)

const ndjson = "application/x-ndjson"

// emit writes one item of a stream. Its error means that the client is gone.
type emit func(item any) error

// stream registers an operation whose answer is a stream of items. f checks the request and returns what writes the items;
// an error of the first is an HTTP error, one of the second the last line of the stream.
func stream[I any](s *Server, op operation, f func(ctx context.Context, in *I) (func(emit) error, error)) {
	op.long, op.stream = true, ndjson
	huma.Register(s.api, s.operation(op), func(_ context.Context, in *I) (*huma.StreamResponse, error) {
		return &huma.StreamResponse{Body: func(hc huma.Context) {
			r, w := humago.Unwrap(hc)
			ctx, done, err := s.openStream(r.Context())
			if err != nil {
				writeError(w, s.problem(err))
				return
			}
			defer done()
			run, err := f(ctx, in)
			if err != nil {
				writeError(w, s.problem(err))
				return
			}
			s.serveStream(ctx, w, run)
		}}, nil
	})
}

// openStream takes a place among the open streams, and returns a context that ends with the request or the server.
func (s *Server) openStream(ctx context.Context) (context.Context, func(), error) {
	select {
	case <-s.closing.Done():
		return nil, nil, api.Errorf(api.CodeUnavailable, "the server is shutting down").WithMend("try again when it is back")
	case s.streams <- struct{}{}:
	default:
		return nil, nil, api.Errorf(api.CodeUnavailable, "too many open streams (%d)", streamsMax).WithMend("close some `logs -f`, `events -f` or `exec`")
	}
	s.inStreams.Add(1)
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(s.closing, cancel)
	return ctx, func() {
		stop()
		cancel()
		<-s.streams
		s.inStreams.Done()
	}, nil
}

// serveStream writes what run emits as lines, and an empty object now and then, so that both ends notice when the other is
// gone.
func (s *Server) serveStream(ctx context.Context, w http.ResponseWriter, run func(emit) error) {
	rc := http.NewResponseController(w)
	_ = rc.SetWriteDeadline(time.Time{})
	w.Header().Set("Content-Type", ndjson)
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(http.StatusOK)
	_ = rc.Flush()

	var mu sync.Mutex // serialises the lines of run and the keep-alive
	enc := json.NewEncoder(w)
	line := func(v any) error {
		mu.Lock()
		defer mu.Unlock()
		if err := enc.Encode(v); err != nil {
			return err
		}
		return rc.Flush()
	}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		tick := time.NewTicker(keepAlive)
		defer tick.Stop()
		for {
			select {
			case <-stop:
				return
			case <-tick.C:
				_ = line(struct{}{})
			}
		}
	})
	err := run(func(item any) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		return line(struct {
			Item any `json:"item"`
		}{item})
	})
	close(stop)
	wg.Wait()
	if s.closing.Err() != nil {
		err = api.Errorf(api.CodeUnavailable, "the server is shutting down").WithMend("try again when it is back")
	}
	if err != nil && (ctx.Err() == nil || s.closing.Err() != nil) {
		_ = line(api.StreamLine{Error: s.problem(err)})
	}
}

func (s *Server) schemaOf(v any) *huma.Schema {
	return huma.SchemaFromType(s.api.OpenAPI().Components.Schemas, typeOf(v))
}

func writeJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v)
}

// watchStack emits the status of a stack now and whenever it changes, and ends when the stack is gone.
func (s *Server) watchStack(ctx context.Context, name string) (func(emit) error, error) {
	st, err := (resolver{snap: s.cfg.Store.Snapshot()}).stack(name)
	if err != nil {
		return nil, err
	}
	id := st.ID
	return func(out emit) error {
		c := s.cfg.Store.Changes(0, store.Filter{Kinds: []cluster.Kind{cluster.KindStack, cluster.KindRelease, cluster.KindService, cluster.KindTask}})
		defer c.Close()
		var last []byte
		for {
			d, err := c.Next(ctx)
			if err != nil {
				return err
			}
			if !d.Full && !concerns(d, id) {
				continue
			}
			st, ok := store.Get[*cluster.Stack](d.Snapshot, id)
			if !ok {
				return out(api.Status{Stack: api.Stack{ID: id, Name: name}, Gone: true, Version: d.Version()})
			}
			doc := reader{d.Snapshot}.status(st)
			version := doc.Version
			doc.Version = 0
			now, err := json.Marshal(doc)
			if err != nil {
				return err
			}
			doc.Version = version
			if string(now) == string(last) {
				continue
			}
			last = now
			if err := out(doc); err != nil {
				return err
			}
		}
	}, nil
}

// concerns reports whether a change may matter to a stack.
func concerns(d store.Delta, stack cluster.ID) bool {
	is := func(o cluster.Object) bool {
		switch o := o.(type) {
		case *cluster.Stack:
			return o.ID == stack
		case *cluster.Release:
			return o.Stack == stack
		case *cluster.Service:
			return o.Stack == stack
		case *cluster.Task:
			return o.Stack == stack
		}
		return true
	}
	return slices.ContainsFunc(d.Changed, is) || slices.ContainsFunc(d.Deleted, func(r store.Ref) bool { return is(r.Last) })
}

// watchKinds are the kinds that may be watched: those without anything sealed in them.
var watchKinds = map[string]cluster.Kind{
	"stack": cluster.KindStack, "release": cluster.KindRelease, "service": cluster.KindService, "task": cluster.KindTask,
	"node": cluster.KindNode, "network": cluster.KindNetwork, "volume": cluster.KindVolume, "event": cluster.KindEvent,
}

// watchObjects emits every object of the kinds, then each one as it changes.
func (s *Server) watchObjects(ctx context.Context, kinds []string) (func(emit) error, error) {
	var filter store.Filter
	for _, k := range kinds {
		kind, ok := watchKinds[k]
		if !ok {
			return nil, api.Errorf(api.CodeInvalid, "%q is not a kind that can be watched", k).At("kinds").WithMend("use stack, release, service, task, node, network, volume or event")
		}
		filter.Kinds = append(filter.Kinds, kind)
	}
	if len(kinds) == 0 {
		for _, k := range watchKinds {
			filter.Kinds = append(filter.Kinds, k)
		}
		slices.Sort(filter.Kinds)
	}
	return func(out emit) error {
		c := s.cfg.Store.Changes(0, filter)
		defer c.Close()
		first := true
		for {
			d, err := c.Next(ctx)
			if err != nil {
				return err
			}
			if d.Full && !first {
				if err := out(api.ObjectChange{Resync: true, Version: d.Version()}); err != nil {
					return err
				}
			}
			first = false
			if err := emitDelta(out, d); err != nil {
				return err
			}
		}
	}, nil
}

func emitDelta(out emit, d store.Delta) error {
	for _, o := range d.Changed {
		b, err := json.Marshal(o)
		if err != nil {
			return err
		}
		if err := out(api.ObjectChange{Kind: o.Kind().String(), ID: o.GetMeta().ID, Version: o.GetMeta().Version, Object: b}); err != nil {
			return err
		}
	}
	for _, r := range d.Deleted {
		if err := out(api.ObjectChange{Kind: r.Kind.String(), ID: r.ID, Version: d.Version(), Deleted: true}); err != nil {
			return err
		}
	}
	return nil
}
