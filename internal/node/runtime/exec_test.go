package runtime_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"baton/internal/node/agent"
)

// buffer is a bytes.Buffer for several goroutines.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func TestExec(t *testing.T) {
	n := start(t)
	c := container("sleep")
	c.Spec.Container.Env = []string{"FROM_SPEC=1"}
	id := n.mustStart(c)
	n.waitOutput(id, "ready")

	t.Run("probe", func(t *testing.T) { execProbe(t, n, id) })
	t.Run("missing command", func(t *testing.T) { execMissingCommand(t, n, id) })
	t.Run("timeout", func(t *testing.T) { execTimeout(t, n, id) })
	t.Run("streams", func(t *testing.T) { execStreams(t, n, id) })
	t.Run("stdin", func(t *testing.T) { execStdin(t, n, id) })
	t.Run("user, env and dir", func(t *testing.T) { execUserEnvAndDir(t, n, id) })
	t.Run("tty", func(t *testing.T) { testTTY(t, n, id) })
	if code, _, err := n.Exec(t.Context(), id, nil); err == nil {
		t.Errorf("exec of nothing = %d", code)
	}
	n.empty()
	if _, _, err := n.Exec(t.Context(), id, []string{"/probe"}); err == nil {
		t.Error("exec in a removed task: no error")
	}
}

func execProbe(t *testing.T, n *node, id taskID) {
	code, out, err := n.Exec(t.Context(), id, []string{"/probe", "exit", "6"})
	if code != 6 || len(out) != 0 || err != nil {
		t.Errorf("exec = %d, %q, %v, want 6", code, out, err)
	}
	code, out, err = n.Exec(t.Context(), id, []string{"/probe", "lines", "1000", "0"})
	if code != 0 || err != nil || len(out) != 4<<10 || !strings.Contains(string(out), " line 0000") {
		t.Errorf("exec = %d, %d bytes, %v, want the first 4 KiB", code, len(out), err)
	}
}

func execMissingCommand(t *testing.T, n *node, id taskID) {
	code, out, err := n.Exec(t.Context(), id, []string{"/nothing"})
	if code != 127 || err != nil || !strings.Contains(string(out), "not found in the container") {
		t.Errorf("exec = %d, %q, %v, want 127", code, out, err)
	}
}

func execTimeout(t *testing.T, n *node, id taskID) {
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	_, out, err := n.Exec(ctx, id, []string{"/probe", "stubborn"})
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("exec = %q, %v, want the deadline", out, err)
	}
	eventually(t, "the command is killed", func() bool { return len(n.processes("/probe", "stubborn")) == 0 })
}

func execStreams(t *testing.T, n *node, id taskID) {
	var out, errs buffer
	code, err := n.ExecStream(t.Context(), id, agent.Execution{
		Argv: []string{"/probe", "say", "o", "e"}, Stdout: &out, Stderr: &errs,
	})
	if code != 0 || err != nil || out.String() != "o\n" || errs.String() != "e\n" {
		t.Errorf("exec = %d, %v, %q, %q", code, err, out.String(), errs.String())
	}
}

func execStdin(t *testing.T, n *node, id taskID) {
	var out buffer
	code, err := n.ExecStream(t.Context(), id, agent.Execution{
		Argv: []string{"/probe", "cat"}, Stdin: strings.NewReader(strings.Repeat("0123456789", 20000)), Stdout: &out,
	})
	if code != 0 || err != nil || len(out.String()) != 200000 {
		t.Errorf("exec = %d, %v, %d bytes back, want 200000", code, err, len(out.String()))
	}
}

func execUserEnvAndDir(t *testing.T, n *node, id taskID) {
	var out buffer
	code, err := n.ExecStream(t.Context(), id, agent.Execution{
		Argv: []string{"/probe", "facts"}, User: "postgres", Env: []string{"MINE=2"}, Dir: "/data", Stdout: &out,
	})
	if code != 0 || err != nil {
		t.Fatalf("exec = %d, %v", code, err)
	}
	f := parseFacts(t, out.String())
	if f.UID != 70 || f.GID != 70 || !slices.Equal(f.Groups, []int{70, 900}) || f.Cwd != "/data" {
		t.Errorf("facts = %+v, want user 70, group 900 and /data", f)
	}
	f.wantEnv(t, "MINE=2", "FROM_SPEC=1", "FROM_IMAGE=1")
	if f.Status["CapEff"] != "0000000000000000" {
		t.Errorf("capabilities = %s, want none", f.Status["CapEff"])
	}
}

func testTTY(t *testing.T, n *node, id taskID) {
	in, user := io.Pipe()
	defer in.Close()
	sizes := make(chan [2]uint16)
	var out buffer
	done := make(chan struct{})
	var code int
	var err error
	go func() {
		defer close(done)
		code, err = n.ExecStream(t.Context(), id, agent.Execution{
			Argv: []string{"/probe", "tty"}, TTY: true, Width: 90, Height: 33, Stdin: in, Stdout: &out, Resize: sizes,
		})
	}()
	sees := func(want string) {
		t.Helper()
		eventually(t, "the terminal shows "+want, func() bool { return strings.Contains(out.String(), want) })
	}
	sees("size 90x33")
	sizes <- [2]uint16{120, 40}
	sees("size 120x40")
	if _, err := io.WriteString(user, "hello\n"); err != nil {
		t.Fatal(err)
	}
	sees("line hello")
	// The user's end of input does not hang the terminal up.
	if _, err := io.WriteString(user, "quit\n"); err != nil {
		t.Fatal(err)
	}
	<-done
	if code != 4 || err != nil {
		t.Errorf("exec = %d, %v, want 4; it wrote %q", code, err, out.String())
	}
	user.Close()
}
