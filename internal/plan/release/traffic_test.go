package release

import (
	"slices"
	"testing"
	"time"

	"baton/internal/model/cluster"
	"baton/internal/model/spec"
)

func ruledWeb(image string, replicas int) spec.Service {
	w := web(image, replicas)
	w.Ingress = []spec.Ingress{{Path: "/", Port: 80}}
	return w
}

func TestChangedServices(t *testing.T) {
	m := newMemory()
	plain := web("a", 1)
	plain.Name = "plain"
	first := m.deploy(t, stack(ruledWeb("a", 1), plain), nil)
	if got := Changed(m, first.Release); got != nil {
		t.Errorf("the first release has changed %d services, want none: they served nobody", len(got))
	}
	for what, c := range map[string]struct {
		web  spec.Service
		want []string
	}{
		"another image": {ruledWeb("b", 1), []string{"web"}}, "another number": {ruledWeb("b", 3), []string{"web"}},
		"the rule goes": {web("b", 3), []string{"web"}}, "no rule before and after": {web("c", 3), nil},
	} {
		m := newMemory()
		m.deploy(t, stack(ruledWeb("a", 1), plain), nil)
		if what == "no rule before and after" {
			m.deploy(t, stack(web("b", 3), plain), nil)
		}
		plain := plain
		plain.Image = "z" // it changes too, and has no rule
		d := m.deploy(t, stack(c.web, plain), nil)
		var got []string
		for _, s := range Changed(m, d.Release) {
			got = append(got, s.Name)
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: changed %v, want %v", what, got, c.want)
		}
	}
}

func TestCountAddsUpServicesAndComparesWithBefore(t *testing.T) {
	began := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	r := &cluster.Release{Meta: cluster.Meta{Created: began}}
	services := []*cluster.Service{{Name: "api"}, {Name: "web"}}
	got := Count(r, services, began.Add(20*time.Second), func(_ cluster.ID, from, to time.Time) (cluster.Requested, string) {
		if to.Sub(from) != 20*time.Second {
			t.Errorf("asked for %v", to.Sub(from))
		}
		if from.Before(began) {
			return cluster.Requested{Requests: 1000, Errors: 1}, ""
		}
		return cluster.Requested{Requests: 500, NoEndpoint: 1, Unreached: 2, Broken: 3, Errors: 50}, "one node"
	})
	if got.Failed() != 12 || got.Requests != 1000 || got.Partial != "one node" {
		t.Errorf("got %+v", got)
	}
	const want = "1000 requests during the deploy, 12 failed because of it (no ready task 2, not reached 4, broken off 6); " +
		"the application answered 100 of 1000 (10%) with 5xx, 2 of 2000 (0.1%) in the time before (not all may be counted: one node)"
	if text := CountText(got); text != want {
		t.Errorf("got  %s\nwant %s", text, want)
	}
}
