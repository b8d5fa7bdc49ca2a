package e2e

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"baton/client/api"
	"baton/internal/model/cluster"
)

// rollouts is how many updates TestRollingUpdatesDropNoRequest makes.
const rollouts = 50

func TestRollingUpdatesDropNoRequest(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	m.load("web-v1")
	file := func(n int) string {
		return m.write("compose.yaml", webFile(published, probed, fmt.Sprintf("    environment: {ROUND: \"%d\"}\n", n),
			"    x-rollout: {drain: 2s}\n", deploy("replicas: 3, "+quickUpdate))+`  inside:
    image: baton.test/web:v1
`)
	}
	m.baton("up", "-f", file(0), "-y")
	inside := m.live("inside")[0]
	outside := startLoad(t, m.outside, request{URL: url("/"), Workers: 4, Pause: 5 * time.Millisecond})
	name := startLoad(t, m.netns(inside.ID), request{URL: "http://web:8080/", Workers: 4, Pause: 5 * time.Millisecond, DNS: true})
	for n := 1; n <= rollouts; n++ {
		m.baton("up", "-f", file(n), "-y")
	}
	for where, l := range map[string]*load{"published port": outside, "service name": name} {
		got := l.end()
		t.Logf("%s: %d requests during %d updates, %d failed", where, got.Requests, rollouts, got.Failures)
		if got.Failures > 0 {
			t.Errorf("%s: %d of %d requests failed: %v", where, got.Failures, got.Requests, got.Errors)
		}
		if got.Requests < 1000 {
			t.Errorf("%s: only %d requests: no load", where, got.Requests)
		}
	}
	if now := m.live("inside"); len(now) != 1 || now[0].ID != inside.ID {
		t.Error("an update of web restarted another service")
	}
}

func TestFailingReleaseIsRolledBackWithItsConfig(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	m.load("web-v1")
	file := func(health, content string) string {
		return m.write("compose.yaml", webFile(published,
			"    configs: [{source: motd, target: /motd}]\n",
			"    healthcheck: {test: [CMD, /web, -health, \"http://127.0.0.1:8080"+health+"\"], interval: 1s, timeout: 5s, retries: 3, start_interval: 200ms}\n",
			deploy("replicas: 2, "+quickUpdate))+"configs: {motd: {content: \""+content+"\"}}\n")
	}
	m.baton("up", "-f", file("/healthz", "first"), "-y")
	load := startLoad(t, m.outside, request{URL: url("/"), Workers: 2, Pause: 10 * time.Millisecond})
	r := m.try("up", "-f", file("/no-such-page", "second"), "-y")
	if r.code != api.ExitRolledBack {
		t.Errorf("up of a release whose health check fails: exit %d, want %d\n%s%s", r.code, api.ExitRolledBack, r.stdout, r.stderr)
	}
	if got := load.end(); got.Failures > 0 {
		t.Errorf("%d of %d requests failed during the rollback: %v", got.Failures, got.Requests, got.Errors)
	}
	for range 4 {
		if body, err := m.ask(m.outside, url("/file?path=/motd")); err != nil || body != "first" {
			t.Errorf("after the rollback the config is %q, %v; want the old one", body, err)
		}
	}
	if out := m.baton("releases"); !strings.Contains(out, "rolled-back") {
		t.Errorf("releases does not tell of the rollback:\n%s", out)
	}
	if why := m.baton("why", "web"); !strings.Contains(why, "rolled back") && !strings.Contains(why, "roll") {
		t.Errorf("why does not tell of the rollback:\n%s", why)
	}
}

func TestManualRollbackBringsBackARelease(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	m.load("web-v1", "web-v2")
	file := func(version string) string {
		return m.write("compose.yaml", strings.ReplaceAll(webFile(published, probed, deploy(quickUpdate)), "web:v1", "web:"+version))
	}
	m.baton("up", "-f", file("v1"), "-y")
	m.baton("up", "-f", file("v2"), "-y")
	m.expect("v2")
	m.baton("rollback", "-y")
	m.expect("v1")
	m.baton("rollback", "2", "-y")
	m.expect("v2")
}

// expect asks the published port which version answers.
func (m *machine) expect(version string) {
	m.t.Helper()
	if body, err := m.ask(m.outside, url("/")); err != nil || !strings.Contains(body, version) {
		m.t.Errorf("the answer is %q, %v; want version %s", body, err, version)
	}
}

func TestUpTwiceChangesNothingAndPlanIsRight(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	m.load("web-v1", "web-v2")
	file := m.write("compose.yaml", webFile(published, probed, deploy("replicas: 3, "+quickUpdate)))
	if r := m.try("plan", "-f", file); r.code != api.ExitChanges {
		t.Errorf("plan of a new stack: exit %d, want %d: %s", r.code, api.ExitChanges, r.stderr)
	}
	m.baton("up", "-f", file, "-y")
	before := m.live("web")
	m.baton("up", "-f", file, "-y")
	if r := m.try("plan", "-f", file); r.code != 0 {
		t.Errorf("plan of what is there already: exit %d\n%s", r.code, r.stdout)
	}
	if after := m.live("web"); fmt.Sprint(ids(before)) != fmt.Sprint(ids(after)) {
		t.Errorf("the second up changed tasks from %v to %v", ids(before), ids(after))
	}
	if n := len(batonJSON[[]api.Release](m, "releases")); n != 1 {
		t.Errorf("%d releases after two equal ups, want 1", n)
	}
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	update := m.write("compose2.yaml", strings.ReplaceAll(strings.ReplaceAll(string(data), "web:v1", "web:v2"), "replicas: 3", "replicas: 2"))
	r := m.try("plan", "-f", update, "-o", "json", "--out", m.dir+"/plan")
	if r.code != api.ExitChanges {
		t.Fatalf("plan of an update: exit %d: %s", r.code, r.stderr)
	}
	m.baton("up", "--plan", m.dir+"/plan", "-y")
	m.checkPlan(r.stdout, before)
	if r := m.try("up", "--plan", m.dir+"/plan", "-y"); r.code != api.ExitRefused {
		t.Errorf("a plan whose state has moved: exit %d, want %d\n%s", r.code, api.ExitRefused, r.stderr)
	}
}

// checkPlan compares what a plan said with the tasks that there are now.
func (m *machine) checkPlan(plan string, before []api.Task) {
	m.t.Helper()
	p := decode[api.Plan](m.t, plan)
	want := make(map[string]int)
	for _, a := range p.Actions {
		want[string(a.Kind)]++
	}
	got := map[string]int{}
	now := make(map[int]cluster.ID)
	for _, t := range m.live("web") {
		now[t.Slot] = t.ID
	}
	for _, t := range before {
		switch id, ok := now[t.Slot]; {
		case !ok:
			got["stop"]++
		case id != t.ID:
			got["replace"]++
		}
		delete(now, t.Slot)
	}
	if len(now) > 0 {
		got["create"] = len(now)
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		m.t.Errorf("the plan said %v, up did %v", want, got)
	}
}

func ids(list []api.Task) []string {
	out := make([]string, len(list))
	for i, t := range list {
		out[i] = t.ID.Short()
	}
	return out
}
