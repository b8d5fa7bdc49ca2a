package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"unicode/utf8"

	tea "charm.land/bubbletea/v2"

	"baton/client/api"
	"baton/internal/model/cluster"
)

func TestTableCleansCells(t *testing.T) {
	var b bytes.Buffer
	tb := &table{head: []string{"NAME", "REASON"}}
	tb.add("web/1", "exit 1: \x1b[2Jgone\x1b]0;title\x07\nweb/2  forged\u202e\u009b31m")
	if err := tb.write(&b, false); err != nil {
		t.Fatal(err)
	}
	got := b.String()
	if strings.ContainsAny(got, "\x1b\x07\u202e\u009b") || strings.Count(got, "\n") != 2 {
		t.Errorf("a reason of a container moves the cursor or makes lines: %q", got)
	}
	if !strings.Contains(got, "forged") {
		t.Errorf("text was lost: %q", got)
	}
}

func states(n, done int) []api.ServiceState {
	out := make([]api.ServiceState, n)
	for i := range out {
		out[i] = api.ServiceState{Name: fmt.Sprintf("a-service-with-quite-a-long-name-%02d", i), Rollout: cluster.RolloutUpdating}
		out[i].Status.Desired, out[i].Status.Ready = 2, 1
		if i < done {
			out[i].Status.Converged, out[i].Status.Ready = true, 2
		}
	}
	return out
}

func TestLiveViewFitsTheTerminal(t *testing.T) {
	for _, tt := range []struct{ width, height, services, done int }{
		{60, 24, 3, 1}, {80, 24, 25, 0}, {80, 24, 25, 20}, {200, 60, 25, 3}, {60, 3, 9, 9},
	} {
		m := liveModel{app: newApp(strings.NewReader(""), io.Discard, io.Discard, Hooks{}), head: "stack shop: release 1"}
		next, _ := m.Update(tea.WindowSizeMsg{Width: tt.width, Height: tt.height})
		next, _ = next.Update(api.Status{Services: states(tt.services, tt.done)})
		text := next.(liveModel).View().Content
		lines := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
		if tt.height > 4 && len(lines) > tt.height-2 {
			t.Errorf("%+v: %d lines\n%s", tt, len(lines), text)
		}
		waiting := 0
		for _, l := range lines {
			if strings.Contains(l, "1/2 ready") {
				waiting++
			}
			if at := strings.Index(l, "/2 ready"); at >= 0 && utf8.RuneCountInString(l[:at])+len("/2 ready") > tt.width {
				t.Errorf("%+v: the count is cut off: %s", tt, l)
			}
		}
		if want := min(tt.services-tt.done, max(tt.height-4, 1)); waiting != want {
			t.Errorf("%+v: %d services on their way are shown, want %d\n%s", tt, waiting, want, text)
		}
	}
}

func TestPlainProgressWaitsForNumbers(t *testing.T) {
	var out bytes.Buffer
	p := &plainProgress{a: newApp(strings.NewReader(""), &out, io.Discard, Hooks{}), last: make(map[string]string)}
	fresh := api.ServiceState{Name: "web", Rollout: cluster.RolloutUpdating}
	p.status(api.Status{Services: []api.ServiceState{fresh}})
	if out.Len() > 0 {
		t.Errorf("a service that nobody has looked at yet: %q", out.String())
	}
	fresh.Reason = "no node"
	p.status(api.Status{Services: []api.ServiceState{fresh}})
	if !strings.Contains(out.String(), "no node") {
		t.Errorf("a reason is kept back: %q", out.String())
	}
}

// A question must end with the command, not with the next line that is typed.
func TestConfirmIsInterrupted(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	a := newApp(r, io.Discard, io.Discard, Hooks{})
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := a.ask(ctx, "Sure?"); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want the interruption", err)
	}
	_ = w.Close() // ends the read
	_ = r.Close()
}

func TestErrorsNameTheLine(t *testing.T) {
	var out bytes.Buffer
	a := newApp(strings.NewReader(""), io.Discard, &out, Hooks{})
	a.place = func(path string) (string, int) {
		if path == "services.web.ports" {
			return "compose.yaml", 7
		}
		return "compose.yaml", 0
	}
	a.printError(api.Errorf(api.CodeConflict, "port 80 is taken").At("services.web.ports").WithMend("choose another"))
	a.printError(api.Errorf(api.CodeConflict, "no such thing").At("plan"))
	if want := "error: compose.yaml:7: services.web.ports: port 80 is taken\n  choose another\nerror: plan: no such thing\n"; out.String() != want {
		t.Errorf("got %q\nwant %q", out.String(), want)
	}
}
