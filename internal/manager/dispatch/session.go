package dispatch

import (
	"context"
	"slices"
	"sync"
	"time"

	"baton/internal/model/cluster"
	"baton/internal/wire/agentapi"
)

// Session is one connected agent. Its mailbox holds at most one update: newer ones are merged into it, so that a slow
// agent costs a bounded amount of memory.
type Session struct {
	dispatcher *Dispatcher
	node       cluster.ID
	number     uint64 // of the node's sessions

	// sent is what the agent will know once it has read its mailbox; only the dispatcher's loop uses it.
	sent    map[cluster.ID]sentTask
	network uint64 // generation of the network view
	config  agentapi.NodeConfig
	member  string               // what it was told of its membership
	images  []agentapi.ImageWant // told to have for rollouts
	volumes map[cluster.ID]bool  // told to remove, and not gone yet
	greeted bool
	// before is the node's last session, for the first fill to go on from when the agent knows all that it was sent by it.
	before *Session
	known  cluster.Version // that the agent said it knows

	mu      sync.Mutex
	mailbox *agentapi.Update
	waiting chan struct{} // the mailbox has something
	ended   chan struct{}
	once    sync.Once
	// refused are the stand-ins that the agent is to remove, until the next update says so.
	refused []cluster.ID
	// seen is the newest version looked at for this node; posted the newest that was put in the mailbox; applied what the
	// agent acknowledged.
	seen, posted, applied cluster.Version
	heard                 time.Time    // when the agent was heard last
	wanted                []cluster.ID // services that the leader is to hear are wanted
	beat, confirmed       uint64       // newest heartbeat, and newest that the leader knows of
}

// sentTask is what makes a new assignment necessary when it changes.
type sentTask struct {
	desired cluster.Desired
}

func newSession(d *Dispatcher, h agentapi.Hello) *Session {
	return &Session{
		dispatcher: d, node: h.Node, number: h.Session, heard: d.cfg.Now(),
		sent:    make(map[cluster.ID]sentTask),
		volumes: make(map[cluster.ID]bool),
		waiting: make(chan struct{}, 1),
		ended:   make(chan struct{}),
	}
}

var _ agentapi.Session = (*Session)(nil)

// Recv implements agentapi.Session.
func (s *Session) Recv(ctx context.Context) (agentapi.Update, error) {
	for {
		select {
		case <-ctx.Done():
			return agentapi.Update{}, ctx.Err()
		case <-s.ended:
			return agentapi.Update{}, ErrClosed
		case <-s.waiting:
		}
		select {
		case <-s.ended:
			return agentapi.Update{}, ErrClosed // what waits may be older than what the node's next session got
		default:
		}
		if u, ok := s.Poll(); ok {
			return u, nil
		}
	}
}

// Poll takes the update that waits, if one does.
func (s *Session) Poll() (agentapi.Update, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	u := s.mailbox
	s.mailbox = nil
	if u == nil {
		return agentapi.Update{}, false
	}
	return *u, true
}

// Ended is closed with the session.
func (s *Session) Ended() <-chan struct{} { return s.ended }

// Send implements agentapi.Session.
func (s *Session) Send(ctx context.Context, r agentapi.Report) error {
	select {
	case <-s.ended:
		return ErrClosed // what it says may be older than what the node's next session said
	default:
	}
	s.mu.Lock()
	grown := r.Applied > s.applied
	s.applied = max(s.applied, r.Applied)
	s.heard = s.dispatcher.cfg.Now()
	if list := slices.Concat(s.wanted, r.Wanted); len(r.Wanted) > 0 && len(list) <= wantedMax {
		s.wanted = list
	}
	if r.Beat > s.beat {
		s.beat = r.Beat
		s.answer(func(u *agentapi.Update) { u.Echo = r.Beat })
	}
	s.mu.Unlock()
	if grown || len(r.Wanted) > 0 {
		s.dispatcher.acked() // the leader is to hear of it now
	}
	if r.Measures != nil && s.dispatcher.cfg.Measured != nil {
		s.dispatcher.cfg.Measured(s.node, *r.Measures)
	}
	if r.Empty() {
		return nil
	}
	select {
	case s.dispatcher.reports <- nodeReport{session: s, node: s.node, report: r}:
		return nil
	case <-s.ended:
		return ErrClosed
	case <-s.dispatcher.stopped:
		return ErrClosed
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Close implements agentapi.Session.
func (s *Session) Close() error {
	s.end()
	return nil
}

func (s *Session) end() {
	s.once.Do(func() {
		close(s.ended)
		s.dispatcher.leave(s)
	})
}

// resume takes over what the agent was sent by its session before, if it took all of that. Only the dispatcher's loop calls it,
// and nothing else uses a session that has ended. Volumes to remove are told again: whether the agent's answer was written
// is not known.
func (s *Session) resume() bool {
	last := s.before
	s.before = nil
	if last == nil || !last.greeted {
		return false
	}
	last.mu.Lock()
	whole := last.mailbox == nil && last.posted == s.known && len(last.refused) == 0
	last.mu.Unlock()
	if whole {
		s.sent, s.network, s.config = last.sent, last.network, last.config
	}
	return whole
}

// refuse makes the next update tell the agent to remove a stand-in.
func (s *Session) refuse(id cluster.ID) {
	s.mu.Lock()
	s.refused = append(s.refused, id)
	s.mu.Unlock()
	notify(s.dispatcher.joined)
}

// takeRefused hands over what is to be told of stand-ins.
func (s *Session) takeRefused() []cluster.ID {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := s.refused
	s.refused = nil
	return list
}

// ackedVersion is what this node's load balancers follow: when everything posted is applied, whatever was looked at since
// has brought nothing new for it.
func (s *Session) ackedVersion() cluster.Version {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.greeted && s.applied >= s.posted {
		return s.seen
	}
	return s.applied
}

// post merges an update into the mailbox; an empty one only moves the version that was looked at.
func (s *Session) post(u agentapi.Update, empty bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.seen = u.Version
	if empty {
		return
	}
	s.posted = u.Version
	if s.mailbox == nil {
		s.mailbox = &u
	} else {
		merge(s.mailbox, u)
	}
	notify(s.waiting)
}

// answer puts something into the mailbox that is no news of the store. The caller holds the lock.
func (s *Session) answer(add func(*agentapi.Update)) {
	if s.mailbox == nil {
		s.mailbox = &agentapi.Update{Version: s.posted}
	}
	add(s.mailbox)
	notify(s.waiting)
}

// merge adds a newer update to an older one that was not read yet.
func merge(old *agentapi.Update, u agentapi.Update) {
	old.Version = u.Version
	old.Full = old.Full || u.Full
	place := make(map[cluster.ID]int, len(old.Assignments))
	for i, a := range old.Assignments {
		place[a.Task.ID] = i
	}
	for _, a := range u.Assignments {
		if i, ok := place[a.Task.ID]; ok {
			old.Assignments[i] = a
			continue
		}
		old.Assignments = append(old.Assignments, a)
	}
	if len(u.Removed) > 0 {
		gone := make(map[cluster.ID]bool, len(u.Removed))
		for _, id := range u.Removed {
			gone[id] = true
		}
		kept := old.Assignments[:0]
		for _, a := range old.Assignments {
			if !gone[a.Task.ID] {
				kept = append(kept, a)
			}
		}
		old.Assignments = kept
		old.Removed = append(old.Removed, u.Removed...)
	}
	if u.Network != nil {
		old.Network = u.Network
	}
	if u.Node != nil {
		old.Node = u.Node
	}
	if u.Membership != nil {
		old.Membership = u.Membership
	}
	if u.Prepare != nil {
		old.Prepare = u.Prepare
	}
	old.RemoveVolumes = append(old.RemoveVolumes, u.RemoveVolumes...)
}
