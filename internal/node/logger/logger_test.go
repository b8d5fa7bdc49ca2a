package logger

import (
	"os"
	"os/exec"
	"path/filepath"
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

// launch starts a logger as a shim does, and returns what its task would write to.
func launch(t *testing.T, arg string) (cmd *exec.Cmd, in [2]*os.File) {
	t.Helper()
	var files []*os.File
	for i := range in {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		in[i], files = w, append(files, r)
	}
	ready, told, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd = exec.Command(os.Args[0], "__logger", arg)
	cmd.Env = append(os.Environ(), process+"=1")
	cmd.ExtraFiles = append(files, told)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	for _, f := range cmd.ExtraFiles {
		_ = f.Close()
	}
	var b [1]byte
	if n, err := ready.Read(b[:]); n != 1 {
		t.Fatalf("it does not say that it is ready: %v", err)
	}
	return cmd, in
}

// A logger and the baton that reads its log may be of different versions. What they share must stay as it is.
func TestWhatVersionsShare(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "task")
	if got, want := (Args{Dir: dir, MaxSize: 5, MaxFiles: 2}).Encode(), "5:2:"+dir; got != want {
		t.Errorf("arguments %q, want %q", got, want)
	}
	cmd, in := launch(t, "0:0:"+dir)
	lock, err := os.Open(filepath.Join(dir, "lock"))
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_SH|syscall.LOCK_NB); err == nil {
		t.Error("a living logger does not hold its lock")
	}
	if pid := PID(dir); pid != cmd.Process.Pid {
		t.Errorf("the lock names process %d, want %d", pid, cmd.Process.Pid)
	}
	for i, f := range in {
		if _, err := f.WriteString([]string{"to out\n", "to err, unfinished"}[i]); err != nil {
			t.Fatal(err)
		}
	}
	// The streams stay open, as a shim keeps them: the signal is what ends it.
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	select {
	case err := <-ended:
		if err != nil {
			t.Fatal(err)
		}
	case <-time.After(30 * time.Second):
		t.Fatal("it does not end")
	}
	if _, err := os.Stat(filepath.Join(dir, "closed")); err != nil {
		t.Errorf("an orderly end is not marked: %v", err)
	}
	log, err := os.ReadFile(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{" stdout F to out\n", " stderr P to err, unfinished\n"} {
		if !strings.Contains(string(log), want) {
			t.Errorf("log %q, want %q in it", log, want)
		}
	}
}

// A logger is started once per container: its packages are the standard library's.
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
