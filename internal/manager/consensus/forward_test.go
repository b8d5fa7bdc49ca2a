package consensus_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"

	"baton/internal/manager/consensus"
	"baton/internal/manager/consensus/logtest"
	"baton/internal/manager/store"
	"baton/internal/model/cluster"
)

// group is some managers that reach each other in memory, and forward to each other.
type group struct {
	t     *testing.T
	names []string
	mu    sync.Mutex
	trans map[string]*raft.InmemTransport
	logs  map[string]*consensus.Raft
	any   map[string]*consensus.Anywhere
	store map[string]*store.Store
	// lose, when set, decides that the answer to a forwarded call gets lost; after it is called once it was done.
	lose atomic.Pointer[func(leader string)]
	down map[string]bool
}

func newGroup(t *testing.T) *group {
	return &group{
		t: t, trans: map[string]*raft.InmemTransport{}, logs: map[string]*consensus.Raft{}, any: map[string]*consensus.Anywhere{},
		store: map[string]*store.Store{}, down: map[string]bool{},
	}
}

// add starts a manager; change says what is special about it.
func (g *group) add(name string, change func(*consensus.Config)) {
	g.t.Helper()
	_, g.trans[name] = raft.NewInmemTransport(raft.ServerAddress(name))
	cfg := config(g.t.TempDir())
	cfg.NodeID = name
	cfg.Transport = func() (raft.Transport, error) { g.connect(); return g.trans[name], nil }
	change(&cfg)
	g.names = append(g.names, name)
	g.logs[name], g.store[name] = open(g.t, cfg), cfg.Store
	g.any[name] = consensus.NewAnywhere(g.logs[name], remote{g})
}

// connect lets all who are up reach each other.
func (g *group) connect() {
	g.mu.Lock()
	defer g.mu.Unlock()
	for a, ta := range g.trans {
		for b, tb := range g.trans {
			if a != b && !g.down[a] && !g.down[b] {
				ta.Connect(tb.LocalAddr(), tb)
			}
		}
	}
}

// cut lets nobody reach a manager.
func (g *group) cut(name string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.down[name] = true
	g.trans[name].DisconnectAll()
	for _, t := range g.trans {
		t.Disconnect(raft.ServerAddress(name))
	}
}

func (g *group) isDown(name string) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.down[name]
}

// three is a group of three voters that have a leader.
func three(t *testing.T) *group {
	t.Helper()
	g := newGroup(t)
	var voters []raft.Server
	for _, n := range []string{"a", "b", "c"} {
		voters = append(voters, raft.Server{ID: raft.ServerID(n), Address: raft.ServerAddress(n)})
	}
	for _, n := range []string{"a", "b", "c"} {
		g.add(n, func(c *consensus.Config) { c.Voters = voters })
	}
	g.leader()
	return g
}

// leader waits until somebody who is up leads, and all who are up know it.
func (g *group) leader() (leader string, others []string) {
	g.t.Helper()
	eventually(g.t, "a leader that all know", func() bool {
		leader, others = "", nil
		for _, n := range g.names {
			if !g.isDown(n) && g.logs[n].Status().Term.Leader {
				leader = n
			}
		}
		for _, n := range g.names {
			if n != leader && !g.isDown(n) {
				others = append(others, n)
				if g.any[n].Leader() != leader {
					return false
				}
			}
		}
		return leader != ""
	})
	return leader, others
}

// remote asks another manager directly.
type remote struct{ g *group }

func (r remote) Propose(ctx context.Context, manager string, t store.Txn) (store.Version, error) {
	if r.g.isDown(manager) {
		return 0, consensus.ErrNoLeader
	}
	v, err := r.g.logs[manager].Propose(ctx, t)
	if lose := r.g.lose.Load(); lose != nil {
		(*lose)(manager)
		return 0, fmt.Errorf("%w: the answer was lost", consensus.ErrUnknown)
	}
	return v, err
}

func (r remote) Barrier(ctx context.Context, manager string) (store.Version, error) {
	if r.g.isDown(manager) {
		return 0, consensus.ErrNoLeader
	}
	err := r.g.logs[manager].Barrier(ctx)
	return r.g.store[manager].Snapshot().Version(), err
}

// Whoever is asked, it is done once; and whoever wrote reads what it wrote, where it wrote it.
func TestFollowersForwardAndReadTheirWrites(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := three(t)
		var last store.Version
		for i := range 30 {
			name := g.names[i%3]
			n := logtest.Node(fmt.Sprint("n", i))
			v, err := g.any[name].Propose(t.Context(), logtest.Put(n))
			if err != nil || v <= last {
				t.Fatalf("%s: version %d after %d, %v", name, v, last, err)
			}
			last = v
			if got, ok := store.Get[*cluster.Node](g.store[name].Snapshot(), n.ID); !ok || got.Version != v {
				t.Fatalf("%s does not read what it wrote at %d", name, v)
			}
			other := g.names[(i+1)%3]
			if err := g.any[other].Barrier(t.Context()); err != nil {
				t.Fatal(err)
			}
			if _, ok := store.Get[*cluster.Node](g.store[other].Snapshot(), n.ID); !ok {
				t.Fatalf("after its barrier %s does not read what %s wrote before", other, name)
			}
		}
	})
}

// Refusals of the store come back as what they are.
func TestFollowersGetTheStoresErrors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := three(t)
		_, others := g.leader()
		n := logtest.Node("n")
		if _, err := g.any[others[0]].Propose(t.Context(), logtest.Put(n)); err != nil {
			t.Fatal(err)
		}
		stale := cluster.Copy(n)
		stale.Version = 12345
		if _, err := g.any[others[1]].Propose(t.Context(), logtest.Put(stale)); !errors.Is(err, store.ErrConflict) {
			t.Errorf("got %v, want a conflict", err)
		}
		if _, err := g.any[others[1]].Propose(t.Context(), store.Txn{}); !errors.Is(err, consensus.ErrEmpty) {
			t.Errorf("got %v", err)
		}
	})
}

// A leader that is lost with an answer leaves the outcome unknown: the transaction is not sent again, so that it is never done
// twice. A barrier is asked again.
func TestLostAnswersAreUnknownAndNotRepeated(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := three(t)
		leader, others := g.leader()
		calls := 0
		lose := func(string) { calls++; g.cut(leader) }
		g.lose.Store(&lose)
		n := logtest.Node("n")
		_, err := g.any[others[0]].Propose(t.Context(), logtest.Put(n))
		if !errors.Is(err, consensus.ErrUnknown) || calls != 1 {
			t.Fatalf("got %v after %d calls, want ErrUnknown after one", err, calls)
		}
		g.lose.Store(nil)
		if err := g.any[others[1]].Barrier(t.Context()); err != nil {
			t.Fatalf("barrier while managers elect: %v", err)
		}
		if _, err := g.any[others[1]].Propose(t.Context(), logtest.Put(logtest.Node("m"))); err != nil {
			t.Fatalf("the two that are left: %v", err)
		}
	})
}

// A leader that shuts down in good order refuses what it has not done: its followers wait for the next one.
func TestClosedLeaderIsNoError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := three(t)
		leader, others := g.leader()
		closeLog(t, g.logs[leader]) // the followers still take it for the leader
		begun := time.Now()
		if _, err := g.any[others[0]].Propose(t.Context(), logtest.Put(logtest.Node("n"))); err != nil {
			t.Fatalf("after %s: %v", time.Since(begun), err)
		}
		g.cut(leader)
		if _, err := g.any[leader].Propose(t.Context(), logtest.Put(logtest.Node("m"))); err == nil {
			t.Error("a closed manager took a transaction")
		}
	})
}

// Without a majority a call ends in bounded time and says that nothing happened; or with its context.
func TestWithoutALeader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := three(t)
		leader, others := g.leader()
		g.cut(leader)
		g.cut(others[0])
		alone := g.any[others[1]]
		eventually(t, "it knows that nobody leads", func() bool { return alone.Leader() == "" })
		for name, call := range map[string]func(context.Context) error{
			"propose": func(ctx context.Context) error {
				_, err := alone.Propose(ctx, logtest.Put(logtest.Node("n")))
				return err
			},
			"barrier": func(ctx context.Context) error { return alone.Barrier(ctx) },
		} {
			begun := time.Now()
			if err := call(t.Context()); !errors.Is(err, consensus.ErrNoLeader) || time.Since(begun) > 6*time.Second {
				t.Errorf("%s: got %v after %s", name, err, time.Since(begun))
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			begun = time.Now()
			if err := call(ctx); !errors.Is(err, context.DeadlineExceeded) || time.Since(begun) > 1100*time.Millisecond {
				t.Errorf("%s with its own limit: got %v after %s", name, err, time.Since(begun))
			}
			cancel()
		}
	})
}

// What was written while a follower was cut off is not read from it as current, and waiting for it ends with the log.
func TestFollowerThatDoesNotFollow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := three(t)
		leader, others := g.leader()
		behind := others[0]
		g.mu.Lock()
		g.trans[leader].Disconnect(raft.ServerAddress(behind)) // it can ask the leader, and gets no entries
		g.mu.Unlock()
		propose(t, g.logs[leader], logtest.Node("n"))
		done := make(chan error, 1)
		go func() { done <- g.any[behind].Barrier(context.Background()) }()
		synctest.Wait()
		select {
		case err := <-done:
			t.Fatalf("the barrier of a follower that is behind: %v", err)
		default:
		}
		closeLog(t, g.logs[behind])
		if err := <-done; err == nil {
			t.Error("the barrier succeeded")
		}
	})
}

func members(t *testing.T, l *consensus.Raft) []consensus.Member {
	t.Helper()
	m, err := l.Members()
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// A manager that was alone takes others in: added, filled, and only then counted; a leader that goes hands over first.
func TestMembersComeAndGo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGroup(t)
		g.add("a", func(c *consensus.Config) { c.Alone = true })
		for i := range 50 {
			propose(t, g.logs["a"], logtest.Node(fmt.Sprint(i)))
		}
		for _, n := range []string{"b", "c"} {
			g.add(n, func(c *consensus.Config) { c.Join = true })
			g.connect()
			if err := g.logs["a"].Add(t.Context(), n); err != nil {
				t.Fatal(err)
			}
			if m := members(t, g.logs["a"]); !slices.Contains(m, consensus.Member{ID: n}) {
				t.Fatalf("after Add: %v, want %s without a vote", m, n)
			}
			eventually(t, n+" is filled", func() bool { return g.store[n].Snapshot().Hash() == g.store["a"].Snapshot().Hash() })
			if err := g.logs["a"].Promote(t.Context(), n); err != nil {
				t.Fatal(err)
			}
			if m := members(t, g.logs["a"]); !slices.Contains(m, consensus.Member{ID: n, Voter: true}) {
				t.Fatalf("after Promote: %v", m)
			}
		}
		if err := g.logs["b"].Add(t.Context(), "d"); !errors.Is(err, consensus.ErrNotLeader) {
			t.Errorf("a follower adds: %v", err)
		}
		if err := g.logs["a"].Transfer(t.Context(), ""); err != nil {
			t.Fatal(err)
		}
		eventually(t, "another one leads", func() bool { return !g.logs["a"].Status().Term.Leader })
		leader, _ := g.leader()
		if err := g.logs[leader].Remove(t.Context(), "a"); err != nil {
			t.Fatal(err)
		}
		if m := members(t, g.logs[leader]); len(m) != 2 || slices.ContainsFunc(m, func(m consensus.Member) bool { return m.ID == "a" }) {
			t.Errorf("after Remove: %v", m)
		}
		g.cut("a")
		propose(t, g.logs[leader], logtest.Node("without the founder"))
	})
}

// While a manager that was alone takes in another one, what is proposed is done or refused, and never done twice or lost.
func TestWideningLosesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGroup(t)
		g.add("a", func(c *consensus.Config) { c.Alone = true })
		g.add("b", func(c *consensus.Config) { c.Join = true })
		g.connect()
		stop := make(chan struct{})
		end := sync.OnceFunc(func() { close(stop) })
		defer end()
		acked := make(chan []cluster.ID, 4)
		for w := range 4 {
			go func() {
				var ids []cluster.ID
				defer func() { acked <- ids }()
				for i := 0; ; i++ {
					select {
					case <-stop:
						return
					case <-time.After(time.Millisecond):
					}
					n := logtest.Node(fmt.Sprint(w, "-", i))
					if _, err := g.any["a"].Propose(t.Context(), logtest.Put(n)); err == nil {
						ids = append(ids, n.ID)
					} else if errors.Is(err, store.ErrExists) || errors.Is(err, store.ErrConflict) {
						t.Errorf("done twice: %v", err)
					}
				}
			}()
		}
		time.Sleep(50 * time.Millisecond)
		if err := g.logs["a"].Add(t.Context(), "b"); err != nil {
			t.Fatal(err)
		}
		if err := g.logs["a"].Promote(t.Context(), "b"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(50 * time.Millisecond)
		end()
		total := 0
		for range 4 {
			for _, id := range <-acked {
				total++
				if _, ok := store.Get[*cluster.Node](g.store["a"].Snapshot(), id); !ok {
					t.Fatal("an acknowledged write is lost")
				}
			}
		}
		if total == 0 {
			t.Error("nothing was written")
		}
		eventually(t, "the new one has it", func() bool { return g.store["b"].Snapshot().Hash() == g.store["a"].Snapshot().Hash() })
	})
}
