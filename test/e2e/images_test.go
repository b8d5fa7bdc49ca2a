package e2e

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"baton/client/api"
	"baton/internal/model/cluster"
)

const everywhere = `services:
  web:
    image: baton.test/web:v1
    healthcheck: {test: [NONE]}
    environment: {ROUND: "%d"}
    x-probes: {ready: {http: {path: /healthz, port: 8080}, every: 500ms, timeout: 2s}}
    deploy: {replicas: 3, update_config: {monitor: 0s, parallelism: 3}}
`

// digests are the contents that nodes have under a reference, by node.
func (m *machine) digests(ref string) map[string]string {
	m.t.Helper()
	out := make(map[string]string)
	for _, i := range batonJSON[[]api.Image](m, "image", "ls") {
		if i.Ref == ref {
			out[i.Node] = i.Digest
		}
	}
	return out
}

// retagged is the archive of an image under another name of the same length, so that the archive keeps its form.
func (m *machine) retagged(image, ref, other string) string {
	m.t.Helper()
	data, err := os.ReadFile(filepath.Join(images, image+".tar"))
	if err != nil {
		m.t.Fatal(err)
	}
	if n := bytes.Count(data, []byte(ref)); n == 0 || len(ref) != len(other) {
		m.t.Fatalf("%s is %d times in %s", ref, n, image)
	}
	path := filepath.Join(m.dir, "retagged.tar")
	if err := os.WriteFile(path, bytes.ReplaceAll(data, []byte(ref), []byte(other)), 0o600); err != nil {
		m.t.Fatal(err)
	}
	return path
}

// An image that was loaded once runs on every node, workers among them; a newer load of the same name wins wherever it
// is made; a removed one is gone everywhere.
func TestImageLoadedOnceServesTheCluster(t *testing.T) {
	c := newCluster(t, 1, 2)
	m1 := c.list[0]
	const ref = "baton.test/web:v1"
	m1.load("web-v1")
	if got := m1.digests(ref); len(got) != 1 || got["m1"] == "" {
		t.Fatalf("after the load: %v, want it on m1 only", got)
	}
	m1.baton("up", "-f", m1.write("compose.yaml", fmt.Sprintf(everywhere, 1)), "-s", "web", "-y")
	spread := func(first string) {
		t.Helper()
		nodes := make(map[string]bool)
		for _, task := range m1.live("web") {
			nodes[task.NodeName] = true
		}
		got := m1.digests(ref)
		if len(nodes) != 3 || len(got) != 3 || got["m1"] != got["w1"] || got["m1"] != got["w2"] || got["m1"] == first {
			t.Fatalf("tasks on %v, images %v: want the same new image on three nodes", nodes, got)
		}
	}
	spread("")
	first := m1.digests(ref)["m1"]
	eventually(t, 10*time.Second, "events tell where it came from", func() error {
		if out := m1.baton("events"); strings.Count(out, "image "+ref+" came from ") < 2 || !strings.Contains(out, "was loaded on m1") {
			return fmt.Errorf("events:\n%s", out)
		}
		return nil
	})

	// Other content under the same name, loaded on a worker.
	m1.baton("image", "load", "--node", "w2", m1.retagged("web-v2", "baton.test/web:v2", ref))
	if got := m1.digests(ref); got["w2"] == first || got["m1"] != first || got["w1"] != first {
		t.Fatalf("after the second load: %v, want another one on w2 only", got)
	}
	m1.baton("up", "-f", m1.write("compose.yaml", fmt.Sprintf(everywhere, 2)), "-s", "web", "-y")
	spread(first)

	m1.baton("down", "-s", "web", "-y")
	eventually(t, 30*time.Second, "the image is removed everywhere", func() error {
		if r := m1.try("image", "rm", ref); r.code != 0 && len(m1.digests(ref)) > 0 {
			return fmt.Errorf("%s%s", r.stdout, r.stderr)
		}
		return nil
	})
	if got := m1.digests(ref); len(got) != 0 {
		t.Errorf("after its removal: %v", got)
	}
	if r := m1.try("up", "-f", m1.write("compose.yaml", fmt.Sprintf(everywhere, 3)), "-s", "web", "-y"); r.code == 0 || !strings.Contains(r.stdout+r.stderr, "baton image load") {
		t.Errorf("a removed image was deployed: exit %d\n%s%s", r.code, r.stdout, r.stderr)
	}
}

// slow bounds what reaches a machine, in bytes per second.
func (c *machines) slow(m *machine, rate uint64) {
	c.t.Helper()
	hub, ns := c.handle(c.hub)
	defer hub.Close()
	defer ns.Close()
	port, err := hub.LinkByName(m.name)
	if err != nil {
		c.t.Fatal(err)
	}
	q := &netlink.Tbf{
		QdiscAttrs: netlink.QdiscAttrs{LinkIndex: port.Attrs().Index, Handle: netlink.MakeHandle(1, 0), Parent: netlink.HANDLE_ROOT},
		Rate:       rate, Buffer: 1 << 18, Limit: 1 << 20,
	}
	if err := hub.QdiscReplace(q); err != nil {
		c.t.Fatal("slow: ", err)
	}
}

// ingested is how much of the blobs that come to a machine is there.
func (m *machine) ingested() (n int64) {
	m.t.Helper()
	files, err := filepath.Glob(filepath.Join(m.data, "containerd", "root", "io.containerd.content.v1.content", "ingest", "*", "data"))
	if err != nil {
		m.t.Fatal(err)
	}
	for _, f := range files {
		if st, err := os.Stat(f); err == nil {
			n += st.Size()
		}
	}
	return n
}

const databaseOn = `services:
  db%[1]s:
    image: postgres:15
    environment: {POSTGRES_PASSWORD: none}
    deploy: {placement: {constraints: [node.labels.place == %[1]s]}}
`

// A node that dies while it gives an image is replaced by another one that has it; when none is left, the task says so and goes
// on once one is back.
func TestImageSourceDies(t *testing.T) {
	c := newCluster(t, 1, 3)
	m1, w1, w2 := c.by("m1"), c.by("w1"), c.by("w2")
	for _, m := range c.list {
		m1.baton("node", "label", m.name, "place="+m.name)
	}
	m1.baton("image", "load", "--node", "w2", filepath.Join(images, "postgres.tar"))
	m1.baton("up", "-f", m1.write("compose.yaml", fmt.Sprintf(databaseOn, "m1")), "-s", "one", "-y")

	c.slow(w1, 10<<20)
	m1.baton("up", "-f", m1.write("compose.yaml", fmt.Sprintf(databaseOn, "w1")), "-s", "two", "-y", "-d")
	eventually(t, 60*time.Second, "part of the image is on its way", func() error {
		if n := w1.ingested(); n < 8<<20 {
			return fmt.Errorf("%d bytes are there", n)
		}
		return nil
	})
	c.cut(w2, true)
	eventually(t, 120*time.Second, "the database runs", func() error {
		if live := m1.live("dbw1"); len(live) != 1 || !live[0].Ready {
			return fmt.Errorf("tasks:\n%s", m1.baton("ps", "-a"))
		}
		return nil
	})
	if out := m1.baton("events"); !strings.Contains(out, "came from m1 and w2") {
		t.Errorf("no event tells of both nodes:\n%s", out)
	}

	// Nobody is left: the image is on w2 only, and w2 is away.
	c.cut(w2, false)
	c.ready(4)
	m1.baton("image", "load", "--node", "w2", filepath.Join(images, "redis.tar"))
	c.cut(w2, true)
	eventually(t, 60*time.Second, "w2 is known to be away", func() error {
		nodes := decode[[]api.Node](t, m1.baton("node", "ls", "-o", "json"))
		if i := slices.IndexFunc(nodes, func(n api.Node) bool { return n.Name == "w2" }); nodes[i].State == cluster.NodeReady {
			return fmt.Errorf("it is ready")
		}
		return nil
	})
	file := m1.write("compose.yaml", "services: {cache: {image: 'redis:7', deploy: {placement: {constraints: [node.labels.place == w3]}}}}")
	m1.baton("up", "-f", file, "-s", "three", "-y", "-d")
	eventually(t, 60*time.Second, "the task says what is missing", func() error {
		if out := m1.baton("why", "three/cache"); !strings.Contains(out, "was loaded with `baton image load`, but cannot be fetched") {
			return fmt.Errorf("why:\n%s", out)
		}
		return nil
	})
	c.cut(w2, false)
	eventually(t, 120*time.Second, "the task runs once a node that has the image is back", func() error {
		if live := m1.live("cache"); len(live) != 1 {
			return fmt.Errorf("tasks:\n%s", m1.baton("ps", "-a"))
		}
		return nil
	})
}
