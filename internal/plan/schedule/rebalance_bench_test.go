package schedule

import (
	"fmt"
	"math/rand"
	"testing"
	"time"

	"baton/internal/model/cluster"
)

// BenchmarkRebalance looks at as many services as the control loop does at once, in a cluster that is level already.
func BenchmarkRebalance(b *testing.B) {
	for _, zoned := range []bool{false, true} {
		b.Run(fmt.Sprintf("nodes=10000/services=100/zones=%v", zoned), func(b *testing.B) {
			v := testView(10_000, func(_ int, n *cluster.Node) {
				if !zoned {
					n.Labels = nil
				}
			})
			var groups []Group
			for i := range 100 {
				g := testGroup(100, nil)
				g.Service.ID = id('s', i+1)
				for j, task := range g.Tasks {
					task.ID, task.Service = id('t', i*100+j), g.Service.ID
				}
				groups = append(groups, running(v, g, Assign(v, g, rand.New(rand.NewSource(int64(i))))))
			}
			limits := RebalanceLimits{PerService: 1, Cluster: 3, Steady: time.Minute}
			b.ReportAllocs()
			for b.Loop() {
				Rebalance(v, groups, limits)
			}
		})
	}
}
