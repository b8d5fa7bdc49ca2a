package e2e

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"baton/client/api"
	"baton/internal/model/cluster"
)

// lose takes a machine away for good: its server and its cable.
func (c *machines) lose(m *machine) {
	c.t.Helper()
	m.kill()
	c.cut(m, true)
}

// nodes lists the nodes of the cluster as name, role and state.
func (m *machine) nodes() string {
	m.t.Helper()
	var out []string
	for _, n := range batonJSON[[]api.Node](m, "node", "ls") {
		out = append(out, fmt.Sprintf("%s %v %s", n.Name, n.Manager, n.State))
	}
	slices.Sort(out)
	return strings.Join(out, ", ")
}

// TestClusterIsRestoredFromABackup loses the only manager of a cluster, and restores a backup on a new machine.
func TestClusterIsRestoredFromABackup(t *testing.T) {
	c := newCluster(t, 1, 1)
	m1, w1 := c.list[0], c.list[1]
	for _, m := range c.list {
		m1.baton("image", "load", "--node", m.name, filepath.Join(images, "web-v1.tar"))
	}
	const secret, pass = "hush-hush-hush", "correct horse battery"
	if r := m1.tryIn([]byte(secret), "secret", "set", "pw", "-"); r.code != 0 {
		t.Fatal(r.stderr)
	}
	m1.baton("up", "-f", m1.write("compose.yaml", webFile(published, probed, "    secrets: [{source: pw, uid: \"65532\", mode: 0400}]\n",
		deploy("replicas: 2"))+"secrets: {pw: {external: true}}\n"), "-y")

	if r := m1.try("cluster", "backup"); r.code == 0 || !strings.Contains(r.stderr, "--unencrypted") || r.stdout != "" {
		t.Errorf("a backup without encryption: exit %d, %d bytes\n%s", r.code, len(r.stdout), r.stderr)
	}
	r := m1.tryIn([]byte(pass+"\n"), "cluster", "backup", "--passphrase-stdin")
	if r.code != 0 {
		t.Fatalf("backup: %s", r.stderr)
	}
	file := m1.write("backup.age", r.stdout)
	passFile := m1.write("pass", pass+"\n")
	t.Logf("the backup has %d bytes", len(r.stdout))
	c.lose(m1)

	fresh := c.bare("fresh")
	c.refusedRestores(fresh, file, r.stdout)
	out := fresh.baton("cluster", "restore", file, "--passphrase-file", passFile, "--data-dir", fresh.data, "--name", fresh.name)
	if !strings.Contains(out, "m1, w1") {
		t.Errorf("restore does not name the old nodes:\n%s", out)
	}
	begin := time.Now()
	fresh.start()
	fresh.awaitReady()
	fresh.load("web-v1")
	address := "http://" + fresh.ip + ":8080"
	eventually(t, time.Minute, "the stack runs on the new machine", func() error {
		body, err := fresh.ask(c.hub, address+"/file?path=/run/secrets/pw")
		if err == nil && body != secret {
			err = fmt.Errorf("the secret reads %q", body)
		}
		return err
	})
	t.Logf("served %s after the start", time.Since(begin).Round(100*time.Millisecond))
	if got := fresh.nodes(); got != "fresh true ready, m1 false down, w1 false down" {
		t.Errorf("nodes: %s", got)
	}
	if r := fresh.try("cluster", "restore", file, "--passphrase-file", passFile, "--data-dir", fresh.data); r.code == 0 || !strings.Contains(r.stderr, "belongs to a node already") {
		t.Errorf("a restore over a node: exit %d\n%s", r.code, r.stderr)
	}

	// The old worker comes back with a token of the restored cluster, the old manager is taken out.
	w1.stop()
	w1.join = strings.TrimSpace(fresh.baton("token", "ls", "worker", "-q"))
	w1.launch()
	fresh.baton("node", "rm", "m1")
	eventually(t, time.Minute, "the old worker is back", func() error {
		w1.checkAlive()
		if got := fresh.nodes(); got != "fresh true ready, w1 false ready" {
			return errors.New(got)
		}
		return nil
	})
	fresh.baton("restart", "web")
}

// refusedRestores tries what must not be restored; the directory stays as it is: not there.
func (c *machines) refusedRestores(m *machine, file, backup string) {
	c.t.Helper()
	pass := m.write("good-pass", "correct horse battery\n")
	for name, try := range map[string]struct{ file, pass, want string }{
		"wrong passphrase": {file, m.write("wrong-pass", "correct horse bakery\n"), "the passphrase does not open"},
		"cut off":          {m.write("cut", backup[:len(backup)-100]), pass, "not a whole backup"},
		"changed":          {m.write("changed", backup[:len(backup)/2]+"x"+backup[len(backup)/2+1:]), pass, "not a whole backup"},
		"something else":   {m.write("else", "services: {}\n"), pass, "not a whole backup"},
		"not there":        {filepath.Join(m.dir, "nothing"), pass, "no such file"},
	} {
		r := m.try("cluster", "restore", try.file, "--passphrase-file", try.pass, "--data-dir", m.data, "--name", "x")
		if r.code == 0 || !strings.Contains(r.stderr, try.want) {
			c.t.Errorf("%s: exit %d, want %q\n%s", name, r.code, try.want, r.stderr)
		}
		if _, err := os.Lstat(m.data); !errors.Is(err, os.ErrNotExist) {
			c.t.Errorf("%s: the directory was made: %v", name, err)
		}
	}
}

// TestLastManagerRecoversTheCluster destroys two of three managers and lets the third go on alone.
func TestLastManagerRecoversTheCluster(t *testing.T) {
	c := newCluster(t, 3, 1)
	m1, m2, m3, w1 := c.list[0], c.list[1], c.list[2], c.list[3]
	for _, m := range []*machine{m3, w1} {
		m1.baton("image", "load", "--node", m.name, filepath.Join(images, "web-v1.tar"))
	}
	m1.baton("node", "pause", "m1")
	m1.baton("node", "pause", "m2")
	m1.baton("up", "-f", m1.write("compose.yaml", webFile(published, probed, deploy("replicas: 4"))), "-y")
	before := m3.live("web")
	if r := m3.try("cluster", "recover", "--data-dir", m3.data, "-y"); r.code == 0 || !strings.Contains(r.stderr, "another baton server runs") {
		t.Errorf("beside a running server: exit %d\n%s", r.code, r.stderr)
	}
	c.lose(m1)
	c.lose(m2)
	if r := m3.try("node", "label", "w1", "a=b", "--timeout", "3s"); r.code == 0 {
		t.Error("one of three managers took a change")
	}
	m3.stop()
	if r := m3.try("cluster", "recover", "--data-dir", m3.data); r.code == 0 || !strings.Contains(r.stderr, "add -y") || !strings.Contains(r.stderr, "m1, m2") {
		t.Errorf("without a word of confirmation: exit %d\n%s", r.code, r.stderr)
	}
	out := m3.baton("cluster", "recover", "--data-dir", m3.data, "-y")
	t.Log("\n" + out)
	begin := time.Now()
	m3.start()
	eventually(t, time.Minute, "the cluster goes on", func() error {
		if got, want := m3.nodes(), "m1 false down, m2 false down, m3 true ready, w1 false ready"; got != want {
			return errors.New(got)
		}
		if cl := batonJSON[api.Cluster](m3, "cluster", "status"); len(cl.Managers) != 1 || !cl.Managers[0].Voter {
			return fmt.Errorf("managers: %+v", cl.Managers)
		}
		return nil
	})
	t.Logf("one manager and its worker were ready %s after the start", time.Since(begin).Round(100*time.Millisecond))
	ids := func(tasks []api.Task) (out []cluster.ID) {
		for _, task := range tasks {
			out = append(out, task.ID)
		}
		slices.SortFunc(out, func(a, b cluster.ID) int { return slices.Compare(a[:], b[:]) })
		return out
	}
	if after := m3.live("web"); !slices.Equal(ids(before), ids(after)) {
		t.Errorf("tasks: got %v, want %v", ids(after), ids(before))
	}
	m3.baton("scale", "web=5")
}
