package bubble

import (
	"context"
	"time"

	"baton/internal/model/cluster"
	"baton/internal/node/agent"
)

// boxFence is the fence of a box. Like the real one it does its work when the agent is dead.
type boxFence struct{ *box }

var _ agent.Fence = boxFence{}

// Guard implements agent.Fence.
func (f boxFence) Guard(_ context.Context, task cluster.ID) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fenced[task] = true
	return nil
}

// Unguard implements agent.Fence.
func (f boxFence) Unguard(_ context.Context, task cluster.ID) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.fenced, task)
	return nil
}

// Renew implements agent.Fence.
func (f boxFence) Renew(_ context.Context, left time.Duration) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.lease = time.Now().Add(left)
	time.AfterFunc(left, f.look)
	return nil
}

// look ends what has no lease any more.
func (f boxFence) look() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if time.Now().Before(f.lease) {
		return
	}
	for id := range f.fenced {
		if c := f.containers[id]; c != nil && c.state == agent.ContainerRunning {
			c.state, c.exit = agent.ContainerExited, &cluster.Exit{Code: 137}
			f.tell(agent.Event{Kind: agent.EventExited, Task: id})
		}
	}
}
