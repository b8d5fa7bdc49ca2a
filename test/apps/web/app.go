package main

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coder/websocket"
)

const (
	// eatMax bounds one /eat request, in MiB; more takes several.
	eatMax  = 64 << 10
	slowMax = 10 * time.Minute
	// messageMax bounds a gRPC message.
	messageMax = 1 << 20
)

// app holds what the handlers share. Its zero switches mean healthy.
type app struct {
	version  string
	errors   float64       // percent of requests for / that fail
	delay    time.Duration // before / is answered
	served   atomic.Int64
	inFlight atomic.Int64
	off      map[string]*atomic.Bool // probe name → switched off; the map is fixed

	mu    sync.Mutex
	eaten [][]byte // kept for ever, on purpose
}

func newApp(version string) *app {
	return &app{version: version, off: map[string]*atomic.Bool{"health": {}, "ready": {}, "live": {}}}
}

func (a *app) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", a.index)
	mux.HandleFunc("GET /healthz", a.probe("health"))
	mux.HandleFunc("GET /ready", a.probe("ready"))
	mux.HandleFunc("GET /live", a.probe("live"))
	mux.HandleFunc("POST /admin/{probe}", a.admin)
	mux.HandleFunc("GET /slow", a.slow)
	mux.HandleFunc("GET /file", a.file)
	mux.HandleFunc("GET /env", a.env)
	mux.HandleFunc("GET /stats", a.stats)
	mux.HandleFunc("POST /exit", a.exit)
	mux.HandleFunc("POST /eat", a.eat)
	mux.HandleFunc("GET /ws", echoMessages)
	mux.HandleFunc("POST /echo.Echo/Stream", echoStream)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		a.inFlight.Add(1)
		defer a.inFlight.Add(-1)
		defer a.served.Add(1)
		w.Header().Set("X-Version", a.version)
		mux.ServeHTTP(w, r)
	})
}

func (a *app) index(w http.ResponseWriter, r *http.Request) {
	time.Sleep(a.delay)
	if rand.Float64()*100 < a.errors {
		http.Error(w, "this build is bad", http.StatusInternalServerError)
		return
	}
	host, err := os.Hostname()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	// The address that this request came to is the task's own, after any
	// balancing on the way.
	local := ""
	if addr, ok := r.Context().Value(http.LocalAddrContextKey).(net.Addr); ok {
		local, _, _ = net.SplitHostPort(addr.String())
	}
	client, _, _ := net.SplitHostPort(r.RemoteAddr)
	fmt.Fprintf(w, "version: %s\nhost: %s\naddress: %s\nclient: %s\n", a.version, host, local, client)
}

func (a *app) probe(name string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		if a.off[name].Load() {
			http.Error(w, name+" is switched off", http.StatusServiceUnavailable)
			return
		}
		io.WriteString(w, "ok\n")
	}
}

func (a *app) admin(w http.ResponseWriter, r *http.Request) {
	name := r.PathValue("probe")
	off, ok := a.off[name]
	if !ok {
		http.Error(w, "no probe "+name+": health, ready or live", http.StatusNotFound)
		return
	}
	on, err := strconv.ParseBool(r.FormValue("ok"))
	if err != nil {
		http.Error(w, "ok must be true or false", http.StatusBadRequest)
		return
	}
	off.Store(!on)
	fmt.Fprintf(w, "%s: %v\n", name, on)
}

func (a *app) slow(w http.ResponseWriter, r *http.Request) {
	ms, ok := number(w, r, "ms", int(slowMax/time.Millisecond))
	if !ok {
		return
	}
	select {
	case <-r.Context().Done():
	case <-time.After(time.Duration(ms) * time.Millisecond):
		fmt.Fprintf(w, "slept %d ms\nversion: %s\n", ms, a.version)
	}
}

func (a *app) file(w http.ResponseWriter, r *http.Request) {
	data, err := os.ReadFile(r.FormValue("path"))
	if err != nil {
		http.Error(w, err.Error(), http.StatusNotFound)
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Write(data)
}

func (a *app) env(w http.ResponseWriter, _ *http.Request) {
	env := os.Environ()
	slices.Sort(env)
	io.WriteString(w, strings.Join(env, "\n")+"\n")
}

func (a *app) stats(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	// The request that asks is in flight itself.
	json.NewEncoder(w).Encode(map[string]int64{"served": a.served.Load(), "in_flight": a.inFlight.Load() - 1})
}

// exit never answers: what runs when a process dies is for the caller to see.
func (a *app) exit(w http.ResponseWriter, r *http.Request) {
	code, ok := number(w, r, "code", 255)
	if !ok {
		return
	}
	os.Exit(code)
}

func (a *app) eat(w http.ResponseWriter, r *http.Request) {
	mb, ok := number(w, r, "mb", eatMax)
	if !ok {
		return
	}
	for range mb {
		chunk := make([]byte, 1<<20)
		// Memory counts only once each of its pages was written to.
		for i := 0; i < len(chunk); i += 4096 {
			chunk[i] = 1
		}
		a.mu.Lock()
		a.eaten = append(a.eaten, chunk)
		a.mu.Unlock()
	}
	fmt.Fprintf(w, "ate %d MiB\n", mb)
}

// echoMessages sends each message of a WebSocket back, until the client closes it.
func echoMessages(w http.ResponseWriter, r *http.Request) {
	c, err := websocket.Accept(w, r, nil)
	if err != nil {
		return // it has answered
	}
	defer c.CloseNow()
	for {
		kind, data, err := c.Read(r.Context())
		if err != nil {
			return
		}
		if err := c.Write(r.Context(), kind, data); err != nil {
			return
		}
	}
}

// echoStream is a gRPC method that sends each message of a stream back, until the client has sent its last. A message is a flag, its length in
// four bytes, and so many more.
func echoStream(w http.ResponseWriter, r *http.Request) {
	if r.ProtoMajor != 2 {
		http.Error(w, "gRPC needs HTTP/2", http.StatusHTTPVersionNotSupported)
		return
	}
	w.Header().Set("Content-Type", "application/grpc")
	w.Header().Set("Trailer", "Grpc-Status")
	out := http.NewResponseController(w)
	for {
		head := make([]byte, 5)
		switch _, err := io.ReadFull(r.Body, head); err {
		case nil:
		case io.EOF:
			w.Header().Set("Grpc-Status", "0")
			return
		default:
			return
		}
		size := binary.BigEndian.Uint32(head[1:])
		if size > messageMax {
			w.Header().Set("Grpc-Status", "8") // RESOURCE_EXHAUSTED
			return
		}
		message := make([]byte, size)
		if _, err := io.ReadFull(r.Body, message); err != nil {
			return
		}
		if _, err := w.Write(append(head, message...)); err != nil || out.Flush() != nil {
			return
		}
	}
}

// number reads an integer parameter of 0..limit, or answers 400.
func number(w http.ResponseWriter, r *http.Request, key string, limit int) (int, bool) {
	n, err := strconv.Atoi(r.FormValue(key))
	if err != nil || n < 0 || n > limit {
		http.Error(w, fmt.Sprintf("%s must be a number from 0 to %d", key, limit), http.StatusBadRequest)
		return 0, false
	}
	return n, true
}
