package cli

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"baton/client/api"
	"baton/internal/model/cluster"
)

func TestNodeAvailability(t *testing.T) {
	c := newCluster(t, true)
	second := cluster.NodeDescription{Hostname: "n2", OS: "linux", Arch: "amd64", CPU: 4000, Memory: 8 << 30}
	c.put(&cluster.Node{Meta: cluster.Meta{ID: id(9)}, Name: "n2", Availability: cluster.NodeActive, State: cluster.NodeReady, Description: second})
	write(t, "compose.yaml", webFile)
	contains(t, c.want(0, "up", "-y"), "release 1 of shop is complete")
	contains(t, c.want(0, "node", "pause", "n2"), "node n2: availability pause")
	contains(t, c.want(0, "scale", "web=4"), "4/4 ready")
	contains(t, c.want(0, "node", "activate", "n2"), "node n2: availability active")
	contains(t, c.want(0, "node", "drain", "n1"), "node n1: availability drain", "node n1 is drained")
	contains(t, c.want(0, "node", "ls"), "drain")
	contains(t, c.want(0, "node", "activate", "n1"), "node n1: availability active")
	contains(t, c.want(0, "ls"), "4/4")
	c.want(api.ExitError, "node", "drain", "nobody")
}

func TestNodeDrainTimesOut(t *testing.T) {
	c := newCluster(t, false)
	c.put(&cluster.Service{Meta: cluster.Meta{ID: id(2)}, Name: "web", StackName: "shop"},
		&cluster.Revision{Meta: cluster.Meta{ID: id(3)}, Service: id(2), Number: 1},
		&cluster.Task{Meta: cluster.Meta{ID: id(4)}, Service: id(2), Revision: id(3), Node: id(1), Slot: 1, Desired: cluster.DesiredRun, Observed: cluster.ObservedRunning})
	contains(t, c.want(api.ExitTimeout, "node", "drain", "n1", "--timeout", "400ms"), "node n1 has tasks left after 400ms: 1", "draining goes on")
	contains(t, c.want(0, "node", "drain", "n1", "-d"), "availability drain")
}

func TestNodeRebalance(t *testing.T) {
	c := newCluster(t, true)
	write(t, "compose.yaml", strings.ReplaceAll(webFile, "replicas: 2", "replicas: 4"))
	contains(t, c.want(0, "up", "-y"), "release 1 of shop is complete")
	contains(t, c.want(0, "node", "rebalance", "--plan"), "no move would make the nodes more evenly loaded")
	second := cluster.NodeDescription{Hostname: "n2", OS: "linux", Arch: "amd64", CPU: 4000, Memory: 8 << 30}
	c.put(&cluster.Node{Meta: cluster.Meta{ID: id(9)}, Name: "n2", Availability: cluster.NodeActive, State: cluster.NodeReady, StateSince: time.Now(), Description: second})
	for range 2 { // a plan changes nothing
		contains(t, c.want(0, "node", "rebalance", "--plan"), "shop/web/", "n1", "n2", "n1 has 4 tasks of the service, n2 has 0")
	}
	contains(t, c.want(0, "node", "rebalance", "--timeout", "60s"), "tasks left to move: ", "the nodes are evenly loaded")
	var moved string
	if out := c.want(0, "ps", "n2", "-q"); len(strings.Fields(out)) != 2 {
		t.Fatalf("on n2: %q, want two tasks", out)
	} else {
		moved = strings.Fields(out)[0]
	}
	contains(t, c.want(0, "why", moved), "moved from n1: n1 has ")
}

func TestNodeThatIsAvoided(t *testing.T) {
	c := newCluster(t, false)
	for service := byte(2); service < 4; service++ {
		c.put(&cluster.Service{Meta: cluster.Meta{ID: id(service)}, Name: fmt.Sprint("s", service), StackName: "shop"},
			&cluster.Revision{Meta: cluster.Meta{ID: id(10 + service)}, Service: id(service), Number: 1})
		for n := range byte(2) {
			c.put(&cluster.Task{Meta: cluster.Meta{ID: id(10*service + n)}, Service: id(service), Revision: id(10 + service), Node: id(1), Slot: 1,
				Desired: cluster.DesiredRemove, Observed: cluster.ObservedFailed, Ended: time.Now()})
		}
	}
	const why = "n1 is avoided: tasks of 2 services failed there in the last 5 minutes"
	contains(t, c.want(0, "node", "ls"), "active (avoided)")
	contains(t, c.want(0, "node", "inspect", "n1"), why)
	contains(t, c.want(0, "why", "n1"), why)
}
