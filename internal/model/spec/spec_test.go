package spec

import (
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/fxamacker/cbor/v2"
	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// web is a small valid stack with its defaults.
func web(change ...func(*Stack)) *Stack {
	s := &Stack{Name: "shop", Services: []Service{{Name: "web", Image: "nginx", Replicas: 1}}}
	for _, c := range change {
		c(s)
	}
	s.SetDefaults()
	return s
}

// defaultCases are stacks and what SetDefaults makes of them.
func defaultCases(pg Mount) []defaultCase {
	return []defaultCase{
		{"joins default", nil, func(s *Stack) any { return s.Services[0].Networks }, []Attachment{{Network: "default"}}},
		{"declares default", nil, func(s *Stack) any { return s.Networks }, []Network{{Name: "default", Ref: "shop_default"}}},
		{"host mode joins none", func(s *Stack) { s.Services[0].NetworkMode = "host" }, func(s *Stack) any { return len(s.Networks) }, 0},
		{"start first", nil, func(s *Stack) any { return s.Services[0].Update.Order }, StartFirst},
		{"rollback pauses", nil, func(s *Stack) any { return s.Services[0].Rollback.FailureAction }, FailurePause},
		{"one at a time", func(s *Stack) { s.Services[0].Replicas = 8 }, func(s *Stack) any { return s.Services[0].Update.Parallelism }, 1},
		{"a quarter", func(s *Stack) { s.Services[0].Replicas = 20 }, func(s *Stack) any { return s.Services[0].Update.Parallelism }, 5},
		{"all at once stays", func(s *Stack) { s.Services[0].Update.Parallelism = AllAtOnce }, func(s *Stack) any { return s.Services[0].Update.Parallelism }, AllAtOnce},
		{"host port stops first", func(s *Stack) {
			s.Services[0].Ports = []Port{{Target: 80, Published: 80, Mode: PortHost}}
		}, func(s *Stack) any { return s.Services[0].Update.Order }, StopFirst},
		{"lone writer", func(s *Stack) {
			s.Volumes, s.Services[0].Mounts = []Volume{{Name: "pg"}}, []Mount{pg}
		}, func(s *Stack) any { return []any{s.Volumes[0].SingleWriter, s.Services[0].Update.Order} }, []any{true, StopFirst}},
		{"many writers", func(s *Stack) {
			s.Volumes, s.Services[0].Mounts, s.Services[0].Replicas = []Volume{{Name: "pg"}}, []Mount{pg}, 2
		}, func(s *Stack) any { return []any{s.Volumes[0].SingleWriter, s.Services[0].Update.Order} }, []any{false, StartFirst}},
		{"two services", func(s *Stack) {
			s.Services = append(s.Services, Service{Name: "backup", Image: "b", Replicas: 1, Mounts: []Mount{pg}})
			s.Volumes, s.Services[0].Mounts = []Volume{{Name: "pg"}}, []Mount{pg}
		}, func(s *Stack) any { return []any{s.Volumes[0].SingleWriter, s.Services[0].Update.Order} }, []any{false, StopFirst}},
		{"global writer", func(s *Stack) {
			s.Volumes, s.Services[0].Mounts, s.Services[0].Mode = []Volume{{Name: "pg"}}, []Mount{pg}, Global
		}, func(s *Stack) any { return []any{s.Volumes[0].SingleWriter, s.Services[0].Update.Order} }, []any{false, StopFirst}},
		{"shared", func(s *Stack) {
			s.Volumes, s.Services[0].Mounts = []Volume{{Name: "pg", Shared: true}}, []Mount{pg}
		}, func(s *Stack) any { return []any{s.Volumes[0].SingleWriter, s.Services[0].Update.Order} }, []any{false, StartFirst}},
		{"reader", func(s *Stack) {
			m := pg
			m.ReadOnly = true
			s.Volumes, s.Services[0].Mounts = []Volume{{Name: "pg"}}, []Mount{m}
		}, func(s *Stack) any { return []any{s.Volumes[0].SingleWriter, s.Services[0].Update.Order} }, []any{false, StartFirst}},
		{"exec probe", func(s *Stack) {
			s.Services[0].Probes.Ready = &Probe{Exec: []string{"true"}}
		}, func(s *Stack) any { return *s.Services[0].Probes.Ready }, Probe{
			Exec: []string{"true"}, Interval: 30 * time.Second, Timeout: 30 * time.Second, Failures: 3, Successes: 1, StartInterval: time.Second,
		}},
		{"start interval", func(s *Stack) {
			s.Services[0].Probes.Ready = &Probe{TCP: &TCPProbe{Port: 1}, Interval: 100 * time.Millisecond}
		}, func(s *Stack) any { return s.Services[0].Probes.Ready.StartInterval }, 100 * time.Millisecond},
		{"secret path", func(s *Stack) {
			s.Secrets, s.Services[0].Secrets = []Secret{{Name: "key", External: true}}, []FileRef{{Source: "key"}}
		}, func(s *Stack) any { return []any{s.Secrets[0].Ref, s.Services[0].Secrets[0]} }, []any{"key", FileRef{Source: "key", Target: "/run/secrets/key", Mode: 0o444}}},
		{"long delay", func(s *Stack) {
			s.Services[0].Restart.Delay = time.Hour
		}, func(s *Stack) any { return s.Services[0].Restart.DelayMax }, time.Hour},
	}
}

type defaultCase struct {
	name   string
	change func(*Stack)
	get    func(*Stack) any
	want   any
}

func TestSetDefaults(t *testing.T) {
	for _, tc := range defaultCases(Mount{Kind: MountVolume, Source: "pg", Target: "/data"}) {
		t.Run(tc.name, func(t *testing.T) {
			s := web(func(s *Stack) {
				if tc.change != nil {
					tc.change(s)
				}
			})
			if diff := cmp.Diff(tc.want, tc.get(s)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if err := s.Validate(); err != nil {
				t.Errorf("Validate: %v", err)
			}
			again := clone(t, s)
			again.SetDefaults()
			if diff := cmp.Diff(clone(t, s), again); diff != "" {
				t.Errorf("a second SetDefaults changes (-once +twice):\n%s", diff)
			}
		})
	}
}

func clone(t testing.TB, s *Stack) *Stack {
	t.Helper()
	b, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	out := &Stack{}
	if err := json.Unmarshal(b, out); err != nil {
		t.Fatal(err)
	}
	return out
}

func TestValidate(t *testing.T) {
	for _, tc := range []struct {
		name   string
		change func(*Stack, *Service)
		want   string // "" for valid
	}{
		{"valid", func(*Stack, *Service) {}, ""},
		{"stack name", func(s *Stack, v *Service) { s.Name = "My Shop" }, "name: invalid stack name"},
		{"service name", func(s *Stack, v *Service) { v.Name = "a.b" }, "services.a.b: invalid service name"},
		{"long name", func(s *Stack, v *Service) { v.Name = strings.Repeat("a", 64) }, "invalid service name"},
		{"twice", func(s *Stack, v *Service) { s.Services = append(s.Services, *v) }, "services.web: defined twice"},
		{"no image", func(s *Stack, v *Service) { v.Image = "" }, "services.web.image: the service has no image"},
		{"mode", func(s *Stack, v *Service) { v.Mode = "globl" }, `services.web.mode: unknown value "globl"; did you mean "global"?`},
		{"replicas", func(s *Stack, v *Service) { v.Replicas = -1 }, "services.web.replicas: -1 replicas"},
		{"network", func(s *Stack, v *Service) { v.Networks = []Attachment{{Network: "defualt"}} }, `did you mean "default"?`},
		{"constraint", func(s *Stack, v *Service) { v.Placement.Constraints = []string{"node.role"} }, "services.web.placement.constraints[0]: constraint"},
		{"spread", func(s *Stack, v *Service) { v.Placement.Spread = []string{"zone"} }, "services.web.placement.spread[0]: unknown node attribute"},
		{"relative target", func(s *Stack, v *Service) { v.Mounts = []Mount{{Kind: MountTmpfs, Target: "tmp"}} }, "must be absolute"},
		{"mounted twice", func(s *Stack, v *Service) {
			v.Mounts = []Mount{{Kind: MountTmpfs, Target: "/a"}, {Kind: MountTmpfs, Target: "/b/../a"}}
		}, "services.web.mounts[1].target: /a is mounted twice"},
		{"leaving path", func(s *Stack, v *Service) { v.Mounts = []Mount{{Kind: MountVolume, Target: "/a", SubPath: "../x"}} }, "leaves the volume"},
		{"two actions", func(s *Stack, v *Service) {
			v.Probes.Live = &Probe{Exec: []string{"a"}, TCP: &TCPProbe{Port: 1}, Interval: 1e9, Timeout: 1e9, Failures: 1, Successes: 1, StartInterval: 1e9}
		}, "services.web.probes.live: a probe asks one thing, this one 2"},
		{"ratio", func(s *Stack, v *Service) { v.Update.MaxFailureRatio = 1.1 }, "1.1 is no ratio"},
		{"limit", func(s *Stack, v *Service) { v.Resources.Limits.CPU, v.Resources.Reservations.CPU = 100, 200 }, "the limit is below the reservation"},
		{"self", func(s *Stack, v *Service) {
			v.DependsOn = []Dependency{{Service: "web", Condition: DependStarted, Required: true}}
		}, "services wait for each other: web → web"},
		{"optional", func(s *Stack, v *Service) { v.DependsOn = []Dependency{{Service: "x", Condition: DependStarted}} }, ""},
		{"missing", func(s *Stack, v *Service) {
			v.DependsOn = []Dependency{{Service: "x", Condition: DependStarted, Required: true}}
		}, `service "x" is not defined`},
		{"host port", func(s *Stack, v *Service) {
			v.Ports = []Port{{Target: 80, Published: 80, Protocol: "tcp", Mode: PortHost}}
		}, "a port published in host mode forbids; use stop-first"},
		{"same port, other protocol", func(s *Stack, v *Service) {
			v.Ports = []Port{{Target: 53, Published: 53, Protocol: "tcp", Mode: PortIngress}, {Target: 53, Published: 53, Protocol: "udp", Mode: PortIngress}}
		}, ""},
		{"same port, other address", func(s *Stack, v *Service) {
			v.Ports = []Port{{Target: 1, Published: 80, Protocol: "tcp", Mode: PortIngress, HostIP: "10.0.0.1"}, {Target: 2, Published: 80, Protocol: "tcp", Mode: PortIngress, HostIP: "10.0.0.2"}}
		}, ""},
		{"large config", func(s *Stack, v *Service) {
			s.Configs = []Config{{Name: "c", Content: make([]byte, MaxContentBytes+1)}}
		}, "configs.c.content"},
		{"external content", func(s *Stack, v *Service) { s.Secrets = []Secret{{Name: "c", External: true, Content: []byte("x")}} }, "secrets.c.content"},
		{"env", func(s *Stack, v *Service) { v.Container.Env = []string{"NOVALUE"} }, "services.web.container.env[0]"},
		{"none with ports", func(s *Stack, v *Service) {
			v.NetworkMode, v.Networks = "none", nil
			v.Ports = []Port{{Target: 80, Published: 80, Protocol: "tcp", Mode: PortIngress}}
		}, "cannot publish ports"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := web()
			tc.change(s, &s.Services[0])
			err := s.Validate()
			if tc.want == "" {
				if err != nil {
					t.Errorf("got %v, want no error", err)
				}
				return
			}
			var invalid *InvalidError
			if !errors.As(err, &invalid) || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want %q", err, tc.want)
			}
		})
	}
}

func TestValidateFindsAll(t *testing.T) {
	s := &Stack{Name: "shop", Services: []Service{{Name: "a"}, {Name: "b", Image: "b", Mode: "x"}}}
	s.SetDefaults()
	var invalid *InvalidError
	if !errors.As(s.Validate(), &invalid) || len(invalid.Fields) != 2 {
		t.Fatalf("got %v, want two faults", invalid)
	}
}

func TestConstraint(t *testing.T) {
	node := map[string]string{AttrRole: "worker", AttrHostname: "N1", AttrArch: "amd64", "node.labels.zone": "eu"}
	for _, tc := range []struct {
		in    string
		match bool
		err   string
	}{
		{"node.labels.zone == eu", true, ""},
		{"node.labels.zone==EU", true, ""},
		{"node.labels.zone != eu", false, ""},
		{"node.labels.disk == ssd", false, ""},
		{"node.labels.disk != ssd", true, ""},
		{"node.hostname==n1", true, ""},
		{"node.role != manager", true, ""},
		{"node.platform.arch == x86_64", true, ""},
		{"node.labels.a/b.c-d == x", false, ""},
		{"node.labels.zone = eu", false, "has no operator"},
		{"", false, "has no operator"},
		{"node.labels.zone ==", false, "compares with nothing"},
		{"node.labels. == x", false, "is no label key"},
		{"node.zone == eu", false, "unknown node attribute"},
		{"node.role == king", false, "a role is manager or worker"},
		{"node.id == a == b", false, "may hold only"},
		{"node.id != a == b", false, "may hold only"},
	} {
		t.Run(tc.in, func(t *testing.T) {
			c, err := ParseConstraint(tc.in)
			if tc.err != "" {
				if err == nil || !strings.Contains(err.Error(), tc.err) {
					t.Fatalf("got %v, want %q", err, tc.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got := c.Match(func(k string) string { return node[k] }); got != tc.match {
				t.Errorf("Match is %v, want %v", got, tc.match)
			}
			again, err := ParseConstraint(c.String())
			if err != nil || again != c {
				t.Errorf("String gives %q, which parses to %v, %v", c, again, err)
			}
		})
	}
}

func FuzzParseConstraint(f *testing.F) {
	f.Add("node.labels.zone == eu")
	f.Add("node.role!=manager")
	f.Fuzz(func(t *testing.T, s string) {
		c, err := ParseConstraint(s)
		if err != nil {
			return
		}
		if again, err := ParseConstraint(c.String()); err != nil || again != c {
			t.Errorf("%q: %v, %v", s, again, err)
		}
		c.Match(func(string) string { return "" })
	})
}

func TestHash(t *testing.T) {
	base := web().Services[0]
	for _, tc := range []struct {
		name         string
		change       func(*Service)
		hash, policy bool // whether it differs
	}{
		{"nothing", func(*Service) {}, false, false},
		{"replicas", func(v *Service) { v.Replicas = 7 }, false, false},
		{"image", func(v *Service) { v.Image = "nginx:2" }, true, false},
		{"env", func(v *Service) { v.Container.Env = []string{"A=1"} }, true, false},
		{"empty command", func(v *Service) { v.Container.Command = []string{} }, true, false},
		{"port", func(v *Service) { v.Ports = []Port{{Target: 1}} }, true, false},
		{"restart", func(v *Service) { v.Restart.Delay = 1 }, true, false},
		{"labels", func(v *Service) { v.Labels = map[string]string{"a": "b"} }, false, true},
		{"update", func(v *Service) { v.Update.Monitor = 1 }, false, true},
		{"ingress", func(v *Service) { v.Ingress = []Ingress{{Port: 1}} }, false, true},
		{"autoscale", func(v *Service) { v.Autoscale = &Autoscale{Max: 3} }, false, true},
		{"dependency", func(v *Service) { v.DependsOn = []Dependency{{Service: "db"}} }, false, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			v := base
			tc.change(&v)
			if got := Hash(&v) != Hash(&base); got != tc.hash {
				t.Errorf("Hash differs: %v, want %v", got, tc.hash)
			}
			if got := HashPolicy(&v) != HashPolicy(&base); got != tc.policy {
				t.Errorf("HashPolicy differs: %v, want %v", got, tc.policy)
			}
		})
	}
	// Stored revisions carry their hash: it must not change between builds.
	if got, want := Hash(&base), "dc4b3a30c13251bdae0134eca4e8e61c"; got != want {
		t.Errorf("Hash of the base service is %s, want %s", got, want)
	}
}

// TestScalingKeepsRevision checks that the defaults that follow from the number of replicas never reach Hash.
func TestScalingKeepsRevision(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		volume := rapid.Bool().Draw(t, "volume")
		hash := func(replicas int) string {
			s := web(func(s *Stack) {
				s.Services[0].Replicas = replicas
				if volume {
					s.Volumes = []Volume{{Name: "v"}}
					s.Services[0].Mounts = []Mount{{Kind: MountVolume, Source: "v", Target: "/v"}}
				}
			})
			return Hash(&s.Services[0])
		}
		a, b := rapid.IntRange(0, 200).Draw(t, "a"), rapid.IntRange(0, 200).Draw(t, "b")
		if hash(a) != hash(b) {
			t.Fatalf("%d and %d replicas have different hashes", a, b)
		}
	})
}

// TestCycles compares the search for cycles with a plain reachability test.
func TestCycles(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 6).Draw(t, "n")
		s := &Stack{Name: "s"}
		var reach [6][6]bool
		for i := range n {
			v := Service{Name: string(rune('a' + i)), Image: "i", Replicas: 1}
			for _, j := range rapid.SliceOfDistinct(rapid.IntRange(0, n-1), rapid.ID[int]).Draw(t, "deps") {
				v.DependsOn = append(v.DependsOn, Dependency{Service: string(rune('a' + j)), Condition: DependStarted, Required: true})
				reach[i][j] = true
			}
			s.Services = append(s.Services, v)
		}
		for k := range n {
			for i := range n {
				for j := range n {
					reach[i][j] = reach[i][j] || reach[i][k] && reach[k][j]
				}
			}
		}
		want := slices.ContainsFunc([]int{0, 1, 2, 3, 4, 5}, func(i int) bool { return reach[i][i] })
		s.SetDefaults()
		if got := s.Validate() != nil; got != want {
			t.Fatalf("cycle found: %v, want %v", got, want)
		}
	})
}

// TestEmptyCommandSurvives checks both encodings: an empty command clears the image's, a missing one keeps it.
func TestEmptyCommandSurvives(t *testing.T) {
	for _, tc := range []struct {
		name      string
		marshal   func(any) ([]byte, error)
		unmarshal func([]byte, any) error
	}{{"json", json.Marshal, json.Unmarshal}, {"cbor", cbor.Marshal, cbor.Unmarshal}} {
		for _, in := range []Container{{}, {Command: []string{}, Entrypoint: []string{}}} {
			b, err := tc.marshal(in)
			if err != nil {
				t.Fatal(err)
			}
			var out Container
			if err := tc.unmarshal(b, &out); err != nil {
				t.Fatal(err)
			}
			if (out.Command == nil) != (in.Command == nil) || (out.Entrypoint == nil) != (in.Entrypoint == nil) {
				t.Errorf("%s: %#v became %#v", tc.name, in.Command, out.Command)
			}
		}
	}
}
