package control

import (
	"context"
	"errors"
	"log/slog"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"baton/internal/manager/consensus"
	"baton/internal/manager/store"
	"baton/internal/model/cluster"
	"baton/internal/model/spec"
)

// flaky is a log with outcomes that are not seen and barriers that do not come through, until it is mended.
type flaky struct {
	*consensus.Memory
	broken   atomic.Bool
	barriers atomic.Int64
}

func (f *flaky) Barrier(ctx context.Context) error {
	f.barriers.Add(1)
	if f.broken.Load() {
		return errors.New("the disk is slow")
	}
	return f.Memory.Barrier(ctx)
}

// noAcks stands for a cluster without agents.
type noAcks struct{}

func (noAcks) Acked() cluster.Version { return 0 }
func (noAcks) Acks() <-chan struct{}  { return nil }

func TestPlanningGoesOnAfterTheLogRecovers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1)
		w.deploy(spec.Stack{Name: "s", Services: []spec.Service{service("web", 1)}})
		log := &flaky{Memory: consensus.NewMemory(w.st)}
		log.broken.Store(true)
		log.SetFault(func(*store.Txn) consensus.Fault { return consensus.Fault{Unknown: log.broken.Load()} })
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() {
			done <- New(Config{Store: w.st, Log: log, Acks: noAcks{}, Logger: slog.New(slog.DiscardHandler), Seed: 1}).Run(ctx)
		}()
		time.Sleep(time.Minute)
		synctest.Wait()
		if n := log.barriers.Load(); n < 5 || n > 100 {
			t.Errorf("%d barriers in a minute, want patience and persistence", n)
		}
		log.broken.Store(false)
		time.Sleep(2 * idleMax)
		synctest.Wait()
		if list := w.tasks("web"); len(list) != 1 || list[0].Node.IsZero() {
			t.Errorf("got tasks %+v, want one with a node", list)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}
