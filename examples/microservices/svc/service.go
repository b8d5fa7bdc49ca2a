package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
)

// The limits of a call.
const (
	upstreamsMax    = 32
	answerBytesMax  = 4 << 20
	requestTimeout  = 10 * time.Second
	depthMax        = 16 // of a chain of calls, so that upstreams in a circle end with an error
	depthHeader     = "X-Call-Depth"
	workDurationMax = 5 * time.Second
)

// Settings is what the environment says.
type Settings struct {
	Name      string
	Port      string
	Work      time.Duration
	Upstreams []Upstream
	Instance  string
}

// Upstream is what a service calls.
type Upstream struct {
	Name string
	URL  *url.URL
}

// LoadSettings reads the variables through getenv.
func LoadSettings(getenv func(string) string) (Settings, error) {
	s := Settings{Name: getenv("NAME"), Port: getenv("PORT")}
	if s.Name == "" {
		return s, errors.New("NAME is not set: give the service its name")
	}
	if s.Port == "" {
		s.Port = "8080"
	}
	if n, err := strconv.ParseUint(s.Port, 10, 16); err != nil || n == 0 {
		return s, fmt.Errorf("PORT %q: want a port from 1 to 65535", s.Port)
	}
	if v := getenv("WORK"); v != "" {
		d, err := time.ParseDuration(v)
		if err != nil || d < 0 || d > workDurationMax {
			return s, fmt.Errorf("WORK %q: want a duration from 0s to %v, such as 5ms", v, workDurationMax)
		}
		s.Work = d
	}
	fields := strings.FieldsFunc(getenv("UPSTREAMS"), func(r rune) bool { return r == ',' || r == ' ' || r == '\n' })
	if len(fields) > upstreamsMax {
		return s, fmt.Errorf("UPSTREAMS: %d are too many, want at most %d", len(fields), upstreamsMax)
	}
	for _, f := range fields {
		name, raw, ok := strings.Cut(f, "=")
		if !ok {
			name, raw = "", f
		}
		u, err := url.Parse(raw)
		if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "redis" {
			return s, fmt.Errorf("UPSTREAMS %q: want [name=]http://host:port or [name=]redis://host:port", f)
		}
		if name == "" {
			name = u.Hostname()
		}
		s.Upstreams = append(s.Upstreams, Upstream{name, u})
	}
	var err error
	if s.Instance, err = os.Hostname(); err != nil {
		return s, fmt.Errorf("own name: %w", err)
	}
	return s, nil
}

// Call is one call of the tree.
type Call struct {
	Name     string  `json:"name"`
	Instance string  `json:"instance,omitempty"`
	OK       bool    `json:"ok"` // this call and every one below it
	Millis   float64 `json:"ms"`
	Error    string  `json:"error,omitempty"`
	Count    int64   `json:"count,omitempty"` // of a redis upstream: calls so far
	Calls    []Call  `json:"calls,omitempty"`
}

// Service answers for one name.
type Service struct {
	settings Settings
	http     *http.Client
	redis    map[string]*redis.Client // by upstream name
	log      *slog.Logger
}

// NewService prepares the clients of the upstreams; nothing connects before the first request.
func NewService(s Settings, client *http.Client, log *slog.Logger) (*Service, error) {
	v := &Service{settings: s, http: client, redis: map[string]*redis.Client{}, log: log}
	for _, u := range s.Upstreams {
		if u.URL.Scheme != "redis" {
			continue
		}
		o, err := redis.ParseURL(u.URL.String())
		if err != nil {
			return nil, fmt.Errorf("upstream %s: %w", u.Name, err)
		}
		v.redis[u.Name] = redis.NewClient(o)
	}
	return v, nil
}

// Close ends the connections to redis.
func (s *Service) Close() {
	for _, c := range s.redis {
		_ = c.Close() // the process ends anyway
	}
}

// Handler returns the routes: / is the tree, /healthz the health check.
func (s *Service) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("healthy\n")) })
	mux.HandleFunc("GET /{$}", s.tree)
	return mux
}

func (s *Service) tree(w http.ResponseWriter, r *http.Request) {
	depth, _ := strconv.Atoi(r.Header.Get(depthHeader)) // absent or strange: this is where the calls begin
	ctx, cancel := context.WithTimeout(r.Context(), requestTimeout)
	defer cancel()
	c := s.work(ctx, depth)
	b, err := json.MarshalIndent(c, "", "  ")
	if err != nil {
		panic(fmt.Sprintf("encode %+v: %v", c, err))
	}
	w.Header().Set("Content-Type", "application/json")
	if !c.OK {
		s.log.Warn("a call below failed", "name", s.settings.Name)
		w.WriteHeader(http.StatusBadGateway)
	}
	_, _ = w.Write(append(b, '\n')) // a client that left is no error of ours
}

// work does this service's part and waits for its upstreams, which it calls at the same time.
func (s *Service) work(ctx context.Context, depth int) Call {
	start := time.Now()
	c := Call{Name: s.settings.Name, Instance: s.settings.Instance, OK: true}
	if depth >= depthMax {
		c.OK, c.Error = false, fmt.Sprintf("more than %d calls deep: the upstreams go in a circle", depthMax)
		return c
	}
	c.Calls = make([]Call, len(s.settings.Upstreams))
	var wg sync.WaitGroup
	for i, u := range s.settings.Upstreams {
		wg.Go(func() { c.Calls[i] = s.call(ctx, u, depth+1) })
	}
	if s.settings.Work > 0 {
		select {
		case <-time.After(s.settings.Work):
		case <-ctx.Done():
			c.OK, c.Error = false, ctx.Err().Error()
		}
	}
	wg.Wait()
	for _, below := range c.Calls {
		c.OK = c.OK && below.OK
	}
	c.Millis = millis(start)
	return c
}

// call asks one upstream. Millis is the time seen from here, the network included.
func (s *Service) call(ctx context.Context, u Upstream, depth int) Call {
	start := time.Now()
	var c Call
	var err error
	if client := s.redis[u.Name]; client != nil {
		c.Count, err = client.Incr(ctx, "calls:"+s.settings.Name).Result()
		c.OK = err == nil
	} else {
		c, err = s.get(ctx, u.URL.String(), depth)
	}
	c.Name = u.Name
	if err != nil {
		c.OK, c.Error = false, err.Error()
	}
	c.Millis = millis(start)
	return c
}

func (s *Service) get(ctx context.Context, target string, depth int) (Call, error) {
	var c Call
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, target, nil)
	if err != nil {
		return c, err
	}
	req.Header.Set(depthHeader, strconv.Itoa(depth))
	resp, err := s.http.Do(req)
	if err != nil {
		return c, err
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(io.LimitReader(resp.Body, answerBytesMax))
	if err != nil {
		return c, fmt.Errorf("read the answer of %s: %w", target, err)
	}
	// An upstream whose own upstreams failed answers 502 with its tree: the tree is worth more than the status.
	if err := json.Unmarshal(b, &c); err != nil || c.Name == "" {
		return Call{}, fmt.Errorf("%s answered %s without a tree", target, resp.Status)
	}
	return c, nil
}

func millis(start time.Time) float64 {
	return float64(time.Since(start).Microseconds()) / 1000
}
