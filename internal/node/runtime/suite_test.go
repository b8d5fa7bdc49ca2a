package runtime_test

import (
	"testing"

	"baton/internal/node/agent"
	"baton/internal/node/agent/agenttest"
)

// TestExecutor is the suite that the simulated executor passes, too.
func TestExecutor(t *testing.T) {
	n := start(t)
	missing := func() agent.Container {
		c := container("sleep")
		c.Spec.Image = "baton.test/missing:1"
		return c
	}
	agenttest.Executor(t, agenttest.ExecutorEnv{
		Executor: n.Runtime,
		Sleeps:   func() agent.Container { return container("sleep") },
		Exits:    func() agent.Container { return container("exit", "3") },
		Missing:  missing,
		Reach:    func(t *testing.T, what string, done func() bool) { eventually(t, what, done) },
	})
	n.empty()
}
