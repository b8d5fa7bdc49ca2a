package runtime

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "github.com/containerd/cgroups/v3/cgroup1/stats"
	v2 "github.com/containerd/cgroups/v3/cgroup2/stats"
	containerd "github.com/containerd/containerd/v2/client"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"pgregory.net/rapid"

	"baton/internal/model/cluster"
	"baton/internal/model/spec"
	"baton/internal/node/agent"
	"baton/internal/node/logger"
	"baton/internal/wire/agentapi"
)

func TestArguments(t *testing.T) {
	img := ocispec.ImageConfig{Entrypoint: []string{"/entry"}, Cmd: []string{"cmd"}}
	for name, tt := range map[string]struct {
		c    spec.Container
		want []string
	}{
		"image":                {spec.Container{}, []string{"/entry", "cmd"}},
		"own command":          {spec.Container{Command: []string{"mine"}}, []string{"/entry", "mine"}},
		"own entrypoint":       {spec.Container{Entrypoint: []string{"/mine"}}, []string{"/mine"}},
		"cleared entrypoint":   {spec.Container{Entrypoint: []string{}, Command: []string{"/x"}}, []string{"/x"}},
		"cleared command":      {spec.Container{Command: []string{}}, []string{"/entry"}},
		"nothing left to run":  {spec.Container{Entrypoint: []string{}}, nil},
		"both, with arguments": {spec.Container{Entrypoint: []string{"a", "b"}, Command: []string{"c"}}, []string{"a", "b", "c"}},
	} {
		got, err := arguments(&tt.c, img)
		if !slices.Equal(got, tt.want) || (err == nil) != (tt.want != nil) {
			t.Errorf("%s: %q, %v, want %q", name, got, err, tt.want)
		}
	}
}

func TestCapabilities(t *testing.T) {
	for name, tt := range map[string]struct {
		add, drop []string
		want      []string
	}{
		"default":       {nil, nil, capsDefault},
		"one more":      {[]string{"sys_time"}, nil, append([]string{"CAP_SYS_TIME"}, capsDefault...)},
		"one less":      {nil, []string{"CAP_CHOWN"}, without(capsDefault, "CAP_CHOWN")},
		"none but one":  {[]string{"KILL"}, []string{"all"}, []string{"CAP_KILL"}},
		"none":          {nil, []string{"ALL"}, nil},
		"drop has last": {[]string{"KILL"}, []string{"KILL"}, without(capsDefault, "CAP_KILL")},
	} {
		got, err := capabilities(tt.add, tt.drop, false)
		want := slices.Sorted(slices.Values(tt.want))
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("%s: %q, %v, want %q", name, got, err, want)
		}
	}
}

func without(in []string, s string) []string {
	return slices.DeleteFunc(slices.Clone(in), func(v string) bool { return v == s })
}

func TestResources(t *testing.T) {
	r := resources(spec.Resources{})
	if *r.CPU.Shares != 102 || r.CPU.Quota != nil || r.Memory != nil || r.Pids != nil {
		t.Errorf("without limits: %+v", r)
	}
	r = resources(spec.Resources{
		Limits:       spec.Limits{CPU: 1500, Memory: 100, MemorySwap: 300, PIDs: 7},
		Reservations: spec.Reservations{CPU: 2000, Memory: 50},
	})
	if *r.CPU.Shares != 2048 || *r.CPU.Quota != 150_000 || *r.CPU.Period != 100_000 || *r.Memory.Limit != 100 || *r.Memory.Swap != 300 ||
		*r.Memory.Reservation != 50 || *r.Pids.Limit != 7 {
		t.Errorf("with limits: %+v", r)
	}
	if r = resources(spec.Resources{Limits: spec.Limits{Memory: 100}}); *r.Memory.Swap != 100 {
		t.Errorf("swap = %d: without a word about it there is none", *r.Memory.Swap)
	}
}

func TestMountOrder(t *testing.T) {
	p := &plan{dir: "/d", c: agent.Container{Assignment: agentapi.Assignment{
		Spec:  &spec.Service{},
		Files: []agentapi.File{{Target: "/run/secrets/deep/one"}},
	}, FilesDir: "/f", Mounts: []agent.Mount{
		{Mount: spec.Mount{Kind: spec.MountTmpfs, Target: "/run/secrets/deep"}},
		{Mount: spec.Mount{Kind: spec.MountTmpfs, Target: "/run"}},
		{Mount: spec.Mount{Kind: spec.MountTmpfs, Target: "/dev/shm/"}},
	}}}
	ms, err := p.mounts()
	if err != nil {
		t.Fatal(err)
	}
	at := map[string]int{}
	for i, m := range ms {
		if _, twice := at[m.Destination]; twice {
			t.Errorf("%s is mounted twice", m.Destination)
		}
		at[m.Destination] = i
	}
	for _, path := range []string{"/dev/shm", "/run/secrets/deep", "/run/secrets/deep/one"} {
		for parent := filepath.Dir(path); parent != "/"; parent = filepath.Dir(parent) {
			if i, ok := at[parent]; ok && i > at[path] {
				t.Errorf("%s would hide %s", parent, path)
			}
		}
	}
	for _, o := range []string{"ro", "nosuid", "nodev"} {
		if file := ms[at["/run/secrets/deep/one"]]; !slices.Contains(file.Options, o) {
			t.Errorf("a secret's mount has the options %v: %s is missing", file.Options, o)
		}
	}
	p.c.Mounts = []agent.Mount{{Mount: spec.Mount{Kind: spec.MountTmpfs, Target: "relative"}}}
	if _, err := p.mounts(); err == nil {
		t.Error("a relative target: no error")
	}
}

func TestOOMKills(t *testing.T) {
	for in, want := range map[string]int64{
		"oom_kill_disable 0\nunder_oom 0\noom_kill 3\n":                                  3, // v1
		"low 0\nhigh 12\nmax 5\noom 2\noom_kill 1\noom_group_kill 9\nsock_throttled 0\n": 1, // v2
		"": 0,
	} {
		if got := parseOOMKills([]byte(in)); got != want {
			t.Errorf("parseOOMKills(%q) = %d, want %d", in, got, want)
		}
	}
}

func TestExitOf(t *testing.T) {
	at := time.Unix(100, 0).UTC()
	for _, tt := range []struct {
		status uint32
		oom    bool
		want   cluster.Exit
	}{
		{0, false, cluster.Exit{At: at}},
		{3, true, cluster.Exit{Code: 3, At: at}},
		{137, false, cluster.Exit{Code: 137, Signal: "SIGKILL", At: at}},
		{137, true, cluster.Exit{Code: 137, Signal: "SIGKILL", OOM: true, At: at}},
		{139, true, cluster.Exit{Code: 139, Signal: "SIGSEGV", At: at}},
		{255, false, cluster.Exit{Code: 255, At: at}},
	} {
		if got := exitOf(tt.status, at, tt.oom); got != tt.want {
			t.Errorf("exitOf(%d, %v) = %+v, want %+v", tt.status, tt.oom, got, tt.want)
		}
	}
}

func TestStatsOf(t *testing.T) {
	one := &v1.Metrics{
		CPU: &v1.CPUStat{Usage: &v1.CPUUsage{Total: 5e9}, Throttling: &v1.Throttle{ThrottledTime: 1e9}}, Pids: &v1.PidsStat{Current: 4},
		Memory: &v1.MemoryStat{TotalInactiveFile: 30, Usage: &v1.MemoryEntry{Usage: 100, Limit: 1 << 62}},
	}
	two := &v2.Metrics{
		CPU: &v2.CPUStat{UsageUsec: 5e6, ThrottledUsec: 1e6}, Pids: &v2.PidsStat{Current: 4},
		Memory: &v2.MemoryStat{InactiveFile: 30, Usage: 100, UsageLimit: ^uint64(0)},
	}
	want := Stats{CPU: 5 * time.Second, Throttled: time.Second, Memory: 70, PIDs: 4}
	for _, m := range []any{one, two} {
		if got, err := statsOf(m); err != nil || got != want {
			t.Errorf("statsOf(%T) = %+v, %v, want %+v", m, got, err, want)
		}
	}
	if _, err := statsOf("text"); err == nil {
		t.Error("unknown metrics: no error")
	}
}

// Whatever is written in whatever pieces comes back, without a record of more than one line or too long a one.
func TestFrameRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var in []byte
		for _, n := range rapid.SliceOfN(rapid.SampledFrom([]int{0, 1, 80, logger.LineMax - 1, logger.LineMax, logger.LineMax + 1, 3 * logger.LineMax}), 0, 6).Draw(t, "lengths") {
			in = append(in, bytes.Repeat([]byte("x"), n)...)
			in = append(in, rapid.SliceOfN(rapid.Byte(), 0, 9).Draw(t, "bytes")...)
			if rapid.Bool().Draw(t, "newline") {
				in = append(in, '\n')
			}
		}
		var log, buf []byte
		at := time.Unix(1e9, 1).UTC()
		rest := in
		for len(rest) > 0 {
			n := rapid.IntRange(1, min(len(rest), logger.LineMax)).Draw(t, "read")
			buf, rest = append(buf, rest[:n]...), rest[n:]
			used, out := logger.Frame(Stdout, at, buf, rapid.IntRange(0, 5).Draw(t, "pause") == 0)
			log, buf = append(log, out...), buf[used:]
			if len(buf) >= logger.LineMax {
				t.Fatalf("%d bytes are held back", len(buf))
			}
		}
		_, out := logger.Frame(Stdout, at, buf, true)
		log = append(log, out...)
		var back []byte
		for rec := range bytes.Lines(log) {
			l, ok := parseRecord(rec)
			if !ok || l.Stream != Stdout || !l.Time.Equal(at) || len(l.Text) > logger.LineMax {
				t.Fatalf("record %q", rec)
			}
			back = append(back, l.Text...)
			if !l.Partial {
				back = append(back, '\n')
			}
		}
		if !bytes.Equal(back, in) {
			t.Fatalf("%d bytes came back as %d", len(in), len(back))
		}
	})
}

func FuzzParseRecord(f *testing.F) {
	f.Add([]byte("2026-11-22T21:55:41.123456789Z stdout F text\n"))
	f.Add([]byte("2026-11-22T21:55:41.123456789Z stderr P \n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		l, ok := parseRecord(b)
		if !ok {
			return
		}
		again, ok := parseRecord(logger.AppendRecord(nil, l.Time, l.Stream, l.Partial, []byte(l.Text)))
		if !ok || again != l {
			t.Fatalf("%+v becomes %+v", l, again)
		}
	})
}

func TestLogAfterKilledLogger(t *testing.T) {
	a := logger.Args{Dir: filepath.Join(t.TempDir(), "log:s"), MaxSize: 1 << 20, MaxFiles: 2}
	if err := os.MkdirAll(a.Dir, 0o700); err != nil {
		t.Fatal(err)
	}
	whole := logger.AppendRecord(nil, time.Unix(1, 0), Stdout, false, []byte("whole"))
	if err := os.WriteFile(filepath.Join(a.Dir, logger.File), append(whole, whole[:20]...), 0o600); err != nil {
		t.Fatal(err)
	}
	w, err := logger.Open(a)
	if err != nil {
		t.Fatal(err)
	}
	w.Keep(Stderr, []byte("next\n"), false)
	if alive, closed := logger.Alive(a.Dir); !alive || closed {
		t.Errorf("alive %v, closed %v while it is open", alive, closed)
	}
	w.Close()
	if alive, closed := logger.Alive(a.Dir); alive || closed {
		t.Errorf("alive %v, closed %v after a death", alive, closed)
	}
	var got []string
	for l, err := range ReadLogs(t.Context(), a.Dir, agentapi.LogOptions{Tail: -1, Follow: true}) {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, l.Text)
	}
	if !slices.Equal(got, []string{"whole", "next"}) {
		t.Errorf("lines = %q", got)
	}
}

func TestExplain(t *testing.T) {
	for msg, want := range map[string]bool{
		`OCI runtime create failed: runc create failed: unable to start container process: error during container init: exec: "x": executable file not found in $PATH`: true,
		"no users found": true,
		"OCI runtime create failed: runc create failed: unable to apply cgroup configuration: resource temporarily unavailable": false,
		"dial unix /run/c.sock: connect: no such file or directory":                                                             false,
	} {
		var re *agent.RejectError
		if got := errors.As(explain(errors.New(msg)), &re); got != want {
			t.Errorf("%q is permanent: %v, want %v", msg, got, want)
		}
	}
}

func TestConfig(t *testing.T) {
	good := Config{DataDir: "/" + strings.Repeat("long/", 40), Containerd: "/c", Shim: "/s", Runc: "/r", Logger: "/l", Images: imagesNone}
	c := good
	if err := c.complete(); err != nil {
		t.Fatal(err)
	}
	if len(c.shimSockets()) > 42 || !strings.HasPrefix(c.Cgroup, "/baton/") {
		t.Errorf("sockets in %q, cgroup %q", c.shimSockets(), c.Cgroup)
	}
	for name, change := range map[string]func(c *Config){
		"no directory":  func(c *Config) { c.DataDir = "" },
		"long run":      func(c *Config) { c.RunDir = "/run/" + strings.Repeat("x", 40) },
		"relative":      func(c *Config) { c.Runc = "runc" },
		"root cgroup":   func(c *Config) { c.Cgroup = "/" },
		"climbing":      func(c *Config) { c.Cgroup = "/a/../.." },
		"without image": func(c *Config) { c.Images = nil },
	} {
		c := good
		change(&c)
		if err := c.complete(); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func imagesNone(*containerd.Client) Images { return nil }

func TestRecords(t *testing.T) {
	r := &records{dir: t.TempDir()}
	id := cluster.NewID(nil)
	if err := os.Mkdir(r.path(id), 0o700); err != nil {
		t.Fatal(err)
	}
	if r.exit(id) != nil || !r.started(id).IsZero() {
		t.Error("an empty record tells something")
	}
	at := time.Unix(1e9, 5).UTC()
	if err := r.start(id, at); err != nil {
		t.Fatal(err)
	}
	first := cluster.Exit{Code: 3, At: at}
	for _, e := range []cluster.Exit{first, {Code: 255, Unknown: true}} {
		got, err := r.end(id, e)
		if err != nil || !reflect.DeepEqual(*got, first) {
			t.Errorf("end = %+v, %v, want the first, %+v", got, err, first)
		}
	}
	again := &records{dir: r.dir}
	if e := again.exit(id); e == nil || *e != first || !again.started(id).Equal(at) {
		t.Errorf("read back: %+v, %s", e, again.started(id))
	}
	if ids, err := again.list(); err != nil || !slices.Equal(ids, []cluster.ID{id}) {
		t.Errorf("list = %v, %v", ids, err)
	}
	if err := again.remove(id); err != nil || again.exit(id) != nil {
		t.Errorf("after remove: %v, %+v", err, again.exit(id))
	}
}

func TestTraffic(t *testing.T) {
	dev := `Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:     999       9    0    0    0     0          0         0      999       9    0    0    0     0       0          0
  eth0: 1234567      10    0    0    0     0          0         0       89       1    0    0    0     0       0          0
eth1:1 1 0 0 0 0 0 0 2 1 0 0 0 0 0 0
`
	if in, out := traffic(dev); in != 1234568 || out != 91 {
		t.Errorf("received %d, sent %d, want 1234568 and 91", in, out)
	}
	if in, out := traffic("nonsense: x\n"); in != 0 || out != 0 {
		t.Errorf("nonsense gave %d and %d", in, out)
	}
}
