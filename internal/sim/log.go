package sim

import (
	"context"
	"math/rand/v2"

	"baton/internal/manager/consensus"
	"baton/internal/manager/store"
)

// simLog is the one-copy log with the faults of a real one.
type simLog struct {
	w      *World
	memory *consensus.Memory
	leader bool
	nested bool
	inARow int // proposals since time last passed
}

func newSimLog(w *World) *simLog {
	l := &simLog{w: w, memory: consensus.NewMemory(w.store), leader: true}
	faults := consensus.RandomFaults(rand.New(rand.NewPCG(w.cfg.Seed, 2)), consensus.FaultRates{
		Refuse: 0.004, UnknownApplied: 0.004, UnknownDropped: 0.004,
	})
	l.memory.SetFault(func(t *store.Txn) consensus.Fault {
		if !w.chaos {
			return consensus.Fault{}
		}
		return faults(t)
	})
	return l
}

// Propose commits a transaction and checks the state that it made.
func (l *simLog) Propose(ctx context.Context, t store.Txn) (store.Version, error) {
	if l.inARow++; l.inARow > proposals {
		l.w.fail("%d transactions at one point in time: planners that never come to rest", proposals)
		return 0, consensus.ErrClosed
	}
	if !l.nested && l.w.chance(0.05) {
		// Somebody else is first: what was decided on may be gone.
		l.nested = true
		l.w.interfere()
		l.nested = false
	}
	v, err := l.memory.Propose(ctx, t)
	if err != nil {
		l.w.tracef("  proposal of %d operations: %v", t.Len(), err)
	}
	l.w.check.stored()
	return v, err
}

func (l *simLog) lead(leader bool) {
	l.leader = leader
	l.memory.SetLeader(leader)
}

// interfere lets a concurrent write happen: reports that wait.
func (w *World) interfere() { w.dispatcher.WriteReports(context.Background()) }
