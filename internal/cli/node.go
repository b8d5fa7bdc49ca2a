package cli

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"baton/client"
	"baton/client/api"
	"baton/internal/model/cluster"
)

// drainLook is how often drain looks how many tasks are left.
const drainLook = 300 * time.Millisecond

// availabilityCmds are the verbs that say what a node may run.
func (a *app) availabilityCmds() []*cobra.Command {
	var detach bool
	drain := &cobra.Command{
		Use: "drain NAME", Args: cobra.ExactArgs(1), Short: "Move all tasks off a node, and give it no new ones",
		Long: "Move all tasks off a node, and give it no new ones until `baton node activate`.\n" +
			"Each task leaves the load balancers and finishes its connections first. One that fits on no other node stays until one has room.",
		Example: "  baton node drain n2 && ssh n2 reboot",
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.setAvailability(cmd.Context(), args[0], cluster.NodeDrain)
			if err != nil || detach {
				return err
			}
			return a.awaitDrained(cmd.Context(), c, args[0])
		},
	}
	drain.Flags().BoolVarP(&detach, "detach", "d", false, "do not wait")
	pause := &cobra.Command{
		Use: "pause NAME", Args: cobra.ExactArgs(1), Short: "Give a node no new tasks; those it has stay",
		RunE: func(cmd *cobra.Command, args []string) error {
			_, err := a.setAvailability(cmd.Context(), args[0], cluster.NodePause)
			return err
		},
	}
	activate := &cobra.Command{
		Use: "activate NAME", Args: cobra.ExactArgs(1), Short: "Let a node run tasks again",
		RunE: func(cmd *cobra.Command, args []string) error {
			_, err := a.setAvailability(cmd.Context(), args[0], cluster.NodeActive)
			return err
		},
	}
	return []*cobra.Command{drain, pause, activate}
}

func (a *app) setAvailability(ctx context.Context, name string, to cluster.Availability) (*client.Client, error) {
	c, err := a.dial()
	if err != nil {
		return nil, err
	}
	n, err := c.PatchNode(ctx, name, api.NodePatch{Availability: &to})
	if err != nil {
		return nil, err
	}
	fmt.Fprintf(a.out, "node %s: availability %s\n", n.Name, n.Availability)
	return c, nil
}

// awaitDrained waits until the node has no task left, or --timeout is over.
func (a *app) awaitDrained(ctx context.Context, c *client.Client, name string) error {
	ctx, cancel := a.limited(ctx, waitDefault)
	defer cancel()
	left := -1
	for {
		n, err := c.Node(ctx, name)
		if err == nil && n.Tasks == 0 {
			fmt.Fprintf(a.out, "node %s is drained\n", n.Name)
			return nil
		}
		if err != nil && ctx.Err() == nil {
			return err
		}
		if err == nil && n.Tasks != left {
			left = n.Tasks
			fmt.Fprintf(a.out, "node %s: tasks left: %d\n", n.Name, left)
		}
		select {
		case <-ctx.Done():
			if !errors.Is(ctx.Err(), context.DeadlineExceeded) {
				fmt.Fprintf(a.err, "interrupted: draining goes on; see `baton ps`\n")
				return &exitError{code: api.ExitInterrupted}
			}
			return &exitError{api.ExitTimeout, api.Errorf(api.CodeTimeout, "node %s has tasks left after %s: %d", name, a.timeout, left).
				WithMend("draining goes on; see `baton ps` and `baton why`")}
		case <-time.After(drainLook):
		}
	}
}
