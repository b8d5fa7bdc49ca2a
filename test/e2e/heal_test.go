package e2e

import (
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"baton/client/api"
	"baton/internal/model/cluster"
)

// webFile is a stack of one web service; the pieces are the service's further keys.
func webFile(pieces ...string) string {
	return "name: site\nservices:\n  web:\n    image: baton.test/web:v1\n" + strings.Join(pieces, "")
}

const (
	published   = "    ports: [\"8080:8080\"]\n"
	probed      = "    x-probes: {ready: {http: \":8080/ready\", every: 200ms}}\n"
	health      = "    healthcheck: {test: [CMD, /web, -health, \"http://127.0.0.1:8080/healthz\"], interval: 1s, timeout: 5s, retries: 3, start_interval: 200ms}\n"
	quickUpdate = "update_config: {monitor: 0s}"
)

func deploy(extra string) string { return "    deploy: {" + extra + "}\n" }

// tasks lists the tasks of a service; with all, past ones too.
func (m *machine) tasks(service string, all bool) []api.Task {
	m.t.Helper()
	args := []string{"ps", service}
	if all {
		args = append(args, "--all")
	}
	return batonJSON[[]api.Task](m, args...)
}

// live returns the running tasks of a service.
func (m *machine) live(service string) []api.Task {
	m.t.Helper()
	var out []api.Task
	for _, t := range m.tasks(service, false) {
		if t.Observed == cluster.ObservedRunning && t.Desired == cluster.DesiredRun {
			out = append(out, t)
		}
	}
	return out
}

// pid is the main process of a task, found by its cgroup.
func (m *machine) pid(task cluster.ID) int {
	m.t.Helper()
	return mainProcess(m.t, task)
}

// url is how the outside world reaches the machine.
func url(path string) string { return "http://" + machineIP + ":8080" + path }

// netns is the namespace of a task.
func (m *machine) netns(task cluster.ID) string {
	return filepath.Join(m.data, "network", "netns", task.String())
}

func TestOneContainerFromFileToRemoval(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	m.load("web-v1")
	file := m.write("compose.yaml", webFile(published))
	m.baton("up", "-f", file, "-y")
	if body, err := m.ask(m.outside, url("/")); err != nil || !strings.Contains(body, "v1") {
		t.Fatalf("the published port answers %q, %v", body, err)
	}
	if out := m.baton("ls"); !strings.Contains(out, "web") || !strings.Contains(out, "1/1") {
		t.Errorf("ls does not show the service:\n%s", out)
	}
	if out := m.baton("logs", "web"); !strings.Contains(out, "web starts") {
		t.Errorf("logs do not show what the task printed:\n%s", out)
	}
	if out := m.baton("exec", "web", "--", "/web", "-health", "http://127.0.0.1:8080/healthz"); strings.Contains(out, "error") {
		t.Errorf("exec: %s", out)
	}
	task := m.live("web")[0].ID
	m.baton("down", "-y", "site")
	if list := batonJSON[[]api.Service](m, "ls"); len(list) != 0 {
		t.Errorf("after down: %d services", len(list))
	}
	if _, err := m.ask(m.outside, url("/")); err == nil {
		t.Error("the published port still answers after down")
	}
	eventually(t, 10*time.Second, "the namespace goes away", func() error { return gone(m.netns(task)) })
}

func TestKilledProcessIsReplacedAndExplained(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	m.load("web-v1")
	m.baton("up", "-f", m.write("compose.yaml", webFile(published, health)), "-y")
	old := m.live("web")[0]
	if err := syscall.Kill(m.pid(old.ID), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, 30*time.Second, "another task runs in its place", func() error {
		list := m.live("web")
		if len(list) != 1 || list[0].ID == old.ID || !list[0].Ready {
			return fmt.Errorf("tasks: %+v", list)
		}
		return nil
	})
	for _, t2 := range m.tasks("web", true) {
		if t2.ID == old.ID && (t2.Observed != cluster.ObservedFailed || t2.Exit == nil || t2.Exit.Code != 137) {
			t.Errorf("the killed task: %s, exit %+v", t2.Observed, t2.Exit)
		}
	}
	if why := m.baton("why", "web"); !strings.Contains(why, "SIGKILL") || !strings.Contains(why, "137") {
		t.Errorf("why does not name the cause:\n%s", why)
	}
}

func TestCrashLoopBacksOff(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	m.load("busybox")
	file := m.write("compose.yaml", "name: site\nservices: {web: {image: \"busybox:1\", command: [sh, -c, \"sleep 0.1; exit 3\"]}}\n")
	m.baton("up", "-f", file, "-y", "--detach")
	var ended []api.Task
	eventually(t, time.Minute, "five crashes", func() error {
		ended = ended[:0]
		for _, task := range m.tasks("web", true) {
			if task.Observed == cluster.ObservedFailed {
				ended = append(ended, task)
			}
		}
		if len(ended) < 5 {
			return fmt.Errorf("%d so far", len(ended))
		}
		return nil
	})
	gaps := restartGaps(m.tasks("web", true))
	// None at the first failure, then 1 s doubling: 0, 1, 2, 4 s; each gap also holds the time of a start.
	if gaps[0] > time.Second {
		t.Errorf("the first restart waited %s", gaps[0])
	}
	for i, want := range []time.Duration{time.Second, 2 * time.Second, 4 * time.Second} {
		if got := gaps[i+1]; got < want || got > want+3*time.Second/2 {
			t.Errorf("restart %d waited %s, want about %s", i+2, got, want)
		}
	}
	if why := m.baton("why", "web"); !strings.Contains(why, "code 3") {
		t.Errorf("why does not name the exit code:\n%s", why)
	}
}

// restartGaps are the times between the end of a task and the creation of the one in its place, oldest first.
func restartGaps(list []api.Task) []time.Duration {
	byID := make(map[cluster.ID]api.Task)
	next := make(map[cluster.ID]api.Task)
	var first cluster.ID
	for _, t := range list {
		byID[t.ID] = t
		if t.Replaces.IsZero() {
			first = t.ID
		} else {
			next[t.Replaces] = t
		}
	}
	var gaps []time.Duration
	for id := first; ; {
		t, ok := next[id]
		if !ok {
			return gaps
		}
		gaps = append(gaps, t.Created.Sub(byID[id].Ended))
		id = t.ID
	}
}

func TestOutOfMemoryIsNamed(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	m.load("web-v1")
	m.baton("up", "-f", m.write("compose.yaml", webFile(published, deploy("resources: {limits: {memory: 32M}}"))), "-y")
	eat := request{Method: http.MethodPost, URL: url("/eat?mb=128"), Workers: 1, Count: 1}
	if r := startLoad(t, m.outside, eat).wait(); r.Failures == 0 {
		t.Errorf("a task ate four times its memory limit: %v", r.Bodies)
	}
	eventually(t, 20*time.Second, "the end is called OOM", func() error {
		why := m.baton("why", "web")
		if !strings.Contains(why, "OOM") {
			return fmt.Errorf("%s", why)
		}
		return nil
	})
	eventually(t, 20*time.Second, "it is replaced", func() error {
		_, err := m.ask(m.outside, url("/"))
		return err
	})
}

func TestProbesTakeOutOfBalancingAndReplace(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	m.load("web-v1")
	m.baton("up", "-f", m.write("compose.yaml", webFile(published, `    x-probes:
      ready: {http: ":8080/ready", every: 200ms, failures: 2}
      live: {http: ":8080/live", every: 500ms, failures: 3}
`, deploy("replicas: 2"))), "-y")
	list := m.live("web")
	if len(list) != 2 {
		t.Fatalf("%d tasks run, want 2", len(list))
	}
	bad, good := list[0], list[1]
	m.post(bad.ID, "/admin/ready?ok=false")
	eventually(t, 10*time.Second, "the task that is not ready gets no traffic", func() error {
		r := startLoad(t, m.outside, request{URL: url("/"), Workers: 2, Count: 20}).wait()
		if r.Failures > 0 {
			t.Fatalf("requests failed: %v", r.Errors)
		}
		if len(r.Bodies) != 1 {
			return fmt.Errorf("answers: %v", r.Bodies)
		}
		return nil
	})
	for _, now := range m.live("web") {
		if now.ID == bad.ID && now.Ready {
			t.Error("ps calls it ready")
		}
	}
	if got := m.live("web"); len(got) != 2 {
		t.Fatalf("a ready probe killed a task: %d left", len(got))
	}
	m.post(bad.ID, "/admin/ready?ok=true")
	eventually(t, 10*time.Second, "it comes back", func() error {
		if r := startLoad(t, m.outside, request{URL: url("/"), Workers: 2, Count: 20}).wait(); len(r.Bodies) != 2 {
			return fmt.Errorf("answers: %v", r.Bodies)
		}
		return nil
	})
	m.post(good.ID, "/admin/live?ok=false")
	eventually(t, 30*time.Second, "the task whose liveness fails is replaced", func() error {
		list := m.live("web")
		if len(list) != 2 || list[0].ID == good.ID || list[1].ID == good.ID {
			return fmt.Errorf("%d run", len(list))
		}
		return nil
	})
	if why := m.baton("why", "web"); !strings.Contains(why, "liveness probe failed") {
		t.Errorf("why does not name the probe:\n%s", why)
	}
}

// post sends a request into one task, from its own namespace.
func (m *machine) post(task cluster.ID, path string) {
	m.t.Helper()
	r := startLoad(m.t, m.netns(task), request{Method: http.MethodPost, URL: "http://127.0.0.1:8080" + path, Workers: 1, Count: 1}).wait()
	if r.Failures > 0 {
		m.t.Fatalf("%s: %v", path, r.Errors)
	}
}
