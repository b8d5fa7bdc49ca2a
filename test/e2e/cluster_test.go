package e2e

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"baton/client/api"
	"baton/internal/model/cluster"
)

// The network that connects the machines of a cluster: its switch is a namespace of its own, from which clients speak.
const (
	switchIP   = "198.51.100.1"
	machineNet = "198.51.100."
)

// machines is a cluster of machines that one switch connects.
type machines struct {
	t    *testing.T
	dir  string // below leftoversDir
	hub  string // path of the switch's namespace
	list []*machine
}

// newCluster makes a cluster of managers m1, m2… and workers w1, w2… Everything goes away with the test.
func newCluster(t *testing.T, managers, workers int) *machines {
	t.Helper()
	dir, err := os.MkdirTemp(leftoversDir, "m")
	if err != nil {
		t.Fatal(err)
	}
	c := &machines{t: t, dir: dir, hub: filepath.Join(dir, "outside")}
	t.Cleanup(func() {
		removeNamespaces(dir)
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	makeNamespace(t, c.hub)
	c.makeSwitch()
	for i := range managers {
		c.add(fmt.Sprintf("m%d", i+1), "manager")
	}
	for i := range workers {
		c.add(fmt.Sprintf("w%d", i+1), "worker")
	}
	c.ready(managers + workers)
	return c
}

// handle opens the network of a namespace.
func (c *machines) handle(path string) (*netlink.Handle, netns.NsHandle) {
	c.t.Helper()
	ns, err := netns.GetFromPath(path)
	if err != nil {
		c.t.Fatal(err)
	}
	h, err := netlink.NewHandleAt(ns)
	if err != nil {
		c.t.Fatal(err)
	}
	return h, ns
}

func (c *machines) makeSwitch() {
	c.t.Helper()
	h, ns := c.handle(c.hub)
	defer h.Close()
	defer ns.Close()
	br := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "eth0", MTU: 1500}}
	if err := h.LinkAdd(br); err != nil {
		c.t.Fatal("switch: ", err)
	}
	configure(c.t, h, switchIP, nil)
}

// add makes a machine, plugs it in and starts its server: the first founds the cluster, the others join it in the role.
func (c *machines) add(name, role string) *machine {
	c.t.Helper()
	m := c.bare(name)
	if len(c.list) > 0 {
		m.join = strings.TrimSpace(c.list[0].baton("token", "ls", role, "-q"))
	}
	c.list = append(c.list, m)
	if m.join == "" {
		m.start()
	} else {
		m.launch()
	}
	return m
}

// bare makes a machine and plugs it in; no server runs on it, and it is no member.
func (c *machines) bare(name string) *machine {
	c.t.Helper()
	dir, err := os.MkdirTemp(leftoversDir, "m")
	if err != nil {
		c.t.Fatal(err)
	}
	m := newMachineIn(c.t, dir, name)
	m.outside = c.hub
	m.ip = fmt.Sprintf("%s%d", machineNet, 11+len(c.list))
	c.t.Cleanup(m.remove)
	makeNamespace(c.t, m.ns)
	c.plug(m)
	return m
}

// plug connects a machine to the switch.
func (c *machines) plug(m *machine) {
	c.t.Helper()
	in, inNS := c.handle(m.ns)
	defer in.Close()
	defer inNS.Close()
	hub, hubNS := c.handle(c.hub)
	defer hub.Close()
	defer hubNS.Close()
	br, err := hub.LinkByName("eth0")
	if err != nil {
		c.t.Fatal(err)
	}
	veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: m.name, MTU: 1500}, PeerName: "eth0", PeerNamespace: netlink.NsFd(inNS)}
	if err := hub.LinkAdd(veth); err != nil {
		c.t.Fatal("veth: ", err)
	}
	port, err := hub.LinkByName(m.name)
	if err != nil {
		c.t.Fatal(err)
	}
	if err := errors.Join(hub.LinkSetMaster(port, br), hub.LinkSetUp(port)); err != nil {
		c.t.Fatal(err)
	}
	configure(c.t, in, m.ip, net.ParseIP(switchIP))
}

// cut takes a machine off the switch, as a cable pulled out would, or plugs it in again.
func (c *machines) cut(m *machine, off bool) {
	c.t.Helper()
	hub, ns := c.handle(c.hub)
	defer hub.Close()
	defer ns.Close()
	port, err := hub.LinkByName(m.name)
	if err != nil {
		c.t.Fatal(err)
	}
	if off {
		err = hub.LinkSetDown(port)
	} else {
		err = hub.LinkSetUp(port)
	}
	if err != nil {
		c.t.Fatal(err)
	}
}

// ready waits until n nodes are connected and every manager has its vote.
func (c *machines) ready(n int) {
	c.t.Helper()
	eventually(c.t, 90*time.Second, fmt.Sprintf("%d nodes are ready", n), func() error {
		for _, m := range c.list {
			m.checkAlive()
		}
		nodes := decode[[]api.Node](c.t, c.list[0].baton("node", "ls", "-o", "json"))
		ready := 0
		for _, node := range nodes {
			if node.State == cluster.NodeReady && node.Subnet.IsValid() {
				ready++
			}
		}
		if ready != n {
			return fmt.Errorf("%d of %d are", ready, n)
		}
		cl := decode[api.Cluster](c.t, c.list[0].baton("cluster", "status", "-o", "json"))
		for _, m := range cl.Managers {
			if !m.Voter {
				return fmt.Errorf("manager %s has no vote yet", m.Name)
			}
		}
		return nil
	})
}

func TestMachinesFormACluster(t *testing.T) {
	c := newCluster(t, 3, 2)
	t.Log("\n" + c.list[0].baton("node", "ls", "-o", "wide"))
	for _, m := range c.list[:3] {
		out := m.baton("node", "ls", "-q")
		for _, o := range c.list {
			if !strings.Contains(out, o.name) {
				t.Errorf("%s does not list %s:\n%s", m.name, o.name, out)
			}
		}
	}
}
