package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"baton/client/api"
	"baton/internal/model/cluster"
)

// buildAs builds baton as nextVersion, which knows the feature levels up to level.
func buildAs(t *testing.T, level cluster.Level) string {
	t.Helper()
	out := filepath.Join(t.TempDir(), "baton")
	flags := fmt.Sprintf("-X baton/internal/process.Version=%s -X baton/internal/model/cluster.levelText=%d", nextVersion, level)
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", flags, "-o", out, "baton/cmd/baton")
	cmd.Env = append(cmd.Environ(), "CGO_ENABLED=0", "GOPROXY=off")
	if b, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, b)
	}
	return out
}

// nextVersion is what builds that replace another one call themselves.
const nextVersion = "v-next"

// upgrade replaces a machine's baton by another build.
func (c *machines) upgrade(m *machine, binary string) {
	c.t.Helper()
	m.stop()
	m.binary = binary
	m.launch()
	m.awaitReady()
	c.ready(len(c.list))
	eventually(c.t, 20*time.Second, m.name+" says its new version", func() error {
		for _, n := range batonJSON[[]api.Node](c.list[0], "node", "ls") {
			if n.Name == m.name && n.Description.Version != nextVersion {
				return fmt.Errorf("it says %s", n.Description.Version)
			}
		}
		return nil
	})
}

// Two neighbouring versions work together while a cluster is upgraded node by node. The new feature level is used once the last
// node knows it; from then on the old version gets a refusal that says what to do, and what runs there goes on.
func TestUpgradeNodeByNode(t *testing.T) {
	now := cluster.LevelNewest()
	next := buildAs(t, now+1)
	c := newCluster(t, 2, 1)
	m1, m2, w1 := c.list[0], c.list[1], c.list[2]
	c.loadAll("web-v1")
	m1.baton("node", "label", "m1", "place=inside")
	m1.baton("up", "-f", m1.write("compose.yaml", spreadWeb), "-s", "web", "-y")
	began := taskIDs(m1.live("web"))
	level := func(m *machine) (cluster.Level, []string) {
		cl := decode[api.Cluster](t, m.baton("cluster", "status", "-o", "json"))
		return cl.Level, cl.Behind
	}
	for i, m := range []*machine{w1, m2} {
		c.upgrade(m, next)
		if l, _ := level(m1); l != now {
			t.Fatalf("level %d is in use while m1 knows %d only", l, now)
		}
		// What is written through either version is done by both.
		for _, via := range []*machine{m1, m2} {
			via.baton("restart", "web", "-s", "web")
		}
		t.Logf("%d of 3 nodes upgraded: both versions deployed", i+1)
		began = taskIDs(m1.live("web"))
	}
	if _, behind := level(m2); !slices.Equal(behind, []string{"m1"}) {
		t.Errorf("the upgraded manager says that %v are behind, want m1", behind)
	}
	c.upgrade(m1, next)
	eventually(t, 20*time.Second, "the new feature level", func() error {
		if l, behind := level(m1); l != now+1 || len(behind) > 0 {
			return fmt.Errorf("level %d, behind: %v", l, behind)
		}
		return nil
	})
	if ids := taskIDs(m1.live("web")); !slices.Equal(ids, began) {
		t.Errorf("the last upgrade replaced tasks: %v, before %v", ids, began)
	}
	c.refusesOld(m1, m2, w1)
	if ids := taskIDs(m1.live("web")); !slices.Equal(ids, began) {
		t.Errorf("the attempts with the old version replaced tasks: %v, before %v", ids, began)
	}
}

// refusesOld brings the old version back where the cluster is above it.
func (c *machines) refusesOld(m1, m2, w1 *machine) {
	t := c.t
	const want = "install the version that the other nodes run"
	next := m2.binary
	m2.stop()
	m2.binary = ""
	m2.launch()
	select {
	case err := <-m2.exited:
		if err == nil {
			t.Error("a manager that does not know the level ended without an error")
		}
	case <-time.After(30 * time.Second):
		t.Error("a manager that does not know the level runs on")
		m2.kill()
	}
	if !strings.Contains(m2.serverLog(), want) {
		t.Error("the old manager does not say what to do")
	}
	w1.stop()
	w1.binary = ""
	w1.launch()
	eventually(t, 20*time.Second, "the worker's refusal", func() error {
		if !strings.Contains(w1.serverLog(), want) {
			return fmt.Errorf("not in its log")
		}
		return nil
	})
	w1.stop()
	for _, m := range []*machine{m2, w1} {
		m.binary = next
		m.launch()
		m.awaitReady()
	}
	c.ready(3)
	line := strings.TrimSpace(m1.baton("token", "ls", "worker", "-q"))
	r := c.stranger(line, nil, "join", "-", "--data-dir", filepath.Join(t.TempDir(), "d"), "--name", "x")
	if r.code == 0 || !strings.Contains(r.stderr, want) {
		t.Errorf("an old version joins: exit %d\n%s", r.code, r.stderr)
	}
}

// serverLog is all that the machine's servers have logged.
func (m *machine) serverLog() string {
	data, err := os.ReadFile(filepath.Join(m.dir, "server.log"))
	if err != nil {
		m.t.Error(err)
	}
	return string(data)
}

func taskIDs(list []api.Task) []string {
	var ids []string
	for _, task := range list {
		ids = append(ids, task.ID.String())
	}
	slices.Sort(ids)
	return ids
}
