package network

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

// RemoveAll removes every trace of a node's network: tasks' namespaces and links, routes, rules and the state directory.
// It needs nothing of what an earlier process knew but the node's id, may be repeated, and must not run beside a Network of
// the same node. Forwarding stays enabled: others may rely on it.
func RemoveAll(ctx context.Context, cfg Config) error {
	n, err := open(cfg)
	if err != nil {
		return err
	}
	defer func() { _ = n.Close() }()
	records, err := n.loadRecords()
	if err != nil {
		return err
	}
	errs := []error{n.Sweep(ctx, nil), n.removeTable(), n.removeMesh(), n.removeRoutes(nil)}
	if lo, err := n.links.LinkByName("lo"); err == nil {
		errs = append(errs, n.onlyAddress(lo, netip.Addr{}, n.names.label))
	}
	for _, a := range records {
		errs = append(errs, n.forgetConnections(a.Address))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("remove network: %w", err)
	}
	// Pins are gone: what remains are plain files. Never remove recursively above them.
	for _, name := range []string{"netns", "tasks", "mesh"} {
		if err := os.RemoveAll(filepath.Join(cfg.StateDir, name)); err != nil {
			return fmt.Errorf("remove network: %w", err)
		}
	}
	if err := os.Remove(cfg.StateDir); err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, unix.ENOTEMPTY) {
		return fmt.Errorf("remove network: %w", err)
	}
	return nil
}

func (n *Network) removeTable() error {
	exists, err := n.tableExists()
	if err != nil || !exists {
		return err
	}
	c, err := n.nftConn()
	if err != nil {
		return err
	}
	c.DelTable(&nftables.Table{Name: n.names.table, Family: nftables.TableFamilyIPv4})
	if err := c.Flush(); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("remove table %s: %w", n.names.table, err)
	}
	return nil
}
