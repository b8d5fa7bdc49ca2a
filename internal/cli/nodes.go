package cli

import (
	"context"
	"strconv"

	"github.com/spf13/cobra"

	"baton/client/api"
)

func (a *app) nodeLsCmd() *cobra.Command {
	return &cobra.Command{
		Use: "ls", Args: cobra.NoArgs, Short: "List nodes: state, role, and what of them is in use and reserved",
		Long: "List nodes: state, role, and what of them is in use and reserved.\n" +
			"In use is what everything on the machine uses, tasks or not, over the last seconds; each node is asked. Reserved is what tasks were promised.",
		Example: `  baton node ls
  baton node ls -o wide
  baton node ls -q       names only; no node is asked`,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.listNodes(cmd.Context()) },
	}
}

func (a *app) listNodes(ctx context.Context) error {
	c, err := a.dial()
	if err != nil {
		return err
	}
	ask := c.NodesUsed
	if a.quiet || a.output == "name" {
		ask = c.Nodes // names need no node
	}
	all, err := ask(ctx)
	if err != nil {
		return err
	}
	t := &table{
		head: []string{"NAME", "STATE", "AVAILABILITY", "ROLE", "TASKS", "CPU USED", "RESERVED", "MEMORY USED", "RESERVED", "VERSION", "ID", "SUBNET", "NOTE"}, wide: 3,
	}
	for _, n := range all {
		subnet, note := "", ""
		if n.Subnet.IsValid() {
			subnet = n.Subnet.String()
		}
		cpu, memory := "?", "?"
		if u := n.Used; u != nil && u.Error == "" {
			cpu, memory = cores(*u), size(int64(u.Memory))+"/"+size(int64(u.MemorySize))
		} else if u != nil {
			note = u.Error
		}
		availability := string(n.Availability)
		if n.Avoided != "" {
			availability += " (avoided)"
		}
		t.add(n.Name, string(n.State), availability, roleOf(n), strconv.Itoa(n.Tasks), cpu, millis(n.Reserved)+"/"+millis(n.Description.CPU),
			memory, size(int64(n.Memory))+"/"+size(int64(n.Description.Memory)), n.Description.Version, n.ID.Short(), subnet, note)
	}
	return list(a, all, t, func(n api.Node) string { return n.Name })
}

// roleOf tells the leading manager from the others.
func roleOf(n api.Node) string {
	switch {
	case n.Leader:
		return "leader"
	case n.Witness:
		return "witness"
	case n.Manager:
		return "manager"
	}
	return "worker"
}
