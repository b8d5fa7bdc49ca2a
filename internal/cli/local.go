package cli

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"

	"github.com/spf13/cobra"

	"baton/client/api"
	"baton/internal/model/spec"
)

func (a *app) serverCmd() *cobra.Command {
	return a.runCmd(&cobra.Command{
		Use: "server", Args: cobra.NoArgs,
		Short: "Run a node, which is a cluster by itself",
		Long: `Run a whole node under one directory: manager and worker. On its first start it founds a cluster of one machine; others
join it with the lines that "baton token ls" prints. Later it goes on as what it is, manager or worker.
Its API is at DIR/baton.sock, for root and the group baton. The other nodes reach it on one TCP port (API, log and
sessions, all with mutual TLS) and on the UDP port of the same number (mesh).
Two nodes with different directories on one machine do not disturb each other.`,
		Example: `  sudo baton server
  sudo baton server --data-dir /srv/baton --name n1 --advertise 10.0.0.1`,
	}, func(*cobra.Command, []string, *ServerOptions) error { return nil })
}

// runCmd makes a command that runs a node; prepare looks at its arguments.
func (a *app) runCmd(cmd *cobra.Command, prepare func(*cobra.Command, []string, *ServerOptions) error) *cobra.Command {
	if a.hooks.Server == nil {
		return nil
	}
	var o ServerOptions
	var level string
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := o.LogLevel.UnmarshalText([]byte(level)); err != nil {
			return api.Errorf(api.CodeInvalid, "unknown log level %q", level).WithMend("use debug, info, warn or error")
		}
		if err := prepare(cmd, args, &o); err != nil {
			return err
		}
		ctx := cmd.Context()
		err := a.hooks.Server(ctx, o)
		if ctx.Err() != nil && (err == nil || errors.Is(err, context.Canceled)) {
			return nil // told to end, and did
		}
		return err
	}
	f := cmd.Flags()
	f.StringVar(&o.DataDir, "data-dir", dataDir(), "where everything is kept (BATON_DATA_DIR)")
	f.StringVar(&o.Name, "name", "", "name of the node (default: the host's)")
	f.StringVar(&o.Listen, "listen", "", "where the port listens, HOST:PORT or :PORT (default: the first free one from 7701 on)")
	f.StringVar(&o.Advertise, "advertise", "", "IP address by which other nodes reach this one (default: the one this machine reaches them from)")
	f.StringVar(&level, "log-level", slog.LevelInfo.String(), "debug, info, warn or error")
	if cmd.Name() == "join" {
		f.BoolVar(&o.Witness, "witness", false, "join as a manager that only votes; with a manager's token")
	} else {
		f.StringVar(&o.Mesh, "mesh", "wireguard", "how the nodes of a new cluster are connected: wireguard, vxlan or routed")
	}
	return cmd
}

func dataDir() string {
	if dir := os.Getenv("BATON_DATA_DIR"); dir != "" {
		return dir
	}
	return defaultDataDir
}

func (a *app) resetCmd() *cobra.Command {
	if a.hooks.Reset == nil {
		return nil
	}
	var o ResetOptions
	cmd := &cobra.Command{
		Use: "reset", Args: cobra.NoArgs,
		Short: "End everything that a stopped node left running, and delete its data",
		Long: `End everything that a stopped node left running: containers, containerd, links, rules, mounts. Then delete its directory,
with all volumes, unless --keep is given. It refuses while a server runs on the directory.`,
		Example: `  sudo baton reset -y
  sudo baton reset --keep --data-dir /srv/baton`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !o.Keep {
				if err := a.confirm(cmd.Context(), fmt.Sprintf("Delete %s with all volumes, secrets and history?", o.DataDir)); err != nil {
					return err
				}
			}
			return a.hooks.Reset(cmd.Context(), o)
		},
	}
	cmd.Flags().StringVar(&o.DataDir, "data-dir", dataDir(), "the node's directory (BATON_DATA_DIR)")
	cmd.Flags().BoolVar(&o.Keep, "keep", false, "keep the directory, so that the node can start again")
	return cmd
}

func (a *app) configCmd() *cobra.Command {
	var f upFlags
	cmd := &cobra.Command{
		Use: "config", Args: cobra.NoArgs,
		Short: "Print the resolved Compose file with every default",
		Long: `Print the Compose file after interpolation, merging and defaults, and check it. It needs no server.
With -o json, print what Baton makes of it: the stack as the API takes it, without the content of secrets.`,
		Example: `  baton config
  baton config -f compose.yaml -f prod.yaml -q && echo valid`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			res, err := a.load(cmd.Context(), f.files)
			if err != nil || a.quiet {
				return err
			}
			if a.output == "json" || a.output == "wide" {
				return a.document(withoutSecrets(*res.Stack))
			}
			if a.output == "name" {
				for _, s := range res.Stack.Services {
					fmt.Fprintln(a.out, s.Name)
				}
				return nil
			}
			_, err = fmt.Fprint(a.out, res.Source)
			return err
		},
	}
	fl := cmd.Flags()
	fl.StringArrayVarP(&f.file, "file", "f", nil, "Compose file, may be given several times; - is standard input")
	fl.StringArrayVar(&f.envFile, "env-file", nil, "file with variables for the Compose file (default: .env)")
	fl.StringArrayVar(&f.profiles, "profile", nil, "profile to activate, may be given several times")
	return cmd
}

func withoutSecrets(s spec.Stack) spec.Stack {
	s.Secrets = append([]spec.Secret(nil), s.Secrets...)
	for i := range s.Secrets {
		s.Secrets[i].Content = nil
	}
	return s
}

func (a *app) versionCmd() *cobra.Command {
	return &cobra.Command{
		Use: "version", Args: cobra.NoArgs, Short: "Print the versions of this program and of the server",
		RunE: func(cmd *cobra.Command, _ []string) error {
			type versions struct {
				Client string       `json:"client"`
				Server *api.Version `json:"server,omitempty"`
			}
			v := versions{Client: a.hooks.Version}
			c, err := a.dial()
			if err != nil {
				return err
			}
			server, err := c.Version(cmd.Context())
			var known *api.Error
			switch {
			case err == nil:
				v.Server = &server
			case !errors.As(err, &known) || known.Code != api.CodeUnreachable:
				return err
			}
			if a.structured() {
				return a.document(v)
			}
			fmt.Fprintf(a.out, "client: %s\n", v.Client)
			if v.Server == nil {
				fmt.Fprintf(a.out, "server: none at %s\n", a.api.Address())
				return nil
			}
			fmt.Fprintf(a.out, "server: %s (API %s, cluster %s)\n", server.Version, server.API, server.Cluster)
			return nil
		},
	}
}

// completeStacks offers the names of stacks to the shell.
func (a *app) completeStacks(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	c, err := a.dial()
	if err != nil || len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	all, _ := c.Stacks(cmd.Context())
	names := make([]string, len(all))
	for i := range all {
		names[i] = all[i].Name
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

// completeServices offers the names of services to the shell.
func (a *app) completeServices(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	c, err := a.dial()
	if err != nil || len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	hint, err := a.hint(cmd.Context())
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	all, _ := c.Services(cmd.Context(), hint)
	names := make([]string, len(all))
	for i := range all {
		names[i] = all[i].Name
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}
