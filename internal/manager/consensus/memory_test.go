package consensus_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"baton/internal/manager/consensus"
	"baton/internal/manager/consensus/logtest"
	"baton/internal/manager/store"
	"baton/internal/model/cluster"
)

func TestMemoryLosesAndRegainsLeadership(t *testing.T) {
	m := consensus.NewMemory(store.New())
	defer m.Close()
	first := <-m.Leadership()
	m.SetLeader(false)
	if _, err := m.Propose(t.Context(), logtest.Put(logtest.Node("a"))); !errors.Is(err, consensus.ErrNotLeader) {
		t.Errorf("without leadership: got %v", err)
	}
	if err := m.Barrier(t.Context()); !errors.Is(err, consensus.ErrNotLeader) {
		t.Errorf("barrier: got %v", err)
	}
	m.SetLeader(true)
	if now := <-m.Leadership(); !now.Leader || now.Number <= first.Number {
		t.Errorf("got %+v after %+v, want the latest term alone", now, first)
	}
	m.Close()
	if _, open := <-m.Leadership(); open {
		t.Error("the channel of a closed log is open")
	}
}

func TestMemoryFaultsSayWhatTheyDo(t *testing.T) {
	refusal := errors.New("refused")
	for _, c := range []struct {
		name    string
		fault   consensus.Fault
		want    error
		applied bool
	}{
		{"none", consensus.Fault{}, nil, true},
		{"refused", consensus.Fault{Refuse: refusal}, refusal, false},
		{"unknown, applied", consensus.Fault{Unknown: true, Applied: true}, consensus.ErrUnknown, true},
		{"unknown, dropped", consensus.Fault{Unknown: true}, consensus.ErrUnknown, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := store.New()
			m := consensus.NewMemory(s)
			defer m.Close()
			m.SetFault(func(*store.Txn) consensus.Fault { return c.fault })
			n := logtest.Node("a")
			if _, err := m.Propose(t.Context(), logtest.Put(n)); !errors.Is(err, c.want) {
				t.Errorf("got %v, want %v", err, c.want)
			}
			if _, ok := store.Get[*cluster.Node](s.Snapshot(), n.ID); ok != c.applied {
				t.Errorf("applied: got %v, want %v", ok, c.applied)
			}
		})
	}
}

func TestMemoryDelayEndsWithTheContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := consensus.NewMemory(store.New())
		defer m.Close()
		m.SetFault(func(*store.Txn) consensus.Fault { return consensus.Fault{Delay: time.Minute} })
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := m.Propose(ctx, logtest.Put(logtest.Node("a"))); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
		start := time.Now()
		if _, err := m.Propose(t.Context(), logtest.Put(logtest.Node("a"))); err != nil || time.Since(start) != time.Minute {
			t.Errorf("got %v after %s", err, time.Since(start))
		}
	})
}

func TestRandomFaultsAreReproducible(t *testing.T) {
	run := func() (out string) {
		m := consensus.NewMemory(store.New())
		defer m.Close()
		m.SetFault(consensus.RandomFaults(rand.New(rand.NewPCG(1, 2)), consensus.FaultRates{Refuse: 0.2, UnknownApplied: 0.2, UnknownDropped: 0.2}))
		for i := range 50 {
			_, err := m.Propose(t.Context(), logtest.Put(logtest.Node(fmt.Sprint(i))))
			out += fmt.Sprint(err, ";")
		}
		return out
	}
	if a, b := run(), run(); a != b {
		t.Errorf("the same seed gave\n%s\nand\n%s", a, b)
	}
}
