package dispatch

import (
	"context"
	"errors"
	"log/slog"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"baton/internal/manager/consensus"
	"baton/internal/manager/store"
	"baton/internal/model/cluster"
	"baton/internal/wire/agentapi"
)

// watch is a clock that a test sets.
type watch struct{ at time.Time }

func (w *watch) now() time.Time { return w.at }

func presence(node int, session uint64, acked cluster.Version, silent time.Duration) []Presence {
	return []Presence{{Node: id('n', node), Session: session, Acked: acked, Silent: silent}}
}

// heard is what a manager says of its agents.
type heard struct {
	after   time.Duration // since the last one
	manager string
	list    []Presence
}

// tell lets managers speak, each at its time.
func (w *watch) tell(r *Roster, all []heard) {
	for _, h := range all {
		w.at = w.at.Add(h.after)
		r.Hear(h.manager, h.list)
	}
}

func TestRoster(t *testing.T) {
	const ms = time.Millisecond
	for name, c := range map[string]struct {
		hear   []heard
		later  time.Duration
		acked  cluster.Version
		silent time.Duration // of node 1
		known  bool
	}{
		"nobody was heard":      {later: 5 * time.Second, silent: 5 * time.Second},
		"one":                   {hear: []heard{{time.Second, "a", presence(1, 1, 7, 200*ms)}}, acked: 7, silent: 200 * ms, known: true},
		"heard before the term": {hear: []heard{{time.Second, "a", presence(1, 1, 7, 2*time.Second)}}, acked: 7, silent: time.Second},
		"the lowest of two counts": {
			hear: []heard{{time.Second, "a", presence(1, 1, 7, 0)}, {0, "b", presence(2, 1, 5, 0)}}, acked: 5, known: true,
		},
		"a silent one does not hold others up": {
			hear:  []heard{{time.Second, "a", presence(2, 1, 5, 0)}, {ConnectedMax, "b", presence(1, 1, 7, 0)}},
			later: ms, acked: 7, silent: ms, known: true,
		},
		"left out is not gone at once": {
			hear: []heard{{time.Second, "a", presence(2, 1, 5, 0)}, {time.Second, "a", presence(1, 1, 7, 0)}}, acked: 5, known: true,
		},
		"an acknowledgement does not go back in a session": {
			hear: []heard{{time.Second, "a", presence(1, 1, 7, 0)}, {0, "a", presence(1, 1, 6, 0)}}, acked: 7, known: true,
		},
		"a new session has to acknowledge anew": {
			hear: []heard{{time.Second, "a", presence(1, 1, 7, 0)}, {0, "b", presence(1, 2, 0, 0)}}, acked: 0, known: true,
		},
		"the rest of an old session": {
			hear:  []heard{{time.Second, "a", presence(1, 1, 9, 0)}, {ms, "b", presence(1, 2, 3, 0)}, {ms, "a", presence(1, 1, 9, 2*ms)}},
			acked: 3, silent: ms, known: true,
		},
		"the rest of an old session when the new one is silent, too": {
			hear: []heard{
				{20 * time.Second, "a", presence(1, 1, 9, 0)}, {ms, "b", presence(1, 2, 3, 0)},
				{4 * time.Second, "b", presence(1, 2, 3, 4*time.Second)}, {ms, "a", presence(1, 1, 9, 16*time.Second)},
			},
			acked: 0, silent: 4*time.Second + ms, known: true,
		},
		"one session that two managers tell of": {
			hear: []heard{
				{20 * time.Second, "b", presence(1, 1, 3, 0)}, {time.Second, "b", presence(1, 1, 4, 100*ms)}, {ms, "a", presence(1, 1, 0, 9*time.Second)},
			},
			acked: 4, silent: 101 * ms, known: true,
		},
		"a clock that was set back: lower numbers, once the higher one is silent": {
			hear: []heard{
				{time.Second, "a", presence(1, 1000, 9, 0)}, {time.Second, "b", presence(1, 10, 2, 0)},
				{ConnectedMax, "b", presence(1, 10, 3, 100*ms)},
			},
			acked: 3, silent: 100 * ms, known: true,
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := &watch{start}
			r := NewRoster(w.now)
			w.tell(r, c.hear)
			w.at = w.at.Add(c.later)
			at, known := r.Heard(id('n', 1))
			if got := r.Acked(); got != c.acked || known != c.known || w.at.Sub(at) != c.silent {
				t.Errorf("acked %d, silent %s, known %v; want %d, %s, %v", got, w.at.Sub(at), known, c.acked, c.silent, c.known)
			}
		})
	}
}

func TestRosterOfANewTermKnowsNobody(t *testing.T) {
	w := &watch{start}
	r := NewRoster(w.now)
	w.at = w.at.Add(time.Hour)
	r.Hear("a", presence(1, 1, 7, 0))
	w.at = w.at.Add(time.Second)
	r.Begin()
	if at, known := r.Heard(id('n', 1)); known || !at.Equal(w.at) || r.Acked() != 0 {
		t.Errorf("after Begin: heard %v, known %v, acked %d", at, known, r.Acked())
	}
}

// Whatever managers tell, in whichever order: when a node was heard last never goes back, and what counts as acknowledged was
// said by every node that is connected.
func TestRosterNeverRunsAhead(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := &watch{start}
		r := NewRoster(w.now)
		heard := map[int]time.Time{}
		said := map[int]cluster.Version{} // the most that a node ever acknowledged
		last := map[int]time.Time{}
		for range rapid.IntRange(1, 40).Draw(t, "steps") {
			w.at = w.at.Add(time.Duration(rapid.IntRange(0, 2000).Draw(t, "ms")) * time.Millisecond)
			n := rapid.IntRange(1, 3).Draw(t, "node")
			silent := time.Duration(rapid.IntRange(0, 6000).Draw(t, "silent")) * time.Millisecond
			acked := cluster.Version(rapid.IntRange(0, 9).Draw(t, "acked"))
			r.Hear(rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "manager"), presence(n, uint64(rapid.IntRange(1, 3).Draw(t, "session")), acked, silent))
			if at := w.at.Add(-silent); at.After(heard[n]) {
				heard[n] = at
			}
			said[n] = max(said[n], acked)
			low, connected := cluster.Version(1<<62), false
			for n := range heard {
				at, _ := r.Heard(id('n', n))
				if at.Before(last[n]) {
					t.Fatalf("node %d was heard %s earlier than before", n, last[n].Sub(at))
				}
				last[n] = at
				if a := r.nodes[id('n', n)]; w.at.Sub(a.heard) <= ConnectedMax {
					low, connected = min(low, said[n]), true
				}
			}
			if got := r.Acked(); connected && got > low || !connected && got != 0 {
				t.Fatalf("acked %d, the nodes said at most %d", got, low)
			}
		}
	})
}

// A refused session leaves no trace: not even in what is stored of its node.
func TestOlderSessionIsRefusedBeforeAnythingIsWritten(t *testing.T) {
	w := newWorld(t)
	connect := func(number uint64, hostname string) (agentapi.Session, error) {
		return w.d.Connect(context.Background(), agentapi.Hello{
			Node: id('n', 1), Session: number, Description: cluster.NodeDescription{Hostname: hostname},
		})
	}
	newer, err := connect(2, "newer")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := connect(1, "older"); err == nil {
		t.Fatal("an older session took the place of a newer one")
	}
	n, _ := store.Get[*cluster.Node](w.st.Snapshot(), id('n', 1))
	if n.Description.Hostname != "newer" {
		t.Errorf("the refused session wrote %q", n.Description.Hostname)
	}
	if err := newer.Send(context.Background(), agentapi.Report{Beat: 1}); err != nil {
		t.Errorf("the newer session ended: %v", err)
	}
	if _, err := connect(3, "newest"); err != nil {
		t.Error(err)
	}
	if err := newer.Send(context.Background(), agentapi.Report{Beat: 2}); !errors.Is(err, ErrClosed) {
		t.Errorf("the session before goes on: %v", err)
	}
}

// leader is one that can be lost.
type leader struct{ lost atomic.Bool }

func (l *leader) Attend(context.Context, []Presence) error {
	if l.lost.Load() {
		return consensus.ErrNoLeader
	}
	return nil
}

// A manager that does not reach the leader sends its agents away, after lostMax and not before, and takes them again once it does.
func TestLostLeaderSendsAgentsAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := store.New()
		log := consensus.NewMemory(st)
		defer log.Close()
		var txn store.Txn
		txn.Put(&cluster.Node{Meta: cluster.Meta{ID: id('n', 1)}, Name: "n1"})
		if _, err := log.Propose(t.Context(), txn); err != nil {
			t.Fatal(err)
		}
		var l leader
		d := New(Config{Store: st, Log: log, Opener: plain{}, Logger: slog.New(slog.DiscardHandler), Now: time.Now, Attendant: &l})
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- d.Run(ctx) }()
		defer func() { stop(); <-done }()
		s, err := d.Connect(t.Context(), agentapi.Hello{Node: id('n', 1), Session: 1})
		if err != nil {
			t.Fatal(err)
		}
		confirmed := func() bool {
			for {
				u, err := s.Recv(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				if u.Beat == 1 {
					return true
				}
			}
		}
		if err := s.Send(t.Context(), agentapi.Report{Beat: 1}); err != nil || !confirmed() {
			t.Fatal(err)
		}
		l.lost.Store(true)
		begun := time.Now()
		if err := s.Send(t.Context(), agentapi.Report{Beat: 2}); err != nil {
			t.Fatal(err)
		}
		for {
			u, err := s.Recv(t.Context())
			if errors.Is(err, ErrClosed) {
				break
			}
			if err != nil || u.Beat == 2 {
				t.Fatalf("a heartbeat that the leader did not hear is confirmed: %+v, %v", u, err)
			}
		}
		if took := time.Since(begun); took < lostMax-attendEvery || took > lostMax+attendEvery {
			t.Errorf("the agent was sent away after %s", took)
		}
		if _, err := d.Connect(t.Context(), agentapi.Hello{Node: id('n', 1), Session: 2}); !errors.Is(err, ErrLost) {
			t.Errorf("while the leader is lost: %v", err)
		}
		l.lost.Store(false)
		time.Sleep(2 * attendRetry)
		if _, err := d.Connect(t.Context(), agentapi.Hello{Node: id('n', 1), Session: 3}); err != nil {
			t.Errorf("the leader is back: %v", err)
		}
	})
}
