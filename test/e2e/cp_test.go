package e2e

import (
	"bytes"
	"crypto/rand"
	"os"
	"path/filepath"
	"testing"
)

// Given to a manager that does not lead; the task is on a worker, and its image has no tar.
func TestCopyThroughAnyManager(t *testing.T) {
	c := newCluster(t, 3, 1)
	m := c.list[0]
	if m == c.leader(m) {
		m = c.list[1]
	}
	m.load("web-v1")
	m.baton("up", "-y", "-f", m.write("compose.yaml", `
name: far
services:
  web:
    image: baton.test/web:v1
    tmpfs: [/scratch]
    deploy: {placement: {constraints: [node.role == worker]}}
`))
	big := make([]byte, 100<<20)
	_, _ = rand.Read(big) // it never fails
	src := filepath.Join(m.dir, "tree")
	if err := os.MkdirAll(filepath.Join(src, "sub"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(src, "sub", "big"), big, 0o640); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("sub/big", filepath.Join(src, "link")); err != nil {
		t.Fatal(err)
	}
	m.baton("cp", src, "web:/scratch")
	back := filepath.Join(m.dir, "back")
	m.baton("cp", "web/1:/scratch/tree", back)
	got, err := os.ReadFile(filepath.Join(back, "link"))
	if err != nil || !bytes.Equal(got, big) {
		t.Errorf("%d bytes came back, want the %d that were sent: %v", len(got), len(big), err)
	}
	if info, err := os.Stat(filepath.Join(back, "sub", "big")); err != nil || info.Mode() != 0o640 {
		t.Errorf("mode: %v, %v", info, err)
	}
	if r := m.try("cp", "web:/none", back); r.code == 0 {
		t.Error("a file that is not there was copied")
	}
}
