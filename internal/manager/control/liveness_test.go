package control

import (
	"context"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"baton/internal/manager/consensus"
	"baton/internal/manager/store"
	"baton/internal/model/cluster"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// Every silence with every state: a node goes from ready to unknown to down and back to ready only, and only what was heard
// in this term makes it ready.
func TestSilenceByStateAndKnowledge(t *testing.T) {
	p := Patience{Unknown: unknownDefault, Down: downDefault}
	const ready, unknown, down = cluster.NodeReady, cluster.NodeUnknown, cluster.NodeDown
	short, just, long, end := time.Second, unknownDefault, downDefault-1, downDefault
	for _, c := range []struct {
		state  cluster.NodeState
		silent time.Duration
		known  bool
		never  bool // the node never connected
		want   cluster.NodeState
	}{
		{ready, 0, true, false, ready},
		{ready, short, true, false, ready},
		{ready, short, false, false, ready}, // a new leader grants it time
		{ready, just - 1, true, false, ready},
		{ready, just, true, false, unknown},
		{ready, just, false, false, unknown},
		{ready, end, true, false, down},
		{ready, end, false, false, down},
		{unknown, short, true, false, ready},
		{unknown, short, false, false, unknown}, // nothing was heard: the new leader has just begun
		{unknown, just, true, false, unknown},
		{unknown, long, true, false, unknown},
		{unknown, end, true, false, down},
		{unknown, end, false, false, down},
		{unknown, end, false, true, unknown}, // it has nothing that could be lost
		{unknown, short, true, true, ready},
		{down, short, true, false, ready},
		{down, short, false, false, down},
		{down, just, true, false, down},
		{down, time.Hour, true, false, down},
		{ready, -time.Second, true, false, ready},
	} {
		n := &cluster.Node{State: c.state, Description: cluster.NodeDescription{Version: "1"}}
		if c.never {
			n.Description.Version = ""
		}
		got, why := p.state(n, c.silent, c.known)
		if got != c.want || got != c.state && why == "" {
			t.Errorf("%s, silent for %s, known %v, never %v: got %s (%q), want %s", c.state, c.silent, c.known, c.never, got, why, c.want)
		}
	}
}

// attendance is what a test says of the nodes.
type attendance struct {
	mu    sync.Mutex
	at    time.Time
	known bool
}

func (a *attendance) Heard(cluster.ID) (time.Time, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.at, a.known
}

func (a *attendance) set(at time.Time, known bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.at, a.known = at, known
}

// The states are written when their time has come, each with an event, and nothing is written in between.
func TestLivenessWritesEachStateOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := store.New()
		log := consensus.NewMemory(st)
		defer log.Close()
		node := &cluster.Node{Meta: cluster.Meta{ID: cluster.ID{1}}, Name: "n1", State: cluster.NodeReady, Description: cluster.NodeDescription{Version: "1"}}
		var txn store.Txn
		txn.Put(node)
		if _, err := log.Propose(t.Context(), txn); err != nil {
			t.Fatal(err)
		}
		var heard attendance
		heard.set(time.Now(), true)
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			Liveness{Store: st, Log: log, Attendance: &heard, Logger: slog.New(slog.DiscardHandler)}.Run(ctx)
		}()
		state := func() cluster.NodeState {
			n, _ := store.Get[*cluster.Node](st.Snapshot(), node.ID)
			return n.State
		}
		begun := time.Now()
		until := func(want cluster.NodeState, after time.Duration) {
			t.Helper()
			for state() != want {
				time.Sleep(livenessEvery / 2)
				if time.Since(begun) > time.Minute {
					t.Fatalf("the node never became %s", want)
				}
			}
			if took := time.Since(begun); took < after || took > after+2*livenessEvery {
				t.Errorf("%s after %s, want %s", want, took, after)
			}
		}
		until(cluster.NodeUnknown, unknownDefault)
		until(cluster.NodeDown, downDefault)
		heard.set(time.Now(), true)
		begun = time.Now()
		until(cluster.NodeReady, 0)
		version := st.Snapshot().Version()
		for range 8 {
			heard.set(time.Now(), true)
			time.Sleep(time.Second)
		}
		if v := st.Snapshot().Version(); v != version {
			t.Errorf("the store went from version %d to %d while nothing changed", version, v)
		}
		events := map[string]int{}
		for e := range store.All[*cluster.Event](st.Snapshot()) {
			events[e.Type]++
		}
		if len(events) != 3 || events["node.unknown"] != 1 || events["node.down"] != 1 || events["node.ready"] != 1 {
			t.Errorf("events: %v", events)
		}
		stop()
		<-done
	})
}
