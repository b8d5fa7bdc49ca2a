package server

import (
	"context"
	"fmt"
	"net/netip"
	"sync"
	"testing"

	"baton/client/api"
	"baton/internal/manager/consensus"
	"baton/internal/manager/store"
	"baton/internal/model/cluster"
	"baton/internal/model/spec"
)

// meeting is a log at which two writers have both decided before either writes.
type meeting struct {
	*consensus.Memory
	once sync.WaitGroup
	seen sync.Map
}

func (m *meeting) Propose(ctx context.Context, t store.Txn) (store.Version, error) {
	if _, met := m.seen.LoadOrStore(ctx.Value(caller{}), true); !met {
		m.once.Done()
		m.once.Wait()
	}
	return m.Memory.Propose(ctx, t)
}

// caller is the key under which a context tells who writes.
type caller struct{}

func TestTwoStacksCannotTakeOnePortInTheSameInstant(t *testing.T) {
	h := newHarness(t)
	settings := &cluster.Settings{
		Meta: cluster.Meta{ID: cluster.SettingsID}, TaskPool: netip.MustParsePrefix("10.210.0.0/16"), ServicePool: netip.MustParsePrefix("10.211.0.0/16"),
	}
	var txn store.Txn
	txn.Put(settings)
	if _, err := h.log.Propose(t.Context(), txn); err != nil {
		t.Fatal(err)
	}
	m := &meeting{Memory: h.log}
	m.once.Add(2)
	h.srv.cfg.Log = m
	errs := make([]error, 2)
	var wg sync.WaitGroup
	for i := range errs {
		wg.Go(func() {
			s := stack(fmt.Sprintf("shop%d", i))
			s.Services[0].Ports = []spec.Port{{Target: 80, Published: 8080, Protocol: "tcp"}}
			_, errs[i] = h.srv.up(context.WithValue(t.Context(), caller{}, i), api.UpRequest{Stack: s})
		})
	}
	wg.Wait()
	if (errs[0] == nil) == (errs[1] == nil) {
		t.Errorf("got %v and %v, want one refused", errs[0], errs[1])
	}
	if n := h.st.Snapshot().Count(cluster.KindStack); n != 1 {
		t.Errorf("%d stacks are stored, want 1", n)
	}
}
