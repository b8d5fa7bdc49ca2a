package runtime_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"baton/internal/node/runtime"
	"baton/internal/wire/agentapi"
)

// numbers are the line numbers in a log, by stream.
func numbers(t *testing.T, lines []agentapi.LogLine) map[string][]int {
	t.Helper()
	out := map[string][]int{}
	for _, l := range lines {
		var name string
		var n int
		if _, err := fmt.Sscanf(l.Text, "%s line %d", &name, &n); err != nil || l.Partial {
			t.Fatalf("line %+v: %v", l, err)
		}
		if "std"+name != l.Stream {
			t.Errorf("line %q came as %s", l.Text, l.Stream)
		}
		out[l.Stream] = append(out[l.Stream], n)
	}
	return out
}

func collect(t *testing.T, n *node, id taskID, o agentapi.LogOptions) (lines []agentapi.LogLine) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), waitMax)
	defer cancel()
	for l, err := range n.logs.Read(ctx, id, o) {
		if err != nil {
			t.Fatal(err)
		}
		lines = append(lines, l)
	}
	if ctx.Err() != nil {
		t.Fatal("reading the log does not end")
	}
	return lines
}

func TestLogs(t *testing.T) {
	n := start(t)
	t.Run("follow over restarts of all parts", func(t *testing.T) { logsFollowOverRestartsOfAllParts(t, n) })
	t.Run("rotation", func(t *testing.T) { logsRotation(t, n) })
	t.Run("long and unfinished lines", func(t *testing.T) { logsLongAndUnfinishedLines(t, n) })
	t.Run("terminal", func(t *testing.T) { logsTerminal(t, n) })
	t.Run("go on with another logger", func(t *testing.T) { logsGoOnWithAnotherLogger(t, n) })
	n.empty()
}

func logsFollowOverRestartsOfAllParts(t *testing.T, n *node) {
	id := n.mustStart(container("lines", "1500", "2000"))
	done := make(chan []agentapi.LogLine)
	go func() { done <- collect(t, n, id, agentapi.LogOptions{Tail: -1, Follow: true}) }()
	time.Sleep(500 * time.Millisecond)
	n.restart()
	n.kill(n.containerd())
	eventually(t, "containerd is back", func() bool { _, err := n.Observe(t.Context()); return err == nil })
	n.waitExit(id)
	lines := <-done
	got := numbers(t, lines)
	if len(got[runtime.Stdout]) != 1000 || len(got[runtime.Stderr]) != 500 {
		t.Errorf("%d and %d lines, want 1000 and 500", len(got[runtime.Stdout]), len(got[runtime.Stderr]))
	}
	for s, ns := range got {
		if !slices.IsSorted(ns) {
			t.Errorf("%s is out of order", s)
		}
	}
	if !slices.IsSortedFunc(lines, func(a, b agentapi.LogLine) int { return a.Time.Compare(b.Time) }) {
		t.Error("times go back")
	}
	if l := collect(t, n, id, agentapi.LogOptions{Tail: 3}); len(l) != 3 || l[2].Text != lines[len(lines)-1].Text {
		t.Errorf("tail = %v", l)
	}
	from := lines[700].Time
	if l := collect(t, n, id, agentapi.LogOptions{Tail: -1, Since: from}); len(l) < 700 || l[0].Time.Before(from) {
		t.Errorf("since: %d lines from %s", len(l), l[0].Time)
	}
}

func logsRotation(t *testing.T, n *node) {
	c := container("lines", "3000", "300")
	c.Spec.Logging.MaxSize, c.Spec.Logging.MaxFiles = 20<<10, 4
	id := n.mustStart(c)
	got := numbers(t, collect(t, n, id, agentapi.LogOptions{Tail: -1, Follow: true}))
	if all := len(got[runtime.Stdout]) + len(got[runtime.Stderr]); all != 3000 {
		t.Errorf("a follower saw %d lines, want all 3000", all)
	}
	files, _ := filepath.Glob(filepath.Join(n.dir, "logs", id.String(), "log*"))
	var size int64
	for _, f := range files {
		st, err := os.Stat(f)
		if err != nil {
			t.Fatal(err)
		}
		size += st.Size()
		if st.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %o", f, st.Mode().Perm())
		}
	}
	if len(files) != 4 || size > 5*20<<10 {
		t.Errorf("%d files of %d bytes, want 4 of 80 KiB", len(files), size)
	}
	kept := numbers(t, collect(t, n, id, agentapi.LogOptions{Tail: -1}))[runtime.Stdout]
	if len(kept) == 0 || kept[len(kept)-1] < 2990 {
		t.Errorf("the newest lines are lost: %v", kept)
	}
	if err := n.logs.Remove(id); err != nil {
		t.Fatal(err)
	}
	if l := collect(t, n, id, agentapi.LogOptions{Tail: -1}); len(l) != 0 {
		t.Errorf("after removal = %v", l)
	}
}

func logsLongAndUnfinishedLines(t *testing.T, n *node) {
	text := strings.Repeat("a", 40000)
	id := n.mustStart(container("say", text, "short"))
	n.waitExit(id)
	n.waitOutput(id, "short")
	if got := n.output(id, runtime.Stdout); got != text+"\n" {
		t.Errorf("%d bytes of the long line, want 40001", len(got))
	}
	id = n.mustStart(container("read", "/data/seed"))
	n.waitOutput(id, "seeded")
}

func logsTerminal(t *testing.T, n *node) {
	c := container("tty")
	c.Spec.Container.TTY = true
	id := n.mustStart(c)
	n.waitOutput(id, "size ")
	if o := n.observed(id); o.PID == 0 {
		t.Errorf("observed = %+v, want it running", o)
	}
}

func logsGoOnWithAnotherLogger(t *testing.T, n *node) {
	id := n.mustStart(container("lines", "1500", "2000"))
	eventually(t, "something is kept", func() bool { return n.output(id, runtime.Stdout) != "" })
	pids := n.processes(runtime.LoggerCommand, filepath.Join(n.dir, "logs"))
	if len(pids) != 1 {
		t.Fatalf("loggers %v, want one", pids)
	}
	n.kill(pids[0])
	eventually(t, "it is noted", func() bool {
		n.mu.Lock()
		defer n.mu.Unlock()
		return slices.ContainsFunc(n.notes, func(x agentapi.Note) bool { return x.Type == "node.logger-restarted" })
	})
	n.waitExit(id)
	// What it had just read may be lost.
	got := numbers(t, collect(t, n, id, agentapi.LogOptions{Tail: -1, Follow: true}))
	if out, err := got[runtime.Stdout], got[runtime.Stderr]; len(out) < 990 || len(err) < 490 || out[len(out)-1] < 1490 {
		t.Errorf("%d and %d lines, want nearly 1000 and 500", len(out), len(err))
	}
}
