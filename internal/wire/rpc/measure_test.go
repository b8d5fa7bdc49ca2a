package rpc

import (
	"math/rand/v2"
	"testing"
	"time"

	"baton/internal/model/cluster"
	"baton/internal/wire/agentapi"
)

// What a node's load costs on the wire: docs/metrics.md counts with these sizes.
func TestSizeOfMeasures(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	id := func() (id cluster.ID) {
		for i := range id {
			id[i] = byte(rng.Uint32())
		}
		return id
	}
	const tasks = 10
	size := func(m agentapi.Measures) int {
		b, err := newCodec().Marshal(agentapi.FromAgent{Report: &agentapi.Report{Measures: &m}})
		if err != nil {
			t.Fatal(err)
		}
		return b.Len() / tasks
	}
	use := agentapi.Measures{Use: &agentapi.NodeUse{}}
	busy := agentapi.Measures{}
	for range tasks {
		use.Use.Tasks = append(use.Use.Tasks, agentapi.TaskUse{Task: id(), CPU: time.Duration(rng.Int64N(1 << 48)), Memory: rng.Uint64N(1 << 32), MemoryLimit: 1 << 32, Received: rng.Uint64N(1 << 40), Sent: rng.Uint64N(1 << 40)})
		r := agentapi.RequestMeasure{Service: id(), Task: id(), Since: rng.Int64(), InFlight: 9, Received: rng.Uint64N(1 << 40), Sent: rng.Uint64N(1 << 40), Took: time.Duration(rng.Int64N(1 << 50))}
		r.Classes[2], r.Classes[4], r.Classes[5] = rng.Uint64N(1<<30), rng.Uint64N(1<<20), rng.Uint64N(1<<10)
		var h agentapi.Histogram
		for i := range 20 {
			h[20+i] = rng.Uint64N(1 << 20)
		}
		r.Latency = h.Sparse()
		busy.Requests = append(busy.Requests, r)
	}
	for name, c := range map[string]struct{ got, most int }{"use": {size(use), 75}, "requests": {size(busy), 240}} {
		t.Logf("%s: %d bytes a task", name, c.got)
		if c.got > c.most {
			t.Errorf("%s: %d bytes a task, at most %d", name, c.got, c.most)
		}
	}
}
