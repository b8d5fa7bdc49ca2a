package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"baton/client"
	noderuntime "baton/internal/node/runtime"
)

// Where everything is that a run leaves on disk: the node's data as on a user's machine, and what must be in memory.
const (
	dataTop = "/var/lib/baton-bench"
	runTop  = "/run/baton-bench"
)

const (
	machineIP = "192.0.2.1" // of TEST-NET-1: nobody's
	gatewayIP = "192.0.2.2"
	// upMax is how long the server may take until its API answers, stopMax until it has ended.
	upMax, stopMax = 2 * time.Minute, 30 * time.Second
)

// machine is a node with a real baton server, in a network namespace of its own.
type machine struct {
	binary string
	data   string
	ns     string // path of the namespace
	group  *group
	client *client.Client

	server *exec.Cmd
	exited chan struct{} // closed once the server has ended
}

// newMachine starts a server. The caller closes the machine also when there is an error.
func newMachine(ctx context.Context, binary string) (*machine, error) {
	m := &machine{binary: binary, data: dataTop + "/data", ns: runTop + "/ns", exited: make(chan struct{})}
	var err error
	if m.group, err = newGroup("baton"); err != nil {
		return m, err
	}
	if err := makeNamespace(m.ns); err != nil {
		return m, err
	}
	if m.client, err = client.New(client.Config{Address: "unix://" + m.data + "/baton.sock", UserAgent: "baton-bench"}); err != nil {
		return m, err
	}
	return m, m.start(ctx)
}

// makeNamespace pins a network namespace at path. It has a default route, as every machine; the link leads nowhere.
func makeNamespace(path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // not unlocked: the thread ends with the goroutine
		done <- func() error {
			if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
				return fmt.Errorf("unshare: %w", err)
			}
			if err := makeLinks(); err != nil {
				return fmt.Errorf("links of the bench's namespace: %w", err)
			}
			return unix.Mount(fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid()), path, "", unix.MS_BIND, "")
		}()
	}()
	return <-done
}

func makeLinks() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return err
	}
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0", MTU: 1500}, PeerName: "far0"}); err != nil {
		return err
	}
	for _, name := range []string{"far0", "eth0"} {
		l, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		if err := netlink.LinkSetUp(l); err != nil {
			return err
		}
		if name == "far0" {
			continue
		}
		addr, err := netlink.ParseAddr(machineIP + "/24")
		if err != nil {
			return err
		}
		if err := netlink.AddrAdd(l, addr); err != nil {
			return err
		}
		if err := netlink.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Gw: net.ParseIP(gatewayIP)}); err != nil {
			return err
		}
	}
	return nil
}

func (m *machine) start(ctx context.Context) error {
	log, err := os.OpenFile(m.logPath(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(m.binary, "server", "--data-dir", m.data, "--name", "bench")
	cmd.Stdout, cmd.Stderr = log, log
	// A group of its own: an interrupt from the terminal is for us, who then end the server in order.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := m.group.start(cmd, m.ns); err != nil {
		return fmt.Errorf("start server: %w", err)
	}
	m.server = cmd
	go func() { // ends with the server, which close waits for
		_ = cmd.Wait()
		close(m.exited)
	}()
	ctx, cancel := context.WithTimeout(ctx, upMax)
	defer cancel()
	for {
		_, err := m.client.Nodes(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-m.exited:
			return fmt.Errorf("the server ended; its log says:\n%s", m.logEnd())
		case <-ctx.Done():
			return fmt.Errorf("the API does not answer: %w", errors.Join(ctx.Err(), err))
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func (m *machine) logPath() string { return dataTop + "/server.log" }

func (m *machine) logEnd() string {
	b, err := os.ReadFile(m.logPath())
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	return strings.Join(lines[max(0, len(lines)-30):], "\n")
}

// load imports an archive of images.
func (m *machine) load(ctx context.Context, archive string) error {
	f, err := os.Open(archive)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = m.client.LoadImage(ctx, "", f)
	return err
}

// close ends the server and removes everything of the run.
func (m *machine) close() error {
	if m.client != nil {
		m.client.Close()
	}
	if m.server != nil {
		_ = m.server.Process.Signal(syscall.SIGTERM)
		select {
		case <-m.exited:
		case <-time.After(stopMax):
			_ = m.server.Process.Kill()
			<-m.exited
		}
	}
	return sweep(m.binary)
}

// cpu is what baton, containerd, the shims, runc, the loggers and the containers have used so far.
func (m *machine) cpu() (time.Duration, error) {
	own, err := cpu(m.group.path)
	if err != nil {
		return 0, err
	}
	tasks, err := cpu(m.cgroup())
	return own + tasks, err
}

// runDir is where the node keeps sockets and state of this boot.
func (m *machine) runDir() string { return noderuntime.RunDir(m.data) }

// cgroup is the parent of the node's tasks.
func (m *machine) cgroup() string { return "/baton/" + filepath.Base(m.runDir()) }

// program is the base name of a process's executable; empty when it is gone.
func program(pid int) string {
	exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
	if err != nil {
		return ""
	}
	return strings.TrimSuffix(filepath.Base(exe), " (deleted)")
}

// sweep removes every trace of this or an earlier run: processes, cgroups, namespaces, mounts and files.
func sweep(binary string) error {
	var errs []error
	data := dataTop + "/data"
	killServer(binary, data)
	if _, err := os.Stat(data + "/node.json"); err == nil {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
		defer cancel()
		if out, err := exec.CommandContext(ctx, binary, "reset", "--data-dir", data, "--yes").CombinedOutput(); err != nil {
			errs = append(errs, fmt.Errorf("baton reset: %w: %s", err, out))
		}
	}
	errs = append(errs, removeGroups())
	for _, top := range []string{runTop, dataTop} {
		if err := unmountBelow(top); err != nil {
			errs = append(errs, err)
			continue // what is mounted there is not ours to delete
		}
		errs = append(errs, os.RemoveAll(top))
	}
	return errors.Join(errs...)
}

// killServer ends a server that an earlier run left, recognized by its data directory.
func killServer(binary, data string) {
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		b, err := os.ReadFile(dir + "/cmdline")
		if err != nil {
			continue
		}
		args := strings.Split(string(b), "\x00")
		if args[0] != binary || !slices.Contains(args, "server") || !slices.Contains(args, data) {
			continue
		}
		var pid int
		if _, err := fmt.Sscanf(dir, "/proc/%d", &pid); err != nil || pid == os.Getpid() {
			continue
		}
		_ = syscall.Kill(pid, syscall.SIGKILL)
		for deadline := time.Now().Add(goneMax); time.Now().Before(deadline) && syscall.Kill(pid, 0) == nil; {
			time.Sleep(20 * time.Millisecond)
		}
	}
}

// unmountBelow unmounts everything under a directory, the newest first.
func unmountBelow(top string) error {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	var points []string
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) > 4 && strings.HasPrefix(f[4], top+"/") {
			points = append(points, f[4])
		}
	}
	slices.Reverse(points)
	for _, p := range points {
		if err := unix.Unmount(p, unix.MNT_DETACH); err != nil {
			return fmt.Errorf("unmount %s: %w", p, err)
		}
	}
	return nil
}
