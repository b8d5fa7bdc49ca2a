package runtime

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"baton/internal/model/cluster"
)

// Logs of forgotten tasks go, but neither what a kept task wrote, however long ago, nor what was written lately.
func TestSweepLogs(t *testing.T) {
	l := OpenLogs(t.TempDir())
	if err := l.Sweep(nil); err != nil {
		t.Fatalf("without any log: %v", err)
	}
	ids := map[string]cluster.ID{"kept": cluster.NewID(nil), "young": cluster.NewID(nil), "forgotten": cluster.NewID(nil)}
	for name, id := range ids {
		dir := filepath.Join(l.dir, id.String())
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		at := time.Now().Add(-sweptAge - time.Minute)
		for _, f := range []string{"log.1", "log"} {
			if err := os.WriteFile(filepath.Join(dir, f), []byte(name), 0o600); err != nil {
				t.Fatal(err)
			}
			if name == "young" && f == "log" {
				continue
			}
			if err := os.Chtimes(filepath.Join(dir, f), at, at); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.Chtimes(dir, at, at); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Sweep([]cluster.ID{ids["kept"]}); err != nil {
		t.Fatal(err)
	}
	left, err := l.List()
	if err != nil || len(left) != 2 || !slices.Contains(left, ids["kept"]) || !slices.Contains(left, ids["young"]) {
		t.Errorf("left %v, %v; want the kept and the young one of %v", left, err, ids)
	}
}
