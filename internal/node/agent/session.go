package agent

import (
	"context"
	"sync"
	"time"

	"baton/internal/model/cluster"
	"baton/internal/wire/agentapi"
)

// watch turns executor events into observations.
func (a *Agent) watch(ctx context.Context) {
	for ctx.Err() == nil {
		for e, err := range a.cfg.Executor.Events(ctx) {
			if err != nil {
				a.cfg.Log.Warn("executor events broke off", "err", err)
				break
			}
			if e.Kind == EventOOM {
				select {
				case a.oomed <- e.Task:
				case <-ctx.Done():
					return
				}
			}
			if e.Task.IsZero() {
				a.look()
			} else {
				a.look(e.Task)
			}
		}
		if !sleep(ctx, retryMin) {
			return
		}
		a.look()
	}
}

// observeLoop asks the executor what runs: when woken, and from time to time everything.
func (a *Agent) observeLoop(ctx context.Context) {
	ticker := time.NewTicker(observeEvery)
	defer ticker.Stop()
	var described time.Time
	for whole := true; ; {
		of, due := a.takeDue(whole)
		if due && !a.observe(ctx, of) {
			if !sleep(ctx, retryMin) {
				return
			}
			whole = true
			continue
		}
		if d := a.cfg.Describe; d != nil && time.Since(described) >= describeEvery {
			described = time.Now()
			a.loop.Outbox().describe(d(ctx))
		}
		select {
		case <-ticker.C:
			whole = true
		case <-a.wake:
			whole = false
		case <-ctx.Done():
			return
		}
	}
}

// observe makes one observation, of some tasks or of all, and reports whether it worked.
func (a *Agent) observe(ctx context.Context, of []cluster.ID) bool {
	asked := time.Now()
	list, err := a.cfg.Executor.Observe(ctx, of...)
	if err != nil {
		if ctx.Err() == nil {
			a.cfg.Log.Warn("cannot observe containers", "err", err)
		}
		return false
	}
	tell(ctx, a.seen, observation{list: list, of: of, asked: asked})
	return true
}

// connect keeps a session open.
func (a *Agent) connect(ctx context.Context) {
	var known cluster.Version // of the last update that the loop took
	for wait := reconnectMin; ctx.Err() == nil; wait = min(2*wait, reconnectMax) {
		began := time.Now()
		var err error
		known, err = a.converse(ctx, known)
		if ctx.Err() != nil {
			return
		}
		tell(ctx, a.cut, struct{}{})
		a.cfg.Log.Warn("session ended; tasks keep running", "err", err)
		if time.Since(began) > reconnectMax {
			wait = reconnectMin
		}
		if !sleep(ctx, wait) {
			return
		}
	}
}

// converse holds one session until it breaks, and returns the version that the loop knows then.
func (a *Agent) converse(ctx context.Context, known cluster.Version) (cluster.Version, error) {
	hello := agentapi.Hello{Node: a.cfg.Node, Name: a.cfg.Name, Known: known}
	if a.cfg.Describe != nil {
		hello.Description = a.cfg.Describe(ctx)
	}
	session, err := a.cfg.Connector.Connect(ctx, hello)
	if err != nil {
		return known, err
	}
	ctx, cancel := context.WithCancel(ctx)
	outbox := a.loop.Outbox()
	outbox.Resend()
	var sender sync.WaitGroup
	sender.Add(1)
	go func() {
		defer sender.Done()
		defer cancel()
		for {
			r, ok := outbox.next(ctx)
			if !ok {
				return
			}
			if err := session.Send(ctx, r); err != nil {
				outbox.PutBack(r)
				return
			}
		}
	}()
	defer sender.Wait()
	defer cancel()
	defer session.Close()
	for {
		u, err := session.Recv(ctx)
		if err != nil {
			return known, err
		}
		select {
		case a.updates <- u:
			known = u.Version
		case <-ctx.Done():
			return known, ctx.Err()
		}
	}
}
