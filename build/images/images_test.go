package images

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/validate"
)

func TestRecipesAreValid(t *testing.T) {
	names, tags := map[string]bool{}, map[string]bool{}
	for _, r := range Recipes() {
		if err := r.Validate(); err != nil {
			t.Error(err)
		}
		if names[r.Name] {
			t.Errorf("two recipes are called %s", r.Name)
		}
		names[r.Name] = true
		for _, tag := range r.Tags {
			if tags[tag] {
				t.Errorf("two recipes have the tag %s", tag)
			}
			tags[tag] = true
		}
	}
}

func TestValidateRefuses(t *testing.T) {
	good := Recipe{Name: "x", Tags: []string{"docker.io/library/x:1"}, Cmd: []string{"x"}}
	if err := good.Validate(); err != nil {
		t.Fatal(err)
	}
	cases := map[string]func(r *Recipe){
		"no name":             func(r *Recipe) { r.Name = "" },
		"no tag":              func(r *Recipe) { r.Tags = nil },
		"short tag":           func(r *Recipe) { r.Tags = []string{"redis:7"} },
		"no library":          func(r *Recipe) { r.Tags = []string{"docker.io/redis:7"} },
		"no version":          func(r *Recipe) { r.Tags = []string{"docker.io/library/redis"} },
		"nothing to run":      func(r *Recipe) { r.Cmd = nil },
		"relative file":       func(r *Recipe) { r.Files = []File{{Path: "etc/x"}} },
		"file outside":        func(r *Recipe) { r.Files = []File{{Path: "/../x"}} },
		"file twice":          func(r *Recipe) { r.Files = []File{{Path: "/x"}, {Path: "/x"}} },
		"program over a file": func(r *Recipe) { r.Files = []File{{Path: "/x"}}; r.Programs = []Program{{Path: "/x"}} },
		"port without proto":  func(r *Recipe) { r.Ports = []string{"80"} },
		"port out of range":   func(r *Recipe) { r.Ports = []string{"70000/tcp"} },
	}
	for name, spoil := range cases {
		t.Run(name, func(t *testing.T) {
			r := good
			spoil(&r)
			if err := r.Validate(); err == nil {
				t.Errorf("accepted: %+v", r)
			}
		})
	}
}

// fakeDebian gives a small root file system as mmdebstrap would; calls counts
// how often it was asked.
func fakeDebian(calls *int) Bootstrap {
	return func(_ context.Context, packages []string, w io.Writer) error {
		*calls++
		tw := tar.NewWriter(w)
		for _, h := range []*tar.Header{
			{Name: "./dev/null", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3},
			{Name: "./", Typeflag: tar.TypeDir, Mode: 0o755},
			{Name: "./etc/", Typeflag: tar.TypeDir, Mode: 0o755},
			{Name: "./etc/passwd", Typeflag: tar.TypeReg, Mode: 0o644, Size: 7},
			{Name: "./usr/share/doc/p/copyright", Typeflag: tar.TypeReg, Mode: 0o644, Size: 7},
			{Name: "./usr/bin/p", Typeflag: tar.TypeReg, Mode: 0o755, Size: 7, Uname: "builder"},
			{Name: "./usr/bin/q", Typeflag: tar.TypeLink, Linkname: "./usr/bin/p"},
		} {
			if err := tw.WriteHeader(h); err != nil {
				return err
			}
			if h.Size > 0 {
				if _, err := io.WriteString(tw, "debian\n"); err != nil {
					return err
				}
			}
		}
		return tw.Close()
	}
}

func testRecipe() Recipe {
	return Recipe{
		Name:     "sample",
		Tags:     []string{"docker.io/library/sample:1", "baton.test/sample:one"},
		Packages: []string{"p"},
		Drop:     []string{"usr/share/doc"},
		Programs: []Program{{Package: ".", Path: "/app/hello"}},
		Files: []File{
			{Path: "/etc/passwd", Content: "ours"},
			{Path: "/data", Mode: fs.ModeDir | 0o700, UID: 5, GID: 6},
			{Path: "/tmp", Mode: fs.ModeDir | fs.ModeSticky | 0o777},
			{Path: "/bin/sh", Link: "/usr/bin/p"},
			{Path: "/entry", Content: "#!", Mode: 0o755},
		},
		Entrypoint: []string{"/entry"},
		Cmd:        []string{"run"},
		Env:        []string{"A=b"},
		User:       "5:6",
		WorkingDir: "/data",
		Ports:      []string{"80/tcp"},
		Volumes:    []string{"/data"},
		StopSignal: "SIGINT",
		Labels:     map[string]string{"k": "v"},
		Health:     &v1.HealthConfig{Test: []string{"CMD", "/app/hello"}, Retries: 2},
	}
}

// module makes a Go module with one program.
func module(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{
		"go.mod":  "module hello\n\ngo 1.24\n",
		"main.go": "package main\n\nfunc main() { println(\"hello\") }\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// open unpacks an archive and returns its index and first image.
func open(t *testing.T, archive string) (*v1.IndexManifest, v1.Image) {
	t.Helper()
	dir := t.TempDir()
	f, err := os.Open(archive)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for tr := tar.NewReader(f); ; {
		h, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, h.Name)
		if h.Typeflag == tar.TypeDir {
			err = os.MkdirAll(path, 0o755)
		} else {
			var data []byte
			if data, err = io.ReadAll(tr); err == nil {
				err = os.WriteFile(path, data, 0o644)
			}
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	index, err := layout.ImageIndexFromPath(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Index(index); err != nil {
		t.Error(err)
	}
	m, err := index.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	img, err := index.Image(m.Manifests[0].Digest)
	if err != nil {
		t.Fatal(err)
	}
	return m, img
}

func TestBuild(t *testing.T) {
	calls := 0
	b := &Builder{Source: module(t), Cache: t.TempDir(), Bootstrap: fakeDebian(&calls)}
	r := testRecipe()
	path, err := b.Build(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	index, img := open(t, path)
	var names []string
	for _, d := range index.Manifests {
		names = append(names, d.Annotations[imageNameAnnotation])
		if d.Platform == nil || d.Platform.OS != "linux" || d.Platform.Architecture != runtime.GOARCH {
			t.Errorf("platform = %v", d.Platform)
		}
	}
	if got, want := strings.Join(names, " "), strings.Join(r.Tags, " "); got != want {
		t.Errorf("names = %q, want %q", got, want)
	}
	cfg, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	got, _ := json.Marshal(cfg.Config)
	want := `{"Cmd":["run"],"Healthcheck":{"Test":["CMD","/app/hello"],"Retries":2},"Entrypoint":["/entry"],"Env":["A=b"],` +
		`"Labels":{"k":"v"},"User":"5:6","Volumes":{"/data":{}},"WorkingDir":"/data","ExposedPorts":{"80/tcp":{}},"StopSignal":"SIGINT"}`
	if string(got) != want {
		t.Errorf("config = %s\nwant %s", got, want)
	}
	checkFiles(t, img)
}

func checkFiles(t *testing.T, img v1.Image) {
	t.Helper()
	rc := mutate.Extract(img)
	defer rc.Close()
	got := map[string]string{}
	for tr := tar.NewReader(rc); ; {
		h, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(tr)
		if err != nil {
			t.Fatal(err)
		}
		if !h.ModTime.Equal(epoch) || h.Uname != "" {
			t.Errorf("%s: time %v, user %q; want %v and none", h.Name, h.ModTime, h.Uname, epoch)
		}
		if len(data) > 20 {
			data = []byte("…")
		}
		got[strings.TrimSuffix(h.Name, "/")] = fmt.Sprintf("%c %o %d:%d %s%s", h.Typeflag, h.Mode, h.Uid, h.Gid, h.Linkname, data)
	}
	want := map[string]string{
		"etc":        "5 755 0:0 ",
		"etc/passwd": "0 644 0:0 ours",
		"usr":        "5 755 0:0 ",
		"usr/bin":    "5 755 0:0 ",
		"usr/bin/p":  "0 755 0:0 debian\n",
		"usr/bin/q":  "1 0 0:0 usr/bin/p",
		"data":       "5 700 5:6 ",
		"tmp":        "5 1777 0:0 ",
		"bin":        "5 755 0:0 ",
		"bin/sh":     "2 777 0:0 /usr/bin/p",
		"entry":      "0 755 0:0 #!",
		"app":        "5 755 0:0 ",
		"app/hello":  "0 755 0:0 …",
	}
	for path, w := range want {
		if got[path] != w {
			t.Errorf("%s = %q, want %q", path, got[path], w)
		}
	}
	for path := range got {
		if _, ok := want[path]; !ok {
			t.Errorf("%s is there, and should not be", path)
		}
	}
}

// Two caches, one source at different paths: the same bytes.
func TestBuildIsDeterministic(t *testing.T) {
	var sums []string
	for range 2 {
		calls := 0
		b := &Builder{Source: module(t), Cache: t.TempDir(), Bootstrap: fakeDebian(&calls)}
		path, err := b.Build(t.Context(), testRecipe())
		if err != nil {
			t.Fatal(err)
		}
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		sums = append(sums, fmt.Sprintf("%s %x", filepath.Base(path), sha256.Sum256(data)))
	}
	if sums[0] != sums[1] {
		t.Errorf("archives differ: %v", sums)
	}
}

func TestBuildUsesTheCache(t *testing.T) {
	calls := 0
	source := module(t)
	b := &Builder{Source: source, Cache: t.TempDir(), Bootstrap: fakeDebian(&calls)}
	build := func(r Recipe) string {
		t.Helper()
		path, err := b.Build(t.Context(), r)
		if err != nil {
			t.Fatal(err)
		}
		return path
	}
	r := testRecipe()
	first := build(r)
	if again := build(r); again != first || calls != 1 {
		t.Errorf("same recipe: %s after %s, %d downloads; want the same and 1", again, first, calls)
	}
	changed := testRecipe()
	changed.Env = []string{"A=c"}
	if build(changed) == first || calls != 1 {
		t.Errorf("changed variable: the same archive, or %d downloads; want another and 1", calls)
	}
	if err := os.WriteFile(filepath.Join(source, "main.go"), []byte("package main\n\nfunc main() { println(\"bye\") }\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if build(r) == first {
		t.Error("changed program: the same archive")
	}
	changed.Packages = []string{"p", "q"}
	if build(changed); calls != 2 {
		t.Errorf("changed packages: %d downloads, want 2", calls)
	}
}

func TestBuildErrors(t *testing.T) {
	broken := errors.New("mirror is down")
	cases := []struct {
		name      string
		spoil     func(r *Recipe)
		bootstrap Bootstrap
		want      string
	}{
		{"invalid recipe", func(r *Recipe) { r.Tags = nil }, nil, "no tag"},
		{"program does not exist", func(r *Recipe) { r.Programs[0].Package = "./nothing" }, nil, "build ./nothing"},
		{"download breaks", func(*Recipe) {}, func(_ context.Context, _ []string, w io.Writer) error {
			io.WriteString(w, "half a tar")
			return broken
		}, "mirror is down"},
		{"download is no tar", func(*Recipe) {}, func(_ context.Context, _ []string, w io.Writer) error {
			_, err := w.Write(bytes.Repeat([]byte("x"), 4096))
			return err
		}, "image sample"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			cache := t.TempDir()
			b := &Builder{Source: module(t), Cache: cache, Bootstrap: c.bootstrap}
			r := testRecipe()
			c.spoil(&r)
			_, err := b.Build(t.Context(), r)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("error = %v, want one with %q", err, c.want)
			}
			left, err := filepath.Glob(filepath.Join(cache, "*"))
			if err != nil {
				t.Fatal(err)
			}
			for _, path := range left {
				if filepath.Base(path) != ".lock" {
					t.Errorf("left behind: %s", path)
				}
			}
		})
	}
}

func TestLink(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "out")
	for _, target := range []string{"/first.tar", "/second.tar"} {
		if err := Link(dir, "x", target); err != nil {
			t.Fatal(err)
		}
		if got, err := os.Readlink(filepath.Join(dir, "x.tar")); err != nil || got != target {
			t.Errorf("link = %q, %v; want %q", got, err, target)
		}
	}
}

func TestMatches(t *testing.T) {
	cases := []struct {
		pattern, name string
		want          bool
	}{
		{"usr/share/doc", "usr/share/doc/p/copyright", true},
		{"usr/share/doc", "usr/share/doc/", true},
		{"usr/share/doc", "usr/share/docs", false},
		{"usr/lib/*/libLLVM*", "usr/lib/x86_64-linux-gnu/libLLVM-14.so.1", true},
		{"usr/bin/p[gs]_*", "usr/bin/pg_dump", true},
		{"usr/bin/p[gs]_*", "usr/lib/postgresql/15/bin/pg_dump", false},
		{"dev/*", "dev/", false},
		{"dev/*", "dev/pts/", true},
	}
	for _, c := range cases {
		if got := matches([]string{c.pattern}, c.name); got != c.want {
			t.Errorf("matches(%q, %q) = %v, want %v", c.pattern, c.name, got, c.want)
		}
	}
}

// A script whose first line is not its interpreter starts from a shell, but not
// as the first process of a container.
func TestEntrypointsAreScripts(t *testing.T) {
	for name, text := range map[string]string{"postgres": postgresEntrypoint, "redis": redisEntrypoint} {
		if !strings.HasPrefix(text, "#!/bin/sh\n") {
			t.Errorf("entrypoint of %s begins with %.20q", name, text)
		}
	}
}
