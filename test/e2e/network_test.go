package e2e

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"baton/client/api"
)

func TestTenThousandConnectionsSpreadEvenly(t *testing.T) {
	t.Parallel()
	const replicas, connections = 10, 10_000
	m := newMachine(t)
	m.load("web-v1")
	m.baton("up", "-f", m.write("compose.yaml", webFile(published, probed, deploy(fmt.Sprintf("replicas: %d, %s", replicas, quickUpdate)))), "-y")
	got := startLoad(t, m.outside, request{URL: url("/"), Workers: 16, Count: connections}).wait()
	if got.Failures > 0 {
		t.Fatalf("%d of %d requests failed: %v", got.Failures, connections, got.Errors)
	}
	if len(got.Bodies) != replicas {
		t.Fatalf("%d replicas answered, want %d", len(got.Bodies), replicas)
	}
	const mean = float64(connections) / replicas
	sigma := math.Sqrt(connections * (1.0 / replicas) * (1 - 1.0/replicas))
	// Of ten honest counts one is beyond 3 sigma in 3% of all runs; two are in 0.03%.
	beyond := 0
	for body, n := range got.Bodies {
		off := math.Abs(float64(n)-mean) / sigma
		if off > 3 {
			beyond++
		}
		if off > 4.5 || beyond > 1 {
			t.Errorf("%s answered %d times, %.1f sigma from %.0f", body, n, off, mean)
		}
	}
}

// TestReachabilityIsAsDeclared tries every pair of services over three networks, by address and by name.
func TestReachabilityIsAsDeclared(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	m.load("web-v1")
	networks := map[string][]string{"a": {"n1"}, "b": {"n1", "n2"}, "c": {"n2", "n3"}, "d": {"n3"}, "e": {"n1", "n3"}}
	var file strings.Builder
	file.WriteString("name: matrix\nservices:\n")
	for _, name := range []string{"a", "b", "c", "d", "e"} {
		fmt.Fprintf(&file, "  %s: {image: \"baton.test/web:v1\", networks: [%s]}\n", name, strings.Join(networks[name], ", "))
	}
	file.WriteString("networks: {n1: {}, n2: {}, n3: {internal: true}}\n")
	m.baton("up", "-f", m.write("compose.yaml", file.String()), "-y")
	tasks := make(map[string]api.Task)
	for name := range networks {
		tasks[name] = m.live(name)[0]
	}
	for from, fromNets := range networks {
		for to, toNets := range networks {
			want := slices.ContainsFunc(fromNets, func(n string) bool { return slices.Contains(toNets, n) })
			ns := m.netns(tasks[from].ID)
			for how, target := range map[string]string{"address": tasks[to].Address.String(), "name": to} {
				r := startLoad(t, ns, request{URL: "http://" + target + ":8080/", Workers: 1, Count: 1, DNS: true, Timeout: 2 * time.Second}).wait()
				if got := r.Failures == 0; got != want {
					t.Errorf("%s (%v) reaches %s (%v) by %s: %v, want %v %v", from, fromNets, to, toNets, how, got, want, r.Errors)
				}
			}
		}
	}
	// d is on an internal network only, and has no way out.
	startLoad(t, m.outside, request{Serve: outsideIP + ":9000"})
	for name, want := range map[string]bool{"a": true, "d": false} {
		eventually(t, 10*time.Second, fmt.Sprintf("%s gets out: %v", name, want), func() error {
			r := startLoad(t, m.netns(tasks[name].ID), request{URL: "http://" + outsideIP + ":9000/", Workers: 1, Count: 1, Timeout: 2 * time.Second}).wait()
			if got := r.Failures == 0; got != want {
				return fmt.Errorf("got %v (%v)", got, r.Errors)
			}
			return nil
		})
	}
}
