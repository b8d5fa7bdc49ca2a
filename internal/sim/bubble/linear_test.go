package bubble

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/anishathalye/porcupine"

	"baton/internal/manager/consensus"
	"baton/internal/manager/manager"
	"baton/internal/manager/store"
	"baton/internal/model/cluster"
)

const (
	keys      = 4
	clients   = 6
	linearFor = 40 * time.Second // of simulated time
	opMax     = 8 * time.Second  // what a client waits for one operation
)

// operation is what a client does with one object, a config whose size is the value; absent is 0.
type operation struct {
	key      int
	write    bool
	from, to int // of a write: it is made on what the client has read
}

// outcome is what came of it.
type outcome struct {
	value    int // of a read
	conflict bool
	unknown  bool
}

// register is the model: an object is a register that is written if it is what the writer has read. A write whose outcome was
// not seen may happen at any time later, or never.
var register = porcupine.Model{
	Init: func() any { return 0 },
	Step: func(state, input, output any) (bool, any) {
		at, in, out := state.(int), input.(operation), output.(outcome)
		switch {
		case !in.write:
			return out.value == at, at
		case out.unknown && at != in.from:
			return true, at
		case out.conflict:
			return at != in.from, at
		}
		return at == in.from, in.to
	},
	Partition: func(history []porcupine.Operation) [][]porcupine.Operation {
		parts := make([][]porcupine.Operation, keys)
		for _, op := range history {
			k := op.Input.(operation).key
			parts[k] = append(parts[k], op)
		}
		return parts
	},
	DescribeOperation: func(input, output any) string { return fmt.Sprintf("%+v → %+v", input, output) },
}

// The model tells histories that must not be from those that may.
func TestModelTellsHistoriesApart(t *testing.T) {
	op := func(call, end int64, in operation, out outcome) porcupine.Operation {
		return porcupine.Operation{Input: in, Output: out, Call: call, Return: end}
	}
	write := func(from, to int) operation { return operation{write: true, from: from, to: to} }
	for name, c := range map[string]struct {
		history []porcupine.Operation
		want    bool
	}{
		"a write and a read":            {[]porcupine.Operation{op(1, 2, write(0, 1), outcome{}), op(3, 4, operation{}, outcome{value: 1})}, true},
		"a stale read":                  {[]porcupine.Operation{op(1, 2, write(0, 1), outcome{}), op(3, 4, operation{}, outcome{})}, false},
		"two writes on the same":        {[]porcupine.Operation{op(1, 4, write(0, 1), outcome{}), op(2, 3, write(0, 2), outcome{})}, false},
		"a conflict for no reason":      {[]porcupine.Operation{op(1, 2, write(0, 1), outcome{conflict: true})}, false},
		"an unknown one that happened":  {[]porcupine.Operation{op(1, math.MaxInt64, write(0, 1), outcome{unknown: true}), op(2, 3, operation{}, outcome{value: 1})}, true},
		"an unknown one that did not":   {[]porcupine.Operation{op(1, math.MaxInt64, write(0, 1), outcome{unknown: true}), op(2, 3, operation{}, outcome{})}, true},
		"an unknown one that was twice": {[]porcupine.Operation{op(1, math.MaxInt64, write(0, 1), outcome{unknown: true}), op(2, 3, write(1, 0), outcome{}), op(4, 5, operation{}, outcome{value: 1})}, false},
	} {
		if got := porcupine.CheckOperations(register, c.history); got != c.want {
			t.Errorf("%s: got %v, want %v", name, got, c.want)
		}
	}
}

// history collects what clients did, by a clock that gives each event a time of its own.
type history struct {
	clock atomic.Int64
	value atomic.Int64
	gate  chan struct{} // whoever holds it may look at the machines, or change them
	w     *World
	calm  chan struct{} // closed at the end

	mu    sync.Mutex
	ops   []porcupine.Operation
	maybe int
}

func (h *history) add(client int, call int64, in operation, out outcome) {
	end := h.clock.Add(1)
	h.mu.Lock()
	defer h.mu.Unlock()
	if out.unknown {
		end = math.MaxInt64
		h.maybe++
	}
	h.ops = append(h.ops, porcupine.Operation{ClientId: client, Input: in, Output: out, Call: call, Return: end})
}

// pick is any manager that runs.
func (h *history) pick(rng *rand.Rand) *manager.Manager {
	h.gate <- struct{}{}
	defer func() { <-h.gate }()
	list := h.w.managers()
	if len(list) == 0 {
		return nil
	}
	return list[rng.IntN(len(list))].manager
}

func keyID(key int) cluster.ID { return cluster.ID{0: 0xee, 15: byte(key + 1)} }

// work reads and writes until the end, each time through another manager. It reads beside that without asking the leader, as
// the API does, and must then not go back in time.
func (h *history) work(t *testing.T, client int) {
	rng := rand.New(rand.NewPCG(h.w.cfg.Seed, uint64(100+client)))
	var seen store.Version
	var last [keys]store.Version
	for {
		select {
		case <-h.calm:
			return
		case <-time.After(time.Duration(20+rng.IntN(150)) * time.Millisecond):
		}
		key := rng.IntN(keys)
		if m := h.pick(rng); m != nil {
			h.glance(t, m, key, &seen, &last)
		}
		m := h.pick(rng)
		if m == nil {
			continue
		}
		read, ok := h.read(client, m, key)
		if !ok {
			continue
		}
		if m = h.pick(rng); m != nil {
			seen = max(seen, h.write(client, m, key, read))
		}
	}
}

// glance reads from a manager's own copy once it has all that the client has seen.
func (h *history) glance(t *testing.T, m *manager.Manager, key int, seen *store.Version, last *[keys]store.Version) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if consensus.Await(ctx, m.Store(), *seen) != nil {
		return
	}
	snap := m.Store().Snapshot()
	*seen = snap.Version()
	if c, ok := store.Get[*cluster.Config](snap, keyID(key)); ok {
		if c.Version < last[key] {
			t.Errorf("seed %d: a client read version %d of a key after %d", h.w.cfg.Seed, c.Version, last[key])
		}
		last[key] = c.Version
	} else if last[key] > 0 {
		t.Errorf("seed %d: a client read nothing after version %d", h.w.cfg.Seed, last[key])
	}
}

// read reads what is current.
func (h *history) read(client int, m *manager.Manager, key int) (*cluster.Config, bool) {
	ctx, cancel := context.WithTimeout(context.Background(), opMax)
	defer cancel()
	call := h.clock.Add(1)
	if m.Log().Barrier(ctx) != nil {
		return nil, false // it was not read
	}
	c, ok := store.Get[*cluster.Config](m.Store().Snapshot(), keyID(key))
	if !ok {
		c = &cluster.Config{Meta: cluster.Meta{ID: keyID(key)}, Name: fmt.Sprint("key ", key), Number: 1}
	}
	h.add(client, call, operation{key: key}, outcome{value: c.Size})
	return cluster.Copy(c), true
}

// write puts a new value in the place of the one that was read, and returns the version that it has got.
func (h *history) write(client int, m *manager.Manager, key int, read *cluster.Config) store.Version {
	ctx, cancel := context.WithTimeout(context.Background(), opMax)
	defer cancel()
	in := operation{key: key, write: true, from: read.Size, to: int(h.value.Add(1))}
	read.Size = in.to
	var txn store.Txn
	txn.Put(read)
	call := h.clock.Add(1)
	v, err := m.Log().Propose(ctx, txn)
	switch {
	case err == nil:
		h.add(client, call, in, outcome{})
	case errors.Is(err, store.ErrConflict), errors.Is(err, store.ErrExists):
		h.add(client, call, in, outcome{conflict: true})
	case errors.Is(err, consensus.ErrUnknown):
		h.add(client, call, in, outcome{unknown: true})
	default: // it says that nothing happened: if it did, somebody reads what nobody wrote
	}
	return v
}

// disturb lets one thing after the other happen to the managers; a majority is always left.
func (h *history) disturb() {
	for end := time.Now().Add(linearFor); time.Now().Before(end); {
		time.Sleep(time.Duration(500+h.w.rng.IntN(2000)) * time.Millisecond)
		h.gate <- struct{}{}
		undo := h.w.draw().do(h.w)
		<-h.gate
		time.Sleep(time.Duration(500+h.w.rng.IntN(4000)) * time.Millisecond)
		if undo != nil {
			h.gate <- struct{}{}
			undo()
			<-h.gate
		}
	}
	h.w.net.Heal()
}

// What clients see of the objects, through any of the managers and whatever happens to these, is what one copy of them would
// have shown, with each write done once or not at all.
func TestHistoriesAreLinearizable(t *testing.T) {
	for i := range *seeds {
		seed := *firstSeed + uint64(i)
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			h := new(history)
			synctest.Test(t, func(t *testing.T) {
				h.gate, h.calm = make(chan struct{}, 1), make(chan struct{}) // of this bubble
				h.w = New(t, Config{Seed: seed, Workers: 1, Kinds: []string{
					"kill manager", "kill leader", "power off manager", "cut leader off", "leader hears nothing", "leader is not heard", "halves",
					"stalled disk of leader",
				}})
				defer h.w.Close()
				var work sync.WaitGroup
				for c := range clients {
					work.Go(func() { h.work(t, c) })
				}
				h.disturb()
				close(h.calm)
				work.Wait()
			})
			if len(h.ops) < 100 {
				t.Fatalf("only %d operations came to an end", len(h.ops))
			}
			// Outside of the bubble: the checker takes real time.
			got := porcupine.CheckOperationsTimeout(register, h.ops, time.Minute)
			t.Logf("%d operations, of %d the outcome was not seen: %s", len(h.ops), h.maybe, got)
			if got != porcupine.Ok {
				t.Errorf("the history is not linearizable: %s", got)
			}
		})
	}
}
