package edge

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/http/httputil"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"baton/internal/model/spec"
)

// attemptsMax bounds how many endpoints a request is offered to.
const attemptsMax = 3

// copyBuffer is how much of a body is copied at a time.
const copyBuffer = 32 << 10

var errNoEndpoint = errors.New("no endpoint is ready")

// exchange is what the edge knows of one request.
type exchange struct {
	rule     *route
	caller   caller      // known when the rule has further keys
	cookie   string      // what the client sent of a sticky rule's
	clock    *clock      // nil: the request may take as long as it likes
	over     atomic.Bool // its body was larger than the rule allows
	backend  *backend    // that has the request
	err      error       // what kept it from a task
	counter  *counter    // that it counts with: of the task that had it last, else of the service
	header   time.Time   // when a task sent the header of its answer; zero: none did
	status   int         // of that header
	stream   bool        // the answer takes as long as it likes
	cut      atomic.Bool
	received atomic.Uint64 // bytes of its body
}

type exchangeKey struct{}

func (e *Edge) newProxy() *httputil.ReverseProxy {
	return &httputil.ReverseProxy{
		Rewrite:        rewrite,
		ModifyResponse: amend,
		Transport:      e,
		FlushInterval:  -1, // streams must not wait for a buffer to fill
		ErrorLog:       slog.NewLogLogger(e.cfg.Log.Handler(), slog.LevelDebug),
		ErrorHandler:   answerError,
		BufferPool:     new(buffers),
	}
}

// ServeHTTP implements http.Handler.
func (e *Edge) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	e.answer(&recorder{ResponseWriter: w}, r)
}

func (e *Edge) answer(rec *recorder, r *http.Request) {
	start := time.Now()
	x := &exchange{}
	service := ""
	defer func() {
		task := netip.AddrPort{}
		if x.backend != nil {
			task = x.backend.address
			e.release(x.backend)
		}
		took := time.Since(start)
		x.ended(r, rec, start, took)
		e.access(r, rec, x, service, task, took)
	}()
	if r.Method == http.MethodConnect {
		http.Error(rec, "this is no forward proxy", http.StatusMethodNotAllowed)
		return
	}
	if e.challenge(rec, r) {
		return
	}
	rule := e.table.Load().find(r.Host, r.URL.Path)
	if rule == nil {
		http.Error(rec, "no rule for this host and path", http.StatusNotFound)
		return
	}
	service = rule.service
	if e.misdirected(rec, r, rule) {
		return
	}
	x.rule = rule
	x.counted(rule.counter)
	e.forward(rec, r, x)
}

// RoundTrip implements http.RoundTripper for the proxy: it offers the request to endpoints until one took it.
func (e *Edge) RoundTrip(req *http.Request) (*http.Response, error) {
	x := exchangeOf(req)
	x.err = errNoEndpoint
	var tried []*backend
	for range attemptsMax {
		b, err := e.await(req, tried)
		if err != nil {
			if len(tried) == 0 { // else what the last one tried said is more
				x.err = err
			}
			break
		}
		x.backend = b
		x.counted(b.counter.Load())
		out := req.WithContext(req.Context())
		u := *req.URL
		u.Scheme, u.Host = "http", b.address.String()
		out.URL = &u
		var body *unread
		if req.Body != nil && req.Body != http.NoBody {
			body = &unread{Reader: req.Body, count: &x.received, clock: x.clock}
			out.Body = body
		}
		x.clock.sent()
		res, err := x.transport(req).RoundTrip(out)
		if err == nil {
			x.err = nil
			x.answer(req, res)
			return res, nil
		}
		x.backend, x.err = nil, err
		e.release(b)
		var unsent *dialError
		if !errors.As(err, &unsent) || body != nil && body.read.Load() || req.Context().Err() != nil {
			break
		}
		b.failed(time.Now())
		tried = append(tried, b)
	}
	return nil, x.err
}

// unread is a request's body that outlives an attempt and knows whether it was read.
type unread struct {
	io.Reader
	read  atomic.Bool
	count *atomic.Uint64
	clock *clock
}

func (u *unread) Read(p []byte) (int, error) {
	u.read.Store(true)
	n, err := u.Reader.Read(p)
	u.count.Add(uint64(n))
	u.clock.moved()
	return n, err
}

func (u *unread) Close() error { return nil }

// isGRPC reports whether a request needs HTTP/2 all the way.
func isGRPC(r *http.Request) bool {
	return r.ProtoMajor == 2 && strings.HasPrefix(r.Header.Get("Content-Type"), "application/grpc")
}

// posing reports whether tasks may take a header for the word of a proxy, under whichever spelling: many programs see
// X_Forwarded_For as X-Forwarded-For. Proxy becomes the variable HTTP_PROXY of CGI programs.
func posing(name string) bool {
	switch strings.ReplaceAll(strings.ToLower(name), "_", "-") {
	case "proxy", "http2-settings":
		return true
	}
	return spec.ClaimsClient(name)
}

// rewrite makes the request for the task of the client's.
func rewrite(p *httputil.ProxyRequest) {
	h := p.Out.Header
	maps.DeleteFunc(h, func(name string, _ []string) bool { return posing(name) })
	// Other upgrades, h2c above all, would open a tunnel whose requests no rule sees.
	if !strings.EqualFold(h.Get("Upgrade"), "websocket") {
		h.Del("Upgrade")
		h.Del("Connection")
	}
	p.Out.URL.RawQuery = p.In.URL.RawQuery // nothing here depends on it, so the task gets it as it came
	x := exchangeOf(p.In)
	proto := ""
	if x.caller.proxied {
		proto = forwardedBy(p.In.Header, h)
	}
	p.SetXForwarded()
	if proto != "" {
		h.Set("X-Forwarded-Proto", proto)
	}
	h.Set("Forwarded", x.caller.forwarded(proto)+forwarded(p.In))
	if k := x.rule.policy; k != nil {
		change(h, k.request)
	}
}

// forwarded is the header of RFC 7239.
func forwarded(r *http.Request) string {
	client := "unknown"
	if host, _, err := net.SplitHostPort(r.RemoteAddr); err == nil {
		if client = host; strings.Contains(host, ":") {
			client = `"[` + host + `]"`
		}
	}
	s := "for=" + client
	if r.Host != "" && !strings.ContainsAny(r.Host, `"\`) {
		s += `;host="` + r.Host + `"`
	}
	if r.TLS != nil {
		return s + ";proto=https"
	}
	return s + ";proto=http"
}

// answerError tells a client that no task answered.
func answerError(w http.ResponseWriter, r *http.Request, err error) {
	switch {
	case exchangeOf(r).over.Load():
		bodyTooLarge(w, r)
	case context.Cause(r.Context()) == errTimeout:
		http.Error(w, "the service did not answer in the time that the rule allows", http.StatusGatewayTimeout)
	case r.Context().Err() != nil:
		panic(http.ErrAbortHandler) // the client has gone, or the edge stops: there is nobody to answer
	case errors.Is(err, errHeldFull):
		w.Header().Set("Retry-After", "1")
		http.Error(w, "the service is starting, and too many requests wait for it already", http.StatusServiceUnavailable)
	case errors.Is(err, errHeldLong):
		w.Header().Set("Retry-After", "5")
		http.Error(w, "the service was started for this request, and was not ready in time", http.StatusServiceUnavailable)
	case errors.Is(err, errNoEndpoint):
		w.Header().Set("Retry-After", "1")
		http.Error(w, "no task of the service is ready", http.StatusServiceUnavailable)
	default:
		http.Error(w, "the service did not answer", http.StatusBadGateway)
	}
}

// recorder remembers what was answered. http.ResponseController reaches the connection through Unwrap.
type recorder struct {
	http.ResponseWriter
	status  int
	bytes   int64
	leaving <-chan struct{} // closed once the connection is to end with its next answer; may be nil
}

func (r *recorder) Unwrap() http.ResponseWriter { return r.ResponseWriter }

func (r *recorder) WriteHeader(code int) {
	if r.status == 0 && (code >= 200 || code == http.StatusSwitchingProtocols) {
		r.status = code
		if code != http.StatusSwitchingProtocols && isClosed(r.leaving) {
			r.Header().Set("Connection", "close") // on HTTP/2 net/http makes a GOAWAY of it, and answers the other streams
		}
	}
	r.ResponseWriter.WriteHeader(code)
}

func (r *recorder) Write(p []byte) (int, error) {
	if r.status == 0 {
		r.WriteHeader(http.StatusOK)
	}
	n, err := r.ResponseWriter.Write(p)
	r.bytes += int64(n)
	return n, err
}

// buffers are the proxy's copy buffers.
type buffers struct{ pool sync.Pool }

func (b *buffers) Get() []byte {
	if p, ok := b.pool.Get().(*[]byte); ok {
		return *p
	}
	return make([]byte, copyBuffer)
}

func (b *buffers) Put(p []byte) { b.pool.Put(&p) }
