package e2e

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// lockedOnDisk returns nil when the manager's sealing key lies on its disk locked, and only so.
func (m *machine) lockedOnDisk(want bool) error {
	_, clear := os.Lstat(filepath.Join(m.data, "manager", "seal.key"))
	_, locked := os.Lstat(filepath.Join(m.data, "manager", "seal.key.locked"))
	if (clear == nil) == want || (locked == nil) != want {
		return fmt.Errorf("%s: key in clear: %v, locked: %v", m.name, clear == nil, locked == nil)
	}
	return nil
}

// TestLockedManagerWaitsForItsKey locks a cluster and crashes a manager with its containers running.
func TestLockedManagerWaitsForItsKey(t *testing.T) {
	c := newCluster(t, 3, 0)
	m1, m2 := c.list[0], c.list[1]
	m1.baton("image", "load", "--node", "m1", filepath.Join(images, "web-v1.tar"))
	m1.baton("node", "pause", "m2")
	m1.baton("node", "pause", "m3")
	m1.baton("up", "-f", m1.write("compose.yaml", webFile(published, probed, deploy("replicas: 2"))), "-y")
	before := m1.live("web")
	key := strings.TrimSpace(m1.baton("cluster", "lock", "-q"))
	if r := m1.try("cluster", "lock"); r.code == 0 || strings.Contains(r.stdout+r.stderr, "baton-unlock-") {
		t.Errorf("the key is shown twice: exit %d\n%s%s", r.code, r.stdout, r.stderr)
	}
	for _, m := range c.list {
		eventually(t, 20*time.Second, "every manager locks its own key", func() error { return m.lockedOnDisk(true) })
	}

	m1.kill()
	m1.launch()
	eventually(t, 30*time.Second, "the manager says that it is locked", func() error {
		m1.checkAlive()
		if r := m1.try("ps"); r.code == 0 || !strings.Contains(r.stderr, "this manager is locked") || !strings.Contains(r.stderr, "baton cluster unlock") {
			return fmt.Errorf("exit %d: %s", r.code, r.stderr)
		}
		return nil
	})
	address := "http://" + m1.ip + ":8080/"
	if _, err := m1.ask(c.hub, address); err != nil {
		t.Errorf("containers of a locked manager: %v", err)
	}
	eventually(t, 30*time.Second, "the others lead, and the locked node is connected", func() error {
		r := m2.try("node", "ls", "-o", "json")
		if r.code != 0 || strings.Count(r.stdout, `"state": "ready"`)+strings.Count(r.stdout, `"state":"ready"`) != 3 {
			return errors.New(r.stdout + r.stderr)
		}
		return nil
	})
	if err := m1.lockedOnDisk(true); err != nil {
		t.Errorf("the node got its key without its operator: %v", err)
	}
	m1.unlock(key)
	eventually(t, 20*time.Second, "the manager has caught up", func() error {
		if r := m1.try("ps", "web"); r.code != 0 {
			return errors.New(r.stderr)
		}
		return nil
	})
	after := m1.live("web")
	if len(after) != 2 || len(before) != 2 {
		t.Errorf("%d tasks before, %d after", len(before), len(after))
	}
	for _, old := range before {
		if old.ID != after[0].ID && old.ID != after[1].ID {
			t.Errorf("task %s was replaced", old.Label())
		}
	}
	if data, err := os.ReadFile(filepath.Join(m1.dir, "server.log")); err != nil || strings.Contains(string(data), key) {
		t.Errorf("the key is in the log (%v)", err)
	}
	if err := m1.lockedOnDisk(true); err != nil {
		t.Error(err)
	}

	m2.baton("cluster", "lock", "--off")
	for _, m := range c.list {
		eventually(t, 20*time.Second, "every manager takes the lock off", func() error { return m.lockedOnDisk(false) })
	}
	m1.stop()
	m1.start()
}

// unlock brings a locked manager its key, after some that are not.
func (m *machine) unlock(key string) {
	m.t.Helper()
	wrong := key[:len(key)-8] + "aaaaaaaa"
	for _, bad := range []string{wrong, "hello", ""} {
		r := m.tryIn([]byte(bad+"\n"), "cluster", "unlock", "--key-stdin")
		if r.code == 0 || bad != "" && strings.Contains(r.stderr, bad) {
			m.t.Errorf("unlocked with %q: exit %d\n%s", bad, r.code, r.stderr)
		}
	}
	if r := m.tryIn([]byte(key+"\n"), "cluster", "unlock", "--key-stdin"); r.code != 0 {
		m.t.Fatalf("unlock: exit %d\n%s\n%s", r.code, r.stderr, m.log(20))
	}
}
