package sim

import (
	"container/heap"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"hash/fnv"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"time"

	"baton/internal/manager/consensus"
	"baton/internal/manager/control"
	"baton/internal/manager/dispatch"
	"baton/internal/manager/store"
	"baton/internal/model/cluster"
)

// Config chooses a history.
type Config struct {
	Seed uint64
	// Chaos turns faults of nodes, network, log and containers on; without it only users act.
	Chaos bool
	// Mutation plants a bug, for tests of the checks.
	Mutation Mutation
	// Trace, when set, gets one line per step.
	Trace io.Writer
}

const (
	rest      = 10 * time.Minute // the bound on coming to rest after everything healed
	stepsMax  = 2_000_000        // of one history
	proposals = 5_000            // without time passing: planners that never finish
)

// World is one simulated cluster.
type World struct {
	cfg   Config
	rng   *rand.Rand
	ids   *rand.ChaCha8
	now   time.Time
	queue queue
	seq   int
	sum   hash.Hash64
	err   error
	chaos bool // faults are on now
	busy  bool // users act

	store      *store.Store
	log        *simLog
	dispatcher *dispatch.Dispatcher
	following  *store.Cursor // the dispatcher's
	followed   []store.Snapshot

	engine   *control.Engine
	cursor   *store.Cursor // the engine's
	turnAt   time.Time     // next turn of the leader's loop; zero: none
	followAt time.Time
	seen     store.Version // newest version that made the loops wake

	nodes []*node
	users users
	check *checker
}

// event is something that happens at a time.
type event struct {
	at   time.Time
	seq  int
	name string
	run  func()
}

type queue []event

func (q queue) Len() int { return len(q) }
func (q queue) Less(i, j int) bool {
	return q[i].at.Before(q[j].at) || q[i].at.Equal(q[j].at) && q[i].seq < q[j].seq
}
func (q queue) Swap(i, j int) { q[i], q[j] = q[j], q[i] }

// Push implements heap.Interface.
func (q *queue) Push(x any) { *q = append(*q, x.(event)) }

// Pop implements heap.Interface.
func (q *queue) Pop() any {
	old := *q
	last := old[len(old)-1]
	old[len(old)-1] = event{}
	*q = old[:len(old)-1]
	return last
}

// opener reads secrets that are not encrypted.
type opener struct{}

// Open implements dispatch.Opener.
func (opener) Open(sealed []byte, _ cluster.Kind, _ cluster.ID) ([]byte, error) { return sealed, nil }

// New founds a cluster.
func New(cfg Config) *World {
	var seed [32]byte
	binary.LittleEndian.PutUint64(seed[:], cfg.Seed)
	w := &World{
		cfg: cfg, rng: rand.New(rand.NewPCG(cfg.Seed, 1)), ids: rand.NewChaCha8(seed), sum: fnv.New64a(),
		now: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), store: store.New(),
	}
	w.check = newChecker(w)
	w.log = newSimLog(w)
	quiet := slog.New(slog.DiscardHandler)
	w.dispatcher = dispatch.New(dispatch.Config{
		Store: w.store, Log: w.log, Opener: opener{}, Logger: quiet, Now: func() time.Time { return w.now }, IDs: w.ids,
	})
	w.following = w.store.Changes(0, dispatch.Watched())
	w.found()
	w.lead()
	return w
}

func (w *World) newID() cluster.ID { return cluster.NewID(w.ids) }

// between draws a time span.
func (w *World) between(low, high time.Duration) time.Duration {
	return low + time.Duration(w.rng.Int64N(int64(high-low)+1))
}

// chance is true with probability p while faults are on.
func (w *World) chance(p float64) bool { return w.chaos && w.rng.Float64() < p }

// found writes what a cluster begins with. Subnets are small, so that addresses run out and come back soon.
func (w *World) found() {
	var t store.Txn
	t.Put(&cluster.Settings{
		Meta: cluster.Meta{ID: cluster.SettingsID, Created: w.now}, Name: "sim",
		TaskPool: netip.MustParsePrefix("10.0.0.0/16"), ServicePool: netip.MustParsePrefix("10.1.0.0/24"), NodeBits: 27,
	})
	count := 3 + w.rng.IntN(4)
	if w.rng.IntN(12) == 0 {
		count = 7 + w.rng.IntN(14)
	}
	for i := range count {
		n := newNode(w, i)
		t.Put(&cluster.Node{
			Meta: cluster.Meta{ID: n.id, Created: w.now}, Name: n.name, Manager: i == 0, Availability: cluster.NodeActive,
			State: cluster.NodeUnknown, StateSince: w.now, Labels: n.labels,
		})
		w.nodes = append(w.nodes, n)
	}
	if _, err := w.log.Propose(context.Background(), t); err != nil {
		panic(fmt.Sprintf("sim: found: %v", err))
	}
	for _, n := range w.nodes {
		n.boot(w.between(0, time.Second))
	}
}

// after queues what happens next.
func (w *World) after(d time.Duration, name string, run func()) {
	w.seq++
	heap.Push(&w.queue, event{at: w.now.Add(d), seq: w.seq, name: name, run: run})
}

// fail ends the history with the first thing that is wrong.
func (w *World) fail(format string, args ...any) {
	if w.err == nil {
		w.err = fmt.Errorf("seed %d at %s, version %d: %s", w.cfg.Seed, w.since(), w.store.Snapshot().Version(), fmt.Sprintf(format, args...))
		w.tracef("FAILED: %v", w.err)
	}
}

func (w *World) since() time.Duration {
	return w.now.Sub(time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC))
}

func (w *World) tracef(format string, args ...any) {
	if w.cfg.Trace != nil {
		fmt.Fprintf(w.cfg.Trace, "%12s v%-5d %s\n", w.since(), w.store.Snapshot().Version(), fmt.Sprintf(format, args...))
	}
}

// Run lives through a history: users and faults first, then peace, until the cluster has come to rest.
func (w *World) Run() error {
	w.chaos, w.busy = w.cfg.Chaos, true
	w.users.start(w)
	w.meddle()
	if w.chaos {
		w.startFaults()
	}
	end := w.now.Add(w.between(25*time.Second, 65*time.Second))
	w.until(end, func() bool { return false })
	if w.err != nil {
		return w.err
	}
	w.heal()
	limit := w.now.Add(rest)
	if !w.until(limit, func() bool { return w.seq%16 == 0 && w.restless() == "" }) && w.err == nil {
		if why := w.restless(); why != "" {
			w.fail("not at rest %s after everything healed: %s", rest, why)
		}
	}
	return w.err
}

// until runs events up to a time, or until done.
func (w *World) until(end time.Time, done func() bool) bool {
	for steps := 0; w.err == nil; steps++ {
		if len(w.queue) == 0 || w.queue[0].at.After(end) {
			w.now = end
			return false
		}
		if steps > stepsMax {
			w.fail("more than %d steps", stepsMax)
		}
		e := heap.Pop(&w.queue).(event)
		w.now = e.at
		w.step(e)
		if done() {
			return true
		}
	}
	return false
}

// step runs one event, checks the world and wakes whoever must look.
func (w *World) step(e event) {
	w.log.inARow = 0
	w.tracef("%s", e.name)
	e.run()
	version := w.store.Snapshot().Version()
	fmt.Fprintf(w.sum, "%d %s %d;", w.now.UnixNano(), e.name, version)
	w.check.machines()
	if version != w.seen {
		w.seen = version
		w.wakeControl(w.between(0, 4*time.Millisecond))
		w.wakeDispatch(w.between(0, 4*time.Millisecond))
	}
	select {
	case <-w.dispatcher.Acks():
		if w.engine != nil {
			w.engine.MarkDraining()
			w.wakeControl(w.between(0, 4*time.Millisecond))
		}
	default:
	}
}

// Hash identifies the history so far.
func (w *World) Hash() uint64 {
	fmt.Fprintf(w.sum, "%d", w.store.Snapshot().Hash())
	return w.sum.Sum64()
}

// lead starts a term of leadership with a new engine.
func (w *World) lead() {
	if w.cursor != nil {
		w.cursor.Close()
	}
	w.engine = control.NewEngine(w.ids, w.rng.Uint64())
	w.engine.Balance()
	w.cursor = w.store.Changes(0, store.Filter{})
	w.turnAt = time.Time{}
	w.wakeControl(0)
}

func (w *World) wakeControl(d time.Duration) {
	at := w.now.Add(d)
	if w.engine == nil || !w.turnAt.IsZero() && !w.turnAt.After(at) {
		return
	}
	w.turnAt = at
	w.after(d, "leader's turn", func() {
		if w.turnAt.Equal(at) {
			w.turnAt = time.Time{}
			w.control()
		}
	})
}

// acks lets a mutation lie about acknowledgements.
type acks struct{ w *World }

func (a acks) Acked() cluster.Version {
	if a.w.cfg.Mutation == MutationAckedEarly {
		return ^cluster.Version(0)
	}
	return a.w.dispatcher.Acked()
}

// control takes one turn of the leader's loop, as control.Controller does.
func (w *World) control() {
	if w.engine == nil {
		return
	}
	err := control.Work(context.Background(), control.Turn{
		Engine: w.engine, Cursor: blindfold{w, w.cursor}, Log: w.log, Acks: acks{w}, Now: func() time.Time { return w.now },
	})
	at := w.engine.WakeAt()
	switch {
	case w.err != nil:
	case control.StartOver(err):
		if !errors.Is(err, consensus.ErrUnknown) {
			w.fail("the engine does not understand the store: %v", err)
			return
		}
		w.tracef("engine starts over: %v", err)
		w.lead()
	case err != nil:
		w.tracef("planning: %v", err)
		w.wakeControl(100 * time.Millisecond)
	case !at.IsZero() && w.cfg.Mutation != MutationSleepy:
		w.wakeControl(min(max(at.Sub(w.now), 0), 5*time.Second))
	}
}

func (w *World) wakeDispatch(d time.Duration) {
	at := w.now.Add(d)
	if !w.followAt.IsZero() && !w.followAt.After(at) {
		return
	}
	w.followAt = at
	w.after(d, "dispatcher's turn", func() {
		if w.followAt.Equal(at) {
			w.followAt = time.Time{}
			w.follow()
		}
	})
}

// followedMax is how many snapshots are kept for the check of updates.
const followedMax = 256

// follow takes one turn of the dispatcher's loop.
func (w *World) follow() {
	d := w.following.Collect()
	w.followed = append(w.followed, d.Snapshot)
	if len(w.followed) > followedMax {
		w.followed = w.followed[len(w.followed)-followedMax/2:]
	}
	w.dispatcher.Follow(d)
	for _, n := range w.nodes {
		n.fetch()
	}
}
