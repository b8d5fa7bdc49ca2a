package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"baton/client"
	"baton/client/api"
	"baton/internal/model/cluster"
)

// upFlags are the flags of up and plan.
type upFlags struct {
	files
	scale    []string
	detach   bool
	planFile string
	progress string
	message  string
}

func (f *upFlags) register(cmd *cobra.Command) {
	fl := cmd.Flags()
	fl.StringArrayVarP(&f.file, "file", "f", nil, "Compose file, may be given several times; - is standard input")
	fl.StringArrayVar(&f.envFile, "env-file", nil, "file with variables for the Compose file (default: .env)")
	fl.StringArrayVar(&f.profiles, "profile", nil, "profile to activate, may be given several times")
	fl.StringArrayVar(&f.scale, "scale", nil, "number of tasks of a service, like web=5, instead of the file's")
}

func (a *app) upCmd() *cobra.Command {
	var f upFlags
	cmd := &cobra.Command{
		Use: "up", Aliases: []string{"deploy"}, Args: cobra.NoArgs,
		Short: "Deploy the stack of a Compose file and wait until it is healthy",
		Long: `Deploy the stack of a Compose file and wait until it is healthy.

In a terminal the plan is shown and confirmed first. Services that are no longer in the file are removed; volumes never are.
A release that fails is rolled back as a whole, with its configs and secrets.

Exit codes: 0 done and healthy, 1 error, 3 rolled back, 4 timed out (the deployment goes on), 5 refused,
130 interrupted (the deployment goes on).`,
		Example: `  baton up                               deploy ./compose.yaml
  baton up -f compose.yaml -f prod.yaml -y
  baton up --scale web=5
  baton up --plan p1                     apply exactly what 'baton plan --out p1' showed
  baton up --detach                      do not wait`,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.up(cmd.Context(), f) },
	}
	f.register(cmd)
	fl := cmd.Flags()
	fl.BoolVarP(&f.detach, "detach", "d", false, "return as soon as the release is stored")
	fl.StringVar(&f.planFile, "plan", "", "apply the plan in this file, or refuse because the state moved")
	fl.StringVar(&f.progress, "progress", "auto", "auto, plain or json")
	fl.StringVarP(&f.message, "message", "m", "", "why; kept with the release")
	return cmd
}

// planFile is what `plan --out` writes. It holds the contents of the stack's secrets, so that it can be applied later: its
// file is for its owner only.
type planFile struct {
	Format  int           `json:"format"`
	Plan    api.Plan      `json:"plan"`
	Request api.UpRequest `json:"request"`
}

const planFormat = 1

func (a *app) up(ctx context.Context, f upFlags) error {
	if !slices.Contains([]string{"auto", "plain", "json"}, f.progress) {
		return api.Errorf(api.CodeInvalid, "unknown progress %q", f.progress).WithMend("use auto, plain or json")
	}
	c, err := a.dial()
	if err != nil {
		return err
	}
	req, err := a.request(ctx, f)
	if err != nil {
		return err
	}
	if f.planFile == "" && !a.yes && a.interactive() {
		p, err := c.Plan(ctx, req)
		if err != nil {
			return err
		}
		if p.Changed {
			a.printPlan(p)
			if err := a.confirm(ctx, "Deploy this?"); err != nil {
				return err
			}
			req.Plan = p.Hash
		}
	}
	started := a.now()
	res, err := c.Up(ctx, req)
	if err != nil {
		return err
	}
	for _, w := range res.Warnings {
		a.warn("%s", w)
	}
	p := a.newProgress(ctx, f.progress)
	p.begin(res)
	if f.detach {
		p.end(fmt.Sprintf("release %d of %s is being deployed; see `baton status -s %s`", res.Release, res.Name, res.Name), res, "deploying")
		return nil
	}
	return a.waitRelease(ctx, c, res, p, started)
}

// request loads what is to be deployed: from a plan file, or from Compose files.
func (a *app) request(ctx context.Context, f upFlags) (api.UpRequest, error) {
	if f.planFile != "" {
		if len(f.file) > 0 || len(f.scale) > 0 {
			return api.UpRequest{}, usageError("--plan has the whole deployment in it: leave out -f and --scale")
		}
		return readPlan(f.planFile)
	}
	res, err := a.load(ctx, f.files)
	if err != nil {
		return api.UpRequest{}, err
	}
	a.place = res.Place
	replicas, err := parseScale(f.scale)
	return api.UpRequest{Stack: *res.Stack, Message: f.message, Replicas: replicas}, err
}

func readPlan(name string) (api.UpRequest, error) {
	b, err := os.ReadFile(name)
	if err != nil {
		return api.UpRequest{}, api.Errorf(api.CodeInvalid, "plan file: %s", errors.Unwrap(err)).At(name)
	}
	var p planFile
	if err := json.Unmarshal(b, &p); err != nil || p.Format != planFormat || p.Plan.Hash == "" {
		return api.UpRequest{}, api.Errorf(api.CodeInvalid, "this is not a plan of this version of baton").At(name).WithMend("make one with `baton plan --out %s`", name)
	}
	p.Request.Plan = p.Plan.Hash
	return p.Request, nil
}

func parseScale(list []string) (map[string]int, error) {
	if len(list) == 0 {
		return nil, nil
	}
	out := make(map[string]int)
	for _, s := range list {
		name, num, ok := strings.Cut(s, "=")
		n, err := strconv.Atoi(num)
		if !ok || err != nil || n < 0 || name == "" {
			return nil, api.Errorf(api.CodeInvalid, "%q does not say how many tasks of which service", s).WithMend("write it like web=5")
		}
		out[name] = n
	}
	return out, nil
}

// waitRelease follows a release until it has ended, and turns its end into an exit code.
func (a *app) waitRelease(ctx context.Context, c *client.Client, res api.UpResult, p progress, started time.Time) error {
	ctx, cancel := a.limited(ctx, 0)
	defer cancel()
	for st, err := range c.WatchStack(ctx, res.Name) {
		if err != nil {
			p.end("", res, "interrupted")
			return a.waitError(err, res.Name)
		}
		if st.Version < res.Version {
			continue
		}
		p.status(st)
		if done, err := a.releaseEnd(ctx, c, st, res, p, started); done {
			return err
		}
	}
	p.end("", res, "interrupted")
	if ctx.Err() != nil {
		return a.waitError(ctx.Err(), res.Name)
	}
	return api.Errorf(api.CodeUnreachable, "the server ended the connection").WithMend("the deployment goes on; see `baton status -s %s`", res.Name)
}

// waitError tells that waiting ended before what is waited for.
func (a *app) waitError(err error, stack string) error {
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return &exitError{api.ExitTimeout, api.Errorf(api.CodeTimeout, "stack %s is not ready after %s", stack, a.timeout).
			WithMend("the deployment goes on; see `baton status -s %s` and `baton why -s %s`", stack, stack)}
	case errors.Is(err, context.Canceled):
		fmt.Fprintf(a.err, "interrupted: the deployment goes on; see `baton status -s %s`\n", stack)
		return &exitError{code: api.ExitInterrupted}
	}
	return err
}

// releaseEnd looks whether the release that was asked for has ended.
func (a *app) releaseEnd(ctx context.Context, c *client.Client, st api.Status, res api.UpResult, p progress, started time.Time) (bool, error) {
	if st.Gone || st.Stack.Removing {
		p.end("", res, "removed")
		return true, api.Errorf(api.CodeConflict, "stack %s was removed meanwhile", res.Name)
	}
	ours, took := st.Release, a.now().Sub(started).Round(100*time.Millisecond)
	if st.Release.ID != res.ReleaseID {
		var err error
		if ours, err = c.Release(ctx, res.Name, res.Release); err != nil {
			p.end("", res, "unknown")
			return true, err
		}
	}
	switch ours.State {
	case cluster.ReleaseComplete:
		if st.Release.ID == ours.ID && !st.Healthy {
			return false, nil
		}
		message := fmt.Sprintf("release %d of %s is complete and healthy (%s)", res.Release, res.Name, took)
		if text := counted(ctx, c, res.Name, ours.Number); text != "" {
			message += "\n" + text
		}
		p.end(message, res, "complete")
		return true, nil
	case cluster.ReleaseRolledBack:
		if st.Release.State == cluster.ReleaseDeploying {
			return false, nil // the release that takes its place is still on its way
		}
		p.end(counted(ctx, c, res.Name, ours.Number), res, "rolled-back")
		e := api.Errorf(api.CodeConflict, "release %d of %s failed and was rolled back to release %d%s", res.Release, res.Name, st.Release.Restores, because(ours.Reason))
		return true, &exitError{api.ExitRolledBack, e.WithMend("see `baton events -s %s` and `baton logs -s %s`", res.Name, res.Name)}
	case cluster.ReleaseFailed:
		p.end("", res, "failed")
		return true, api.Errorf(api.CodeInternal, "release %d of %s failed%s", res.Release, res.Name, because(ours.Reason)).WithMend("see `baton why -s %s`", res.Name)
	case cluster.ReleasePaused:
		p.end("", res, "paused")
		return true, api.Errorf(api.CodeInternal, "release %d of %s is paused%s", res.Release, res.Name, because(ours.Reason)).
			WithMend("see `baton why -s %s`; deploy a corrected file, or go back with `baton rollback`", res.Name)
	case cluster.ReleaseSuperseded:
		p.end("", res, "superseded")
		return true, api.Errorf(api.CodeStateMoved, "release %d of %s was overtaken by release %d", res.Release, res.Name, st.Release.Number).WithMend("see `baton releases -s %s`", res.Name)
	}
	return false, nil
}

func because(reason string) string {
	if reason == "" {
		return ""
	}
	return ": " + reason
}

func (a *app) planCmd() *cobra.Command {
	var f upFlags
	var out string
	cmd := &cobra.Command{
		Use: "plan", Aliases: []string{"diff"}, Args: cobra.NoArgs,
		Short: "Show what up would do, with the real scheduler, and change nothing",
		Long: `Show every create, replace, move and refusal that up would cause on the state as it is now, and change nothing.

Exit codes: 0 nothing would change, 2 there are changes, 1 error, 5 refused.`,
		Example: `  baton plan
  baton plan --out p1 && baton up --plan p1
  baton plan -f compose.yaml -o json`,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.plan(cmd.Context(), f, out) },
	}
	f.register(cmd)
	cmd.Flags().StringVar(&out, "out", "", "write the plan, with the deployment and its secrets, to this file for 'up --plan'")
	return cmd
}

func (a *app) plan(ctx context.Context, f upFlags, out string) error {
	c, err := a.dial()
	if err != nil {
		return err
	}
	req, err := a.request(ctx, f)
	if err != nil {
		return err
	}
	p, err := c.Plan(ctx, req)
	if err != nil {
		return err
	}
	if out != "" {
		if err := writePlan(out, planFile{Format: planFormat, Plan: p, Request: req}); err != nil {
			return err
		}
	}
	if a.structured() {
		err = a.document(p)
	} else {
		a.printPlan(p)
	}
	if err == nil && p.Changed {
		return &exitError{code: api.ExitChanges}
	}
	return err
}

// writePlan puts a plan where only its owner can read it, whole or not at all.
func writePlan(name string, p planFile) error {
	b, err := json.MarshalIndent(p, "", "  ")
	if err != nil {
		return fmt.Errorf("write plan: %w", err)
	}
	tmp := name + ".new"
	_ = os.Remove(tmp) // it may be left of an interrupted command, with another mode
	err = os.WriteFile(tmp, b, 0o600)
	if err == nil {
		err = os.Rename(tmp, name)
	}
	if err != nil {
		return api.Errorf(api.CodeInvalid, "the plan cannot be written: %s", errors.Unwrap(err)).At(name)
	}
	return nil
}

// printPlan shows a plan for people.
func (a *app) printPlan(p api.Plan) {
	if !p.Changed {
		fmt.Fprintf(a.out, "stack %s: nothing would change\n", p.Stack)
		return
	}
	fmt.Fprintf(a.out, "stack %s:\n", p.Stack)
	for _, d := range p.Services {
		sign, colour := sign(d.Change)
		if d.Change == api.ChangeNone {
			continue
		}
		line := fmt.Sprintf("  %s %s service %s", sign, d.Change, d.Service)
		if d.From != d.To {
			line += fmt.Sprintf(" (%d → %d tasks)", d.From, d.To)
		}
		fmt.Fprintln(a.out, a.paint(line, colour))
		for _, f := range d.Fields {
			fmt.Fprintf(a.out, "      %s: %s → %s\n", f.Path, orNone(f.Old), orNone(f.New))
		}
	}
	for _, x := range p.Parts {
		sign, colour := sign(x.Change)
		fmt.Fprintln(a.out, a.paint(fmt.Sprintf("  %s %s %s %s", sign, x.Change, x.Kind, x.Name), colour))
	}
	if len(p.Actions) > 0 {
		fmt.Fprintln(a.out, "tasks:")
	}
	for _, act := range p.Actions {
		fmt.Fprintln(a.out, a.action(act))
	}
	for _, w := range p.Warnings {
		a.warn("%s", w)
	}
}

func (a *app) action(act api.Action) string {
	name := act.Service
	if act.Slot > 0 {
		name += "/" + strconv.Itoa(act.Slot)
	}
	line := fmt.Sprintf("  %-8s %s", act.Kind, name)
	if act.Node != "" {
		line += " on " + act.Node
	}
	if act.Reason != "" {
		line += ": " + clean(act.Reason)
	}
	if act.Kind == api.ActionRefused {
		return a.paint(line, red)
	}
	return line
}

func sign(c api.Change) (string, int) {
	switch c {
	case api.ChangeCreate:
		return "+", green
	case api.ChangeRemove:
		return "-", red
	}
	return "~", yellow
}

func orNone(s string) string {
	if s == "" {
		return "(none)"
	}
	return s
}
