package e2e

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"baton/client/api"
)

// restsSoon lets a service rest when nobody used it for 5 s.
const restsSoon = "scale_down: {after: 5s}"

// restFile is a stack with services that may rest: web behind an ingress rule, tcp behind a published port and its service address, stuck
// that never becomes ready, and a service that asks.
const restFile = `name: rest
services:
  web:
    image: baton.test/web:v1
    x-ingress: {port: 8080}
    x-probes: {ready: {http: ":8080/ready", every: 20ms}}
    x-autoscale: {min: 0, max: 3, ` + restsSoon + `}
  tcp:
    image: baton.test/web:v1
    ports: ["8080:8080"]
    x-probes: {ready: {http: ":8080/ready", every: 20ms}}
    x-autoscale: {min: 0, max: 3, ` + restsSoon + `}
  stuck:
    image: baton.test/web:v1
    x-ingress: {path: /stuck, port: 8080}
    deploy: {replicas: 0}
    x-probes: {ready: {http: ":8080/no-such-page", every: 1s}}
    x-autoscale: {min: 0, max: 1, hold: {wait: 8s, requests: 3}, ` + restsSoon + `}
  caller:
    image: baton.test/web:v1
`

// resting waits until a service has no task and wants none.
func (m *machine) resting(service string) {
	m.t.Helper()
	eventually(m.t, time.Minute, service+" rests", func() error {
		for _, s := range batonJSON[[]api.Service](m, "ls") {
			if s.Name == service && s.Status.Desired == 0 && len(m.tasks(service, false)) == 0 {
				return nil
			}
		}
		return fmt.Errorf("it does not:\n%s", m.try("why", service).stdout)
	})
}

func TestServiceRestsAndWakes(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	m.load("web-v1")
	m.baton("up", "-f", m.write("compose.yaml", restFile), "-y")
	caller := m.live("caller")[0]
	m.resting("web")
	m.resting("tcp")

	t.Run("first request", func(t *testing.T) {
		m.firstRequests("http://"+machineIP+"/", "web", m.outside, 5, 150*time.Millisecond)
	})
	t.Run("published port", func(t *testing.T) { m.firstRequests(url("/"), "tcp", m.outside, 2, 4*time.Second) })
	t.Run("service address", func(t *testing.T) {
		m.firstRequests("http://tcp:8080/", "tcp", m.netns(caller.ID), 1, 4*time.Second)
	})
	t.Run("bounded queue", m.boundedQueue)
	t.Run("by hand", m.byHand)
}

// firstRequests makes requests to a service that rests, each of which must be answered, and tells how much longer the median one took than
// its task from its creation until it was ready. On a busy machine that is too much now and then: only a multiple of it is an error.
func (m *machine) firstRequests(address, service, from string, count int, most time.Duration) {
	var over, took []time.Duration
	for range count {
		m.resting(service)
		got := startLoad(m.t, from, request{URL: address, Workers: 1, Count: 1, Timeout: 30 * time.Second, DNS: from != m.outside}).wait()
		if got.Failures > 0 {
			m.t.Errorf("the first request failed: %v", got.Errors)
			continue
		}
		// On a slow machine it may be gone again by now.
		task := slices.MaxFunc(m.tasks(service, true), func(a, b api.Task) int { return a.Created.Compare(b.Created) })
		for _, e := range batonJSON[[]api.Event](m, "events", "-n", "10000") {
			if e.Task == task.ID && e.Type == "task.ready" {
				over = append(over, got.Longest-e.At.Sub(task.Created))
				took = append(took, got.Longest)
			}
		}
	}
	if len(over) == 0 {
		m.t.Fatal("no first request was answered by a task that became ready")
	}
	slices.Sort(over)
	slices.Sort(took)
	median := over[len(over)/2]
	m.t.Logf("%s: the first request took %v (median of %d); that is %v more than its task needed to become ready", address,
		took[len(took)/2].Round(time.Millisecond), len(took), median.Round(time.Millisecond))
	if median > 4*most {
		m.t.Errorf("a first request took %v longer than its task took to become ready, want at most %v", median, most)
	}
	if why := m.baton("why", service); !strings.Contains(why, "somebody wants it") || !strings.Contains(why, "nobody used it for") {
		m.t.Errorf("why does not tell of the last steps:\n%s", why)
	}
}

// boundedQueue checks that no more requests wait than may, and none for longer.
func (m *machine) boundedQueue(t *testing.T) {
	begun := time.Now()
	got := startLoad(t, m.outside, request{URL: "http://" + machineIP + "/stuck", Workers: 5, Count: 5, Timeout: 30 * time.Second}).wait()
	all := strings.Join(got.Errors, "\n")
	if n := strings.Count(all, "status 503: the service is starting, and too many requests wait"); n != 2 {
		t.Errorf("%d of 5 requests were refused for want of room, want 2:\n%s", n, all)
	}
	if n := strings.Count(all, "status 503: the service was started for this request, and was not ready in time"); n != 3 {
		t.Errorf("%d of 5 requests waited in vain, want 3:\n%s", n, all)
	}
	if d := time.Since(begun); d < 8*time.Second || d > 25*time.Second {
		t.Errorf("they were refused after %v, want 8 s", d)
	}
}

// byHand checks that a number set by hand stays, used or not, and that the service rests again once it is given back.
func (m *machine) byHand(t *testing.T) {
	m.baton("scale", "web=2")
	if out := m.baton("ls"); !strings.Contains(out, "2/2 (by hand)") {
		t.Errorf("ls does not show who owns the number:\n%s", out)
	}
	at := time.Now()
	eventually(t, time.Minute, "more than the time to rest to pass", func() error {
		if d := time.Since(at); d < 8*time.Second {
			return fmt.Errorf("%v", d)
		}
		return nil
	})
	if n := len(m.live("web")); n != 2 {
		t.Errorf("a service scaled by hand has %d tasks, want 2", n)
	}
	m.baton("scale", "web=0")
	if body, err := m.ask(m.outside, "http://"+machineIP+"/"); err == nil {
		t.Errorf("a service that somebody stopped by hand answered %q", body)
	}
	m.baton("scale", "web=auto")
	eventually(t, 20*time.Second, "the edge to hold requests again", func() error { // it hears of it a moment later
		_, err := m.ask(m.outside, "http://"+machineIP+"/")
		return err
	})
	m.resting("web")
}
