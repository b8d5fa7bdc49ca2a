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
