package runtime_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"log"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os/exec"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"baton/internal/model/spec"
	"baton/internal/node/agent"
	"baton/internal/node/image"
)

// ociArchive is the test image as an OCI archive under ref.
func ociArchive(t *testing.T, ref string) []byte {
	t.Helper()
	img, err := probeImage(build(t, "probe"))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	p, err := layout.Write(dir, empty.Index)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.AppendImage(img, layout.WithAnnotations(map[string]string{"org.opencontainers.image.ref.name": ref})); err != nil {
		t.Fatal(err)
	}
	b, err := exec.Command("tar", "-C", dir, "-c", ".").Output()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestLoad(t *testing.T) {
	n := start(t)
	var zipped bytes.Buffer
	z := gzip.NewWriter(&zipped)
	if _, err := z.Write(archive(t)); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		data []byte
		want string
	}{
		"docker":  {archive(t), testImage},
		"gzipped": {zipped.Bytes(), testImage},
		"OCI":     {ociArchive(t, "baton.test/oci:2"), "baton.test/oci:2"},
		"short":   {ociArchive(t, "redis:7"), "docker.io/library/redis:7"},
	} {
		t.Run(name, func(t *testing.T) {
			refs, err := n.images.Load(t.Context(), bytes.NewReader(tt.data))
			if err != nil || !slices.Equal(refs, []string{tt.want}) {
				t.Errorf("load = %v, %v, want %s", refs, err, tt.want)
			}
		})
	}
	for name, data := range map[string]string{"empty": "", "text": "no archive at all", "half": string(archive(t)[:5000])} {
		if refs, err := n.images.Load(t.Context(), strings.NewReader(data)); err == nil {
			t.Errorf("load of %s = %v, want an error", name, refs)
		}
	}
	c := container("exit", "0")
	c.Spec.Image = "redis:7"
	n.waitExit(n.mustStart(c))
	if p, err := n.ImageHealthcheck(t.Context(), "redis:7"); err != nil || p == nil || p.Interval != 3*time.Second || p.Failures != 2 || p.Exec[0] != "/probe" {
		t.Errorf("health check = %+v, %v", p, err)
	}
	all, err := n.images.List(t.Context())
	if err != nil || len(all) != 3 {
		t.Fatalf("list = %+v, %v, want 3 images", all, err)
	}
	if r := all[2]; r.Ref != "docker.io/library/redis:7" || !r.InUse || r.Size < 1<<19 || !strings.HasPrefix(r.Digest, "sha256:") {
		t.Errorf("image = %+v", r)
	}
	if err := n.images.Remove(t.Context(), "redis:7"); err == nil || !strings.Contains(err.Error(), "in use") {
		t.Errorf("remove of an image in use: %v", err)
	}
	gone, err := n.images.Prune(t.Context(), []string{testImage})
	if err != nil || !slices.Equal(gone, []string{"baton.test/oci:2"}) {
		t.Errorf("prune = %v, %v", gone, err)
	}
	n.empty()
	for range 2 {
		if err := n.images.Remove(t.Context(), "redis:7"); err != nil {
			t.Error(err)
		}
	}
}

// privateRegistry is a registry on loopback that knows one user, and the name of an image in it.
type privateRegistry struct {
	*httptest.Server
	host, ref string
	asked     atomic.Int64
}

func newRegistry(t *testing.T) *privateRegistry {
	t.Helper()
	r := &privateRegistry{}
	inner := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	r.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		r.asked.Add(1)
		if u, p, ok := q.BasicAuth(); !ok || u != "ann" || p != "secret" {
			w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		inner.ServeHTTP(w, q)
	}))
	t.Cleanup(r.Close)
	u, err := url.Parse(r.URL)
	if err != nil {
		t.Fatal(err)
	}
	r.host, r.ref = u.Host, u.Host+"/team/app:1"
	return r
}

// push stores the test image with another variable.
func (r *privateRegistry) push(t *testing.T, env string) {
	t.Helper()
	img, err := probeImage(build(t, "probe"))
	if err != nil {
		t.Fatal(err)
	}
	cf, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	cf = cf.DeepCopy()
	cf.Config.Env = append(cf.Config.Env, env)
	if img, err = mutate.ConfigFile(img, cf); err != nil {
		t.Fatal(err)
	}
	ref, err := name.ParseReference(r.ref)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(ref, img, remote.WithAuth(&authn.Basic{Username: "ann", Password: "secret"})); err != nil {
		t.Fatal(err)
	}
}

func wantRejected(t *testing.T, store *image.Store, ref string, policy spec.PullPolicy, want string) {
	t.Helper()
	err := store.Pull(t.Context(), ref, policy)
	var re *agent.RejectError
	if !errors.As(err, &re) || !strings.Contains(re.Reason, want) {
		t.Errorf("pull of %s = %v, want a rejection that says %q", ref, err, want)
	}
}

func TestPull(t *testing.T) {
	n := start(t)
	reg := newRegistry(t)
	reg.push(t, "VERSION=1")
	wantRejected(t, n.images, reg.ref, spec.PullMissing, "denies access")
	var ended atomic.Int64
	store := image.New(image.Config{
		Client: n.Client(), Log: slog.New(slog.DiscardHandler),
		Auth: func(_ context.Context, host string) (image.Auth, bool) {
			return image.Auth{ServerAddress: host, Username: "ann", Password: "secret"}, host == reg.host
		},
		Progress: func(p image.Progress) {
			if p.End && p.Total > 0 && p.Done == p.Total {
				ended.Add(1)
			}
		},
	})
	wantRejected(t, store, reg.ref, spec.PullNever, "not on this node")
	wantRejected(t, store, reg.host+"/team/none:1", spec.PullMissing, "does not have it")
	pull := func(ref string, policy spec.PullPolicy) {
		t.Helper()
		if err := store.Pull(t.Context(), ref, policy); err != nil {
			t.Errorf("pull: %v", err)
		}
	}
	version := func(want string) {
		t.Helper()
		f := n.facts(t, func(c *agent.Container) { c.Spec.Image = reg.ref })
		f.wantEnv(t, want)
	}
	pull(reg.ref, spec.PullMissing)
	if ended.Load() != 1 {
		t.Error("the progress did not come to its end")
	}
	version("VERSION=1")
	reg.push(t, "VERSION=2")
	before := reg.asked.Load()
	pull(reg.ref, spec.PullMissing)
	if got := reg.asked.Load(); got != before {
		t.Errorf("%d requests for a present image", got-before)
	}
	version("VERSION=1")
	pull(reg.ref, spec.PullAlways)
	version("VERSION=2")
	pull(testImage, spec.PullAlways) // a name that is looked up locally only
	reg.Close()
	pull(reg.ref, spec.PullAlways) // the present image serves
	// What may pass is no rejection.
	err := store.Pull(t.Context(), reg.host+"/team/other:1", spec.PullMissing)
	var re *agent.RejectError
	if err == nil || errors.As(err, &re) || !strings.Contains(err.Error(), "baton image load") {
		t.Errorf("pull without the registry = %v, want a plain error with the mend", err)
	}
	n.empty()
}
