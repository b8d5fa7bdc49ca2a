package e2e

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// The two ends of the link between a machine and its outside world.
const (
	machineIP = "192.0.2.1"
	outsideIP = "192.0.2.2"
)

// machine is a node with a baton server.
type machine struct {
	t       *testing.T
	name    string
	ip      string // in a cluster
	join    string // the line to join with at the first start; empty: found a cluster
	dir     string // below leftoversDir
	data    string
	socket  string
	ns      string // path of the node's namespace
	outside string
	binary  string // another build than that under test; empty: bin/baton
	witness bool   // joins as one
	server  *exec.Cmd
	exited  chan error
}

// newMachine makes a machine and starts its server. Everything goes away with the test.
func newMachine(t *testing.T) *machine {
	t.Helper()
	dir, err := os.MkdirTemp(leftoversDir, "m")
	if err != nil {
		t.Fatal(err)
	}
	m := newMachineIn(t, dir, "n1")
	m.outside = filepath.Join(dir, "outside")
	t.Cleanup(m.remove)
	for _, path := range []string{m.ns, m.outside} {
		makeNamespace(t, path)
	}
	m.link()
	m.start()
	return m
}

// newMachineIn describes a machine below dir; nothing is made yet.
func newMachineIn(t *testing.T, dir, name string) *machine {
	m := &machine{t: t, name: name, dir: dir, data: filepath.Join(dir, "data"), ns: filepath.Join(dir, "ns")}
	m.socket = filepath.Join(m.data, "baton.sock")
	return m
}

// makeNamespace pins a new network namespace at path.
func makeNamespace(t *testing.T, path string) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // not unlocked: the thread ends with the goroutine and takes the namespace's marks with it
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("unshare: %w", err)
			return
		}
		// Bridges here would otherwise hide a missing rule behind the host's filters.
		_ = os.WriteFile("/proc/sys/net/bridge/bridge-nf-call-iptables", []byte("0"), 0o644)
		lo, err := netlink.LinkByName("lo")
		if err == nil {
			err = netlink.LinkSetUp(lo)
		}
		if err == nil {
			err = unix.Mount(fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid()), path, "", unix.MS_BIND, "")
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// removeNamespaces takes away the namespaces below a machine's directory, and with them their links.
func removeNamespaces(dir string) {
	for _, name := range []string{"ns", "outside"} {
		path := filepath.Join(dir, name)
		_ = unix.Unmount(path, unix.MNT_DETACH)
		_ = os.Remove(path)
	}
}

// link joins the machine and the outside world.
func (m *machine) link() {
	m.t.Helper()
	in, err := netns.GetFromPath(m.ns)
	if err != nil {
		m.t.Fatal(err)
	}
	defer in.Close()
	out, err := netns.GetFromPath(m.outside)
	if err != nil {
		m.t.Fatal(err)
	}
	defer out.Close()
	h, err := netlink.NewHandleAt(in)
	if err != nil {
		m.t.Fatal(err)
	}
	defer h.Close()
	veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0", MTU: 1500}, PeerName: "eth0", PeerNamespace: netlink.NsFd(out)}
	if err := h.LinkAdd(veth); err != nil {
		m.t.Fatal("veth: ", err)
	}
	configure(m.t, h, machineIP, net.ParseIP(outsideIP))
	o, err := netlink.NewHandleAt(out)
	if err != nil {
		m.t.Fatal(err)
	}
	defer o.Close()
	configure(m.t, o, outsideIP, nil)
}

func configure(t *testing.T, h *netlink.Handle, ip string, gateway net.IP) {
	t.Helper()
	l, err := h.LinkByName("eth0")
	if err != nil {
		t.Fatal(err)
	}
	addr, err := netlink.ParseAddr(ip + "/24")
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(h.AddrAdd(l, addr), h.LinkSetUp(l)); err != nil {
		t.Fatal(err)
	}
	if gateway != nil {
		if err := h.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Gw: gateway}); err != nil {
			t.Fatal(err)
		}
	}
}

// startIn starts a command whose network is the namespace at path.
func startIn(path string, cmd *exec.Cmd) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // not unlocked: the thread ends with the goroutine
		ns, err := netns.GetFromPath(path)
		if err != nil {
			done <- err
			return
		}
		defer ns.Close()
		if err := netns.Set(ns); err != nil {
			done <- err
			return
		}
		done <- cmd.Start()
	}()
	return <-done
}

// start starts the server and waits until its API answers.
func (m *machine) start() {
	m.t.Helper()
	m.launch()
	eventually(m.t, time.Minute, "the API answers", func() error {
		m.checkAlive()
		r := m.try("node", "ls")
		if r.code != 0 {
			return errors.New(r.stderr)
		}
		return nil
	})
}

// awaitReady waits until the server that was launched last has said that it is ready.
func (m *machine) awaitReady() {
	m.t.Helper()
	pid := fmt.Sprintf("pid=%d", m.server.Process.Pid)
	eventually(m.t, 30*time.Second, m.name+" is ready", func() error {
		m.checkAlive()
		data, err := os.ReadFile(filepath.Join(m.dir, "server.log"))
		if err == nil && !strings.Contains(string(data), "msg=ready "+"node="+m.name+" "+pid) {
			err = errors.New("it has not said so")
		}
		return err
	})
}

// checkAlive fails the test when the server has ended by itself.
func (m *machine) checkAlive() {
	m.t.Helper()
	select {
	case err := <-m.exited:
		m.exited <- err
		m.t.Fatalf("the server of %s ended: %v\n%s", m.name, err, m.log(40))
	default:
	}
}

// launch starts the server.
func (m *machine) launch() {
	m.t.Helper()
	log, err := os.OpenFile(filepath.Join(m.dir, "server.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		m.t.Fatal(err)
	}
	defer log.Close()
	verb := "server"
	if m.join != "" {
		verb = "join"
	}
	cmd := exec.Command(cmp.Or(m.binary, binary), verb, "--data-dir", m.data, "--name", m.name, "--log-level", "debug")
	if m.witness {
		cmd.Args = append(cmd.Args, "--witness")
	}
	cmd.Env = append(os.Environ(), "BATON_JOIN="+m.join)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := startIn(m.ns, cmd); err != nil {
		m.t.Fatal("start server: ", err)
	}
	m.server, m.exited = cmd, make(chan error, 1)
	go func(exited chan error) { exited <- cmd.Wait() }(m.exited)
	if err := os.WriteFile(filepath.Join(m.dir, "pid"), []byte(fmt.Sprint(cmd.Process.Pid)), 0o600); err != nil {
		m.t.Fatal(err)
	}
}

// kill ends the server with SIGKILL, as a crash would.
func (m *machine) kill() {
	m.t.Helper()
	if err := m.server.Process.Kill(); err != nil {
		m.t.Fatal(err)
	}
	<-m.exited
}

// stop ends the server as an operator would.
func (m *machine) stop() {
	m.t.Helper()
	if err := m.server.Process.Signal(syscall.SIGTERM); err != nil {
		m.t.Fatal(err)
	}
	select {
	case <-m.exited:
	case <-time.After(30 * time.Second):
		m.t.Errorf("the server does not stop on SIGTERM\n%s", m.log(40))
		m.kill()
	}
}

// containerd is the pid of the machine's containerd.
func (m *machine) containerd() int {
	m.t.Helper()
	procs, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		m.t.Fatal(err)
	}
	for _, p := range procs {
		data, err := os.ReadFile(p)
		if err != nil {
			continue
		}
		argv := strings.Split(string(data), "\x00")
		if filepath.Base(argv[0]) == "containerd" && strings.Contains(string(data), m.data) {
			var pid int
			if _, err := fmt.Sscanf(p, "/proc/%d/", &pid); err != nil {
				m.t.Fatal(err)
			}
			return pid
		}
	}
	m.t.Fatal("no containerd of this machine")
	return 0
}

func (m *machine) remove() {
	if m.t.Failed() {
		m.t.Logf("end of the server's log:\n%s", m.log(80))
	}
	if m.server != nil && m.server.ProcessState == nil {
		m.stop()
	}
	if r := m.tryReset(); r.code != 0 {
		m.t.Errorf("reset: exit %d: %s", r.code, r.stderr)
	}
	if pids := m.edges(); len(pids) > 0 {
		m.t.Errorf("reset: the edges %v are left", pids)
	}
	removeNamespaces(m.dir)
	if err := os.RemoveAll(m.dir); err != nil {
		m.t.Error(err)
	}
}

func (m *machine) tryReset() result {
	return m.run(exec.Command(binary, "reset", "--data-dir", m.data, "--yes"), nil)
}

func (m *machine) log(lines int) string {
	data, err := os.ReadFile(filepath.Join(m.dir, "server.log"))
	if err != nil {
		return err.Error()
	}
	all := slices.DeleteFunc(strings.Split(strings.TrimRight(string(data), "\n"), "\n"), func(line string) bool {
		return strings.Contains(line, " msg=request ") // of those who wait for something
	})
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

// result is how a command ended.
type result struct {
	stdout, stderr string
	code           int
}

// try runs the command line tool.
func (m *machine) try(args ...string) result { return m.tryIn(nil, args...) }

func (m *machine) tryIn(stdin []byte, args ...string) result {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, binary, args...)
	cmd.Env = append(os.Environ(), "BATON_HOST=unix://"+m.socket)
	return m.run(cmd, stdin)
}

func (m *machine) run(cmd *exec.Cmd, stdin []byte) result {
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(stdin), &stdout, &stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		m.t.Fatalf("%v: %v", cmd.Args, err)
	}
	return result{stdout: stdout.String(), stderr: stderr.String(), code: cmd.ProcessState.ExitCode()}
}

// runIn runs a command whose network is the namespace at path.
func runIn(t *testing.T, path string, cmd *exec.Cmd, stdin []byte) result {
	t.Helper()
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(stdin), &stdout, &stderr
	if err := startIn(path, cmd); err != nil {
		t.Fatalf("%v: %v", cmd.Args, err)
	}
	err := cmd.Wait()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("%v: %v", cmd.Args, err)
	}
	return result{stdout: stdout.String(), stderr: stderr.String(), code: cmd.ProcessState.ExitCode()}
}

// baton runs the command line tool, which must succeed, and returns what it printed.
func (m *machine) baton(args ...string) string {
	m.t.Helper()
	r := m.try(args...)
	if r.code != 0 {
		m.t.Fatalf("baton %s: exit %d\n%s%s", strings.Join(args, " "), r.code, r.stdout, r.stderr)
	}
	return r.stdout
}

// batonJSON decodes what a command prints with -o json.
func batonJSON[T any](m *machine, args ...string) T {
	m.t.Helper()
	var v T
	out := m.baton(append(args, "-o", "json")...)
	if err := json.Unmarshal([]byte(out), &v); err != nil {
		m.t.Fatalf("baton %s: %v in %s", strings.Join(args, " "), err, out)
	}
	return v
}

// load imports images that `make images` built.
func (m *machine) load(names ...string) {
	m.t.Helper()
	for _, n := range names {
		m.baton("image", "load", filepath.Join(images, n+".tar"))
	}
}

// write puts a file beside the machine and returns its path.
func (m *machine) write(name, content string) string {
	m.t.Helper()
	path := filepath.Join(m.dir, name)
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		m.t.Fatal(err)
	}
	return path
}

// eventually waits until check returns nil.
func eventually(t *testing.T, limit time.Duration, what string, check func() error) {
	t.Helper()
	deadline := time.Now().Add(limit)
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("not within %s: %s: %v", limit, what, err)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// gone returns nil once nothing is at path.
func gone(path string) error {
	_, err := os.Lstat(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return fmt.Errorf("%s is still there (%v)", path, err)
}

// mainProcess finds a task's first process by its cgroup, whose path ends in the task's id.
func mainProcess(t *testing.T, task fmt.Stringer) int {
	t.Helper()
	for _, pattern := range []string{"/sys/fs/cgroup/pids/baton/*/", "/sys/fs/cgroup/baton/*/"} {
		files, err := filepath.Glob(pattern + task.String() + "/cgroup.procs")
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			data, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			var pid int
			if _, err := fmt.Sscan(string(data), &pid); err == nil {
				return pid
			}
		}
	}
	t.Fatalf("task %s has no process", task)
	return 0
}

func decode[T any](t *testing.T, text string) T {
	t.Helper()
	var v T
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		t.Fatalf("%v in %s", err, text)
	}
	return v
}

// filesWith lists the files below dir that hold the text.
func filesWith(t *testing.T, dir, text string) []string {
	t.Helper()
	var out []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // the server is at work meanwhile
		}
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		data, err := os.ReadFile(path)
		if err == nil && bytes.Contains(data, []byte(text)) {
			out = append(out, path)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}
