package image

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"baton/internal/model/spec"
	"baton/internal/node/agent"
	"baton/internal/node/image/transfer"
	"baton/internal/wire/agentapi"
)

// fetchesMax is how many images come from other nodes at a time; the others wait.
const fetchesMax = 2

// Cluster is what a store needs of the cluster that its node belongs to.
type Cluster interface {
	// Holders asks a manager who has an image, by its full name.
	Holders(ctx context.Context, ref string) (agentapi.ImageHolders, error)
	// Dial opens a connection for transport.ProtocolImage to exactly that node.
	Dial(ctx context.Context, h agentapi.ImageHolder) (net.Conn, error)
}

// Fetched is an image that came from other nodes.
type Fetched struct {
	Ref   string
	Bytes spec.Bytes // that came; what was here already did not
	From  []string   // names of nodes
	Took  time.Duration
}

// holders asks who has an image. A node without a cluster knows of nobody.
func (s *Store) holders(ctx context.Context, full string) (agentapi.ImageHolders, error) {
	if s.cfg.Cluster == nil {
		return agentapi.ImageHolders{}, nil
	}
	h, err := s.cfg.Cluster.Holders(ctx, full)
	if err != nil {
		s.log.Warn("no manager tells which nodes have an image", "image", full, "err", err)
	}
	return h, err
}

// fetch makes an image present, unpacked, with what other nodes have.
func (s *Store) fetch(ctx context.Context, full string, h agentapi.ImageHolders) error {
	if s.cfg.Cluster == nil || len(h.Holders) == 0 {
		return fmt.Errorf("%w: no connected node has it", transfer.ErrNoHolder)
	}
	select {
	case s.fetches <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-s.fetches }()
	ctx, release, err := s.lease(ctx)
	if err != nil {
		return err
	}
	defer release()
	watch := s.watch(full)
	defer watch.end()
	began := time.Now()
	got, err := transfer.Fetch(ctx, transfer.Config{
		Content: s.cfg.Client.ContentStore(), Platform: platforms.Default(), Dial: s.cfg.Cluster.Dial, Visit: watch.Handle, Log: s.log,
	}, transfer.Want{Ref: full, Digest: wanted(full, h), Holders: h.Holders})
	if err != nil {
		return err
	}
	img, err := s.name(ctx, full, got.Target)
	if err != nil {
		return err
	}
	if err := s.unpack(ctx, containerd.NewImage(s.cfg.Client, img)); err != nil {
		return err
	}
	f := Fetched{Ref: full, Bytes: spec.Bytes(got.Bytes), From: got.From, Took: time.Since(began)}
	s.log.Info("image fetched from other nodes", "image", full, "bytes", got.Bytes, "from", strings.Join(f.From, ", "), "took", f.Took)
	if s.cfg.Fetched != nil && got.Bytes > 0 {
		s.cfg.Fetched(f)
	}
	return nil
}

// wanted is the content that an image must have: that of the newest load, or the one in its own name.
func wanted(full string, h agentapi.ImageHolders) digest.Digest {
	if h.Digest != "" {
		return digest.Digest(h.Digest)
	}
	if n, err := reference.ParseNormalizedNamed(full); err == nil {
		if d, ok := n.(reference.Digested); ok {
			return d.Digest()
		}
	}
	return ""
}

// name lets a name point to content, whatever it pointed to before. Containers keep what they were made from.
func (s *Store) name(ctx context.Context, full string, target ocispec.Descriptor) (images.Image, error) {
	is := s.cfg.Client.ImageService()
	img, err := is.Create(ctx, images.Image{Name: full, Target: target})
	if errdefs.IsAlreadyExists(err) {
		img, err = is.Update(ctx, images.Image{Name: full, Target: target}, "target")
	}
	if err != nil {
		return img, fmt.Errorf("image %s: %w", full, err)
	}
	return img, nil
}

// missing says why an image is not here: what became of the registry (perr), of the question who has it (herr) and of the
// fetch (ferr). None is what is said without all that.
func (s *Store) missing(ref string, none, perr, herr, ferr error, loaded bool) error {
	switch {
	case loaded && errdefs.IsNotFound(ferr): // of this platform
		return &agent.RejectError{
			Reason: fmt.Sprintf("image %s was loaded for other platforms than %s, which is this node's: load one that has it, too", ref, platforms.DefaultString()), Err: ferr,
		}
	case loaded:
		return fmt.Errorf("image %s was loaded with `baton image load`, but cannot be fetched: %w; it is tried again; if these nodes are gone for good, load it once more", ref, ferr)
	case herr != nil && perr == nil:
		return fmt.Errorf("image %s is not on this node, and no manager tells which nodes have it: %w", ref, herr)
	case perr != nil:
		return perr
	case errors.Is(ferr, transfer.ErrNoHolder):
		return none
	}
	return fmt.Errorf("image %s is not on this node and could not be fetched from others: %w", ref, ferr)
}

// Shelf is what this node gives to others: the images that it has a name for.
func (s *Store) Shelf() transfer.Shelf { return shelf{s} }

type shelf struct{ s *Store }

var _ transfer.Shelf = shelf{}

// ByDigest implements transfer.Shelf.
func (h shelf) ByDigest(ctx context.Context, d digest.Digest) (ocispec.Descriptor, error) {
	list, err := h.s.cfg.Client.ImageService().List(ctx, "target.digest=="+d.String())
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	if len(list) == 0 {
		return ocispec.Descriptor{}, errdefs.ErrNotFound
	}
	return list[0].Target, nil
}

// ByRef implements transfer.Shelf.
func (h shelf) ByRef(ctx context.Context, ref string) (ocispec.Descriptor, error) {
	img, err := h.s.cfg.Client.ImageService().Get(ctx, ref)
	return img.Target, err
}

// Content implements transfer.Shelf.
func (h shelf) Content() content.Provider { return h.s.cfg.Client.ContentStore() }
