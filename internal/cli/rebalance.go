package cli

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"baton/client"
	"baton/client/api"
)

// rebalanceCmd moves tasks so that the nodes are evenly loaded.
func (a *app) rebalanceCmd() *cobra.Command {
	var plan, detach bool
	cmd := &cobra.Command{
		Use: "rebalance", Args: cobra.NoArgs, Short: "Move tasks to nodes with less to do",
		Long: "Move tasks to nodes with less to do, now. The cluster does the same by itself, a minute after a node joined, returned or was activated.\n" +
			"Each task starts on its new node before the old one leaves the load balancers and finishes its connections; a few move at a time. Tasks that\n" +
			"have a volume or a directory of their node, run to an end, or are to stop before they start anew, stay.",
		Example: "  baton node rebalance --plan",
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.dial()
			if err != nil {
				return err
			}
			b, err := c.PlanBalance(cmd.Context(), false)
			if err != nil {
				return err
			}
			if err := a.printMoves(b); err != nil {
				return err
			}
			if plan || len(b.Moves)+b.UnderWay == 0 {
				return nil
			}
			if !a.yes && a.interactive() {
				if err := a.ask(cmd.Context(), "Move them?"); err != nil {
					return err
				}
			}
			if _, err := c.Rebalance(cmd.Context()); err != nil || detach {
				return err
			}
			return a.awaitBalance(cmd.Context(), c)
		},
	}
	cmd.Flags().BoolVar(&plan, "plan", false, "show what would be moved and why, and do nothing")
	cmd.Flags().BoolVarP(&detach, "detach", "d", false, "do not wait")
	return cmd
}

func (a *app) printMoves(b api.Balance) error {
	if len(b.Moves) == 0 && a.output == "table" && !a.quiet {
		_, err := fmt.Fprintln(a.out, "no move would make the nodes more evenly loaded")
		return err
	}
	t := &table{head: []string{"TASK", "FROM", "TO", "WHY"}}
	for _, m := range b.Moves {
		t.add(m.Task, m.From, m.To, m.Reason)
	}
	return list(a, b.Moves, t, func(m api.Move) string { return m.Task })
}

// awaitBalance waits until nothing is left to move, or --timeout is over.
func (a *app) awaitBalance(ctx context.Context, c *client.Client) error {
	ctx, cancel := a.limited(ctx, waitDefault)
	defer cancel()
	left := -1
	for {
		b, err := c.PlanBalance(ctx, true)
		now := len(b.Moves) + b.UnderWay
		if err != nil && ctx.Err() == nil {
			return err
		}
		if err == nil && now == 0 {
			fmt.Fprintln(a.out, "the nodes are evenly loaded")
			return nil
		}
		if err == nil && now != left {
			left = now
			fmt.Fprintf(a.out, "tasks left to move: %d\n", left)
		}
		select {
		case <-ctx.Done():
			if !errors.Is(ctx.Err(), context.DeadlineExceeded) {
				fmt.Fprintf(a.err, "interrupted: moving goes on; see `baton ps`\n")
				return &exitError{code: api.ExitInterrupted}
			}
			return &exitError{api.ExitTimeout, api.Errorf(api.CodeTimeout, "tasks left to move after %s: %d", a.timeout, left).
				WithMend("moving goes on; see `baton node rebalance --plan` and `baton events`")}
		case <-time.After(drainLook):
		}
	}
}
