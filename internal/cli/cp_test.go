package cli

import (
	"archive/tar"
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"baton/client/api"
)

// copying is a cluster with a task whose files are in the returned directory, in which etc/conf and tree/sub/f are.
func copying(t *testing.T) (*testCluster, string) {
	t.Helper()
	c := newCluster(t, true)
	c.files = t.TempDir()
	write(t, "compose.yaml", webFile)
	c.want(0, "up", "-y")
	for _, d := range []string{"etc", "tree/sub"} {
		if err := os.MkdirAll(filepath.Join(c.files, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	write(t, filepath.Join(c.files, "etc/conf"), "of the task")
	write(t, filepath.Join(c.files, "tree/sub/f"), "deep")
	return c, c.files
}

func holds(t *testing.T, name, want string) {
	t.Helper()
	if b, err := os.ReadFile(name); err != nil || string(b) != want {
		t.Errorf("%s: %q, %v, want %q", name, b, err, want)
	}
}

// Where a copy goes, both ways, as with cp.
func TestCp(t *testing.T) {
	c, there := copying(t)
	for _, d := range []string{"dir", "site/css"} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	write(t, "old", "before")
	write(t, "site/css/main", "body{}")
	for _, args := range [][]string{
		{"web:/etc/conf", "new"}, {"web/1:etc/conf", "dir"}, {"web:/etc/conf", "old"}, {"web:/tree", "copy"}, {"web:/tree", "dir"},
		{"./old", "web:/etc/renamed"}, {"old", "web:/etc"}, {"site", "web:/srv"}, {"site", "web:/etc"}, {"site/.", "web:/tree"},
	} {
		c.want(0, append([]string{"cp"}, args...)...)
	}
	holds(t, "new", "of the task")
	holds(t, "dir/conf", "of the task")
	holds(t, "old", "of the task")
	holds(t, "copy/sub/f", "deep")
	holds(t, "dir/tree/sub/f", "deep")
	for _, name := range []string{"etc/renamed", "etc/old"} {
		holds(t, filepath.Join(there, name), "of the task")
	}
	for _, name := range []string{"srv/css/main", "etc/site/css/main", "tree/css/main"} {
		holds(t, filepath.Join(there, name), "body{}")
	}
}

func TestCpStream(t *testing.T) {
	c, there := copying(t)
	out, errOut, code := c.run("", "cp", "web:/tree", "-")
	var names []string
	r := tar.NewReader(strings.NewReader(out))
	for h, err := r.Next(); err == nil; h, err = r.Next() {
		names = append(names, h.Name)
	}
	if got := strings.Join(names, " "); code != 0 || errOut != "" || got != "tree/ tree/sub/ tree/sub/f" {
		t.Errorf("code %d, %s, names %q", code, errOut, got)
	}
	if _, errOut, code := c.run(out, "cp", "-", "web:/etc"); code != 0 {
		t.Errorf("code %d: %s", code, errOut)
	}
	holds(t, filepath.Join(there, "etc/tree/sub/f"), "deep")
	if _, errOut, code := c.run(out[:1100], "cp", "-", "web:/etc"); code == 0 {
		t.Errorf("half a stream passes: %s", errOut)
	}
}

func TestCpRefuses(t *testing.T) {
	c, _ := copying(t)
	contains(t, c.want(api.ExitError, "cp", "here", "there"), "must be in a task", "TARGET:PATH")
	contains(t, c.want(api.ExitError, "cp", "web:/etc/conf", "web:/etc/x"), "must be in a task")
	contains(t, c.want(api.ExitError, "cp", "none", "web:/etc"), "none", "give a file or directory")
	contains(t, c.want(api.ExitError, "cp", "web:/etc/conf", "no/such/dir"), "make the directory first")
	contains(t, c.want(api.ExitError, "cp", "web:/none", "x"), "there is no such file", "check the path")
	contains(t, c.want(api.ExitError, "cp", "wbe:/etc", "x"), "web")
	if _, err := os.Lstat("x"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a copy that failed left %v", err)
	}
}

func TestShowCopied(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b bytes.Buffer
		var n atomic.Int64
		end := showCopied(&b, &n)
		n.Store(3 << 20)
		time.Sleep(copiedPause + time.Millisecond)
		end()
		if got := b.String(); got != "\r\x1b[Kcopied 3.0 MiB\r\x1b[K" {
			t.Errorf("shown: %q", got)
		}
	})
}
