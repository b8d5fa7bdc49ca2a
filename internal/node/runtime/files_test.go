package runtime_test

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"baton/internal/wire/agentapi"
)

// put writes one entry into a task.
func put(t *testing.T, n *node, id taskID, o agentapi.FilesOptions, h tar.Header, body string) error {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	h.Size = int64(len(body))
	if err := errors.Join(w.WriteHeader(&h), func() error { _, err := io.WriteString(w, body); return err }(), w.Close()); err != nil {
		t.Fatal(err)
	}
	o.Write = true
	c, err := n.Files(t.Context(), id, o)
	if err != nil {
		return err
	}
	defer c.Close()
	_, _ = c.Write(b.Bytes()) // Read tells why not
	_ = c.CloseWrite()
	_, err = io.ReadAll(c)
	return err
}

// get reads the entries of a path in a task.
func get(t *testing.T, n *node, id taskID, o agentapi.FilesOptions) (map[string]tar.Header, map[string]string, error) {
	t.Helper()
	c, err := n.Files(t.Context(), id, o)
	if err != nil {
		return nil, nil, err
	}
	defer c.Close()
	heads, bodies := make(map[string]tar.Header), make(map[string]string)
	for r := tar.NewReader(c); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return heads, bodies, nil
		}
		if err != nil {
			return nil, nil, err
		}
		b, err := io.ReadAll(r)
		if err != nil {
			return nil, nil, err
		}
		heads[h.Name], bodies[h.Name] = *h, string(b)
	}
}

// Files are copied both ways without anything in the container that helps, and no link leads out of it.
func TestFiles(t *testing.T) {
	n := start(t)
	id := n.mustStart(container("sleep"))
	n.waitOutput(id, "ready")
	heads, bodies, err := get(t, n, id, agentapi.FilesOptions{Path: "/data"})
	if err != nil || bodies["data/seed"] != "seeded" || bodies["data/sub/deep"] != "deep" || heads["data/link"].Linkname != "seed" {
		t.Fatalf("tree: %v, %v, %v", heads, bodies, err)
	}
	if h := heads["data/sub/deep"]; h.Uid != 71 || h.Mode != 0o600 {
		t.Errorf("deep: uid %d, mode %o", h.Uid, h.Mode)
	}
	if _, bodies, err := get(t, n, id, agentapi.FilesOptions{Path: "/data/link", Follow: true}); err != nil || bodies["link"] != "seeded" {
		t.Errorf("followed link: %v, %v", bodies, err)
	}
	if err := put(t, n, id, agentapi.FilesOptions{Path: "/tmp/new", Owners: true}, tar.Header{Name: "x", Typeflag: tar.TypeReg, Mode: 0o640, Uid: 70, Gid: 71}, "hello"); err != nil {
		t.Fatal(err)
	}
	heads, bodies, err = get(t, n, id, agentapi.FilesOptions{Path: "/tmp/new"})
	if h := heads["new"]; err != nil || bodies["new"] != "hello" || h.Uid != 70 || h.Gid != 71 || h.Mode != 0o640 {
		t.Errorf("new: %+v, %v, %v", h, bodies, err)
	}
	if _, _, err := get(t, n, id, agentapi.FilesOptions{Path: "/none"}); err == nil || !strings.Contains(err.Error(), "no such file") {
		t.Errorf("a missing file: %v", err)
	}

	outside := filepath.Join(t.TempDir(), "outside")
	if err := os.WriteFile(outside, []byte("host"), 0o644); err != nil {
		t.Fatal(err)
	}
	for link, to := range map[string]string{"absolute": outside, "relative": "../../../../../../../.." + outside, "dir": filepath.Dir(outside)} {
		if err := put(t, n, id, agentapi.FilesOptions{Path: "/tmp"}, tar.Header{Name: link, Typeflag: tar.TypeSymlink, Linkname: to}, ""); err != nil {
			t.Fatal(err)
		}
	}
	for _, p := range []string{"/tmp/absolute", "/tmp/relative", "/tmp/dir/outside", "/../../.." + outside, "/proc/1/root" + outside, "/proc/1/cwd/../.." + outside} {
		if _, bodies, err := get(t, n, id, agentapi.FilesOptions{Path: p, Follow: true}); err == nil {
			t.Errorf("%s was read from the host: %v", p, bodies)
		}
	}
	for _, p := range []string{"/tmp/dir/outside", "/tmp/dir/", "/tmp/absolute"} {
		_ = put(t, n, id, agentapi.FilesOptions{Path: p}, tar.Header{Name: "outside", Typeflag: tar.TypeReg, Mode: 0o644}, "evil") // where it goes is what counts
	}
	if b, err := os.ReadFile(outside); string(b) != "host" || err != nil {
		t.Errorf("the host's file is %q, %v", b, err)
	}

	ro := container("sleep")
	ro.Spec.Container.ReadOnly = true
	id = n.mustStart(ro)
	n.waitOutput(id, "ready")
	if err := put(t, n, id, agentapi.FilesOptions{Path: "/data"}, tar.Header{Name: "x", Typeflag: tar.TypeReg}, ""); err == nil || !strings.Contains(err.Error(), "read-only") {
		t.Errorf("read-only: %v", err)
	}
}
