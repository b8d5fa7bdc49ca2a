package cli

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"baton/client/api"
)

// passwordMax bounds what is read as a password; tokens of clouds are several KiB.
const passwordMax = 64 << 10

func (a *app) registryCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use: "registry", Short: "Manage the credentials for image registries",
		Long: "Manage the credentials for image registries.\n\nThey are kept encrypted by the managers, for all stacks, and given to a node together with what it has to pull.",
	}
	var user string
	var stdin, unchecked bool
	login := &cobra.Command{
		Use: "login HOST -u USER --password-stdin", Args: cobra.ExactArgs(1), Short: "Check and store a user name and password",
		Example: "  printf %s \"$TOKEN\" | baton registry login ghcr.io -u me --password-stdin\n  printf %s \"$TOKEN\" | baton registry login docker.io -u me --password-stdin",
		RunE: func(cmd *cobra.Command, args []string) error {
			if user == "" || !stdin {
				return api.Errorf(api.CodeInvalid, "a login needs a user name, and its password on standard input").
					WithMend("printf %%s \"$PASSWORD\" | baton registry login %s -u USER --password-stdin", args[0])
			}
			return a.registryLogin(cmd.Context(), args[0], user, unchecked)
		},
	}
	login.Flags().StringVarP(&user, "username", "u", "", "user name")
	login.Flags().BoolVar(&stdin, "password-stdin", false, "read the password from standard input: arguments can be seen by everyone on the machine")
	login.Flags().BoolVar(&unchecked, "no-check", false, "store them without asking the registry, when managers cannot reach it")
	ls := &cobra.Command{
		Use: "ls", Args: cobra.NoArgs, Short: "List registries with stored credentials",
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.dial()
			if err != nil {
				return err
			}
			all, err := c.Registries(cmd.Context())
			if err != nil {
				return err
			}
			t := &table{head: []string{"REGISTRY", "USER", "UPDATED"}}
			for _, r := range all {
				t.add(r.Host, r.Username, a.ago(r.Updated))
			}
			return list(a, all, t, func(r api.Registry) string { return r.Host })
		},
	}
	logout := &cobra.Command{
		Use: "logout HOST", Args: cobra.ExactArgs(1), Short: "Forget the credentials for a registry",
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.dial()
			if err != nil {
				return err
			}
			if err := c.RemoveRegistry(cmd.Context(), args[0]); err != nil {
				return err
			}
			fmt.Fprintf(a.out, "credentials for %s were removed\n", args[0])
			return nil
		},
	}
	cmd.AddCommand(login, ls, logout)
	return cmd
}

func (a *app) registryLogin(ctx context.Context, host, user string, unchecked bool) error {
	c, err := a.dial()
	if err != nil {
		return err
	}
	content, err := a.readSource("-", passwordMax)
	if err != nil {
		return err
	}
	// As docker does: `echo` and files end with a line end that is not part of the password.
	password := strings.TrimSuffix(strings.TrimSuffix(string(content), "\n"), "\r")
	r, err := c.SetRegistry(ctx, host, api.RegistryRequest{Username: user, Password: password, Unchecked: unchecked})
	if err != nil {
		return err
	}
	if unchecked {
		fmt.Fprintf(a.out, "credentials of %s for %s are stored; the registry was not asked\n", r.Username, r.Host)
		return nil
	}
	fmt.Fprintf(a.out, "login of %s at %s succeeded\n", r.Username, r.Host)
	return nil
}
