package dispatch

import (
	"context"
	"time"

	"baton/internal/wire/agentapi"
)

// Attendant takes what a manager knows of its agents to the leader, which may be this manager itself.
type Attendant interface {
	Attend(ctx context.Context, list []Presence) error
}

const (
	attendEvery = time.Second // without news
	attendRetry = 100 * time.Millisecond
	attendMin   = 20 * time.Millisecond // between two, so that many acknowledgements travel together
	attendMax   = time.Second           // for one answer
	// lostMax is how long the leader may be out of reach until this manager sends its agents to others. An election takes
	// less; a node that is not heard of for longer counts as silent.
	lostMax = 2500 * time.Millisecond
)

// attend tells the leader, again and again, which agents are connected here and what they acknowledged. The heartbeats that
// went along with it are confirmed to the agents: only the leader's word keeps their leases.
func (d *Dispatcher) attend(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	reached := d.cfg.Now()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		case <-d.acks:
		}
		list, beats := d.present()
		call, cancel := context.WithTimeout(ctx, attendMax)
		err := d.cfg.Attendant.Attend(call, list)
		cancel()
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			d.cfg.Logger.Debug("the leader was not reached", "err", err)
			if d.cfg.Now().Sub(reached) > lostMax && d.setLost(true) {
				d.cfg.Logger.Warn("the leader is out of reach; agents are sent to other managers", "err", err)
				d.closeAll()
			}
		default:
			reached = d.cfg.Now()
			d.setLost(false)
			for s, beat := range beats {
				s.confirm(beat)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(attendMin):
		}
		wait := attendEvery
		if err != nil {
			wait = attendRetry
		}
		timer.Reset(wait)
	}
}

// setLost notes whether the leader is out of reach and returns whether that is news.
func (d *Dispatcher) setLost(lost bool) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	news := d.lost != lost
	d.lost = lost
	return news
}

// present lists the connected agents, with the newest heartbeat of each.
func (d *Dispatcher) present() ([]Presence, map[*Session]uint64) {
	sessions := d.connected()
	list, beats := make([]Presence, 0, len(sessions)), make(map[*Session]uint64, len(sessions))
	now := d.cfg.Now()
	for _, s := range sessions {
		acked := s.ackedVersion()
		s.mu.Lock()
		p := Presence{Node: s.node, Session: s.number, Acked: acked, Silent: now.Sub(s.heard), Wanted: s.wanted}
		s.wanted = nil
		beats[s] = s.beat
		s.mu.Unlock()
		list = append(list, p)
	}
	return list, beats
}

// silent is how long ago the agent was heard.
func (s *Session) silent() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.dispatcher.cfg.Now().Sub(s.heard)
}

// newerThan reports whether the session, nil if there is none, was opened after the one that h asks for, and is in use.
func (s *Session) newerThan(h agentapi.Hello) bool {
	return s != nil && s.number > h.Session && s.silent() <= ConnectedMax
}

// confirm tells the agent that the leader knows of its heartbeat.
func (s *Session) confirm(beat uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if beat > s.confirmed {
		s.confirmed = beat
		s.answer(func(u *agentapi.Update) { u.Beat = beat })
	}
}
