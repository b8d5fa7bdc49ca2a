package e2e

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"

	"baton/build/bundle"
	"baton/internal/model/cluster"
)

// buildWithEdge builds baton as nextVersion with another baton-edge in its bundle.
func buildWithEdge(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	blob, err := filepath.Abs("../../build/bundle/blob")
	if err != nil {
		t.Fatal(err)
	}
	goBuild := func(out, pkg string, flags ...string) {
		t.Helper()
		cmd := exec.Command("go", append(append([]string{"build", "-trimpath"}, flags...), "-o", out, pkg)...)
		cmd.Env = append(cmd.Environ(), "CGO_ENABLED=0", "GOPROXY=off")
		if b, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("build: %v\n%s", err, b)
		}
	}
	goBuild(filepath.Join(dir, bundle.Edge), "baton/cmd/"+bundle.Edge, "-buildvcs=false", "-ldflags", "-s -w -buildid=another")
	data, err := os.ReadFile(filepath.Join(dir, bundle.Edge))
	if err != nil {
		t.Fatal(err)
	}
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest))
	if err != nil {
		t.Fatal(err)
	}
	manifest := make(map[string]any)
	text, err := os.ReadFile(filepath.Join(blob, "manifest.json"))
	if err == nil {
		err = json.Unmarshal(text, &manifest)
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range manifest["binaries"].([]any) {
		if b := b.(map[string]any); b["name"] == bundle.Edge {
			sum := sha256.Sum256(data)
			b["size"], b["sha256"] = len(data), hex.EncodeToString(sum[:])
		}
	}
	replaced := map[string]string{}
	for name, content := range map[string]func() []byte{
		bundle.Edge + ".zst": func() []byte { return enc.EncodeAll(data, nil) },
		"manifest.json":      func() []byte { out, _ := json.Marshal(manifest); return out },
	} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, content(), 0o600); err != nil {
			t.Fatal(err)
		}
		replaced[filepath.Join(blob, name)] = path
	}
	overlay, err := json.Marshal(map[string]any{"Replace": replaced})
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "overlay.json"), overlay, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(dir, "baton")
	goBuild(out, "baton/cmd/baton", "-overlay", filepath.Join(dir, "overlay.json"), "-ldflags",
		fmt.Sprintf("-X baton/internal/process.Version=%s -X baton/internal/model/cluster.levelText=%d", nextVersion, cluster.LevelNewest()))
	return out
}

// edges are the pids of a machine's edge processes.
func (m *machine) edges() (pids []int) {
	m.t.Helper()
	lines, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		m.t.Fatal(err)
	}
	for _, path := range lines {
		b, err := os.ReadFile(path)
		args := strings.Split(string(b), "\x00")
		if err != nil || filepath.Base(args[0]) != bundle.Edge || !strings.HasPrefix(args[0], m.data+"/") {
			continue
		}
		var pid int
		if _, err := fmt.Sscanf(path, "/proc/%d/", &pid); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}

// edge is the pid of a machine's only edge process.
func (m *machine) edge() int {
	m.t.Helper()
	pids := m.edges()
	if len(pids) != 1 {
		m.t.Fatalf("%s has the edges %v, want one", m.name, pids)
	}
	return pids[0]
}

// heldSockets are WebSockets through every machine that echo all the time and must not break.
func (c *machines) heldSockets() map[string]*load {
	loads := make(map[string]*load)
	for _, m := range c.list {
		r := through(m, "/ws")
		r.Socket, r.Workers, r.Pause = socketKept, 2, 100*time.Millisecond
		loads[m.name+" kept WebSocket"] = startLoad(c.t, c.hub, r)
	}
	return loads
}

// Clients of the ingress ports notice nothing of a baton that is restarted, killed or replaced by a build with another edge: no request
// fails, no WebSocket breaks. When the edge itself is killed, new connections wait for the next one. It has no rights, and a
// reset, with which every test ends, leaves nothing of it.
func TestIngressOutlivesBaton(t *testing.T) {
	next := buildWithEdge(t)
	c := newCluster(t, 1, 2)
	m1, w1, w2 := c.list[0], c.by("w1"), c.by("w2")
	c.loadAll("web-v1")
	m1.baton("up", "-f", m1.write("compose.yaml", ingressWeb(0)), "-s", "web", "-y")
	for _, m := range c.list {
		eventually(t, 20*time.Second, m.name+" has an edge", func() error {
			if n := len(m.edges()); n != 1 {
				return fmt.Errorf("%d of them", n)
			}
			return nil
		})
	}
	held := c.heldSockets()
	for _, event := range []change{
		{"baton restarted", func() {
			pid := w1.edge()
			w1.stop()
			w1.launch()
			w1.awaitReady()
			if now := w1.edge(); now != pid {
				t.Errorf("w1's edge is %d, before the restart it was %d", now, pid)
			}
		}},
		{"baton killed", func() {
			pid := w2.edge()
			w2.kill()
			w2.launch()
			w2.awaitReady()
			if now := w2.edge(); now != pid {
				t.Errorf("w2's edge is %d, before the kill it was %d", now, pid)
			}
		}},
		{"baton upgraded", func() { c.takeOver(next) }},
	} {
		loads := c.ingressLoads()
		event.do()
		c.settled(m1, "web", time.Minute)
		judgeLoads(t, event.name, loads)
	}
	judgeLoads(t, "all of that", held)
	m1.edgeIsConfined()
	c.killEdge(w2)
	m1.baton("down", "-y", "web")
	eventually(t, 20*time.Second, "the port is closed", func() error {
		if _, err := m1.ask(c.hub, "http://"+m1.ip+"/"); err == nil || !strings.Contains(err.Error(), "refused") {
			return fmt.Errorf("it answers: %v", err)
		}
		return nil
	})
}

// takeOver upgrades every machine; the old edges keep what WebSockets they have.
func (c *machines) takeOver(binary string) {
	c.t.Helper()
	for _, m := range c.list {
		old := m.edge()
		c.upgrade(m, binary)
		eventually(c.t, 20*time.Second, m.name+" has another edge", func() error {
			pids := m.edges()
			if len(pids) != 2 {
				return fmt.Errorf("the old one is %d, there are %v", old, pids)
			}
			return nil
		})
	}
}

// edgeIsConfined looks at the rights of a machine's edges.
func (m *machine) edgeIsConfined() {
	m.t.Helper()
	for _, pid := range m.edges() {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if err != nil {
			m.t.Fatal(err)
		}
		for _, want := range []string{"Uid:\t61007\t61007\t61007\t61007\n", "NoNewPrivs:\t1\n", "CapPrm:\t0000000000000000\n", "CapEff:\t0000000000000000\n"} {
			if !strings.Contains(string(b), want) {
				m.t.Errorf("the edge's status lacks %q:\n%s", want, b)
			}
		}
	}
}

// killEdge kills the edge of a machine under load, and says how long requests failed.
func (c *machines) killEdge(m *machine) {
	t := c.t
	t.Helper()
	eventually(t, 20*time.Second, "the replaced edge has ended", func() error {
		if pids := m.edges(); len(pids) != 1 {
			return fmt.Errorf("there are %v", pids)
		}
		return nil
	})
	fresh := through(m, "/")
	fresh.Workers, fresh.KeepAlive = 4, false
	loads := map[string]*load{"new connections": startLoad(t, c.hub, fresh), "kept connections": startLoad(t, c.hub, through(m, "/"))}
	time.Sleep(500 * time.Millisecond) // of load
	old := m.edge()
	killed := time.Now()
	if err := unix.Kill(old, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, 20*time.Second, "another edge", func() error {
		if pids := m.edges(); len(pids) != 1 || pids[0] == old {
			return fmt.Errorf("there are %v", pids)
		}
		return nil
	})
	eventually(t, 20*time.Second, "the event", func() error {
		if out := c.list[0].baton("events"); !strings.Contains(out, "node.edge-restarted") {
			return fmt.Errorf("not among\n%s", out)
		}
		return nil
	})
	for what, l := range loads {
		got := l.end()
		window := time.Duration(0)
		if got.Failures > 0 {
			window = got.Last.Sub(killed)
		}
		t.Logf("edge killed: %s: %d requests, %d failed, the last of which began %s after the kill; longest %s",
			what, got.Requests, got.Failures, window.Round(time.Millisecond), got.Longest.Round(time.Millisecond))
		for _, err := range got.Errors {
			if strings.Contains(err, "refused") {
				t.Errorf("a connection was refused: %s", err)
			}
		}
		// Those that were under way when it died, one per worker.
		if got.Failures > 4 || window > time.Second {
			t.Errorf("%s: %d requests failed, want no more than were under way: %v", what, got.Failures, got.Errors)
		}
	}
}
