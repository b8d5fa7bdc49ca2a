package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"baton/client"
	"baton/client/api"
	"baton/internal/model/cluster"
)

// joinLineMax bounds what is read as a join line, in bytes.
const joinLineMax = 4 << 10

func (a *app) joinCmd() *cobra.Command {
	return a.runCmd(&cobra.Command{
		Use: "join TOKEN@HOST:PORT", Aliases: []string{"agent"}, Args: cobra.MaximumNArgs(1),
		Short: "Join a cluster with this machine, and run it as a node",
		Long: `Join a cluster with this machine and run it as a node, a worker or a manager by the token. "baton token ls" on a manager
prints the whole line. The token is bound to the cluster's authority: this machine joins that cluster or none.
Give - to read the line from standard input, or set BATON_JOIN, so that it does not show in the list of processes.
A machine that is a member already goes on as what it is.
With --witness it becomes a manager that only votes, so that two other managers go on when either is lost. It runs no tasks.`,
		Example: `  sudo baton join baton-worker-…@10.0.0.1:7701
  sudo baton join - < line
  sudo baton join --witness baton-manager-…@10.0.0.1:7701`,
	}, func(_ *cobra.Command, args []string, o *ServerOptions) error {
		o.Join = os.Getenv("BATON_JOIN")
		switch {
		case len(args) == 1 && args[0] == "-":
			line, err := io.ReadAll(io.LimitReader(a.in, joinLineMax))
			if err != nil {
				return err
			}
			o.Join = string(line)
		case len(args) == 1:
			o.Join = args[0]
		}
		if o.Join = strings.TrimSpace(o.Join); o.Join == "" {
			return usageError("no token: give TOKEN@HOST:PORT, or - to read it")
		}
		return nil
	})
}

func (a *app) initCmd() *cobra.Command {
	cmd := a.runCmd(&cobra.Command{
		Use: "init", Args: cobra.NoArgs,
		Short:   "Found a cluster with this machine, and print how others join",
		Long:    `Run a node like "baton server", and print the lines with which other machines join once it answers.`,
		Example: `  sudo baton init --advertise 10.0.0.1`,
	}, func(cmd *cobra.Command, _ []string, o *ServerOptions) error {
		o.Ready = func(socket string) { a.printJoin(cmd.Context(), socket) }
		return nil
	})
	return cmd
}

// printJoin prints how other machines join, on a manager that answers at the socket.
func (a *app) printJoin(ctx context.Context, socket string) {
	if socket == "" {
		return // a worker has no API
	}
	c, err := client.New(client.Config{Address: "unix://" + socket})
	if err != nil {
		a.printError(err)
		return
	}
	defer c.Close()
	list, err := c.Tokens(ctx)
	if err != nil {
		a.printError(err)
		return
	}
	for _, t := range list {
		fmt.Fprintf(a.out, "to add a %s, run there:\n\n    baton join %s\n\n", t.Role, t.Line)
	}
}

func (a *app) tokenCmd() *cobra.Command {
	cmd := &cobra.Command{Use: "token", Short: "Manage join tokens"}
	ls := &cobra.Command{
		Use: "ls [worker|manager]", Args: cobra.MaximumNArgs(1), Short: "Print the lines with which machines join",
		Example: "  baton token ls worker -q | ssh n2 sudo baton join -",
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.dial()
			if err != nil {
				return err
			}
			all, err := c.Tokens(cmd.Context())
			if err != nil {
				return err
			}
			if len(args) == 1 {
				kept := all[:0]
				for _, t := range all {
					if t.Role == args[0] {
						kept = append(kept, t)
					}
				}
				if all = kept; len(all) == 0 {
					return api.Errorf(api.CodeNotFound, "no join token for a %q", args[0]).WithMend("use worker or manager")
				}
			}
			return a.listTokens(all)
		},
	}
	rotate := &cobra.Command{
		Use: "rotate worker|manager", Args: cobra.ExactArgs(1), Short: "Replace the join tokens of a role; earlier ones are not valid any more",
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.makeToken(cmd.Context(), api.TokenRequest{Role: args[0], Rotate: true})
		},
	}
	var ttl time.Duration
	create := &cobra.Command{
		Use: "create worker|manager", Args: cobra.ExactArgs(1), Short: "Make a further join token, which may expire",
		Example: "  baton token create worker --ttl 1h",
		RunE: func(cmd *cobra.Command, args []string) error {
			req := api.TokenRequest{Role: args[0]}
			if ttl > 0 {
				req.TTL = ttl.String()
			}
			return a.makeToken(cmd.Context(), req)
		},
	}
	create.Flags().DurationVar(&ttl, "ttl", 24*time.Hour, "how long it is good; 0: for ever")
	cmd.AddCommand(ls, rotate, create)
	return cmd
}

func (a *app) listTokens(all []api.JoinToken) error {
	t := &table{head: []string{"ROLE", "EXPIRES", "JOIN WITH", "ID"}, wide: 1}
	for _, k := range all {
		expires := "never"
		if !k.Expires.IsZero() {
			expires = k.Expires.UTC().Format(time.RFC3339)
		}
		t.add(k.Role, expires, "baton join "+k.Line, k.ID.Short())
	}
	return list(a, all, t, func(k api.JoinToken) string { return k.Line })
}

func (a *app) makeToken(ctx context.Context, req api.TokenRequest) error {
	c, err := a.dial()
	if err != nil {
		return err
	}
	k, err := c.MakeToken(ctx, req)
	if err != nil {
		return err
	}
	return a.listTokens([]api.JoinToken{k})
}

// roleCmds are the verbs that change what a node is in its cluster.
func (a *app) roleCmds() []*cobra.Command {
	role := func(use, short string, manager bool) *cobra.Command {
		return &cobra.Command{
			Use: use + " NAME", Args: cobra.ExactArgs(1), Short: short,
			RunE: func(cmd *cobra.Command, args []string) error {
				c, err := a.dial()
				if err != nil {
					return err
				}
				if _, err := c.PatchNode(cmd.Context(), args[0], api.NodePatch{Manager: &manager}); err != nil {
					return err
				}
				return a.awaitRole(cmd.Context(), c, args[0], manager)
			},
		}
	}
	var force bool
	rm := &cobra.Command{
		Use: "rm NAME", Args: cobra.ExactArgs(1), Short: "Take a node out of the cluster",
		Long: "Take a node out of the cluster. Its certificate is refused from then on. Drain it and stop its server first; --force takes\n" +
			"out one that is connected or has tasks, which then count as lost.",
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.dial()
			if err != nil {
				return err
			}
			if err := c.RemoveNode(cmd.Context(), args[0], force); err != nil {
				return err
			}
			fmt.Fprintf(a.out, "node %s: removed\n", args[0])
			return nil
		},
	}
	rm.Flags().BoolVarP(&force, "force", "f", false, "also when it is connected or has tasks")
	return []*cobra.Command{
		role("promote", "Make a node a manager, and wait until it votes", true),
		role("demote", "Make a manager a worker, and wait until it has no vote", false), rm,
	}
}

// awaitRole waits until a manager votes, or one that was does not any more.
func (a *app) awaitRole(ctx context.Context, c *client.Client, name string, manager bool) error {
	ctx, cancel := a.limited(ctx, waitDefault)
	defer cancel()
	for {
		cl, err := c.Cluster(ctx)
		if err != nil && ctx.Err() == nil {
			return err
		}
		votes := false
		for _, m := range cl.Managers {
			votes = votes || m.Name == name && m.Voter
		}
		if err == nil && votes == manager {
			what := "worker"
			if manager {
				what = "manager"
			}
			fmt.Fprintf(a.out, "node %s: %s\n", name, what)
			return nil
		}
		select {
		case <-ctx.Done():
			if !errors.Is(ctx.Err(), context.DeadlineExceeded) {
				return &exitError{code: api.ExitInterrupted}
			}
			return &exitError{api.ExitTimeout, api.Errorf(api.CodeTimeout, "node %s has not changed its role after %s", name, a.timeout).
				WithMend("the change goes on; see `baton cluster status`")}
		case <-time.After(drainLook):
		}
	}
}

func (a *app) clusterCmd() *cobra.Command {
	cmd := &cobra.Command{Use: "cluster", Short: "Manage the cluster as a whole"}
	status := &cobra.Command{
		Use: "status", Args: cobra.NoArgs, Short: "Show the managers, who leads, and the authority",
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.dial()
			if err != nil {
				return err
			}
			cl, err := c.Cluster(cmd.Context())
			if err != nil {
				return err
			}
			return a.printCluster(cl)
		},
	}
	ca := &cobra.Command{Use: "ca", Short: "Manage the certificate authority"}
	rotate := &cobra.Command{
		Use: "rotate", Args: cobra.NoArgs, Short: "Replace the certificate authority, without downtime",
		Long: "Replace the certificate authority: all nodes learn to trust the new one, then get certificates of it, then the old one is\n" +
			"forgotten. A node that is down holds this up until it is back or removed. Join tokens change with the authority.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.dial()
			if err != nil {
				return err
			}
			if _, err := c.RotateAuthority(cmd.Context()); err != nil {
				return err
			}
			return a.awaitRotated(cmd.Context(), c)
		},
	}
	ca.AddCommand(rotate)
	mesh := &cobra.Command{Use: "mesh", Short: "Manage the mesh between nodes"}
	mesh.AddCommand(&cobra.Command{
		Use: "rotate", Args: cobra.NoArgs, Short: "Change the mesh keys of all nodes; open connections go on",
		RunE: func(cmd *cobra.Command, _ []string) error { return a.rotateMesh(cmd.Context()) },
	})
	for _, c := range []*cobra.Command{status, ca, mesh, a.doctorCmd(), a.backupCmd(), a.restoreCmd(), a.recoverCmd(), a.lockCmd(), a.unlockCmd()} {
		if c != nil {
			cmd.AddCommand(c)
		}
	}
	return cmd
}

// rotateMesh asks for new mesh keys and waits until every connected node has one.
func (a *app) rotateMesh(ctx context.Context) error {
	c, err := a.dial()
	if err != nil {
		return err
	}
	before, err := c.Nodes(ctx)
	if err != nil {
		return err
	}
	if err := c.RotateMesh(ctx); err != nil {
		return err
	}
	old := make(map[string]string)
	for _, n := range before {
		if n.State == cluster.NodeReady {
			old[n.Name] = n.Description.MeshKey
		}
	}
	ctx, cancel := a.limited(ctx, waitDefault)
	defer cancel()
	for {
		now, err := c.Nodes(ctx)
		if err != nil && ctx.Err() == nil {
			return err
		}
		var left []string
		for _, n := range now {
			if key, ok := old[n.Name]; ok && key == n.Description.MeshKey {
				left = append(left, n.Name)
			}
		}
		if err == nil && len(left) == 0 {
			fmt.Fprintf(a.out, "mesh: %d nodes have new keys\n", len(old))
			return nil
		}
		select {
		case <-ctx.Done():
			if !errors.Is(ctx.Err(), context.DeadlineExceeded) {
				return &exitError{code: api.ExitInterrupted}
			}
			return &exitError{api.ExitTimeout, api.Errorf(api.CodeTimeout, "no new mesh keys after %s: %s", a.timeout, strings.Join(left, ", ")).
				WithMend("they follow once they are connected; see `baton node ls`")}
		case <-time.After(drainLook):
		}
	}
}

func (a *app) printCluster(cl api.Cluster) error {
	if a.structured() {
		return a.document(cl)
	}
	fmt.Fprintf(a.out, "cluster:   %s\nmesh:      %s\nauthority: %s\n", cl.Name, cl.Mesh, cl.Authority)
	fmt.Fprintf(a.out, "level:     %d\n", cl.Level)
	if len(cl.Behind) > 0 {
		fmt.Fprintf(a.out, "           %s: older than this manager, which knows a higher feature level\n", strings.Join(cl.Behind, ", "))
	}
	if cl.Locked {
		fmt.Fprintln(a.out, "locked:    managers need the unlock key when they start")
	}
	if cl.Rotating != "" {
		fmt.Fprintf(a.out, "rotation:  %s\n", cl.Rotating)
	}
	fmt.Fprintln(a.out)
	t := &table{head: []string{"MANAGER", "STATE", "VOTE", "LEADER", "ADDRESS"}}
	for _, m := range cl.Managers {
		t.add(m.Name, string(m.State), yes(m.Voter), yes(m.Leader), m.Address)
	}
	return list(a, cl.Managers, t, func(m api.Manager) string { return m.Name })
}

func yes(b bool) string {
	if b {
		return "yes"
	}
	return ""
}

// awaitRotated waits until the new authority is the only one.
func (a *app) awaitRotated(ctx context.Context, c *client.Client) error {
	ctx, cancel := a.limited(ctx, waitDefault)
	defer cancel()
	said := ""
	for {
		cl, err := c.Cluster(ctx)
		if err != nil && ctx.Err() == nil {
			return err
		}
		if err == nil && cl.Rotating == "" {
			fmt.Fprintf(a.out, "authority: %s\n", cl.Authority)
			return nil
		}
		if err == nil && cl.Rotating != said {
			said = cl.Rotating
			fmt.Fprintf(a.out, "rotation: %s\n", said)
		}
		select {
		case <-ctx.Done():
			if !errors.Is(ctx.Err(), context.DeadlineExceeded) {
				return &exitError{code: api.ExitInterrupted}
			}
			return &exitError{api.ExitTimeout, api.Errorf(api.CodeTimeout, "the authority is not replaced after %s: %s", a.timeout, said).
				WithMend("it goes on by itself; see `baton cluster status`")}
		case <-time.After(drainLook):
		}
	}
}
