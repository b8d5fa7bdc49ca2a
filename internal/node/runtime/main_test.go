package runtime_test

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"go.uber.org/goleak"

	"baton/build/bundle"
	"baton/internal/model/cluster"
	"baton/internal/model/spec"
	"baton/internal/node/agent"
	"baton/internal/node/image"
	"baton/internal/node/runtime"
	"baton/internal/wire/agentapi"
)

// basePattern names the directory of one test run. It holds the data directories of its nodes, and who owns it.
const basePattern = "/tmp/baton-runtime-test-"

// base is the directory of this run.
var base string

func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case agentCommand:
			os.Exit(agentMain(os.Args[2:]))
		}
	}
	os.Exit(run(m))
}

func run(m *testing.M) int {
	if os.Geteuid() == 0 {
		if err := sweep(); err != nil {
			fmt.Fprintln(os.Stderr, "remove what a killed run left:", err)
			return 1
		}
	}
	var err error
	if base, err = os.MkdirTemp(filepath.Dir(basePattern), filepath.Base(basePattern)); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(base)
	if err := os.WriteFile(filepath.Join(base, "owner"), []byte(processKey(os.Getpid())), 0o600); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	code := m.Run()
	if code == 0 {
		if err := goleak.Find(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	return code
}

// processKey names a process beyond its number: by its start.
func processKey(pid int) string {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return ""
	}
	_, rest, _ := strings.Cut(string(b), ") ")
	f := strings.Fields(rest)
	if len(f) < 20 {
		return ""
	}
	return strconv.Itoa(pid) + " " + f[19]
}

// sweep removes the nodes of test runs that were killed.
func sweep() error {
	dirs, err := filepath.Glob(basePattern + "*")
	if err != nil {
		return err
	}
	for _, d := range dirs {
		owner, _ := os.ReadFile(filepath.Join(d, "owner"))
		pid, _, _ := strings.Cut(string(owner), " ")
		if n, err := strconv.Atoi(pid); err == nil && processKey(n) == string(owner) {
			continue // another run, alive
		}
		nodes, err := filepath.Glob(d + "/node-*")
		if err != nil {
			return err
		}
		for _, n := range nodes {
			if err := runtime.RemoveAll(context.Background(), n, ""); err != nil {
				return err
			}
		}
		if err := os.RemoveAll(d); err != nil {
			return err
		}
	}
	return nil
}

var binaries = sync.OnceValues(func() (bundle.Paths, error) { return bundle.Unpack(filepath.Join(base, "bin")) })

// build compiles a program of testdata, statically.
func build(t testing.TB, program string) string {
	t.Helper()
	out := filepath.Join(base, program)
	if _, err := os.Stat(out); err == nil {
		return out
	}
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", out, "./testdata/"+program)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if b, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build %s: %v\n%s", program, err, b)
	}
	return out
}

// testImage is the name of the image that all tests run.
const testImage = "baton.test/probe:1"

// archive returns the test image as a docker archive.
func archive(t testing.TB) []byte {
	t.Helper()
	img, err := probeImage(build(t, "probe"))
	if err != nil {
		t.Fatal(err)
	}
	ref, err := name.ParseReference(testImage)
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := tarball.Write(ref, img, &b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// probeImage is the probe with a few files around it.
func probeImage(probe string) (v1.Image, error) {
	bin, err := os.ReadFile(probe)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	add := func(h tar.Header, body []byte) {
		h.Size = int64(len(body))
		if err == nil {
			err = w.WriteHeader(&h)
		}
		if err == nil {
			_, err = w.Write(body)
		}
	}
	dir := func(n string, mode int64, uid int) {
		add(tar.Header{Name: n, Typeflag: tar.TypeDir, Mode: mode, Uid: uid, Gid: uid}, nil)
	}
	file := func(n string, mode int64, uid int, text string) {
		add(tar.Header{Name: n, Typeflag: tar.TypeReg, Mode: mode, Uid: uid, Gid: uid}, []byte(text))
	}
	add(tar.Header{Name: "probe", Typeflag: tar.TypeReg, Mode: 0o755}, bin)
	dir("etc", 0o755, 0)
	dir("tmp", 0o1777, 0)
	dir("data", 0o750, 70)
	dir("data/sub", 0o700, 71)
	file("etc/passwd", 0o644, 0, "root:x:0:0:root:/root:/bin/sh\npostgres:x:70:70::/home:/bin/sh\n")
	file("etc/group", 0o644, 0, "root:x:0:\npostgres:x:70:\nextra:x:900:postgres\naudio:x:63:\n")
	file("data/seed", 0o640, 70, "seeded")
	file("data/sub/deep", 0o600, 71, "deep")
	file("text", 0o644, 0, "not a program")
	add(tar.Header{Name: "data/link", Typeflag: tar.TypeSymlink, Linkname: "seed", Mode: 0o777, Uid: 70, Gid: 70}, nil)
	if err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b.Bytes())), nil })
	if err != nil {
		return nil, err
	}
	img, err := mutate.AppendLayers(empty.Image, layer)
	if err != nil {
		return nil, err
	}
	cf, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	cf = cf.DeepCopy()
	cf.OS, cf.Architecture = "linux", "amd64"
	cf.Config = v1.Config{
		Entrypoint: []string{"/probe"}, Env: []string{"FROM_IMAGE=1", "BOTH=image"}, WorkingDir: "/made/here",
		Healthcheck: &v1.HealthConfig{Test: []string{"CMD", "/probe", "exit", "0"}, Interval: 3 * time.Second, Retries: 2},
	}
	return mutate.ConfigFile(img, cf)
}

// node is a runtime under test.
type node struct {
	*runtime.Runtime
	t      testing.TB
	dir    string
	images *image.Store
	logs   *runtime.Logs

	mu    sync.Mutex
	notes []agentapi.Note
}

// config is the configuration of a node in dir.
func config(dir string) (runtime.Config, error) {
	b, err := binaries()
	if err != nil {
		return runtime.Config{}, err
	}
	return runtime.Config{
		DataDir: dir, Containerd: b.Containerd, Shim: b.Front, Runc: b.Runc, Logger: b.Logger, Log: slog.New(slog.DiscardHandler),
		Images: func(c *containerd.Client) runtime.Images { return image.New(image.Config{Client: c}) },
	}, nil
}

// start gives the test a node of its own with the test image on it, and removes every trace of it in the end.
func start(t testing.TB) *node {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("containers need root")
	}
	dir, err := os.MkdirTemp(base, "node-")
	if err != nil {
		t.Fatal(err)
	}
	n := &node{t: t, dir: dir, logs: runtime.OpenLogs(dir)}
	t.Cleanup(func() {
		if t.Failed() {
			b, _ := os.ReadFile(filepath.Join(dir, "containerd", "containerd.log"))
			t.Logf("containerd's log:\n%s", b)
		}
		if n.Runtime != nil {
			if err := n.Close(context.Background(), true); err != nil {
				t.Error(err)
			}
		}
		if err := runtime.RemoveAll(context.Background(), dir, ""); err != nil {
			t.Error(err)
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	n.open()
	if _, err := n.images.Load(t.Context(), bytes.NewReader(archive(t))); err != nil {
		t.Fatal(err)
	}
	return n
}

// open starts the runtime over the node's data directory.
func (n *node) open() {
	n.t.Helper()
	cfg, err := config(n.dir)
	if err != nil {
		n.t.Fatal(err)
	}
	cfg.Init = filepath.Join(base, "init")
	cfg.Note = func(x agentapi.Note) {
		n.mu.Lock()
		defer n.mu.Unlock()
		n.notes = append(n.notes, x)
	}
	cfg.Images = func(c *containerd.Client) runtime.Images {
		n.images = image.New(image.Config{Client: c})
		return n.images
	}
	if n.Runtime, err = runtime.New(n.t.Context(), cfg); err != nil {
		n.t.Fatal(err)
	}
}

// restart ends this runtime, its containers running on, and opens the next.
func (n *node) restart() {
	n.t.Helper()
	if err := n.Close(n.t.Context(), true); err != nil {
		n.t.Fatal(err)
	}
	n.Runtime = nil
	n.open()
}

// container is a task that runs the probe with args.
func container(args ...string) agent.Container {
	c := agent.Container{Hostname: "web-1"}
	c.Task = &cluster.Task{Meta: cluster.Meta{ID: cluster.NewID(nil)}, Slot: 1}
	c.Spec = &spec.Service{Name: "web", Image: testImage, NetworkMode: "none", Container: spec.Container{Command: args}}
	c.StackName, c.ServiceName = "shop", "web"
	return c
}

// mustStart starts a container.
func (n *node) mustStart(c agent.Container) cluster.ID {
	n.t.Helper()
	if err := n.Start(n.t.Context(), c); err != nil {
		n.t.Fatalf("start: %v", err)
	}
	return c.Task.ID
}

// observed is the task as the node sees it; nil when there is no container.
func (n *node) observed(id cluster.ID) *agent.Observed {
	n.t.Helper()
	all, err := n.Observe(n.t.Context())
	if err != nil {
		n.t.Fatalf("observe: %v", err)
	}
	for _, o := range all {
		if o.Task == id {
			return &o
		}
	}
	return nil
}

// stats is what a running task uses; all zero when the node does not tell of it.
func (n *node) stats(id cluster.ID) runtime.Stats {
	n.t.Helper()
	all, err := n.StatsOfAll(n.t.Context())
	if err != nil {
		n.t.Fatalf("stats: %v", err)
	}
	i := slices.IndexFunc(all, func(s runtime.Stats) bool { return s.Task == id })
	if i < 0 {
		return runtime.Stats{}
	}
	return all[i]
}

// waitExit waits for the task's end.
func (n *node) waitExit(id cluster.ID) cluster.Exit {
	n.t.Helper()
	var e cluster.Exit
	eventually(n.t, "the task ends", func() bool {
		o := n.observed(id)
		switch {
		case o == nil:
			n.t.Fatal("the container is gone")
			return false
		case o.State != agent.ContainerExited:
			return false
		}
		e = *o.Exit
		return true
	})
	return e
}

// output is all that the task has written so far; of the named streams, if any.
func (n *node) output(id cluster.ID, streams ...string) string {
	n.t.Helper()
	var b strings.Builder
	for l, err := range n.logs.Read(n.t.Context(), id, agentapi.LogOptions{Tail: -1}) {
		if err != nil {
			n.t.Fatalf("read logs: %v", err)
		}
		if len(streams) > 0 && !slices.Contains(streams, l.Stream) {
			continue
		}
		b.WriteString(l.Text)
		if !l.Partial {
			b.WriteByte('\n')
		}
	}
	return b.String()
}

// waitOutput waits until the task has written want.
func (n *node) waitOutput(id cluster.ID, want string) {
	n.t.Helper()
	eventually(n.t, fmt.Sprintf("the task writes %q", want), func() bool { return strings.Contains(n.output(id), want) })
}

// waitMax is how long a condition of a real part may take on a loaded machine.
const waitMax = 60 * time.Second

func eventually(t testing.TB, what string, f func() bool) {
	t.Helper()
	for deadline := time.Now().Add(waitMax); ; time.Sleep(20 * time.Millisecond) {
		if f() {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %s", what, waitMax)
		}
	}
}
