package runtime

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"baton/internal/model/cluster"
)

const cgroupMount = "/sys/fs/cgroup"

// taskCgroup is the task's cgroup path, below the mount point of each hierarchy.
func (r *Runtime) taskCgroup(id cluster.ID) string { return r.cfg.Cgroup + "/" + id.String() }

// Cgroups are the cgroup directories that a task's processes are in, from its start on.
func (r *Runtime) Cgroups(id cluster.ID) []string { return cgroupDirs(r.taskCgroup(id)) }

// cgroupDirs are the directories of a cgroup: one on unified machines, one per controller on others.
func cgroupDirs(group string) []string {
	if _, err := os.Stat(filepath.Join(cgroupMount, "cgroup.controllers")); err == nil {
		return []string{filepath.Join(cgroupMount, group)}
	}
	es, err := os.ReadDir(cgroupMount)
	if err != nil {
		return nil
	}
	var dirs []string
	for _, e := range es {
		// Links name the same hierarchy twice (cpu,cpuacct).
		if e.IsDir() {
			dirs = append(dirs, filepath.Join(cgroupMount, e.Name(), group))
		}
	}
	return dirs
}

// oomKills is how many processes of the cgroup the kernel has killed for memory; zero when the cgroup is gone.
func oomKills(v2 bool, group string) int64 {
	path := filepath.Join(cgroupMount, "memory", group, "memory.oom_control")
	if v2 {
		path = filepath.Join(cgroupMount, group, "memory.events")
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return 0
	}
	return parseOOMKills(b)
}

// parseOOMKills reads memory.oom_control (v1) or memory.events (v2).
func parseOOMKills(b []byte) int64 {
	for line := range bytes.Lines(b) {
		if v, ok := bytes.CutPrefix(bytes.TrimSpace(line), []byte("oom_kill ")); ok {
			n, _ := strconv.ParseInt(string(v), 10, 64)
			return n
		}
	}
	return 0
}

// killCgroup kills every process in the cgroup and below it.
func killCgroup(group string) {
	for _, dir := range cgroupDirs(group) {
		_ = filepath.WalkDir(dir, func(p string, e fs.DirEntry, err error) error {
			if err != nil || e.Name() != "cgroup.procs" {
				return nil
			}
			b, _ := os.ReadFile(p)
			for _, f := range strings.Fields(string(b)) {
				if pid, err := strconv.Atoi(f); err == nil && pid > 1 {
					_ = unix.Kill(pid, unix.SIGKILL)
				}
			}
			return nil
		})
	}
}

// removeCgroup removes the cgroup and those below it, waiting a little for killed processes to leave them.
func removeCgroup(group string) error {
	deadline := time.Now().Add(5 * time.Second)
	for {
		var errs []error
		for _, dir := range cgroupDirs(group) {
			errs = append(errs, removeTree(dir))
		}
		err := errors.Join(errs...)
		if err == nil || time.Now().After(deadline) {
			return err
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// removeTree removes a cgroup directory, children first. Its files go with it.
func removeTree(dir string) error {
	es, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range es {
		if e.IsDir() {
			if err := removeTree(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	if err := unix.Rmdir(dir); err != nil && !errors.Is(err, unix.ENOENT) {
		return &fs.PathError{Op: "remove cgroup", Path: dir, Err: err}
	}
	return nil
}
