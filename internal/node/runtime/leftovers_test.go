package runtime_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/containerd/v2/core/snapshots"

	"baton/internal/model/cluster"
	"baton/internal/node/runtime"
)

// empty removes all containers and checks that nothing is left of them.
func (n *node) empty() {
	n.t.Helper()
	all, err := n.Observe(n.t.Context())
	if err != nil {
		n.t.Fatal(err)
	}
	for _, o := range all {
		if err := n.Remove(n.t.Context(), o.Task); err != nil {
			n.t.Error(err)
		}
	}
	n.nothingLeft()
}

// nothingLeft checks that the node has no container and no part of one.
func (n *node) nothingLeft() {
	n.t.Helper()
	_ = n.Client().SnapshotService("overlayfs").Walk(n.t.Context(), func(_ context.Context, i snapshots.Info) error {
		if _, err := cluster.ParseID(i.Name); err == nil {
			n.t.Errorf("snapshot %s is left", i.Name)
		}
		return nil
	})
	ls, err := n.Client().LeasesService().List(n.t.Context())
	if err != nil {
		n.t.Fatal(err)
	}
	for _, l := range ls {
		n.t.Errorf("lease %s is left", l.ID)
	}
	run := runtime.RunDir(n.dir)
	for _, dir := range []string{filepath.Join(n.dir, "tasks"), run + "/s", run + "/runc/baton", run + "/state/io.containerd.runtime.v2.task/baton"} {
		es, _ := os.ReadDir(dir)
		for _, e := range es {
			n.t.Errorf("%s is left in %s", e.Name(), dir)
		}
	}
	groups, _ := filepath.Glob("/sys/fs/cgroup/*/baton/" + filepath.Base(run) + "/*/cgroup.procs")
	for _, g := range groups {
		n.t.Errorf("cgroup %s is left", g)
	}
	eventually(n.t, "the logger lets go of the tasks", func() bool {
		es, err := os.ReadDir(run + "/fifo")
		return err == nil && len(es) == 0
	})
	eventually(n.t, "shims end", func() bool {
		dirs, _ := filepath.Glob("/proc/[0-9]*/cmdline")
		for _, d := range dirs {
			b, _ := os.ReadFile(d)
			s := string(b)
			if strings.HasPrefix(s, filepath.Join(base, "bin")) && strings.Contains(s, "shim") && strings.Contains(s, run) {
				return false
			}
		}
		return true
	})
}
