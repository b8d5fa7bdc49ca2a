package consensus

import (
	"context"
	"errors"
	"fmt"
	"time"

	"baton/internal/manager/store"
)

// Remote asks another manager to do what only the leader can. Its errors are those of Log; ErrUnknown when the answer did
// not come back.
type Remote interface {
	Propose(ctx context.Context, manager string, t store.Txn) (store.Version, error)
	Barrier(ctx context.Context, manager string) (store.Version, error)
}

// Anywhere is the log as every manager may use it: what this one cannot do because another one leads, it asks that one to
// do, and waits until the local store has it. While managers elect, it waits for the outcome.
type Anywhere struct {
	*Raft
	remote Remote
	self   string
}

var _ Log = (*Anywhere)(nil)

// NewAnywhere makes r usable on every manager.
func NewAnywhere(r *Raft, remote Remote) *Anywhere {
	return &Anywhere{Raft: r, remote: remote, self: r.cfg.NodeID}
}

const (
	// leaderWait is how long a call waits for somebody to lead: longer than an election takes.
	leaderWait = 5 * time.Second
	leaderLook = 20 * time.Millisecond
	awaitLook  = 10 * time.Millisecond
)

// Propose implements Log.
func (a *Anywhere) Propose(ctx context.Context, t store.Txn) (store.Version, error) {
	if err := admit(&t); err != nil {
		return 0, err
	}
	return a.ask(ctx,
		func() (store.Version, error) { return a.Raft.Propose(ctx, t) },
		func(ctx context.Context, leader string) (store.Version, error) {
			return a.remote.Propose(ctx, leader, t)
		})
}

// Barrier implements Log. On a manager that does not lead it waits until everything that the leader knew is here, too.
func (a *Anywhere) Barrier(ctx context.Context) error {
	_, err := a.ask(ctx,
		func() (store.Version, error) { return 0, asked(a.Raft.Barrier(ctx)) },
		func(ctx context.Context, leader string) (store.Version, error) {
			v, err := a.remote.Barrier(ctx, leader)
			return v, asked(err)
		})
	switch {
	case !errors.Is(err, ErrUnknown):
		return err
	case ctx.Err() != nil:
		return ctx.Err()
	}
	return ErrClosed // while it waited for the local store
}

// asked makes an unknown outcome of a question one that can be asked again, since it changes nothing.
func asked(err error) error {
	if errors.Is(err, ErrUnknown) {
		return fmt.Errorf("%w: %s", ErrNoLeader, err)
	}
	return err
}

// ask does something here or at the leader, again as long as it is certain that nothing has happened.
func (a *Anywhere) ask(ctx context.Context, here func() (store.Version, error), there question) (store.Version, error) {
	give := time.NewTimer(leaderWait)
	defer give.Stop()
	for {
		var v store.Version
		err := error(ErrNoLeader)
		switch leader := a.leader(); leader {
		case "":
		case a.self:
			v, err = here()
		default:
			if v, err = a.there(ctx, leader, there); err == nil {
				return v, a.await(ctx, v)
			}
			if errors.Is(err, ErrClosed) || errors.Is(err, ErrDiskStalled) {
				err = fmt.Errorf("%w: %w", ErrNoLeader, err) // it is about to lead no more, and has done nothing
			}
		}
		if !errors.Is(err, ErrNotLeader) && !errors.Is(err, ErrNoLeader) {
			return v, err
		}
		select {
		case <-ctx.Done():
			return 0, ctx.Err()
		case <-give.C:
			if errors.Is(err, ErrNoLeader) {
				return 0, err
			}
			return 0, ErrNoLeader
		case <-a.stopped:
			return 0, ErrClosed
		case <-time.After(leaderLook):
		}
	}
}

// question is what is asked of the leader.
type question func(ctx context.Context, leader string) (store.Version, error)

// there asks another manager, and gives up once it does not lead any more: a machine that vanished never answers.
func (a *Anywhere) there(ctx context.Context, leader string, ask question) (store.Version, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		tick := time.NewTicker(leaderLook)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				if a.leader() != leader {
					cancel()
				}
			}
		}
	}()
	return ask(ctx, leader)
}

// leader is the node id of who leads, as far as this manager knows; empty while nobody does.
func (a *Anywhere) leader() string {
	c, err := a.opened()
	if err != nil {
		return ""
	}
	_, id := c.raft.LeaderWithID()
	return string(id)
}

// Leader is the node id of the leader as far as this manager knows; empty while there is none.
func (a *Anywhere) Leader() string { return a.leader() }

// await returns once the local store has reached a version.
func (a *Anywhere) await(ctx context.Context, v store.Version) error {
	if a.cfg.Store.Snapshot().Version() >= v {
		return nil
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		select {
		case <-a.stopped: // nothing will be applied here any more
			cancel(ErrClosed)
		case <-ctx.Done():
		}
	}()
	if Await(ctx, a.cfg.Store, v) != nil {
		return unknown(context.Cause(ctx))
	}
	return nil
}

// Await returns once the store has reached a version, or with the context's error.
func Await(ctx context.Context, s *store.Store, v store.Version) error {
	if s.Snapshot().Version() >= v {
		return nil
	}
	cursor := s.Changes(s.Snapshot().Version(), store.Filter{})
	defer cursor.Close()
	for s.Snapshot().Version() < v {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-cursor.Wait():
			cursor.Collect()
		case <-time.After(awaitLook): // an entry whose transactions were all refused wakes nobody
		}
	}
	return nil
}
