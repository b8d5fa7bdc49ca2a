package cli

import (
	"context"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"baton/client"
	"baton/client/api"
)

func (a *app) certCmd() *cobra.Command {
	cmd := &cobra.Command{Use: "cert", Short: "Look at and renew the certificates of ingress rules"}
	ls := &cobra.Command{
		Use: "ls", Args: cobra.NoArgs, Short: "List the certificates",
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.dial()
			if err != nil {
				return err
			}
			all, err := c.Certificates(cmd.Context())
			if err != nil {
				return err
			}
			t := &table{head: []string{"HOST", "SOURCE", "STATE", "UNTIL", "ISSUER", "ERROR"}}
			for _, r := range all {
				until := "-"
				if !r.NotAfter.IsZero() {
					until = r.NotAfter.UTC().Format("2006-01-02 15:04Z")
				}
				t.add(r.Host, r.Source, r.State, until, r.Issuer, r.Error)
			}
			return list(a, all, t, func(r api.HostCertificate) string { return r.Host })
		},
	}
	ca := &cobra.Command{
		Use: "ca", Args: cobra.NoArgs, Short: "Print the certificate of the cluster's own authority for services (PEM)",
		Example: "  baton cert ca > ca.pem && curl --cacert ca.pem https://shop.internal",
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.dial()
			if err != nil {
				return err
			}
			ca, err := c.ServiceAuthority(cmd.Context())
			if err != nil {
				return err
			}
			fmt.Fprint(a.out, ca.Certificate)
			return nil
		},
	}
	cmd.AddCommand(ls, ca,
		a.certAsk("renew HOST", "Make or obtain another certificate at once", "asked for another certificate for %s; `baton cert ls` shows what comes of it\n", (*client.Client).RenewCertificate),
		a.certAsk("revoke HOST", "Revoke a certificate of an ACME authority, and obtain another one", "asked for the revocation of the certificate of %s; `baton events` shows what comes of it\n", (*client.Client).RevokeCertificate),
		a.certACMECmd())
	return cmd
}

// certAsk makes a command that asks something for a host.
func (a *app) certAsk(use, short, said string, ask func(*client.Client, context.Context, string) error) *cobra.Command {
	return &cobra.Command{
		Use: use, Args: cobra.ExactArgs(1), Short: short,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.dial()
			if err != nil {
				return err
			}
			if err := ask(c, cmd.Context(), args[0]); err != nil {
				return err
			}
			fmt.Fprintf(a.out, said, args[0])
			return nil
		},
	}
}

func (a *app) certACMECmd() *cobra.Command {
	var want api.ACME
	var roots string
	cmd := &cobra.Command{
		Use: "acme", Args: cobra.NoArgs, Short: "Show or choose the authority that certificates of tls: auto come from",
		Long: "Show or choose the authority that certificates of tls: auto come from.\n\nWithout flags it shows what is chosen. The default is Let's Encrypt; " +
			"with a rule that has tls: auto you agree to the authority's terms of service.",
		Example: "  baton cert acme --email ops@example.com\n  baton cert acme --directory https://ca.internal/acme/directory --ca root.pem",
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.dial()
			if err != nil {
				return err
			}
			have, err := c.ACME(cmd.Context())
			if err != nil {
				return err
			}
			flags := cmd.Flags()
			if flags.Changed("directory") {
				have.Directory = want.Directory
			}
			if flags.Changed("email") {
				have.Email = want.Email
			}
			if flags.Changed("ca") {
				have.Roots = ""
				if roots != "" {
					pem, err := os.ReadFile(roots)
					if err != nil {
						return err
					}
					have.Roots = string(pem)
				}
			}
			if flags.Changed("directory") || flags.Changed("email") || flags.Changed("ca") {
				if have, err = c.SetACME(cmd.Context(), have); err != nil {
					return err
				}
			}
			fmt.Fprintf(a.out, "directory %s\nemail     %s\n", have.Directory, have.Email)
			return nil
		},
	}
	cmd.Flags().StringVar(&want.Directory, "directory", "", "address of the authority's directory (https://…)")
	cmd.Flags().StringVar(&want.Email, "email", "", "where the authority writes to")
	cmd.Flags().StringVar(&roots, "ca", "", "file with the authorities to trust when the directory is asked (PEM), in place of the system's")
	return cmd
}
