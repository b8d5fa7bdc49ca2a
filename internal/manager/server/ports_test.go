package server

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"

	"baton/client/api"
	"baton/internal/manager/consensus"
	"baton/internal/manager/store"
	"baton/internal/model/cluster"
	"baton/internal/model/spec"
)

// meeting is a log at which two writers have both decided before either writes.
type meeting struct {
	*consensus.Memory
	once sync.WaitGroup
	seen sync.Map
}

func (m *meeting) Propose(ctx context.Context, t store.Txn) (store.Version, error) {
	if _, met := m.seen.LoadOrStore(ctx.Value(caller{}), true); !met {
		m.once.Done()
		m.once.Wait()
	}
	return m.Memory.Propose(ctx, t)
}

// caller is the key under which a context tells who writes.
type caller struct{}

func TestTwoStacksCannotTakeOnePortInTheSameInstant(t *testing.T) {
	h := newHarness(t)
	settings := &cluster.Settings{
		Meta: cluster.Meta{ID: cluster.SettingsID}, TaskPool: netip.MustParsePrefix("10.210.0.0/16"), ServicePool: netip.MustParsePrefix("10.211.0.0/16"),
	}
	var txn store.Txn
	txn.Put(settings)
	if _, err := h.log.Propose(t.Context(), txn); err != nil {
		t.Fatal(err)
	}
	m := &meeting{Memory: h.log}
	m.once.Add(2)
	h.srv.cfg.Log = m
	errs := make([]error, 2)
	var wg sync.WaitGroup
	for i := range errs {
		wg.Go(func() {
			s := stack(fmt.Sprintf("shop%d", i))
			s.Services[0].Ports = []spec.Port{{Target: 80, Published: 8080, Protocol: "tcp"}}
			_, errs[i] = h.srv.up(context.WithValue(t.Context(), caller{}, i), api.UpRequest{Stack: s})
		})
	}
	wg.Wait()
	if (errs[0] == nil) == (errs[1] == nil) {
		t.Errorf("got %v and %v, want one refused", errs[0], errs[1])
	}
	if n := h.st.Snapshot().Count(cluster.KindStack); n != 1 {
		t.Errorf("%d stacks are stored, want 1", n)
	}
}

// Rules of two stacks cannot match the same requests, and no port can be published where rules are served.
func TestIngressConflicts(t *testing.T) {
	rule := func(host, path string) func(*spec.Service) {
		return func(v *spec.Service) {
			v.Ingress = append(v.Ingress, spec.Ingress{Host: host, Path: path, Port: 80})
		}
	}
	publish := func(port uint16) func(*spec.Service) {
		return func(v *spec.Service) { v.Ports = []spec.Port{{Target: 80, Published: port, Protocol: "tcp"}} }
	}
	for _, tc := range []struct {
		name          string
		first, second func(*spec.Service)
		want          string
	}{
		{"same rule", rule("a.example", "/api"), rule("A.example.", "/api/"), "requests for a.example/api go to service shop0/web already"},
		{"any host twice", rule("", ""), rule("", "/"), "requests for (any host)/ go to service shop0/web already"},
		{"other path", rule("a.example", "/api"), rule("a.example", "/"), ""},
		{"other host", rule("a.example", "/"), rule("*.example", "/"), ""},
		{"port first", publish(80), rule("a.example", "/"), "served on port 80/tcp, which service shop0/web publishes"},
		{"rule first", rule("a.example", "/"), publish(80), "service shop0/web has some"},
		{"other port", publish(8080), rule("a.example", "/"), ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			h := newHarness(t)
			for i, change := range []func(*spec.Service){tc.first, tc.second} {
				s := stack(fmt.Sprintf("shop%d", i))
				change(&s.Services[0])
				_, err := h.srv.up(t.Context(), api.UpRequest{Stack: s})
				switch {
				case (i == 0 || tc.want == "") && err != nil:
					t.Fatal(err)
				case i == 1 && tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)):
					t.Errorf("got %v, want %q in it", err, tc.want)
				}
			}
		})
	}
}

// A manager of an older version would forget who owns the number.
func TestAutoscaleNeedsItsLevel(t *testing.T) {
	for level, ok := range map[cluster.Level]bool{cluster.LevelIngress: false, cluster.LevelAutoscale: true} {
		h := newHarness(t)
		var txn store.Txn
		txn.Put(&cluster.Settings{
			Meta: cluster.Meta{ID: cluster.SettingsID}, TaskPool: netip.MustParsePrefix("10.210.0.0/16"),
			ServicePool: netip.MustParsePrefix("10.211.0.0/16"), Level: level,
		})
		if _, err := h.log.Propose(t.Context(), txn); err != nil {
			t.Fatal(err)
		}
		s := stack("shop")
		s.Services[0].Autoscale = &spec.Autoscale{Min: 1, Max: 2, Target: spec.ScaleTarget{RPS: 1}}
		_, err := h.srv.up(t.Context(), api.UpRequest{Stack: s})
		if ok != (err == nil) || err != nil && !strings.Contains(err.Error(), "services.web.x-autoscale needs feature level 4") {
			t.Errorf("at level %d: got %v", level, err)
		}
	}
}

// Edges of an older version would serve a rule without what it says.
func TestRuleKeysNeedTheirLevel(t *testing.T) {
	for level, ok := range map[cluster.Level]bool{cluster.LevelAutoscale: false, cluster.LevelTraffic: true} {
		h := newHarness(t)
		var txn store.Txn
		txn.Put(&cluster.Settings{
			Meta: cluster.Meta{ID: cluster.SettingsID}, TaskPool: netip.MustParsePrefix("10.210.0.0/16"),
			ServicePool: netip.MustParsePrefix("10.211.0.0/16"), Level: level,
		})
		if _, err := h.log.Propose(t.Context(), txn); err != nil {
			t.Fatal(err)
		}
		s := stack("shop")
		s.Services[0].Ingress = []spec.Ingress{{Port: 80}, {Host: "a.example", Port: 80, RuleKeys: spec.RuleKeys{Allow: []string{"10.0.0.0/8"}}}}
		_, err := h.srv.up(t.Context(), api.UpRequest{Stack: s})
		if ok != (err == nil) || err != nil && !strings.Contains(err.Error(), "services.web.x-ingress[1] with more than host, path and port needs feature level 5") {
			t.Errorf("at level %d: got %v", level, err)
		}
	}
}

// Nodes of an older version would not serve the rules.
func TestIngressNeedsItsLevel(t *testing.T) {
	for _, tc := range []struct {
		level cluster.Level
		ok    bool
	}{{cluster.LevelLeases, false}, {cluster.LevelIngress, true}} {
		h := newHarness(t)
		var txn store.Txn
		txn.Put(&cluster.Settings{
			Meta: cluster.Meta{ID: cluster.SettingsID}, TaskPool: netip.MustParsePrefix("10.210.0.0/16"),
			ServicePool: netip.MustParsePrefix("10.211.0.0/16"), Level: tc.level,
		})
		if _, err := h.log.Propose(t.Context(), txn); err != nil {
			t.Fatal(err)
		}
		s := stack("shop")
		s.Services[0].Ingress = []spec.Ingress{{Path: "/", Port: 80}}
		_, err := h.srv.up(t.Context(), api.UpRequest{Stack: s})
		if tc.ok != (err == nil) || err != nil && !strings.Contains(err.Error(), "services.web.x-ingress needs feature level 3") {
			t.Errorf("at level %d: got %v", tc.level, err)
		}
	}
}
