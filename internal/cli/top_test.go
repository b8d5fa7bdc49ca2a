package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	tea "charm.land/bubbletea/v2"

	"baton/client/api"
	"baton/internal/model/cluster"
)

// rowsOf are the first cells of the lines below a headline that begins with head.
func rowsOf(out, head string) []string {
	var rows []string
	_, below, _ := strings.Cut(out, "\n"+head)
	_, below, _ = strings.Cut(below, "\n")
	for line := range strings.Lines(below) {
		f := strings.Fields(line)
		if len(f) == 0 {
			break
		}
		rows = append(rows, f[0])
	}
	return rows
}

const busyFile = `name: shop
services:
  web:
    image: web:1
    deploy: {replicas: 2}
  busy:
    image: busy:1
`

func TestTop(t *testing.T) {
	c := newCluster(t, true)
	write(t, "compose.yaml", busyFile)
	c.want(0, "up", "-y")
	c.put(&cluster.Node{Meta: cluster.Meta{ID: id(2)}, Name: "n2", Availability: cluster.NodeActive, State: cluster.NodeDown})
	for order, want := range map[string]string{"cpu": "busy/1 web/1 web/2", "memory": "web/1 web/2 busy/1", "name": "busy/1 web/1 web/2"} {
		out := c.want(0, "top", "--sort", order)
		if got := strings.Join(rowsOf(out, "TASK"), " "); got != want {
			t.Errorf("--sort %s: %s, want %s\n%s", order, got, want, out)
		}
	}
	out := c.want(0, "top")
	// 3 of 4 processors; half of one.
	contains(t, out, "n1     75.0    3.00/4   2.0 GiB / 8.0 GiB   25.0    3.0 MiB / 15 B", "node n2 is not connected", "busy/1   50.0    5.0 MiB / 64.0 MiB    7.8")
	if out := c.want(0, "top", "web"); strings.Contains(out, "busy") || strings.Contains(out, "n2") || !strings.Contains(out, "web/1") {
		t.Errorf("top web:\n%s", out)
	}
	if out := c.want(0, "top", "n2"); strings.Contains(out, "web") || !strings.Contains(out, "n2") {
		t.Errorf("top n2:\n%s", out)
	}
	var doc usage
	if err := json.Unmarshal([]byte(c.want(0, "top", "-o", "json")), &doc); err != nil {
		t.Fatal(err)
	}
	if len(doc.Nodes) != 2 || doc.Nodes[1].Error == "" || len(doc.Tasks) != 3 || doc.Tasks[0].Percent == nil || *doc.Tasks[0].Percent != 50 {
		t.Errorf("document: %+v", doc)
	}
	contains(t, c.want(api.ExitError, "top", "--sort", "colour"), "cpu, memory, name, net, pids")
	contains(t, c.want(api.ExitError, "top", "wbe"), "web")
	if got := strings.Join(rowsOf("\n"+c.want(0, "stats"), "TASK"), " "); got != "busy/1 web/1 web/2" {
		t.Errorf("stats: %s", got)
	}
	if got := len(strings.Fields(c.want(0, "stats", "-q"))); got != 3 {
		t.Errorf("stats -q: %d ids, want 3", got)
	}
}

// Listing nodes names those that do not answer, and asks nobody when names are enough.
func TestNodesUsed(t *testing.T) {
	c := newCluster(t, false)
	c.put(&cluster.Node{Meta: cluster.Meta{ID: id(2)}, Name: "n2", Availability: cluster.NodePause, State: cluster.NodeDown})
	contains(t, c.want(0, "node", "ls"), "n1     ready   active         manager   0       3.00/4     0/4        2.0 GiB/8.0 GiB", "n2     down    pause          worker    0       ?")
	contains(t, c.want(0, "node", "ls", "-o", "wide"), "node n2 is not connected")
	asked := c.asked.Load()
	if out := c.want(0, "node", "ls", "-q"); out != "n1\nn2\n" || c.asked.Load() != asked {
		t.Errorf("%q, after %d questions", out, c.asked.Load()-asked)
	}
	if got := roleOf(api.Node{Leader: true, Node: cluster.Node{Manager: true}}); got != "leader" {
		t.Errorf("the leading manager is a %s", got)
	}
}

func TestShare(t *testing.T) {
	for _, c := range []struct {
		worked, span time.Duration
		cores        float64
		want         string
	}{{time.Second, time.Second, 1, "100.0"}, {3 * time.Second, time.Second, 4, "75.0"}, {0, time.Second, 1, "0.0"}, {time.Second, 0, 1, "-"}, {-1, time.Second, 1, "-"}} {
		if got := percent(share(c.worked, c.span, c.cores)); got != c.want {
			t.Errorf("%+v: got %s", c, got)
		}
	}
}

// The live view has no more lines and columns than the terminal, and tells how much it left out.
func TestTopViewFitsTheTerminal(t *testing.T) {
	var u usage
	for i := range 40 {
		u.Tasks = append(u.Tasks, usedTask{TaskStats: api.TaskStats{Service: fmt.Sprintf("a-service-with-quite-a-long-name-%02d", i), Slot: 1, Node: "n1"}})
	}
	for _, size := range [][2]int{{0, 0}, {80, 24}, {40, 10}, {200, 100}, {80, 3}, {80, 1}} {
		m := topModel{app: newApp(strings.NewReader(""), io.Discard, io.Discard, Hooks{})}
		next, _ := m.Update(tea.WindowSizeMsg{Width: size[0], Height: size[1]})
		next, _ = next.Update(u)
		lines := strings.Split(strings.TrimSuffix(next.(topModel).View().Content, "\n"), "\n")
		if size[1] > 2 && len(lines) > size[1]-1 {
			t.Errorf("%v: %d lines", size, len(lines))
		}
		if last := lines[len(lines)-1]; size[1] > 0 && size[1] < 40 && !strings.Contains(last, " more") {
			t.Errorf("%v: ends with %q", size, last)
		}
		for _, l := range lines {
			if n := len([]rune(l)); size[0] > 0 && n > size[0] {
				t.Errorf("%v: a line of %d columns", size, n)
			}
		}
	}
}
