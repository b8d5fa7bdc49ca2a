package logger

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// process makes the test binary a logger.
const process = "BATON_TEST_LOGGER"

func TestMain(m *testing.M) {
	if os.Getenv(process) != "" {
		os.Exit(Main(os.Args[1:]))
	}
	os.Exit(m.Run())
}

// node is a directory with the process that keeps the output of its tasks.
type node struct {
	*Process
	t *testing.T
}

func newNode(t *testing.T) *node {
	t.Helper()
	t.Setenv(process, "1")
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	n := &node{t: t, Process: &Process{Program: self, Logs: filepath.Join(dir, "logs"), Fifos: filepath.Join(dir, "fifo"), Run: dir}}
	for _, d := range []string{n.Logs, n.Fifos} {
		if err := os.Mkdir(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		n.Close()
		n.kill()
	})
	return n
}

// pid is the process by its command line; zero: there is none.
func (n *node) pid() int {
	es, err := os.ReadDir("/proc")
	if err != nil {
		n.t.Fatal(err)
	}
	for _, e := range es {
		b, _ := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline")) // it may be gone
		if args := strings.Split(string(b), "\x00"); len(args) > 3 && args[1] == "__logger" && args[3] == n.Fifos {
			pid, err := strconv.Atoi(e.Name())
			if err != nil {
				n.t.Fatal(err)
			}
			return pid
		}
	}
	return 0
}

func (n *node) kill() {
	if pid := n.pid(); pid != 0 {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			n.t.Error(err)
		}
		n.eventually("it is gone", func() bool { return n.pid() != pid })
	}
}

func (n *node) eventually(what string, true func() bool) {
	n.t.Helper()
	for until := time.Now().Add(30 * time.Second); !true(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(until) {
			n.t.Fatalf("not in 30 s: %s", what)
		}
	}
}

// open opens a task's pipes as a shim does: each at both ends.
func (n *node) open(task string, a Args) (in [2]*os.File) {
	n.t.Helper()
	stdout, stderr, err := n.Open(n.t.Context(), task, a)
	if err != nil {
		n.t.Fatal(err)
	}
	for i, path := range []string{stdout, stderr} {
		if in[i], err = os.OpenFile(path, os.O_RDWR, 0); err != nil {
			n.t.Fatal(err)
		}
		n.t.Cleanup(func() { _ = in[i].Close() })
	}
	return in
}

func (n *node) write(f *os.File, text string) {
	n.t.Helper()
	if _, err := f.WriteString(text); err != nil {
		n.t.Fatal(err)
	}
}

func (n *node) log(task string) string {
	n.t.Helper()
	b, err := os.ReadFile(filepath.Join(n.Logs, task, "log"))
	if err != nil {
		n.t.Fatal(err)
	}
	return string(b)
}

func (n *node) end(task string) {
	n.t.Helper()
	if err := n.End(n.t.Context(), task); err != nil {
		n.t.Fatal(err)
	}
	n.eventually("the log is closed", func() bool {
		alive, closed := Alive(filepath.Join(n.Logs, task))
		return !alive && closed
	})
}

// The process and the baton that speaks to it may be of different versions. What they share must stay as it is.
func TestWhatVersionsShare(t *testing.T) {
	n := newNode(t)
	in := n.open("task", Args{MaxSize: 5 << 10, MaxFiles: 2})
	if want := filepath.Join(n.Fifos, "task,5120,2"); in[0].Name() != want+".out" || in[1].Name() != want+".err" {
		t.Errorf("pipes %s and %s, want %s.out and .err", in[0].Name(), in[1].Name(), want)
	}
	dir := filepath.Join(n.Logs, "task")
	lock, err := os.Open(filepath.Join(dir, "lock"))
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_SH|syscall.LOCK_NB); err == nil {
		t.Error("a log that is kept is not locked")
	}
	if pid := n.pid(); PID(dir) != pid {
		t.Errorf("the lock names process %d, want %d", PID(dir), pid)
	}
	c, err := net.Dial("unix", filepath.Join(n.Run, "l.sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	n.write(in[0], "to out\n")
	n.write(in[1], "to err, unfinished")
	r := bufio.NewReader(c)
	for _, x := range [][2]string{{"hello", n.Program}, {"open task,5120,2", "ok"}, {"end other", "ok"}, {"end task", "ok"}, {"open ../x,1,1", "error: "}, {"dance", "error: "}} {
		if _, err := c.Write([]byte(x[0] + "\n")); err != nil {
			t.Fatal(err)
		}
		if got, err := r.ReadString('\n'); err != nil || !strings.HasPrefix(got, x[1]) {
			t.Errorf("%s: %q, %v; want %q", x[0], got, err, x[1])
		}
	}
	n.eventually("the log is closed", func() bool { _, err := os.Stat(filepath.Join(dir, "closed")); return err == nil })
	for _, want := range []string{" stdout F to out\n", " stderr P to err, unfinished\n"} {
		if !strings.Contains(n.log("task"), want) {
			t.Errorf("log %q, want %q in it", n.log("task"), want)
		}
	}
	n.eventually("the pipes are gone", func() bool { es, err := os.ReadDir(n.Fifos); return err == nil && len(es) == 0 })
}

// missing are the bytes of the lines that a log does not have; none may be there twice.
func missing(t *testing.T, log string, lines int) (lost int) {
	t.Helper()
	for i := range lines {
		line := fmt.Sprintf("line %d\n", i)
		switch strings.Count(log, line) {
		case 0:
			lost += len(line)
		case 1:
		default:
			t.Fatalf("line %d is there more than once", i)
		}
	}
	return lost
}

// Whatever becomes of the process, each line of a task that goes on is kept once; but for what a process had just read when it was killed.
func TestTasksOutliveTheProcess(t *testing.T) {
	for name, end := range map[string]func(n *node){
		"killed": (*node).kill,
		"killed while baton is away": func(n *node) {
			n.Close()
			n.kill()
			n.Process = &Process{Program: n.Program, Logs: n.Logs, Fifos: n.Fifos, Run: n.Run, Restarted: n.Restarted}
			if err := n.Resume(n.t.Context()); err != nil {
				n.t.Fatal(err)
			}
		},
		"replaced by another version": func(n *node) {
			other := filepath.Join(n.Run, "other")
			b, err := os.ReadFile(n.Program)
			if err == nil {
				err = os.WriteFile(other, b, 0o700)
			}
			if err != nil {
				n.t.Fatal(err)
			}
			n.Close()
			n.Process = &Process{Program: other, Logs: n.Logs, Fifos: n.Fifos, Run: n.Run, Restarted: n.Restarted}
			if err := n.Resume(n.t.Context()); err != nil {
				n.t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t)
			restarts := make(chan struct{}, 10)
			n.Restarted = func() { restarts <- struct{}{} }
			in := n.open("task", Args{})
			const lines = 20000
			written := make(chan error, 1)
			go func() {
				for i := range lines {
					if _, err := fmt.Fprintf(in[i%2], "line %d\n", i); err != nil {
						written <- err
						return
					}
				}
				written <- nil
			}()
			n.eventually("something is kept", func() bool { return strings.Contains(n.log("task"), "line 99\n") })
			first := n.pid()
			end(n)
			if err := <-written; err != nil {
				t.Fatal(err)
			}
			n.eventually("another process", func() bool { pid := n.pid(); return pid != 0 && pid != first })
			n.end("task")
			lost := missing(t, n.log("task"), lines)
			killed := strings.HasPrefix(name, "killed")
			if lost > 0 && !killed || lost > 2*bufferSize {
				t.Errorf("some %d bytes are lost", lost)
			}
			if killed != (len(restarts) > 0) {
				t.Errorf("%d restarts told, want one: %v", len(restarts), killed)
			}
		})
	}
}

func TestFollowersOfATaskSeeOneLog(t *testing.T) {
	n := newNode(t)
	first := n.open("task", Args{})
	n.write(first[0], "of the first container\n")
	if err := n.End(t.Context(), "task"); err != nil {
		t.Fatal(err)
	}
	second := n.open("task", Args{}) // at once: it waits for the first one's rest
	n.write(second[1], "of the second container\n")
	n.end("task")
	if log := n.log("task"); strings.Index(log, "of the first") > strings.Index(log, "of the second") || !strings.Contains(log, "of the first") {
		t.Errorf("log %q, want both in order", log)
	}
}

func TestItEndsWhenNobodyNeedsIt(t *testing.T) {
	n := newNode(t)
	n.open("task", Args{})
	n.Close()
	time.Sleep(3 * aloneMax)
	if n.pid() == 0 {
		t.Fatal("it ended though it had something to keep")
	}
	n.Process = &Process{Program: n.Program, Logs: n.Logs, Fifos: n.Fifos, Run: n.Run}
	n.end("task")
	n.Close()
	n.eventually("it is gone", func() bool { return n.pid() == 0 })
}

// They are started often, or always there: their packages are the standard library's.
func TestImports(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", "baton/cmd/baton-logger", "baton/cmd/baton-shim").CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, p := range strings.Fields(string(out)) {
		first, _, _ := strings.Cut(p, "/")
		own := p == "baton/internal/node/logger" || p == "baton/internal/node/shim" || strings.HasPrefix(p, "baton/cmd/")
		if strings.Contains(first, ".") || first == "baton" && !own {
			t.Errorf("they import %s", p)
		}
	}
}
