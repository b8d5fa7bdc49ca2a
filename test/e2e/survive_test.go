package e2e

import (
	"errors"
	"fmt"
	"maps"
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
		r := m.try("node", "ls", "-o", "json") // m itself may be one that was just started again
		if r.code != 0 {
			return errors.New(r.stderr)
		}
		for _, n := range decode[[]api.Node](c.t, r.stdout) {
			if n.State != cluster.NodeReady {
				return fmt.Errorf("node %s is %s", n.Name, n.State)
			}
		}
		r = m.try("status", "-s", stack)
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

// plannedChanges are what a cluster must take without a failed request; build is another build of baton.
func (c *machines) plannedChanges(build string) []change {
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
		{"restart each with a new build", func() {
			for _, m := range c.list {
				c.upgrade(m, build)
			}
		}},
		{"roll out", func() {
			m1.baton("restart", "frontend")
			m1.baton("restart", "backend")
		}},
	}
}

// Every planned change goes by without a failed request of the shop: neither of its pages, asked for on several nodes' published
// ports, nor of its API by service name from inside.
func TestPlannedChangesFailNoRequest(t *testing.T) {
	c := newCluster(t, 3, 2)
	m1 := c.list[0]
	build := buildAs(t, cluster.LevelNewest())
	c.shop(c.by("w2"))
	inside := m1.live("inside")[0]
	ns := c.by("w2").netns(inside.ID)
	for _, change := range c.plannedChanges(build) {
		before := c.hits(ns)
		loads := map[string]*load{
			"page on m3":   startLoad(t, c.hub, page(c.by("m3"))),
			"page on w1":   startLoad(t, c.hub, page(c.by("w1"))),
			"api products": startLoad(t, ns, products()),
			"api hits":     startLoad(t, ns, request{Method: "POST", URL: "http://backend:8080/api/hits", Pause: 10 * time.Millisecond, Least: 20, DNS: true, Want: []string{`"hits":`}}),
		}
		begin := time.Now()
		change.do()
		took := time.Since(begin)
		c.settled(m1, "shop", time.Minute)
		counted := 0
		for _, where := range slices.Sorted(maps.Keys(loads)) {
			got := loads[where].end()
			t.Logf("%-30s %6.1f s  %-12s %6d requests, %d failed", change.name, took.Seconds(), where, got.Requests, got.Failures)
			if got.Failures > 0 {
				t.Errorf("%s: %s: %d of %d requests failed: %v", change.name, where, got.Failures, got.Requests, got.Errors)
			}
			if got.Requests < 20 {
				t.Errorf("%s: %s: only %d requests: no load", change.name, where, got.Requests)
			}
			if where != "api products" {
				counted += got.Requests - got.Failures
			}
		}
		if more := c.hits(ns) - before; more < counted {
			t.Errorf("%s: Redis counted %d requests of %d that were answered", change.name, more, counted)
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

// What nobody planned fails only what is on its way to the lost node, and what comes within the time until that is noticed: for the
// shop's pages from outside, and for its API from inside.
func TestUnplannedLossIsShort(t *testing.T) {
	c := newCluster(t, 3, 2)
	m1, w2 := c.list[0], c.by("w2")
	c.shop(w2)
	inside := w2.netns(m1.live("inside")[0].ID)
	token, made := m1.expiringToken(), time.Now()
	for _, f := range c.faults() {
		c.spread("frontend", "backend")
		begin := time.Now()
		spare, undo := f.do()
		outside := page(spare)
		outside.Workers, outside.Timeout = 6, 2*time.Second
		api := products()
		api.Workers, api.Timeout = 4, 2*time.Second
		loads := map[string]*load{"page": startLoad(t, c.hub, outside), "api products": startLoad(t, inside, api)}
		asked := spare
		if !slices.Contains(c.list[:3], spare) {
			asked = m1
		}
		c.replaced(asked, f.name)
		got := make(map[string]tally)
		for what, l := range loads {
			got[what] = l.end()
		}
		undo()
		healed := time.Now()
		c.settled(m1, "shop", time.Minute)
		whole := time.Since(healed)
		for _, what := range slices.Sorted(maps.Keys(got)) {
			f.judge(t, what, got[what], begin)
		}
		t.Logf("%-36s as wanted again %4.1f s after its end", f.name, whole.Seconds())
	}
	c.expired(token, made) // its time is over by now
}

// judge says what a fault that began then cost.
func (f fault) judge(t *testing.T, what string, got tally, begin time.Time) {
	t.Helper()
	var window time.Duration
	if got.Failures > 0 {
		window = got.Last.Sub(begin)
	}
	t.Logf("%-36s %-12s %5d requests, %3d failed within %4.1f s", f.name, what, got.Requests, got.Failures, window.Seconds())
	if window > f.limit {
		t.Errorf("%s: %s: a request that began %s after it failed, want none after %s: %v", f.name, what, window, f.limit, got.Errors)
	}
	if got.Requests < 50 {
		t.Errorf("%s: %s: only %d requests: no load", f.name, what, got.Requests)
	}
}

// spread gives tasks of services on most machines again, w1 among them: a node that was lost has none when it is back.
func (c *machines) spread(services ...string) {
	c.t.Helper()
	m1 := c.list[0]
	for _, n := range []string{"=1", "=5"} {
		args := []string{"scale"}
		for _, s := range services {
			args = append(args, s+n)
		}
		m1.baton(args...)
	}
	for _, s := range services {
		if len(m1.on(s, "w1")) == 0 {
			c.t.Fatalf("%s has no task on w1:\n%s", s, m1.baton("ps", s))
		}
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
		c.spread("web")
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

// replaced waits until all replicas that are wanted are ready, as the manager on m sees it, after a fault has had the time to show.
func (c *machines) replaced(m *machine, fault string) {
	c.t.Helper()
	begin := time.Now()
	eventually(c.t, 40*time.Second, fault+": all services are whole again", func() error {
		if time.Since(begin) < showsAfter {
			return errors.New("the fault may not have shown yet")
		}
		r := m.try("ls", "-o", "json")
		if r.code != 0 {
			return errors.New(r.stderr)
		}
		for _, s := range decode[[]api.Service](c.t, r.stdout) {
			if s.Status.Ready < s.Status.Desired || s.Status.Desired == 0 {
				return fmt.Errorf("%s: %d of %d are ready", s.Name, s.Status.Ready, s.Status.Desired)
			}
		}
		return nil
	})
}
