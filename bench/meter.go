package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/cgroups/v3"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// cgroupTop is the parent of all our groups in every hierarchy.
const cgroupTop = "/baton-bench"

// group is a cgroup that counts the CPU time of every process that was ever started in it: also of those that are gone, and of those
// whose parent is gone, which no sum over /proc could give.
type group struct {
	path string // below the root of the hierarchy
}

// newGroup makes /baton-bench/NAME with a child for processes. The containers' groups belong beside that child: with cgroup v2 a group
// with controllers for its children holds no processes.
func newGroup(name string) (*group, error) {
	g := &group{path: cgroupTop + "/" + name}
	if err := os.MkdirAll(accounting(g.path+"/procs"), 0o755); err != nil {
		return nil, fmt.Errorf("cgroup for measuring: %w", err)
	}
	return g, nil
}

// accounting is where the CPU time of a cgroup is told.
func accounting(path string) string {
	if cgroups.Mode() == cgroups.Unified {
		return "/sys/fs/cgroup" + path
	}
	for _, name := range []string{"cpu,cpuacct", "cpuacct,cpu"} {
		if _, err := os.Stat("/sys/fs/cgroup/" + name); err == nil {
			return "/sys/fs/cgroup/" + name + path
		}
	}
	return "/sys/fs/cgroup/cpuacct" + path
}

// cpu is the time spent so far in the cgroup and below it; zero while there is none.
func cpu(path string) (time.Duration, error) {
	if cgroups.Mode() != cgroups.Unified {
		b, err := os.ReadFile(accounting(path) + "/cpuacct.usage")
		if errors.Is(err, fs.ErrNotExist) {
			return 0, nil
		}
		if err != nil {
			return 0, err
		}
		n, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
		return time.Duration(n), err
	}
	b, err := os.ReadFile(accounting(path) + "/cpu.stat")
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	for line := range bytes.Lines(b) {
		if v, ok := bytes.CutPrefix(line, []byte("usage_usec ")); ok {
			n, err := strconv.ParseInt(string(bytes.TrimSpace(v)), 10, 64)
			return time.Duration(n) * time.Microsecond, err
		}
	}
	return 0, fmt.Errorf("%s/cpu.stat has no usage_usec", accounting(path))
}

// procs lists the processes that live in the group.
func (g *group) procs() ([]int, error) {
	b, err := os.ReadFile(accounting(g.path+"/procs") + "/cgroup.procs")
	if err != nil {
		return nil, err
	}
	var out []int
	for _, f := range strings.Fields(string(b)) {
		pid, err := strconv.Atoi(f)
		if err != nil {
			return nil, err
		}
		out = append(out, pid)
	}
	return out, nil
}

// start starts a command in the group, and in a network namespace if one is named. A child begins where the thread is that forks it,
// so that nothing it does goes uncounted.
func (g *group) start(cmd *exec.Cmd, ns string) error {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // not unlocked: the thread ends with the goroutine and leaves the group and the namespace
		done <- g.startHere(cmd, ns)
	}()
	return <-done
}

func (g *group) startHere(cmd *exec.Cmd, ns string) error {
	if ns != "" {
		h, err := netns.GetFromPath(ns)
		if err != nil {
			return err
		}
		defer h.Close()
		if err := netns.Set(h); err != nil {
			return err
		}
	}
	dir := accounting(g.path + "/procs")
	if cgroups.Mode() != cgroups.Unified {
		if err := os.WriteFile(dir+"/tasks", []byte(strconv.Itoa(unix.Gettid())), 0o644); err != nil {
			return fmt.Errorf("enter cgroup: %w", err)
		}
		return cmd.Start()
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = true, int(d.Fd())
	return cmd.Start()
}

// run is start, then waits; the error has what the command said.
func (g *group) run(cmd *exec.Cmd) error {
	said, err := os.CreateTemp("", "baton-bench")
	if err != nil {
		return err
	}
	defer said.Close()
	defer os.Remove(said.Name())
	// A file, not a pipe: the container that runc leaves running would hold a pipe open.
	cmd.Stderr = said
	if err := g.start(cmd, ""); err != nil {
		return err
	}
	if err := cmd.Wait(); err != nil {
		text, _ := os.ReadFile(said.Name())
		return fmt.Errorf("%s: %w: %s", filepath.Base(cmd.Path), err, bytes.TrimSpace(text))
	}
	return nil
}

// removeGroups kills what is left in our cgroups and removes them from every hierarchy.
func removeGroups() error {
	tops, err := filepath.Glob("/sys/fs/cgroup/*" + cgroupTop)
	if err != nil {
		return err
	}
	var errs []error
	for _, top := range append(tops, "/sys/fs/cgroup"+cgroupTop) {
		errs = append(errs, removeTree(top))
	}
	return errors.Join(errs...)
}

// goneMax is how long killed processes may take to leave a cgroup.
const goneMax = 10 * time.Second

func removeTree(top string) error {
	var dirs []string
	err := filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err == nil && d.IsDir() {
			dirs = append(dirs, path)
		}
		return err
	})
	if err != nil {
		return err
	}
	deadline := time.Now().Add(goneMax)
	for i := len(dirs) - 1; i >= 0; {
		killGroup(dirs[i])
		err := os.Remove(dirs[i])
		if err == nil || errors.Is(err, fs.ErrNotExist) {
			i--
			continue
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("remove cgroup: %w", err)
		}
		time.Sleep(20 * time.Millisecond)
	}
	return nil
}

func killGroup(dir string) {
	b, err := os.ReadFile(dir + "/cgroup.procs")
	if err != nil {
		return
	}
	for _, f := range strings.Fields(string(b)) {
		if pid, err := strconv.Atoi(f); err == nil && pid > 1 {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	}
}
