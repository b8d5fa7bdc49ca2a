package sim

import (
	"container/heap"
	"context"
	"iter"
	"log/slog"
	"testing"
	"time"

	"baton/internal/model/cluster"
	"baton/internal/model/spec"
	"baton/internal/node/agent"
	"baton/internal/node/agent/agenttest"
	"baton/internal/wire/agentapi"
)

// executor is a node's simulated containers as the agent's seam: what the hands do, with time passing until it is done.
type executor struct {
	w    *World
	node *node
}

var _ agent.Executor = (*executor)(nil)

func newExecutor() *executor {
	w := New(Config{Seed: 1})
	w.queue, w.busy = nil, true // nobody boots, nobody acts: all that happens is the suite's doing
	n := w.nodes[0]
	n.up = true
	e := &executor{w: w, node: n}
	n.loop = agent.NewLoop(&hands{node: n, life: n.life}, slog.New(slog.DiscardHandler))
	return e
}

// act lets the hands do something and time pass until they are done with it.
func (e *executor) act(id cluster.ID, want *agentapi.Assignment, a agent.Action) error {
	var result *agent.Result
	e.node.finished = func(r agent.Result) { result = &r }
	(&hands{node: e.node, life: e.node.life}).Act(id, want, a)
	for result == nil && e.next() {
	}
	return result.Err
}

// next runs what happens next.
func (e *executor) next() bool {
	if len(e.w.queue) == 0 {
		return false
	}
	ev := heap.Pop(&e.w.queue).(event)
	e.w.now = ev.at
	e.w.step(ev)
	return true
}

func (e *executor) Observe(_ context.Context, of ...cluster.ID) ([]agent.Observed, error) {
	return e.node.list(of...), nil
}

func (e *executor) Pull(_ context.Context, image string, policy spec.PullPolicy) error {
	var result *agent.ImageResult
	e.node.pulled = func(r agent.ImageResult) { result = &r }
	(&hands{node: e.node, life: e.node.life}).Prepare(agentapi.ImageWant{Image: image, Policy: policy})
	for result == nil && e.next() {
	}
	return result.Err
}

func (e *executor) Start(_ context.Context, c agent.Container) error {
	return e.act(c.Task.ID, &c.Assignment, agent.Action{Kind: agent.ActStart})
}

func (e *executor) Stop(_ context.Context, id cluster.ID, grace time.Duration) error {
	return e.act(id, nil, agent.Action{Kind: agent.ActStop, Grace: grace})
}

func (e *executor) Remove(_ context.Context, id cluster.ID) error {
	return e.act(id, nil, agent.Action{Kind: agent.ActClean})
}

func (e *executor) Events(context.Context) iter.Seq2[agent.Event, error] {
	return func(func(agent.Event, error) bool) {}
}

func (e *executor) Exec(context.Context, cluster.ID, []string) (int, []byte, error) {
	return 0, nil, nil
}

func (e *executor) ImageHealthcheck(context.Context, string) (*spec.Probe, error) { return nil, nil }

// TestExecutor holds the simulated containers to what the real ones do.
func TestExecutor(t *testing.T) {
	e := newExecutor()
	task := func(image string) func() agent.Container {
		return func() agent.Container {
			var c agent.Container
			c.Task = &cluster.Task{Meta: cluster.Meta{ID: e.w.newID()}, Slot: 1, Desired: cluster.DesiredRun}
			c.Spec = &spec.Service{Name: "web", Image: image, NetworkMode: "none"}
			return c
		}
	}
	agenttest.Executor(t, agenttest.ExecutorEnv{
		Executor: e, Sleeps: task("good:1"), Exits: task("three:1"), Missing: task("absent:1"),
		Reach: func(t *testing.T, what string, done func() bool) {
			t.Helper()
			for !done() {
				if !e.next() {
					t.Fatal("nothing more happens before ", what)
				}
			}
		},
	})
	if e.w.err != nil {
		t.Error(e.w.err)
	}
}
