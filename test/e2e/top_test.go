package e2e

import (
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"baton/client/api"
)

// topDocument is what `baton top -o json` prints.
type topDocument struct {
	Nodes    []api.NodeUsage   `json:"nodes"`
	Services []api.ServiceLoad `json:"services"`
	Tasks    []struct {
		api.TaskStats
		Percent float64 `json:"cpuPercent"`
	} `json:"tasks"`
}

// Given to a manager that does not lead: what a busy task on a worker uses is seen, before what an idle one does, and a node that is
// gone is named.
func TestTopThroughAnyManager(t *testing.T) {
	c := newCluster(t, 3, 2)
	m := c.list[0]
	if m == c.leader(m) {
		m = c.list[1]
	}
	busyOn, gone := c.list[3], c.list[4]
	m.load("busybox")
	m.baton("node", "label", busyOn.name, "load=yes")
	m.baton("up", "-y", "--timeout", "90s", "-f", m.write("compose.yaml", `
name: load
services:
  busy:
    image: busybox:1
    command: ["sh", "-c", "while :; do :; done"]
    deploy: {placement: {constraints: [node.labels.load == yes]}, resources: {limits: {cpus: "0.25", memory: 64M}}}
  idle:
    image: busybox:1
    command: ["sleep", "100000"]
    deploy: {placement: {constraints: [node.labels.load == yes]}, replicas: 2}
`))
	top := func() (doc topDocument, err error) {
		return doc, json.Unmarshal([]byte(m.baton("top", "-o", "json")), &doc)
	}
	eventually(t, 30*time.Second, "the busy task comes first", func() error {
		doc, err := top()
		if err != nil || len(doc.Tasks) != 3 || len(doc.Nodes) != 5 {
			return fmt.Errorf("%d nodes, %d tasks, %v", len(doc.Nodes), len(doc.Tasks), err)
		}
		return doc.busyFirst(busyOn.name)
	})
	leaders := 0
	for _, n := range decode[[]api.Node](t, m.baton("node", "ls", "-o", "json")) {
		if n.Leader {
			leaders++
		}
		if n.Used == nil || n.Used.Error != "" {
			t.Errorf("node %s: %+v", n.Name, n.Used)
		}
	}
	if leaders != 1 {
		t.Errorf("%d nodes lead", leaders)
	}
	gone.kill()
	eventually(t, 60*time.Second, "the node that is gone is named, the others answer", func() error {
		doc, err := top()
		if err != nil {
			return err
		}
		for _, n := range doc.Nodes {
			if (n.Error != "") != (n.Node == gone.name) {
				return fmt.Errorf("node %s: error %q", n.Node, n.Error)
			}
		}
		return nil
	})
	t.Log("\n" + m.baton("top") + m.baton("node", "ls"))
}

// busyFirst checks that the first task is the busy one, on its node, and that every node has told all of it.
func (doc topDocument) busyFirst(node string) error {
	first := doc.Tasks[0]
	if first.Service != "busy" || first.Node != node || first.Percent < 5 || first.Percent <= doc.Tasks[1].Percent {
		return fmt.Errorf("first is %s on %s with %.1f %%", first.Service, first.Node, first.Percent)
	}
	if first.Memory == 0 || first.MemoryLimit != 64<<20 || first.PIDs == 0 {
		return fmt.Errorf("the busy task uses %+v", first.TaskStats)
	}
	for _, n := range doc.Nodes {
		if n.Error != "" || n.Memory == 0 || n.MemorySize < n.Memory || n.Cores == 0 {
			return fmt.Errorf("node %+v", n)
		}
	}
	return nil
}
