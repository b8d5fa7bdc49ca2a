package bundle

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/fstest"
)

// packed makes a small runtime and its packed form.
func packed(t *testing.T) (blob string, content map[string][]byte) {
	t.Helper()
	from, own, to := t.TempDir(), t.TempDir(), t.TempDir()
	content = map[string][]byte{}
	for _, name := range names {
		dir := from
		if name == Front || name == Logger || name == Fence || name == Edge {
			dir = own
		}
		content[name] = bytes.Repeat([]byte("binary of "+name+"\n"), 4096)
		if err := os.WriteFile(filepath.Join(dir, name), content[name], 0o755); err != nil {
			t.Fatal(err)
		}
	}
	v := Versions{Containerd: "v1", Runc: "v2"}
	if changed, err := Pack([]string{from, own}, to, v); err != nil || !changed {
		t.Fatalf("Pack = %v, %v; want true", changed, err)
	}
	if changed, err := Pack([]string{from, own}, to, v); err != nil || changed {
		t.Fatalf("second Pack = %v, %v; want false", changed, err)
	}
	return to, content
}

func check(t *testing.T, p Paths, content map[string][]byte) {
	t.Helper()
	for name, path := range map[string]string{Containerd: p.Containerd, Shim: p.Shim, Runc: p.Runc, Front: p.Front, Logger: p.Logger, Fence: p.Fence, Edge: p.Edge} {
		if filepath.Base(path) != name || !filepath.IsAbs(path) {
			t.Errorf("path of %s = %q", name, path)
		}
		got, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, content[name]) {
			t.Errorf("%s: content differs (%d bytes, want %d)", path, len(got), len(content[name]))
		}
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode().Perm() != 0o755 {
			t.Errorf("%s: mode %v, want 0755", path, info.Mode())
		}
	}
	if want := "containerd v1, runc v2"; p.Version != want {
		t.Errorf("version = %q, want %q", p.Version, want)
	}
}

func TestUnpack(t *testing.T) {
	blob, content := packed(t)
	dir := filepath.Join(t.TempDir(), "made", "on", "demand")
	first, err := unpack(os.DirFS(blob), dir)
	if err != nil {
		t.Fatal(err)
	}
	check(t, first, content)
	before, err := os.Stat(first.Containerd)
	if err != nil {
		t.Fatal(err)
	}
	second, err := unpack(os.DirFS(blob), dir)
	if err != nil {
		t.Fatal(err)
	}
	if second != first {
		t.Errorf("second Unpack = %+v, want %+v", second, first)
	}
	after, err := os.Stat(first.Containerd)
	if err != nil {
		t.Fatal(err)
	}
	if !os.SameFile(before, after) {
		t.Error("an intact binary was written anew")
	}
}

func TestUnpackRepairs(t *testing.T) {
	blob, content := packed(t)
	cases := map[string]func(t *testing.T, path string) error{
		"missing":        func(_ *testing.T, path string) error { return os.Remove(path) },
		"truncated":      func(_ *testing.T, path string) error { return os.Truncate(path, 10) },
		"empty":          func(_ *testing.T, path string) error { return os.Truncate(path, 0) },
		"not executable": func(_ *testing.T, path string) error { return os.Chmod(path, 0o644) },
		"one byte flipped": func(t *testing.T, path string) error {
			data := bytes.Clone(content[Shim])
			data[len(data)/2] ^= 1
			return os.WriteFile(path, data, 0o755)
		},
		"a directory": func(_ *testing.T, path string) error {
			return errors.Join(os.Remove(path), os.MkdirAll(filepath.Join(path, "x"), 0o755))
		},
		"a symbolic link": func(_ *testing.T, path string) error {
			return errors.Join(os.Remove(path), os.Symlink("/bin/true", path))
		},
	}
	for name, damage := range cases {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			p, err := unpack(os.DirFS(blob), dir)
			if err != nil {
				t.Fatal(err)
			}
			if err := damage(t, p.Shim); err != nil {
				t.Fatal(err)
			}
			p, err = unpack(os.DirFS(blob), dir)
			if err != nil {
				t.Fatal(err)
			}
			check(t, p, content)
		})
	}
}

func TestUnpackLeavesOthersAlone(t *testing.T) {
	blob, content := packed(t)
	dir := t.TempDir()
	old := filepath.Join(dir, "0123456789abcdef", Shim)
	if err := os.MkdirAll(filepath.Dir(old), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(old, []byte("in use"), 0o755); err != nil {
		t.Fatal(err)
	}
	p, err := unpack(os.DirFS(blob), dir)
	if err != nil {
		t.Fatal(err)
	}
	left := filepath.Join(filepath.Dir(p.Shim), ".tmp-killed")
	if err := os.WriteFile(left, []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	if p, err = unpack(os.DirFS(blob), dir); err != nil {
		t.Fatal(err)
	}
	check(t, p, content)
	if _, err := os.Stat(left); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("left-over of a killed unpack: %v, want it gone", err)
	}
	if got, err := os.ReadFile(old); err != nil || string(got) != "in use" {
		t.Errorf("runtime of another version = %q, %v; want it untouched", got, err)
	}
}

func TestUnpackConcurrently(t *testing.T) {
	blob, content := packed(t)
	dir := t.TempDir()
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if _, err := unpack(os.DirFS(blob), dir); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	p, err := unpack(os.DirFS(blob), dir)
	if err != nil {
		t.Fatal(err)
	}
	check(t, p, content)
}

func TestUnpackRefuses(t *testing.T) {
	blob, _ := packed(t)
	whole, err := os.ReadFile(filepath.Join(blob, manifestName))
	if err != nil {
		t.Fatal(err)
	}
	stream := func(name string) []byte {
		data, err := os.ReadFile(filepath.Join(blob, name+suffix))
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	swapped := fstest.MapFS{manifestName: {Data: whole}}
	for _, name := range names {
		swapped[name+suffix] = &fstest.MapFile{Data: stream(Runc)}
	}
	short := fstest.MapFS{manifestName: {Data: whole}, Containerd + suffix: {Data: stream(Containerd)[:20]}}
	cases := []struct {
		name string
		src  fstest.MapFS
		want string
	}{
		{"nothing packed", fstest.MapFS{"README.md": {Data: []byte("x")}}, "make build"},
		{"manifest not JSON", fstest.MapFS{manifestName: {Data: []byte("{")}}, "manifest"},
		{"manifest without a binary", fstest.MapFS{manifestName: {Data: []byte("{}")}}, "has no containerd"},
		{"stream missing", fstest.MapFS{manifestName: {Data: whole}}, "unpack containerd"},
		{"stream truncated", short, "unpack containerd"},
		{"another binary's stream", swapped, "damaged"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			_, err := unpack(c.src, dir)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("error = %v, want one with %q", err, c.want)
			}
			left, err := filepath.Glob(filepath.Join(dir, "*", "*"))
			if err != nil || len(left) != 0 {
				t.Errorf("left behind: %v, %v", left, err)
			}
		})
	}
}

// The embedded runtime is either absent, with an error that says what to do, or
// usable as a whole.
func TestEmbedded(t *testing.T) {
	p, err := Unpack(t.TempDir())
	if errors.Is(err, ErrEmpty) {
		t.Skip("nothing is embedded in this checkout: make bundle")
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{p.Containerd, p.Shim, p.Runc, p.Front, p.Logger, p.Fence} {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if info.Size() < 1<<20 {
			t.Errorf("%s has only %d bytes", path, info.Size())
		}
	}
}
