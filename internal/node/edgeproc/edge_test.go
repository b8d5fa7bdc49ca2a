package edgeproc

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"baton/internal/wire/agentapi"
)

// A baton that ends takes no connection along, and the next one goes on with the process that it finds.
func TestOutlivesBaton(t *testing.T) {
	s := newSite(t)
	task := startTask(t, "127.0.1.1:0")
	e, stop := s.baton()
	s.apply(e, leads(task))
	s.served()
	pid := s.one()
	tunnel, end := s.tunnel(), s.load()
	stop()
	if err := e.Apply(t.Context(), leads(task)); err == nil {
		t.Error("a baton that has ended acknowledges a state")
	}
	s.echoes(tunnel)
	next, _ := s.baton()
	s.connectionsAtLeast(next, task.Addr().String(), 1)
	moved := startTask(t, fmt.Sprint("127.0.1.2:", task.Port()))
	s.apply(next, leads(moved))
	end()
	s.echoes(tunnel)
	s.connections(next, task, 1) // the WebSocket; requests went to the new task
	if now := s.one(); now != pid {
		t.Errorf("process %d serves, want the one that was there, %d", now, pid)
	}
	if len(s.restarted) > 0 {
		t.Errorf("told of restarts: %v", s.restarted)
	}
}

func (s *site) connectionsAtLeast(e *Edge, address string, n int) {
	s.t.Helper()
	s.until("requests are counted", func() bool {
		ip, _, _ := net.SplitHostPort(net.JoinHostPort(address, "0"))
		got, err := e.Connections(context.Background(), mustAddr(ip))
		return err == nil && got >= n
	})
}

// Another build takes over without a failed request; the old process finishes what it has, which still counts, and ends.
func TestAnotherBuildTakesOver(t *testing.T) {
	s := newSite(t)
	task := startTask(t, "127.0.1.1:0")
	e, stop := s.baton()
	s.apply(e, leads(task))
	s.served()
	old := s.one()
	tunnel, end := s.tunnel(), s.load()
	stop()
	s.cfg.Program = build(t, "another build")
	next, stopNext := s.baton()
	s.apply(next, leads(task))
	fresh := slices.DeleteFunc(s.pids(), func(pid int) bool { return pid == old })
	if len(fresh) != 1 {
		t.Fatalf("processes %v beside %d, want one", fresh, old)
	}
	time.Sleep(6 * time.Second) // of load, past the moment at which the old process closes idle connections
	s.echoes(tunnel)
	end()
	s.connections(next, task, 1)
	s.counted(next, 2)
	// The old process follows the table still, and another baton knows both.
	moved := startTask(t, fmt.Sprint("127.0.1.2:", task.Port()))
	stopNext()
	last, _ := s.baton()
	s.apply(last, leads(moved))
	s.connections(last, task, 1)
	if err := tunnel.CloseNow(); err != nil {
		t.Fatal(err)
	}
	s.until("the old process ends", func() bool { return slices.Equal(s.pids(), fresh) })
	s.connections(last, task, 0)
	if len(s.restarted) > 0 {
		t.Errorf("told of restarts: %v", s.restarted)
	}
}

// counted checks that so many processes tell of requests.
func (s *site) counted(e *Edge, processes int) {
	s.t.Helper()
	all, err := e.Measures(s.t.Context())
	if err != nil {
		s.t.Fatal(err)
	}
	from := make(map[int64]bool)
	for _, m := range all {
		if m.Requests() > 0 {
			from[m.Since] = true
		}
	}
	if len(from) != processes {
		s.t.Errorf("counts %+v, want those of %d processes", all, processes)
	}
}

// When the process is killed, its requests are lost, but connections wait until another one accepts them.
func TestKilledProcessIsReplaced(t *testing.T) {
	s := newSite(t)
	task := startTask(t, "127.0.1.1:0")
	e, _ := s.baton()
	s.apply(e, leads(task))
	s.served()
	for n := range 3 {
		old := s.one()
		if err := unix.Kill(old, unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		killed := time.Now()
		if err := s.post(newClient(t), "after the kill"); err != nil {
			t.Errorf("a connection in the gap: %v", err)
		}
		t.Logf("answered %s after the kill", time.Since(killed).Round(time.Millisecond))
		if now := s.one(); now == old {
			t.Error("the killed process is still there")
		}
		s.mu.Lock()
		if len(s.restarted) != n+1 || !strings.Contains(s.restarted[n], "signal: killed") {
			t.Errorf("told %q, want a restart after a kill", s.restarted)
		}
		s.mu.Unlock()
	}
	left, err := filepath.Glob(filepath.Join(s.cfg.Dir, "*.sock"))
	if err != nil || len(left) != 1 {
		t.Errorf("files of dead processes stay: %v, %v", left, err)
	}
}

// A process that does not say that it follows a state is killed: a drain relies on it.
func TestStuckProcessIsReplaced(t *testing.T) {
	s := newSite(t)
	task := startTask(t, "127.0.1.1:0")
	e, _ := s.baton(func(c *Config) { c.answer = 500 * time.Millisecond })
	s.apply(e, leads(task))
	s.served()
	old := s.one()
	if err := unix.Kill(old, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	moved := startTask(t, fmt.Sprint("127.0.1.2:", task.Port()))
	s.apply(e, leads(moved))
	if slices.Contains(s.pids(), old) {
		t.Error("a state is acknowledged while a process that does not follow it lives")
	}
	s.served()
}

// The port is open while there are rules, and only then; a process without rules gives it up.
func TestListensOnlyWithRules(t *testing.T) {
	s := newSite(t)
	task := startTask(t, "127.0.1.1:0")
	e, _ := s.baton()
	s.apply(e, agentapi.NetworkState{})
	if len(s.pids()) > 0 {
		t.Error("a process runs without rules")
	}
	for range 2 {
		s.apply(e, leads(task))
		s.served()
		pid := s.one()
		s.apply(e, agentapi.NetworkState{})
		s.until("the port closes", func() bool {
			c, err := net.DialTimeout("tcp", s.address, time.Second)
			if err == nil {
				c.Close()
			}
			return err != nil
		})
		if s.one() != pid {
			t.Error("the process ended at once: another rule would have to start one")
		}
	}
}

// A port that something else has is said once and tried again; states are acknowledged meanwhile.
func TestPortThatIsTaken(t *testing.T) {
	s := newSite(t)
	task := startTask(t, "127.0.1.1:0")
	l, err := net.Listen("tcp", s.address)
	if err != nil {
		t.Fatal(err)
	}
	e, _ := s.baton()
	for range 3 {
		s.apply(e, leads(task))
	}
	s.mu.Lock()
	if len(s.failed) != 1 {
		t.Errorf("told %v, want once", s.failed)
	}
	s.mu.Unlock()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	s.served()
}

// An executable that cannot serve is said once, with what it wrote, and holds up no state.
func TestProgramThatFails(t *testing.T) {
	s := newSite(t)
	task := startTask(t, "127.0.1.1:0")
	bad := filepath.Join(t.TempDir(), Program)
	if err := os.WriteFile(bad, []byte("#!/bin/sh\necho no such luck >&2\nexit 3\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	e, _ := s.baton(func(c *Config) { c.Program = bad })
	s.apply(e, leads(task))
	s.apply(e, leads(task))
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.failed) != 1 || !strings.Contains(s.failed[0].Error(), "no such luck") || !strings.Contains(s.failed[0].Error(), "exit status 3") {
		t.Errorf("told %v, want once, with the reason", s.failed)
	}
}

// Requests are counted only when the processes of an earlier baton are known: a drain must not overlook them.
func TestCountsWaitForAdoption(t *testing.T) {
	s := newSite(t)
	e := New(s.cfg)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if n, err := e.Connections(ctx, mustAddr("127.0.0.1")); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %d, %v before Run", n, err)
	}
}

// Lines of the process are in baton's log, those of the time without baton too.
func TestLogReachesBaton(t *testing.T) {
	s := newSite(t)
	task := startTask(t, "127.0.1.1:0")
	log := new(capture)
	s.cfg.Log = log.logger()
	e, stop := s.baton()
	s.apply(e, leads(task))
	s.served()
	stop()
	res, err := newClient(t).Get("http://" + s.address + "/without-baton?secret=1")
	if err != nil || res.StatusCode != http.StatusOK {
		t.Fatal(err)
	}
	res.Body.Close()
	_, _ = s.baton()
	s.until("the line comes", func() bool {
		text := log.text()
		return strings.Contains(text, "path=/without-baton") && strings.Contains(text, "status=200") && strings.Contains(text, "service=shop/web")
	})
	if strings.Contains(log.text(), "secret") {
		t.Error("the query was logged")
	}
}
