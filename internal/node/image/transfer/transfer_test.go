package transfer

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"baton/internal/model/cluster"
	"baton/internal/wire/agentapi"
	"baton/internal/wire/rpc"
)

func TestMain(m *testing.M) {
	if err := log.SetLevel("error"); err != nil { // the store warns of file systems without verity
		panic(err)
	}
	goleak.VerifyTestMain(m)
}

// labels keeps the labels of blobs, which a store without a database has no place for.
type labels struct {
	mu sync.Mutex
	m  map[digest.Digest]map[string]string
}

// Get implements local.LabelStore.
func (l *labels) Get(d digest.Digest) (map[string]string, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.m[d], nil
}

// Set implements local.LabelStore.
func (l *labels) Set(d digest.Digest, v map[string]string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.m[d] = v
	return nil
}

// Update implements local.LabelStore.
func (l *labels) Update(d digest.Digest, v map[string]string) (map[string]string, error) {
	return v, l.Set(d, v)
}

func newStore(t testing.TB) content.Store {
	t.Helper()
	s, err := local.NewLabeledStore(t.TempDir(), &labels{m: make(map[digest.Digest]map[string]string)})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// testImage is an image in memory.
type testImage struct {
	root   ocispec.Descriptor
	blobs  map[digest.Digest][]byte
	layers []digest.Digest
	other  []digest.Digest // what belongs to another platform
}

func (i *testImage) add(mediaType string, data []byte) ocispec.Descriptor {
	d := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}
	i.blobs[d.Digest] = data
	return d
}

func (i *testImage) addJSON(mediaType string, v any) ocispec.Descriptor {
	data, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return i.add(mediaType, data)
}

// newImage makes an index of two platforms with random layers of these sizes.
func newImage(seed uint64, sizes ...int) *testImage {
	rng := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)})
	img := &testImage{blobs: make(map[digest.Digest][]byte)}
	index := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex}
	for _, p := range []ocispec.Platform{{OS: "linux", Architecture: "amd64"}, {OS: "linux", Architecture: "s390x"}} {
		m := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest}
		m.Config = img.addJSON(ocispec.MediaTypeImageConfig, ocispec.Image{Platform: p})
		for _, size := range sizes {
			data := make([]byte, size)
			_, _ = rng.Read(data) // never fails
			l := img.add(ocispec.MediaTypeImageLayer, data)
			m.Layers = append(m.Layers, l)
			if p.Architecture == "amd64" {
				img.layers = append(img.layers, l.Digest)
			} else {
				img.other = append(img.other, l.Digest)
			}
		}
		d := img.addJSON(ocispec.MediaTypeImageManifest, m)
		d.Platform = &p
		index.Manifests = append(index.Manifests, d)
	}
	img.root = img.addJSON(ocispec.MediaTypeImageIndex, index)
	return img
}

// node is a machine that gives images; what it has lies in memory.
type node struct {
	name   string
	images map[string]ocispec.Descriptor
	blobs  map[digest.Digest][]byte
	// dieAfter ends its connections after so many bytes; negative: never.
	dieAfter int64
	gave     atomic.Int64
	server   *Server
}

func newNode(name string, imgs map[string]*testImage) *node {
	n := &node{name: name, images: make(map[string]ocispec.Descriptor), blobs: make(map[digest.Digest][]byte), dieAfter: -1}
	for ref, i := range imgs {
		n.images[ref] = i.root
		for d, b := range i.blobs {
			n.blobs[d] = b
		}
	}
	n.server = NewServer(func() (Shelf, error) { return n, nil })
	return n
}

func (n *node) ByDigest(_ context.Context, d digest.Digest) (ocispec.Descriptor, error) {
	for _, i := range n.images {
		if i.Digest == d {
			return i, nil
		}
	}
	return ocispec.Descriptor{}, errdefs.ErrNotFound
}

func (n *node) ByRef(_ context.Context, ref string) (ocispec.Descriptor, error) {
	if d, ok := n.images[ref]; ok {
		return d, nil
	}
	return ocispec.Descriptor{}, errdefs.ErrNotFound
}

func (n *node) Content() content.Provider { return n }

func (n *node) ReaderAt(_ context.Context, d ocispec.Descriptor) (content.ReaderAt, error) {
	b, ok := n.blobs[d.Digest]
	if !ok {
		return nil, errdefs.ErrNotFound
	}
	return &reader{n: n, r: bytes.NewReader(b)}, nil
}

type reader struct {
	n *node
	r *bytes.Reader
}

func (r *reader) ReadAt(p []byte, off int64) (int, error) {
	if r.n.dieAfter >= 0 && r.n.gave.Load()+int64(len(p)) > r.n.dieAfter {
		return 0, errors.New("the disk is on fire")
	}
	n, err := r.r.ReadAt(p, off)
	r.n.gave.Add(int64(n))
	return n, err
}
func (r *reader) Size() int64  { return r.r.Size() }
func (r *reader) Close() error { return nil }

// world lets nodes reach each other over pipes.
type world struct {
	t     testing.TB
	nodes []*node
	lis   []*pipes
}

func newWorld(t testing.TB, nodes ...*node) *world {
	w := &world{t: t, nodes: nodes}
	for _, n := range nodes {
		l := &pipes{conns: make(chan net.Conn), done: make(chan struct{})}
		w.lis = append(w.lis, l)
		g := rpc.NewServer()
		n.server.Register(g)
		ctx, cancel := context.WithCancel(context.Background())
		ended := make(chan error, 1)
		go func() { ended <- rpc.Serve(ctx, g, l) }()
		t.Cleanup(func() {
			cancel()
			if err := <-ended; err != nil {
				t.Error(err)
			}
		})
	}
	return w
}

type pipes struct {
	conns chan net.Conn
	done  chan struct{}
	shut  atomic.Bool
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.done:
		return nil, net.ErrClosed
	}
}
func (p *pipes) Close() error {
	if !p.shut.Swap(true) {
		close(p.done)
	}
	return nil
}
func (p *pipes) Addr() net.Addr { return &net.UnixAddr{Name: "pipe"} }

func (w *world) fetch(to content.Store, want Want) (Got, error) {
	for i, n := range w.nodes {
		want.Holders = append(want.Holders, agentapi.ImageHolder{Node: cluster.ID{byte(i + 1)}, Name: n.name})
	}
	return Fetch(w.t.Context(), Config{
		Content: to, Platform: platforms.Only(ocispec.Platform{OS: "linux", Architecture: "amd64"}), Log: slog.New(slog.DiscardHandler),
		Dial: func(ctx context.Context, h agentapi.ImageHolder) (net.Conn, error) {
			l := w.lis[h.Node[0]-1]
			here, there := net.Pipe()
			select {
			case l.conns <- there:
				return here, nil
			case <-l.done:
				return nil, errors.New("connection refused")
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		},
	}, want)
}

// complete checks that a store has the image for its platform, bit by bit, and nothing of the other one.
func complete(t testing.TB, s content.Store, i *testImage) {
	t.Helper()
	for _, d := range append([]digest.Digest{i.root.Digest}, i.layers...) {
		b, err := content.ReadBlob(t.Context(), s, ocispec.Descriptor{Digest: d, Size: int64(len(i.blobs[d]))})
		if err != nil || !bytes.Equal(b, i.blobs[d]) {
			t.Errorf("%s is not what it was: %v", d, err)
		}
	}
	for _, d := range i.other {
		if _, err := s.Info(t.Context(), d); err == nil && !slices.Contains(i.layers, d) {
			t.Errorf("%s of another platform was fetched", d)
		}
	}
}

const ref = "baton.test/app:1"

func TestFetch(t *testing.T) {
	img := newImage(1, 0, 10, chunkSize, 3*chunkSize+17)
	a := newNode("a", map[string]*testImage{ref: img})
	w := newWorld(t, a)
	for name, want := range map[string]Want{"by digest": {Ref: ref, Digest: img.root.Digest}, "by name": {Ref: ref}} {
		t.Run(name, func(t *testing.T) {
			s := newStore(t)
			got, err := w.fetch(s, want)
			if err != nil || got.Target.Digest != img.root.Digest || !slices.Equal(got.From, []string{"a"}) {
				t.Fatalf("got %+v, %v", got, err)
			}
			complete(t, s, img)
			again, err := w.fetch(s, want)
			if err != nil || again.Bytes != 0 {
				t.Errorf("again: %+v, %v, want nothing to come", again, err)
			}
		})
	}
}

// What a node gives wrongly is not stored, and another node gives it.
func TestCorruptBlobIsRefused(t *testing.T) {
	img := newImage(2, 2*chunkSize)
	bad, good := newNode("bad", map[string]*testImage{ref: img}), newNode("good", map[string]*testImage{ref: img})
	twisted := bytes.Clone(img.blobs[img.layers[0]])
	twisted[chunkSize+1] ^= 1
	bad.blobs[img.layers[0]] = twisted
	s := newStore(t)
	if _, err := newWorld(t, bad).fetch(s, Want{Ref: ref, Digest: img.root.Digest}); !errors.Is(err, ErrNoHolder) || !strings.Contains(err.Error(), "another digest") {
		t.Fatalf("from the bad one: %v, want it refused", err)
	}
	if _, err := s.Info(t.Context(), img.layers[0]); err == nil {
		t.Fatal("the corrupt blob is in the store")
	}
	got, err := newWorld(t, bad, good).fetch(s, Want{Ref: ref, Digest: img.root.Digest})
	if err != nil {
		t.Fatalf("%+v, %v", got, err)
	}
	complete(t, s, img)
}

// A node that dies in the middle is replaced by another one, which gives the rest only.
func TestAnotherNodeGoesOn(t *testing.T) {
	img := newImage(3, 8*chunkSize)
	dying, living := newNode("dying", map[string]*testImage{ref: img}), newNode("living", map[string]*testImage{ref: img})
	dying.dieAfter = 5 * chunkSize
	s := newStore(t)
	got, err := newWorld(t, dying, living).fetch(s, Want{Ref: ref, Digest: img.root.Digest})
	if err != nil || !slices.Equal(got.From, []string{"dying", "living"}) {
		t.Fatalf("%+v, %v, want something from both", got, err)
	}
	complete(t, s, img)
	if n := living.gave.Load(); n > 5*chunkSize {
		t.Errorf("the second one gave %d bytes, want the rest of the layer only", n)
	}
}

// A half that came from a liar does not spoil what an honest node gives after it.
func TestHonestNodeAfterALiarThatDied(t *testing.T) {
	img := newImage(4, 8*chunkSize)
	liar, honest := newNode("liar", map[string]*testImage{ref: img}), newNode("honest", map[string]*testImage{ref: img})
	liar.blobs[img.layers[0]] = make([]byte, 8*chunkSize)
	liar.dieAfter = 5 * chunkSize
	s := newStore(t)
	if _, err := newWorld(t, liar, honest).fetch(s, Want{Ref: ref, Digest: img.root.Digest}); err != nil {
		t.Fatal(err)
	}
	complete(t, s, img)
}

func TestFetchFailsClearly(t *testing.T) {
	img, other := newImage(5, 100), newImage(6, 100)
	dying := newNode("dying", map[string]*testImage{ref: img})
	dying.dieAfter = 0
	for name, c := range map[string]struct {
		nodes []*node
		want  Want
		text  string
	}{
		"nobody":         {nil, Want{Ref: ref}, "no connected node has it"},
		"other content":  {[]*node{newNode("a", map[string]*testImage{ref: other})}, Want{Ref: ref, Digest: img.root.Digest}, "a: it does not have the image"},
		"other name":     {[]*node{newNode("a", map[string]*testImage{"x": other})}, Want{Ref: ref}, "a: it does not have the image"},
		"all die":        {[]*node{dying}, Want{Ref: ref, Digest: img.root.Digest}, "dying: the disk is on fire"},
		"invalid digest": {[]*node{newNode("a", nil)}, Want{Ref: ref, Digest: "sha256:../../etc/passwd"}, "a: this is no digest"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := newWorld(t, c.nodes...).fetch(newStore(t), c.want)
			if !errors.Is(err, ErrNoHolder) || !strings.Contains(err.Error(), c.text) {
				t.Errorf("got %v, want %q", err, c.text)
			}
		})
	}
}

// An image without this node's platform is told from one that nobody has.
func TestOtherPlatform(t *testing.T) {
	img := newImage(7, 100)
	w := newWorld(t, newNode("a", map[string]*testImage{ref: img}))
	_, err := Fetch(t.Context(), Config{
		Content: newStore(t), Platform: platforms.Only(ocispec.Platform{OS: "linux", Architecture: "riscv64"}), Log: slog.New(slog.DiscardHandler),
		Dial: func(context.Context, agentapi.ImageHolder) (net.Conn, error) {
			here, there := net.Pipe()
			w.lis[0].conns <- there
			return here, nil
		},
	}, Want{Ref: ref, Digest: img.root.Digest, Holders: []agentapi.ImageHolder{{Name: "a"}}})
	if !errdefs.IsNotFound(err) || errors.Is(err, ErrNoHolder) {
		t.Errorf("got %v, want not found of this platform", err)
	}
}

// Only what belongs to the image that was named is given away, even though the node has more.
func TestOnlyBlobsOfTheImage(t *testing.T) {
	img, other := newImage(8, 100), newImage(9, 100)
	n := newNode("a", map[string]*testImage{ref: img, "other": other})
	loose := []byte("of no image")
	n.blobs[digest.FromBytes(loose)] = loose
	w := newWorld(t, n)
	here, there := net.Pipe()
	w.lis[0].conns <- there
	c := rpc.NewClientOn(here)
	defer c.Close()
	for name, in := range map[string]struct {
		blobIn
		want string
	}{
		"own":            {blobIn{Image: img.root.Digest, Blob: img.layers[0]}, ""},
		"other platform": {blobIn{Image: img.root.Digest, Blob: img.other[0]}, ""},
		"other image":    {blobIn{Image: img.root.Digest, Blob: other.layers[0]}, "no such part"},
		"loose":          {blobIn{Image: img.root.Digest, Blob: digest.FromBytes(loose)}, "no such part"},
		"as its own":     {blobIn{Image: digest.FromBytes(loose), Blob: digest.FromBytes(loose)}, "does not have the image"},
		"no image":       {blobIn{Blob: img.layers[0]}, "is missing"},
		"beyond the end": {blobIn{Image: img.root.Digest, Blob: img.layers[0], Offset: 101}, "beyond the end"},
		"negative":       {blobIn{Image: img.root.Digest, Blob: img.layers[0], Offset: -1}, "beyond the end"},
	} {
		t.Run(name, func(t *testing.T) {
			s, err := rpc.Open[chunk, blobIn](t.Context(), c, service, callBlob)
			if err == nil {
				err = errors.Join(s.Send(in.blobIn), s.CloseSend())
			}
			for err == nil {
				_, err = s.Recv()
			}
			if errors.Is(err, io.EOF) != (in.want == "") || !strings.Contains(rpc.Message(err), in.want) {
				t.Errorf("got %v, want %q", err, in.want)
			}
		})
	}
}

// Whatever nodes lie about and whenever they die: the image is complete and right, or the fetch says why not; and it is
// complete when one node is well.
func TestFetchProperties(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		img := newImage(uint64(rapid.IntRange(0, 50).Draw(rt, "image")), rapid.SliceOfN(rapid.IntRange(0, 2*chunkSize), 1, 3).Draw(rt, "layers")...)
		var nodes []*node
		well := false
		for i := range rapid.IntRange(1, 3).Draw(rt, "nodes") {
			n := newNode(fmt.Sprint("n", i), map[string]*testImage{ref: img})
			switch rapid.SampledFrom([]string{"well", "dies", "lies", "lacks"}).Draw(rt, "kind") {
			case "well":
				well = true
			case "dies":
				n.dieAfter = int64(rapid.IntRange(0, 4*chunkSize).Draw(rt, "after"))
				well = well || n.dieAfter < 0
			case "lies":
				d := rapid.SampledFrom(append([]digest.Digest{img.root.Digest}, img.layers...)).Draw(rt, "about")
				n.blobs[d] = append(bytes.Clone(img.blobs[d]), 'x')
				if len(img.blobs[d]) > 0 {
					n.blobs[d][0] ^= 1
				}
			case "lacks":
				delete(n.blobs, img.layers[0])
			}
			nodes = append(nodes, n)
		}
		s := newStore(t)
		_, err := newWorld(t, nodes...).fetch(s, Want{Ref: ref, Digest: img.root.Digest})
		switch {
		case err == nil:
			complete(t, s, img)
		case well:
			rt.Fatalf("one node is well, and yet: %v", err)
		case !errors.Is(err, ErrNoHolder):
			rt.Fatalf("got %v, want that no node could give it", err)
		}
	})
}
