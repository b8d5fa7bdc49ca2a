package network

import (
	"fmt"
	"os"
	"runtime"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Feature is something that this package needs of the kernel.
type Feature struct {
	Name    string
	Err     error  // why it cannot be used; nil: it can
	Instead string // what is used in its place; empty: nothing can be
}

// FeatureTUN is needed by WireGuard in process, and so only where the mesh is WireGuard and the kernel has none.
const FeatureTUN = "tun"

// Features tries out what this package needs of the kernel, in a network namespace that goes away with the trial.
func Features() []Feature {
	out := make(chan []Feature, 1)
	go func() {
		runtime.LockOSThread() // not unlocked: the thread ends with the goroutine, and takes the namespace along
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			out <- []Feature{{Name: "network namespaces", Err: err}}
			return
		}
		list := []Feature{
			{Name: "network namespaces"},
			{Name: "veth", Err: tryVeth()},
			{Name: "nftables", Err: tryTables()},
			{Name: "connection tracking", Err: tryConntrack()},
			{Name: "wireguard", Err: tryLink(&netlink.Wireguard{LinkAttrs: netlink.LinkAttrs{Name: "try-wg"}}), Instead: "WireGuard in process, which takes more processor time"},
		}
		if list[len(list)-1].Err != nil {
			list = append(list, Feature{Name: FeatureTUN, Err: tryTUN()})
		}
		out <- list
	}()
	return <-out
}

func tryLink(l netlink.Link) error {
	if err := netlink.LinkAdd(l); err != nil {
		return fmt.Errorf("make a link of type %s: %w", l.Type(), err)
	}
	return nil
}

func tryVeth() error {
	return tryLink(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "try-veth0"}, PeerName: "try-veth1"})
}

func tryTables() error {
	c, err := nftables.New()
	if err != nil {
		return err
	}
	t := c.AddTable(&nftables.Table{Name: "try", Family: nftables.TableFamilyIPv4})
	c.AddChain(&nftables.Chain{Name: "nat", Table: t, Type: nftables.ChainTypeNAT, Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource})
	if err := c.Flush(); err != nil {
		return fmt.Errorf("make a table with a chain for address translation: %w", err)
	}
	return nil
}

func tryConntrack() error {
	_, err := netlink.ConntrackTableList(netlink.ConntrackTable, netlink.FAMILY_V4)
	return err
}

// tryTUN asks for what WireGuard in process needs.
func tryTUN() error {
	f, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	return f.Close()
}

// Connections is how full the kernel's connection tracking is, of this process' namespace; zeros when it does not tell.
func Connections() (used, most uint64) {
	return readNumber("/proc/sys/net/netfilter/nf_conntrack_count"), readNumber("/proc/sys/net/netfilter/nf_conntrack_max")
}

func readNumber(path string) (n uint64) {
	data, err := os.ReadFile(path)
	if err == nil {
		_, _ = fmt.Sscan(string(data), &n) // what is no number is as if it were not there
	}
	return n
}
