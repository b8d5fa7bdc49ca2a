package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"baton/client"
	"baton/client/api"
	"baton/internal/model/compose"
)

// ServerOptions are what `baton server` was given.
type ServerOptions struct {
	DataDir  string // default /var/lib/baton
	Name     string // default: the host's
	LogLevel slog.Level
	// Join is TOKEN@HOST:PORT of the cluster to join; empty: found one, or go on.
	Join string
	// Listen and Advertise are where the node's port listens and how others reach it.
	Listen, Advertise string
	Mesh              string // of a new cluster
	Witness           bool   // joins as a manager that only votes
	// Ready is called once the server answers, with the path of its socket.
	Ready func(socket string)
}

// ResetOptions are what `baton reset` was given.
type ResetOptions struct {
	DataDir string
	Keep    bool // keep the data directory
}

// Hooks are what the command line cannot do through the API. Nil hooks leave out their verbs.
type Hooks struct {
	Version string
	// Server runs a whole node until ctx ends.
	Server func(context.Context, ServerOptions) error
	// Reset ends everything that a node left running and deletes its data.
	Reset func(context.Context, ResetOptions) error
	// Restore makes an empty data directory the only manager of the cluster in a backup.
	Restore func(context.Context, RestoreOptions) (Recovered, error)
	// Recover lets a stopped manager go on alone.
	Recover func(context.Context, RecoverOptions) (Recovered, error)
}

// Main runs one command and returns its exit code. Ending ctx interrupts the command.
func Main(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer, h Hooks) int {
	return newApp(stdin, stdout, stderr, h).run(ctx, args)
}

// app is one invocation.
type app struct {
	in       io.Reader
	out, err io.Writer
	hooks    Hooks
	now      func() time.Time

	// Global flags.
	host    string
	context string
	stack   string
	output  string
	quiet   bool
	watch   bool
	yes     bool
	timeout time.Duration

	api *client.Client

	// place finds the line of the Compose file that a server's error is about; nil when none was loaded.
	place func(path string) (file string, line int)
}

func newApp(stdin io.Reader, stdout, stderr io.Writer, h Hooks) *app {
	return &app{in: stdin, out: stdout, err: stderr, hooks: h, now: time.Now}
}

// exitError ends a command with a code; a nil err prints nothing more.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit code %d", e.code)
	}
	return e.err.Error()
}

func (e *exitError) Unwrap() error { return e.err }

// usageError is a mistake in the arguments.
func usageError(format string, args ...any) error {
	return api.Errorf(api.CodeInvalid, format, args...).WithMend("see `baton help`")
}

func (a *app) run(ctx context.Context, args []string) int {
	root := a.root()
	root.SetArgs(args)
	cmd, err := root.ExecuteContextC(ctx)
	if a.api != nil {
		a.api.Close()
	}
	if err == nil {
		return api.ExitDone
	}
	return a.report(ctx, cmd, err)
}

// report prints an error and finds its exit code.
func (a *app) report(ctx context.Context, cmd *cobra.Command, err error) int {
	var exit *exitError
	if errors.As(err, &exit) {
		if exit.err != nil {
			a.printError(exit.err)
		}
		return exit.code
	}
	if ctx.Err() != nil {
		fmt.Fprintln(a.err, "interrupted")
		return api.ExitInterrupted
	}
	if errors.Is(err, context.DeadlineExceeded) {
		a.printError(api.Errorf(api.CodeTimeout, "it took longer than %s", a.timeout).WithMend("what was begun goes on; see `baton status`"))
		return api.ExitTimeout
	}
	a.printError(err)
	var known *api.Error
	if errors.As(err, &known) {
		return known.Code.Exit()
	}
	var bad *compose.Error
	if !errors.As(err, &bad) && cmd != nil && strings.HasPrefix(err.Error(), "unknown") {
		fmt.Fprintf(a.err, "  see `%s --help`\n", cmd.CommandPath())
	}
	return api.ExitError
}

// printError says what is wrong, where, and what to do.
func (a *app) printError(err error) {
	var bad *compose.Error
	if errors.As(err, &bad) {
		for _, d := range bad.Diagnostics {
			mend := d.Mend
			d.Mend = ""
			fmt.Fprintf(a.err, "error: %s\n", d)
			a.printMend(mend)
		}
		return
	}
	var known *api.Error
	if !errors.As(err, &known) {
		fmt.Fprintf(a.err, "error: %s\n", clean(err.Error()))
		return
	}
	a.printFault(api.Fault{Where: known.Where, Message: known.Message, Mend: known.Mend})
	for _, f := range known.More {
		a.printFault(f)
	}
}

func (a *app) printFault(f api.Fault) {
	where := ""
	if f.Where != "" {
		where = f.Where + ": "
	}
	if a.place != nil {
		if file, line := a.place(f.Where); line > 0 {
			where = fmt.Sprintf("%s:%d: %s", file, line, where)
		}
	}
	fmt.Fprintf(a.err, "error: %s\n", clean(where+f.Message))
	a.printMend(f.Mend)
}

func (a *app) printMend(mend string) {
	if mend != "" {
		fmt.Fprintf(a.err, "  %s\n", mend)
	}
}

func (a *app) warn(format string, args ...any) {
	fmt.Fprintf(a.err, "warning: "+format+"\n", args...)
}

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "baton",
		Short: "Run multi-container applications on any set of Linux machines",
		Long: `Baton turns Linux machines into one system for running multi-container applications.
Give it the Compose file you already own:

  sudo baton server           start a node, which is a cluster by itself
  baton up                    deploy ./compose.yaml and wait until it is healthy
  baton ps                    what runs where
  baton why web               why a service is as it is`,
		SilenceUsage: true, SilenceErrors: true,
		Version:                    a.hooks.Version,
		SuggestionsMinimumDistance: 2,
	}
	root.CompletionOptions.HiddenDefaultCmd = false
	root.SetIn(a.in)
	root.SetOut(a.out)
	root.SetErr(a.err)
	f := root.PersistentFlags()
	f.StringVar(&a.host, "host", "", "address of the API: unix:///path or https://host:port (BATON_HOST; default: this node's socket)")
	f.StringVar(&a.context, "context", "", "the cluster to speak to, of those that `baton context ls` shows (BATON_CONTEXT)")
	f.StringVarP(&a.stack, "stack", "s", "", "the stack (default: the one of the Compose file here, else the only one)")
	f.StringVarP(&a.output, "output", "o", "table", "output of lists: table, wide, json, yaml or name")
	f.BoolVarP(&a.quiet, "quiet", "q", false, "print names or ids only")
	f.BoolVarP(&a.yes, "yes", "y", false, "ask nothing")
	f.DurationVar(&a.timeout, "timeout", 0, "how long to wait at most, like 90s or 5m (exit code 4; what was begun goes on)")
	root.PersistentPreRunE = func(*cobra.Command, []string) error { return a.checkFlags() }
	root.AddGroup(&cobra.Group{ID: "deploy", Title: "Deploy:"}, &cobra.Group{ID: "look", Title: "Look:"},
		&cobra.Group{ID: "act", Title: "Act:"}, &cobra.Group{ID: "keep", Title: "Manage:"}, &cobra.Group{ID: "node", Title: "Nodes and clusters:"})
	a.add(root, "deploy", a.upCmd(), a.downCmd(), a.planCmd(), a.configCmd(), a.releasesCmd(), a.rollbackCmd())
	a.add(root, "look", a.lsCmd(), a.psCmd(), a.statusCmd(), a.whyCmd(), a.logsCmd(), a.eventsCmd(), a.topCmd(), a.statsCmd())
	a.add(root, "act", a.execCmd(), a.cpCmd(), a.portForwardCmd(), a.scaleCmd(), a.restartCmd())
	a.add(root, "keep", a.secretCmd(), a.cfgCmd(), a.volumeCmd(), a.imageCmd(), a.registryCmd(), a.certCmd())
	a.add(root, "node", a.serverCmd(), a.initCmd(), a.joinCmd(), a.resetCmd(), a.nodeCmd(), a.tokenCmd(), a.clusterCmd(), a.contextCmd())
	root.AddCommand(a.versionCmd())
	return root
}

func (a *app) add(root *cobra.Command, group string, cmds ...*cobra.Command) {
	for _, c := range cmds {
		if c == nil {
			continue
		}
		c.GroupID = group
		root.AddCommand(c)
	}
}

func (a *app) checkFlags() error {
	switch a.output {
	case "table", "wide", "json", "yaml", "name":
	default:
		return api.Errorf(api.CodeInvalid, "unknown output %q", a.output).WithMend("use -o table, wide, json, yaml or name")
	}
	if a.timeout < 0 {
		return api.Errorf(api.CodeInvalid, "--timeout %s is negative", a.timeout).WithMend("leave it out to wait as long as it takes")
	}
	return nil
}

// dial makes the client on first use.
func (a *app) dial() (*client.Client, error) {
	if a.api != nil {
		return a.api, nil
	}
	conf := client.Config{UserAgent: "baton/" + a.hooks.Version}
	if name := a.currentContext(); name != "" && (a.context != "" || a.host == "" && os.Getenv("BATON_HOST") == "") {
		saved, err := loadContext(name)
		if err != nil {
			return nil, err
		}
		conf.Address, conf.TLS = saved.Address, &saved.TLS
	} else {
		conf.Address = a.address()
	}
	c, err := client.New(conf)
	if err != nil {
		return nil, err
	}
	a.api = c
	return c, nil
}

// defaultDataDir is where a server keeps its state, and so its socket, unless told otherwise.
const defaultDataDir = "/var/lib/baton"

// address finds the API: --host, BATON_HOST, the socket in BATON_DATA_DIR, or this node's.
func (a *app) address() string {
	if a.host != "" {
		return a.host
	}
	if h := os.Getenv("BATON_HOST"); h != "" {
		return h
	}
	if dir := os.Getenv("BATON_DATA_DIR"); dir != "" {
		return "unix://" + strings.TrimSuffix(dir, "/") + "/baton.sock"
	}
	const run = "/run/baton/baton.sock"
	if _, err := os.Stat(run); err == nil {
		return "unix://" + run
	}
	return "unix://" + defaultDataDir + "/baton.sock"
}

// limited bounds ctx by --timeout, or by def when the flag is not given; zero is no bound.
func (a *app) limited(ctx context.Context, def time.Duration) (context.Context, context.CancelFunc) {
	if a.timeout == 0 {
		a.timeout = def
	}
	if a.timeout == 0 {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, a.timeout)
}

// terminal returns the file behind v when it is a terminal.
func terminal(v any) (*os.File, bool) {
	f, ok := v.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) {
		return nil, false
	}
	return f, true
}

// interactive reports whether there is somebody to ask.
func (a *app) interactive() bool {
	_, in := terminal(a.in)
	_, out := terminal(a.out)
	return in && out
}

// colour reports whether standard output may be coloured (https://no-color.org).
func (a *app) colour() bool {
	_, ok := terminal(a.out)
	return ok && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
}

// confirm asks a question; anything but yes is an error that ends the command.
func (a *app) confirm(ctx context.Context, question string) error {
	if a.yes {
		return nil
	}
	if !a.interactive() {
		return api.Errorf(api.CodeInvalid, "nobody is there to confirm").WithMend("add -y to do it without asking")
	}
	return a.ask(ctx, question)
}

func (a *app) ask(ctx context.Context, question string) error {
	fmt.Fprintf(a.err, "%s [y/N] ", question)
	line := make(chan string, 1)
	// A read of a terminal cannot be ended from here: after Ctrl-C the process exits with it.
	go func() {
		var answer string
		_, _ = fmt.Fscanln(a.in, &answer)
		line <- answer
	}()
	select {
	case <-ctx.Done():
		fmt.Fprintln(a.err)
		return ctx.Err()
	case answer := <-line:
		if answer = strings.ToLower(answer); answer == "y" || answer == "yes" {
			return nil
		}
	}
	return &exitError{code: api.ExitError, err: api.Errorf(api.CodeRefused, "nothing was changed")}
}
