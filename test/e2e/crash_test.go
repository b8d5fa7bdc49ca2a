package e2e

import (
	"fmt"
	"net/http"
	"syscall"
	"testing"
	"time"

	"baton/internal/model/cluster"
)

// TestCrashesInTheMiddleOfAnUp kills baton, containerd and both while a deployment runs. What ran before must not restart,
// published ports must go on answering, and the deployment must finish afterwards.
func TestCrashesInTheMiddleOfAnUp(t *testing.T) {
	for _, c := range []struct {
		name              string
		baton, containerd bool
	}{
		{"baton", true, false},
		{"containerd", false, true},
		{"both", true, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			m := newMachine(t)
			m.load("web-v1", "web-v2")
			steady := "  steady:\n    image: baton.test/web:v1\n    ports: [\"8081:8080\"]\n"
			file := func(version string) string {
				return m.write("compose.yaml", "name: site\nservices:\n  web:\n    image: baton.test/web:"+version+"\n"+
					published+probed+deploy("replicas: 4, update_config: {monitor: 500ms}")+steady)
			}
			m.baton("up", "-f", file("v1"), "-y")
			before := m.live("steady")[0]
			pid := m.pid(before.ID)
			load := startLoad(t, m.outside, request{URL: "http://" + machineIP + ":8081/", Workers: 2, Pause: 10 * time.Millisecond})

			m.baton("up", "-f", file("v2"), "-y", "--detach")
			time.Sleep(700 * time.Millisecond) // somewhere in the middle: any moment must do
			if c.containerd {
				if err := syscall.Kill(m.containerd(), syscall.SIGKILL); err != nil {
					t.Fatal(err)
				}
			}
			if c.baton {
				m.kill()
				m.start()
			}
			eventually(t, 2*time.Minute, "the deployment finishes", func() error {
				var v2 int
				for _, task := range m.live("web") {
					if task.Image == "baton.test/web:v2" && task.Ready {
						v2++
					}
				}
				if v2 != 4 {
					return fmt.Errorf("%d of 4 are of the new version", v2)
				}
				return nil
			})
			if got := load.end(); got.Failures > 0 {
				t.Errorf("%d of %d requests to a service that nobody touched failed: %v", got.Failures, got.Requests, got.Errors)
			}
			after := m.live("steady")
			if len(after) != 1 || after[0].ID != before.ID || m.pid(before.ID) != pid {
				t.Errorf("a service that nobody touched was restarted")
			}
			for _, task := range m.tasks("web", true) {
				if task.Observed == cluster.ObservedFailed || task.Observed == cluster.ObservedLost {
					t.Errorf("task %s: %s: %s", task.Label(), task.Observed, task.Reason)
				}
			}
		})
	}
}

// TestExitCodesSurviveAContainerdCrash ends a task while containerd is down.
func TestExitCodesSurviveAContainerdCrash(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	m.load("web-v1")
	m.baton("up", "-f", m.write("compose.yaml", webFile(published, deploy("restart_policy: {condition: none}"))), "-y")
	task := m.live("web")[0]
	// Both die, so that nobody restarts containerd before the task has ended.
	containerd := m.containerd()
	m.kill()
	if err := syscall.Kill(containerd, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	exit := request{Method: http.MethodPost, URL: "http://127.0.0.1:8080/exit?code=7", Workers: 1, Count: 1}
	startLoad(t, m.netns(task.ID), exit).wait() // whether it still answers does not matter
	m.start()
	eventually(t, 30*time.Second, "its exit code is known", func() error {
		for _, now := range m.tasks("web", true) {
			if now.ID == task.ID && now.Exit != nil && now.Exit.Code == 7 {
				return nil
			}
		}
		return fmt.Errorf("tasks: %+v", m.tasks("web", true))
	})
}
