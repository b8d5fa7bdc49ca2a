package release

import (
	"errors"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"baton/internal/model/cluster"
	"baton/internal/model/spec"
)

// memory is a View over maps, to which deployments are applied.
type memory struct {
	objects map[cluster.ID]cluster.Object
	next    int
	now     time.Time
}

func newMemory() *memory {
	return &memory{objects: make(map[cluster.ID]cluster.Object), now: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)}
}

func (m *memory) id() cluster.ID {
	m.next++
	return cluster.ID{0: 1, 14: byte(m.next >> 8), 15: byte(m.next)}
}

func (m *memory) put(objects ...cluster.Object) {
	for _, o := range objects {
		m.objects[o.GetMeta().ID] = o.Clone()
	}
}

func list[T cluster.Object](m *memory, keep func(T) bool) []T {
	var out []T
	for n := 1; n <= m.next; n++ { // by age
		if o, ok := m.objects[cluster.ID{0: 1, 14: byte(n >> 8), 15: byte(n)}].(T); ok && keep(o) {
			out = append(out, o)
		}
	}
	return out
}

func one[T cluster.Object](m *memory, keep func(T) bool) T {
	var none T
	for _, o := range list(m, keep) {
		return o
	}
	return none
}

func (m *memory) Stack(name string) *cluster.Stack {
	return one(m, func(s *cluster.Stack) bool { return s.Name == name })
}
func (m *memory) Services(id cluster.ID) []*cluster.Service {
	return list(m, func(s *cluster.Service) bool { return s.Stack == id })
}
func (m *memory) Revision(id cluster.ID) *cluster.Revision {
	r, _ := m.objects[id].(*cluster.Revision)
	return r
}
func (m *memory) Revisions(id cluster.ID) []*cluster.Revision {
	return list(m, func(r *cluster.Revision) bool { return r.Service == id })
}
func (m *memory) RevisionInUse(cluster.ID) bool { return false }
func (m *memory) Releases(id cluster.ID) []*cluster.Release {
	return list(m, func(r *cluster.Release) bool { return r.Stack == id })
}
func (m *memory) Networks(id cluster.ID) []*cluster.Network {
	return list(m, func(n *cluster.Network) bool { return n.Stack == id })
}
func (m *memory) Materials(id cluster.ID) []cluster.Object {
	return list(m, func(o cluster.Object) bool {
		switch o := o.(type) {
		case *cluster.Secret:
			return o.Stack == id
		case *cluster.Config:
			return o.Stack == id
		}
		return false
	})
}
func (m *memory) ExternalNetwork(name string) *cluster.Network {
	return one(m, func(n *cluster.Network) bool { return n.Name == name })
}
func (m *memory) Volume(name string) *cluster.Volume {
	return one(m, func(v *cluster.Volume) bool { return v.Name == name })
}

var _ View = (*memory)(nil)

type fataler interface {
	Helper()
	Fatal(args ...any)
	Fatalf(format string, args ...any)
}

func stack(services ...spec.Service) spec.Stack {
	s := spec.Stack{Name: "shop", Services: services}
	s.SetDefaults()
	return s
}

func web(image string, replicas int) spec.Service {
	return spec.Service{Name: "web", Image: image, Replicas: replicas}
}

func (m *memory) deploy(t fataler, want spec.Stack, change func(*DeployInput)) Deployment {
	t.Helper()
	in := DeployInput{View: m, Want: want, IDs: m.id, Now: m.now}
	if change != nil {
		change(&in)
	}
	d, err := Deploy(in)
	if err != nil {
		t.Fatal(err)
	}
	m.put(d.Put...)
	m.now = m.now.Add(time.Second)
	return d
}

// roll ends the rollouts under way in a state.
func (m *memory) roll(state cluster.RolloutState, names ...string) {
	for _, s := range m.Services(m.Stack("shop").ID) {
		if s.Removing {
			delete(m.objects, s.ID)
			continue
		}
		for _, n := range names {
			if s.Name == n && s.Rollout.State == cluster.RolloutUpdating {
				c := cluster.Copy(s)
				c.Rollout.State, c.Rollout.Reason = state, "it crashed"
				c.Status.Converged = state == cluster.RolloutCompleted
				m.put(c)
			}
		}
	}
}

func (m *memory) progress(t fataler) ProgressPlan {
	t.Helper()
	p := Progress(ProgressInput{View: m, Stack: m.Stack("shop"), IDs: m.id, Now: m.now})
	m.put(p.Put...)
	for _, o := range p.Delete {
		delete(m.objects, o.GetMeta().ID)
	}
	m.now = m.now.Add(time.Second)
	return p
}

func (m *memory) service(name string) *cluster.Service {
	for _, s := range m.Services(m.Stack("shop").ID) {
		if s.Name == name {
			return s
		}
	}
	return nil
}

func (m *memory) current() *cluster.Release {
	s := m.Stack("shop")
	return find(m.Releases(s.ID), s.Release)
}

func TestDeployTwiceChangesNothing(t *testing.T) {
	m := newMemory()
	want := stack(web("web:1", 2), spec.Service{Name: "db", Image: "db:1", Replicas: 1,
		Mounts: []spec.Mount{{Kind: spec.MountVolume, Source: "data", Target: "/data"}}})
	want.Volumes = []spec.Volume{{Name: "data", Ref: "shop_data"}}
	first := m.deploy(t, want, nil)
	if !first.Diff.New || first.Release.Number != 1 || len(first.Diff.Services) != 2 || len(first.Diff.Volumes) != 1 {
		t.Fatalf("got %+v", first.Diff)
	}
	again := m.deploy(t, want, nil)
	if len(again.Put) != 0 || !again.Diff.Empty() || again.Release.Number != 1 {
		t.Fatalf("puts %d objects: %s", len(again.Put), again.Diff)
	}
}

func TestDeployDiff(t *testing.T) {
	tests := []struct {
		name   string
		change func(*spec.Stack)
		action Action
		text   string
	}{
		{"image", func(s *spec.Stack) { s.Services[0].Image = "web:2" }, ActionUpdate, "image: web:1 → web:2"},
		{"env", func(s *spec.Stack) { s.Services[0].Container.Env = []string{"A=1"} }, ActionUpdate, "container.env.A: 1"},
		{"scale", func(s *spec.Stack) { s.Services[0].Replicas = 3 }, ActionScale, "replicas 2 → 3"},
		{"policy", func(s *spec.Stack) { s.Services[0].Update.Delay = time.Second }, ActionConfigure, "update.delay: 1s"},
		{"ingress", func(s *spec.Stack) {
			s.Services[0].Ingress = []spec.Ingress{{Host: "a.example", Path: "/api", Port: 80}}
		}, ActionConfigure, "ingress.a.example/api: 80"},
		{"remove", func(s *spec.Stack) { s.Services = s.Services[1:] }, ActionRemove, "- remove web"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			m := newMemory()
			both := func() spec.Stack { return stack(web("web:1", 2), spec.Service{Name: "api", Image: "api:1"}) }
			m.deploy(t, both(), nil)
			m.roll(cluster.RolloutCompleted, "web", "api")
			want := both()
			tt.change(&want)
			d := m.deploy(t, want, nil)
			var got ServiceChange
			for _, c := range d.Diff.Services {
				if c.Service == "web" {
					got = c
				} else if c.Action != ActionUnchanged {
					t.Errorf("%s: %s", c.Service, c.Action)
				}
			}
			if got.Action != tt.action || !strings.Contains(d.Diff.String(), tt.text) {
				t.Errorf("got %s, want %s with %q:\n%s", got.Action, tt.action, tt.text, d.Diff)
			}
			if d.Release.Number != 2 {
				t.Errorf("release %d", d.Release.Number)
			}
			if again := m.deploy(t, want, nil); len(again.Put) != 0 {
				t.Errorf("deploying it again puts %d objects:\n%s", len(again.Put), again.Diff)
			}
		})
	}
}

func TestConfigVersionMakesRevision(t *testing.T) {
	m := newMemory()
	want := stack(web("web:1", 1))
	want.Services[0].Configs = []spec.FileRef{{Source: "conf", Target: "/conf"}}
	v1, v2 := &cluster.Config{Meta: cluster.Meta{ID: m.id()}, Name: "conf"}, &cluster.Config{Meta: cluster.Meta{ID: m.id()}, Name: "conf"}
	use := func(c *cluster.Config) func(*DeployInput) {
		return func(in *DeployInput) {
			in.Configs, in.New = map[string]cluster.ID{"conf": c.ID}, []cluster.Object{c}
		}
	}
	m.deploy(t, want, use(v1))
	m.roll(cluster.RolloutCompleted, "web")
	m.progress(t)
	first := m.service("web").Revision
	if d := m.deploy(t, want, use(v1)); len(d.Put) != 0 {
		t.Fatalf("same version: puts %d objects", len(d.Put))
	}
	d := m.deploy(t, want, use(v2))
	if m.service("web").Revision == first || !strings.Contains(d.Diff.String(), "configVersions.conf") {
		t.Fatalf("new content makes no revision: %s", d.Diff)
	}
	m.roll(cluster.RolloutFailed, "web")
	m.progress(t)
	if got := m.Revision(m.service("web").Revision); got.ID != first || got.Configs["conf"] != v1.ID {
		t.Fatal("the rollback does not bring the old content back")
	}
}

func TestScaledByHandStays(t *testing.T) {
	m := newMemory()
	m.deploy(t, stack(web("web:1", 2)), nil)
	m.roll(cluster.RolloutCompleted, "web")
	svc := cluster.Copy(m.service("web"))
	svc.Replicas, svc.Scaled = 7, true
	m.put(svc)
	if d := m.deploy(t, stack(web("web:1", 2)), nil); len(d.Put) != 0 {
		t.Fatalf("the same file undoes scaling by hand: %s", d.Diff)
	}
	m.deploy(t, stack(web("web:2", 2)), nil)
	if got := m.service("web").Replicas; got != 7 {
		t.Fatalf("a new image sets replicas to %d", got)
	}
	m.deploy(t, stack(web("web:2", 3)), nil)
	if got := m.service("web"); got.Replicas != 3 || got.Scaled {
		t.Fatalf("a new number in the file gives %d, scaled %v", got.Replicas, got.Scaled)
	}
}

// The number that follows the load is nobody's in a file: it stays, within the bounds, also when a release is brought back.
func TestLoadsNumberStays(t *testing.T) {
	m := newMemory()
	scales := func(image string, replicas, least, most int) spec.Stack {
		v := web(image, replicas)
		v.Autoscale = &spec.Autoscale{Min: least, Max: most, Target: spec.ScaleTarget{RPS: 1}}
		return stack(v)
	}
	set := func(n int, byHand bool) {
		svc := cluster.Copy(m.service("web"))
		svc.Replicas, svc.Scaled = n, byHand
		m.put(svc)
	}
	want := func(n int, byHand bool, when string) {
		t.Helper()
		if got := m.service("web"); got.Replicas != n || got.Scaled != byHand {
			t.Errorf("%s: %d replicas, by hand %v; want %d, %v", when, got.Replicas, got.Scaled, n, byHand)
		}
	}
	m.deploy(t, stack(web("web:1", 4)), nil)
	set(6, true)
	m.deploy(t, scales("web:1", 2, 1, 9), nil)
	want(6, false, "the load takes the number over")
	m.roll(cluster.RolloutCompleted, "web")
	m.progress(t)
	set(8, false)
	m.deploy(t, scales("web:2", 3, 1, 9), nil)
	want(8, false, "another image and another number to begin with")
	m.deploy(t, scales("web:2", 3, 1, 5), nil)
	want(5, false, "a lower max")
	set(2, false)
	d, err := Rollback(RollbackInput{View: m, Stack: m.Stack("shop"), Number: 2, IDs: m.id, Now: m.now})
	if err != nil {
		t.Fatal(err)
	}
	m.put(d.Put...)
	want(2, false, "an earlier release")
	set(7, true)
	m.deploy(t, scales("web:3", 4, 1, 5), nil)
	want(7, true, "a number set by hand")
	m.deploy(t, stack(web("web:3", 4)), nil)
	want(7, true, "a number set by hand, without autoscaling")
	m.deploy(t, scales("web:3", 4, 1, 9), nil)
	set(6, false)
	m.deploy(t, stack(web("web:3", 4)), nil)
	want(4, false, "the load's number, without autoscaling")
}

func TestFailedRolloutRollsTheReleaseBack(t *testing.T) {
	m := newMemory()
	api := func(image string) spec.Service { return spec.Service{Name: "api", Image: image, Replicas: 1} }
	m.deploy(t, stack(web("web:1", 1), api("api:1")), nil)
	m.roll(cluster.RolloutCompleted, "web", "api")
	if m.progress(t); m.current().State != cluster.ReleaseComplete || m.Stack("shop").Good != m.current().ID {
		t.Fatalf("got %+v", m.current())
	}
	good := m.current()
	m.deploy(t, stack(web("web:2", 1), api("api:2")), nil)
	bad := m.current().ID
	m.roll(cluster.RolloutCompleted, "web")
	m.roll(cluster.RolloutFailed, "api")
	m.progress(t)
	now, failed := m.current(), m.objects[bad].(*cluster.Release)
	if failed.State != cluster.ReleaseRolledBack || failed.Reason != "api: it crashed" || now.Restores != good.Number || now.RollbackOf != failed.Number {
		t.Fatalf("failed %+v\nnow %+v", failed, now)
	}
	for name, rev := range good.Services {
		if svc := m.service(name); svc.Revision != rev || !svc.Rollout.Undo {
			t.Errorf("%s is not brought back: %+v", name, svc)
		}
	}
	m.roll(cluster.RolloutFailed, "web", "api")
	m.progress(t)
	if now := m.current(); now.State != cluster.ReleaseFailed || now.Number != 3 {
		t.Fatalf("a failed rollback goes on: %+v", now)
	}
	if p := m.progress(t); len(p.Put) != 0 {
		t.Fatalf("it still changes: %+v", p)
	}
}

func TestFirstReleaseHasNothingToRollBackTo(t *testing.T) {
	m := newMemory()
	m.deploy(t, stack(web("web:1", 1)), nil)
	m.roll(cluster.RolloutFailed, "web")
	m.progress(t)
	if r := m.current(); r.State != cluster.ReleaseFailed || !strings.Contains(r.Reason, "no earlier release completed") {
		t.Fatalf("got %+v", r)
	}
	if d := m.deploy(t, stack(web("web:1", 1)), nil); d.Diff.Services[0].Action != ActionRetry {
		t.Fatalf("got %s", d.Diff)
	}
}

func TestPauseAndResume(t *testing.T) {
	m := newMemory()
	m.deploy(t, stack(web("web:1", 1)), nil)
	m.roll(cluster.RolloutPaused, "web")
	if m.progress(t); m.current().State != cluster.ReleasePaused {
		t.Fatalf("got %+v", m.current())
	}
	svc := cluster.Copy(m.service("web"))
	svc.Rollout.State = cluster.RolloutUpdating
	m.put(svc)
	if m.progress(t); m.current().State != cluster.ReleaseDeploying {
		t.Fatalf("got %+v", m.current())
	}
}

// Versions of secrets and configs go with the last release that has them.
func TestVersionsGoWithTheHistory(t *testing.T) {
	m := newMemory()
	want := stack(web("web:1", 1))
	want.Services[0].Configs = []spec.FileRef{{Source: "conf", Target: "/conf"}}
	want.Services[0].Secrets = []spec.FileRef{{Source: "key", Target: "/key"}}
	m.deploy(t, stack(web("web:1", 1)), nil)
	own := m.Stack("shop").ID
	for i := range 3 * historyMax {
		m.deploy(t, want, func(in *DeployInput) {
			conf := &cluster.Config{Meta: cluster.Meta{ID: m.id()}, Stack: own, Name: "conf", Number: i + 1}
			key := &cluster.Secret{Meta: cluster.Meta{ID: m.id()}, Stack: own, Name: "key", Number: i + 1}
			in.Configs, in.Secrets = map[string]cluster.ID{"conf": conf.ID}, map[string]cluster.ID{"key": key.ID}
			in.New = []cluster.Object{conf, key}
		})
		m.roll(cluster.RolloutCompleted, "web")
		m.progress(t)
	}
	for _, o := range m.Materials(own) {
		if c, ok := o.(*cluster.Config); ok && c.Number <= historyMax {
			t.Errorf("version %d is kept", c.Number)
		}
	}
	if n := len(m.Materials(own)); n < 2*historyMax || n > 2*(historyMax+2) {
		t.Errorf("%d versions are kept, want two for each of the %d releases", n, historyMax)
	}
	for _, r := range m.Revisions(m.service("web").ID) {
		for _, id := range r.Configs {
			if m.objects[id] == nil {
				t.Errorf("revision %d is kept, its config is not", r.Number)
			}
		}
	}
}

func TestSupersededAndRemoval(t *testing.T) {
	m := newMemory()
	m.deploy(t, stack(web("web:1", 1)), nil)
	first := m.current().ID
	m.deploy(t, stack(web("web:2", 1)), nil)
	if r := m.objects[first].(*cluster.Release); r.State != cluster.ReleaseSuperseded {
		t.Fatalf("got %+v", r)
	}
	m.put(Remove(m, m.Stack("shop"), m.now).Put...)
	if p := m.progress(t); len(p.Delete) != 0 {
		t.Fatal("deletes the stack while services are left")
	}
	m.roll(cluster.RolloutCompleted)
	m.progress(t)
	if len(m.objects) != 0 {
		t.Fatalf("left over: %v", m.objects)
	}
}

func TestVolumeBelongsToTheStackThatIsDeployedAgain(t *testing.T) {
	m := newMemory()
	want := stack(web("web:1", 1))
	want.Volumes = []spec.Volume{{Name: "data", Ref: "shop_data"}}
	m.deploy(t, want, nil)
	m.put(Remove(m, m.Stack("shop"), m.now).Put...)
	m.progress(t)
	m.roll(cluster.RolloutCompleted)
	m.progress(t)
	if v := m.Volume("shop_data"); v == nil {
		t.Fatal("the volume went with its stack")
	}
	m.deploy(t, want, nil)
	if v, st := m.Volume("shop_data"), m.Stack("shop"); v.Stack != st.ID {
		t.Fatalf("the volume is still that of stack %s, want %s", v.Stack, st.ID)
	}
}

func TestRollbackRefusals(t *testing.T) {
	m := newMemory()
	m.deploy(t, stack(web("web:1", 1)), nil)
	in := RollbackInput{View: m, Stack: m.Stack("shop"), IDs: m.id, Now: m.now}
	if _, err := Rollback(in); !errors.Is(err, ErrNothingToRollBackTo) {
		t.Errorf("got %v", err)
	}
	in.Number = 9
	if _, err := Rollback(in); err == nil || !strings.Contains(err.Error(), "no release 9") {
		t.Errorf("got %v", err)
	}
	in.Number = 1
	if _, err := Rollback(in); err == nil || !strings.Contains(err.Error(), "never completed") {
		t.Errorf("got %v", err)
	}
}

// TestReleaseHistories draws deployments and outcomes: a rollback only ever brings back what completed, never follows another
// one by itself, and the history stays bounded.
func TestReleaseHistories(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := newMemory()
		completed := map[int]bool{}
		for range rapid.IntRange(1, 40).Draw(t, "steps") {
			switch rapid.IntRange(0, 5).Draw(t, "what") {
			case 0, 1:
				want := stack(web(rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "image"), rapid.IntRange(1, 3).Draw(t, "replicas")))
				if rapid.Bool().Draw(t, "api") {
					want.Services = append(want.Services, spec.Service{Name: "api", Image: "api"})
					want.SetDefaults()
				}
				m.deploy(t, want, nil)
				if again := m.deploy(t, want, nil); len(again.Put) != 0 && again.Diff.Services[0].Action != ActionRetry {
					t.Fatalf("deploying twice changes: %s", again.Diff)
				}
			case 2:
				if s := m.Stack("shop"); s != nil {
					if d, err := Rollback(RollbackInput{View: m, Stack: s, IDs: m.id, Now: m.now}); err == nil {
						if !completed[d.Release.Restores] {
							t.Fatalf("goes back to release %d, which never completed", d.Release.Restores)
						}
						m.put(d.Put...)
					}
				}
			default:
				if m.Stack("shop") == nil {
					continue
				}
				m.roll(rapid.SampledFrom([]cluster.RolloutState{cluster.RolloutCompleted, cluster.RolloutCompleted, cluster.RolloutFailed, cluster.RolloutPaused}).Draw(t, "end"), "web", "api")
				for _, s := range m.Services(m.Stack("shop").ID) {
					c := cluster.Copy(s)
					c.Status.Converged = true
					m.put(c)
				}
				before := m.current()
				m.progress(t)
				after := m.current()
				if after.State == cluster.ReleaseComplete {
					completed[after.Number] = true
				}
				if after.ID != before.ID && (before.Restores != 0 || !completed[after.Restores]) {
					t.Fatalf("release %+v followed by %+v", before, after)
				}
				if p := m.progress(t); len(p.Put) != 0 && m.current().ID == after.ID && m.current().State == after.State {
					t.Fatalf("deciding again decides the same again: %+v", p)
				}
			}
			if s := m.Stack("shop"); s != nil {
				m.progress(t)
				if now := m.current(); now.State == cluster.ReleaseComplete {
					completed[now.Number] = true
				}
				if n := len(m.Releases(s.ID)); n > historyMax+2 {
					t.Fatalf("%d releases are kept", n)
				}
				for name, rev := range m.current().Services {
					if m.Revision(rev) == nil {
						t.Fatalf("revision of %s was deleted", name)
					}
				}
			}
		}
	})
}
