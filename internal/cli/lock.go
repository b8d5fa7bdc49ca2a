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

const (
	// unlockLook is how often unlock looks whether the manager answers, unlockWait how long at most, and leaderWait how long
	// it waits for a leader: the other managers may be locked, too.
	unlockLook = 100 * time.Millisecond
	unlockWait = time.Minute
	leaderWait = 10 * time.Second
)

func (a *app) lockCmd() *cobra.Command {
	var off bool
	cmd := &cobra.Command{
		Use: "lock", Args: cobra.NoArgs, Short: "Let managers open their state only with a key that is printed once",
		Long: `Lock the cluster: on every manager's disk the key to the state, and so to all secrets, is sealed with an unlock key, which is
printed this once. A manager that starts from then on opens nothing before "baton cluster unlock" on its machine; containers
keep running meanwhile, and managers that run go on. A manager that is down now follows once it is back.`,
		Example: `  baton cluster lock -q > unlock.key
  baton cluster lock --off`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.dial()
			if err != nil {
				return err
			}
			r, err := c.Lock(cmd.Context(), off)
			switch {
			case err != nil:
				return err
			case a.structured():
				return a.document(r)
			case off:
				fmt.Fprintln(a.out, "cluster: not locked")
			case a.quiet:
				fmt.Fprintln(a.out, r.Key)
			default:
				fmt.Fprintf(a.out, "cluster: locked\n\n    %s\n\nThis is the unlock key. Keep it where it is safe, and not on these machines: it is not shown again,\nand without it a manager that was restarted cannot go on. On its machine: baton cluster unlock\n", r.Key)
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&off, "off", false, "take the lock off")
	return cmd
}

func (a *app) unlockCmd() *cobra.Command {
	var key secretFlags
	cmd := &cobra.Command{
		Use: "unlock", Args: cobra.NoArgs, Short: "Let the locked manager on this machine open its state",
		Example: `  sudo baton cluster unlock
  sudo baton cluster unlock --key-stdin < unlock.key`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			text, err := a.secret(&key)
			if err != nil {
				return err
			}
			c, err := a.dial()
			if err != nil {
				return err
			}
			if err := c.Unlock(cmd.Context(), text); err != nil {
				return err
			}
			return a.awaitUnlocked(cmd.Context(), c)
		},
	}
	key.add(cmd, "unlock key", "key")
	return cmd
}

// awaitUnlocked waits until the manager that was unlocked answers, and for a while until it has found the others.
func (a *app) awaitUnlocked(ctx context.Context, c *client.Client) error {
	ctx, cancel := a.limited(ctx, unlockWait)
	defer cancel()
	alone := time.NewTimer(leaderWait)
	defer alone.Stop()
	for over := false; ; {
		cl, err := c.Cluster(ctx)
		switch {
		case err == nil && cl.Leader != "":
			fmt.Fprintf(a.out, "manager: unlocked; %s leads\n", cl.Leader)
			return nil
		case err == nil && over:
			fmt.Fprintln(a.out, "manager: unlocked; no manager leads yet, see `baton cluster status`")
			return nil
		}
		select {
		case <-ctx.Done():
			if !errors.Is(ctx.Err(), context.DeadlineExceeded) {
				return &exitError{code: api.ExitInterrupted}
			}
			return &exitError{api.ExitTimeout, api.Errorf(api.CodeTimeout, "the key was right, and the manager does not answer after %s", a.timeout).WithMend("look at its server's log")}
		case <-alone.C:
			over = true
		case <-time.After(unlockLook):
		}
	}
}
