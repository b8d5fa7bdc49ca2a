package e2e

import (
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"baton/client/api"
	"baton/internal/model/cluster"
)

// loadAll imports images on every machine.
func (c *machines) loadAll(names ...string) {
	c.t.Helper()
	for _, m := range c.list {
		for _, n := range names {
			c.list[0].baton("image", "load", "--node", m.name, filepath.Join(images, n+".tar"))
		}
	}
}

// by is the machine with the name.
func (c *machines) by(name string) *machine {
	c.t.Helper()
	for _, m := range c.list {
		if m.name == name {
			return m
		}
	}
	c.t.Fatalf("no machine %s", name)
	return nil
}

// leader is the machine whose manager leads, as the manager on m sees it.
func (c *machines) leader(m *machine) *machine {
	c.t.Helper()
	var name string
	eventually(c.t, 20*time.Second, "somebody leads", func() error {
		r := m.try("cluster", "status", "-o", "json")
		if r.code != 0 {
			return errors.New(r.stderr)
		}
		if name = decode[api.Cluster](c.t, r.stdout).Leader; name == "" {
			return errors.New("nobody does")
		}
		return nil
	})
	return c.by(name)
}

// blackhole lets a machine send nothing to the others, or send again.
func (c *machines) blackhole(m *machine, on bool, others ...*machine) {
	c.t.Helper()
	h, ns := c.handle(m.ns)
	defer h.Close()
	defer ns.Close()
	for _, o := range others {
		r := &netlink.Route{Dst: &net.IPNet{IP: net.ParseIP(o.ip), Mask: net.CIDRMask(32, 32)}, Type: 6 /* RTN_BLACKHOLE */}
		var err error
		if on {
			err = h.RouteAdd(r)
		} else {
			err = h.RouteDel(r)
		}
		if err != nil {
			c.t.Fatalf("blackhole from %s to %s: %v", m.name, o.name, err)
		}
	}
}

// settled waits until every task that is wanted is ready and nothing else is left, and all nodes are there.
func (c *machines) settled(m *machine, stack string, limit time.Duration) {
	c.t.Helper()
	eventually(c.t, limit, "the stack is as wanted and all nodes are there", func() error {
		for _, n := range decode[[]api.Node](c.t, m.baton("node", "ls", "-o", "json")) {
			if n.State != cluster.NodeReady {
				return fmt.Errorf("node %s is %s", n.Name, n.State)
			}
		}
		r := m.try("status", "-s", stack)
		if r.code != 0 {
			return errors.New(r.stdout + r.stderr)
		}
		return nil
	})
}

const spreadWeb = `services:
  web:
    image: baton.test/web:v1
    ports: ["8080:8080"]
    healthcheck: {test: [NONE]}
    x-probes: {ready: {http: {path: /healthz, port: 8080}, every: 500ms, timeout: 2s}}
    deploy: {replicas: 5, update_config: {monitor: 0s, parallelism: 2}}
  inside:
    image: baton.test/web:v1
    healthcheck: {test: [NONE]}
    deploy: {placement: {constraints: [node.labels.place == inside]}}
`

// change is something that an operator does.
type change struct {
	name string
	do   func()
}

// plannedChanges are what a cluster must take without a failed request. Clients ask the machine m3.
func (c *machines) plannedChanges() []change {
	m1 := c.list[0]
	return []change{
		{"drain a worker", func() {
			m1.baton("node", "drain", "w1")
			m1.baton("node", "activate", "w1")
		}},
		{"promote and demote", func() {
			m1.baton("node", "promote", "w2")
			m1.baton("node", "demote", "w2")
		}},
		{"demote the leader", func() {
			leader := c.leader(m1)
			if leader == m1 {
				m1.baton("node", "demote", "m2")
				m1.baton("node", "promote", "m2")
				return
			}
			m1.baton("node", "demote", leader.name)
			m1.baton("node", "promote", leader.name)
		}},
		{"rotate tokens", func() {
			m1.baton("token", "rotate", "worker")
			m1.baton("token", "rotate", "manager")
		}},
		{"rotate the authority", func() { m1.baton("cluster", "ca", "rotate") }},
		{"rotate the mesh keys", func() { m1.baton("cluster", "mesh", "rotate") }},
		{"restart each baton in turn", func() {
			for _, m := range c.list {
				m.stop()
				m.launch()
				m.awaitReady()
				c.ready(5)
			}
		}},
		{"roll out", func() { m1.baton("restart", "web") }},
	}
}

// Every planned change goes by without a failed request, from outside and from inside.
func TestPlannedChangesFailNoRequest(t *testing.T) {
	c := newCluster(t, 3, 2)
	m1 := c.list[0]
	c.loadAll("web-v1")
	m1.baton("node", "label", "m1", "place=inside")
	file := m1.write("compose.yaml", spreadWeb)
	m1.baton("up", "-f", file, "-s", "web", "-y")
	inside := m1.live("inside")[0]
	nodes := make(map[string]bool)
	for _, task := range m1.live("web") {
		nodes[task.NodeName] = true
	}
	if len(nodes) != 5 {
		t.Fatalf("5 replicas are on %d nodes, want one on each:\n%s", len(nodes), m1.baton("ps"))
	}
	for _, change := range c.plannedChanges() {
		outside := startLoad(t, c.hub, request{URL: "http://" + c.by("m3").ip + ":8080/", Workers: 3, Pause: 5 * time.Millisecond})
		name := startLoad(t, m1.netns(inside.ID), request{URL: "http://web:8080/", Workers: 3, Pause: 5 * time.Millisecond, DNS: true})
		begin := time.Now()
		change.do()
		took := time.Since(begin)
		c.settled(m1, "web", time.Minute)
		for where, l := range map[string]*load{"published port": outside, "service name": name} {
			got := l.end()
			t.Logf("%-28s %6.1f s  %-15s %6d requests, %d failed", change.name, took.Seconds(), where, got.Requests, got.Failures)
			if got.Failures > 0 {
				t.Errorf("%s: %s: %d of %d requests failed: %v", change.name, where, got.Failures, got.Requests, got.Errors)
			}
			if got.Requests < 10 {
				t.Errorf("%s: %s: only %d requests: no load", change.name, where, got.Requests)
			}
		}
	}
	if now := m1.live("inside"); len(now) != 1 || now[0].ID != inside.ID {
		t.Error("the changes restarted a service that they do not concern")
	}
}

// fault is something that nobody planned. Every one spares the machine that clients ask, so that what fails is the
// cluster's doing.
type fault struct {
	name string
	do   func() (spare *machine, undo func())
	// limit is how long after it a request that fails may have begun.
	limit time.Duration
}

const (
	// silentLimit is the time until a silent node's tasks get no requests any more (3 s), with what a busy machine adds; what
	// was measured is printed.
	silentLimit = 10 * time.Second
	// leaderLimit is the same when nobody leads at first: a new leader gives every node the time that a silent one has.
	leaderLimit = 13 * time.Second
	// showsAfter is how long a fault takes to show in what managers say.
	showsAfter = 8 * time.Second
)

func (c *machines) faults() []fault {
	m1, managers, workers := c.list[0], c.list[:3], c.list[3:]
	w1 := workers[0]
	return []fault{
		// Where the kernel has no WireGuard, the mesh of a node is in its baton, and pauses with it.
		{"kill -9 the leader's baton", func() (*machine, func()) {
			leader := c.leader(m1)
			leader.kill()
			return c.other(managers, leader), leader.launch
		}, leaderLimit},
		{"kill -9 a worker's baton", func() (*machine, func()) {
			w1.kill()
			return m1, w1.launch
		}, silentLimit},
		{"a worker vanishes, and returns", func() (*machine, func()) {
			c.cut(w1, true)
			return m1, func() { c.cut(w1, false) }
		}, silentLimit},
		{"the leader is cut from the rest", func() (*machine, func()) {
			leader := c.leader(m1)
			c.cut(leader, true)
			return c.other(managers, leader), func() { c.cut(leader, false) }
		}, leaderLimit},
		{"a worker is cut from managers only", func() (*machine, func()) {
			c.blackhole(w1, true, managers...)
			return workers[1], func() { c.blackhole(w1, false, managers...) }
		}, silentLimit},
		{"a worker is heard by nobody", func() (*machine, func()) {
			all := append(slices.Clone(managers), workers[1])
			c.blackhole(w1, true, all...)
			return m1, func() { c.blackhole(w1, false, all...) }
		}, silentLimit},
	}
}

// What nobody planned fails only what is on its way to the lost node, and what comes within the time until that is noticed.
func TestUnplannedLossIsShort(t *testing.T) {
	c := newCluster(t, 3, 2)
	m1 := c.list[0]
	c.loadAll("web-v1")
	m1.baton("node", "label", "m1", "place=inside")
	m1.baton("up", "-f", m1.write("compose.yaml", spreadWeb), "-s", "web", "-y")
	for _, f := range c.faults() {
		c.spread()
		begin := time.Now()
		spare, undo := f.do()
		load := startLoad(t, c.hub, request{URL: "http://" + spare.ip + ":8080/", Workers: 8, Pause: 10 * time.Millisecond, Timeout: 2 * time.Second})
		asked := spare
		if !slices.Contains(c.list[:3], spare) {
			asked = m1
		}
		c.replaced(asked, f.name)
		got := load.end()
		undo()
		healed := time.Now()
		c.settled(m1, "web", time.Minute)
		var window time.Duration
		if got.Failures > 0 {
			window = got.Last.Sub(begin)
		}
		t.Logf("%-36s %5d requests, %3d failed within %4.1f s; as wanted again %4.1f s after its end",
			f.name, got.Requests, got.Failures, window.Seconds(), time.Since(healed).Seconds())
		if window > f.limit {
			t.Errorf("%s: a request that began %s after it failed, want none after %s: %v", f.name, window, f.limit, got.Errors)
		}
		if got.Requests < 50 {
			t.Errorf("%s: only %d requests: no load", f.name, got.Requests)
		}
	}
}

// spread gives web tasks on most machines again, w1 among them: a node that was lost has none when it is back.
func (c *machines) spread() {
	c.t.Helper()
	m1 := c.list[0]
	m1.baton("scale", "web=1")
	m1.baton("scale", "web=5")
	if len(m1.on("web", "w1")) == 0 {
		c.t.Fatalf("web has no task on w1:\n%s", m1.baton("ps", "web"))
	}
}

// rounds is how often a time is measured.
const rounds = 3

func median(list []time.Duration) time.Duration {
	slices.Sort(list)
	return list[len(list)/2]
}

// The tasks of a machine that vanished are ready elsewhere within ten seconds.
func TestVanishedMachineIsReplacedInTime(t *testing.T) {
	c := newCluster(t, 3, 2)
	m1, w1 := c.list[0], c.by("w1")
	c.loadAll("web-v1")
	m1.baton("node", "label", "m1", "place=inside")
	m1.baton("up", "-f", m1.write("compose.yaml", spreadWeb), "-s", "web", "-y")
	var took []time.Duration
	for range rounds {
		c.spread()
		begin := time.Now()
		c.cut(w1, true)
		eventually(t, 30*time.Second, "all tasks are ready on the other machines", func() error {
			ready := 0
			for _, task := range m1.live("web") {
				if task.NodeName != "w1" && task.Ready && task.Desired == cluster.DesiredRun {
					ready++
				}
			}
			if ready < 5 {
				return fmt.Errorf("%d are", ready)
			}
			return nil
		})
		took = append(took, time.Since(begin))
		c.cut(w1, false)
		c.settled(m1, "web", time.Minute)
	}
	t.Logf("a vanished machine's tasks were ready elsewhere after %v, median %s (Docker Swarm: 18 to 23 s, Nomad: 20 s)", took, median(took))
	if m := median(took); m > 10*time.Second {
		t.Errorf("median %s, want at most 10 s", m)
	}
}

// on lists the live tasks of a service on a node.
func (m *machine) on(service, node string) []api.Task {
	m.t.Helper()
	return slices.DeleteFunc(m.live(service), func(t api.Task) bool { return t.NodeName != node })
}

// A cluster whose leader is dead accepts writes again within two seconds.
func TestDeadLeaderIsReplacedInTime(t *testing.T) {
	c := newCluster(t, 3, 1)
	var took []time.Duration
	for i := range rounds {
		leader := c.leader(c.list[0])
		spare := c.other(c.list[:3], leader)
		begin := time.Now()
		leader.kill()
		eventually(t, 30*time.Second, "a write is accepted", func() error {
			if r := spare.try("node", "label", "w1", fmt.Sprintf("round=%d", i)); r.code != 0 {
				return errors.New(r.stderr)
			}
			return nil
		})
		took = append(took, time.Since(begin))
		leader.launch()
		leader.awaitReady()
		c.ready(4)
	}
	t.Logf("a cluster with a dead leader accepted writes after %v, median %s (Docker Swarm: 9 to 20 s)", took, median(took))
	if m := median(took); m > 2*time.Second {
		t.Errorf("median %s, want at most 2 s", m)
	}
}

// other is one of the machines that is not m.
func (c *machines) other(list []*machine, m *machine) *machine {
	for _, o := range list {
		if o != m {
			return o
		}
	}
	c.t.Fatal("there is no other one")
	return nil
}

// replaced waits until all replicas of web that are wanted are ready, as the manager on m sees it, after a fault has had the
// time to show.
func (c *machines) replaced(m *machine, fault string) {
	c.t.Helper()
	begin := time.Now()
	eventually(c.t, 40*time.Second, fault+": web is whole again", func() error {
		if time.Since(begin) < showsAfter {
			return errors.New("the fault may not have shown yet")
		}
		r := m.try("ls", "-s", "web", "-o", "json")
		if r.code != 0 {
			return errors.New(r.stderr)
		}
		for _, s := range decode[[]api.Service](c.t, r.stdout) {
			if s.Name == "web" && s.Status.Ready < 5 {
				return fmt.Errorf("%d of 5 are ready", s.Status.Ready)
			}
		}
		return nil
	})
}
