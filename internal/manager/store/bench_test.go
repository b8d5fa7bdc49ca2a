package store

import (
	"encoding/binary"
	"io"
	"net/netip"
	"os"
	"runtime"
	"strconv"
	"testing"
	"time"

	"baton/internal/model/cluster"
)

// benchTasks is how many tasks the benchmarks hold; BATON_BENCH_TASKS sets another number.
func benchTasks(b *testing.B) int {
	v := os.Getenv("BATON_BENCH_TASKS")
	if v == "" {
		return 1_000_000
	}
	n, err := strconv.Atoi(v)
	if err != nil || n < 1000 {
		b.Fatalf("BATON_BENCH_TASKS=%q: want a number from 1000", v)
	}
	return n
}

func spread(n int) (id cluster.ID) {
	// Random-looking and reproducible: ids are spread over the whole table.
	binary.BigEndian.PutUint64(id[:], uint64(n)*0x9e3779b97f4a7c15)
	binary.BigEndian.PutUint64(id[8:], uint64(n)+1)
	return id
}

func benchTask(n int) *cluster.Task {
	at := time.Unix(1_700_000_000+int64(n), 123456789).UTC()
	return &cluster.Task{
		Meta: cluster.Meta{ID: spread(n), Created: at}, Stack: spread(n % 100), Service: spread(n % 10_000), Revision: spread(n % 10_000),
		Node: spread(n % 9_973), Slot: n/10_000 + 1, Desired: cluster.DesiredRun, Observed: cluster.ObservedRunning, Ready: true,
		Address: netip.AddrFrom4([4]byte{10, byte(n >> 16), byte(n >> 8), byte(n)}), Started: at, ReadySince: at,
	}
}

// perTxn is how many tasks one transaction carries, as a plan of many placements does.
const perTxn = 1000

func filled(b *testing.B, n int) *Store {
	b.Helper()
	s := New()
	for i := 0; i < n; i += perTxn {
		mustApply(b, s, benchTxn(i, min(i+perTxn, n)))
	}
	return s
}

func benchTxn(from, to int) (t Txn) {
	for i := from; i < to; i++ {
		t.Put(benchTask(i))
	}
	return t
}

func heap() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

func BenchmarkStore(b *testing.B) {
	n := benchTasks(b)
	before := heap()
	start := time.Now()
	s := filled(b, n)
	took := time.Since(start)
	used := heap() - before
	b.Run("fill", func(b *testing.B) {
		for b.Loop() {
		}
		b.ReportMetric(float64(took.Nanoseconds())/float64(n), "ns/task")
		b.ReportMetric(float64(used)/float64(n), "bytes/task")
		b.ReportMetric(0, "ns/op")
	})
	b.Run("apply one", func(b *testing.B) { benchApply(b, s, n, 1) })
	b.Run("apply thousand", func(b *testing.B) { benchApply(b, s, n, perTxn) })
	b.Run("snapshot", func(b *testing.B) {
		for b.Loop() {
			if s.Snapshot().Version() == 0 {
				b.Fatal("empty")
			}
		}
	})
	b.Run("tasks of a service", func(b *testing.B) {
		got := 0
		for i := 0; b.Loop(); i++ {
			for range s.Snapshot().TasksByService(spread(i % 10_000)) {
				got++
			}
		}
		b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(max(got, 1)), "ns/task")
	})
	b.Run("cursor", func(b *testing.B) {
		c := s.Changes(s.Snapshot().Version(), Filter{Kinds: []cluster.Kind{cluster.KindTask}})
		defer c.Close()
		for i := 0; b.Loop(); i++ {
			b.StopTimer()
			touch(b, s, n, i*100, 100)
			b.StartTimer()
			if d := c.Collect(); len(d.Changed) != 100 {
				b.Fatalf("got %d changes", len(d.Changed))
			}
		}
		b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*100), "ns/change")
	})
	b.Run("write snapshot", func(b *testing.B) {
		var size int64
		for b.Loop() {
			var err error
			if size, err = s.Snapshot().WriteTo(io.Discard); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(float64(size)/float64(n), "bytes/task")
		b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(n), "ns/task")
	})
}

func benchApply(b *testing.B, s *Store, n, batch int) {
	for i := 0; b.Loop(); i++ {
		touch(b, s, n, i*batch, batch)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*batch), "ns/task")
}

// touch changes the state of some tasks in one transaction, encoding included.
func touch(b *testing.B, s *Store, n, from, count int) {
	snap := s.Snapshot()
	var t Txn
	for i := range count {
		stored, ok := Get[*cluster.Task](snap, spread((from+i)%n))
		if !ok {
			b.Fatal("a task is gone")
		}
		o := cluster.Copy(stored)
		o.Failures++
		t.Put(o)
	}
	mustApply(b, s, t)
}
