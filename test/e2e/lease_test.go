package e2e

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"baton/client/api"
	"baton/internal/model/cluster"
)

// leasedCache may begin anew elsewhere, with its volume, when its node is lost.
const leasedCache = `services:
  cache:
    image: baton.test/web:v1
    healthcheck: {test: [NONE]}
    volumes: ["data:/data"]
    deploy: {update_config: {monitor: 0s}, placement: {constraints: [node.labels.place == there]}}
volumes:
  data: {x-storage: {on_loss: recreate}}
`

// processesOf are the main and other processes of a task, wherever it runs on this host.
func processesOf(task cluster.ID) (n int) {
	for _, pattern := range []string{"/sys/fs/cgroup/*/baton/*/" + task.String(), "/sys/fs/cgroup/baton/*/" + task.String()} {
		groups, _ := filepath.Glob(pattern) // the pattern is a good one
		for _, g := range groups {
			b, err := os.ReadFile(filepath.Join(g, "cgroup.procs"))
			if err == nil {
				n = max(n, len(strings.Fields(string(b))))
			}
		}
	}
	return n
}

// watched tells, again and again, how many of the tasks that were named to it have processes.
type watched struct {
	mu    sync.Mutex
	tasks []cluster.ID
	most  int
	ended map[cluster.ID]time.Time // when a task was first seen without any
}

func watch(t *testing.T) *watched {
	w := &watched{ended: make(map[cluster.ID]time.Time)}
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		tick := time.NewTicker(50 * time.Millisecond)
		defer tick.Stop()
		for {
			w.look()
			select {
			case <-stop:
				return
			case <-tick.C:
			}
		}
	}()
	t.Cleanup(func() { close(stop); <-stopped })
	return w
}

func (w *watched) look() {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := 0
	for _, id := range w.tasks {
		if processesOf(id) > 0 {
			n++
		} else if _, known := w.ended[id]; !known {
			w.ended[id] = time.Now()
		}
	}
	w.most = max(w.most, n)
}

func (w *watched) add(id cluster.ID) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.tasks = append(w.tasks, id)
}

// moved waits until another task than old runs on another node, and returns it.
func (c *machines) moved(m1 *machine, w *watched, old api.Task, fault string, at time.Time) api.Task {
	c.t.Helper()
	var now api.Task
	eventually(c.t, 40*time.Second, "the task runs on another node", func() error {
		for _, task := range m1.tasks("cache", false) {
			if task.ID == old.ID || task.NodeName == "" || task.NodeName == old.NodeName {
				continue
			}
			if now.ID != task.ID {
				w.add(task.ID) // before it has processes, or soon after
				now = task
			}
			if task.Ready {
				now = task
				return nil
			}
		}
		return errors.New("it does not")
	})
	ready := time.Since(at)
	w.mu.Lock()
	defer w.mu.Unlock()
	ended, known := w.ended[old.ID]
	if !known || w.most > 1 {
		c.t.Fatalf("%s: %d tasks with the volume ran at once; the old one's end was seen: %t", fault, w.most, known)
	}
	c.t.Logf("%s: the old task ended after %.1f s, the new one was ready after %.1f s", fault, ended.Sub(at).Seconds(), ready.Seconds())
	return now
}

// A task whose volume may begin anew elsewhere moves when its node is lost, and never runs twice: its agent ends it when the node is cut
// off, and the fence does when the node's baton is dead.
func TestLeasedTaskMovesOnce(t *testing.T) {
	c := newCluster(t, 1, 2)
	m1 := c.list[0]
	c.loadAll("web-v1")
	for _, name := range []string{"w1", "w2"} {
		m1.baton("node", "label", name, "place=there")
	}
	m1.baton("up", "-f", m1.write("compose.yaml", leasedCache), "-s", "lease", "-y")
	first := m1.live("cache")[0]
	host := c.by(first.NodeName)
	content := filepath.Join(host.data, "volumes", "lease_data")
	if err := os.WriteFile(filepath.Join(content, "_data", "old"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if r := m1.try("node", "rm", "--force", host.name); r.code == 0 || !strings.Contains(r.stderr, "wait until it is down") {
		t.Errorf("a node with a leased task may be removed at once: exit %d\n%s", r.code, r.stderr)
	}
	w := watch(t)
	w.add(first.ID)

	host.kill() // its containers go on, and nobody is there to stop them
	second := c.moved(m1, w, first, "baton is killed", time.Now())

	host.launch()
	host.awaitReady()
	c.ready(3)
	eventually(t, 30*time.Second, "what was left of the volume is deleted", func() error {
		if _, err := os.Stat(content); !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("%s is there, %v", content, err)
		}
		return nil
	})

	w2 := watch(t)
	w2.add(second.ID)
	c.cut(c.by(second.NodeName), true)
	third := c.moved(m1, w2, second, "the machine is cut off", time.Now())
	c.cut(c.by(second.NodeName), false)
	if third.NodeName != host.name {
		t.Errorf("the task runs on %s, want it on %s again", third.NodeName, host.name)
	}
	eventually(t, 30*time.Second, "the end of the lease is told", func() error {
		if out := m1.baton("why", second.ID.String()); !strings.Contains(out, "its lease is over") {
			return errors.New(out)
		}
		return nil
	})
	if out := m1.baton("events", "-s", "lease"); !strings.Contains(out, "begins empty on another node") {
		t.Errorf("no event tells that the volume was given up:\n%s", out)
	}
}
