package e2e

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestTasksRunAgainAfterAReboot takes away all that a reboot takes: processes, namespaces, links, mounts and /run.
func TestTasksRunAgainAfterAReboot(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	m.load("web-v1", "busybox")
	if r := m.tryIn([]byte("hush"), "secret", "set", "pw", "-"); r.code != 0 {
		t.Fatal(r.stderr)
	}
	m.baton("up", "-f", m.write("compose.yaml", webFile(published, probed,
		"    secrets: [{source: pw, uid: \"65532\", mode: 0400}]\n", deploy("replicas: 2"))+`  keeper:
    image: busybox:1
    command: [sh, -c, "date >> /data/starts; exec sleep 1000"]
    volumes: ["data:/data"]
secrets: {pw: {external: true}}
volumes: {data: {}}
`), "-y")
	before := append(m.live("web"), m.live("keeper")...)
	m.reboot()
	m.start()
	eventually(t, time.Minute, "everything runs again", func() error {
		if web, keeper := m.live("web"), m.live("keeper"); len(web) != 2 || len(keeper) != 1 || !web[0].Ready || !web[1].Ready {
			return fmt.Errorf("%d and %d run", len(web), len(keeper))
		}
		return nil
	})
	for _, old := range before {
		for _, now := range append(m.live("web"), m.live("keeper")...) {
			if now.ID == old.ID {
				t.Errorf("task %s is said to have run through the reboot", old.Label())
			}
		}
	}
	if body, err := m.ask(m.outside, url("/file?path=/run/secrets/pw")); err != nil || body != "hush" {
		t.Errorf("after the reboot a task reads its secret as %q, %v", body, err)
	}
	starts, err := os.ReadFile(filepath.Join(m.data, "volumes", "site_data", "_data", "starts"))
	if err != nil || strings.Count(string(starts), "\n") != 2 {
		t.Errorf("the volume holds %q, %v; want the lines of both starts", starts, err)
	}
	if why := m.baton("why", "keeper"); !strings.Contains(why, "the machine restarted") {
		t.Errorf("why does not tell of the reboot:\n%s", why)
	}
}

// reboot ends the machine without a word and boots it; nothing is started on it.
func (m *machine) reboot() {
	m.t.Helper()
	containerd := m.containerd()
	run := runDir(m.t, containerd)
	m.kill()
	for _, pid := range append(m.processes(run), containerd) {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
			m.t.Fatal(err)
		}
	}
	eventually(m.t, 10*time.Second, "all processes end", func() error {
		if left := m.processes(run); len(left) > 0 {
			return fmt.Errorf("left: %v", left)
		}
		return nil
	})
	removeNamespaces(m.dir)
	if err := unmountBelow(m.data, run); err != nil {
		m.t.Fatal(err)
	}
	if err := os.RemoveAll(run); err != nil {
		m.t.Fatal(err)
	}
	for _, path := range []string{m.ns, m.outside} {
		makeNamespace(m.t, path)
	}
	m.link()
}

// runDir is where a containerd keeps what does not outlive a boot: where its configuration lies.
func runDir(t *testing.T, containerd int) string {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", containerd))
	if err != nil {
		t.Fatal(err)
	}
	argv := strings.Split(string(data), "\x00")
	for i, a := range argv[:len(argv)-1] {
		if a == "--config" {
			return filepath.Dir(argv[i+1])
		}
	}
	t.Fatalf("containerd %q has no --config", argv)
	return ""
}

// processes are the machine's shims and loggers, by their arguments, and its containers, by their cgroup.
func (m *machine) processes(run string) []int {
	m.t.Helper()
	var out []int
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		m.t.Fatal(err)
	}
	for _, dir := range dirs {
		cmdline, _ := os.ReadFile(filepath.Join(dir, "cmdline")) // it may have ended
		cgroup, _ := os.ReadFile(filepath.Join(dir, "cgroup"))
		ours := strings.Contains(string(cmdline), m.data+"/") || strings.Contains(string(cgroup), "/baton/"+filepath.Base(run)+"/")
		var pid int
		if _, err := fmt.Sscanf(dir, "/proc/%d", &pid); ours && err == nil && len(cmdline) > 0 {
			out = append(out, pid)
		}
	}
	return out
}

// unmountBelow takes away the mounts below directories, innermost first.
func unmountBelow(dirs ...string) error {
	data, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return err
	}
	var paths []string
	for line := range strings.SplitSeq(string(data), "\n") {
		fields := strings.Fields(line)
		for _, d := range dirs {
			if len(fields) > 1 && strings.HasPrefix(fields[1], d+"/") {
				paths = append(paths, fields[1])
			}
		}
	}
	for _, path := range slices.Backward(paths) {
		if err := unix.Unmount(path, unix.MNT_DETACH); err != nil {
			return fmt.Errorf("unmount %s: %w", path, err)
		}
	}
	return nil
}
