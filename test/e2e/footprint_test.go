package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"baton/client/api"
	"baton/internal/model/cluster"
)

// footprint is what a node has of its machine, by kind.
type footprint map[string]int

// exact are the kinds of which there must be as many after redeploys as before, summed over the nodes: which node has a
// task may differ, how many there are may not.
var exact = []string{
	"links", "namespaces", "addresses", "routes", "policy rules", "nft tables", "nft chains", "nft rules", "nft sets", "nft elements",
	"mounts", "containers", "snapshots", "leases", "cgroups", "task records", "task files", "network files", "fifos", "loggers",
}

// footprint counts what the machine has.
func (m *machine) footprint() footprint {
	m.t.Helper()
	f := make(footprint)
	run := runDir(m.t, m.containerd())
	eventually(m.t, 10*time.Second, "the network holds still while it is listed", func() error {
		seen := make(footprint)
		err := m.countNetwork(seen)
		maps.Copy(f, seen)
		return err
	})
	m.countContainerd(f, filepath.Join(run, "c.sock"))
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		m.t.Fatal(err)
	}
	for line := range strings.SplitSeq(string(mounts), "\n") {
		if strings.Contains(line, m.data+"/") || strings.Contains(line, run+"/") {
			f["mounts"]++
		}
	}
	for _, root := range []string{"/sys/fs/cgroup/pids", "/sys/fs/cgroup/memory", "/sys/fs/cgroup"} {
		f["cgroups"] += entries(m.t, filepath.Join(root, "baton", filepath.Base(run)), fs.DirEntry.IsDir)
	}
	file := func(e fs.DirEntry) bool { return !e.IsDir() }
	f["task records"] = children(m.t, filepath.Join(m.data, "tasks"))
	f["task files"] = entries(m.t, filepath.Join(m.data, "tasks"), file) + entries(m.t, filepath.Join(m.data, "files"), file)
	f["network files"] = entries(m.t, filepath.Join(m.data, "network"), file)
	f["fifos"] = entries(m.t, filepath.Join(run, "fifo"), file)
	f["log directories"] = children(m.t, filepath.Join(m.data, "logs"))
	m.countProcesses(f)
	return f
}

// children counts what is directly in a directory, which may be missing.
func children(t *testing.T, dir string) int {
	t.Helper()
	list, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	return len(list)
}

// entries counts what is below a directory, at any depth.
func entries(t *testing.T, dir string, keep func(fs.DirEntry) bool) (n int) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err == nil && path != dir && keep(e) {
			n++
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil // the server is at work meanwhile
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func (m *machine) countNetwork(f footprint) error {
	ns, err := netns.GetFromPath(m.ns)
	if err != nil {
		return err
	}
	defer ns.Close()
	h, err := netlink.NewHandleAt(ns)
	if err != nil {
		return err
	}
	defer h.Close()
	links, err1 := h.LinkList()
	addresses, err2 := h.AddrList(nil, netlink.FAMILY_ALL)
	rules, err3 := h.RuleList(netlink.FAMILY_V4)
	routes, err4 := h.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{}, netlink.RT_FILTER_TABLE) // of all tables
	if err := errors.Join(err1, err2, err3, err4); err != nil {
		return err
	}
	f["links"], f["policy rules"], f["routes"] = len(links), len(rules), len(routes)
	for _, a := range addresses {
		if a.IP.To4() != nil {
			f["addresses"]++
		}
	}
	f["namespaces"] = children(m.t, filepath.Join(m.data, "network", "netns"))
	return inNamespace(m.ns, func() error { return countRules(f) })
}

// The attributes of nftables' messages that are looked at.
const (
	setTable, setName                 = 1, 2
	elementsTable, elementsSet, nests = 1, 2, 3
)

// drawChain is the name of a chain that draws one of so many endpoints. These are made for a number of endpoints when a
// service has that many for the first time, and serve all services that have as many later.
var drawChain = regexp.MustCompile(`^[npa][0-9]+\x00$`)

// countRules counts what this namespace has of nftables.
func countRules(f footprint) error {
	for _, kind := range []struct {
		name  string
		get   int
		chain uint16 // attribute with the chain's name
	}{{"nft tables", unix.NFT_MSG_GETTABLE, 0}, {"nft chains", unix.NFT_MSG_GETCHAIN, 3}, {"nft rules", unix.NFT_MSG_GETRULE, 2}} {
		list, err := dumpRules(kind.get)
		if err != nil {
			return fmt.Errorf("%s: %w", kind.name, err)
		}
		for _, found := range list {
			if drawChain.Match(found[kind.chain]) {
				f["draw "+kind.name]++
			} else {
				f[kind.name]++
			}
		}
	}
	sets, err := dumpRules(unix.NFT_MSG_GETSET)
	if err != nil {
		return err
	}
	f["nft sets"] = len(sets)
	for _, set := range sets {
		elements, err := dumpRules(unix.NFT_MSG_GETSETELEM, nl.NewRtAttr(elementsTable, set[setTable]), nl.NewRtAttr(elementsSet, set[setName]))
		if err != nil {
			return fmt.Errorf("set %s: %w", set[setName], err)
		}
		for _, part := range elements {
			list, err := nl.ParseRouteAttr(part[nests])
			if err != nil {
				return err
			}
			f["nft elements"] += len(list)
		}
	}
	return nil
}

// dumpRules asks the kernel for all objects of a kind and returns the attributes of each.
func dumpRules(get int, attributes ...*nl.RtAttr) ([]map[uint16][]byte, error) {
	req := nl.NewNetlinkRequest(unix.NFNL_SUBSYS_NFTABLES<<8|get, unix.NLM_F_DUMP)
	req.AddData(&nl.Nfgenmsg{NfgenFamily: unix.AF_UNSPEC})
	if len(attributes) > 0 { // sets are asked for by family
		req.Data[0] = &nl.Nfgenmsg{NfgenFamily: unix.NFPROTO_IPV4}
	}
	for _, a := range attributes {
		req.AddData(a)
	}
	messages, err := req.Execute(unix.NETLINK_NETFILTER, 0)
	if err != nil {
		return nil, err
	}
	var out []map[uint16][]byte
	for _, m := range messages {
		list, err := nl.ParseRouteAttr(m[nl.SizeofNfgenmsg:])
		if err != nil {
			return nil, err
		}
		found := make(map[uint16][]byte)
		for _, a := range list {
			found[a.Attr.Type&nl.NLA_TYPE_MASK] = a.Value
		}
		out = append(out, found)
	}
	return out, nil
}

func (m *machine) countContainerd(f footprint, socket string) {
	m.t.Helper()
	client, err := containerd.New(socket, containerd.WithDefaultNamespace("baton"), containerd.WithTimeout(10*time.Second))
	if err != nil {
		m.t.Fatal(err)
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	ctx = namespaces.WithNamespace(ctx, "baton")
	containers, err1 := client.Containers(ctx)
	leases, err2 := client.LeasesService().List(ctx)
	f["containers"], f["leases"] = len(containers), len(leases)
	layers := 0
	err3 := client.SnapshotService("").Walk(ctx, func(context.Context, snapshots.Info) error { layers++; return nil })
	blobs := 0
	err4 := client.ContentStore().Walk(ctx, func(content.Info) error { blobs++; return nil })
	if err := errors.Join(err1, err2, err3, err4); err != nil {
		m.t.Fatal(err)
	}
	f["snapshots"], f["blobs"] = layers, blobs
}

// countProcesses counts the shims and loggers of the machine.
func (m *machine) countProcesses(f footprint) {
	m.t.Helper()
	for _, pid := range m.processes(runDir(m.t, m.containerd())) {
		cmdline, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if err != nil {
			continue // it has ended
		}
		name, _, _ := bytes.Cut(cmdline, []byte{0})
		switch base := filepath.Base(string(name)); {
		case strings.HasPrefix(base, "containerd-shim"):
			f["shims"]++
		case strings.HasPrefix(base, "baton-logger"):
			f["loggers"]++
		}
	}
}

// stored are what the managers keep of the past, and how much each baton uses, by name and node.
func (c *machines) stored() (footprint, map[string]map[string]uint64) {
	c.t.Helper()
	m1 := c.list[0]
	f := footprint{
		"releases": len(batonJSON[[]api.Release](m1, "releases", "-s", "soak")),
		"tasks":    len(batonJSON[[]api.Task](m1, "ps", "--all")),
		"configs":  len(batonJSON[[]api.Material](m1, "cfg", "history", "round")),
		"secrets":  len(batonJSON[[]api.Material](m1, "secret", "history", "key")),
		"events":   len(batonJSON[[]api.Event](m1, "events", "-n", "10000")),
	}
	if f["events"] == 10_000 { // no more are told at once
		f["events"] = 20_000 // as many as are kept at most
	}
	use := make(map[string]map[string]uint64)
	for _, k := range decode[[]api.Check](c.t, m1.try("cluster", "doctor", "-o", "json").stdout) {
		if k.Name == "process" {
			use[k.Node] = k.Values
		}
	}
	return f, use
}

// remembered are the tasks that the managers know, also those that have ended.
func (c *machines) remembered() map[string]bool {
	c.t.Helper()
	out := make(map[string]bool)
	for _, task := range batonJSON[[]api.Task](c.list[0], "ps", "--all") {
		out[task.ID.String()] = true
	}
	return out
}

// footprints are those of all nodes, and their sums, once no task is on its way to its end.
func (c *machines) footprints() (sum footprint, each map[string]footprint) {
	c.t.Helper()
	eventually(c.t, time.Minute, "no task is on its way", func() error {
		for _, task := range batonJSON[[]api.Task](c.list[0], "ps", "--all") {
			live := task.Observed == cluster.ObservedRunning && task.Desired == cluster.DesiredRun
			if !live && !task.Observed.Terminal() {
				return fmt.Errorf("%s is %s", task.Label(), task.Observed)
			}
		}
		return nil
	})
	// Nodes clean up after a task has ended: what does not change within a second is taken for settled.
	var before footprint
	eventually(c.t, time.Minute, "nodes have cleaned up", func() error {
		before = sum
		sum, each = make(footprint), make(map[string]footprint)
		for _, m := range c.list {
			each[m.name] = m.footprint()
			for k, n := range each[m.name] {
				sum[k] += n
			}
		}
		if !maps.Equal(before, sum) {
			time.Sleep(time.Second) // what is compared are two counts with time between them
			return fmt.Errorf("had %v, have %v", before, sum)
		}
		return nil
	})
	return sum, each
}

func (f footprint) String() string {
	var out []string
	for _, k := range slices.Sorted(maps.Keys(f)) {
		out = append(out, fmt.Sprintf("%s %d", k, f[k]))
	}
	return strings.Join(out, ", ")
}
