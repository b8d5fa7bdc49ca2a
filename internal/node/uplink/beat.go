package uplink

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"baton/internal/wire/agentapi"
)

const (
	// BeatEvery is how often an agent says that it is there.
	BeatEvery = time.Second
	// SilentMax is how long a manager may leave heartbeats unanswered. It is well below the time after which the leader takes
	// the node for silent, so that a manager's end is not its agents'.
	SilentMax = 2200 * time.Millisecond
	beatsKept = 64 // heartbeats whose time is remembered: more than can be under way
)

// Beating is a connector whose sessions send heartbeats, end when these are not answered, and tell the agent which of them
// the leader has confirmed.
type Beating struct {
	Inner agentapi.Connector
	// Membership is told what a manager says of the cluster, before the agent gets the update. It must not block.
	Membership func(agentapi.Membership)
	// Measure tells the node's load for the i-th report of a session, from 0, unless there is nothing to say; nil: it is not told.
	Measure func(ctx context.Context, i int) (agentapi.Measures, bool)
}

var _ agentapi.Connector = Beating{}

// Connect implements agentapi.Connector.
func (b Beating) Connect(ctx context.Context, h agentapi.Hello) (agentapi.Session, error) {
	h.Session = uint64(time.Now().UnixNano()) // grows over restarts of the node, too
	inner, err := b.Inner.Connect(ctx, h)
	if err != nil {
		return nil, err
	}
	life, end := context.WithCancel(context.WithoutCancel(ctx))
	s := &beating{Session: inner, membership: b.Membership, end: end, sent: make(map[uint64]time.Time), silent: make(chan struct{}), answered: time.Now()}
	s.work.Go(func() { s.beat(life) })
	s.work.Go(func() { s.watch(life) })
	if b.Measure != nil {
		s.work.Go(func() { s.measure(life, b.Measure) })
	}
	return s, nil
}

// beating is a session with heartbeats.
type beating struct {
	agentapi.Session
	membership func(agentapi.Membership)
	end        context.CancelFunc
	work       sync.WaitGroup
	silent     chan struct{} // closed when the manager does not answer

	mu       sync.Mutex
	number   uint64
	sent     map[uint64]time.Time // when each heartbeat was sent
	answered time.Time
}

// beat sends heartbeats until the session ends.
func (s *beating) beat(ctx context.Context) {
	tick := time.NewTicker(BeatEvery)
	defer tick.Stop()
	for {
		if s.Session.Send(ctx, agentapi.Report{Beat: s.next()}) != nil {
			return // Recv tells why
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// measure sends the node's load until the session ends. It is apart from beat, because measuring may take its time.
func (s *beating) measure(ctx context.Context, load func(context.Context, int) (agentapi.Measures, bool)) {
	tick := time.NewTicker(agentapi.MeasureEvery)
	defer tick.Stop()
	for i := 0; ctx.Err() == nil; i++ { // both may have come while it measured: the end and the next turn
		if m, ok := load(ctx, i); ok && s.Session.Send(ctx, agentapi.Report{Measures: &m}) != nil {
			return // Recv tells why
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// watch ends the session once the manager has been silent for too long. It does not wait for beat, whose sending waits while
// the way is cut and full of what was sent before.
func (s *beating) watch(ctx context.Context) {
	// An answer is looked for more often than one is asked for, so that silence is noticed when it has lasted long enough.
	look := time.NewTicker(BeatEvery / 10)
	defer look.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-look.C:
		}
		s.mu.Lock()
		quiet := time.Since(s.answered)
		s.mu.Unlock()
		if quiet > SilentMax {
			close(s.silent)
			s.end() // no more heartbeats
			return
		}
	}
}

// next numbers a heartbeat and remembers when it was sent.
func (s *beating) next() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.number++
	s.sent[s.number] = time.Now()
	delete(s.sent, s.number-beatsKept)
	return s.number
}

// errSilent ends a session.
var errSilent = fmt.Errorf("the manager has not answered for %s", SilentMax)

// Recv implements agentapi.Session.
func (s *beating) Recv(ctx context.Context) (agentapi.Update, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	done := make(chan struct{})
	defer close(done)
	go func() {
		select {
		case <-s.silent:
			cancel(errSilent)
		case <-done:
		}
	}()
	u, err := s.Session.Recv(ctx)
	if err != nil {
		if cause := context.Cause(ctx); errors.Is(cause, errSilent) {
			return u, cause
		}
		return u, err
	}
	if u.Membership != nil {
		s.membership(*u.Membership)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.answered = time.Now()
	if u.Beat > 0 {
		u.Confirmed = s.sent[u.Beat]
	}
	return u, nil
}

// Close implements agentapi.Session.
func (s *beating) Close() error {
	s.end()
	err := s.Session.Close()
	s.work.Wait()
	return err
}
