package transfer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/semaphore"
	"google.golang.org/grpc"

	"baton/internal/wire/agentapi"
	"baton/internal/wire/rpc"
)

const (
	// fetchMax is how many blobs of an image come at a time.
	fetchMax = 3
	// metaMax bounds indexes, manifests and configurations, which are read into memory.
	metaMax = 8 << 20
	// stallMax is how long nothing may come from a node; it is longer than a node lets others wait for their turn.
	stallMax = waitMax + 5*time.Second
	dialMax  = 3 * time.Second
)

// Config is how a node fetches. All fields but Visit are required.
type Config struct {
	Content content.Store
	// Platform is what the node runs: nothing else is fetched.
	Platform platforms.MatchComparer
	// Dial opens a connection for transport.ProtocolImage to exactly that node.
	Dial func(ctx context.Context, h agentapi.ImageHolder) (net.Conn, error)
	// Visit is told of each part of the image before it is fetched.
	Visit images.HandlerFunc
	Log   *slog.Logger
}

// Want is an image to fetch.
type Want struct {
	Ref string
	// Digest is the content that Ref must have; empty: what the first holder that answers has.
	Digest  digest.Digest
	Holders []agentapi.ImageHolder
}

// Got is an image that is complete now.
type Got struct {
	Target ocispec.Descriptor
	Bytes  int64    // that came over the network
	From   []string // names of the nodes that gave something, sorted
}

// ErrNoHolder means that no node could give the image; the error that wraps it tells what each of them said.
var ErrNoHolder = errors.New("no node could give it")

// Fetch stores an image. Its content is safe from collection only under a lease of the caller's.
func Fetch(ctx context.Context, cfg Config, w Want) (Got, error) {
	f := &fetch{cfg: cfg, want: w, why: make([]error, len(w.Holders)), clients: make([]*grpc.ClientConn, len(w.Holders)), from: make(map[string]bool)}
	defer f.close()
	root, err := f.target(ctx)
	if err != nil {
		return Got{}, err
	}
	children := images.LimitManifests(images.FilterPlatforms(images.ChildrenHandler(cfg.Content), cfg.Platform), cfg.Platform, 1)
	handlers := []images.Handler{images.HandlerFunc(f.blob), images.SetChildrenMappedLabels(cfg.Content, children, images.ChildGCLabels)}
	if cfg.Visit != nil {
		handlers = append([]images.Handler{cfg.Visit}, handlers...)
	}
	f.image = root.Digest
	if err := images.Dispatch(ctx, images.Handlers(handlers...), semaphore.NewWeighted(fetchMax), root); err != nil {
		return Got{}, err
	}
	got := Got{Target: root, Bytes: f.bytes}
	for name := range f.from {
		got.From = append(got.From, name)
	}
	slices.Sort(got.From)
	return got, nil
}

// fetch is one Fetch under way.
type fetch struct {
	cfg   Config
	want  Want
	image digest.Digest

	mu      sync.Mutex
	why     []error // why a holder is not asked any more
	clients []*grpc.ClientConn
	bytes   int64
	from    map[string]bool
}

func (f *fetch) close() {
	for _, c := range f.clients {
		if c != nil {
			_ = c.Close() // everything that was asked has been answered
		}
	}
}

// each asks the holders in turn until one has done it. A holder that failed is not asked again for this image, unless do
// says with errAgain that it was not to blame.
func (f *fetch) each(ctx context.Context, do func(c *grpc.ClientConn, name string) error) error {
	for i := 0; i < len(f.want.Holders); {
		if f.failed(i) {
			i++
			continue
		}
		c, err := f.client(ctx, i)
		if err == nil {
			err = do(c, f.want.Holders[i].Name)
		}
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.As(err, new(*storeError)):
			return err // another holder would not help
		case errors.Is(err, errAgain):
			continue
		}
		f.fail(i, err)
	}
	return f.exhausted()
}

// errAgain asks the same holder once more.
var errAgain = errors.New("begin again")

// storeError is a failure of this node's own.
type storeError struct{ err error }

func (e *storeError) Error() string { return "store it: " + e.err.Error() }
func (e *storeError) Unwrap() error { return e.err }

func (f *fetch) failed(i int) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.why[i] != nil
}

func (f *fetch) fail(i int, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.why[i] == nil {
		f.why[i] = err
		f.cfg.Log.Warn("a node cannot give an image", "image", f.want.Ref, "from", f.want.Holders[i].Name, "err", err)
	}
}

// exhausted says what each holder said.
func (f *fetch) exhausted() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.why) == 0 {
		return fmt.Errorf("%w: no connected node has it", ErrNoHolder)
	}
	var said []string
	for i, err := range f.why {
		said = append(said, f.want.Holders[i].Name+": "+err.Error())
	}
	return fmt.Errorf("%w: %s", ErrNoHolder, strings.Join(said, "; "))
}

// client is the connection to a holder; it is opened once.
func (f *fetch) client(ctx context.Context, i int) (*grpc.ClientConn, error) {
	f.mu.Lock()
	c := f.clients[i]
	f.mu.Unlock()
	if c != nil {
		return c, nil
	}
	ctx, cancel := context.WithTimeout(ctx, dialMax)
	defer cancel()
	conn, err := f.cfg.Dial(ctx, f.want.Holders[i])
	if err != nil {
		return nil, fmt.Errorf("cannot be reached: %w", err)
	}
	c = rpc.NewClientOn(conn)
	f.mu.Lock()
	defer f.mu.Unlock()
	if old := f.clients[i]; old != nil { // another part of the image was faster
		return old, c.Close()
	}
	f.clients[i] = c
	return c, nil
}

// target asks what the image is.
func (f *fetch) target(ctx context.Context) (root ocispec.Descriptor, err error) {
	err = f.each(ctx, func(c *grpc.ClientConn, _ string) error {
		sub, cancel := context.WithTimeout(ctx, stallMax)
		defer cancel()
		d, err := rpc.Call[descriptor](sub, c, service, callTarget, targetIn{Digest: f.want.Digest, Ref: f.want.Ref})
		if err != nil {
			return errors.New(rpc.Message(err))
		}
		if f.want.Digest != "" && d.Digest != f.want.Digest || d.Digest.Validate() != nil {
			return fmt.Errorf("it answered with other content: %q", d.Digest)
		}
		if !images.IsIndexType(d.MediaType) && !images.IsManifestType(d.MediaType) {
			return fmt.Errorf("what it has is no image but %q", d.MediaType)
		}
		root = ocispec.Descriptor{MediaType: d.MediaType, Digest: d.Digest, Size: d.Size}
		return nil
	})
	return root, err
}

// blob fetches one part of the image, unless it is there; it is an images.HandlerFunc.
func (f *fetch) blob(ctx context.Context, desc ocispec.Descriptor) ([]ocispec.Descriptor, error) {
	if err := desc.Digest.Validate(); err != nil || desc.Size < 0 || desc.Size > metaMax && !images.IsLayerType(desc.MediaType) {
		return nil, fmt.Errorf("a part of the image is not as it should be: %s of %d bytes", desc.MediaType, desc.Size)
	}
	if _, err := f.cfg.Content.Info(ctx, desc.Digest); err == nil {
		return nil, nil
	}
	return nil, f.each(ctx, func(c *grpc.ClientConn, name string) error { return f.take(ctx, c, name, desc) })
}

// take fetches a blob, or its rest, from one holder.
func (f *fetch) take(ctx context.Context, c *grpc.ClientConn, name string, desc ocispec.Descriptor) error {
	ref := remotes.MakeRefKey(ctx, desc) // the same as for pulls, so that no blob comes twice at a time
	w, err := content.OpenWriter(ctx, f.cfg.Content, content.WithRef(ref), content.WithDescriptor(desc))
	if errdefs.IsAlreadyExists(err) {
		return nil
	}
	if err != nil {
		return &storeError{err}
	}
	defer w.Close()
	st, err := w.Status()
	if err == nil && st.Offset > desc.Size {
		st.Offset, err = 0, w.Truncate(0)
	}
	if err != nil {
		return &storeError{err}
	}
	n, err := f.copy(ctx, c, w, desc, st.Offset)
	f.mu.Lock()
	f.bytes += n
	if n > 0 {
		f.from[name] = true
	}
	f.mu.Unlock()
	if err != nil {
		return err
	}
	err = w.Commit(ctx, desc.Size, desc.Digest)
	switch {
	case err == nil || errdefs.IsAlreadyExists(err):
		return nil
	case !errdefs.IsFailedPrecondition(err):
		return &storeError{err}
	}
	_ = w.Close()
	if aerr := f.cfg.Content.Abort(ctx, ref); aerr != nil && !errdefs.IsNotFound(aerr) {
		return &storeError{aerr}
	}
	if st.Offset > 0 {
		return errAgain // the beginning came from elsewhere
	}
	return fmt.Errorf("what came is not what was asked for: %s has another digest", desc.MediaType)
}

var errStalled = fmt.Errorf("nothing came for %s", stallMax)

// copy writes what comes of a blob from an offset on, to its end.
func (f *fetch) copy(ctx context.Context, c *grpc.ClientConn, w io.Writer, desc ocispec.Descriptor, offset int64) (n int64, err error) {
	if offset == desc.Size {
		return 0, nil
	}
	sub, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stall := time.AfterFunc(stallMax, func() { cancel(errStalled) })
	defer stall.Stop()
	said := func(err error) error {
		if cause := context.Cause(sub); errors.Is(cause, errStalled) {
			return cause
		}
		return errors.New(rpc.Message(err))
	}
	s, err := rpc.Open[chunk, blobIn](sub, c, service, callBlob)
	if err == nil {
		err = errors.Join(s.Send(blobIn{Image: f.image, Blob: desc.Digest, Offset: offset}), s.CloseSend())
	}
	if err != nil {
		return 0, said(err)
	}
	for {
		m, err := s.Recv()
		switch {
		case errors.Is(err, io.EOF) && offset+n == desc.Size:
			return n, nil
		case errors.Is(err, io.EOF):
			return n, fmt.Errorf("only %d of %d bytes came", offset+n, desc.Size)
		case err != nil:
			return n, said(err)
		case offset+n+int64(len(m.Data)) > desc.Size:
			return n, fmt.Errorf("more than the %d bytes of %s came", desc.Size, desc.MediaType)
		}
		if _, err := w.Write(m.Data); err != nil {
			return n, &storeError{err}
		}
		n += int64(len(m.Data))
		stall.Reset(stallMax)
	}
}
