package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"

	tea "charm.land/bubbletea/v2"

	"baton/client/api"
	"baton/internal/model/cluster"
)

// progress shows how far a deployment has come.
type progress interface {
	begin(res api.UpResult)
	status(st api.Status)
	// end closes the view; a message is the last line.
	end(message string, res api.UpResult, state string)
}

func (a *app) newProgress(ctx context.Context, kind string) progress {
	if kind == "json" || kind == "auto" && a.output == "json" {
		return &jsonProgress{enc: json.NewEncoder(a.out)}
	}
	if _, ok := terminal(a.out); ok && kind == "auto" && a.colour() {
		return newLive(ctx, a)
	}
	return &plainProgress{a: a, last: make(map[string]string)}
}

// jsonProgress writes one document per change, for programs.
type jsonProgress struct{ enc *json.Encoder }

func (p *jsonProgress) begin(res api.UpResult) {
	_ = p.enc.Encode(map[string]any{"type": "release", "release": res})
}

func (p *jsonProgress) status(st api.Status) {
	_ = p.enc.Encode(map[string]any{"type": "status", "status": st})
}

func (p *jsonProgress) end(message string, res api.UpResult, state string) {
	_ = p.enc.Encode(map[string]any{"type": "end", "stack": res.Name, "release": res.Release, "state": state, "message": message})
}

// plainProgress writes one line per change of a service.
type plainProgress struct {
	a    *app
	last map[string]string
}

func (p *plainProgress) begin(res api.UpResult) {
	if !res.Changed {
		fmt.Fprintf(p.a.out, "stack %s: nothing changed (release %d)\n", res.Name, res.Release)
		return
	}
	fmt.Fprintf(p.a.out, "stack %s: release %d\n", res.Name, res.Release)
	for _, d := range res.Services {
		if d.Change != api.ChangeNone {
			fmt.Fprintf(p.a.out, "service %s: %s\n", d.Service, d.Change)
		}
	}
}

func (p *plainProgress) status(st api.Status) {
	seen := make(map[string]bool)
	for _, svc := range st.Services {
		seen[svc.Name] = true
		line := serviceLine(svc)
		if untouched(svc) {
			continue
		}
		if p.last[svc.Name] != line {
			p.last[svc.Name] = line
			fmt.Fprintf(p.a.out, "service %s: %s\n", svc.Name, line)
		}
	}
	for name := range p.last {
		if !seen[name] {
			delete(p.last, name)
			fmt.Fprintf(p.a.out, "service %s: removed\n", name)
		}
	}
}

func (p *plainProgress) end(message string, _ api.UpResult, _ string) {
	if message != "" {
		fmt.Fprintln(p.a.out, message)
	}
}

// untouched services have not been looked at since they were made: their numbers mean nothing yet.
func untouched(s api.ServiceState) bool {
	return s.Status.Desired == 0 && !s.Status.Converged && !s.Removing && s.Reason == "" && len(s.Failing) == 0
}

// serviceLine says in one line how a service is.
func serviceLine(s api.ServiceState) string {
	line := fmt.Sprintf("%d/%d ready", s.Status.Ready, s.Status.Desired)
	switch {
	case s.Removing:
		return fmt.Sprintf("stopping, %d left", s.Status.Running)
	case s.Status.Converged:
		return line
	case s.Rollout == cluster.RolloutUpdating:
		line += fmt.Sprintf(", %d/%d updated", s.Status.Updated, s.Status.Desired)
	case s.Rollout == cluster.RolloutFailed, s.Rollout == cluster.RolloutPaused:
		line += ", rollout " + string(s.Rollout)
	}
	if s.Reason != "" {
		line += " (" + s.Reason + ")"
	}
	if len(s.Failing) > 0 {
		line += "; " + s.Failing[0]
	}
	return clean(line)
}

// live redraws one line per service in a terminal. It owns the goroutine of its program and waits for it in end.
type live struct {
	program *tea.Program
	done    chan struct{}
	app     *app
}

func newLive(ctx context.Context, a *app) *live {
	l := &live{app: a, done: make(chan struct{})}
	// Without an input the terminal stays as it is, so that Ctrl-C reaches the process as a signal.
	l.program = tea.NewProgram(liveModel{app: a}, tea.WithContext(context.WithoutCancel(ctx)), tea.WithInput(nil), tea.WithOutput(a.out), tea.WithoutSignalHandler())
	go func() {
		defer close(l.done)
		_, _ = l.program.Run()
	}()
	return l
}

func (l *live) begin(res api.UpResult) { l.program.Send(res) }
func (l *live) status(st api.Status)   { l.program.Send(st) }

func (l *live) end(message string, _ api.UpResult, _ string) {
	l.program.Send(liveEnd(message))
	<-l.done
}

type liveEnd string

// liveModel is what the live view shows.
type liveModel struct {
	app    *app
	head   string
	status api.Status
	tail   string
	// Of the terminal; 0 when not known yet.
	width, height int
}

func (m liveModel) Init() tea.Cmd { return nil }

func (m liveModel) Update(msg tea.Msg) (tea.Model, tea.Cmd) {
	switch msg := msg.(type) {
	case api.UpResult:
		m.head = fmt.Sprintf("stack %s: release %d", msg.Name, msg.Release)
		if !msg.Changed {
			m.head = fmt.Sprintf("stack %s: nothing changed (release %d)", msg.Name, msg.Release)
		}
	case tea.WindowSizeMsg:
		m.width, m.height = msg.Width, msg.Height
	case api.Status:
		m.status = msg
	case liveEnd:
		m.tail = string(msg)
		return m, tea.Quit
	}
	return m, nil
}

const (
	// barWidth is how many characters the bar of a service has. It is left out where it would leave less than textWidth to say
	// how the service is.
	barWidth  = 20
	textWidth = 36
	// nameWidth is how much of a name is shown in a narrow terminal.
	nameWidth = 16
)

func (m liveModel) View() tea.View {
	var b strings.Builder
	b.WriteString(m.head + "\n")
	shown, left := m.fitting()
	width := 0
	for _, s := range shown {
		width = max(width, len(s.Name))
	}
	const marks = 6 // blanks and the mark
	bar := m.width == 0 || m.width >= marks+width+barWidth+textWidth
	if !bar && m.width < marks+width+textWidth {
		width = min(width, nameWidth)
	}
	for _, s := range shown {
		b.WriteString(m.line(s, width, bar) + "\n")
	}
	if left > 0 {
		fmt.Fprintf(&b, "  %d more\n", left)
	}
	if m.tail != "" {
		b.WriteString(m.tail + "\n")
	}
	return tea.NewView(b.String())
}

// fitting are the services that the terminal has lines for, those that are not done first to stay. It also tells how many were left out.
func (m liveModel) fitting() (shown []api.ServiceState, left int) {
	const others = 4 // head, what was left out, the message at the end, and the cursor's line
	all := m.status.Services
	left = len(all) - max(m.height-others, 1)
	if m.height == 0 || left <= 0 {
		return all, 0
	}
	drop := left
	for _, s := range all {
		if drop > 0 && s.Status.Converged {
			drop--
			continue
		}
		shown = append(shown, s)
	}
	return shown[:len(shown)-drop], left
}

// line is one service. What is longer than the terminal is wide is cut off.
func (m liveModel) line(s api.ServiceState, width int, bar bool) string {
	mark, colour := "…", yellow
	switch {
	case s.Status.Converged:
		mark, colour = "✓", green
	case s.Rollout == cluster.RolloutFailed || len(s.Failing) > 0:
		mark, colour = "✗", red
	}
	name := s.Name
	if len(name) > width {
		name = name[:width-1] + "…"
	}
	line := fmt.Sprintf("  %s %-*s ", m.app.paint(mark, colour), width, name)
	if bar {
		part := 0
		if s.Status.Desired > 0 {
			part = min(barWidth, barWidth*s.Status.Ready/s.Status.Desired)
		} else if s.Status.Converged {
			part = barWidth
		}
		line += m.app.paint(strings.Repeat("━", part), colour) + m.app.paint(strings.Repeat("─", barWidth-part), dim) + " "
	}
	if untouched(s) {
		return line + "waiting"
	}
	return line + serviceLine(s)
}
