package consensus

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/hashicorp/raft"
)

// errWider closes a log whose manager was alone, so that it is opened again with the patience that several need.
var errWider = errors.New("other managers join")

// widenMax bounds the pause in which a manager that was alone opens its log again.
const widenMax = 10 * time.Second

// Member is a manager that has the log.
type Member struct {
	ID string
	// Voter counts for majorities; a member that does not is still being filled.
	Voter bool
}

// Members lists the managers of the log, sorted by id.
func (r *Raft) Members() ([]Member, error) {
	c, err := r.opened()
	if err != nil {
		return nil, err
	}
	f := c.raft.GetConfiguration()
	if err := f.Error(); err != nil {
		return nil, err
	}
	var out []Member
	for _, s := range f.Configuration().Servers {
		out = append(out, Member{ID: string(s.ID), Voter: s.Suffrage == raft.Voter})
	}
	slices.SortFunc(out, func(a, b Member) int { return compare(a.ID, b.ID) })
	return out, nil
}

// members counts the managers of an open log.
func (c *core) members() int {
	f := c.raft.GetConfiguration()
	if f.Error() != nil {
		return 0
	}
	return len(f.Configuration().Servers)
}

func compare(a, b string) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

func (r *Raft) opened() (*core, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.core == nil {
		return nil, r.down
	}
	return r.core, nil
}

// Add makes another manager a member, without a vote at first: it is to be filled before it counts. It needs to be the leader.
func (r *Raft) Add(ctx context.Context, id string) error {
	if err := r.widen(ctx); err != nil {
		return fmt.Errorf("add manager: %w", err)
	}
	return r.change(ctx, func(c *core, limit time.Duration) raft.IndexFuture {
		return c.raft.AddNonvoter(raft.ServerID(id), raft.ServerAddress(id), 0, limit)
	})
}

// Promote gives a member its vote.
func (r *Raft) Promote(ctx context.Context, id string) error {
	return r.change(ctx, func(c *core, limit time.Duration) raft.IndexFuture {
		return c.raft.AddVoter(raft.ServerID(id), raft.ServerAddress(id), 0, limit)
	})
}

// Remove ends a membership. A leader that removes itself stops to lead: transfer leadership first.
func (r *Raft) Remove(ctx context.Context, id string) error {
	return r.change(ctx, func(c *core, limit time.Duration) raft.IndexFuture {
		return c.raft.RemoveServer(raft.ServerID(id), 0, limit)
	})
}

// changeMax bounds one change of the members when the context does not.
const changeMax = 10 * time.Second

func (r *Raft) change(ctx context.Context, do func(*core, time.Duration) raft.IndexFuture) error {
	c, err := r.opened()
	if err != nil {
		return err
	}
	limit := changeMax
	if at, ok := ctx.Deadline(); ok {
		limit = min(limit, time.Until(at))
	}
	done := make(chan error, 1)
	go func() { done <- do(c, limit).Error() }()
	select {
	case err := <-done:
		if errors.Is(err, raft.ErrNotLeader) {
			return ErrNotLeader
		}
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// widen opens the log again with raft's times for several managers, and waits until it leads again.
func (r *Raft) widen(ctx context.Context) error {
	if !r.alone.CompareAndSwap(true, false) {
		return nil
	}
	c, err := r.opened()
	if err != nil {
		return err
	}
	close(c.wider)
	ctx, cancel := context.WithTimeout(ctx, widenMax)
	defer cancel()
	for { // the old core may still answer as leader
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(10 * time.Millisecond):
		}
		if next, err := r.opened(); err == nil && next != c {
			break
		}
	}
	return r.ready(ctx)
}
