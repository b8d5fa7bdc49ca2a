// Package network gives tasks their place in the network of a node: an address, a namespace, names, load balancing,
// published ports and isolation. docs/networking.md draws a packet's way.
//
// It owns, on its node and nothing else:
//
//	address    label lo:bnXXXX     the node's own address, on the loopback link
//	links      bnXXXX-TTTTTTTT     the host end of each task's veth pair; XXXX from the node id, T from the task id
//	link       bmXXXX              the mesh to other nodes: WireGuard, a tun device for it, or VXLAN
//	routes     protocol 186        one per task; those of the pools and of other nodes carry the node id in their metric
//	rules      priority 1860       VXLAN: the way of answers to clients from outside; the node id is in their table
//	nft table  ip baton-XXXXXXXXXX everything that is filtered or translated
//	files      StateDir/netns/ID   a task's namespace, pinned by a bind mount
//	           StateDir/tasks/ID   how the task was attached (JSON)
//	           StateDir/mesh/keys  the node's private keys (JSON, mode 0600)
//	           StateDir/mesh/peers what the mesh was last configured for (JSON)
//
// Invariants: what runs in the kernel does not need this process: after a kill everything goes on but names and in-process
// WireGuard, and a new Network over the same StateDir adopts it. A change of the rules is one nftables transaction, so a packet sees the state
// before or after it. Nothing is removed but by Detach, Sweep, RemoveAll or a newer NetworkState.
//
// Concurrency: a Network may be used from several goroutines. One mutex serialises changes; questions about connections and
// names do not take it, nor does the forgetting of a gone task's connections, whose address nobody gets before that is over. Close ends every goroutine and leaves the kernel's state.
package network

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"baton/internal/model/cluster"
	"baton/internal/node/agent"
	"baton/internal/wire/agentapi"
)

// Config says which node this is.
type Config struct {
	NodeID   cluster.ID
	StateDir string       // absolute; made if missing
	Logger   *slog.Logger // default slog.Default()

	// NetNS is the path of the network namespace that is the node's; empty for the one of this process.
	NetNS string
	// MTU of the tasks' links and of the mesh's own, in bytes. By default it is that of the link with the default route, else
	// 1500, or that of a link to another node if smaller, less what the mesh adds to a packet.
	MTU int
	// ResolvConf lists the node's name servers; default /etc/resolv.conf.
	ResolvConf string
}

// Network implements agent.Network on Linux.
type Network struct {
	cfg   Config
	log   *slog.Logger
	names layout
	host  netns.NsHandle
	links *netlink.Handle
	dns   *resolver

	meshKey    atomic.Pointer[string] // the newest public one
	background sync.WaitGroup         // of this Network's goroutines, but those of name service

	tracked listing // for counting
	forgot  listing // for forgetting, which is in less of a hurry

	mu        sync.Mutex
	node      agentapi.NodeConfig
	attached  map[cluster.ID]*attachment
	leaving   map[cluster.ID]netip.Addr // detached, but their connections may still be tracked
	state     agentapi.NetworkState
	applied   bool   // state is from a manager, not the zero value
	installed *rules // what the kernel has, or nil when that is not known
	mtu       int
	mesh      mesh
	ended     map[string]bool // connections that were over when Used looked last; nil: it has not
}

var _ agent.Network = (*Network)(nil)

// New opens the network of a node. In the kernel it changes nothing yet, but that in-process WireGuard, which ended with the
// earlier process, is up again.
func New(cfg Config) (*Network, error) {
	n, err := open(cfg)
	if err != nil {
		return nil, err
	}
	if err := n.loadKeys(); err != nil {
		return nil, errors.Join(err, n.Close())
	}
	n.loadMesh()
	n.resumeMesh()
	return n, nil
}

// open makes a Network that is good for removing things.
func open(cfg Config) (*Network, error) {
	if cfg.NodeID.IsZero() || !filepath.IsAbs(cfg.StateDir) {
		return nil, fmt.Errorf("network: want a node id and an absolute state directory, got %q and %q", cfg.NodeID, cfg.StateDir)
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	if cfg.ResolvConf == "" {
		cfg.ResolvConf = "/etc/resolv.conf"
	}
	for _, dir := range []string{"netns", "tasks", "mesh"} {
		if err := os.MkdirAll(filepath.Join(cfg.StateDir, dir), 0o700); err != nil {
			return nil, fmt.Errorf("network state: %w", err)
		}
	}
	host, err := openNS(cfg.NetNS)
	if err != nil {
		return nil, err
	}
	links, err := netlink.NewHandleAt(host)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("netlink in the node's namespace: %w", err), host.Close())
	}
	n := &Network{
		cfg: cfg, log: cfg.Logger, names: newLayout(cfg.NodeID), host: host, links: links,
		attached: make(map[cluster.ID]*attachment), leaving: make(map[cluster.ID]netip.Addr),
		forgot: listing{gather: gatherMax},
	}
	n.dns = newResolver(cfg.Logger, cfg.ResolvConf, n.dialHost)
	return n, nil
}

// Close stops answering names and ends every goroutine. Everything in the kernel stays; in-process WireGuard pauses.
func (n *Network) Close() error {
	n.dns.close()
	defer n.background.Wait()
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.mesh.wg != nil {
		n.saveRoamed()
		n.mesh.wg.close()
		n.mesh.wg = nil
	}
	n.links.Close()
	return n.host.Close()
}

// Configure implements agent.Network. The first address of the subnet is the node's own: no task may have it.
func (n *Network) Configure(_ context.Context, c agentapi.NodeConfig) error {
	for _, p := range []netip.Prefix{c.Subnet, c.TaskPool, c.ServicePool} {
		if !p.IsValid() || !p.Addr().Is4() || p != p.Masked() {
			return fmt.Errorf("node config: subnet %v, task pool %v, service pool %v: want IPv4 prefixes without host bits", c.Subnet, c.TaskPool, c.ServicePool)
		}
	}
	if err := checkMesh(c); err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	first := !n.node.Subnet.IsValid()
	if n.node == c {
		return nil
	}
	n.node = c
	err := n.setUpHost()
	if err == nil {
		err = n.followMesh()
	}
	if err == nil {
		err = n.followEpoch(c.MeshEpoch)
	}
	if err != nil {
		n.node = agentapi.NodeConfig{} // so that the next call tries again
		return err
	}
	if first {
		if err := n.adopt(); err != nil {
			return err
		}
		return n.setTaskMTUs()
	}
	n.installed = nil // the pools are part of the rules
	if n.applied {
		return n.sync()
	}
	return nil
}

// adopt takes over the tasks that an earlier process attached.
func (n *Network) adopt() error {
	records, err := n.loadRecords()
	if err != nil {
		return err
	}
	for _, a := range records {
		if !nsAlive(n.nsPath(a.Task)) {
			continue // of before a reboot: Attach makes it anew, Sweep forgets it
		}
		n.attached[a.Task] = a
		if err := n.serveNames(a); err != nil {
			n.log.Warn("no names for an adopted task until it is attached again", "task", a.Task, "err", err)
		}
	}
	return nil
}

// Attach implements agent.Network.
func (n *Network) Attach(ctx context.Context, a agent.Attachment) (agent.Sandbox, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.node.Subnet.IsValid() {
		return agent.Sandbox{}, errors.New("attach: the network is not configured yet")
	}
	if !a.Address.Is4() || !n.node.Subnet.Contains(a.Address) || a.Address == n.nodeAddress() {
		return agent.Sandbox{}, fmt.Errorf("attach %s: address %v is not a task address of this node's subnet %v", a.Task.Short(), a.Address, n.node.Subnet)
	}
	for id, o := range n.attached {
		if id != a.Task && o.Address == a.Address {
			return agent.Sandbox{}, fmt.Errorf("attach %s: address %v is still of task %s; detach that first", a.Task.Short(), a.Address, id.Short())
		}
	}
	for id, address := range n.leaving {
		if address == a.Address {
			return agent.Sandbox{}, fmt.Errorf("attach %s: the connections of task %s to address %v are being forgotten; try again", a.Task.Short(), id.Short(), address)
		}
	}
	if err := checkSysctls(a.Sysctls); err != nil {
		return agent.Sandbox{}, err
	}
	at := &attachment{Attachment: a}
	if err := n.saveRecord(at); err != nil {
		return agent.Sandbox{}, err
	}
	if err := n.plug(ctx, at); err != nil {
		return agent.Sandbox{}, fmt.Errorf("attach %s: %w", a.Task.Short(), err)
	}
	if err := n.serveNames(at); err != nil {
		return agent.Sandbox{}, fmt.Errorf("attach %s: %w", a.Task.Short(), err)
	}
	n.attached[a.Task] = at
	if err := n.sync(); err != nil {
		return agent.Sandbox{}, fmt.Errorf("attach %s: %w", a.Task.Short(), err)
	}
	return agent.Sandbox{NetNS: n.nsPath(a.Task), ResolvConf: n.resolvConf(a), Hosts: hostsFile(a, n.nodeAddress())}, nil
}

// Detach implements agent.Network.
func (n *Network) Detach(_ context.Context, task cluster.ID) error {
	n.mu.Lock()
	address, err := n.unhook(task)
	n.mu.Unlock()
	return n.forget(task, address, err)
}

// unhook takes the task off the network; n.mu is held. It returns the address whose connections are to be forgotten, by forget: that
// needs a walk over the kernel's table, which tasks that go together share and which nothing else need wait for.
func (n *Network) unhook(task cluster.ID) (address netip.Addr, err error) {
	n.dns.stop(task)
	a := n.attached[task]
	if a == nil {
		a, _ = n.loadRecord(task) // without a record there is no address to clean
	}
	delete(n.attached, task)
	errs := []error{n.unplug(task)}
	if n.node.Subnet.IsValid() {
		errs = append(errs, n.sync())
	}
	if a != nil {
		address = a.Address
		n.leaving[task] = address
	}
	return address, errors.Join(errs...)
}

// forget ends what unhook began; n.mu is not held. The record goes last: until then another attempt finds the address.
func (n *Network) forget(task cluster.ID, address netip.Addr, err error) error {
	if address.IsValid() {
		err = errors.Join(err, n.forgetConnections(address))
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.leaving, task)
	if err != nil {
		return fmt.Errorf("detach %s: %w", task.Short(), err)
	}
	return n.removeRecord(task)
}

// Apply implements agent.Network.
func (n *Network) Apply(_ context.Context, s agentapi.NetworkState) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.node.Subnet.IsValid() {
		return errors.New("apply: the network is not configured yet")
	}
	n.state, n.applied = s, true
	if err := n.followMesh(); err != nil {
		return fmt.Errorf("apply network state: %w", err)
	}
	if err := n.sync(); err != nil {
		return fmt.Errorf("apply network state: %w", err)
	}
	n.dns.publish(newDirectory(s))
	return nil
}

// Connections implements agent.Network. It asks the kernel's connection tracking, so it also counts the connections
// that a task made to itself through its service address.
func (n *Network) Connections(_ context.Context, address netip.Addr) (int, error) {
	flows, err := n.tracked.flows(n.host, flowFilter{replySource: address, protocol: protoTCP})
	count := 0
	for _, f := range flows {
		if f.open() {
			count++
		}
	}
	return count, err
}

// Sweep implements agent.Network.
func (n *Network) Sweep(ctx context.Context, keep []cluster.ID) error {
	stale, err := n.strangers(keep)
	if err != nil {
		return err
	}
	var going sync.WaitGroup
	errs := make([]error, len(stale)+1)
	for i, id := range stale {
		going.Go(func() { errs[i] = n.Detach(ctx, id) })
	}
	going.Wait()
	n.mu.Lock()
	defer n.mu.Unlock()
	errs[len(stale)] = n.sweepLinks(keep)
	return errors.Join(errs...)
}

// strangers are the tasks that left something here and are not in keep.
func (n *Network) strangers(keep []cluster.ID) ([]cluster.ID, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	stale := make(map[cluster.ID]bool)
	for id := range n.attached {
		stale[id] = true
	}
	for _, dir := range []string{"netns", "tasks"} {
		entries, err := os.ReadDir(filepath.Join(n.cfg.StateDir, dir))
		if err != nil {
			return nil, fmt.Errorf("sweep: %w", err)
		}
		for _, e := range entries {
			if id, err := cluster.ParseID(e.Name()); err == nil {
				stale[id] = true
			}
		}
	}
	for _, id := range keep {
		delete(stale, id)
	}
	return slices.Collect(maps.Keys(stale)), nil
}

// sweepLinks removes host ends whose task left no file behind.
func (n *Network) sweepLinks(keep []cluster.ID) error {
	wanted := make(map[string]bool, len(keep))
	for _, id := range keep {
		wanted[n.names.link(id)] = true
	}
	links, err := n.links.LinkList()
	if err != nil {
		return fmt.Errorf("sweep links: %w", err)
	}
	var errs []error
	for _, l := range links {
		if name := l.Attrs().Name; n.names.isTaskLink(name) && !wanted[name] {
			errs = append(errs, ignoreMissing(n.links.LinkDel(l)))
		}
	}
	return errors.Join(errs...)
}

// sync makes the rules follow the state and the attached tasks. Before the first state from a manager it only adds what
// an attached task needs, and leaves the rules of an earlier process as they are.
func (n *Network) sync() error {
	start := time.Now()
	want := rulesInput{node: n.node, self: n.nodeAddress(), state: n.state, layout: n.names, links: n.mesh.links, peers: n.mesh.record.Peers, local: make([]*attachment, 0, len(n.attached))}
	for _, a := range n.attached {
		want.local = append(want.local, a)
	}
	slices.SortFunc(want.local, func(a, b *attachment) int { return a.Address.Compare(b.Address) })
	if n.installed == nil && !n.applied {
		exists, err := n.tableExists()
		if err != nil {
			return err
		}
		if exists {
			return n.admit(want)
		}
	}
	moved, left, err := n.install(want)
	if err != nil {
		n.installed = nil // unknown now: the next attempt replaces everything
		return err
	}
	if err := n.forgetStale(moved, left); err != nil {
		return err
	}
	if d := time.Since(start); d > slowSync {
		n.log.Info("network rules were slow to change", "took", d, "services", len(n.state.Services))
	}
	return nil
}

// slowSync is the time after which a change of the rules is worth a line in the log.
const slowSync = time.Second

// nodeAddress is the node's own address: the first of its subnet.
func (n *Network) nodeAddress() netip.Addr { return n.node.Subnet.Addr().Next() }
