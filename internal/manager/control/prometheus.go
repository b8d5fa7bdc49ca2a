package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"baton/internal/manager/store"
	"baton/internal/model/cluster"
	"baton/internal/model/spec"
)

const (
	askEvery   = 5 * time.Second
	askTimeout = 3 * time.Second
	askAtOnce  = 8
	answerSize = 64 << 10 // of one number
)

// Queries asks the Prometheus servers that services' targets name, while Run works. An answer is one number and nothing else of what a
// server says is kept or shown: a file could name any address that the managers reach.
type Queries struct {
	store  *store.Store
	log    *slog.Logger
	client *http.Client

	mu      sync.Mutex
	answers map[cluster.ID]answer
}

type answer struct {
	value float64
	at    time.Time
	err   string // said last
}

var _ Answers = (*Queries)(nil)

// NewQueries makes a Queries that reads the targets from st.
func NewQueries(st *store.Store, log *slog.Logger) *Queries {
	return &Queries{store: st, log: log, answers: make(map[cluster.ID]answer), client: &http.Client{
		Timeout:       askTimeout,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport:     &http.Transport{Proxy: nil, MaxIdleConnsPerHost: 1, IdleConnTimeout: time.Minute},
	}}
}

// Answer implements Answers.
func (q *Queries) Answer(service cluster.ID) (value float64, at time.Time, ok bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	a, ok := q.answers[service]
	return a.value, a.at, ok && !a.at.IsZero()
}

// Run asks until ctx ends.
func (q *Queries) Run(ctx context.Context) {
	ticker := time.NewTicker(askEvery)
	defer ticker.Stop()
	defer q.client.CloseIdleConnections()
	for {
		q.round(ctx)
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// round asks once for every service that wants an answer, and forgets the others.
func (q *Queries) round(ctx context.Context) {
	snap := q.store.Snapshot()
	wanted := make(map[cluster.ID]bool)
	slots := make(chan struct{}, askAtOnce)
	var wg sync.WaitGroup
	for s := range store.All[*cluster.Service](snap) {
		rev, ok := store.Get[*cluster.Revision](snap, s.Revision)
		if !ok || rev.Spec.Autoscale == nil || rev.Spec.Autoscale.Target.Prometheus == nil || s.Removing {
			continue
		}
		wanted[s.ID] = true
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			q.ask(ctx, s, rev.Spec.Autoscale.Target.Prometheus)
		})
	}
	wg.Wait()
	q.mu.Lock()
	defer q.mu.Unlock()
	for id := range q.answers {
		if !wanted[id] {
			delete(q.answers, id)
		}
	}
}

func (q *Queries) ask(ctx context.Context, s *cluster.Service, t *spec.PrometheusTarget) {
	value, err := q.query(ctx, t)
	if ctx.Err() != nil {
		return
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	a := q.answers[s.ID]
	if err == nil {
		a = answer{value: value, at: time.Now()}
	} else if a.err != err.Error() {
		a.err = err.Error()
		q.log.Warn("no answer to a service's query; its number is held", "service", s.StackName+"/"+s.Name, "err", err)
	}
	q.answers[s.ID] = a
}

// query asks a server for one number.
func (q *Queries) query(ctx context.Context, t *spec.PrometheusTarget) (float64, error) {
	at := strings.TrimSuffix(t.URL, "/") + "/api/v1/query?" + url.Values{"query": {t.Query}}.Encode()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, at, nil)
	if err != nil {
		return 0, errors.New("the address is not understood")
	}
	res, err := q.client.Do(req)
	if err != nil {
		var u *url.Error
		if errors.As(err, &u) {
			err = u.Err // without the query
		}
		return 0, err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return 0, fmt.Errorf("the server answered with status %d", res.StatusCode)
	}
	data, err := io.ReadAll(io.LimitReader(res.Body, answerSize+1))
	if err != nil {
		return 0, errors.New("the answer broke off")
	}
	return parseAnswer(data)
}

// parseAnswer reads a scalar, or a vector of one element: an empty one is no answer, and of several it is not clear which is meant.
func parseAnswer(data []byte) (float64, error) {
	if len(data) > answerSize {
		return 0, fmt.Errorf("the answer is larger than %d KiB: write a query with one result", answerSize>>10)
	}
	var body struct {
		Status string `json:"status"`
		Data   struct {
			Type   string          `json:"resultType"`
			Result json.RawMessage `json:"result"`
		} `json:"data"`
	}
	if json.Unmarshal(data, &body) != nil || body.Status != "success" {
		return 0, errors.New("the answer is none of a Prometheus server")
	}
	var pair []any
	switch body.Data.Type {
	case "scalar":
		if json.Unmarshal(body.Data.Result, &pair) != nil {
			return 0, errors.New("the answer is no number")
		}
	case "vector":
		var list []struct {
			Value []any `json:"value"`
		}
		if json.Unmarshal(body.Data.Result, &list) != nil || len(list) != 1 {
			return 0, fmt.Errorf("the query has %d results, not one: use sum() or max()", len(list))
		}
		pair = list[0].Value
	default:
		return 0, errors.New("the query's result is no number: use a query for an instant")
	}
	if len(pair) != 2 {
		return 0, errors.New("the answer is no number")
	}
	text, _ := pair[1].(string)
	v, err := strconv.ParseFloat(text, 64)
	if err != nil || math.IsNaN(v) || math.IsInf(v, 0) || v < 0 {
		return 0, errors.New("the answer is no number from zero")
	}
	return v, nil
}
