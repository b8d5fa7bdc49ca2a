package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"reflect"
	"strconv"
	"strings"
	"time"

	"baton/internal/model/cluster"
	"baton/internal/model/spec"
)

// verdict counts the answers of one probe. Thresholds are of consecutive answers, and failures within the start period
// (before the first pass) do not count, as docker's health check does.
type verdict struct {
	probe    *spec.Probe
	since    time.Time // process start
	passes   int
	failures int
	passed   bool // ever reached Successes
	ok       bool // last threshold reached was a pass
}

// observe takes one answer and returns whether the probe's word changed.
func (v *verdict) observe(pass bool, now time.Time) bool {
	before, beforePassed := v.ok, v.passed
	if pass {
		v.passes, v.failures = v.passes+1, 0
		if v.passes >= max(v.probe.Successes, 1) {
			v.ok, v.passed = true, true
		}
		return v.ok != before || v.passed != beforePassed
	}
	v.passes = 0
	if !v.passed && now.Sub(v.since) < v.probe.StartPeriod {
		return false
	}
	v.failures++
	if v.failed() {
		v.ok = false
	}
	return v.ok != before
}

// failed reports whether the failure threshold is reached.
func (v *verdict) failed() bool { return v.failures >= max(v.probe.Failures, 1) }

// interval is the time to the next question.
func (v *verdict) interval() time.Duration {
	if !v.passed {
		if v.probe.StartInterval > 0 {
			return max(v.probe.StartInterval, intervalMin)
		}
		return max(min(v.probe.Interval, time.Second), intervalMin)
	}
	return max(v.probe.Interval, intervalMin)
}

// intervalMin keeps a probe from becoming a load.
const intervalMin = 100 * time.Millisecond

// outputMax bounds what is kept of a failed probe's answer.
const outputMax = 200

// probing is one task's probes at work.
type probing struct {
	agent  *Agent
	task   cluster.ID
	host   string
	probes spec.Probes
	since  time.Time
	// adopted is true when the task was ready before this agent started: its word holds until the probe says otherwise.
	adopted bool
}

// run asks until ctx ends. Start holds the others back; Ready and Live that are the same question are asked once.
func (p *probing) run(ctx context.Context) {
	if p.probes.Start != nil && !p.adopted {
		if !p.hold(ctx) {
			return
		}
	}
	shared := p.probes.Live != nil && reflect.DeepEqual(p.probes.Live, p.probes.Ready)
	done := make(chan struct{})
	if p.probes.Live != nil && !shared {
		go func() {
			defer close(done)
			p.loop(ctx, p.probes.Live, false, true)
		}()
	} else {
		close(done)
	}
	if p.probes.Ready != nil {
		p.loop(ctx, p.probes.Ready, true, shared)
	} else {
		p.tell(ctx, News{Passed: true, Ready: true})
	}
	<-done
}

// hold asks the start probe until it passes; its giving up ends the task.
func (p *probing) hold(ctx context.Context) bool {
	v := verdict{probe: p.probes.Start, since: p.since}
	for {
		err := p.ask(ctx, v.probe)
		if ctx.Err() != nil {
			return false
		}
		v.observe(err == nil, time.Now())
		if v.passed {
			return true
		}
		if v.failed() {
			p.tell(ctx, News{Kill: fmt.Sprintf("its start probe failed %d times in a row: %v", v.failures, err)})
			return false
		}
		if !sleep(ctx, v.interval()) {
			return false
		}
	}
}

func (p *probing) loop(ctx context.Context, probe *spec.Probe, ready, live bool) {
	v := verdict{probe: probe, since: p.since, passed: p.adopted, ok: p.adopted}
	for {
		err := p.ask(ctx, probe)
		if ctx.Err() != nil {
			return
		}
		changed := v.observe(err == nil, time.Now())
		if live && v.failed() {
			p.tell(ctx, News{Passed: v.passed, Kill: fmt.Sprintf("its liveness probe failed %d times in a row: %v", v.failures, err)})
			return
		}
		if ready && changed {
			n := News{Passed: v.passed, Ready: v.ok}
			if !v.ok {
				n.Note = fmt.Sprintf("its ready probe failed %d times in a row: %v; it gets no traffic", v.failures, err)
			}
			p.tell(ctx, n)
		}
		if !sleep(ctx, v.interval()) {
			return
		}
	}
}

func (p *probing) tell(ctx context.Context, n News) {
	n.Task = p.task
	tell(ctx, p.agent.probed, n)
}

// ask puts the question once; nil is a pass.
func (p *probing) ask(ctx context.Context, probe *spec.Probe) error {
	ctx, cancel := context.WithTimeout(ctx, max(probe.Timeout, intervalMin))
	defer cancel()
	switch {
	case probe.HTTP != nil:
		return askHTTP(ctx, p.host, probe.HTTP)
	case probe.TCP != nil:
		c, err := (&net.Dialer{}).DialContext(ctx, "tcp", net.JoinHostPort(p.host, strconv.Itoa(int(probe.TCP.Port))))
		if err != nil {
			return errors.New("no connection to port " + strconv.Itoa(int(probe.TCP.Port)))
		}
		return c.Close()
	}
	code, output, err := p.agent.cfg.Executor.Exec(ctx, p.task, probe.Exec)
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("no answer within %s", probe.Timeout)
	case err != nil:
		return err
	case code != 0:
		return fmt.Errorf("exit code %d%s", code, excerpt(output))
	}
	return nil
}

func askHTTP(ctx context.Context, host string, h *spec.HTTPProbe) error {
	scheme := "http"
	if h.Scheme != "" {
		scheme = h.Scheme
	}
	url := scheme + "://" + net.JoinHostPort(host, strconv.Itoa(int(h.Port))) + "/" + strings.TrimPrefix(h.Path, "/")
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return fmt.Errorf("bad probe path %q", h.Path)
	}
	req.Host = h.Host
	req.Header.Set("User-Agent", "baton-probe")
	transport := &http.Transport{DisableKeepAlives: true}
	// A redirect is an answer; following it would probe something else.
	client := &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	resp, err := client.Do(req)
	if err != nil {
		if ctx.Err() != nil {
			return errors.New("no answer in time from " + h.Path)
		}
		return fmt.Errorf("no answer from port %d", h.Port)
	}
	if err := resp.Body.Close(); err != nil {
		return fmt.Errorf("answer broken off: %w", err)
	}
	if resp.StatusCode < 200 || resp.StatusCode >= 400 {
		return fmt.Errorf("%s answered %d", h.Path, resp.StatusCode)
	}
	return nil
}

func excerpt(b []byte) string {
	s := strings.TrimSpace(string(b))
	if s == "" {
		return ""
	}
	if len(s) > outputMax {
		s = s[:outputMax] + "…"
	}
	return ": " + s
}

// probeHost is where a task's ports are reached from the node.
func probeHost(address netip.Addr) string {
	if address.IsValid() {
		return address.String()
	}
	return "127.0.0.1"
}

// sleep waits and reports whether ctx is still alive.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
