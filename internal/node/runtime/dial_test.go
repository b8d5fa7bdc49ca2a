package runtime_test

import (
	"io"
	"strings"
	"sync"
	"testing"

	"baton/internal/model/cluster"
)

// A port that is open on the task's loopback only is reached, by many at once, and each end of a direction is kept.
func TestDial(t *testing.T) {
	n := start(t)
	id := n.mustStart(container("shout", "127.0.0.1:9000"))
	n.waitOutput(id, "ready")
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			c, err := n.Dial(t.Context(), id, 9000)
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			if _, err := io.WriteString(c, "hello"); err != nil {
				t.Error(err)
			}
			if err := c.CloseWrite(); err != nil {
				t.Error(err)
			}
			if b, err := io.ReadAll(c); string(b) != "HELLO" || err != nil {
				t.Errorf("answer %q, %v, want HELLO", b, err)
			}
		})
	}
	wg.Wait()
	if _, err := n.Dial(t.Context(), id, 9001); err == nil || !strings.Contains(err.Error(), "nothing listens on TCP port 9001") {
		t.Errorf("a closed port: %v", err)
	}
	other := n.mustStart(container("sleep"))
	n.waitOutput(other, "ready")
	if _, err := n.Dial(t.Context(), other, 9000); err == nil {
		t.Error("a task's port was reached through another task")
	}
	n.empty()
	if _, err := n.Dial(t.Context(), id, 9000); err == nil {
		t.Error("connected to a removed task")
	}
	if _, err := n.Dial(t.Context(), cluster.ID{9}, 9000); err == nil {
		t.Error("connected to a task that never was")
	}
}
