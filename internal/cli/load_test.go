package cli

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"baton/client/api"
	"baton/internal/manager/store"
	"baton/internal/model/cluster"
	"baton/internal/wire/agentapi"
)

// top and status show the requests of the last minute: of services, and of tasks.
func TestLoadIsShown(t *testing.T) {
	c := newCluster(t, true)
	write(t, "compose.yaml", busyFile)
	c.want(0, "up", "-y")
	if out := c.want(0, "top"); strings.Contains(out, "REQ/S") {
		t.Errorf("columns of requests that nobody made:\n%s", out)
	}
	var web []*cluster.Task
	for k := range store.All[*cluster.Task](c.store.Snapshot()) {
		if svc, ok := store.Get[*cluster.Service](c.store.Snapshot(), k.Service); ok && svc.Name == "web" {
			web = append(web, k)
		}
	}
	first := web[0]
	// 10 requests a second, from two minutes ago until some time after the test has asked.
	began := time.Now().Add(-2 * time.Minute)
	end := began.Add(4 * time.Minute)
	for at := began; !at.After(end); at = at.Add(agentapi.MeasureEvery) {
		n := uint64(10 * at.Sub(began).Seconds())
		var h agentapi.Histogram
		h[agentapi.LatencyBucket(5*time.Millisecond)], h[agentapi.LatencyBucket(2*time.Second)] = n-n/10, n/10
		c.measures.Take(first.Node, agentapi.Measures{At: at, Full: true, Requests: []agentapi.RequestMeasure{{
			Service: first.Service, Task: first.ID, Since: began.UnixNano(), Classes: [agentapi.RequestClasses]uint64{2: n - n/20, 5: n / 20},
			Latency: h.Sparse(), InFlight: 3,
		}}, Use: &agentapi.NodeUse{Tasks: []agentapi.TaskUse{{Task: first.ID, CPU: at.Sub(began) / 4, Memory: 64 << 20}}}}, at)
	}
	for _, verb := range []string{"top", "status"} {
		out := c.want(0, verb)
		row := rowOf(t, out, "SERVICE", "web", "REQ/S")
		for _, want := range []string{"10.0", "5.0", "2.", "3", "0.25", "50.0", "64.0", "MiB", "1", "shop"} {
			if !strings.Contains(row, want) {
				t.Errorf("%s: no %q in %q", verb, want, row)
			}
		}
	}
	if got := strings.Join(rowsOf(c.want(0, "top", "--sort", "requests"), "TASK")[:1], ""); got != "web/"+string(rune('0'+first.Slot)) {
		t.Errorf("the task with most requests is %s", got)
	}
	var doc usage
	if err := json.Unmarshal([]byte(c.want(0, "top", "-o", "json")), &doc); err != nil {
		t.Fatal(err)
	}
	if len(doc.Services) != 1 || doc.Services[0].Classes["5xx"] < 25 || doc.Services[0].Missing != 1 {
		t.Errorf("services: %+v", doc.Services)
	}
}

// rowOf is the line of name below the headline that begins with head and has a column.
func rowOf(t *testing.T, out, head, name, column string) string {
	t.Helper()
	in := false
	for line := range strings.Lines(out) {
		if strings.HasPrefix(line, head) {
			in = strings.Contains(line, column)
		}
		if in && strings.HasPrefix(line, name+" ") {
			return line
		}
	}
	t.Fatalf("no %s with %s in:\n%s", name, column, out)
	return ""
}

func TestLatencyText(t *testing.T) {
	for d, want := range map[time.Duration]string{0: "0.0ms", 3210 * time.Microsecond: "3.2ms", 123456 * time.Microsecond: "123ms", 1234 * time.Millisecond: "1.2s"} {
		if got := latencyText(d); got != want {
			t.Errorf("%v: %s, want %s", d, got, want)
		}
	}
	if got := strings.Join(loadCells(&api.Load{Requests: 4, Rate: 0.5, Classes: map[string]uint64{"2xx": 3, "5xx": 1}, Broken: 9}), " "); !strings.HasPrefix(got, "0.5 100.0 ") {
		t.Errorf("cells: %s", got)
	}
}
