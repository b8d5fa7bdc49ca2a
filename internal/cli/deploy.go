package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"baton/client"
	"baton/client/api"
	"baton/internal/model/cluster"
)

// waitDefault is how long restart, scale and down wait without --timeout. Deployments need no such limit: theirs end by the
// deadlines of their rollouts.
const waitDefault = 10 * time.Minute

func (a *app) downCmd() *cobra.Command {
	var volumes, detach bool
	cmd := &cobra.Command{
		Use: "down [STACK]", Args: cobra.MaximumNArgs(1),
		Short: "Remove a stack and wait until it is gone; its volumes stay",
		Example: `  baton down
  baton down shop --volumes -y      also delete what its volumes hold`,
		ValidArgsFunction: a.completeStacks,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.down(cmd.Context(), optional(args), volumes, detach)
		},
	}
	cmd.Flags().BoolVar(&volumes, "volumes", false, "delete the stack's volumes and what is in them, too")
	cmd.Flags().BoolVarP(&detach, "detach", "d", false, "do not wait")
	return cmd
}

func (a *app) down(ctx context.Context, stack string, volumes, detach bool) error {
	c, err := a.dial()
	if err != nil {
		return err
	}
	if stack == "" {
		if stack, err = a.one(ctx); err != nil {
			return err
		}
	}
	if volumes && !a.yes && a.interactive() {
		if err := a.confirm(ctx, fmt.Sprintf("Delete stack %s and everything in its volumes?", stack)); err != nil {
			return err
		}
	}
	ctx, cancel := a.limited(ctx, waitDefault)
	defer cancel()
	res, err := c.Down(ctx, stack, volumes)
	if err != nil {
		return err
	}
	if len(res.Kept) > 0 {
		fmt.Fprintf(a.err, "volumes are kept: %s\n", strings.Join(res.Kept, ", "))
	}
	if detach {
		fmt.Fprintf(a.out, "stack %s is being removed\n", stack)
		return nil
	}
	p := &plainProgress{a: a, last: make(map[string]string)}
	for st, err := range c.WatchStack(ctx, stack) {
		var known *api.Error
		switch {
		case errors.As(err, &known) && known.Code == api.CodeNotFound:
			// It was gone before the watch began.
		case err != nil:
			return a.waitError(err, stack)
		case !st.Gone:
			if !a.quiet {
				p.status(st)
			}
			continue
		}
		return a.waitVolumes(ctx, c, stack, res.Volumes)
	}
	if ctx.Err() != nil {
		return a.waitError(ctx.Err(), stack)
	}
	return api.Errorf(api.CodeUnreachable, "the server ended the connection").WithMend("the removal goes on; see `baton ls --stacks`")
}

// volumePoll is how often down looks whether the volumes are gone: seldom enough to cost nothing, often enough for a person.
const volumePoll = 200 * time.Millisecond

// waitVolumes waits until the volumes that were to go are gone.
func (a *app) waitVolumes(ctx context.Context, c *client.Client, stack string, names []string) error {
	for len(names) > 0 {
		have, err := c.Volumes(ctx, "")
		if err != nil {
			return a.waitError(err, stack)
		}
		left := make(map[string]bool)
		for _, v := range have {
			left[v.Name] = true
		}
		var still []string
		for _, n := range names {
			if left[n] {
				still = append(still, n)
			}
		}
		if names = still; len(names) == 0 {
			break
		}
		select {
		case <-ctx.Done():
			return a.waitError(ctx.Err(), stack)
		case <-time.After(volumePoll):
		}
	}
	fmt.Fprintf(a.out, "stack %s is gone\n", stack)
	return nil
}

func (a *app) scaleCmd() *cobra.Command {
	var detach bool
	cmd := &cobra.Command{
		Use: "scale SERVICE=N...", Args: cobra.MinimumNArgs(1),
		Short: "Set the number of a service's tasks and wait until they are ready",
		Long:  "Set the number of a service's tasks and wait until they are ready. With x-autoscale, a number holds until SERVICE=auto.",
		Example: `  baton scale web=5
  baton scale web=5 worker=0
  baton scale web=auto     the number follows the load again`,
		RunE: func(cmd *cobra.Command, args []string) error { return a.scale(cmd.Context(), args, detach) },
	}
	cmd.Flags().BoolVarP(&detach, "detach", "d", false, "do not wait")
	return cmd
}

func (a *app) scale(ctx context.Context, args []string, detach bool) error {
	const auto = "=auto"
	want, err := parseScale(slices.DeleteFunc(slices.Clone(args), func(s string) bool { return strings.HasSuffix(s, auto) && s != auto }))
	if err != nil {
		return err
	}
	c, err := a.dial()
	if err != nil {
		return err
	}
	hint, err := a.hint(ctx)
	if err != nil {
		return err
	}
	ctx, cancel := a.limited(ctx, waitDefault)
	defer cancel()
	var results []api.ServiceResult
	for _, arg := range args {
		name, _, _ := strings.Cut(arg, "=")
		var res api.ServiceResult
		if strings.HasSuffix(arg, auto) {
			res, err = c.ScaleAuto(ctx, hint, name)
		} else {
			res, err = c.Scale(ctx, hint, name, want[name])
		}
		if err != nil {
			return err
		}
		results = append(results, res)
	}
	return a.waitServices(ctx, c, results, detach, false)
}

func (a *app) restartCmd() *cobra.Command {
	var detach bool
	cmd := &cobra.Command{
		Use: "restart SERVICE...", Args: cobra.MinimumNArgs(1),
		Short:             "Replace all tasks of a service, as an update would, and wait",
		Example:           `  baton restart api`,
		ValidArgsFunction: a.completeServices,
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			c, err := a.dial()
			if err != nil {
				return err
			}
			hint, err := a.hint(ctx)
			if err != nil {
				return err
			}
			ctx, cancel := a.limited(ctx, waitDefault)
			defer cancel()
			var results []api.ServiceResult
			for _, name := range args {
				res, err := c.Restart(ctx, hint, name)
				if err != nil {
					return err
				}
				results = append(results, res)
			}
			return a.waitServices(ctx, c, results, detach, true)
		},
	}
	cmd.Flags().BoolVarP(&detach, "detach", "d", false, "do not wait")
	return cmd
}

// waitServices waits until each service is as wanted.
func (a *app) waitServices(ctx context.Context, c *client.Client, results []api.ServiceResult, detach, restart bool) error {
	for _, res := range results {
		if detach {
			fmt.Fprintf(a.out, "service %s/%s is changing\n", res.Stack, res.Name)
			continue
		}
		if err := a.waitService(ctx, c, res, restart); err != nil {
			return err
		}
	}
	return nil
}

func (a *app) waitService(ctx context.Context, c *client.Client, res api.ServiceResult, restart bool) error {
	last := ""
	for st, err := range c.WatchStack(ctx, res.Stack) {
		if err != nil {
			return a.waitError(err, res.Stack)
		}
		if st.Version < res.Version {
			continue
		}
		found := false
		for _, svc := range st.Services {
			if svc.Name != res.Name {
				continue
			}
			found = true
			if line := serviceLine(svc); line != last {
				last = line
				fmt.Fprintf(a.out, "service %s: %s\n", svc.Name, line)
			}
			if svc.Status.Converged {
				return nil
			}
			if restart && (svc.Rollout == cluster.RolloutFailed || svc.Rollout == cluster.RolloutPaused) {
				return api.Errorf(api.CodeUnavailable, "the restart of service %s did not work; tasks that it had not reached run on: %s", svc.Name, svc.Reason).
					WithMend("see `baton why %s`, and restart it again", svc.Name)
			}
		}
		if !found {
			return api.Errorf(api.CodeConflict, "service %s was removed meanwhile", res.Name)
		}
	}
	if ctx.Err() != nil {
		return a.waitError(ctx.Err(), res.Stack)
	}
	return api.Errorf(api.CodeUnreachable, "the server ended the connection").WithMend("see `baton status -s %s`", res.Stack)
}

func (a *app) rollbackCmd() *cobra.Command {
	var f upFlags
	cmd := &cobra.Command{
		Use: "rollback [RELEASE]", Args: cobra.MaximumNArgs(1),
		Short: "Bring back an earlier release, with its configs and secrets, and wait",
		Long:  "Bring back an earlier release, with its configs and secrets, as a new release, and wait until it is healthy.\n\nExit codes as of `up`.",
		Example: `  baton rollback           the last release that completed before this one
  baton rollback r41`,
		RunE: func(cmd *cobra.Command, args []string) error {
			to, err := releaseNumber(optional(args))
			if err != nil {
				return err
			}
			return a.rollback(cmd.Context(), to, f)
		},
	}
	cmd.Flags().BoolVarP(&f.detach, "detach", "d", false, "do not wait")
	cmd.Flags().StringVar(&f.progress, "progress", "auto", "auto, plain or json")
	cmd.Flags().StringVarP(&f.message, "message", "m", "", "why; kept with the release")
	return cmd
}

func (a *app) rollback(ctx context.Context, to int, f upFlags) error {
	c, err := a.dial()
	if err != nil {
		return err
	}
	stack, err := a.one(ctx)
	if err != nil {
		return err
	}
	started := a.now()
	res, err := c.Rollback(ctx, stack, api.RollbackRequest{To: to, Message: f.message})
	if err != nil {
		return err
	}
	p := a.newProgress(ctx, f.progress)
	p.begin(res)
	if f.detach {
		p.end(fmt.Sprintf("release %d of %s is being deployed", res.Release, res.Name), res, "deploying")
		return nil
	}
	return a.waitRelease(ctx, c, res, p, started)
}

// releaseNumber reads r41 or 41; nothing is zero.
func releaseNumber(s string) (int, error) {
	if s == "" {
		return 0, nil
	}
	n, err := strconv.Atoi(strings.TrimPrefix(s, "r"))
	if err != nil || n < 1 {
		return 0, api.Errorf(api.CodeInvalid, "%q is not a release", s).WithMend("write it like r41; see `baton releases`")
	}
	return n, nil
}

func (a *app) releasesCmd() *cobra.Command {
	return &cobra.Command{
		Use: "releases [RELEASE]", Args: cobra.MaximumNArgs(1),
		Short: "List the releases of a stack, or show one",
		Example: `  baton releases
  baton releases r41 -o yaml`,
		RunE: func(cmd *cobra.Command, args []string) error {
			number, err := releaseNumber(optional(args))
			if err != nil {
				return err
			}
			return a.releases(cmd.Context(), number)
		},
	}
}

func (a *app) releases(ctx context.Context, number int) error {
	c, err := a.dial()
	if err != nil {
		return err
	}
	stack, err := a.one(ctx)
	if err != nil {
		return err
	}
	if number > 0 {
		rel, err := c.Release(ctx, stack, number)
		if err != nil {
			return err
		}
		if a.structured() {
			return a.document(rel)
		}
		fmt.Fprintf(a.out, "release %d of %s: %s%s\n", rel.Number, rel.Stack, rel.State, because(rel.Reason))
		if rel.Traffic != nil {
			fmt.Fprintln(a.out, rel.Traffic.Text)
		}
		t := &table{head: []string{"SERVICE", "IMAGE", "REVISION", "REPLICAS", "CONFIGS", "SECRETS"}}
		for _, s := range rel.Services {
			t.add(s.Name, s.Image, strconv.Itoa(s.Revision), strconv.Itoa(s.Replicas), numbered(s.Configs), numbered(s.Secrets))
		}
		return list(a, rel.Services, t, func(s api.ReleaseService) string { return s.Name })
	}
	all, err := c.Releases(ctx, stack)
	if err != nil {
		return err
	}
	t := &table{head: []string{"RELEASE", "STATE", "CREATED", "REQUESTS", "FAILED", "MESSAGE"}}
	for _, r := range all {
		state := string(r.State)
		if r.Wanted {
			state += " *"
		}
		msg, requests, failed := r.Message, "", ""
		if n := r.Traffic; n != nil {
			requests, failed = strconv.FormatUint(n.Requests, 10), strconv.FormatUint(n.Failed, 10)
		}
		switch {
		case r.Restores > 0:
			msg = strings.TrimSpace(fmt.Sprintf("back to r%d %s", r.Restores, msg))
		case r.Reason != "":
			msg = strings.TrimSpace(msg + " " + r.Reason)
		}
		t.add("r"+strconv.Itoa(r.Number), state, a.ago(r.Created), requests, failed, msg)
	}
	return list(a, all, t, func(r api.Release) string { return "r" + strconv.Itoa(r.Number) })
}

func numbered(m map[string]int) string {
	var out []string
	for _, k := range sortedKeys(m) {
		out = append(out, fmt.Sprintf("%s@%d", k, m[k]))
	}
	return strings.Join(out, ", ")
}
