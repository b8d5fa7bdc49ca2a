package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"baton/client/api"
	"baton/internal/model/cluster"
)

// level waits until the ready tasks of web are as many on each of the nodes.
func (c *machines) level(each int, limit time.Duration, nodes ...string) {
	c.t.Helper()
	m := c.list[0]
	eventually(c.t, limit, fmt.Sprintf("%d ready tasks on each of %v", each, nodes), func() error {
		count := make(map[string]int)
		all := m.tasks("web", false)
		for _, task := range all {
			if task.Ready && task.Desired == cluster.DesiredRun {
				count[task.NodeName]++
			}
		}
		for _, n := range nodes {
			if count[n] != each {
				return fmt.Errorf("%v", count)
			}
		}
		if len(all) != each*len(nodes) {
			return fmt.Errorf("%d tasks", len(all))
		}
		return nil
	})
}

// A node that was lost and returns gets its share again, by itself and under load; so does one that is activated, at once when
// somebody asks. No request fails.
func TestReplicasLevelOutAfterANodeReturns(t *testing.T) {
	c := newCluster(t, 1, 2)
	m1, w1 := c.list[0], c.by("w1")
	c.loadAll("web-v1")
	m1.baton("up", "-f", m1.write("compose.yaml", webFile(published, probed, deploy("replicas: 3, "+quickUpdate))), "-s", "web", "-y")
	c.level(1, time.Minute, "m1", "w1", "w2")
	c.cut(w1, true)
	eventually(t, time.Minute, "the others have all tasks", func() error {
		ready := 0
		for _, task := range m1.live("web") {
			if task.NodeName != "w1" && task.Ready {
				ready++
			}
		}
		if ready < 3 {
			return fmt.Errorf("%d", ready)
		}
		return nil
	})
	c.cut(w1, false)
	c.settled(m1, "web", time.Minute)
	if got := m1.on("web", "w1"); len(got) > 0 {
		t.Fatalf("%d tasks on the node that was lost, before anything could move", len(got))
	}
	load := startLoad(t, c.hub, request{URL: "http://" + m1.ip + ":8080/", Workers: 3, Pause: 5 * time.Millisecond})
	returned := time.Now()
	c.level(1, 4*time.Minute, "m1", "w1", "w2")
	t.Logf("level %.0f s after the node was back", time.Since(returned).Seconds())
	moved := m1.on("web", "w1")[0]
	if why := m1.baton("why", moved.ID.String()); !strings.Contains(why, "moved from ") {
		t.Errorf("why does not tell of the move:\n%s", why)
	}

	m1.baton("node", "drain", "w2")
	m1.baton("node", "activate", "w2")
	if plan := batonJSON[[]api.Move](m1, "node", "rebalance", "--plan"); len(plan) != 1 || plan[0].To != "w2" {
		t.Errorf("planned %+v, want one move to w2", plan)
	}
	asked := time.Now()
	m1.baton("node", "rebalance", "-y")
	t.Logf("asked for moves: level after %.0f s", time.Since(asked).Seconds())
	c.level(1, 10*time.Second, "m1", "w1", "w2")
	if got := load.end(); got.Failures > 0 || got.Requests < 10 {
		t.Errorf("%d of %d requests failed: %v", got.Failures, got.Requests, got.Errors)
	} else {
		t.Logf("%d requests, none failed", got.Requests)
	}
}
