package cli

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	tea "charm.land/bubbletea/v2"
	"github.com/spf13/cobra"

	"baton/client"
	"baton/client/api"
)

const (
	// topSpan is between the two samples that processor time is told from.
	topSpan = time.Second
	// topPause is between two views with --watch.
	topPause = 2 * time.Second
)

// usedTask is a task with what only two samples tell.
type usedTask struct {
	api.TaskStats
	Percent *float64 `json:"cpuPercent,omitempty"` // of one processor
}

func (t usedTask) name() string {
	if t.Slot == 0 {
		return t.Service + "/" + t.Node
	}
	return t.Service + "/" + strconv.Itoa(t.Slot)
}

// rate makes what is not known less than nothing.
func (t usedTask) rate() float64 {
	if t.Load == nil {
		return -1
	}
	return t.Load.Rate
}

type usedNode struct {
	api.NodeUsage
	Percent *float64 `json:"cpuPercent,omitempty"` // of all its processors
}

type usage struct {
	Nodes    []usedNode        `json:"nodes"`
	Services []api.ServiceLoad `json:"services"`
	Tasks    []usedTask        `json:"tasks"`
}

// topOrders are the orders of tasks, all but that of names largest first.
var topOrders = map[string]func(a, b usedTask) int{
	"cpu":      func(a, b usedTask) int { return cmp.Compare(percentOf(b.Percent), percentOf(a.Percent)) },
	"memory":   func(a, b usedTask) int { return cmp.Compare(b.Memory, a.Memory) },
	"net":      func(a, b usedTask) int { return cmp.Compare(b.Received+b.Sent, a.Received+a.Sent) },
	"requests": func(a, b usedTask) int { return cmp.Compare(b.rate(), a.rate()) },
	"pids":     func(a, b usedTask) int { return cmp.Compare(b.PIDs, a.PIDs) },
	"name":     func(usedTask, usedTask) int { return 0 },
}

// percentOf makes what is not known less than nothing.
func percentOf(p *float64) float64 {
	if p == nil {
		return -1
	}
	return *p
}

func (a *app) topCmd() *cobra.Command {
	var order string
	var sizes bool
	cmd := &cobra.Command{
		Use: "top [TARGET]", Args: cobra.MaximumNArgs(1),
		Short: "Show the load of nodes, services and tasks, the busiest tasks first",
		Long: "Show the load of nodes, services and tasks: processors, memory, network and processes, the busiest tasks first, and of the\n" +
			"last minute the requests through ingress rules, with the share that ended with 5xx or was broken off, and latencies.\n" +
			"CPU of a task is a share of one processor, that of a node of all it has, CPU % of a service of what its tasks reserve.\n" +
			"Network is since the task's start.\n\n" +
			"With --sizes: what the tasks of services reserve and what they used over the last days, and which reservation would be better.",
		Example: `  baton top                 all nodes and tasks
  baton top -w              again and again, until Ctrl-C
  baton top api --sort memory
  baton top --sort requests
  baton top n2              one node and its tasks
  baton top --sizes         what services reserve, what they used, and what would be better
  baton top -o json`,
		ValidArgsFunction: a.completeServices,
		RunE: func(cmd *cobra.Command, args []string) error {
			if topOrders[order] == nil {
				return usageError("--sort %q is unknown: use %s", order, strings.Join(sortedKeys(topOrders), ", "))
			}
			if sizes {
				if a.watch || cmd.Flags().Changed("sort") {
					return usageError("--sizes goes with neither --watch nor --sort")
				}
				return a.sizes(cmd.Context(), optional(args))
			}
			return a.top(cmd.Context(), optional(args), order)
		},
	}
	cmd.Flags().StringVar(&order, "sort", "cpu", "order of tasks: cpu, memory, net, pids, requests or name")
	cmd.Flags().BoolVar(&sizes, "sizes", false, "show what services reserve, what they used, and what would be better")
	cmd.Flags().BoolVarP(&a.watch, "watch", "w", false, "go on, with a new view every 2 seconds")
	return cmd
}

func (a *app) statsCmd() *cobra.Command {
	return &cobra.Command{
		Use: "stats [TARGET]", Args: cobra.MaximumNArgs(1),
		Short:             "Show what tasks use, a line for each, as `docker stats --no-stream` does",
		Example:           "  baton stats\n  baton stats api",
		ValidArgsFunction: a.completeServices,
		RunE: func(cmd *cobra.Command, args []string) error {
			m, err := a.newSampler(cmd.Context(), optional(args), "name")
			if err != nil {
				return err
			}
			u, err := m.two(cmd.Context())
			if err != nil {
				return err
			}
			return list(a, u.Tasks, tasksTable(u.Tasks), func(t usedTask) string { return t.Task.String() })
		},
	}
}

// sampler asks again and again, and tells what happened in between.
type sampler struct {
	client        *client.Client
	stack, target string
	order         string
	last          api.Top
}

func (a *app) newSampler(ctx context.Context, target, order string) (*sampler, error) {
	c, err := a.dial()
	if err != nil {
		return nil, err
	}
	stack, err := a.hint(ctx)
	return &sampler{client: c, stack: stack, target: target, order: order}, err
}

// two takes a first sample, and one soon after it.
func (m *sampler) two(ctx context.Context) (usage, error) {
	u, err := m.next(ctx)
	if err != nil || len(u.Tasks)+len(u.Nodes) == 0 {
		return u, err
	}
	select {
	case <-ctx.Done():
		return u, ctx.Err()
	case <-time.After(topSpan):
	}
	return m.next(ctx)
}

func (m *sampler) next(ctx context.Context) (usage, error) {
	top, err := m.client.Top(ctx, m.stack, m.target)
	if err != nil {
		return usage{}, err
	}
	nodes := make(map[string]api.NodeUsage)
	for _, n := range m.last.Nodes {
		nodes[n.Node] = n
	}
	tasks := make(map[string]api.TaskStats)
	for _, t := range m.last.Tasks {
		tasks[t.Task.String()] = t
	}
	m.last = top
	u := usage{Nodes: []usedNode{}, Services: append([]api.ServiceLoad{}, top.Services...), Tasks: []usedTask{}}
	for _, n := range top.Nodes {
		x := usedNode{NodeUsage: n}
		if b, ok := nodes[n.Node]; ok && b.Error == "" && n.Error == "" && n.Cores > 0 {
			x.Percent = share(n.CPU-b.CPU, n.At.Sub(b.At), float64(n.Cores)/1000)
		}
		u.Nodes = append(u.Nodes, x)
	}
	for _, t := range top.Tasks {
		x := usedTask{TaskStats: t}
		if b, ok := tasks[t.Task.String()]; ok && b.Error == "" && t.Error == "" {
			x.Percent = share(t.CPU-b.CPU, t.At.Sub(b.At), 1)
		}
		u.Tasks = append(u.Tasks, x)
	}
	slices.SortStableFunc(u.Tasks, topOrders[m.order])
	return u, nil
}

// share is a part of the time that cores had, in percent; nil when the samples tell nothing.
func share(worked, span time.Duration, cores float64) *float64 {
	if span <= 0 || worked < 0 {
		return nil
	}
	p := 100 * float64(worked) / float64(span) / cores
	return &p
}

func percent(p *float64) string {
	if p == nil {
		return "-"
	}
	return strconv.FormatFloat(*p, 'f', 1, 64)
}

func tasksTable(tasks []usedTask) *table {
	t := &table{head: []string{"TASK", "CPU %", "MEMORY / LIMIT", "MEM %", "NET RX / TX", "PIDS", "NODE", "STACK", "ID"}, wide: 2}
	loaded := slices.ContainsFunc(tasks, func(x usedTask) bool { return x.Load != nil && (x.Load.Requests > 0 || x.Load.InFlight > 0) })
	if loaded {
		t.head = slices.Insert(t.head, 6, loadHead...)
	}
	for _, x := range tasks {
		if x.Error != "" {
			row := []string{x.name(), "-", "-", "-", "-", "-", x.Node + ": " + x.Error, x.Stack, x.Task.Short()}
			if loaded {
				row = slices.Insert(row, 6, loadCells(x.Load)...)
			}
			t.add(row...)
			continue
		}
		limit, part := "none", "-"
		if x.MemoryLimit > 0 {
			limit, part = size(int64(x.MemoryLimit)), strconv.FormatFloat(100*float64(x.Memory)/float64(x.MemoryLimit), 'f', 1, 64)
		}
		row := []string{x.name(), percent(x.Percent), size(int64(x.Memory)) + " / " + limit, part, size(int64(x.Received)) + " / " + size(int64(x.Sent)),
			strconv.FormatUint(x.PIDs, 10), x.Node, x.Stack, x.Task.Short()}
		if loaded {
			row = slices.Insert(row, 6, loadCells(x.Load)...)
		}
		t.add(row...)
	}
	return t
}

// nodesTable shows of each node also what its tasks among those shown have on the network and as processes.
func nodesTable(u usage) *table {
	t := &table{head: []string{"NODE", "CPU %", "CPU", "MEMORY / SIZE", "MEM %", "NET RX / TX", "PIDS", "TASKS", "NOTE"}}
	for _, n := range u.Nodes {
		if n.Error != "" {
			t.add(n.Node, "-", "-", "-", "-", "-", "-", "-", n.Error)
			continue
		}
		var in, out, pids uint64
		tasks := 0
		for _, x := range u.Tasks {
			if x.Node == n.Node {
				in, out, pids, tasks = in+x.Received, out+x.Sent, pids+x.PIDs, tasks+1
			}
		}
		part := "-"
		if n.MemorySize > 0 {
			part = strconv.FormatFloat(100*float64(n.Memory)/float64(n.MemorySize), 'f', 1, 64)
		}
		t.add(n.Node, percent(n.Percent), cores(n.NodeUsage), size(int64(n.Memory))+" / "+size(int64(n.MemorySize)), part,
			size(int64(in))+" / "+size(int64(out)), strconv.FormatUint(pids, 10), strconv.Itoa(tasks), "")
	}
	return t
}

// cores is how many processors were in use over the last seconds, of how many.
func cores(n api.NodeUsage) string {
	return strconv.FormatFloat(float64(n.Busy)/1000, 'f', 2, 64) + "/" + millis(n.Cores)
}

func (a *app) top(ctx context.Context, target, order string) error {
	m, err := a.newSampler(ctx, target, order)
	if err != nil {
		return err
	}
	u, err := m.two(ctx)
	if err != nil || !a.watch {
		return errors.Join(err, a.showTop(u, err))
	}
	show, end := a.topView(ctx)
	defer end()
	for {
		if err := show(u); err != nil {
			return nil // the reader of the pipe is gone
		}
		select {
		case <-ctx.Done():
			return followEnd(ctx, true, ctx.Err())
		case <-time.After(topPause):
		}
		if u, err = m.next(ctx); err != nil {
			return followEnd(ctx, true, err)
		}
	}
}

// showTop prints one view, unless there is none.
func (a *app) showTop(u usage, err error) error {
	switch {
	case err != nil:
		return nil
	case a.structured() && a.watch:
		return a.line(u)
	case a.structured():
		return a.document(u)
	}
	return a.writeTop(a.out, u)
}

func (a *app) writeTop(w io.Writer, u usage) error {
	wide := a.output == "wide"
	return trimmed(w, func(w io.Writer) error {
		err := nodesTable(u).write(w, wide)
		if len(u.Services) > 0 {
			_, serr := fmt.Fprintln(w)
			err = errors.Join(err, serr, servicesTable(u.Services).write(w, wide))
		}
		_, lerr := fmt.Fprintln(w)
		return errors.Join(err, lerr, tasksTable(u.Tasks).write(w, wide))
	})
}

// topView is what shows view after view: in a terminal in place, elsewhere one after the other.
func (a *app) topView(ctx context.Context) (show func(usage) error, end func()) {
	if _, ok := terminal(a.out); !ok || !a.colour() || a.structured() {
		return func(u usage) error { return a.showTop(u, nil) }, func() {}
	}
	// Without an input the terminal stays as it is, so that Ctrl-C reaches the process as a signal.
	p := tea.NewProgram(topModel{app: a}, tea.WithContext(context.WithoutCancel(ctx)), tea.WithInput(nil), tea.WithOutput(a.out), tea.WithoutSignalHandler())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = p.Run() // it fails when the terminal is gone, and with it whoever watched
	}()
	return func(u usage) error { p.Send(u); return nil }, func() {
		p.Quit()
		<-done
	}
}

// topModel is the live view.
type topModel struct {
	app           *app
	usage         usage
	width, height int // of the terminal; 0 when not known yet
}

func (m topModel) Init() tea.Cmd { return nil }

func (m topModel) Update(msg tea.Msg) (tea.Model, tea.Cmd) {
	switch msg := msg.(type) {
	case usage:
		m.usage = msg
	case tea.WindowSizeMsg:
		m.width, m.height = msg.Width, msg.Height
	}
	return m, nil
}

// View shows as much as the terminal has room for: the busiest tasks come first.
func (m topModel) View() tea.View {
	var b bytes.Buffer
	if err := m.app.writeTop(&b, m.usage); err != nil {
		return tea.NewView(err.Error())
	}
	lines := strings.Split(strings.TrimRight(b.String(), "\n"), "\n")
	if room := m.height - 2; m.height > 0 && len(lines) > room { // what was left out, and the cursor's line
		room = max(room, 1)
		left := len(lines) - room
		lines = append(lines[:room:room], fmt.Sprintf("%d more", left))
	}
	for i, l := range lines {
		if r := []rune(l); m.width > 0 && len(r) > m.width {
			lines[i] = string(r[:m.width-1]) + "…"
		}
	}
	return tea.NewView(strings.Join(lines, "\n") + "\n")
}
