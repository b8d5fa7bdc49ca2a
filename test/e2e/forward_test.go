package e2e

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"sync"
	"syscall"
	"testing"
	"time"
)

// The command is given to a manager that does not lead, and the task is on a worker.
func TestPortForwardThroughAnyManager(t *testing.T) {
	c := newCluster(t, 3, 1)
	leader := c.leader(c.list[0])
	m := c.list[0]
	if m == leader {
		m = c.list[1]
	}
	worker := c.list[3]
	m.load("web-v1")
	m.baton("up", "-y", "-f", m.write("compose.yaml", `
name: far
services:
  web:
    image: baton.test/web:v1
    deploy: {placement: {constraints: [node.role == worker]}}
`))
	if node := m.live("web")[0].NodeName; node != worker.name {
		t.Fatalf("the task is on %s, not on the worker", node)
	}
	address := m.forward("web", "0:8080")
	client := &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	get := func() error {
		resp, err := client.Get("http://" + address + "/healthz")
		if err != nil {
			return err
		}
		defer func() { _ = resp.Body.Close() }()
		if b, err := io.ReadAll(resp.Body); err != nil || resp.StatusCode != http.StatusOK {
			return fmt.Errorf("status %d, %q, %v", resp.StatusCode, b, err)
		}
		return nil
	}
	var wg sync.WaitGroup
	for range 30 {
		wg.Go(func() {
			if err := get(); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	// The task is replaced: new connections go to the new one.
	old := m.live("web")[0].ID
	m.baton("restart", "web", "-y")
	if now := m.live("web")[0].ID; now == old {
		t.Fatal("the task was not replaced")
	}
	eventually(t, 20*time.Second, "the new task answers", get)
}

// forward starts a port-forward of one port and returns the address on which it listens, in the namespace of the test.
func (m *machine) forward(args ...string) string {
	m.t.Helper()
	cmd := exec.Command(binary, append([]string{"port-forward"}, args...)...)
	cmd.Env = append(os.Environ(), "BATON_HOST=unix://"+m.socket)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} // also when the test is killed
	out, err := cmd.StderrPipe()
	if err != nil {
		m.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		m.t.Fatal(err)
	}
	drained := make(chan struct{})
	m.t.Cleanup(func() {
		_ = cmd.Process.Signal(os.Interrupt)
		<-drained
		_ = cmd.Wait() // an interrupted command has an exit code of its own
	})
	lines := bufio.NewScanner(out)
	found := regexp.MustCompile(`^forwarding (\S+) to`)
	for lines.Scan() {
		if s := found.FindStringSubmatch(lines.Text()); s != nil {
			go func() {
				defer close(drained)
				_, _ = io.Copy(io.Discard, out)
			}()
			return s[1]
		}
	}
	close(drained)
	m.t.Fatalf("baton port-forward told no address: %v", lines.Err())
	return ""
}
