package schedule

import (
	"fmt"
	"math/rand"
	"reflect"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"baton/internal/model/cluster"
	"baton/internal/model/spec"
)

var now = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func id(kind byte, n int) cluster.ID {
	return cluster.ID{0: kind, 13: byte(n >> 16), 14: byte(n >> 8), 15: byte(n)}
}

func testNode(n int) *cluster.Node {
	return &cluster.Node{
		Meta: cluster.Meta{ID: id('n', n)}, Name: fmt.Sprintf("n%d", n), State: cluster.NodeReady, Availability: cluster.NodeActive,
		Labels:      map[string]string{"zone": fmt.Sprintf("z%d", n%3)},
		Description: cluster.NodeDescription{Hostname: fmt.Sprintf("n%d", n), OS: "linux", Arch: "amd64", CPU: 4000, Memory: 4 << 30},
	}
}

func testView(nodes int, change func(n int, node *cluster.Node)) *View {
	v := NewView()
	for i := 1; i <= nodes; i++ {
		n := testNode(i)
		if change != nil {
			change(i, n)
		}
		v.PutNode(n)
	}
	return v
}

func testGroup(tasks int, change func(*spec.Service)) Group {
	g := Group{
		Service:  &cluster.Service{Meta: cluster.Meta{ID: id('s', 1)}, Name: "web"},
		Revision: &cluster.Revision{Meta: cluster.Meta{ID: id('r', 1)}, Spec: spec.Service{Name: "web", Image: "web:1", Mode: spec.Replicated}},
		Now:      now,
	}
	if change != nil {
		change(&g.Revision.Spec)
	}
	for i := 1; i <= tasks; i++ {
		g.Tasks = append(g.Tasks, &cluster.Task{Meta: cluster.Meta{ID: id('t', i)}, Service: g.Service.ID, Slot: i})
	}
	return g
}

func rng() *rand.Rand { return rand.New(rand.NewSource(1)) }

type refusalCase struct {
	name   string
	node   func(n int, node *cluster.Node)
	spec   func(*spec.Service)
	before int // tasks of the group that do fit
	want   string
}

func refusalCases() []refusalCase {
	return []refusalCase{
		{
			name: "memory and drain",
			node: func(n int, node *cluster.Node) {
				node.Description.Memory = 512 << 20 / spec.Bytes(n)
				if n == 3 {
					node.Availability = cluster.NodeDrain
				}
			},
			spec: func(s *spec.Service) { s.Resources.Reservations.Memory = 1 << 30 },
			want: "0 of 3 nodes fit: 2 lack memory (need 1 GiB, largest free 512 MiB), 1 is drained",
		},
		{
			name: "state",
			node: func(n int, node *cluster.Node) { node.State = cluster.NodeDown },
			want: "0 of 3 nodes fit: 3 are down",
		},
		{
			name: "constraint",
			spec: func(s *spec.Service) { s.Placement.Constraints = []string{"node.labels.disk==ssd"} },
			want: "0 of 3 nodes fit: 3 do not match node.labels.disk == ssd",
		},
		{
			name: "platform",
			spec: func(s *spec.Service) { s.Placement.Platforms = []string{"linux/arm64"} },
			want: "0 of 3 nodes fit: 3 are not linux/arm64",
		},
		{
			name: "cpu",
			spec: func(s *spec.Service) { s.Resources.Reservations.CPU = 4500 },
			want: "0 of 3 nodes fit: 3 lack cpu (need 4.5, largest free 4)",
		},
		{
			name: "ports", before: 3,
			spec: func(s *spec.Service) {
				s.Ports = []spec.Port{{Target: 80, Published: 8080, Protocol: "tcp", Mode: spec.PortHost}}
			},
			want: "0 of 3 nodes fit: 3 have host port 8080/tcp taken",
		},
		{
			name: "replicas", before: 3,
			spec: func(s *spec.Service) { s.Placement.MaxReplicasPerNode = 1 },
			want: "0 of 3 nodes fit: 3 have 1 task of it, the most allowed",
		},
		{
			name: "missing volume",
			spec: func(s *spec.Service) {
				s.Mounts = []spec.Mount{{Kind: spec.MountVolume, Source: "data", Target: "/data"}}
			},
			want: "0 of 3 nodes fit: 3 do not have volume data",
		},
	}
}

func TestExplainRefusals(t *testing.T) {
	for _, tt := range refusalCases() {
		t.Run(tt.name, func(t *testing.T) {
			v := testView(3, tt.node)
			g := testGroup(tt.before+1, tt.spec)
			out := Assign(v, g, rng())
			for _, p := range out[:tt.before] {
				if p.Node.IsZero() {
					t.Fatalf("the first ones do not fit: %s", Explain(p))
				}
			}
			last := out[tt.before]
			if got := Explain(last); !last.Node.IsZero() || got != tt.want {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
		})
	}
	if got := Explain(Assign(NewView(), testGroup(1, nil), rng())[0]); got != "the cluster has no nodes" {
		t.Errorf("empty cluster: %s", got)
	}
}

func TestVolumeFixesTheNode(t *testing.T) {
	v := testView(5, nil)
	v.PutVolume(&cluster.Volume{Meta: cluster.Meta{ID: id('v', 1)}, Name: "shop_data"})
	g := testGroup(3, func(s *spec.Service) {
		s.Mounts = []spec.Mount{{Kind: spec.MountVolume, Source: "data", Target: "/data"}}
	})
	g.Revision.Volumes = map[string]cluster.ID{"data": id('v', 1)}
	out := Assign(v, g, rng())
	for _, p := range out {
		if p.Node.IsZero() || p.Node != out[0].Node {
			t.Fatalf("tasks with one volume are on several nodes: %s, %s", out[0].NodeName, Explain(p))
		}
	}
}

func TestLocalityAndFailures(t *testing.T) {
	v := testView(4, func(n int, node *cluster.Node) {
		if n == 3 {
			node.Description.Images = []string{"web:1"}
		}
	})
	g := testGroup(1, nil)
	if p := Assign(v, g, rng())[0]; p.NodeName != "n3" {
		t.Fatalf("placed on %s, want n3, which has the image", p.NodeName)
	}
	v.RemoveTask(id('t', 1))
	for i := range failuresDefer {
		task := &cluster.Task{Meta: cluster.Meta{ID: id('f', i)}, Service: g.Service.ID, Revision: g.Revision.ID, Node: id('n', 3), Observed: cluster.ObservedRunning}
		v.PutTask(task, &g.Revision.Spec)
		ended := cluster.Copy(task)
		ended.Observed, ended.Ended = cluster.ObservedFailed, now
		v.PutTask(ended, &g.Revision.Spec)
		v.PutTask(ended, &g.Revision.Spec) // seen twice, counts once
	}
	if p := Assign(v, g, rng())[0]; p.NodeName == "n3" {
		t.Fatalf("placed where it failed %d times: %s", failuresDefer, Explain(p))
	}
	v.RemoveTask(id('t', 1))
	g.Now = now.Add(2 * failureWindow)
	if p := Assign(v, g, rng())[0]; p.NodeName != "n3" {
		t.Fatalf("placed on %s although the failures are long ago", p.NodeName)
	}
}

func TestPackFillsNodes(t *testing.T) {
	v := testView(5, nil)
	g := testGroup(4, func(s *spec.Service) {
		s.Placement.Strategy = spec.StrategyPack
		s.Resources.Reservations = spec.Reservations{CPU: 1000, Memory: 1 << 30}
	})
	nodes := map[cluster.ID]int{}
	for _, p := range Assign(v, g, rng()) {
		nodes[p.Node]++
	}
	if len(nodes) != 1 {
		t.Fatalf("packed onto %d nodes, want 1", len(nodes))
	}
}

func TestPinnedTask(t *testing.T) {
	v := testView(3, func(n int, node *cluster.Node) {
		if n == 2 {
			node.Availability = cluster.NodePause
		}
	})
	g := testGroup(3, func(s *spec.Service) { s.Mode = spec.Global })
	for i, task := range g.Tasks {
		task.Node = id('n', i+1)
	}
	out := Assign(v, g, rng())
	if out[0].Node != id('n', 1) || !out[1].Node.IsZero() || out[2].Node != id('n', 3) {
		t.Fatalf("got %v %v %v", out[0].Node, out[1].Node, out[2].Node)
	}
	if got := Explain(out[1]); got != "0 of 1 node fit: 1 is paused" {
		t.Errorf("got %q", got)
	}
}

// TestAssignKeepsItsPromises draws clusters and groups and checks every placement.
func TestAssignKeepsItsPromises(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		v := NewView()
		var nodes []*cluster.Node
		for i := range rapid.IntRange(0, 12).Draw(t, "nodes") {
			n := testNode(i + 1)
			n.Labels["disk"] = rapid.SampledFrom([]string{"ssd", "hdd"}).Draw(t, "disk")
			n.Availability = rapid.SampledFrom([]cluster.Availability{cluster.NodeActive, cluster.NodeActive, cluster.NodePause}).Draw(t, "availability")
			n.Description.CPU = spec.MilliCPU(rapid.IntRange(0, 4).Draw(t, "cpu")) * 1000
			n.Description.Memory = spec.Bytes(rapid.IntRange(0, 4).Draw(t, "memory")) << 30
			nodes = append(nodes, n)
			v.PutNode(n)
		}
		placed := map[cluster.ID][]*spec.Service{}
		for round := range rapid.IntRange(1, 4).Draw(t, "groups") {
			g := testGroup(rapid.IntRange(1, 15).Draw(t, "tasks"), func(s *spec.Service) {
				s.Resources.Reservations.CPU = spec.MilliCPU(rapid.IntRange(0, 1500).Draw(t, "reserve"))
				s.Resources.Reservations.Memory = spec.Bytes(rapid.IntRange(0, 1500).Draw(t, "reserve memory")) << 20
				s.Placement.MaxReplicasPerNode = rapid.IntRange(0, 2).Draw(t, "max")
				if rapid.Bool().Draw(t, "constrained") {
					s.Placement.Constraints = []string{"node.labels.disk == ssd"}
				}
				if rapid.Bool().Draw(t, "port") {
					s.Ports = []spec.Port{{Published: 80, Protocol: "tcp", Mode: spec.PortHost}}
				}
				if rapid.Bool().Draw(t, "spread") {
					s.Placement.Spread = []string{"node.labels.zone"}
				}
				s.Placement.Strategy = rapid.SampledFrom([]string{"", spec.StrategySpread, spec.StrategyPack}).Draw(t, "strategy")
			})
			g.Service.ID = id('s', round+1)
			for i, task := range g.Tasks {
				task.ID, task.Service = id('t', round*100+i), g.Service.ID
			}
			seed := rapid.Int64().Draw(t, "seed")
			out := Assign(v, g, rand.New(rand.NewSource(seed)))
			checkPlacements(t, nodes, placed, g, out)
			for _, task := range g.Tasks { // placing again after taking everything back gives the same
				v.RemoveTask(task.ID)
			}
			if again := Assign(v, g, rand.New(rand.NewSource(seed))); !reflect.DeepEqual(again, out) {
				t.Fatalf("equal seeds, different placements:\n%v\n%v", out, again)
			}
		}
	})
}

func checkPlacements(t *rapid.T, nodes []*cluster.Node, placed map[cluster.ID][]*spec.Service, g Group, out []Placement) {
	s := &g.Revision.Spec
	here := map[cluster.ID]int{}
	fits := func(n *cluster.Node) bool {
		var cpu spec.MilliCPU
		var memory spec.Bytes
		ports := 0
		for _, o := range append(slices.Clone(placed[n.ID]), s) {
			cpu, memory, ports = cpu+o.Resources.Reservations.CPU, memory+o.Resources.Reservations.Memory, ports+len(o.Ports)
		}
		want := s.Resources.Reservations
		return (want.CPU == 0 || cpu <= n.Description.CPU) && (want.Memory == 0 || memory <= n.Description.Memory) &&
			(len(s.Ports) == 0 || ports <= 1) && n.Availability == cluster.NodeActive &&
			(len(s.Placement.Constraints) == 0 || n.Labels["disk"] == "ssd") &&
			(s.Placement.MaxReplicasPerNode == 0 || here[n.ID] < s.Placement.MaxReplicasPerNode)
	}
	for _, p := range out {
		if p.Node.IsZero() {
			for _, n := range nodes {
				if fits(n) {
					t.Fatalf("nothing fits, it says, but %s does: %s", n.Name, Explain(p))
				}
			}
			continue
		}
		i := slices.IndexFunc(nodes, func(n *cluster.Node) bool { return n.ID == p.Node })
		if !fits(nodes[i]) {
			t.Fatalf("%s does not fit: %s", nodes[i].Name, Explain(p))
		}
		placed[p.Node] = append(placed[p.Node], s)
		here[p.Node]++
		if p.Score < 0 || p.Score > 1 {
			t.Fatalf("score %v", p.Score)
		}
	}
}

func TestSpreadIsEven(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		nodes := rapid.IntRange(3, 30).Draw(t, "nodes")
		byZone := rapid.Bool().Draw(t, "by zone")
		asked := rapid.Bool().Draw(t, "asked for")
		v := testView(nodes, func(_ int, n *cluster.Node) {
			if !byZone {
				n.Labels = nil
			}
		})
		g := testGroup(rapid.IntRange(1, 60).Draw(t, "tasks"), func(s *spec.Service) {
			if byZone && asked { // without it, the zones that all nodes are in are enough
				s.Placement.Spread = []string{"node.labels.zone"}
			}
		})
		count := map[string]int{}
		for i := 1; i <= nodes; i++ {
			count[testNode(i).Name] = 0
		}
		if byZone {
			count = map[string]int{"z0": 0, "z1": 0, "z2": 0}
		}
		for _, p := range Assign(v, g, rand.New(rand.NewSource(rapid.Int64().Draw(t, "seed")))) {
			key := p.NodeName
			if byZone {
				key = v.byID[p.Node].Labels["zone"]
			}
			count[key]++
		}
		least, most := 1<<30, 0
		for _, n := range count {
			least, most = min(least, n), max(most, n)
		}
		if most-least > 1 {
			t.Fatalf("uneven: %v", count)
		}
	})
}

// TestViewForgets checks that taking everything back leaves the view as it was.
func TestViewForgets(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		v := testView(3, nil)
		s := &spec.Service{
			Resources: spec.Resources{Reservations: spec.Reservations{CPU: 100, Memory: 1 << 20}},
			Ports:     []spec.Port{{Published: 80, Protocol: "tcp", Mode: spec.PortHost}},
		}
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			task := &cluster.Task{Meta: cluster.Meta{ID: id('t', rapid.IntRange(0, 5).Draw(t, "task"))}, Service: id('s', 1)}
			node := rapid.IntRange(0, 3).Draw(t, "node")
			if node > 0 {
				task.Node = id('n', node)
			}
			switch rapid.IntRange(0, 4).Draw(t, "what") {
			case 0:
				v.RemoveTask(task.ID)
			case 1:
				v.RemoveNode(id('n', node))
			case 2:
				v.PutNode(testNode(max(node, 1)))
			default:
				task.Observed = rapid.SampledFrom([]cluster.Observed{cluster.ObservedAssigned, cluster.ObservedRunning, cluster.ObservedFailed}).Draw(t, "observed")
				v.PutTask(task, s)
			}
		}
		for i := range 6 {
			v.RemoveTask(id('t', i))
		}
		for i := 1; i <= 3; i++ {
			v.PutNode(testNode(i))
			n := v.byID[id('n', i)]
			_, port := n.ports.Holder(cluster.HostPort{Port: 80, Protocol: "tcp"})
			if n.cpu != 0 || n.memory != 0 || n.total != 0 || len(n.services) != 0 || port || len(v.waiting) != 0 {
				t.Fatalf("left over on %s: %+v, waiting %v", n.Name, n, v.waiting)
			}
		}
	})
}

func BenchmarkAssign(b *testing.B) {
	for _, tasks := range []int{1, 100, 1000} {
		for _, spread := range []bool{false, true} {
			b.Run(fmt.Sprintf("nodes=10000/tasks=%d/spread=%v", tasks, spread), func(b *testing.B) {
				v := testView(10_000, func(_ int, n *cluster.Node) {
					if !spread {
						n.Labels = nil // nor zones
					}
				})
				g := testGroup(tasks, func(s *spec.Service) {
					s.Resources.Reservations = spec.Reservations{CPU: 100, Memory: 64 << 20}
					s.Placement.Constraints = []string{"node.platform.os == linux"}
					if spread {
						s.Placement.Spread = []string{"node.labels.zone"}
					}
				})
				r := rng()
				b.ReportAllocs()
				for b.Loop() {
					for _, p := range Assign(v, g, r) {
						if p.Node.IsZero() {
							b.Fatal(Explain(p))
						}
						v.RemoveTask(p.Task.ID)
					}
				}
				b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N*tasks), "µs/task")
			})
		}
	}
}
