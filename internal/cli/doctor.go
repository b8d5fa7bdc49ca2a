package cli

import (
	"fmt"

	"github.com/spf13/cobra"

	"baton/client/api"
)

func (a *app) doctorCmd() *cobra.Command {
	return &cobra.Command{
		Use: "doctor", Args: cobra.NoArgs, Short: "Look for what is wrong with the cluster and its machines, and say the mend",
		Long: `Look at the quorum, and on every connected node at its clock, disk, certificate, kernel, and whether it reaches the managers'
TCP port and other nodes through the mesh. Each finding is ok, warn (it works; something may stop to) or fail. The exit code is 1
when something fails.`,
		Example: `  baton cluster doctor
  baton cluster doctor -o json | jq '.[] | select(.result != "ok")'`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.dial()
			if err != nil {
				return err
			}
			all, err := c.Doctor(cmd.Context())
			if err != nil {
				return err
			}
			if err := a.printChecks(all); err != nil {
				return err
			}
			for _, k := range all {
				if k.Result == api.CheckFail {
					return &exitError{code: api.ExitError}
				}
			}
			return nil
		},
	}
}

func (a *app) printChecks(all []api.Check) error {
	t := &table{head: []string{"RESULT", "CHECK", "NODE", "FOUND"}}
	for _, k := range all {
		t.add(string(k.Result), k.Name, k.Node, k.Message)
	}
	if err := list(a, all, t, func(k api.Check) string { return k.Name }); err != nil || a.structured() || a.quiet || a.output == "name" {
		return err
	}
	said := make(map[string]bool)
	for _, k := range all {
		if k.Mend == "" || said[k.Name+k.Mend] {
			continue
		}
		if len(said) == 0 {
			fmt.Fprintln(a.out)
		}
		said[k.Name+k.Mend] = true
		fmt.Fprintf(a.out, "%s: %s\n", k.Name, clean(k.Mend))
	}
	return nil
}
