package e2e

import (
	"fmt"
	"regexp"
	"strconv"
	"testing"
	"time"

	"baton/client/api"
)

// spikeFile is a service with as many tasks as its requests need: one for every 40 in a second.
const spikeFile = `name: spike
services:
  web:
    image: baton.test/web:v1
    x-ingress: {port: 8080}
    x-probes: {ready: {http: ":8080/ready", every: 100ms}}
    deploy: {replicas: 1}
    x-autoscale: {min: 1, max: 15, target: {rps: 40}, scale_down: {after: 15s, max_step: 100%}}
`

// spikeEnough is how many tasks the spike needs at least: 330 requests a second need eight, and on a machine that is busy with other tests
// the clients come to fewer.
const spikeEnough = 6

// A load that grows tenfold from one moment to the next fails no request, has the tasks that it needs after two steps at most, and when it is over
// the number goes back without turning.
func TestSpike(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	m.load("web-v1")
	m.baton("up", "-f", m.write("compose.yaml", spikeFile), "-y")
	calm := request{URL: "http://" + machineIP + "/", Workers: 3, Pause: 100 * time.Millisecond, KeepAlive: true}
	spike := calm
	spike.Workers = 33
	base := startLoad(t, m.outside, calm)
	eventually(t, time.Minute, "the load to be known", func() error {
		s := batonJSON[api.Top](m, "top")
		if len(s.Services) != 1 || s.Services[0].Rate < 20 {
			return fmt.Errorf("top: %+v", s.Services)
		}
		return nil
	})
	began := time.Now()
	more := startLoad(t, m.outside, spike)
	eventually(t, time.Minute, "the tasks that the load needs", func() error {
		if n := m.wantedNumber("web"); n < spikeEnough {
			return fmt.Errorf("%d are wanted", n)
		}
		return nil
	})
	t.Logf("the number is decided %v after the load came", time.Since(began).Round(time.Second))
	eventually(t, time.Minute, "them to be ready", func() error {
		if n := len(m.live("web")); n < spikeEnough {
			return fmt.Errorf("%d are ready", n)
		}
		return nil
	})
	t.Logf("they are ready %v after the load came", time.Since(began).Round(time.Second))
	over := more.end()
	eventually(t, 3*time.Minute, "the number to fall again", func() error {
		if n := m.wantedNumber("web"); n > 1 {
			return fmt.Errorf("%d are wanted", n)
		}
		return nil
	})
	under := base.end()
	if over.Failures+under.Failures > 0 {
		t.Errorf("%d of %d requests failed: %v", over.Failures+under.Failures, over.Requests+under.Requests, append(over.Errors, under.Errors...))
	}
	steps := m.steps("web")
	t.Logf("%d requests, the longest took %v; steps %v", over.Requests+under.Requests, max(over.Longest, under.Longest).Round(time.Millisecond), steps)
	up := 0
	for up < len(steps) && steps[up].to > steps[up].from {
		up++
	}
	if up == 0 || steps[min(up, 2)-1].to < spikeEnough {
		t.Errorf("the first two steps of %v do not reach what the load needs", steps)
	}
	for _, s := range steps[up:] {
		if s.to > s.from {
			t.Errorf("steps %v: the number turned while the load did not", steps)
		}
	}
}

// wantedNumber is how many tasks a service is to have.
func (m *machine) wantedNumber(service string) int {
	m.t.Helper()
	for _, s := range batonJSON[[]api.Service](m, "ls") {
		if s.Name == service {
			return s.Status.Desired
		}
	}
	m.t.Fatalf("no service %s", service)
	return 0
}

// step is one change of a service's number.
type step struct{ from, to int }

var scaledRE = regexp.MustCompile(`scaled from (\d+) to (\d+)`)

// steps are the changes of a service's number, the first one first.
func (m *machine) steps(service string) (out []step) {
	m.t.Helper()
	for _, e := range batonJSON[[]api.Event](m, "events", "-n", "10000") {
		if e.Type != "service.scaled" {
			continue
		}
		got := scaledRE.FindStringSubmatch(e.Message)
		if got == nil {
			m.t.Fatalf("event %+v names no numbers", e)
		}
		from, err1 := strconv.Atoi(got[1])
		to, err2 := strconv.Atoi(got[2])
		if err1 != nil || err2 != nil {
			m.t.Fatal(err1, err2)
		}
		out = append(out, step{from, to})
	}
	return out
}
