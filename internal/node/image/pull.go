package image

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	remoteerrors "github.com/containerd/containerd/v2/core/remotes/errors"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"baton/internal/model/spec"
	"baton/internal/node/agent"
)

const (
	// dialMax bounds the connection to a registry, headerMax its answer to a request; a transfer may take as long as it moves.
	dialMax   = 15 * time.Second
	headerMax = 60 * time.Second
	// layersMax is how many layers of one image come at once.
	layersMax = 3
)

// Auth are the credentials for one registry.
type Auth struct {
	ServerAddress string `json:"serverAddress"` // "docker.io", "registry.example:5000"
	Username      string `json:"username"`
	Password      string `json:"password"`
}

// Progress is how far a pull has come.
type Progress struct {
	Ref   string
	Done  spec.Bytes // of the layers
	Total spec.Bytes // as far as known
	End   bool
}

// Pull makes the image present by the policy, unpacked; it implements runtime.Images. A RejectError means that trying again will not
// help: the image does not exist, may not be had, or may not be asked for. Any other error may pass.
//
// What was loaded by hand is fetched from the nodes that have it, whatever the policy: PullNever forbids registries, and only
// PullAlways asks one for a name that was loaded.
func (s *Store) Pull(ctx context.Context, ref string, policy spec.PullPolicy) error {
	img, err := s.find(ctx, ref)
	missing := errdefs.IsNotFound(err)
	if err != nil && !missing {
		return err
	}
	full, nerr := Normalize(ref)
	if nerr != nil {
		if missing {
			return err
		}
		return s.unpack(ctx, img)
	}
	holders, herr := s.holders(ctx, full)
	loaded := holders.Digest != ""
	mayPull := policy != spec.PullNever && !localOnly(ref) && !localOnly(full)
	var perr error
	if mayPull && (policy == spec.PullAlways || missing && !loaded) {
		if perr = s.pull(ctx, full); perr == nil {
			return nil
		}
		perr = s.explain(ref, perr)
	}
	if missing || loaded && holders.Digest != img.Target().Digest.String() {
		switch ferr := s.fetch(ctx, full, holders); {
		case ferr == nil:
			return nil
		case ctx.Err() != nil:
			return ctx.Err()
		case missing:
			return s.missing(ref, err, perr, herr, ferr, loaded)
		default:
			// Not to start would be worse than an older image.
			s.log.Warn("the newest load of the image cannot be had; the present one is used", "image", ref, "err", ferr)
		}
	}
	var re *agent.RejectError
	switch {
	case perr == nil || loaded:
	case errors.As(perr, &re):
		return perr
	default: // the registry cannot be reached, but an image of that name is here
		s.log.Warn("image could not be refreshed; the present one is used", "image", ref, "err", perr)
	}
	return s.unpack(ctx, img)
}

func (s *Store) pull(ctx context.Context, full string) error {
	ctx, release, err := s.lease(ctx)
	if err != nil {
		return err
	}
	defer release()
	tr := &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           (&net.Dialer{Timeout: dialMax}).DialContext,
		TLSHandshakeTimeout:   dialMax,
		ResponseHeaderTimeout: headerMax,
		ForceAttemptHTTP2:     true,
	}
	defer tr.CloseIdleConnections()
	client := &http.Client{Transport: tr}
	resolver := docker.NewResolver(docker.ResolverOptions{Hosts: docker.ConfigureDefaultRegistries(
		docker.WithClient(client),
		docker.WithPlainHTTP(func(h string) (bool, error) { return plainHTTP(h), nil }),
		docker.WithAuthorizer(docker.NewDockerAuthorizer(docker.WithAuthClient(client), docker.WithAuthCreds(s.creds(ctx)))),
	)})
	watch := s.watch(full)
	defer watch.end()
	img, err := s.cfg.Client.Pull(ctx, full, containerd.WithResolver(resolver), containerd.WithPlatformMatcher(platforms.Default()),
		containerd.WithMaxConcurrentDownloads(layersMax), containerd.WithImageHandler(watch))
	if err != nil {
		return err
	}
	return s.unpack(ctx, img)
}

// creds looks up the credentials of a host. Docker's registry has another name on the network than in image names.
func (s *Store) creds(ctx context.Context) func(string) (string, string, error) {
	return func(h string) (string, string, error) {
		if s.cfg.Auth == nil {
			return "", "", nil
		}
		if h == "registry-1.docker.io" {
			h = "docker.io"
		}
		a, ok := s.cfg.Auth(ctx, h)
		if !ok {
			return "", "", nil
		}
		return a.Username, a.Password, nil
	}
}

// explain tells what will not change by itself from what may.
func (s *Store) explain(ref string, err error) error {
	why := func(what string) error {
		return &agent.RejectError{Reason: fmt.Sprintf("image %s is not on this node and could not be pulled: %s", ref, what), Err: err}
	}
	var st remoteerrors.ErrUnexpectedStatus
	status := 0
	if errors.As(err, &st) {
		status = st.StatusCode
	}
	var re *agent.RejectError
	switch {
	case errors.As(err, &re):
		return err
	case errors.Is(err, docker.ErrInvalidAuthorization), status == http.StatusUnauthorized, status == http.StatusForbidden:
		return why("the registry denies access; run `baton registry login " + spec.RegistryHost(ref) + "`, or load the image with `baton image load FILE`")
	case errdefs.IsNotFound(err), status == http.StatusNotFound:
		return why("the registry does not have it; check its name, or load it with `baton image load FILE`")
	}
	if ue, ok := errors.AsType[*url.Error](err); ok {
		if u, perr := url.Parse(ue.URL); perr == nil {
			err = fmt.Errorf("registry %s cannot be reached: %w", u.Host, root(ue.Err))
		}
	}
	return fmt.Errorf("image %s is not on this node and could not be pulled: %w; load it with `baton image load FILE`", ref, err)
}

// root is the error at the bottom of a chain: of a failed connection, what the system said.
func root(err error) error {
	for {
		next := errors.Unwrap(err)
		if next == nil {
			return err
		}
		err = next
	}
}

// watcher counts what a pull has fetched, by way of the descriptors that it handles.
type watcher struct {
	s    *Store
	ref  string
	stop context.CancelFunc
	wg   sync.WaitGroup

	mu   sync.Mutex
	want map[string]int64 // size by digest
}

// progressEvery is how often Progress is told.
const progressEvery = 500 * time.Millisecond

func (s *Store) watch(ref string) *watcher {
	ctx, stop := context.WithCancel(context.Background())
	w := &watcher{s: s, ref: ref, stop: stop, want: map[string]int64{}}
	if s.cfg.Progress != nil {
		w.wg.Go(func() { w.run(ctx) })
	}
	return w
}

// Handle implements images.Handler.
func (w *watcher) Handle(_ context.Context, d ocispec.Descriptor) ([]ocispec.Descriptor, error) {
	if images.IsLayerType(d.MediaType) {
		w.mu.Lock()
		w.want[d.Digest.String()] = d.Size
		w.mu.Unlock()
	}
	return nil, nil
}

func (w *watcher) run(ctx context.Context) {
	t := time.NewTicker(progressEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
			w.s.cfg.Progress(w.now(ctx))
		}
	}
}

// now adds up what is stored and what is on its way.
func (w *watcher) now(ctx context.Context) Progress {
	w.mu.Lock()
	want := make(map[string]int64, len(w.want))
	for d, n := range w.want {
		want[d] = n
	}
	w.mu.Unlock()
	cs := w.s.cfg.Client.ContentStore()
	p := Progress{Ref: w.ref}
	coming := map[string]int64{}
	if sts, err := cs.ListStatuses(ctx); err == nil {
		for _, st := range sts {
			_, d, _ := strings.Cut(st.Ref, "-")
			coming[d] = st.Offset
		}
	}
	for d, n := range want {
		p.Total += spec.Bytes(n)
		if off, ok := coming[d]; ok {
			p.Done += spec.Bytes(off)
		} else if _, err := cs.Info(ctx, digest.Digest(d)); err == nil {
			p.Done += spec.Bytes(n)
		}
	}
	return p
}

func (w *watcher) end() {
	w.stop()
	w.wg.Wait()
	if w.s.cfg.Progress != nil {
		p := w.now(context.Background())
		p.End = true
		w.s.cfg.Progress(p)
	}
}
