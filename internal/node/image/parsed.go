package image

import (
	"context"
	"encoding/json"
	"sync"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"baton/internal/model/spec"
)

// parsedMax is how many images are remembered in parsed form. A node rarely runs more; each is a few kilobytes.
const parsedMax = 128

// parsed is what the content of an image says, for this node's platform. It never changes for a digest, and every start needs it:
// reading it anew takes some ten questions to containerd.
type parsed struct {
	spec   ocispec.Image
	config []byte // spec, as it was written, with docker's extensions
	size   spec.Bytes
	top    string // the snapshot that the layers unpack into
}

// library remembers parsed images by their targets' digests.
type library struct {
	mu sync.Mutex
	by map[digest.Digest]*parsed
}

func (l *library) get(d digest.Digest) *parsed {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.by[d]
}

func (l *library) put(d digest.Digest, p *parsed) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.by == nil || len(l.by) >= parsedMax {
		l.by = map[digest.Digest]*parsed{} // reading some again costs less than to know which
	}
	l.by[d] = p
}

// parse reads what an image says.
func (s *Store) parse(ctx context.Context, i images.Image) (*parsed, error) {
	if p := s.library.get(i.Target.Digest); p != nil {
		return p, nil
	}
	store := s.cfg.Client.ContentStore()
	desc, err := i.Config(ctx, store, platforms.Default())
	if err != nil {
		return nil, err
	}
	p := &parsed{}
	if p.config, err = content.ReadBlob(ctx, store, desc); err != nil {
		return nil, err
	}
	if err := json.Unmarshal(p.config, &p.spec); err != nil {
		return nil, err
	}
	size, err := i.Size(ctx, store, platforms.Default())
	if err != nil {
		return nil, err
	}
	p.size, p.top = spec.Bytes(size), identity.ChainID(p.spec.RootFS.DiffIDs).String()
	s.library.put(i.Target.Digest, p)
	return p, nil
}

// present is an image whose content has been read.
type present struct {
	containerd.Image
	parsed *parsed
}

// RootFS implements containerd.Image.
func (p *present) RootFS(context.Context) ([]digest.Digest, error) {
	return p.parsed.spec.RootFS.DiffIDs, nil
}

// Spec implements containerd.Image.
func (p *present) Spec(context.Context) (ocispec.Image, error) { return p.parsed.spec, nil }

// unpacked reports whether the snapshot of the image's layers is there.
func (s *Store) unpacked(ctx context.Context, p *parsed) (bool, error) {
	_, err := s.cfg.Client.SnapshotService(snapshotter).Stat(ctx, p.top)
	if errdefs.IsNotFound(err) {
		return false, nil
	}
	return err == nil, err
}
