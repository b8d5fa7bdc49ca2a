package cli

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"baton/client"
	"baton/client/api"
)

type logFlags struct {
	follow, timestamps, noPrefix bool
	tail                         int
	since, until                 string
}

func (a *app) logsCmd() *cobra.Command {
	var f logFlags
	cmd := &cobra.Command{
		Use: "logs [TARGET]", Args: cobra.MaximumNArgs(1),
		Short: "Show the output of a service, slot or task; of the whole stack without a name",
		Example: `  baton logs               the whole stack
  baton logs -f api        all replicas, as it comes, also of replicas that start later
  baton logs api/2 --tail 100 --timestamps
  baton logs api --since 10m`,
		ValidArgsFunction: a.completeServices,
		RunE:              func(cmd *cobra.Command, args []string) error { return a.logs(cmd.Context(), optional(args), f) },
	}
	fl := cmd.Flags()
	fl.BoolVarP(&f.follow, "follow", "f", false, "go on with what comes")
	fl.BoolVarP(&f.timestamps, "timestamps", "t", false, "show when each line was written")
	fl.IntVarP(&f.tail, "tail", "n", -1, "only the last lines of each task; -1 is all")
	fl.StringVar(&f.since, "since", "", "only later lines: a time (RFC 3339) or how long ago, like 10m")
	fl.StringVar(&f.until, "until", "", "only earlier lines")
	fl.BoolVar(&f.noPrefix, "no-prefix", false, "do not name the task before each line")
	return cmd
}

// moment reads a time or how long ago it was.
func (a *app) moment(s, flag string) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	if d, err := time.ParseDuration(s); err == nil && d >= 0 {
		return a.now().Add(-d), nil
	}
	for _, layout := range []string{time.RFC3339Nano, "2006-01-02T15:04:05", "2006-01-02 15:04:05", "2006-01-02"} {
		if t, err := time.ParseInLocation(layout, s, time.Local); err == nil {
			return t, nil
		}
	}
	return time.Time{}, api.Errorf(api.CodeInvalid, "--%s %q is no time", flag, s).WithMend("write 10m for ten minutes ago, or 2026-01-31T14:05:00Z")
}

func (a *app) logs(ctx context.Context, target string, f logFlags) error {
	c, err := a.dial()
	if err != nil {
		return err
	}
	o := client.LogOptions{Target: target, Follow: f.follow, Tail: f.tail}
	if o.Since, err = a.moment(f.since, "since"); err != nil {
		return err
	}
	if o.Until, err = a.moment(f.until, "until"); err != nil {
		return err
	}
	if target == "" {
		o.Stack, err = a.one(ctx)
	} else {
		o.Stack, err = a.hint(ctx)
	}
	if err != nil {
		return err
	}
	out := bufio.NewWriter(a.out)
	defer func() { _ = out.Flush() }()
	for l, err := range c.Logs(ctx, o) {
		if err != nil {
			_ = out.Flush()
			return followEnd(ctx, f.follow, err)
		}
		if a.structured() {
			err = json.NewEncoder(out).Encode(l)
		} else {
			a.printLine(out, l, f)
		}
		if err != nil {
			return err
		}
		if f.follow {
			if err := out.Flush(); err != nil {
				return nil // the reader of the pipe is gone
			}
		}
	}
	return followEnd(ctx, f.follow, ctx.Err())
}

// followEnd makes Ctrl-C the ordinary end of following.
func followEnd(ctx context.Context, follow bool, err error) error {
	if follow && ctx.Err() != nil && errors.Is(err, context.Canceled) {
		return &exitError{code: api.ExitInterrupted}
	}
	return err
}

func (a *app) printLine(out *bufio.Writer, l api.LogLine, f logFlags) {
	if f.timestamps {
		fmt.Fprintf(out, "%s ", l.Time.UTC().Format("2006-01-02T15:04:05.000000000Z"))
	}
	if !f.noPrefix {
		name := l.Service
		if l.Slot > 0 {
			name += "/" + strconv.Itoa(l.Slot)
		} else {
			name += "/" + l.Node
		}
		fmt.Fprintf(out, "%s | ", a.paint(name, colourOf(l.Service)))
	}
	_, _ = out.WriteString(l.Text)
	_ = out.WriteByte('\n')
}

func (a *app) eventsCmd() *cobra.Command {
	var follow bool
	var since string
	var limit int
	cmd := &cobra.Command{
		Use: "events [TARGET]", Args: cobra.MaximumNArgs(1),
		Short: "Show what was decided and what happened, with reasons",
		Example: `  baton events
  baton events -f api
  baton events n1 --since 1h`,
		ValidArgsFunction: a.completeServices,
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			c, err := a.dial()
			if err != nil {
				return err
			}
			o := client.EventOptions{Target: optional(args), Limit: limit}
			if o.Since, err = a.moment(since, "since"); err != nil {
				return err
			}
			if o.Stack, err = a.hint(ctx); err != nil {
				return err
			}
			return a.events(ctx, c, o, follow)
		},
	}
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on with what comes")
	cmd.Flags().StringVar(&since, "since", "", "only later ones: a time (RFC 3339) or how long ago, like 10m")
	cmd.Flags().IntVarP(&limit, "tail", "n", 0, "only the newest (default 200)")
	return cmd
}

func (a *app) events(ctx context.Context, c *client.Client, o client.EventOptions, follow bool) error {
	if !follow {
		all, err := c.Events(ctx, o)
		if err != nil {
			return err
		}
		t := &table{head: []string{"TIME", "TYPE", "SUBJECT", "MESSAGE", "WHO", "ID"}, wide: 2}
		for _, e := range all {
			t.add(stamp(e.At), e.Type, e.Subject, e.Message, e.Who, e.ID.Short())
		}
		return list(a, all, t, func(e api.Event) string { return e.ID.String() })
	}
	for e, err := range c.FollowEvents(ctx, o) {
		if err != nil {
			return followEnd(ctx, true, err)
		}
		if a.structured() {
			// One document per line: a program reads it as it comes.
			if err := a.line(e); err != nil {
				return err
			}
			continue
		}
		fmt.Fprintf(a.out, "%s  %-20s %s  %s\n", stamp(e.At), e.Type, e.Subject, clean(e.Message))
	}
	return followEnd(ctx, true, ctx.Err())
}

func stamp(t time.Time) string { return t.Local().Format("2006-01-02 15:04:05.000") }

type execFlags struct {
	stdin, tty bool
	env        []string
	user, dir  string
}

func (a *app) execCmd() *cobra.Command {
	var f execFlags
	cmd := &cobra.Command{
		Use: "exec TARGET [--] COMMAND [ARG...]", Args: cobra.MinimumNArgs(2),
		Short: "Run a command in a task, on whichever node it is; exits with the command's code",
		Example: `  baton exec -it api -- sh         in any running task of api
  baton exec api/2 -- cat /etc/hosts
  baton exec -i db -- psql < dump.sql`,
		ValidArgsFunction: a.completeServices,
		RunE:              func(cmd *cobra.Command, args []string) error { return a.exec(cmd.Context(), args[0], args[1:], f) },
	}
	fl := cmd.Flags()
	fl.SetInterspersed(false) // what follows the target belongs to the command
	fl.BoolVarP(&f.stdin, "interactive", "i", false, "send standard input")
	fl.BoolVarP(&f.tty, "tty", "t", false, "give the command a terminal")
	fl.StringArrayVarP(&f.env, "env", "e", nil, "variable KEY=VALUE for the command")
	fl.StringVarP(&f.user, "user", "u", "", "user of the command")
	fl.StringVar(&f.dir, "workdir", "", "directory of the command")
	return cmd
}

func (a *app) exec(ctx context.Context, target string, argv []string, f execFlags) error {
	c, err := a.dial()
	if err != nil {
		return err
	}
	if len(argv) > 0 && argv[0] == "--" {
		argv = argv[1:]
	}
	if len(argv) == 0 {
		return usageError("no command was given")
	}
	stack, err := a.hint(ctx)
	if err != nil {
		return err
	}
	e := client.Execution{Stack: stack, Target: target, Command: argv, Env: f.env, User: f.user, Dir: f.dir, TTY: f.tty, Stdout: a.out, Stderr: a.err}
	if f.stdin {
		e.Stdin = a.in
	}
	if f.tty {
		restore, err := a.rawTerminal(ctx, &e)
		if err != nil {
			return err
		}
		defer restore()
	}
	code, err := c.Exec(ctx, e)
	if err != nil {
		return err
	}
	if code != 0 {
		return &exitError{code: code}
	}
	return nil
}

// rawTerminal hands the terminal over to the command: keys go through as they are, and the window's size is followed. The
// returned function gives it back.
func (a *app) rawTerminal(ctx context.Context, e *client.Execution) (func(), error) {
	file, ok := terminal(a.in)
	if !ok {
		return nil, api.Errorf(api.CodeInvalid, "standard input is not a terminal").WithMend("leave out -t")
	}
	fd := int(file.Fd())
	state, err := term.MakeRaw(fd)
	if err != nil {
		return nil, fmt.Errorf("terminal: %w", err)
	}
	if w, h, err := term.GetSize(fd); err == nil {
		e.Width, e.Height = uint16(w), uint16(h)
	}
	ctx, cancel := context.WithCancel(ctx)
	sizes := make(chan [2]uint16, 1)
	e.Resize = sizes
	changed := make(chan os.Signal, 1)
	signal.Notify(changed, syscall.SIGWINCH)
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-ctx.Done():
				return
			case <-changed:
			}
			w, h, err := term.GetSize(fd)
			if err != nil {
				continue
			}
			select {
			case sizes <- [2]uint16{uint16(w), uint16(h)}:
			case <-ctx.Done():
				return
			}
		}
	})
	return func() {
		signal.Stop(changed)
		cancel()
		wg.Wait()
		_ = term.Restore(fd, state)
	}, nil
}

// readSource reads a file, or standard input for "-".
func (a *app) readSource(name string, limit int64) ([]byte, error) {
	in := a.in
	if name != "-" {
		f, err := os.Open(name)
		if err != nil {
			return nil, api.Errorf(api.CodeInvalid, "%s", errors.Unwrap(err)).At(name).WithMend("give a file, or - for standard input")
		}
		defer func() { _ = f.Close() }()
		in = f
	}
	b, err := io.ReadAll(io.LimitReader(in, limit+1))
	if err != nil {
		return nil, api.Errorf(api.CodeInvalid, "it cannot be read: %s", err).At(name)
	}
	if int64(len(b)) > limit {
		return nil, api.Errorf(api.CodeTooLarge, "it is larger than %s", size(limit)).At(name)
	}
	return b, nil
}
