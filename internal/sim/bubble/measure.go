package bubble

import (
	"context"
	"sync"
	"time"

	"baton/internal/model/cluster"
	"baton/internal/wire/agentapi"
)

// load is what a machine's edge has counted: of one task. It outlives the process, as an edge of its own would.
type load struct {
	mu       sync.Mutex
	requests agentapi.RequestMeasure
}

// request counts requests to a task, always the same.
func (l *load) request(service, task cluster.ID, since time.Time, n uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.requests.Service, l.requests.Task, l.requests.Since = service, task, since.UnixNano()
	l.requests.Classes[2] += n
	var h agentapi.Histogram
	h[10] = l.requests.Classes[2]
	l.requests.Latency = h.Sparse()
}

// measure is what the machine's agent reports.
func (m *machine) measure(_ context.Context, i int) (agentapi.Measures, bool) {
	out := agentapi.Measures{At: time.Now(), Full: i%agentapi.FullEvery == 0, Use: &agentapi.NodeUse{Cores: 8000}}
	m.load.mu.Lock()
	defer m.load.mu.Unlock()
	if m.load.requests.Requests() > 0 {
		out.Requests = []agentapi.RequestMeasure{m.load.requests}
	}
	for _, c := range m.box.running() {
		out.Use.Tasks = append(out.Use.Tasks, agentapi.TaskUse{Task: c.task, CPU: time.Since(m.w.begun) / 2, Memory: 64 << 20})
	}
	return out, true
}
