package runtime_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"baton/internal/model/cluster"
	"baton/internal/model/spec"
	"baton/internal/node/agent"
	"baton/internal/wire/agentapi"
)

type taskID = cluster.ID

// seen is what the probe tells of its surroundings.
type seen struct {
	UID, GID, PID int
	Groups        []int
	Cwd, Hostname string
	Env           []string
	Status        map[string]string
	Mounts        map[string]string
	NoFile        int
	OOM           string
	MsgMax        string
	Try           map[string]string
	Resolv        string `json:"/etc/resolv.conf"`
	Hosts         string `json:"/etc/hosts"`
	HostnameFile  string `json:"/etc/hostname"`
	Kcore         string `json:"/proc/kcore"`
}

func parseFacts(t *testing.T, s string) seen {
	t.Helper()
	var f seen
	if err := json.Unmarshal([]byte(s), &f); err != nil {
		t.Fatalf("facts %q: %v", s, err)
	}
	return f
}

func (f seen) wantEnv(t *testing.T, want ...string) {
	t.Helper()
	for _, w := range want {
		if !slices.Contains(f.Env, w) {
			t.Errorf("environment %q lacks %q", f.Env, w)
		}
	}
}

// facts runs the probe in a container and returns what it saw.
func (n *node) facts(t *testing.T, change func(c *agent.Container)) seen {
	t.Helper()
	c := container("facts")
	change(&c)
	id := n.mustStart(c)
	if e := n.waitExit(id); e.Code != 0 {
		t.Fatalf("exit = %+v: %s", e, n.output(id))
	}
	n.waitOutput(id, "\n")
	return parseFacts(t, n.output(id))
}

// capsDefault are docker's fourteen, as the kernel shows them.
const capsDefault = "00000000a80425fb"

func TestInsideDefaults(t *testing.T) {
	n := start(t)
	f := n.facts(t, func(c *agent.Container) {
		c.ResolvConf = []byte("nameserver 127.0.0.11\n")
		c.Spec.Container.Env = []string{"BOTH=spec", "OWN=1"}
	})
	if f.UID != 0 || f.PID != 1 || f.Cwd != "/made/here" || f.Hostname != "web-1" {
		t.Errorf("facts = uid %d, pid %d, dir %s, host %s", f.UID, f.PID, f.Cwd, f.Hostname)
	}
	f.wantEnv(t, "BOTH=spec", "OWN=1", "FROM_IMAGE=1", "HOSTNAME=web-1", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
	for k, want := range map[string]string{"CapEff": capsDefault, "CapBnd": capsDefault, "CapAmb": "0000000000000000", "Seccomp": "2", "NoNewPrivs": "0"} {
		if got := f.Status[k]; got != want {
			t.Errorf("%s = %s, want %s", k, got, want)
		}
	}
	if f.Try["write /"] != "ok" || f.Try["mknod"] != "ok" || f.Try["chown"] != "ok" {
		t.Errorf("tries = %v, want a writable root and docker's capabilities", f.Try)
	}
	if f.Try["mount"] != "operation not permitted" || f.Try["kexec"] != "operation not permitted" {
		t.Errorf("tries = %v, want mount and kexec refused", f.Try)
	}
	if f.Resolv != "nameserver 127.0.0.11\n" || f.HostnameFile != "web-1\n" || !strings.Contains(f.Hosts, "127.0.0.1\tlocalhost") {
		t.Errorf("files = %q, %q, %q", f.Resolv, f.HostnameFile, f.Hosts)
	}
	if f.Kcore != "" {
		t.Error("/proc/kcore can be read")
	}
	if m := f.Mounts["/dev/shm"]; !strings.Contains(m, "size=65536k") {
		t.Errorf("/dev/shm = %s", m)
	}
	n.empty()
}

func TestInsideAsAsked(t *testing.T) {
	n := start(t)
	t.Run("user", func(t *testing.T) { insideUser(t, n) })
	t.Run("numbers", func(t *testing.T) { insideNumbers(t, n) })
	t.Run("capabilities", func(t *testing.T) { insideCapabilities(t, n) })
	t.Run("read-only root, tmpfs and sizes", func(t *testing.T) { insideReadOnlyRootTmpfsAndSizes(t, n) })
	t.Run("limits and sysctls", func(t *testing.T) { insideLimitsAndSysctls(t, n) })
	t.Run("privileged", func(t *testing.T) { insidePrivileged(t, n) })
	t.Run("init", func(t *testing.T) { insideInit(t, n) })
	n.empty()
}

func insideUser(t *testing.T, n *node) {
	f := n.facts(t, func(c *agent.Container) {
		c.Spec.Container.User, c.Spec.Container.GroupAdd = "postgres", []string{"audio", "1234"}
	})
	slices.Sort(f.Groups)
	if f.UID != 70 || f.GID != 70 || !slices.Equal(f.Groups, []int{63, 70, 900, 1234}) {
		t.Errorf("user %d:%d, groups %v, want 70:70 and 63, 70, 900, 1234", f.UID, f.GID, f.Groups)
	}
	if f.Status["CapEff"] != "0000000000000000" || f.Status["CapBnd"] != capsDefault || f.Status["NoNewPrivs"] != "1" {
		t.Errorf("status = eff %s, bnd %s, no new privileges %s", f.Status["CapEff"], f.Status["CapBnd"], f.Status["NoNewPrivs"])
	}
	if f.Try["write /"] == "ok" {
		t.Error("user postgres can write /")
	}
}

func insideNumbers(t *testing.T, n *node) {
	f := n.facts(t, func(c *agent.Container) {
		c.Spec.Container.User, c.Spec.Container.SecurityOpt = "1000:1001", []string{"no-new-privileges:false"}
	})
	if f.UID != 1000 || f.GID != 1001 || f.Status["NoNewPrivs"] != "0" {
		t.Errorf("user %d:%d, no new privileges %s", f.UID, f.GID, f.Status["NoNewPrivs"])
	}
}

func insideCapabilities(t *testing.T, n *node) {
	f := n.facts(t, func(c *agent.Container) {
		c.Spec.Container.CapDrop, c.Spec.Container.CapAdd = []string{"ALL"}, []string{"CHOWN", "cap_net_admin"}
		c.Spec.Container.SecurityOpt = []string{"no-new-privileges:true", "seccomp=unconfined"}
	})
	if got := f.Status["CapEff"]; got != "0000000000001001" {
		t.Errorf("CapEff = %s, want chown and net_admin", got)
	}
	if f.Status["NoNewPrivs"] != "1" || f.Status["Seccomp"] != "0" {
		t.Errorf("no new privileges %s, seccomp %s", f.Status["NoNewPrivs"], f.Status["Seccomp"])
	}
}

func insideReadOnlyRootTmpfsAndSizes(t *testing.T, n *node) {
	f := n.facts(t, func(c *agent.Container) {
		c.Spec.Container.ReadOnly, c.Spec.Container.ShmSize = true, 8<<20
		c.Mounts = []agent.Mount{{Mount: spec.Mount{Kind: spec.MountTmpfs, Target: "/tmp", Size: 1 << 20}}}
	})
	if got := f.Try["write /"]; !strings.Contains(got, "read-only file system") {
		t.Errorf("write / = %q", got)
	}
	if f.Try["write /tmp"] != "ok" || !strings.Contains(f.Mounts["/tmp"], "size=1024k") || !strings.Contains(f.Mounts["/dev/shm"], "size=8192k") {
		t.Errorf("tmpfs = %q (%s), shm = %q", f.Mounts["/tmp"], f.Try["write /tmp"], f.Mounts["/dev/shm"])
	}
}

func insideLimitsAndSysctls(t *testing.T, n *node) {
	c := container("facts")
	c.Spec.Container.Ulimits = []spec.Ulimit{{Name: "nofile", Soft: 777, Hard: 777}}
	c.Spec.Container.Sysctls = map[string]string{"kernel.msgmax": "12345", "net.core.somaxconn": "77"}
	c.Spec.Container.OOMScoreAdj = 321
	f := n.facts(t, func(x *agent.Container) { *x = c })
	if f.NoFile != 777 || f.MsgMax != "12345" || f.OOM != "321" {
		t.Errorf("nofile %d, msgmax %s, oom score %s", f.NoFile, f.MsgMax, f.OOM)
	}
}

func insidePrivileged(t *testing.T, n *node) {
	f := n.facts(t, func(c *agent.Container) { c.Spec.Container.Privileged = true })
	if f.Status["Seccomp"] != "0" || f.Try["mount"] == "operation not permitted" || strings.Contains(f.Mounts["/sys"], "ro,") {
		t.Errorf("seccomp %s, mount %s, /sys %s", f.Status["Seccomp"], f.Try["mount"], f.Mounts["/sys"])
	}
}

func insideInit(t *testing.T, n *node) {
	build(t, "init")
	c := container("orphan")
	c.Spec.Container.Init = true
	id := n.mustStart(c)
	if e := n.waitExit(id); e.Code != 5 {
		t.Errorf("exit = %+v, want 5", e)
	}
	n.waitOutput(id, "init /.baton-init __init -- /probe orphan")
	if strings.HasPrefix(n.output(id), "pid 1 ") {
		t.Errorf("output = %q", n.output(id))
	}
}

func TestLimits(t *testing.T) {
	n := start(t)
	c := container("sleep")
	c.Spec.Resources = spec.Resources{
		Limits:       spec.Limits{CPU: 500, Memory: 64 << 20, PIDs: 33},
		Reservations: spec.Reservations{CPU: 250, Memory: 16 << 20},
	}
	id := n.mustStart(c)
	n.waitOutput(id, "ready")
	s := n.stats(id)
	if s.CPU <= 0 || s.Memory <= 0 || s.MemoryLimit != 64<<20 || s.PIDs < 1 || s.At.IsZero() {
		t.Errorf("stats = %+v", s)
	}
	uses, err := n.Uses()
	if err != nil || len(uses) != 1 {
		t.Fatalf("uses = %+v, %v", uses, err)
	}
	if u := uses[0]; u.Task != id || u.CPU < s.CPU || u.MemoryLimit != s.MemoryLimit || u.Memory < s.Memory/2 || u.Memory > 2*s.Memory || u.Received < s.Received {
		t.Errorf("read straight from the kernel: %+v, by way of containerd %+v", u, s)
	}
	// On cgroup v1 the values are files of these names; the v2 ones are checked as they are computed, in package tests.
	if _, err := os.Stat("/sys/fs/cgroup/cpu"); err == nil {
		group, err := os.ReadFile("/proc/" + strconv.Itoa(n.observed(id).PID) + "/cgroup")
		if err != nil {
			t.Fatal(err)
		}
		i := strings.Index(string(group), ":cpu:")
		path, _, _ := strings.Cut(string(group)[i+5:], "\n")
		for file, want := range map[string]string{
			"cpu/" + path + "/cpu.shares": "256", "cpu/" + path + "/cpu.cfs_quota_us": "50000", "pids/" + path + "/pids.max": "33",
		} {
			b, err := os.ReadFile(filepath.Join("/sys/fs/cgroup", file))
			if got := strings.TrimSpace(string(b)); err != nil || got != want {
				t.Errorf("%s = %q, %v, want %s", file, got, err, want)
			}
		}
	}
	n.empty()
}

func TestMounts(t *testing.T) {
	n := start(t)
	host := filepath.Join(n.dir, "host")
	vol := filepath.Join(n.dir, "vol")
	for _, d := range []string{host, vol} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	run := func(c agent.Container) string {
		t.Helper()
		id := n.mustStart(c)
		n.waitExit(id)
		eventually(t, "the task writes", func() bool { return n.output(id) != "" })
		return n.output(id)
	}
	t.Run("bind", func(t *testing.T) {
		c := container("write", "/mnt/new/file", "content")
		c.Mounts = []agent.Mount{{Mount: spec.Mount{Kind: spec.MountBind, Target: "/mnt/new", CreateHostPath: true}, HostPath: host + "/made/up"}}
		if got := run(c); got != "written\n" {
			t.Fatalf("output = %q", got)
		}
		if b, err := os.ReadFile(host + "/made/up/file"); string(b) != "content" {
			t.Errorf("on the host = %q, %v", b, err)
		}
		c = container("write", "/mnt/new/file", "other")
		c.Mounts = []agent.Mount{{Mount: spec.Mount{Kind: spec.MountBind, Target: "/mnt/new", ReadOnly: true}, HostPath: host + "/made/up"}}
		if got := run(c); !strings.Contains(got, "read-only file system") {
			t.Errorf("read-only bind: %q", got)
		}
	})
	t.Run("secret", func(t *testing.T) {
		if err := os.WriteFile(host+"/0", []byte("hush"), 0o400); err != nil {
			t.Fatal(err)
		}
		c := container("read", "/run/secrets/password")
		c.FilesDir, c.Files = host, []agentapi.File{{Name: "password", Target: "/run/secrets/password"}}
		c.Spec.Container.ReadOnly = true
		if got := run(c); got != "hush\n" && got != "hush" {
			t.Errorf("secret = %q", got)
		}
	})
	t.Run("volume", func(t *testing.T) { testVolume(t, n, vol, run) })
	n.empty()
}

func testVolume(t *testing.T, n *node, vol string, run func(c agent.Container) string) {
	mount := func(fresh, noCopy bool) []agent.Mount {
		return []agent.Mount{{Mount: spec.Mount{Kind: spec.MountVolume, Source: "data", Target: "/data", NoCopy: noCopy}, HostPath: vol, Fresh: fresh}}
	}
	c := container("read", "/data/seed")
	c.Mounts = mount(true, true)
	if got := run(c); !strings.Contains(got, "no such file") {
		t.Errorf("nocopy: %q", got)
	}
	// An earlier filling that was interrupted.
	for _, f := range []string{".baton-filling", "seed", "half"} {
		if err := os.WriteFile(filepath.Join(vol, f), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	c = container("read", "/data/sub/deep")
	c.Mounts = mount(true, false)
	if got := run(c); !strings.HasPrefix(got, "deep") {
		t.Errorf("a fresh volume: %q", got)
	}
	for path, want := range map[string]struct {
		uid  uint32
		mode uint32
	}{"": {70, 0o40750}, "seed": {70, 0o100640}, "sub": {71, 0o40700}, "sub/deep": {71, 0o100600}} {
		var st unix.Stat_t
		if err := unix.Lstat(filepath.Join(vol, path), &st); err != nil || st.Uid != want.uid || st.Mode != want.mode {
			t.Errorf("%q: owner %d, mode %o, %v; want %d, %o", path, st.Uid, st.Mode, err, want.uid, want.mode)
		}
	}
	if l, err := os.Readlink(filepath.Join(vol, "link")); l != "seed" {
		t.Errorf("link = %q, %v", l, err)
	}
	for _, gone := range []string{".baton-filling", "half"} {
		if _, err := os.Lstat(filepath.Join(vol, gone)); err == nil {
			t.Errorf("%s is left", gone)
		}
	}
	// What a task wrote meanwhile stays, even if the volume still counts as fresh.
	c = container("write", "/data/seed", "mine")
	c.Mounts = mount(false, false)
	run(c)
	c = container("read", "/data/seed")
	c.Mounts = mount(true, false)
	if got := run(c); !strings.HasPrefix(got, "mine") {
		t.Errorf("a used volume: %q", got)
	}
	c.Task.ID = cluster.NewID(nil)
	c.Mounts[0].SubPath = "../.."
	if err := n.Start(t.Context(), c); err == nil || !strings.Contains(err.Error(), "leads out of the volume") {
		t.Errorf("subpath: %v", err)
	}
}
