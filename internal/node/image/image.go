package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/images/archive"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/pkg/archive/compression"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"

	"baton/internal/model/spec"
	"baton/internal/node/agent"
)

const (
	snapshotter = "overlayfs"
	// leaseMax ends the lease of a load or pull that was interrupted, and with it what it had stored.
	leaseMax = 24 * time.Hour
)

// Config says where images are kept.
type Config struct {
	// Client is the node's containerd; required.
	Client *containerd.Client
	// Auth returns the credentials for a registry host, such as "docker.io" or "registry.example:5000", if there are any. May be nil.
	Auth func(ctx context.Context, host string) (Auth, bool)
	// Cluster finds images on other nodes; nil on a node without one.
	Cluster Cluster
	// Fetched is told of images that came from other nodes. It must not block. May be nil.
	Fetched func(f Fetched)
	// Progress is told how pulls come along. It must not block. May be nil.
	Progress func(p Progress)
	// Log defaults to slog.Default.
	Log *slog.Logger
}

// Store is the node's images.
type Store struct {
	cfg     Config
	log     *slog.Logger
	library library
	fetches chan struct{} // one token per image that comes from other nodes
}

// Image is one name of an image on this node.
type Image struct {
	Ref     string     `json:"ref"`
	Digest  string     `json:"digest"`
	Size    spec.Bytes `json:"size"`    // compressed, of this node's platform
	Created time.Time  `json:"created"` // when the image was built
	InUse   bool       `json:"inUse"`   // a container was made from it
}

// New returns the image store of a containerd.
func New(cfg Config) *Store {
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	return &Store{cfg: cfg, log: cfg.Log.With("part", "image"), fetches: make(chan struct{}, fetchesMax)}
}

// Load imports an OCI or docker archive, compressed or not, and returns the names of its images, sorted. It fails when the archive
// names none. Loading again changes nothing.
func (s *Store) Load(ctx context.Context, r io.Reader) ([]string, error) {
	plain, err := compression.DecompressStream(r)
	if err != nil {
		return nil, fmt.Errorf("load images: %w", err)
	}
	defer plain.Close()
	imgs, err := s.cfg.Client.Import(ctx, plain, containerd.WithImageRefTranslator(archiveName), containerd.WithSkipMissing())
	if err != nil {
		return nil, fmt.Errorf("load images: this is no complete OCI or docker archive: %w", err)
	}
	if len(imgs) == 0 {
		return nil, errors.New("load images: the archive holds no image with a name: give it one when you save it, such as `docker save NAME:TAG`")
	}
	var refs []string
	for _, i := range imgs {
		if err := s.unpack(ctx, containerd.NewImage(s.cfg.Client, i)); err != nil {
			return nil, fmt.Errorf("load image %s: %w", i.Name, err)
		}
		refs = append(refs, i.Name)
	}
	slices.Sort(refs)
	return slices.Compact(refs), nil
}

// archiveName completes a name found in an archive; a mere tag becomes nothing, as it names no image.
func archiveName(name string) string {
	if clean := archive.FilterRefPrefix("")(name); clean == "" && !strings.ContainsAny(name, "/:.") {
		return ""
	}
	n, err := Normalize(name)
	if err != nil {
		return ""
	}
	return n
}

// Get returns a present image, unpacked; it implements runtime.Images.
func (s *Store) Get(ctx context.Context, ref string) (containerd.Image, error) {
	img, err := s.find(ctx, ref)
	if err != nil {
		return nil, err
	}
	if err := s.unpack(ctx, img); err != nil {
		return nil, fmt.Errorf("image %s: %w", ref, err)
	}
	p, err := s.parse(ctx, img.Metadata())
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", ref, err)
	}
	return &present{Image: img, parsed: p}, nil
}

// find looks an image up, first by the name as it is, then by its full form.
func (s *Store) find(ctx context.Context, ref string) (containerd.Image, error) {
	names := []string{ref}
	full, nerr := Normalize(ref)
	if nerr == nil && full != ref {
		names = append(names, full)
	}
	for _, n := range names {
		i, err := s.cfg.Client.ImageService().Get(ctx, n)
		if err == nil {
			return containerd.NewImage(s.cfg.Client, i), nil
		}
		if !errdefs.IsNotFound(err) {
			return nil, fmt.Errorf("image %s: %w", ref, err)
		}
	}
	if nerr != nil {
		return nil, &agent.RejectError{Reason: fmt.Sprintf("image name %q is not valid", ref), Err: nerr}
	}
	return nil, &agent.RejectError{Reason: fmt.Sprintf("image %s is not on this node; load it with `baton image load FILE`", ref), Err: errdefs.ErrNotFound}
}

// unpack makes the image's layers into snapshots, once.
func (s *Store) unpack(ctx context.Context, img containerd.Image) error {
	p, err := s.parse(ctx, img.Metadata())
	if err == nil {
		var done bool
		if done, err = s.unpacked(ctx, p); err == nil && done {
			return nil
		}
	}
	if err == nil {
		err = img.Unpack(ctx, snapshotter)
	}
	if errdefs.IsNotFound(err) {
		return &agent.RejectError{
			Reason: fmt.Sprintf("image %s is not complete for %s, which is this node's platform", img.Name(), platforms.DefaultString()), Err: err,
		}
	}
	return err
}

// Healthcheck returns the HEALTHCHECK of a present image as a probe, or nil; it implements runtime.Images.
func (s *Store) Healthcheck(ctx context.Context, ref string) (*spec.Probe, error) {
	img, err := s.find(ctx, ref)
	if err != nil {
		return nil, err
	}
	p, err := s.parse(ctx, img.Metadata())
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", ref, err)
	}
	return healthcheck(p.config)
}

// Names returns the images' names only, sorted.
func (s *Store) Names(ctx context.Context) ([]string, error) {
	all, err := s.cfg.Client.ImageService().List(ctx)
	if err != nil {
		return nil, fmt.Errorf("list images: %w", err)
	}
	names := make([]string, 0, len(all))
	for _, i := range all {
		names = append(names, i.Name)
	}
	slices.Sort(names)
	return names, nil
}

// List returns every name on this node, sorted.
func (s *Store) List(ctx context.Context) ([]Image, error) {
	all, err := s.cfg.Client.ImageService().List(ctx)
	if err != nil {
		return nil, fmt.Errorf("list images: %w", err)
	}
	used, err := s.used(ctx)
	if err != nil {
		return nil, err
	}
	out := make([]Image, 0, len(all))
	for _, i := range all {
		img := Image{Ref: i.Name, Digest: i.Target.Digest.String(), InUse: used[i.Name]}
		// What is missing of an incomplete image is told when it is to be run.
		if p, err := s.parse(ctx, i); err == nil {
			img.Size = p.size
			if p.spec.Created != nil {
				img.Created = p.spec.Created.UTC()
			}
		}
		out = append(out, img)
	}
	slices.SortFunc(out, func(a, b Image) int { return strings.Compare(a.Ref, b.Ref) })
	return out, nil
}

// used are the names of the images that containers were made from.
func (s *Store) used(ctx context.Context) (map[string]bool, error) {
	cs, err := s.cfg.Client.ContainerService().List(ctx)
	if err != nil {
		return nil, fmt.Errorf("list containers: %w", err)
	}
	used := map[string]bool{}
	for _, c := range cs {
		used[c.Image] = true
	}
	return used, nil
}

// Remove forgets a name, and the image with its last name. An image in use is kept, with an error. A missing one is no error.
func (s *Store) Remove(ctx context.Context, ref string) error {
	img, err := s.find(ctx, ref)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	used, err := s.used(ctx)
	if err != nil {
		return err
	}
	if used[img.Name()] {
		return fmt.Errorf("image %s is in use by a task of this node: remove its service first", img.Name())
	}
	return s.remove(ctx, img.Name())
}

func (s *Store) remove(ctx context.Context, name string) error {
	if err := s.cfg.Client.ImageService().Delete(ctx, name, images.SynchronousDelete()); err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("remove image %s: %w", name, err)
	}
	return nil
}

// Prune removes the images that no container uses, those in keep excepted, and returns their names.
func (s *Store) Prune(ctx context.Context, keep []string) ([]string, error) {
	for i, k := range keep {
		if n, err := Normalize(k); err == nil {
			keep = append(slices.Clone(keep[:i]), append([]string{n}, keep[i+1:]...)...)
		}
	}
	all, err := s.List(ctx)
	if err != nil {
		return nil, err
	}
	var gone []string
	for _, i := range all {
		if i.InUse || slices.Contains(keep, i.Ref) {
			continue
		}
		if err := s.remove(ctx, i.Ref); err != nil {
			return gone, err
		}
		gone = append(gone, i.Ref)
	}
	return gone, nil
}

// lease keeps what is being stored from being collected until release.
func (s *Store) lease(ctx context.Context) (context.Context, func(), error) {
	ctx, release, err := s.cfg.Client.WithLease(ctx, leases.WithRandomID(), leases.WithExpiration(leaseMax))
	if err != nil {
		return nil, nil, fmt.Errorf("lease: %w", err)
	}
	return ctx, func() { _ = release(context.WithoutCancel(ctx)) }, nil
}

// healthcheck reads docker's extension of the image configuration.
func healthcheck(config []byte) (*spec.Probe, error) {
	var c struct {
		Config struct {
			Healthcheck *struct {
				Test                                          []string
				Interval, Timeout, StartPeriod, StartInterval time.Duration
				Retries                                       int
			}
		} `json:"config"`
	}
	if err := json.Unmarshal(config, &c); err != nil {
		return nil, fmt.Errorf("image configuration: %w", err)
	}
	h := c.Config.Healthcheck
	if h == nil || len(h.Test) == 0 || h.Test[0] == "NONE" {
		return nil, nil
	}
	p := &spec.Probe{
		Interval: or(h.Interval, 30*time.Second), Timeout: or(h.Timeout, 30*time.Second), Failures: max(h.Retries, 0), Successes: 1,
		StartPeriod: h.StartPeriod, StartInterval: h.StartInterval,
	}
	if p.Failures == 0 {
		p.Failures = 3
	}
	switch h.Test[0] {
	case "CMD":
		p.Exec = h.Test[1:]
	case "CMD-SHELL":
		p.Exec = append([]string{"/bin/sh", "-c"}, h.Test[1:]...)
	default:
		return nil, fmt.Errorf("image configuration: unknown kind of health check %q", h.Test[0])
	}
	if len(p.Exec) == 0 {
		return nil, nil
	}
	if p.StartInterval == 0 {
		p.StartInterval = min(p.Interval, time.Second)
	}
	return p, nil
}

func or(d, other time.Duration) time.Duration {
	if d > 0 {
		return d
	}
	return other
}
