package runtime

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"baton/internal/model/cluster"
)

// What the kernel tells of a task, by either version of cgroups; tasks that have ended and directories of others are left out.
func TestUsesAreReadFromTheKernelsFiles(t *testing.T) {
	busy, ended := cluster.ID{1}, cluster.ID{2}
	self := fmt.Sprintf("%d\n", os.Getpid())
	for _, v2 := range []bool{false, true} {
		mount := t.TempDir()
		put := func(controller string, id, name, content string) {
			if v2 {
				controller = ""
			}
			path := filepath.Join(mount, controller, "/baton/n1", id, name)
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		for _, id := range []string{busy.String(), ended.String(), "another"} {
			put("memory", id, "memory.stat", "anon 7\ntotal_inactive_file 1000\ninactive_file 1000\nslab 3\n")
			put("memory", id, "memory.usage_in_bytes", "5000\n")
			put("memory", id, "memory.current", "5000\n")
			put("memory", id, "memory.limit_in_bytes", "9223372036854771712\n")
			put("memory", id, "memory.max", "max\n")
			put("cpuacct", id, "cpuacct.usage", "1500000\n")
			put("cpuacct", id, "cpu.stat", "usage_usec 1500\nuser_usec 1000\n")
			put("cpuacct", id, "cgroup.procs", "")
		}
		put("cpuacct", busy.String(), "inner/cgroup.procs", self)
		got, err := usesBelow(mount, "/baton/n1", v2)
		if err != nil || len(got) != 1 {
			t.Fatalf("v2 %v: %+v, %v", v2, got, err)
		}
		if u := got[0]; u.Task != busy || u.CPU != 1500*time.Microsecond || u.Memory != 4000 || u.MemoryLimit != 0 || u.Received != 0 {
			t.Errorf("v2 %v: %+v", v2, u)
		}
		put("memory", busy.String(), "memory.limit_in_bytes", "64000\n")
		put("memory", busy.String(), "memory.max", "64000\n")
		if got, err := usesBelow(mount, "/baton/n1", v2); err != nil || got[0].MemoryLimit != 64000 {
			t.Errorf("v2 %v, with a limit: %+v, %v", v2, got, err)
		}
		if got, err := usesBelow(mount, "/baton/other", v2); err != nil || len(got) != 0 {
			t.Errorf("v2 %v, without a task: %+v, %v", v2, got, err)
		}
	}
}
