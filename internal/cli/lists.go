package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"baton/client/api"
	"baton/internal/model/cluster"
	"baton/internal/model/spec"
)

func sortedKeys[K cmp.Ordered, V any](m map[K]V) []K { return slices.Sorted(maps.Keys(m)) }

func (a *app) lsCmd() *cobra.Command {
	var stacks, all bool
	cmd := &cobra.Command{
		Use: "ls", Aliases: []string{"services"}, Args: cobra.NoArgs,
		Short: "List services, or stacks",
		Example: `  baton ls                 the services of the stack here, else of all stacks
  baton ls --stacks
  baton ls -w              and again at each change`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.repeat(cmd.Context(), func(ctx context.Context) error {
				if stacks {
					return a.listStacks(ctx)
				}
				return a.listServices(ctx, all)
			})
		},
	}
	cmd.Flags().BoolVar(&stacks, "stacks", false, "list stacks")
	cmd.Flags().BoolVarP(&all, "all", "a", false, "the services of all stacks")
	cmd.Flags().BoolVarP(&a.watch, "watch", "w", false, "print again at each change")
	return cmd
}

func (a *app) listStacks(ctx context.Context) error {
	c, err := a.dial()
	if err != nil {
		return err
	}
	all, err := c.Stacks(ctx)
	if err != nil {
		return err
	}
	t := &table{head: []string{"NAME", "SERVICES", "RELEASE", "STATE", "CREATED", "ID"}, wide: 1}
	for _, s := range all {
		state := string(s.State)
		if s.Removing {
			state = "removing"
		}
		t.add(s.Name, strconv.Itoa(s.Services), "r"+strconv.Itoa(s.Release), state, a.ago(s.Created), s.ID.Short())
	}
	return list(a, all, t, func(s api.Stack) string { return s.Name })
}

func (a *app) listServices(ctx context.Context, all bool) error {
	c, err := a.dial()
	if err != nil {
		return err
	}
	stack := ""
	if !all {
		if stack, err = a.hint(ctx); err != nil {
			return err
		}
	}
	services, err := c.Services(ctx, stack)
	if err != nil {
		return err
	}
	several := slices.ContainsFunc(services, func(s api.Service) bool { return s.Stack != services[0].Stack })
	t := &table{head: []string{"NAME", "MODE", "REPLICAS", "IMAGE", "PORTS", "STATUS", "ADDRESS", "ID"}, wide: 2}
	name := func(s api.Service) string {
		if several {
			return s.Stack + "/" + s.Name
		}
		return s.Name
	}
	for _, s := range services {
		addr := ""
		if s.Address.IsValid() {
			addr = s.Address.String()
		}
		t.add(name(s), string(s.Mode), api.Replicas(s.Status, s.Scale), s.Image, ports(s.Ports), serviceWord(s), addr, s.ID.Short())
	}
	return list(a, services, t, name)
}

func serviceWord(s api.Service) string {
	switch {
	case s.Removing:
		return "removing"
	case s.Status.Waiting != "":
		return "waiting: " + s.Status.Waiting
	case s.Status.Converged:
		return "ok"
	case s.Rollout != nil && s.Rollout.State != cluster.RolloutCompleted:
		return string(s.Rollout.State)
	}
	return "converging"
}

func (a *app) psCmd() *cobra.Command {
	var past, everywhere bool
	cmd := &cobra.Command{
		Use: "ps [TARGET]", Args: cobra.MaximumNArgs(1),
		Short: "List tasks: of a service, slot, node or stack, or of all",
		Example: `  baton ps
  baton ps api            the tasks of service api
  baton ps api -a         with those that ended, beneath their slot
  baton ps api/2 -a       the history of one slot
  baton ps n1             what runs on node n1`,
		ValidArgsFunction: a.completeServices,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.repeat(cmd.Context(), func(ctx context.Context) error { return a.listTasks(ctx, optional(args), past, everywhere) })
		},
	}
	cmd.Flags().BoolVarP(&past, "all", "a", false, "also past tasks, with how they ended")
	cmd.Flags().BoolVar(&everywhere, "all-stacks", false, "the tasks of all stacks")
	cmd.Flags().BoolVarP(&a.watch, "watch", "w", false, "print again at each change")
	return cmd
}

func (a *app) listTasks(ctx context.Context, target string, past, everywhere bool) error {
	c, err := a.dial()
	if err != nil {
		return err
	}
	hint := ""
	if !everywhere {
		if hint, err = a.hint(ctx); err != nil {
			return err
		}
	}
	tasks, err := c.Tasks(ctx, hint, target, past)
	if err != nil {
		return err
	}
	several := slices.ContainsFunc(tasks, func(t api.Task) bool { return t.StackName != tasks[0].StackName })
	t := &table{head: []string{"ID", "NAME", "IMAGE", "NODE", "DESIRED", "STATE", "REASON", "PORTS", "ADDRESS", "REVISION"}, wide: 2}
	last := ""
	for i := range tasks {
		x := &tasks[i]
		name := x.Label()
		if several {
			name = x.StackName + "/" + name
		}
		shown := name
		if name == last {
			shown = ` \_ ` + name
		}
		last = name
		addr := ""
		if x.Address.IsValid() {
			addr = x.Address.String()
		}
		t.add(x.ID.Short(), shown, x.Image, x.NodeName, x.Desired.String(), a.taskState(x), taskReason(x), x.HostPortList, addr, strconv.Itoa(x.RevisionNo))
	}
	return list(a, tasks, t, func(t api.Task) string { return t.ID.String() })
}

// taskState tells a task's state and since when, as docker does: running 5 minutes ago.
func (a *app) taskState(t *api.Task) string {
	s := t.Observed.String()
	at := t.Created
	switch {
	case t.Observed.Terminal():
		at = t.Ended
	case t.Observed == cluster.ObservedRunning:
		at = t.Started
		if !t.Ready {
			s += ", not ready"
		}
	}
	if at.IsZero() {
		return s
	}
	return s + " " + a.ago(at)
}

// taskReason tells why a task is not, or no longer, running.
func taskReason(t *api.Task) string {
	var parts []string
	if x := t.Exit; x != nil && (x.Code != 0 || x.OOM || x.Unknown) {
		switch {
		case x.OOM:
			parts = append(parts, fmt.Sprintf("exit code %d: out of memory", x.Code))
		case x.Unknown:
			parts = append(parts, "exit code unknown")
		case x.Signal != "":
			parts = append(parts, fmt.Sprintf("exit code %d (%s)", x.Code, x.Signal))
		default:
			parts = append(parts, fmt.Sprintf("exit code %d", x.Code))
		}
	}
	if t.Reason != "" && (t.Observed != cluster.ObservedRunning || !t.Ready || t.Desired > cluster.DesiredRun) {
		parts = append(parts, t.Reason)
	}
	return strings.Join(parts, ": ")
}

func (a *app) statusCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use: "status [STACK]", Args: cobra.MaximumNArgs(1),
		Short: "Show how a stack is: its release and each service",
		Long:  "Show how a stack is: its release and each service.\n\nExit codes: 0 healthy, 1 not healthy.",
		Example: `  baton status
  baton status shop -w`,
		ValidArgsFunction: a.completeStacks,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.status(cmd.Context(), optional(args))
		},
	}
	cmd.Flags().BoolVarP(&a.watch, "watch", "w", false, "print again at each change")
	return cmd
}

func (a *app) status(ctx context.Context, stack string) error {
	c, err := a.dial()
	if err != nil {
		return err
	}
	if stack == "" {
		if stack, err = a.one(ctx); err != nil {
			return err
		}
	}
	if a.watch {
		for st, err := range c.WatchStack(ctx, stack) {
			if err != nil {
				return err
			}
			if st.Gone {
				fmt.Fprintf(a.out, "stack %s is gone\n", stack)
				return nil
			}
			if err := a.printStatus(st); err != nil {
				return err
			}
		}
		return ctx.Err()
	}
	st, err := c.Status(ctx, stack)
	if err != nil {
		return err
	}
	if err := a.printStatus(st); err != nil {
		return err
	}
	if !st.Healthy {
		return &exitError{code: api.ExitError}
	}
	return nil
}

func (a *app) printStatus(st api.Status) error {
	if a.structured() {
		return a.document(st)
	}
	state := string(st.Release.State)
	if st.Stack.Removing {
		state = "removing"
	}
	health, colour := "healthy", green
	if !st.Healthy {
		health, colour = "not healthy", yellow
	}
	if a.output != "name" && !a.quiet {
		fmt.Fprintf(a.out, "stack %s: %s, release %d %s%s\n", st.Stack.Name, a.paint(health, colour), st.Release.Number, state, clean(because(st.Release.Reason)))
		if n := st.Release.Traffic; n != nil {
			fmt.Fprintln(a.out, n.Text)
		}
	}
	t := &table{head: []string{"SERVICE", "MODE", "REPLICAS", "IMAGE", "PORTS", "STATUS"}}
	for _, s := range st.Services {
		word := "ok"
		switch {
		case s.Removing:
			word = "removing"
		case !s.Status.Converged:
			word = serviceLine(s)
		}
		t.add(s.Name, string(s.Mode), api.Replicas(s.Status, s.Scale), s.Image, ports(s.Ports), word)
	}
	err := list(a, st.Services, t, func(s api.ServiceState) string { return s.Name })
	loads := serviceLoads(st)
	if err != nil || len(loads) == 0 || a.output == "name" || a.quiet {
		return err
	}
	fmt.Fprintf(a.out, "\nover the last minute:\n")
	return trimmed(a.out, func(w io.Writer) error { return servicesTable(loads).write(w, a.output == "wide") })
}

func (a *app) whyCmd() *cobra.Command {
	return &cobra.Command{
		Use: "why [TARGET]", Args: cobra.MaximumNArgs(1),
		Short: "Explain why a service, task, node or stack is as it is",
		Example: `  baton why            the stack here
  baton why cache
  baton why api/2      one slot, with the tasks before
  baton why n1`,
		ValidArgsFunction: a.completeServices,
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			c, err := a.dial()
			if err != nil {
				return err
			}
			stack, err := a.hint(ctx)
			if err == nil && len(args) == 0 {
				stack, err = a.one(ctx)
			}
			if err != nil {
				return err
			}
			w, err := c.Why(ctx, stack, optional(args))
			if err != nil {
				return err
			}
			if a.structured() {
				return a.document(w)
			}
			a.printWhy(w)
			return nil
		},
	}
}

func (a *app) printWhy(w api.Why) {
	fmt.Fprintln(a.out, clean(w.Summary))
	for i, r := range w.Reasons {
		if i == 0 && r.Text == w.Summary {
			continue
		}
		mark, colour := "-", dim
		if r.Bad {
			mark, colour = "!", red
		}
		line := strings.Repeat("  ", r.Depth) + "  " + a.paint(mark, colour) + " "
		if r.Kind == "event" {
			line += r.State + " "
			if r.Subject != "" && !strings.Contains(r.Text, r.Subject) {
				line += r.Subject + " "
			}
		}
		line += clean(r.Text)
		if !r.At.IsZero() {
			line += a.paint(" ("+a.ago(r.At)+")", dim)
		}
		fmt.Fprintln(a.out, line)
	}
}

// repeat runs f once, or with --watch again at each change of the stacks, services and tasks.
func (a *app) repeat(ctx context.Context, f func(context.Context) error) error {
	if !a.watch {
		return f(ctx)
	}
	c, err := a.dial()
	if err != nil {
		return err
	}
	var last cluster.Version
	for ch, err := range c.Watch(ctx, "stack", "service", "task") {
		var known *api.Error
		if err != nil && !errors.As(err, &known) {
			return err
		} else if err != nil {
			return known
		}
		// Many objects change at one version: print once for each.
		if ch.Version <= last {
			continue
		}
		last = ch.Version
		if a.colour() {
			fmt.Fprint(a.out, "\x1b[H\x1b[2J")
		}
		if err := f(ctx); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// millis prints processor amounts as cores.
func millis(m spec.MilliCPU) string { return strconv.FormatFloat(float64(m)/1000, 'f', -1, 64) }
