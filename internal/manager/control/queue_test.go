package control

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"baton/internal/model/cluster"
)

// TestAgendaIsASortedSet compares the heaps with a search through plain maps.
func TestAgendaIsASortedSet(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a := newAgenda()
		dirty, wakes := make(map[key]bool), make(map[key]time.Time)
		begin := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
		drawKey := func() key {
			return key{rapid.SampledFrom(ranks[:]).Draw(t, "kind"), cluster.ID{15: rapid.ByteRange(0, 3).Draw(t, "id")}, rapid.Bool().Draw(t, "scale")}
		}
		moment := func() time.Time { return begin.Add(time.Duration(rapid.IntRange(0, 5).Draw(t, "at")) * time.Second) }
		first := func() (best key, ok bool) {
			for k := range dirty {
				if !ok || k.compare(best) < 0 {
					best, ok = k, true
				}
			}
			return best, ok
		}
		t.Repeat(map[string]func(*rapid.T){
			"mark": func(*rapid.T) { k := drawKey(); a.mark(k); dirty[k] = true },
			"wake": func(*rapid.T) { k, at := drawKey(), moment(); a.wake(k, at); wakes[k] = at },
			"drop": func(*rapid.T) { k := drawKey(); a.drop(k); delete(dirty, k); delete(wakes, k) },
			"due": func(*rapid.T) {
				now := moment()
				a.due(now)
				for k, at := range wakes {
					if !at.After(now) {
						delete(wakes, k)
						dirty[k] = true
					}
				}
			},
			"take": func(t *rapid.T) {
				want, wantOK := first()
				if got, ok := a.take(); got != want || ok != wantOK {
					t.Fatalf("got %v %v, want %v %v", got, ok, want, wantOK)
				}
				delete(dirty, want)
				delete(wakes, want)
			},
			"": func(t *rapid.T) {
				var want time.Time
				for _, at := range wakes {
					if want.IsZero() || at.Before(want) {
						want = at
					}
				}
				if got := a.wakeAt(); !got.Equal(want) {
					t.Fatalf("wakes at %v, want %v", got, want)
				}
			},
		})
	})
}

// BenchmarkRoundOverIdleServices is what a change of a node costs in a cluster of many services.
func BenchmarkRoundOverIdleServices(b *testing.B) {
	w := newWorld(b, 100)
	var list []cluster.Object
	for i := range 10_000 {
		list = append(list, &cluster.Service{
			Meta: cluster.Meta{ID: cluster.NewID(nil)}, Name: fmt.Sprint("s", i), Stack: cluster.NewID(nil), Address: netip.AddrFrom4([4]byte{192, 0, byte(i >> 8), byte(i)}),
		})
	}
	for part := range slices.Chunk(list, 1000) {
		w.put(part...)
	}
	for d, ok := w.next(); ok; d, ok = w.next() {
		w.engine.Done(d, w.apply(d.Txn))
	}
	for b.Loop() {
		w.engine.markNodeServices(cluster.ID{})
		for _, ok := w.next(); ok; _, ok = w.next() {
		}
	}
}
