package edge

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"

	"baton/internal/model/cluster"
	"baton/internal/model/spec"
	"baton/internal/wire/agentapi"
)

func taskID(n byte) cluster.ID { return cluster.ID{0: 't', 15: n} }

// measured is anyHost with tasks that have ids, from taskID(first) on.
func measured(first byte, tasks ...*task) agentapi.NetworkState {
	s := anyHost(tasks...)
	for i := range s.Services[0].Endpoints {
		s.Services[0].Endpoints[i].Task = taskID(first + byte(i))
	}
	return s
}

// of is what was counted for a task, or for none.
func of(e *Edge, task cluster.ID) agentapi.RequestMeasure {
	for _, m := range e.Measures() {
		if m.Task == task {
			return m
		}
	}
	return agentapi.RequestMeasure{}
}

func latencies(t *testing.T, m agentapi.RequestMeasure) agentapi.Histogram {
	t.Helper()
	h, err := m.Latency.Histogram()
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// Every request counts once, with its task, by the class of its status, with the bytes of its bodies and its time.
func TestRequestsAreCounted(t *testing.T) {
	const slow = 30 * time.Millisecond
	k := startTask(t, "127.0.1.1", 0, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n, _ := io.Copy(io.Discard, r.Body)
		if r.URL.Query().Has("slow") {
			time.Sleep(slow)
		}
		code, _ := strconv.Atoi(r.URL.Query().Get("code"))
		w.WriteHeader(code)
		if code != http.StatusNoContent {
			_, _ = fmt.Fprintf(w, "%03d", n)
		}
	}))
	e := newEdge(t)
	e.Apply(measured(1, k))
	at, _ := serve(t, e)
	c := newClient(t)
	var wg sync.WaitGroup
	for i, want := range map[int]int{200: 30, 404: 7, 503: 2, 204: 1} {
		for range want {
			wg.Go(func() {
				res, err := c.Post(fmt.Sprintf("http://%s/?code=%d&slow", at, i), "text/plain", strings.NewReader("hello"))
				if err != nil {
					t.Error(err)
					return
				}
				_, _ = io.Copy(io.Discard, res.Body)
				_ = res.Body.Close()
			})
		}
	}
	wg.Wait()
	until(t, "all to have ended", func() bool { return of(e, taskID(1)).InFlight == 0 })
	m := of(e, taskID(1))
	if m.Classes != [agentapi.RequestClasses]uint64{2: 31, 4: 7, 5: 2} || m.Requests() != 40 {
		t.Errorf("classes %v", m.Classes)
	}
	if m.Received != 40*5 || m.Sent != 39*3 || m.Broken+m.NoEndpoint+m.Unreached != 0 || m.Service != anyHost().Services[0].ID {
		t.Errorf("counted %+v", m)
	}
	if m.Took < 40*slow {
		t.Errorf("all together took %v", m.Took)
	}
	if h := latencies(t, m); h.Count() != 40 || h.Quantile(0.01) < slow/12*10 {
		t.Errorf("%d latencies, the least %v", h.Count(), h.Quantile(0.01))
	}
	if rest := of(e, cluster.ID{}); rest.Requests() != 0 || rest.InFlight != 0 {
		t.Errorf("counted beside the task: %+v", rest)
	}
}

// What failed between client and task is told apart; a client that goes is no failure.
func TestFailuresAreCounted(t *testing.T) {
	arrived := make(chan struct{}, 1)
	k := startTask(t, "127.0.1.1", 0, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/break":
			w.Header().Set("Content-Length", "100")
			_, _ = io.WriteString(w, "half")
			_ = http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler)
		case "/refuse":
			panic(http.ErrAbortHandler)
		case "/wait":
			arrived <- struct{}{}
			<-r.Context().Done()
		}
	}))
	e := newEdge(t)
	e.Apply(measured(1, k))
	at, _ := serve(t, e)
	c := newClient(t)
	if res, err := c.Get("http://" + at + "/break"); err == nil {
		if _, err := io.ReadAll(res.Body); err == nil {
			t.Error("a broken answer ended well")
		}
		_ = res.Body.Close()
	}
	if code, _, _ := get(t, c, "http://"+at+"/refuse"); code != http.StatusBadGateway {
		t.Errorf("a task that says nothing: %d", code)
	}
	ctx, cancel := context.WithCancel(t.Context())
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+at+"/wait", nil)
	if err != nil {
		t.Fatal(err)
	}
	go func() { <-arrived; cancel() }()
	if res, err := c.Do(req); err == nil {
		_ = res.Body.Close()
		t.Error("a request that was given up has an answer")
	}
	until(t, "the three to have ended", func() bool { return of(e, taskID(1)).Requests() == 3 })
	if m := of(e, taskID(1)); m.Broken != 2 || m.Classes != [agentapi.RequestClasses]uint64{0: 1, 2: 1, 5: 1} || m.Unreached+m.NoEndpoint != 0 || m.InFlight != 0 {
		t.Errorf("of the task: %+v", m)
	}
	k.stop()
	if code, _, _ := get(t, c, "http://"+at+"/"); code != http.StatusBadGateway {
		t.Errorf("a task that is gone: %d", code)
	}
	until(t, "it to count", func() bool { return of(e, taskID(1)).Requests() == 4 })
	if m := of(e, taskID(1)); m.Unreached != 1 || m.Broken != 2 {
		t.Errorf("of the task that is gone: %+v", m)
	}
	e.Apply(measured(1))
	get(t, c, "http://"+at+"/")
	until(t, "the one without a task to count", func() bool { return of(e, cluster.ID{}).Requests() == 1 })
	if m := of(e, cluster.ID{}); m.NoEndpoint != 1 || m.Classes[5] != 1 || len(m.Latency) != 0 {
		t.Errorf("of the service: %+v", m)
	}
	if m := of(e, taskID(1)); m.Requests() != 4 {
		t.Errorf("the task that left has %+v", m)
	}
}

// Streams are in flight as long as they last, and take as long as their header did.
func TestStreamsCountWithTheirHeader(t *testing.T) {
	release := make(chan struct{})
	k := startTask(t, "127.0.1.1", 0, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/ws" {
			if c, err := websocket.Accept(w, r, nil); err == nil {
				<-release
				_ = c.Close(websocket.StatusNormalClosure, "")
			}
			return
		}
		w.Header().Set("Content-Type", "text/event-stream; charset=utf-8")
		_, _ = io.WriteString(w, "data: 1\n")
		_ = http.NewResponseController(w).Flush()
		<-release
	}))
	e := newEdge(t)
	e.Apply(measured(1, k))
	at, _ := serve(t, e)
	began := time.Now()
	res, err := newClient(t).Get("http://" + at + "/events")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if _, err := bufio.NewReader(res.Body).ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), waitMax)
	defer cancel()
	ws, _, err := websocket.Dial(ctx, "ws://"+at+"/ws", &websocket.DialOptions{HTTPClient: newClient(t)})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ws.CloseNow() }()
	toHeader := time.Since(began)
	if m := of(e, taskID(1)); m.InFlight != 2 || m.Requests() != 0 {
		t.Errorf("under way: %+v", m)
	}
	time.Sleep(toHeader + 200*time.Millisecond) // the streams must last longer than their headers took, however slow that was
	close(release)
	_, _, _ = ws.Read(ctx)
	until(t, "the streams to end", func() bool { return of(e, taskID(1)).Requests() == 2 })
	m := of(e, taskID(1))
	h := latencies(t, m)
	if m.Classes[1] != 1 || m.Classes[2] != 1 || m.InFlight != 0 || h.Count() != 2 || h.Quantile(1) > toHeader*12/10+time.Millisecond {
		t.Errorf("counted %+v, the longest %v; both headers were there after %v", m, h.Quantile(1), toHeader)
	}
}

// An address that another task has now counts for that task; the one before keeps what it had.
func TestAReusedAddressIsAnotherTask(t *testing.T) {
	k := startTask(t, "127.0.1.1", 0, says("x"))
	e := newEdge(t)
	at, _ := serve(t, e)
	c := newClient(t)
	for i := byte(1); i <= 3; i++ {
		e.Apply(measured(i, k))
		for range i {
			get(t, c, "http://"+at+"/")
		}
		until(t, "the requests to count", func() bool { return of(e, taskID(i)).Requests() == uint64(i) })
		e.Apply(measured(i))
	}
	for i := byte(1); i <= 3; i++ {
		if m := of(e, taskID(i)); m.Requests() != uint64(i) {
			t.Errorf("task %d has %d requests", i, m.Requests())
		}
	}
}

// The number of series is bounded: the tasks beyond it count with their service, and those that left make room.
func TestSeriesAreBounded(t *testing.T) {
	e := New(Config{Log: slog.New(slog.DiscardHandler)})
	service := cluster.ID{1}
	id := func(i int) cluster.ID { return cluster.ID{2, byte(i >> 8), byte(i)} }
	now := time.Now()
	used := make(map[*counter]bool)
	for i := range seriesMax {
		n := e.counters.get(service, id(i), now)
		n.classes[2].Add(1)
		used[n] = true
	}
	over := e.counters.get(service, id(seriesMax), now)
	if !over.task.IsZero() || over != e.counters.get(service, id(seriesMax+1), now) {
		t.Fatalf("one too many counts as %v", over.task)
	}
	over.classes[2].Add(1)
	if got := len(e.counters.measures(now)); got != seriesMax+1 {
		t.Errorf("%d series", got)
	}
	busy := e.counters.get(service, id(0), now)
	busy.inflight.Add(1)
	e.counters.keep(nil, now)
	if got := len(e.counters.measures(now.Add(seriesKept))); got != seriesMax+1 {
		t.Errorf("%d series before their time is over", got)
	}
	if got := e.counters.measures(now.Add(seriesKept + 1)); len(got) != 1 || got[0].Task != id(0) {
		t.Errorf("%d series after it", len(got))
	}
	since := busy.since
	busy.inflight.Add(-1)
	e.counters.measures(now.Add(2 * seriesKept))
	if n := e.counters.get(service, id(0), now); n.since <= since || n.measure().Requests() != 0 {
		t.Errorf("a series that begins anew: %d after %d, %d requests", n.since, since, n.measure().Requests())
	}
}

// BenchmarkServe is a whole request through the edge, and what counting is of it.
func BenchmarkServe(b *testing.B) {
	e := New(Config{Log: slog.New(slog.DiscardHandler)})
	l := httptest.NewServer(says("hello"))
	defer l.Close()
	at := netip.MustParseAddrPort(l.Listener.Addr().String())
	e.Apply(agentapi.NetworkState{Services: []agentapi.Service{{
		ID: cluster.ID{1}, Ingress: []spec.Ingress{{Path: "/", Port: at.Port()}}, Endpoints: []agentapi.Endpoint{{Task: taskID(1), Address: at.Addr()}},
	}}})
	b.Run("request", func(b *testing.B) {
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				e.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest(http.MethodGet, "http://shop/", nil))
			}
		})
	})
	b.Run("counting", func(b *testing.B) {
		base, task := e.counters.get(cluster.ID{1}, cluster.ID{}, time.Now()), e.counters.get(cluster.ID{1}, taskID(1), time.Now())
		r := httptest.NewRequest(http.MethodGet, "http://shop/", nil)
		b.RunParallel(func(pb *testing.PB) {
			rec := &recorder{ResponseWriter: httptest.NewRecorder(), status: 200, bytes: 5}
			for pb.Next() {
				x := &exchange{}
				x.counted(base)
				x.counted(task)
				res := &http.Response{StatusCode: 200, Body: http.NoBody}
				x.answer(r, res)
				x.ended(r, rec, time.Time{}, 3*time.Millisecond)
			}
		})
	})
	b.Run("measures", func(b *testing.B) {
		for b.Loop() {
			e.Measures()
		}
	})
}
