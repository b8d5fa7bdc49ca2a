package consensus_test

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"

	"baton/internal/manager/consensus/logtest"
)

// BenchmarkPropose shows what group commit brings: the same proposals, from two callers and from many.
func BenchmarkPropose(b *testing.B) {
	for _, callers := range []int{2, 64, 512} {
		b.Run(fmt.Sprint("callers=", callers), func(b *testing.B) {
			cfg := config(b.TempDir())
			cfg.SegmentBytes = 32 << 20
			log := open(b, cfg)
			var n atomic.Int64
			b.SetParallelism(callers / 2)
			b.ResetTimer()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					if _, err := log.Propose(context.Background(), logtest.Put(logtest.Node(fmt.Sprint(n.Add(1))))); err != nil {
						b.Error(err)
					}
				}
			})
		})
	}
}
