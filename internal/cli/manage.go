package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"baton/client"
	"baton/client/api"
)

// maxContent is the size of the largest secret or config that can be set by hand.
const maxContent = 512 << 10

// line prints one document on one line.
func (a *app) line(v any) error { return json.NewEncoder(a.out).Encode(v) }

func (a *app) secretCmd() *cobra.Command {
	return a.materialCmd(client.Secrets, "secret", nil)
}

func (a *app) cfgCmd() *cobra.Command {
	var number int
	get := &cobra.Command{
		Use: "get NAME", Args: cobra.ExactArgs(1), Short: "Print the content of a config",
		Example: "  baton cfg get app_config\n  baton cfg get app_config --number 2",
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.dial()
			if err != nil {
				return err
			}
			hint, err := a.hint(cmd.Context())
			if err != nil {
				return err
			}
			doc, err := c.ConfigContent(cmd.Context(), hint, args[0], number)
			if err != nil {
				return err
			}
			if a.structured() {
				return a.document(doc)
			}
			_, err = a.out.Write(doc.Content)
			return err
		},
	}
	get.Flags().IntVar(&number, "number", 0, "version (default: the newest)")
	return a.materialCmd(client.Configs, "cfg", get)
}

func (a *app) materialCmd(kind client.Material, verb string, extra *cobra.Command) *cobra.Command {
	noun := strings.TrimSuffix(string(kind), "s")
	cmd := &cobra.Command{
		Use: verb, Short: "Manage " + string(kind) + " that stacks share",
		Long: fmt.Sprintf("Manage %s that stacks share (external: true in a Compose file). Each set makes a new version; a stack takes it with its next deployment.", kind),
	}
	set := &cobra.Command{
		Use: "set NAME FILE|-", Args: cobra.ExactArgs(2), Short: "Store a new version from a file or standard input",
		Example: fmt.Sprintf("  printf %%s \"$VALUE\" | baton %s set db_%s -\n  baton %s set db_%s ./file", verb, noun, verb, noun),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.setMaterial(cmd.Context(), kind, args[0], args[1])
		},
	}
	ls := &cobra.Command{
		Use: "ls", Args: cobra.NoArgs, Short: "List " + string(kind) + ", the newest version of each",
		RunE: func(cmd *cobra.Command, _ []string) error { return a.listMaterials(cmd.Context(), kind, "") },
	}
	rm := &cobra.Command{
		Use: "rm NAME...", Args: cobra.MinimumNArgs(1), Short: "Remove all versions",
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.dial()
			if err != nil {
				return err
			}
			for _, name := range args {
				if err := c.RemoveMaterial(cmd.Context(), kind, name); err != nil {
					return err
				}
				fmt.Fprintf(a.out, "%s %s was removed\n", noun, name)
			}
			return nil
		},
	}
	history := &cobra.Command{
		Use: "history NAME", Args: cobra.ExactArgs(1), Short: "List all versions",
		RunE: func(cmd *cobra.Command, args []string) error { return a.listMaterials(cmd.Context(), kind, args[0]) },
	}
	cmd.AddCommand(set, ls, rm, history)
	if extra != nil {
		cmd.AddCommand(extra)
	}
	return cmd
}

func (a *app) setMaterial(ctx context.Context, kind client.Material, name, source string) error {
	c, err := a.dial()
	if err != nil {
		return err
	}
	if f, ok := terminal(a.in); ok && source == "-" && f == os.Stdin {
		fmt.Fprintln(a.err, "reading from the terminal; end with Ctrl-D")
	}
	content, err := a.readSource(source, maxContent)
	if err != nil {
		return err
	}
	res, err := c.SetMaterial(ctx, kind, name, content)
	if err != nil {
		return err
	}
	noun := strings.TrimSuffix(string(kind), "s")
	if !res.Changed {
		fmt.Fprintf(a.out, "%s %s is unchanged (version %d)\n", noun, name, res.Number)
		return nil
	}
	fmt.Fprintf(a.out, "%s %s has version %d\n", noun, name, res.Number)
	if len(res.Stale) > 0 {
		fmt.Fprintf(a.err, "still with an older version until their next `baton up`: %s\n", strings.Join(res.Stale, ", "))
	}
	return nil
}

func (a *app) listMaterials(ctx context.Context, kind client.Material, name string) error {
	c, err := a.dial()
	if err != nil {
		return err
	}
	var all []api.Material
	if name == "" {
		all, err = c.Materials(ctx, kind, a.stack)
	} else {
		all, err = c.MaterialHistory(ctx, kind, a.stack, name)
	}
	if err != nil {
		return err
	}
	t := &table{head: []string{"NAME", "VERSION", "STACK", "SIZE", "CREATED", "USED BY", "ID"}, wide: 1}
	for _, m := range all {
		t.add(m.Name, strconv.Itoa(m.Number), m.Stack, size(int64(m.Size)), a.ago(m.Created), strings.Join(m.UsedBy, ", "), m.ID.Short())
	}
	return list(a, all, t, func(m api.Material) string { return m.Name })
}

func (a *app) volumeCmd() *cobra.Command {
	cmd := &cobra.Command{Use: "volume", Short: "Manage volumes"}
	ls := &cobra.Command{
		Use: "ls", Args: cobra.NoArgs, Short: "List volumes",
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.dial()
			if err != nil {
				return err
			}
			all, err := c.Volumes(cmd.Context(), a.stack)
			if err != nil {
				return err
			}
			t := &table{head: []string{"NAME", "NODE", "STACK", "CREATED", "USED BY"}}
			for _, v := range all {
				node := v.NodeName
				if v.Removing {
					node = "being removed"
				}
				t.add(v.Name, node, v.StackName, a.ago(v.Created), strings.Join(v.UsedBy, ", "))
			}
			return list(a, all, t, func(v api.Volume) string { return v.Name })
		},
	}
	rm := &cobra.Command{
		Use: "rm NAME...", Args: cobra.MinimumNArgs(1), Short: "Remove volumes and what is in them",
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.dial()
			if err != nil {
				return err
			}
			if a.interactive() {
				if err := a.confirm(cmd.Context(), "Delete "+strings.Join(args, ", ")+" and what is in there?"); err != nil {
					return err
				}
			}
			for _, name := range args {
				if err := c.RemoveVolume(cmd.Context(), name); err != nil {
					return err
				}
				fmt.Fprintf(a.out, "volume %s is being removed\n", name)
			}
			return nil
		},
	}
	cmd.AddCommand(ls, rm)
	return cmd
}

func (a *app) imageCmd() *cobra.Command {
	var node string
	cmd := &cobra.Command{Use: "image", Short: "Manage the images on nodes"}
	cmd.PersistentFlags().StringVar(&node, "node", "", "name of the node")
	ls := &cobra.Command{
		Use: "ls", Args: cobra.NoArgs, Short: "List images",
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.dial()
			if err != nil {
				return err
			}
			all, err := c.Images(cmd.Context(), node)
			if err != nil {
				return err
			}
			t := &table{head: []string{"IMAGE", "NODE", "SIZE", "CREATED", "DIGEST"}, wide: 1}
			for _, i := range all {
				t.add(i.Ref, i.Node, size(i.Size), a.ago(i.Created), i.Digest)
			}
			return list(a, all, t, func(i api.Image) string { return i.Ref })
		},
	}
	load := &cobra.Command{
		Use: "load FILE|-", Args: cobra.ExactArgs(1), Short: "Import an OCI or docker archive",
		Example: "  baton image load web.tar\n  docker save web:1 | baton image load -",
		RunE:    func(cmd *cobra.Command, args []string) error { return a.loadImage(cmd.Context(), node, args[0]) },
	}
	rm := &cobra.Command{
		Use: "rm IMAGE...", Args: cobra.MinimumNArgs(1), Short: "Remove images",
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.dial()
			if err != nil {
				return err
			}
			for _, ref := range args {
				if err := c.RemoveImage(cmd.Context(), node, ref); err != nil {
					return err
				}
				fmt.Fprintf(a.out, "image %s was removed\n", ref)
			}
			return nil
		},
	}
	cmd.AddCommand(ls, load, rm)
	return cmd
}

func (a *app) loadImage(ctx context.Context, node, name string) error {
	c, err := a.dial()
	if err != nil {
		return err
	}
	var in io.Reader = a.in
	if name != "-" {
		f, err := os.Open(name)
		if err != nil {
			return api.Errorf(api.CodeInvalid, "%s", errors.Unwrap(err)).At(name).WithMend("give an archive, or - for standard input")
		}
		defer func() { _ = f.Close() }()
		in = f
	}
	res, err := c.LoadImage(ctx, node, in)
	if err != nil {
		return err
	}
	if a.structured() {
		return a.document(res)
	}
	for _, ref := range res.Refs {
		fmt.Fprintf(a.out, "loaded %s on %s\n", ref, res.Node)
	}
	return nil
}

func (a *app) nodeCmd() *cobra.Command {
	cmd := &cobra.Command{Use: "node", Short: "Manage nodes"}
	inspect := &cobra.Command{
		Use: "inspect NAME", Args: cobra.ExactArgs(1), Short: "Show everything about a node",
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.dial()
			if err != nil {
				return err
			}
			n, err := c.Node(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			if a.output == "table" {
				a.output = "yaml"
			}
			return a.document(n)
		},
	}
	label := &cobra.Command{
		Use: "label NAME KEY=VALUE...", Args: cobra.MinimumNArgs(2), Short: "Set labels of a node; KEY= removes one",
		Example: "  baton node label n1 zone=eu",
		RunE: func(cmd *cobra.Command, args []string) error {
			labels := make(map[string]string)
			for _, kv := range args[1:] {
				k, v, ok := strings.Cut(kv, "=")
				if !ok {
					return usageError("%q is not KEY=VALUE", kv)
				}
				labels[k] = v
			}
			c, err := a.dial()
			if err != nil {
				return err
			}
			_, err = c.PatchNode(cmd.Context(), args[0], api.NodePatch{Labels: labels})
			return err
		},
	}
	cmd.AddCommand(a.nodeLsCmd(), inspect, label)
	cmd.AddCommand(append(a.availabilityCmds(), a.roleCmds()...)...)
	cmd.AddCommand(a.rebalanceCmd())
	return cmd
}
