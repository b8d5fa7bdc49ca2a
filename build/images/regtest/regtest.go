// Package regtest is an image registry for tests: in memory, with or without a login, as slow or incomplete as a test wants.
//
// Concurrency: a Registry may be used from any goroutine.
package regtest

import (
	"archive/tar"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// Login is how a registry wants to know who asks.
type Login string

// The logins.
const (
	Open  Login = ""      // everyone may read and write
	Basic Login = "basic" // user name and password with each request
	Token Login = "token" // user name and password for a token server, its token with each request (WWW-Authenticate: Bearer)
)

// Registry is an http.Handler. Its fields must not change while it serves.
type Registry struct {
	Login              Login
	Username, Password string

	// Hold, when set, is called before a layer or manifest is served, and may wait.
	Hold func(r *http.Request)

	inner http.Handler
	once  sync.Once
	token string
	mu    sync.Mutex
	asked []string
}

// Asked lists the requests so far as "METHOD /path".
func (r *Registry) Asked() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]string(nil), r.asked...)
}

// begin makes what the zero value lacks.
func (r *Registry) begin() {
	r.once.Do(func() {
		r.inner = registry.New(registry.Logger(log.New(io.Discard, "", 0)))
		r.token = rand.Text()
	})
}

// ServeHTTP implements http.Handler.
func (r *Registry) ServeHTTP(w http.ResponseWriter, q *http.Request) {
	r.begin()
	r.mu.Lock()
	r.asked = append(r.asked, q.Method+" "+q.URL.Path)
	r.mu.Unlock()
	if q.URL.Path == "/token" {
		r.serveToken(w, q)
		return
	}
	if !r.allowed(q) {
		challenge := `Basic realm="test"`
		if r.Login == Token {
			challenge = fmt.Sprintf(`Bearer realm="http://%s/token",service="test"`, q.Host)
		}
		w.Header().Set("WWW-Authenticate", challenge)
		http.Error(w, `{"errors":[{"code":"UNAUTHORIZED"}]}`, http.StatusUnauthorized)
		return
	}
	if r.Hold != nil && q.Method == http.MethodGet && (strings.Contains(q.URL.Path, "/blobs/") || strings.Contains(q.URL.Path, "/manifests/")) {
		r.Hold(q)
	}
	r.inner.ServeHTTP(w, q)
}

func (r *Registry) allowed(q *http.Request) bool {
	switch r.Login {
	case Basic:
		return r.known(q)
	case Token:
		return q.Header.Get("Authorization") == "Bearer "+r.token
	}
	return true
}

func (r *Registry) known(q *http.Request) bool {
	user, password, ok := q.BasicAuth()
	return ok && user == r.Username && password == r.Password
}

// serveToken gives a token to who knows the password, asked in either of the two ways that clients have.
func (r *Registry) serveToken(w http.ResponseWriter, q *http.Request) {
	ok := r.known(q)
	if q.Method == http.MethodPost {
		ok = q.PostFormValue("username") == r.Username && q.PostFormValue("password") == r.Password
	}
	if !ok {
		http.Error(w, `{"errors":[{"code":"UNAUTHORIZED"}]}`, http.StatusUnauthorized)
		return
	}
	_ = json.NewEncoder(w).Encode(map[string]any{"token": r.token, "access_token": r.token, "expires_in": 3600})
}

// insider passes every login.
type insider struct{ r *Registry }

func (t insider) RoundTrip(q *http.Request) (*http.Response, error) {
	q = q.Clone(q.Context())
	switch t.r.Login {
	case Basic:
		q.SetBasicAuth(t.r.Username, t.r.Password)
	case Token:
		q.Header.Set("Authorization", "Bearer "+t.r.token)
	}
	return http.DefaultTransport.RoundTrip(q)
}

// Push stores the image of an OCI archive under a reference of the registry, which must be serving on the machine.
func (r *Registry) Push(archive, ref string) (err error) {
	r.begin()
	to, err := name.ParseReference(ref, name.Insecure)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "regtest")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if err := unpack(archive, dir); err != nil {
		return err
	}
	index, err := layout.ImageIndexFromPath(dir)
	if err != nil {
		return err
	}
	list, err := index.IndexManifest()
	if err != nil {
		return err
	}
	if len(list.Manifests) != 1 {
		return fmt.Errorf("%s holds %d images, want one", archive, len(list.Manifests))
	}
	image, err := index.Image(list.Manifests[0].Digest)
	if err != nil {
		return err
	}
	return remote.Write(to, image, remote.WithTransport(insider{r}))
}

// unpack extracts an archive of plain files and directories.
func unpack(archive, dir string) error {
	f, err := os.Open(archive)
	if err != nil {
		return err
	}
	defer f.Close()
	for in := tar.NewReader(f); ; {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if !filepath.IsLocal(h.Name) {
			return fmt.Errorf("%s: %q leads out of the archive", archive, h.Name)
		}
		path := filepath.Join(dir, h.Name)
		if h.Typeflag == tar.TypeDir {
			continue
		}
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			return err
		}
		out, err := os.Create(path)
		if err != nil {
			return err
		}
		_, err = io.Copy(out, in)
		if err := errors.Join(err, out.Close()); err != nil {
			return err
		}
	}
}
