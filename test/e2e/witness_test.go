package e2e

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"baton/client/api"
)

// leads is the name of the manager that leads, as another one sees it.
func (m *machine) leads() string {
	return batonJSON[api.Cluster](m, "cluster", "status").Leader
}

// Two managers and a witness go on without either of the two; the witness votes, and does nothing else.
func TestWitnessOnlyVotes(t *testing.T) {
	c := newCluster(t, 2, 0)
	m1, m2 := c.list[0], c.list[1]
	line := strings.TrimSpace(m1.baton("token", "ls", "worker", "-q"))
	if r := c.stranger(line, nil, "join", "--witness", "-", "--data-dir", t.TempDir()+"/d", "--name", "w"); r.code == 0 || !strings.Contains(r.stderr, "a manager's token") {
		t.Errorf("a worker's token lets a witness in: exit %d\n%s", r.code, r.stderr)
	}
	x := c.bare("x")
	x.join, x.witness = strings.TrimSpace(m1.baton("token", "ls", "manager", "-q")), true
	c.list = append(c.list, x)
	x.launch()
	x.awaitReady()
	c.ready(3)
	for _, verb := range []string{"activate", "demote"} {
		if r := m1.try("node", verb, "x"); r.code != 5 || !strings.Contains(r.stderr, "is a witness") {
			t.Errorf("%s: exit %d\n%s", verb, r.code, r.stderr)
		}
	}
	if out := m1.baton("node", "ls"); !strings.Contains(out, "witness") {
		t.Errorf("node ls does not tell of the witness:\n%s", out)
	}
	c.loadAll("web-v1")
	m1.baton("up", "-f", m1.write("compose.yaml", "services: {web: {image: baton.test/web:v1, healthcheck: {test: [NONE]}, deploy: {replicas: 4, update_config: {monitor: 0s}}}}"), "-s", "w", "-y")
	for _, task := range m1.live("web") {
		if task.NodeName == "x" {
			t.Error("a task runs on the witness")
		}
	}
	for i := range 2 {
		lost, left := m1, m2
		if m2.leads() == "m2" {
			lost, left = m2, m1
		}
		c.cut(lost, true)
		eventually(t, 20*time.Second, left.name+" leads", func() error {
			if l := left.leads(); l != left.name {
				return fmt.Errorf("%q does", l)
			}
			return nil
		})
		left.baton("node", "label", "x", fmt.Sprintf("round=%d", i))
		c.cut(lost, false)
		c.ready(3)
		if l := x.leads(); l == "" || l == "x" {
			t.Errorf("with all three there, %q leads", l)
		}
	}
	// The witness has the longest log, and nobody else is there at first: it is elected, and hands over.
	m1.stop()
	m2.stop()
	x.stop()
	x.launch()
	m1.launch()
	m1.awaitReady()
	eventually(t, 20*time.Second, "m1 leads", func() error {
		if l := m1.leads(); l != "m1" {
			return errors.New(l + " does")
		}
		return nil
	})
	m2.launch()
	m2.awaitReady()
	c.ready(3)
	if r := m1.try("node", "rm", "--force", "m2"); r.code != 0 {
		t.Errorf("a manager cannot be removed: %s", r.stderr)
	}
	if r := m1.try("node", "rm", "--force", "m1"); r.code != 5 || !strings.Contains(r.stderr, "not a witness") {
		t.Errorf("the last manager that is not a witness can be removed: exit %d\n%s", r.code, r.stderr)
	}
}
