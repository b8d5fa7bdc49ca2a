// Package control holds the leader's loop: it follows the store, asks the planners and writes what they decide.
//
// There is one loop. It wakes when the store changed, when an agent acknowledged a version or when a planner asked for it,
// looks at what may be affected, and writes one transaction per service or stack, serially: the scheduler is never
// surprised by its own choices. The deciding part, Engine, is pure; the same Engine previews a deployment (Preview) and
// is driven by the simulation.
//
// Invariants: tasks are created and given their node, address and volumes in one transaction; a refused transaction gives
// back what it took and is planned again on the newer state; nothing is decided from anything but the store, the
// acknowledged version and the time.
//
// Concurrency: Controller.Run is one goroutine; everything else is values.
package control

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"baton/internal/manager/consensus"
	"baton/internal/manager/store"
	"baton/internal/model/cluster"
)

// Log is what the loop needs of consensus.
type Log interface {
	Propose(ctx context.Context, t store.Txn) (store.Version, error)
	Barrier(ctx context.Context) error
}

// Acks tells which version every connected node's load balancers follow.
type Acks interface {
	Acked() cluster.Version
	Acks() <-chan struct{}
}

// Config is what a controller is made of; all fields but Sources and Now are required.
type Config struct {
	Store  *store.Store
	Log    Log
	Acks   Acks
	Logger *slog.Logger
	// Sources are what numbers of tasks follow.
	Sources Sources
	// Seed breaks the scheduler's ties.
	Seed uint64
	// Now is what planners are given; nil: time.Now.
	Now func() time.Time
}

// Controller runs the leader's loop.
type Controller struct{ cfg Config }

// New makes a controller.
func New(cfg Config) *Controller {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &Controller{cfg: cfg}
}

const (
	idleMax      = 5 * time.Second // look at the clock at least this often
	wakeMin      = time.Millisecond
	refusedPause = 100 * time.Millisecond
)

// Run works through one term of leadership, until ctx ends. Nothing else ends it: a manager that leads and does not plan
// would be a cluster that stands still.
func (c *Controller) Run(ctx context.Context) error {
	for ctx.Err() == nil {
		err := c.follow(ctx)
		if ctx.Err() != nil {
			break
		}
		// What the engine holds in its books may not be what is stored: it starts over from the store, once that is current.
		c.cfg.Logger.Warn("planning starts over", "reason", err)
		for pause := refusedPause; ; pause = min(2*pause, idleMax) {
			select {
			case <-time.After(pause):
			case <-ctx.Done():
				return nil
			}
			if err = c.cfg.Log.Barrier(ctx); err == nil || ctx.Err() != nil {
				break
			}
			c.cfg.Logger.Error("cannot read the newest state; planning waits", "err", err)
		}
	}
	return nil
}

// follow works with one engine until the outcome of a transaction is unknown, or ctx ends.
func (c *Controller) follow(ctx context.Context) error {
	engine := NewEngine(nil, c.cfg.Seed)
	engine.Balance()
	engine.Autoscale(c.cfg.Sources)
	cursor := c.cfg.Store.Changes(0, store.Filter{})
	defer cursor.Close()
	timer := time.NewTimer(0)
	defer timer.Stop()
	var said string // the last error
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-cursor.Wait():
		case <-c.cfg.Acks.Acks():
			engine.MarkDraining()
			engine.MarkWanted(c.cfg.Now())
		case <-timer.C:
		}
		wait := idleMax
		err := Work(ctx, Turn{Engine: engine, Cursor: cursor, Log: c.cfg.Log, Acks: c.cfg.Acks, Now: c.cfg.Now})
		switch at := engine.WakeAt(); {
		case ctx.Err() != nil:
			return ctx.Err()
		case StartOver(err):
			return err
		case err != nil:
			wait = refusedPause
			if said != err.Error() { // a full disk would say so ten times a second
				c.cfg.Logger.Error("planning", "err", err)
			}
		case !at.IsZero():
			wait = min(max(at.Sub(c.cfg.Now()), wakeMin), idleMax)
		}
		if said = ""; err != nil {
			said = err.Error()
		}
		timer.Reset(wait)
	}
}

// errMerge means that the store holds something that the engine cannot make sense of.
var errMerge = errors.New("state not understood")

// StartOver reports whether an error of Work means that the engine's books may not be what is stored: it must be made anew,
// after a barrier. After any other error the same engine goes on, a moment later.
func StartOver(err error) bool {
	return errors.Is(err, consensus.ErrUnknown) || errors.Is(err, errMerge)
}

// Turn is what one run of Work uses.
type Turn struct {
	Engine *Engine
	Cursor Changes // of Engine alone, from the beginning
	Log    Proposer
	Acks   Acknowledged
	Now    func() time.Time
}

// Changes is a store.Cursor.
type Changes interface{ Collect() store.Delta }

// Proposer commits transactions.
type Proposer interface {
	Propose(ctx context.Context, t store.Txn) (store.Version, error)
}

// Acknowledged is the part of Acks that decisions rest on.
type Acknowledged interface{ Acked() cluster.Version }

// Work decides and writes until nothing is left to do.
func Work(ctx context.Context, t Turn) error {
	for {
		if err := t.Engine.Merge(t.Cursor.Collect()); err != nil {
			return fmt.Errorf("%w: %w", errMerge, err)
		}
		d, ok, err := t.Engine.Next(t.Now(), t.Acks.Acked())
		if err != nil {
			return fmt.Errorf("%s: %w", d.About, err)
		}
		if !ok {
			return nil
		}
		_, err = t.Log.Propose(ctx, d.Txn)
		t.Engine.Done(d, err)
		if err != nil && !errors.Is(err, store.ErrConflict) {
			return fmt.Errorf("%s: %w", d.About, err)
		}
	}
}
