package e2e

import (
	"archive/tar"
	"bytes"
	"encoding/base64"
	order "encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/sys/unix"
)

// markers are what nobody on the wire may read, by what they are. None is part of another.
var markers = map[string]string{
	"secret":       "marker-of-the-secret-Xq7",
	"other secret": "marker-of-another-secret-Rw2",
	"config":       "marker-of-the-config-Bn4",
	"environment":  "marker-of-the-environment-Zt9",
	"log line":     "marker-of-the-log-line-Kd3",
	"output":       "marker-of-a-command-output-Vp6",
	"image layer":  "marker-of-the-image-layer-Hc8",
	"body":         "marker-of-an-application-body-Mf5",
}

// often repeats a marker, so that not every copy of it can lie across two packets.
func often(marker string) string { return strings.Repeat(marker+"\n", 50) }

// capture looks at every packet of the links that it was given.
type capture struct {
	t        *testing.T
	patterns map[string][][]byte // by marker
	links    []*capturedLink
	readers  sync.WaitGroup

	mu     sync.Mutex
	closed bool
	err    error
}

// capturedLink is one socket of a capture, and what it saw; the capture's lock guards that.
type capturedLink struct {
	name           string
	fd             int
	seen           map[string]int // packets, by marker
	packets, bytes int
}

// newCapture looks for the markers, as they are and in base64, in which the API's JSON has contents.
func newCapture(t *testing.T) *capture {
	c := &capture{t: t, patterns: make(map[string][][]byte)}
	for what, m := range markers {
		c.patterns[what] = [][]byte{[]byte(m)}
		for shift := range 3 { // where the marker begins within a group of three bytes changes its text; what its neighbours share is cut off
			text := base64.RawStdEncoding.EncodeToString([]byte(strings.Repeat("-", shift) + m))
			c.patterns[what] = append(c.patterns[what], []byte(text[4:len(text)-4]))
		}
	}
	t.Cleanup(c.close)
	return c
}

// listen captures on one link of a namespace; without one, on all.
func (c *capture) listen(name, ns, link string) {
	c.t.Helper()
	all := order.BigEndian.Uint16(order.NativeEndian.AppendUint16(nil, unix.ETH_P_ALL))
	l := &capturedLink{name: name, seen: make(map[string]int)}
	err := inNamespace(ns, func() (err error) {
		if l.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(all)); err != nil {
			return err
		}
		c.links = append(c.links, l)
		if err := unix.SetsockoptInt(l.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20); err != nil || link == "" {
			return err
		}
		i, err := net.InterfaceByName(link)
		if err != nil {
			return err
		}
		return unix.Bind(l.fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: i.Index})
	})
	if err != nil {
		c.t.Fatal("capture: ", err)
	}
	c.readers.Go(func() { c.read(l) })
}

// read looks at packets until the capture is closed.
func (c *capture) read(l *capturedLink) {
	b := make([]byte, 1<<18)
	for {
		ready, err := unix.Poll([]unix.PollFd{{Fd: int32(l.fd), Events: unix.POLLIN}}, 100)
		c.mu.Lock()
		if err != nil && err != unix.EINTR {
			c.err, c.closed = err, true
		}
		end := c.closed
		c.mu.Unlock()
		if end {
			return
		}
		if ready <= 0 {
			continue
		}
		n, _, err := unix.Recvfrom(l.fd, b, unix.MSG_DONTWAIT)
		if err == unix.EAGAIN {
			continue
		}
		c.look(l, b[:max(n, 0)], err)
	}
}

func (c *capture) look(l *capturedLink, packet []byte, err error) {
	var found []string
	for what, patterns := range c.patterns {
		if slices.ContainsFunc(patterns, func(p []byte) bool { return bytes.Contains(packet, p) }) {
			found = append(found, what)
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	l.packets++
	l.bytes += len(packet)
	if err != nil && c.err == nil {
		c.err = err
	}
	for _, what := range found {
		l.seen[what]++
	}
}

// each calls f for every link with what it saw so far. No packet may have been dropped unseen.
func (c *capture) each(f func(capturedLink)) {
	c.t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		c.t.Fatal("capture: ", c.err)
	}
	for _, l := range c.links {
		s, err := unix.GetsockoptTpacketStats(l.fd, unix.SOL_PACKET, unix.PACKET_STATISTICS)
		if err != nil || s.Drops > 0 {
			c.t.Fatalf("capture on %s: %v, %+v", l.name, err, s)
		}
		f(*l)
	}
}

func (c *capture) close() {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	c.readers.Wait()
	for _, l := range c.links {
		_ = unix.Close(l.fd)
	}
}

// unpacked opens an archive in OCI's layout that has one image.
func unpacked(t *testing.T, path string) v1.Image {
	t.Helper()
	dir := t.TempDir()
	if out, err := exec.Command("tar", "-C", dir, "-xf", path).CombinedOutput(); err != nil {
		t.Fatalf("unpack %s: %v: %s", path, err, out)
	}
	index, err := layout.ImageIndexFromPath(dir)
	if err != nil {
		t.Fatal(err)
	}
	manifest, err := index.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	img, err := index.Image(manifest.Manifests[0].Digest)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// marked writes an archive of busybox with one more layer, not compressed, that has the marker.
func marked(t *testing.T, ref string) string {
	t.Helper()
	var layer bytes.Buffer
	w := tar.NewWriter(&layer)
	content := []byte(often(markers["image layer"]))
	err := w.WriteHeader(&tar.Header{Name: "marker", Mode: 0o644, Size: int64(len(content)), Typeflag: tar.TypeReg})
	if err == nil {
		_, err = w.Write(content)
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	img, err := mutate.AppendLayers(unpacked(t, filepath.Join(images, "busybox.tar")), static.NewLayer(layer.Bytes(), types.DockerUncompressedLayer))
	if err != nil {
		t.Fatal(err)
	}
	tag, err := name.NewTag(ref)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "marked.tar")
	if err := tarball.WriteToFile(path, tag, img); err != nil {
		t.Fatal(err)
	}
	return path
}

const markedFile = `name: wire
services:
  web:
    image: baton.test/web:v1
    environment: {MARK: "%[2]s"}
    secrets: [key]
    configs: [{source: body, target: /body}]
    healthcheck: {test: [NONE]}
    deploy: {placement: {constraints: [node.labels.place == away]}}
  box:
    image: baton.test/marked:v1
    command: [sh, -c, 'for i in $$(seq 50); do echo "$$LINE"; done; exec sleep 1000']
    environment: {LINE: "%[1]s"}
    secrets: [key]
    configs: [{source: conf, target: /conf}]
    healthcheck: {test: [NONE]}
    stop_grace_period: 1s
    deploy: {mode: global}
configs: {conf: {file: ./conf.txt}, body: {file: ./body.txt}}
secrets: {key: {external: true}}
`

// Nobody who listens between the machines, or on a machine's port, reads a secret, a config, an environment, a log, a command's output,
// an image or what tasks say to each other.
func TestNothingIsReadableOnTheWire(t *testing.T) {
	c := newCluster(t, 3, 1)
	m1, m2, w1 := c.by("m1"), c.by("m2"), c.by("w1")
	wire := newCapture(t)
	wire.listen("the switch", c.hub, "")
	for _, m := range c.list {
		wire.listen(m.name+" eth0", m.ns, "eth0")
		wire.listen(m.name+" lo", m.ns, "lo")
	}
	// A user elsewhere, whose manager neither leads nor has the tasks: everything goes over the network more than once.
	config := "BATON_CONFIG=" + t.TempDir()
	if r := c.stranger(m2.baton("context", "export", "wire", "--user", "ann", "-y"), []string{config}, "context", "import", "-"); r.code != 0 {
		t.Fatal(r.stderr)
	}
	user := func(stdin string, args ...string) string {
		t.Helper()
		r := c.stranger(stdin, []string{config}, append([]string{"--context", "wire"}, args...)...)
		if r.code != 0 {
			t.Fatalf("%v: exit %d\n%s%s", args, r.code, r.stdout, r.stderr)
		}
		return r.stdout
	}
	m1.write("conf.txt", often(markers["config"]))
	m1.write("body.txt", often(markers["body"]))
	file := m1.write("compose.yaml", fmt.Sprintf(markedFile, markers["log line"], markers["environment"]))
	user(often(markers["secret"]), "secret", "set", "key", "-")
	user(often(markers["other secret"]), "secret", "set", "other", "-")
	user("", "node", "label", "w1", "place=away")
	user("", "image", "load", "--node", "m1", marked(t, "baton.test/marked:v1"))
	user("", "image", "load", "--node", "m1", filepath.Join(images, "web-v1.tar"))
	user("", "up", "-f", file, "-y")
	if got := m1.digests("baton.test/marked:v1"); len(got) != len(c.list) {
		t.Fatalf("the image is on %v, want it on all nodes", got)
	}
	if files := filesWith(t, filepath.Join(w1.data, "containerd", "root", "io.containerd.content.v1.content"), markers["image layer"]); len(files) == 0 {
		t.Fatal("w1 has no blob with the marker as it is: the image says nothing about the way it came")
	}
	if out := user("", "logs", "box"); strings.Count(out, markers["log line"]) != 50*len(c.list) {
		t.Fatalf("logs:\n%s", out)
	}
	away := m1.on("box", "w1")[0].ID.String()
	for want, command := range map[string][]string{"secret": {"cat", "/run/secrets/key"}, "config": {"cat", "/conf"}, "output": {"echo", often(markers["output"])}} {
		if out := user("", append([]string{"exec", away, "--"}, command...)...); !strings.Contains(out, markers[want]) {
			t.Fatalf("exec %v: %q", command, out)
		}
	}
	from := m2.netns(m1.on("box", "m2")[0].ID)
	for what, path := range map[string]string{"body": "/file?path=/body", "secret": "/file?path=/run/secrets/key", "environment": "/env"} {
		r := startLoad(t, from, request{URL: "http://web:8080" + path, Workers: 1, Count: 3, DNS: true, Want: []string{markers[what]}}).wait()
		if r.Failures > 0 {
			t.Fatalf("a task asks another one for %s: %v", path, r.Errors)
		}
	}
	wire.each(func(l capturedLink) {
		t.Logf("%-10s %6d packets, %5.1f MiB, readable: %v", l.name, l.packets, float64(l.bytes)/(1<<20), l.seen)
		if len(l.seen) > 0 {
			t.Errorf("on %s somebody reads %v", l.name, l.seen)
		}
		if strings.HasSuffix(l.name, "eth0") && l.packets < 100 {
			t.Errorf("only %d packets were captured on %s", l.packets, l.name)
		}
	})
	c.wouldBeSeen(wire)
}

// wouldBeSeen says all markers in clear on every link, and wants each captured there.
func (c *machines) wouldBeSeen(wire *capture) {
	c.t.Helper()
	for _, m := range c.list {
		for _, from := range []string{c.hub, m.ns} { // through the switch, and over lo
			var l net.Listener
			err := inNamespace(m.ns, func() (err error) {
				l, err = net.Listen("tcp", m.ip+":9900")
				return err
			})
			if err != nil {
				c.t.Fatal(err)
			}
			heard := make(chan error, 1)
			go func() {
				conn, err := l.Accept()
				if err == nil {
					_, err = io.Copy(io.Discard, conn)
					_ = conn.Close()
				}
				heard <- err
			}()
			err = inNamespace(from, func() error {
				conn, err := net.DialTimeout("tcp", m.ip+":9900", 5*time.Second)
				if err != nil {
					return err
				}
				defer conn.Close()
				for _, what := range slices.Sorted(maps.Keys(markers)) {
					if _, err := io.WriteString(conn, often(markers[what])); err != nil {
						return err
					}
				}
				return nil
			})
			if err != nil {
				_ = l.Close() // nobody comes
			}
			err = errors.Join(err, <-heard)
			_ = l.Close()
			if err != nil {
				c.t.Fatal(err)
			}
		}
	}
	eventually(c.t, 10*time.Second, "what is said in clear is captured", func() (err error) {
		wire.each(func(l capturedLink) {
			if len(l.seen) != len(markers) {
				err = fmt.Errorf("on %s: %v", l.name, l.seen)
			}
		})
		return err
	})
}
