package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"baton/client/api"
	"baton/internal/model/cluster"
	"baton/internal/node/node"
	"baton/internal/wire/agentapi"
)

// nodeEnv makes this binary the node of a data directory, without any manager.
const nodeEnv = "BATON_E2E_NODE"

// nobody is a connector that finds no manager.
type nobody struct{}

func (nobody) Connect(context.Context, agentapi.Hello) (agentapi.Session, error) {
	return nil, errors.New("no manager answers")
}

// nodeMain runs the node of a data directory until SIGTERM.
func nodeMain(dir string) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	if err := runNode(ctx, dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func runNode(ctx context.Context, dir string) error {
	data, err := os.ReadFile(filepath.Join(dir, "node.json"))
	if err != nil {
		return err
	}
	var self struct {
		ID   cluster.ID
		Name string
	}
	if err := json.Unmarshal(data, &self); err != nil {
		return err
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	n, err := node.Open(ctx, node.Config{Dir: dir, ID: self.ID, Name: self.Name, Logger: log})
	if err != nil {
		return err
	}
	return errors.Join(n.Run(ctx, nobody{}), n.Close(context.WithoutCancel(ctx)))
}

// startAlone starts the machine's node without its manager.
func (m *machine) startAlone() {
	m.t.Helper()
	self, err := os.Executable()
	if err != nil {
		m.t.Fatal(err)
	}
	log, err := os.OpenFile(filepath.Join(m.dir, "server.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		m.t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command(self, "--data-dir", m.data) // sweep knows it by that
	cmd.Env = append(os.Environ(), nodeEnv+"="+m.data)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := startIn(m.ns, cmd); err != nil {
		m.t.Fatal("start node: ", err)
	}
	if err := os.WriteFile(filepath.Join(m.dir, "pid"), []byte(fmt.Sprint(cmd.Process.Pid)), 0o600); err != nil {
		m.t.Fatal(err)
	}
	m.server, m.exited = cmd, make(chan error, 1)
	go func(exited chan error) { exited <- cmd.Wait() }(m.exited)
}

// TestNodeRunsItsTasksWithoutManager reboots a machine whose manager does not come back: its tasks run again, with their
// network, names, published ports and secrets, and fail and run again; the manager takes over what it finds.
func TestNodeRunsItsTasksWithoutManager(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	m.load("web-v1", "busybox")
	if r := m.tryIn([]byte("hush-hush-hush"), "secret", "set", "pw", "-"); r.code != 0 {
		t.Fatal(r.stderr)
	}
	m.baton("up", "-f", m.write("compose.yaml", webFile(published, probed,
		"    secrets: [{source: pw, uid: \"65532\", mode: 0400}]\n", deploy("replicas: 2"))+`  other:
    image: busybox:1
    command: [sh, -c, "while ! wget -q -O /data/answer http://web:8080/file?path=/run/secrets/pw; do sleep 0.2; done; sleep 1000"]
    volumes: ["data:/data"]
secrets: {pw: {external: true}}
volumes: {data: {}}
`), "-y")
	answer := filepath.Join(m.data, "volumes", "site_data", "_data", "answer")
	if found := filesWith(t, filepath.Join(m.data, "record"), "hush-hush-hush"); len(found) > 0 {
		t.Errorf("the secret lies in clear in %v", found)
	}
	before := append(m.live("web"), m.live("other")...)
	m.reboot()
	if err := os.Remove(answer); err != nil {
		t.Fatal(err)
	}
	m.startAlone()
	answers := func() error {
		if body, err := m.ask(m.outside, url("/file?path=/run/secrets/pw")); err != nil || body != "hush-hush-hush" {
			return fmt.Errorf("%q, %v", body, err)
		}
		return nil
	}
	eventually(t, time.Minute, "the published port answers without a manager, with its secret", answers)
	eventually(t, time.Minute, "a task finds another one by its name", func() error {
		if data, err := os.ReadFile(answer); err != nil || string(data) != "hush-hush-hush" {
			return fmt.Errorf("%q, %v", data, err)
		}
		return nil
	})
	// A crash, while nobody else could do anything about it.
	var pids []int
	eventually(t, time.Minute, "both replicas run", func() error {
		if pids = m.webs(); len(pids) != 2 {
			return fmt.Errorf("processes %v", pids)
		}
		return nil
	})
	if err := syscall.Kill(pids[0], syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, time.Minute, "the crashed one runs again", func() error {
		if now := m.webs(); len(now) != 2 || slices.Contains(now, pids[0]) {
			return fmt.Errorf("processes %v, before %v", now, pids)
		}
		return nil
	})
	eventually(t, time.Minute, "the published port answers", answers)
	running := m.webs()
	m.stop()
	m.start()
	m.takenOver(before, running)
}

// webs are the main processes of the web service, sorted.
func (m *machine) webs() []int {
	m.t.Helper()
	var out []int
	for _, pid := range m.processes(runDir(m.t, m.containerd())) {
		if exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid)); err == nil && exe == "/web" {
			out = append(out, pid)
		}
	}
	slices.Sort(out)
	return out
}

// takenOver checks that the manager counts on the processes that run instead of those that the reboot ended.
func (m *machine) takenOver(before []api.Task, running []int) {
	t := m.t
	t.Helper()
	eventually(t, time.Minute, "the manager counts on what runs", func() error {
		web := m.live("web")
		if len(web) != 2 || len(m.live("other")) != 1 || !web[0].Ready || !web[1].Ready {
			return fmt.Errorf("%+v", web)
		}
		return nil
	})
	var pids []int
	for _, task := range m.live("web") {
		pids = append(pids, m.pid(task.ID))
		if task.Replaces.IsZero() || !slices.ContainsFunc(before, func(o api.Task) bool { return o.ID == task.Replaces }) {
			t.Errorf("task %s replaces %s, want one of those before the reboot", task.Label(), task.Replaces)
		}
	}
	slices.Sort(pids)
	if !slices.Equal(pids, running) {
		t.Errorf("processes %v run, and ran without the manager as %v: they were not taken over", pids, running)
	}
	for _, old := range before {
		all := m.tasks(old.ServiceName, true)
		i := slices.IndexFunc(all, func(o api.Task) bool { return o.ID == old.ID })
		if i < 0 || !all[i].Observed.Terminal() {
			t.Errorf("the task %s before the reboot is not said to have ended", old.Label())
		}
	}
}
