package cli

import (
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"baton/internal/model/cluster"
	"baton/internal/model/spec"
)

var update = flag.Bool("update", false, "write the golden files anew")

// fill stores a small cluster whose every id and time is known.
func fill(c *testCluster) {
	base := time.Date(2026, 1, 31, 14, 0, 0, 0, time.UTC)
	c.now = func() time.Time { return base.Add(time.Hour) }
	meta := func(n byte, minutes int) cluster.Meta {
		return cluster.Meta{ID: id(n), Created: base.Add(time.Duration(minutes) * time.Minute)}
	}
	web := spec.Service{Name: "web", Image: "web:2", Mode: spec.Replicated, Replicas: 3, Ports: []spec.Port{{Target: 80, Published: 8080, Protocol: "tcp", Mode: spec.PortIngress}},
		Resources: spec.Resources{Reservations: spec.Reservations{CPU: 250, Memory: 128 << 20}}}
	db := spec.Service{Name: "db", Image: "postgres:17", Mode: spec.Replicated, Replicas: 1}
	c.put(
		&cluster.Stack{Meta: meta(10, 0), Name: "shop", Release: id(12), Good: id(11), LastNumber: 2},
		&cluster.Release{Meta: meta(11, 0), Stack: id(10), Number: 1, State: cluster.ReleaseComplete, Services: map[string]cluster.ID{"web": id(30), "db": id(32)}, Replicas: map[string]int{"web": 3, "db": 1}},
		&cluster.Release{Meta: meta(12, 50), Stack: id(10), Number: 2, State: cluster.ReleaseDeploying, Message: "new page", Services: map[string]cluster.ID{"web": id(31), "db": id(32)}, Replicas: map[string]int{"web": 3, "db": 1}},
		&cluster.Service{Meta: meta(20, 0), Stack: id(10), StackName: "shop", Name: "web", Revision: id(31), Previous: id(30), Replicas: 3, Address: netip.MustParseAddr("10.90.0.2"),
			Rollout: cluster.Rollout{From: id(30), To: id(31), State: cluster.RolloutUpdating, Started: base.Add(50 * time.Minute), Failures: 1},
			Status:  cluster.ServiceStatus{Desired: 3, Running: 2, Ready: 2, Updated: 1}},
		&cluster.Service{Meta: meta(21, 0), Stack: id(10), StackName: "shop", Name: "db", Revision: id(32), Replicas: 1, Address: netip.MustParseAddr("10.90.0.3"),
			Rollout: cluster.Rollout{To: id(32), State: cluster.RolloutCompleted, Started: base, Ended: base.Add(time.Minute)},
			Status:  cluster.ServiceStatus{Desired: 1, Running: 1, Ready: 1, Updated: 1, Converged: true}},
		&cluster.Revision{Meta: meta(30, 0), Service: id(20), Number: 1, Spec: web},
		&cluster.Revision{Meta: meta(31, 50), Service: id(20), Number: 2, Spec: web, Configs: map[string]cluster.ID{"page": id(60)}},
		&cluster.Revision{Meta: meta(32, 0), Service: id(21), Number: 1, Spec: db, Volumes: map[string]cluster.ID{"data": id(50)}, Secrets: map[string]cluster.ID{"pw": id(61)}},
		&cluster.Config{Meta: meta(60, 50), Stack: id(10), Name: "page", Number: 1, Size: 12},
		&cluster.Registry{Meta: meta(62, 0), Host: "ghcr.io", Username: "me", Sealed: []byte("hunter2"), Updated: base.Add(30 * time.Minute)},
		&cluster.Secret{Meta: meta(61, 0), Name: "pw", Number: 1, Size: 7},
		&cluster.Volume{Meta: meta(50, 0), Stack: id(10), Name: "shop_data", Node: id(1)},
	)
	fillTasks(c, base, meta)
}

func fillTasks(c *testCluster, base time.Time, meta func(byte, int) cluster.Meta) {
	at := func(minutes int) time.Time { return base.Add(time.Duration(minutes) * time.Minute) }
	task := func(n byte, service, revision byte, slot, minutes int) *cluster.Task {
		return &cluster.Task{Meta: meta(n, minutes), Stack: id(10), Service: id(service), Revision: id(revision), Node: id(1), Slot: slot,
			Desired: cluster.DesiredRun, Observed: cluster.ObservedRunning, Ready: true, Started: at(minutes), Address: netip.AddrFrom4([4]byte{10, 80, 1, n})}
	}
	old := task(40, 20, 30, 1, 0)
	old.Desired, old.Observed, old.Ready, old.Exit, old.Ended, old.Reason = cluster.DesiredStop, cluster.ObservedComplete, false, &cluster.Exit{At: at(51)}, at(51), "replaced by revision 2"
	crashed := task(41, 20, 31, 3, 51)
	crashed.Observed, crashed.Ready, crashed.Exit, crashed.Ended = cluster.ObservedFailed, false, &cluster.Exit{Code: 137, Signal: "SIGKILL", OOM: true, At: at(55)}, at(55)
	pending := task(42, 20, 31, 3, 55)
	pending.Node, pending.Observed, pending.Ready, pending.Started, pending.Address = cluster.ID{}, cluster.ObservedPending, false, time.Time{}, netip.Addr{}
	pending.Reason, pending.Failures, pending.Replaces = "no node has 128 MiB of memory left: n1", 1, crashed.ID
	fresh := task(43, 20, 31, 1, 51)
	fresh.Replaces = old.ID
	c.put(old, crashed, pending, fresh, task(44, 20, 30, 2, 0), task(45, 21, 32, 1, 0),
		&cluster.Event{Meta: meta(70, 50), At: at(50), Type: "stack.deployed", Message: "stack shop was updated by release 2", Stack: id(10), Release: id(12), Who: "api"},
		&cluster.Event{Meta: meta(71, 55), At: at(55), Type: "task.failed", Message: "killed by the kernel: out of memory", Stack: id(10), Service: id(20), Task: id(41), Node: id(1), Slot: 3, Who: "node"},
	)
}

// What the commands print is looked at as text.
func TestGolden(t *testing.T) {
	t.Setenv("TZ", "UTC")
	golden, err := filepath.Abs(filepath.Join("testdata", "golden"))
	if err != nil {
		t.Fatal(err)
	}
	c := newCluster(t, false)
	fill(c)
	for name, args := range map[string]string{
		"ls": "ls", "ls-wide": "ls -o wide", "ls-json": "ls -o json", "ls-yaml": "ls -o yaml", "ls-name": "ls -q", "ls-stacks": "ls --stacks",
		"ps": "ps", "ps-all": "ps -a", "ps-slot": "ps web/3 -a", "ps-node": "ps n1", "ps-wide": "ps -o wide", "ps-yaml": "ps db -o yaml",
		"status": "status", "why-service": "why web", "why-slot": "why web/3", "why-stack": "why", "why-json": "why db -o json",
		"releases": "releases", "release": "releases r2", "node-ls": "node ls", "node-inspect": "node inspect n1",
		"secret-ls": "secret ls", "cfg-ls": "cfg ls -s shop", "secret-history": "secret history pw", "volume-ls": "volume ls", "image-ls": "image ls", "registry-ls": "registry ls", "registry-json": "registry ls -o json",
		"logs": "logs web", "logs-stack": "logs --tail 1 -t", "logs-slot": "logs web/2 --no-prefix", "version": "version",
		"doctor": "cluster doctor", "help-cluster": "help cluster", "help-doctor": "help cluster doctor", "help-backup": "help cluster backup",
		"err-backup": "cluster backup", "err-backup-ways": "cluster backup --unencrypted --recipient age1x", "err-recipient": "cluster backup --recipient age1x",
		"help": "help", "help-up": "help up",
		"err-service": "ps wbe", "err-volume": "volume rm shop_data -y", "err-release": "releases r9", "err-global": "exec n1 -- sh", "err-login": "registry login ghcr.io -u me", "err-registry": "registry logout team",
	} {
		t.Run(name, func(t *testing.T) {
			out, errOut, code := c.run("", strings.Fields(args)...)
			got := "$ baton " + args + "\n" + out
			if errOut != "" {
				got += "--- stderr\n" + errOut
			}
			if code != 0 {
				got += "--- exit code " + string(rune('0'+code)) + "\n"
			}
			got = strings.ReplaceAll(got, strings.TrimPrefix(c.addr, "unix://"), "SOCKET")
			file := filepath.Join(golden, name+".txt")
			if *update {
				if err := os.MkdirAll(golden, 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatalf("%v: run go test ./internal/cli -run TestGolden -update", err)
			}
			if got != string(want) {
				t.Errorf("got:\n%s\nwant:\n%s", got, want)
			}
		})
	}
}
