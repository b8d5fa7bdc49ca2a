package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"baton/client/api"
)

// countedFile is a service behind an ingress rule, each round an update of the last.
func countedFile(round int) string {
	return webFile("    x-ingress: {path: /, port: 8080}\n", probed, fmt.Sprintf("    environment: {ROUND: \"%d\"}\n", round),
		"    x-rollout: {drain: 5s}\n", deploy("replicas: 4, "+quickUpdate))
}

// The number at the end of up is what clients count: nothing in a clean update, and in one in which a task dies each request that it had.
func TestDeployIsCounted(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	m.load("web-v1")
	m.baton("up", "-f", m.write("compose.yaml", countedFile(1)), "-y")
	m.edgeServes()
	slow := request{URL: "http://" + machineIP + "/slow?ms=200", Workers: 8, KeepAlive: true, Pause: 5 * time.Millisecond, Least: 20}

	clean := startLoad(t, m.outside, slow)
	out := m.baton("up", "-f", m.write("compose.yaml", countedFile(2)), "-y")
	got := clean.end()
	rel := m.release(2)
	if got.Failures != 0 || rel.Traffic == nil || rel.Traffic.Failed != 0 || rel.Traffic.Requests == 0 || rel.Traffic.Requests > uint64(got.Requests) {
		t.Errorf("a clean update: clients have %d of %d failed, the release %+v", got.Failures, got.Requests, rel.Traffic)
	}
	m.tells(out, rel)

	// Each of these ends the process that gets it, with all it has under way.
	broken := startLoad(t, m.outside, slow)
	exits := make(chan tally, 1)
	go func() {
		exits <- startLoad(t, m.outside, request{Method: "POST", URL: "http://" + machineIP + "/exit?code=3", Workers: 1, Count: 3, Pause: 700 * time.Millisecond}).wait()
	}()
	out = m.baton("up", "-f", m.write("compose.yaml", countedFile(3)), "-y")
	died := <-exits
	got = broken.end()
	rel = m.release(3)
	failed := got.Failures + died.Failures
	if rel.Traffic == nil || rel.Traffic.Failed != uint64(failed) || failed == 0 {
		t.Errorf("clients count %d failures (%d of those that end a task), the release %+v\n%v", failed, died.Failures, rel.Traffic, got.Errors)
	}
	m.tells(out, rel)
	t.Log(rel.Traffic.Text)
	for _, where := range []string{m.baton("status"), m.baton("releases", "r3"), m.baton("events")} {
		if !strings.Contains(where, rel.Traffic.Text) {
			t.Errorf("%q is not told in\n%s", rel.Traffic.Text, where)
		}
	}
}

func (m *machine) release(number int) api.Release {
	m.t.Helper()
	return batonJSON[api.Release](m, "releases", fmt.Sprintf("r%d", number))
}

// tells checks the end of what up printed.
func (m *machine) tells(out string, rel api.Release) {
	m.t.Helper()
	if rel.Traffic == nil || rel.Traffic.Counting || !strings.HasSuffix(strings.TrimSpace(out), rel.Traffic.Text) {
		m.t.Errorf("up does not end with the count %+v:\n%s", rel.Traffic, out)
	}
}

// judgedFile is a service whose rollouts are judged by traffic.
func judgedFile(env string) string {
	return webFile("    x-ingress: {path: /, port: 8080}\n", probed, "    environment: {"+env+"}\n",
		"    x-rollout: {drain: 5s, bake: 90s, gates: {error_rate: \"< 1%\", p95: \"< 1.2x stable\"}}\n", deploy("replicas: 1, "+quickUpdate))
}

// A build that fails 2% of its requests, and one that takes three times as long, meet real requests, are found out and rolled back; a good
// one stays.
func TestRolloutIsJudgedByTraffic(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	m.load("web-v1")
	m.baton("up", "-f", m.write("compose.yaml", judgedFile("DELAY: 50ms")), "-y")
	m.edgeServes()
	// Some 200 requests per second: each client waits 50 ms for its answer, and as long as a build is fast a little more.
	l := startLoad(t, m.outside, request{URL: "http://" + machineIP + "/", Workers: 12, KeepAlive: true, Pause: 10 * time.Millisecond, Least: 200})

	for _, bad := range []struct{ env, why string }{
		{"DELAY: 50ms, ERRORS: \"2\"", "error rate"},
		{"DELAY: 150ms", "slower than"},
	} {
		began := time.Now()
		r := m.try("up", "-f", m.write("compose.yaml", judgedFile(bad.env)), "-y")
		if r.code != 3 || !strings.Contains(r.stdout+r.stderr, bad.why) {
			t.Errorf("%s: exit code %d, want 3 with %q:\n%s%s", bad.env, r.code, bad.why, r.stdout, r.stderr)
		}
		events := batonJSON[[]api.Event](m, "events", "-n", "10000")
		var failed time.Time
		for _, e := range events {
			if e.Type == "rollout.failed" && e.At.After(failed) {
				failed = e.At
			}
		}
		t.Logf("%s: found out after %v, back after %v\n%s", bad.env, failed.Sub(began).Round(100*time.Millisecond), time.Since(began).Round(100*time.Millisecond), r.stderr)
		if d := failed.Sub(began); d > time.Minute || d < 0 {
			t.Errorf("%s: found out after %v, want less than 1 min", bad.env, d)
		}
		if out := m.baton("why", "web"); !strings.Contains(out, bad.why) {
			t.Errorf("why does not tell %q:\n%s", bad.why, out)
		}
	}
	out := m.baton("up", "-f", m.write("compose.yaml", judgedFile("DELAY: 50ms, ROUND: \"2\"")), "-y")
	t.Log(out)
	if rel := m.release(batonJSON[api.Status](m, "status").Release.Number); rel.State != "complete" || rel.Restores != 0 || rel.Traffic == nil || rel.Traffic.Failed != 0 {
		t.Errorf("a good build: %+v", rel)
	}
	if out := m.baton("events"); !strings.Contains(out, "rollout.judged") {
		t.Errorf("no event tells that the gates passed:\n%s", out)
	}
	got := l.end()
	t.Logf("clients: %d requests, %d failed", got.Requests, got.Failures)
	for _, e := range got.Errors {
		if !strings.Contains(e, "status 500") {
			t.Errorf("a client saw more than the bad build's errors: %s", e)
		}
	}
}
