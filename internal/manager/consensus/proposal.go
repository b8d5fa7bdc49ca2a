package consensus

import (
	"sync/atomic"

	"baton/internal/manager/store"
)

// The states of a proposal. Whoever moves it away from queued decides whether it happens.
const (
	queued int32 = iota
	taken
	withdrawn
)

type result struct {
	version store.Version
	err     error
}

// proposal is one call of Propose, or of Barrier when txn is nil, on its way through the queue.
type proposal struct {
	txn   *store.Txn
	done  chan result // one place: the answer never blocks
	state atomic.Int32
}

func newProposal(t *store.Txn) *proposal { return &proposal{txn: t, done: make(chan result, 1)} }

// take claims the proposal for the log; false when its caller gave up before.
func (p *proposal) take() bool { return p.state.CompareAndSwap(queued, taken) }

// withdraw takes the proposal back; false when it is too late.
func (p *proposal) withdraw() bool { return p.state.CompareAndSwap(queued, withdrawn) }

func (p *proposal) finish(v store.Version, err error) { p.done <- result{v, err} }

// refuse answers a proposal that was never handed on.
func (p *proposal) refuse(err error) {
	if p.take() {
		p.finish(0, err)
	}
}
