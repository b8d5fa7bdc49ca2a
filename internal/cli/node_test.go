package cli

import (
	"testing"

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
