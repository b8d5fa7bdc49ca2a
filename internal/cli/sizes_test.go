package cli

import (
	"strings"
	"testing"
	"time"

	"baton/client/api"
)

func TestSizesTable(t *testing.T) {
	now := time.Now()
	list := []api.ServiceSize{
		{
			Stack: "shop", Service: "api", Tasks: 3, ReservedCPU: 500, ReservedMemory: 256 << 20, Known: true, Since: now.Add(-90 * time.Minute),
			CPUMedian: 20, CPU95: 80, CPUPeak: 400, CPU: 100, MemoryMedian: 60 << 20, MemoryPeak: 100 << 20, Memory: 115 << 20,
		},
		{Stack: "shop", Service: "db", Tasks: 1, ReservedMemory: 1 << 30, LimitMemory: 1 << 30, Known: true, Since: now, CPU: 10, MemoryPeak: 1 << 30, Memory: 1229 << 20, OOM: 2},
		{Stack: "shop", Service: "new", Tasks: 1},
	}
	var b strings.Builder
	if err := sizesTable(list, now).write(&b, false); err != nil {
		t.Fatal(err)
	}
	for _, want := range [][]string{
		{"api ", "0.5 ", "0.02 / 0.08 / 0.4", "0.1 ", "256.0 MiB", "60.0 MiB / 100.0 MiB", "115.0 MiB", "1.2, 423.0 MiB", "1h30m0s"},
		{"db ", "none", "1.0 GiB", "1.2 GiB", "0, -205.0 MiB", "2 killed for memory"},
		{"new ", "none", "-"},
		{"all ", "1.2, 218.0 MiB"},
	} {
		found := false
		for line := range strings.Lines(b.String()) {
			all := strings.HasPrefix(line, want[0])
			for _, w := range want {
				all = all && strings.Contains(line, w)
			}
			found = found || all
		}
		if !found {
			t.Errorf("no line with %q in\n%s", want, b.String())
		}
	}
}

func TestSizes(t *testing.T) {
	c := newCluster(t, true)
	write(t, "compose.yaml", busyFile)
	c.want(0, "up", "-y")
	contains(t, c.want(0, "top", "--sizes"), "web", "busy", "none")
	if out := c.want(0, "top", "--sizes", "web"); strings.Contains(out, "busy") {
		t.Errorf("sizes of web:\n%s", out)
	}
	contains(t, c.want(1, "top", "--sizes", "--watch"), "--watch")
}
