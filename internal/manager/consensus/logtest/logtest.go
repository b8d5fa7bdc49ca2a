// Package logtest is what every consensus.Log must pass. A test of an implementation calls Run.
package logtest

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"baton/internal/manager/consensus"
	"baton/internal/manager/store"
	"baton/internal/model/cluster"
)

// Opener makes a leading log over an empty store, and closes it at the end of the test.
type Opener func(t *testing.T) (consensus.Log, *store.Store)

// patience bounds every wait.
const patience = 20 * time.Second

// Node returns a node object that is not stored yet.
func Node(name string) *cluster.Node {
	return &cluster.Node{Meta: cluster.Meta{ID: cluster.NewID(nil), Created: time.Now()}, Name: name}
}

// Put returns a transaction that writes the objects.
func Put(objects ...cluster.Object) (t store.Txn) {
	for _, o := range objects {
		t.Put(o)
	}
	return t
}

// Run runs the suite.
func Run(t *testing.T, open Opener) {
	for _, c := range []struct {
		name string
		run  func(*testing.T, context.Context, consensus.Log, *store.Store)
	}{
		{"a proposal is applied when it returns", applied},
		{"each transaction gets its own error", ownErrors},
		{"versions grow", versionsGrow},
		{"what cannot be proposed", refused},
		{"a cancelled context", cancelled},
		{"the first term is announced", announced},
		{"a barrier passes", barrier},
		{"there is nobody to transfer to", transfer},
		{"contended counters lose no update", contended},
	} {
		t.Run(c.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			log, s := open(t)
			c.run(t, ctx, log, s)
			if err := s.Snapshot().Verify(); err != nil {
				t.Error(err)
			}
		})
	}
}

func applied(t *testing.T, ctx context.Context, log consensus.Log, s *store.Store) {
	n := Node("a")
	v, err := log.Propose(ctx, Put(n))
	if err != nil {
		t.Fatal(err)
	}
	got, ok := store.Get[*cluster.Node](s.Snapshot(), n.ID)
	if !ok || got.Version != v || s.Snapshot().Version() < v {
		t.Fatalf("proposed at %d, store is at %d with %+v", v, s.Snapshot().Version(), got)
	}
}

func ownErrors(t *testing.T, ctx context.Context, log consensus.Log, _ *store.Store) {
	n := Node("a")
	if _, err := log.Propose(ctx, Put(n)); err != nil {
		t.Fatal(err)
	}
	if _, err := log.Propose(ctx, Put(n)); !errors.Is(err, store.ErrConflict) {
		t.Errorf("the same object again: got %v, want a conflict", err)
	}
	if _, err := log.Propose(ctx, Put(Node("a"))); !errors.Is(err, store.ErrExists) {
		t.Errorf("the same name again: got %v, want that it exists", err)
	}
}

func versionsGrow(t *testing.T, ctx context.Context, log consensus.Log, _ *store.Store) {
	var last store.Version
	for i := range 20 {
		v, err := log.Propose(ctx, Put(Node(fmt.Sprint(i))))
		if err != nil || v <= last {
			t.Fatalf("proposal %d: version %d after %d, %v", i, v, last, err)
		}
		last = v
	}
}

func refused(t *testing.T, ctx context.Context, log consensus.Log, s *store.Store) {
	before := s.Snapshot().Hash()
	if _, err := log.Propose(ctx, store.Txn{}); !errors.Is(err, consensus.ErrEmpty) {
		t.Errorf("an empty transaction: got %v", err)
	}
	big := &cluster.Config{Meta: cluster.Meta{ID: cluster.NewID(nil)}, Name: "big", Sealed: make([]byte, consensus.TxnBytesMax)}
	if _, err := log.Propose(ctx, Put(big)); !errors.Is(err, consensus.ErrTooLarge) {
		t.Errorf("a huge transaction: got %v", err)
	}
	if s.Snapshot().Hash() != before {
		t.Error("a refused transaction changed the store")
	}
}

func cancelled(t *testing.T, ctx context.Context, log consensus.Log, s *store.Store) {
	ctx, cancel := context.WithCancel(ctx)
	cancel()
	n := Node("a")
	if _, err := log.Propose(ctx, Put(n)); !errors.Is(err, context.Canceled) || errors.Is(err, consensus.ErrUnknown) {
		t.Fatalf("got %v, want a plain cancellation", err)
	}
	if err := log.Barrier(ctx); !errors.Is(err, context.Canceled) {
		t.Fatalf("barrier: got %v", err)
	}
	if _, ok := store.Get[*cluster.Node](s.Snapshot(), n.ID); ok {
		t.Fatal("it was applied")
	}
}

func announced(t *testing.T, ctx context.Context, log consensus.Log, _ *store.Store) {
	for {
		select {
		case term := <-log.Leadership():
			if term.Leader && term.Number > 0 {
				return
			}
		case <-ctx.Done():
			t.Fatal("no term was announced")
		}
	}
}

func barrier(t *testing.T, ctx context.Context, log consensus.Log, _ *store.Store) {
	if err := log.Barrier(ctx); err != nil {
		t.Fatal(err)
	}
}

func transfer(t *testing.T, ctx context.Context, log consensus.Log, _ *store.Store) {
	for _, to := range []string{"", "nobody"} {
		if err := log.Transfer(ctx, to); !errors.Is(err, consensus.ErrNoPeer) {
			t.Errorf("transfer to %q: got %v", to, err)
		}
	}
	if _, err := log.Propose(ctx, Put(Node("a"))); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}

// contended has many writers increment one object, each retrying on conflict.
func contended(t *testing.T, ctx context.Context, log consensus.Log, s *store.Store) {
	const writers, each = 8, 25
	counter := &cluster.Stack{Meta: cluster.Meta{ID: cluster.NewID(nil)}, Name: "counter"}
	if _, err := log.Propose(ctx, Put(counter)); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range writers {
		wg.Go(func() {
			for done := 0; done < each; {
				now, _ := store.Get[*cluster.Stack](s.Snapshot(), counter.ID)
				next := cluster.Copy(now)
				next.LastNumber++
				_, err := log.Propose(ctx, Put(next))
				switch {
				case err == nil:
					done++
				case !errors.Is(err, store.ErrConflict):
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	if got, _ := store.Get[*cluster.Stack](s.Snapshot(), counter.ID); got.LastNumber != writers*each {
		t.Fatalf("got %d, want %d", got.LastNumber, writers*each)
	}
}
