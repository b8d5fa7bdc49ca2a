package archive

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func open(t *testing.T, name string) *os.File {
	t.Helper()
	fd, err := unix.Open(name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), name)
	t.Cleanup(func() { _ = f.Close() })
	return f
}

func root(t *testing.T) (*os.Root, string) {
	t.Helper()
	dir := t.TempDir()
	r, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() })
	return r, dir
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestTreeArrivesWhole(t *testing.T) {
	src := filepath.Join(t.TempDir(), "tree")
	must(t, os.MkdirAll(filepath.Join(src, "ro"), 0o755))
	must(t, os.WriteFile(filepath.Join(src, "ro", "run"), []byte("#!"), 0o600))
	must(t, os.Chmod(filepath.Join(src, "ro", "run"), 0o755|fs.ModeSetuid))
	must(t, os.Symlink("/etc/shadow", filepath.Join(src, "link")))
	must(t, unix.Mkfifo(filepath.Join(src, "pipe"), 0o600))
	must(t, os.Chmod(filepath.Join(src, "ro"), 0o555))
	var b bytes.Buffer
	must(t, Pack(t.Context(), &b, open(t, src), "tree"))
	r, dir := root(t)
	must(t, Unpack(t.Context(), r, &b, Options{Rename: "copy", Owners: os.Geteuid() == 0}))
	if info, err := os.Stat(filepath.Join(dir, "copy/ro/run")); err != nil || info.Mode() != 0o755|fs.ModeSetuid {
		t.Errorf("run: %v, %v", info, err)
	}
	if info, err := os.Stat(filepath.Join(dir, "copy/ro")); err != nil || info.Mode().Perm() != 0o555 {
		t.Errorf("ro: %v, %v", info, err)
	}
	if l, err := os.Readlink(filepath.Join(dir, "copy/link")); err != nil || l != "/etc/shadow" {
		t.Errorf("link: %q, %v", l, err)
	}
	if _, err := os.Lstat(filepath.Join(dir, "copy/pipe")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("pipe: %v", err)
	}
}

// Names and links that lead out of the root write nothing there.
func TestUnpackStaysInside(t *testing.T) {
	for name, entries := range map[string][]tar.Header{
		"parent":           {{Name: "../evil", Typeflag: tar.TypeReg}},
		"absolute":         {{Name: "/evil", Typeflag: tar.TypeReg}},
		"through a link":   {{Name: "out", Typeflag: tar.TypeSymlink, Linkname: ".."}, {Name: "out/evil", Typeflag: tar.TypeReg}},
		"through absolute": {{Name: "out", Typeflag: tar.TypeSymlink, Linkname: "/tmp"}, {Name: "out/evil", Typeflag: tar.TypeReg}},
		"directory":        {{Name: "out", Typeflag: tar.TypeSymlink, Linkname: ".."}, {Name: "out/evil", Typeflag: tar.TypeDir}},
		"device":           {{Name: "evil", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3}},
		"hard link":        {{Name: "evil", Typeflag: tar.TypeLink, Linkname: "/etc/passwd"}},
		"hard link up":     {{Name: "evil", Typeflag: tar.TypeLink, Linkname: "../kept"}},
		"hard link around": {{Name: "out", Typeflag: tar.TypeSymlink, Linkname: ".."}, {Name: "evil", Typeflag: tar.TypeLink, Linkname: "out/kept"}},
	} {
		t.Run(name, func(t *testing.T) {
			var b bytes.Buffer
			w := tar.NewWriter(&b)
			for _, h := range entries {
				h.Mode = 0o755
				must(t, w.WriteHeader(&h))
			}
			must(t, w.Close())
			dir := t.TempDir()
			must(t, os.Mkdir(filepath.Join(dir, "root"), 0o755))
			must(t, os.WriteFile(filepath.Join(dir, "kept"), nil, 0o600))
			r, err := os.OpenRoot(filepath.Join(dir, "root"))
			must(t, err)
			defer r.Close()
			if err := Unpack(t.Context(), r, &b, Options{}); err == nil {
				t.Error("no error")
			}
			for _, p := range []string{filepath.Join(dir, "evil"), filepath.Join(dir, "root", "evil"), "/evil", "/tmp/evil"} {
				if _, err := os.Lstat(p); err == nil {
					t.Errorf("it made %s", p)
				}
			}
		})
	}
}

// A stream that breaks leaves the old file as it was, and nothing beside it.
func TestBrokenStreamLeavesNothing(t *testing.T) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	must(t, w.WriteHeader(&tar.Header{Name: "f", Typeflag: tar.TypeReg, Mode: 0o644, Size: 100000}))
	_, err := io.WriteString(w, strings.Repeat("x", 50000))
	must(t, err)
	r, dir := root(t)
	must(t, os.WriteFile(filepath.Join(dir, "f"), []byte("old"), 0o600))
	if err := Unpack(t.Context(), r, &b, Options{}); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("error %v, want an unexpected end", err)
	}
	got, err := os.ReadFile(filepath.Join(dir, "f"))
	list, _ := os.ReadDir(dir)
	if string(got) != "old" || err != nil || len(list) != 1 {
		t.Errorf("%q, %v, %v", got, err, list)
	}
}

// A program that lends its owner's rights must not lend those of whoever copies it.
func TestRightsAreNotLentWithoutTheOwner(t *testing.T) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	must(t, w.WriteHeader(&tar.Header{Name: "d/", Typeflag: tar.TypeDir, Mode: 0o7777}))
	must(t, w.WriteHeader(&tar.Header{Name: "d/run", Typeflag: tar.TypeReg, Mode: 0o6755}))
	must(t, w.Close())
	r, dir := root(t)
	must(t, Unpack(t.Context(), r, &b, Options{}))
	for name, want := range map[string]fs.FileMode{"d": fs.ModeDir | fs.ModeSticky | 0o777, "d/run": 0o755} {
		if info, err := os.Stat(filepath.Join(dir, name)); err != nil || info.Mode() != want {
			t.Errorf("%s: %v, %v, want %v", name, info.Mode(), err, want)
		}
	}
}

// A copy of something that cannot be copied must not look like one of nothing.
func TestPipeAloneIsRefused(t *testing.T) {
	p := filepath.Join(t.TempDir(), "pipe")
	must(t, unix.Mkfifo(p, 0o600))
	if err := Pack(t.Context(), io.Discard, open(t, p), "pipe"); err == nil || !strings.Contains(err.Error(), "only files, directories") {
		t.Errorf("got %v", err)
	}
}

// What tar writes of a file with two names is unpacked as one, also when it is renamed and when it is there already.
func TestHardLinks(t *testing.T) {
	for _, rename := range []string{"", "other"} {
		r, dir := root(t)
		for range 2 {
			var b bytes.Buffer
			w := tar.NewWriter(&b)
			must(t, w.WriteHeader(&tar.Header{Name: "./d/", Typeflag: tar.TypeDir, Mode: 0o755}))
			must(t, w.WriteHeader(&tar.Header{Name: "./d/a", Typeflag: tar.TypeReg, Mode: 0o644, Size: 4}))
			_, err := io.WriteString(w, "text")
			must(t, err)
			must(t, w.WriteHeader(&tar.Header{Name: "./d/b", Typeflag: tar.TypeLink, Linkname: "./d/a"}))
			must(t, w.Close())
			must(t, Unpack(t.Context(), r, &b, Options{Rename: rename}))
		}
		top := "d"
		if rename != "" {
			top = rename
		}
		if b, err := os.ReadFile(filepath.Join(dir, top, "b")); err != nil || string(b) != "text" {
			t.Errorf("rename %q: %q, %v", rename, b, err)
		}
	}
}

// A file that is larger than any memory goes through in pieces.
func TestMemoryIsBounded(t *testing.T) {
	const large = 100 << 20
	src := filepath.Join(t.TempDir(), "large")
	must(t, os.WriteFile(src, nil, 0o600))
	must(t, os.Truncate(src, large))
	r, dir := root(t)
	f := open(t, src)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	in, out := io.Pipe()
	packed := make(chan error, 1)
	go func() {
		err := Pack(t.Context(), out, f, "large")
		_ = out.CloseWithError(err)
		packed <- err
	}()
	must(t, Unpack(t.Context(), r, in, Options{}))
	_, err := io.Copy(io.Discard, in)
	must(t, err)
	must(t, <-packed)
	runtime.ReadMemStats(&after)
	if info, err := os.Stat(filepath.Join(dir, "large")); err != nil || info.Size() != large {
		t.Errorf("%v, %v", info, err)
	}
	if n := after.TotalAlloc - before.TotalAlloc; n > 4<<20 {
		t.Errorf("%d bytes were allocated for a file of %d", n, large)
	}
}
