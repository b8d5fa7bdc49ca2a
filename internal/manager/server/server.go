package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"reflect"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"baton/client/api"
	"baton/internal/manager/consensus"
	"baton/internal/manager/identity"
	"baton/internal/manager/measure"
	"baton/internal/manager/store"
	"baton/internal/model/cluster"
	"baton/internal/wire/agentapi"
)

// Log is what the server needs of consensus.
type Log interface {
	Propose(ctx context.Context, t store.Txn) (store.Version, error)
	Barrier(ctx context.Context) error
}

// Sealer encrypts the contents of secrets and configs for the store.
type Sealer interface {
	Seal(content []byte, kind cluster.Kind, id cluster.ID) ([]byte, error)
	Open(sealed []byte, kind cluster.Kind, id cluster.ID) ([]byte, error)
	// Digest is a keyed hash, equal for equal contents.
	Digest(content []byte) []byte
}

// Planner tells what the control loops would do.
type Planner interface {
	// Preview looks at a fork of the store to which a deployment was applied, and returns what would happen to the tasks of
	// the stack, in the order of service and slot. It may write to the fork. Equal states give equal answers.
	Preview(ctx context.Context, fork *store.Store, stack cluster.ID) ([]api.Action, error)
	// Balance tells which moves would even out the load of the nodes; with left, what is left of those asked for last.
	Balance(ctx context.Context, fork *store.Store, left bool) (api.Balance, error)
	// Suspects says, by node, why tasks are placed elsewhere.
	Suspects(snap store.Snapshot) map[cluster.ID]string
}

// Limits of requests. The first three bound memory, the others the life of what a client forgot.
const (
	BodyBytesMax    = 16 << 20 // of a JSON body: a stack with its contents, in base64
	ContentBytesMax = 512 << 10
	streamsMax      = 512 // open streams and sessions of exec
	requestTimeout  = 30 * time.Second
	retriesMax      = 16                   // of a transaction that somebody else overtook
	retryPause      = 5 * time.Millisecond // before the second try at most twice as long; doubles until retryDoubled
	retryDoubled    = 5
	keepAlive       = 15 * time.Second
)

// Config is what a Server needs. All fields but Keeper, Members, Backup, Raft, Measures, Planner, Logger and Now must be set.
type Config struct {
	Log   Log
	Store *store.Store
	// Nodes finds what a connected node does for users; false when it is not connected.
	Nodes  func(cluster.ID) (agentapi.NodeServices, bool)
	Sealer Sealer
	// Self is the node of this manager.
	Self cluster.ID
	// Keeper signs and makes join tokens, Members tells who has the log; both are nil on a manager that has no network.
	Keeper  *identity.Keeper
	Members func() (leader string, voters []string)
	// Backup writes the state with the cluster's keys, in clear; nil where there is no cluster to keep.
	Backup func(w io.Writer) error
	// Raft tells how the log is; nil where there is none.
	Raft func() consensus.Status
	// Measures is what is known of the load; nil: nothing.
	Measures *measure.Keeper
	// Planner may be nil: plans then tell of services, not of tasks.
	Planner     Planner
	ClusterName string
	Version     string
	Logger      *slog.Logger     // default: slog.Default
	Now         func() time.Time // default: time.Now
}

// Server answers the public API. Make one with New.
type Server struct {
	cfg     Config
	log     *slog.Logger
	api     huma.API
	mux     *http.ServeMux
	openapi []byte

	// closing ends streams; a request's own context ends everything else.
	closing   context.Context
	close     context.CancelFunc
	streams   chan struct{} // one token per open stream
	inStreams sync.WaitGroup
}

// New returns a server that is ready to serve; it starts nothing.
func New(cfg Config) *Server {
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	s := &Server{cfg: cfg, log: cfg.Logger, mux: http.NewServeMux(), streams: make(chan struct{}, streamsMax)}
	s.closing, s.close = context.WithCancel(context.Background())
	s.api = humago.New(s.mux, humaConfig())
	s.routes()
	s.openapi = s.describe()
	s.mux.HandleFunc("GET /v1/openapi.json", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/vnd.oai.openapi+json")
		_, _ = w.Write(s.openapi)
	})
	s.mux.Handle("GET /metrics", s.metricsHandler())
	s.mux.HandleFunc("/", s.noRoute)
	return s
}

// Close ends all streams and waits for them. Requests that come later get errors from what is closed beneath.
func (s *Server) Close() {
	s.close()
	s.inStreams.Wait()
}

// OpenAPI is the description of the API, as served at /v1/openapi.json.
func (s *Server) OpenAPI() []byte { return s.openapi }

// Handler serves the API.
func (s *Server) Handler() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		start := s.cfg.Now()
		rec := &recorder{ResponseWriter: w, status: http.StatusOK, version: func() store.Version { return s.cfg.Store.Snapshot().Version() }}
		defer func() {
			if p := recover(); p != nil {
				if err, ok := p.(error); ok && errors.Is(err, http.ErrAbortHandler) {
					panic(p)
				}
				s.log.Error("request panicked", "method", r.Method, "path", r.URL.Path, "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
				if !rec.wrote {
					writeError(rec, api.Errorf(api.CodeInternal, "a fault inside Baton").WithMend("see the server's log"))
				}
			}
			s.log.Debug("request", "method", r.Method, "path", r.URL.Path, "status", rec.status, "took", s.cfg.Now().Sub(start))
		}()
		if e := s.current(r); e != nil {
			writeError(rec, e)
			return
		}
		s.mux.ServeHTTP(rec, r)
	})
}

// recorder remembers the status for the log, and tells the version of the store with each answer.
type recorder struct {
	http.ResponseWriter
	status  int
	wrote   bool
	version func() store.Version
}

func (r *recorder) WriteHeader(code int) {
	r.stamp()
	if !r.wrote {
		r.status, r.wrote = code, true
	}
	r.ResponseWriter.WriteHeader(code)
}

func (r *recorder) Write(b []byte) (int, error) {
	r.stamp()
	r.wrote = true
	return r.ResponseWriter.Write(b)
}

// Unwrap lets http.ResponseController and WebSockets reach the connection.
func (r *recorder) Unwrap() http.ResponseWriter { return r.ResponseWriter }

func humaConfig() huma.Config {
	c := huma.DefaultConfig("Baton", "v1")
	c.CreateHooks = nil // no $schema property in answers
	c.OpenAPIPath, c.DocsPath, c.SchemasPath = "", "", ""
	c.Info.Description = "The HTTP API of Baton. Errors are problem documents with a stable code."
	c.Info.License = &huma.License{Name: "Apache-2.0", Identifier: "Apache-2.0"}
	c.Components.Schemas = huma.NewMapRegistry("#/components/schemas/", schemaName)
	c.Formats = map[string]huma.Format{"application/json": huma.DefaultJSONFormat, "json": huma.DefaultJSONFormat}
	c.RejectUnknownQueryParameters = true
	c.Transformers = []huma.Transformer{toProblem}
	return c
}

// schemaName keeps the types of package spec apart from those of package api, which have the same names on purpose.
func schemaName(t reflect.Type, hint string) string {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	name := huma.DefaultSchemaNamer(t, hint)
	if strings.HasSuffix(t.PkgPath(), "model/spec") {
		return "Spec" + name
	}
	if strings.HasSuffix(t.PkgPath(), "model/cluster") {
		return "Cluster" + name
	}
	return name
}

// describe renders the OpenAPI document.
func (s *Server) describe() []byte {
	doc := s.api.OpenAPI()
	delete(doc.Components.Schemas.Map(), "ErrorModel")
	delete(doc.Components.Schemas.Map(), "ErrorDetail")
	b, err := json.MarshalIndent(doc, "", "  ")
	if err != nil {
		panic(fmt.Sprintf("server: cannot render the API's description: %v", err))
	}
	return append(b, '\n')
}

func (s *Server) noRoute(w http.ResponseWriter, r *http.Request) {
	for _, m := range []string{http.MethodGet, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete} {
		probe := r.Clone(r.Context())
		probe.Method = m
		if _, pattern := s.mux.Handler(probe); pattern != "/" && pattern != "" {
			writeError(w, api.Errorf(api.CodeMethod, "%s is not possible here", r.Method).WithMend("use %s", m))
			return
		}
	}
	writeError(w, api.Errorf(api.CodeNotFound, "no such path: %s", r.URL.Path).WithMend("see /v1/openapi.json"))
}

func writeError(w http.ResponseWriter, e *api.Error) {
	w.Header().Set("Content-Type", e.ContentType(""))
	w.WriteHeader(e.Status)
	_ = json.NewEncoder(w).Encode(e)
}

// body is an answer.
type body[T any] struct{ Body T }

// operation describes one route.
type operation struct {
	method, path, id, summary, tag string
	// long operations have no time limit.
	long bool
	// stream, when set, is the media type of what the operation writes by itself.
	stream string
}

// handle registers an operation whose answer is one document.
func handle[I, O any](s *Server, op operation, f func(ctx context.Context, in *I) (O, error)) {
	huma.Register(s.api, s.operation(op), func(ctx context.Context, in *I) (*body[O], error) {
		if !op.long {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, requestTimeout)
			defer cancel()
		}
		out, err := f(ctx, in)
		if err != nil {
			return nil, s.problem(err)
		}
		return &body[O]{Body: out}, nil
	})
}

func (s *Server) operation(op operation) huma.Operation {
	problem := s.api.OpenAPI().Components.Schemas.Schema(reflect.TypeFor[api.Error](), true, "Error")
	o := huma.Operation{
		Method: op.method, Path: op.path, OperationID: op.id, Summary: op.summary, Tags: []string{op.tag}, MaxBodyBytes: BodyBytesMax,
		Responses: map[string]*huma.Response{
			"200":     {Description: "OK"},
			"default": {Description: "Error", Content: map[string]*huma.MediaType{"application/problem+json": {Schema: problem}}},
		},
		DefaultStatus: http.StatusOK,
	}
	if op.stream != "" {
		o.Responses["200"].Content = map[string]*huma.MediaType{op.stream: {}}
	}
	return o
}
