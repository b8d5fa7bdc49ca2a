// Package transfer moves the content of images from node to node, over rpc.
//
// Whoever serves answers two questions: what a reference or digest points to, and one blob of an image. Whoever fetches walks from
// the image's digest down, for its own platform, and stores what it does not have yet.
//
// Invariants: only blobs that a present image refers to are given away; what is stored was checked against the digest by
// which its parent names it, so that one right digest at the top makes the whole right, whoever gave it; a blob that broke
// off is gone on with, from the same node or another one; no blob is held in memory as a whole, but the indexes and manifests, which are
// bounded.
//
// Concurrency: everything may be called from any goroutine. A Server gives blobsMax blobs at a time, one Fetch takes fetchMax.
package transfer

import (
	"context"
	"errors"
	"io"
	"slices"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"baton/internal/wire/rpc"
)

const (
	service    = "baton.Images"
	callTarget = "Target" // targetIn → descriptor
	callBlob   = "Blob"   // blobIn → chunks, up to the end of the blob
)

const (
	chunkSize = 256 << 10
	// blobsMax is how many blobs a node gives away at a time: beyond that a disk or a network card only thrashes.
	blobsMax = 16
	// waitMax is how long a request waits for its turn before its node looks elsewhere.
	waitMax = 10 * time.Second
	// depthMax is how deep an index, its manifests and their layers are; more is no image.
	depthMax = 4
)

type (
	// targetIn names an image by its content or, when Digest is empty, by its reference.
	targetIn struct {
		Digest digest.Digest `json:"digest,omitempty"`
		Ref    string        `json:"ref,omitempty"`
	}
	descriptor struct {
		MediaType string        `json:"mediaType"`
		Digest    digest.Digest `json:"digest"`
		Size      int64         `json:"size"`
	}
	// blobIn asks for a blob of an image from an offset on.
	blobIn struct {
		Image  digest.Digest `json:"image"`
		Blob   digest.Digest `json:"blob"`
		Offset int64         `json:"offset,omitempty"`
	}
	chunk struct {
		Data []byte `json:"data"`
	}
)

// Shelf is what a node has to give.
type Shelf interface {
	// ByDigest and ByRef are what a present image points to; an error that is errdefs.ErrNotFound means that there is none.
	ByDigest(ctx context.Context, d digest.Digest) (ocispec.Descriptor, error)
	ByRef(ctx context.Context, ref string) (ocispec.Descriptor, error)
	Content() content.Provider
}

// Server gives images away. Make one with NewServer.
type Server struct {
	shelf func() (Shelf, error)
	slots chan struct{}
}

// NewServer makes a server of the shelf that the function gives: it may fail while the node starts.
func NewServer(shelf func() (Shelf, error)) *Server {
	return &Server{shelf: shelf, slots: make(chan struct{}, blobsMax)}
}

// Register adds the calls to an rpc server.
func (s *Server) Register(g *grpc.Server) {
	t := rpc.NewTable(service)
	rpc.Unary(t, callTarget, func(ctx context.Context, in targetIn) (descriptor, error) {
		d, err := s.target(ctx, in)
		return descriptor{MediaType: d.MediaType, Digest: d.Digest, Size: d.Size}, err
	})
	rpc.Streaming(t, callBlob, s.blob)
	t.Register(g)
}

func (s *Server) target(ctx context.Context, in targetIn) (ocispec.Descriptor, error) {
	shelf, err := s.shelf()
	if err != nil {
		return ocispec.Descriptor{}, status.Error(codes.Unavailable, err.Error())
	}
	var d ocispec.Descriptor
	if in.Digest != "" {
		if err := in.Digest.Validate(); err != nil {
			return d, status.Error(codes.InvalidArgument, "this is no digest")
		}
		d, err = shelf.ByDigest(ctx, in.Digest)
	} else {
		d, err = shelf.ByRef(ctx, in.Ref)
	}
	if errdefs.IsNotFound(err) {
		return d, status.Error(codes.NotFound, "it does not have the image")
	}
	return d, err
}

func (s *Server) blob(st rpc.Stream[blobIn, chunk]) error {
	ctx := st.Context()
	in, err := st.Recv()
	if err != nil {
		return err
	}
	if in.Image == "" {
		return status.Error(codes.InvalidArgument, "which image the blob belongs to is missing")
	}
	root, err := s.target(ctx, targetIn{Digest: in.Image})
	if err != nil {
		return err
	}
	shelf, err := s.shelf()
	if err != nil {
		return status.Error(codes.Unavailable, err.Error())
	}
	desc, ok, err := within(ctx, shelf.Content(), root, in.Blob, depthMax)
	switch {
	case err != nil:
		return err
	case !ok:
		return status.Error(codes.NotFound, "the image has no such part there")
	case in.Offset < 0 || in.Offset > desc.Size:
		return status.Error(codes.OutOfRange, "the offset is beyond the end")
	}
	if err := s.turn(ctx); err != nil {
		return err
	}
	defer func() { <-s.slots }()
	return send(ctx, st, shelf.Content(), desc, in.Offset)
}

// turn waits for a free slot.
func (s *Server) turn(ctx context.Context) error {
	wait := time.NewTimer(waitMax)
	defer wait.Stop()
	select {
	case s.slots <- struct{}{}:
		return nil
	case <-wait.C:
		return status.Error(codes.ResourceExhausted, "it gives images to too many nodes already")
	case <-ctx.Done():
		return ctx.Err()
	}
}

// within looks for a blob among what an image refers to. What is not there of it, such as other platforms, is passed over.
func within(ctx context.Context, p content.Provider, root ocispec.Descriptor, want digest.Digest, depth int) (ocispec.Descriptor, bool, error) {
	if root.Digest == want {
		return root, true, nil
	}
	if depth == 0 || root.Size > metaMax || !images.IsIndexType(root.MediaType) && !images.IsManifestType(root.MediaType) {
		return ocispec.Descriptor{}, false, nil
	}
	children, err := images.Children(ctx, p, root)
	if errdefs.IsNotFound(err) {
		return ocispec.Descriptor{}, false, nil
	}
	if err != nil {
		return ocispec.Descriptor{}, false, err
	}
	if i := slices.IndexFunc(children, func(d ocispec.Descriptor) bool { return d.Digest == want }); i >= 0 {
		return children[i], true, nil
	}
	for _, c := range children {
		if d, ok, err := within(ctx, p, c, want, depth-1); ok || err != nil {
			return d, ok, err
		}
	}
	return ocispec.Descriptor{}, false, nil
}

func send(ctx context.Context, st rpc.Stream[blobIn, chunk], p content.Provider, desc ocispec.Descriptor, offset int64) error {
	r, err := p.ReaderAt(ctx, desc)
	if errdefs.IsNotFound(err) {
		return status.Error(codes.NotFound, "it has the image, but not this part of it")
	}
	if err != nil {
		return err
	}
	defer r.Close()
	for offset < desc.Size {
		buf := make([]byte, min(chunkSize, desc.Size-offset)) // the message keeps it until it is sent
		n, err := r.ReadAt(buf, offset)
		if n > 0 {
			if err := st.Send(chunk{buf[:n]}); err != nil {
				return err
			}
			offset += int64(n)
		}
		if err != nil && (!errors.Is(err, io.EOF) || offset < desc.Size) {
			return err
		}
	}
	return nil
}
