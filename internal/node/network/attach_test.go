package network

import (
	"errors"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"baton/internal/model/cluster"
	"baton/internal/node/agent"
)

func TestNamespace(t *testing.T) {
	w := newWorld(t)
	n := w.newNode(210)
	tk := n.attach(10, func(a *agent.Attachment) { a.Sysctls = map[string]string{"net.core.somaxconn": "77"} })
	check(t, within(tk.ns, func() error {
		for path, want := range map[string]string{
			"net/core/somaxconn": "77", "net/ipv4/ip_unprivileged_port_start": "0", "net/ipv4/ping_group_range": "0 2147483647",
		} {
			b, err := os.ReadFile("/proc/sys/" + path)
			if got := strings.Join(strings.Fields(string(b)), " "); err != nil || got != want {
				t.Errorf("%s: got %q, %v; want %q", path, got, err, want)
			}
		}
		return nil
	}))
	inside, err := netlink.NewHandleAt(tk.ns)
	check(t, err)
	defer inside.Close()
	for _, name := range []string{"lo", taskLink} {
		l, err := inside.LinkByName(name)
		check(t, err)
		if l.Attrs().RawFlags&1 == 0 {
			t.Errorf("link %s is down", name)
		}
	}
	addresses, err := inside.AddrList(nil, netlink.FAMILY_V6)
	check(t, err)
	for _, a := range addresses {
		if !a.IP.IsLoopback() {
			t.Errorf("IPv6 address %v: want none, the rules do not see it", a.IP)
		}
	}
}

func TestAttachRefuses(t *testing.T) {
	w := newWorld(t)
	n := w.newNode(210)
	taken := n.attach(10, nil)
	address := netip.MustParseAddr("10.210.1.20")
	for _, c := range []struct {
		name     string
		a        agent.Attachment
		rejected bool // trying again will not help
	}{
		{"address of another task", agent.Attachment{Address: taken.Address}, false},
		{"the node's own address", agent.Attachment{Address: n.nodeAddress()}, false},
		{"another node's address", agent.Attachment{Address: netip.MustParseAddr("10.210.2.20")}, false},
		{"no address", agent.Attachment{}, false},
		{"setting of the machine", agent.Attachment{Address: address, Sysctls: map[string]string{"kernel.panic": "1"}}, true},
		{"path in a setting", agent.Attachment{Address: address, Sysctls: map[string]string{"net./../kernel.panic": "1"}}, true},
		{"unknown setting", agent.Attachment{Address: address, Sysctls: map[string]string{"net.ipv4.nosuch": "1"}}, true},
	} {
		c.a.Task = cluster.NewID(nil)
		_, err := n.Attach(t.Context(), c.a)
		var reject *agent.RejectError
		if err == nil || errors.As(err, &reject) != c.rejected {
			t.Errorf("%s: got %v, want an error, rejected %v", c.name, err, c.rejected)
		}
		check(t, n.Detach(t.Context(), c.a.Task)) // whatever was half made
	}
	if name, err := os.ReadDir(n.cfg.StateDir + "/tasks"); err != nil || len(name) != 1 {
		t.Errorf("records: got %v, %v; want only the first task's", name, err)
	}
}

// A node that is cut off from its managers after a restart still gives a new task its way out, and keeps the old rules.
func TestAttachBeforeFirstState(t *testing.T) {
	w := newWorld(t)
	w.serve(w.outside, at(farAddress, 7000), "world")
	n := w.newNode(210)
	front := cluster.NewID(nil)
	web, client := n.attach(10, nil, front), n.attach(11, nil, front)
	web.serve(80)
	n.apply(state(nil, web, client))
	n.restart()
	fresh := n.attach(12, nil, front)
	fresh.serve(80)
	for _, c := range []struct {
		what    string
		from    *task
		address string
		want    string
	}{
		{"new task to the world", fresh, at(farAddress, 7000), "world"},
		{"old task to the world", client, at(farAddress, 7000), "world"},
		{"old task to old task", client, at(web.Address, 80), "host10"},
	} {
		if name, _, err := c.from.ask("tcp", c.address); err != nil || name != c.want {
			t.Errorf("%s: got %q, %v; want %s", c.what, name, err, c.want)
		}
	}
	if name, _, err := w.fromHost("tcp", at(fresh.Address, 80)); err != nil || name != "host12" {
		t.Errorf("probe of the new task: got %q, %v", name, err)
	}
	n.apply(state(nil, web, client, fresh))
	if name, _, err := fresh.ask("tcp", at(web.Address, 80)); err != nil || name != "host10" {
		t.Errorf("new task to old task after the state: got %q, %v", name, err)
	}
}
