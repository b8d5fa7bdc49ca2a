package schedule

import (
	"cmp"
	"fmt"
	"math/rand"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"baton/internal/model/cluster"
	"baton/internal/model/spec"
)

// running puts the placed tasks of a group into the view and returns the group with them.
func running(v *View, g Group, out []Placement) Group {
	g.Tasks = nil
	for _, p := range out {
		if p.Node.IsZero() {
			v.RemoveTask(p.Task.ID)
			continue
		}
		t := cluster.Copy(p.Task)
		t.Node, t.Observed, t.Ready, t.ReadySince = p.Node, cluster.ObservedRunning, true, now
		v.PutTask(t, &g.Revision.Spec)
		g.Tasks = append(g.Tasks, t)
	}
	return g
}

// uneven is what moves must lower, part by part: the squares of tasks per service and zone, per service and node, and the
// loads of the nodes from the fullest on.
func uneven(v *View, groups []Group) (out []float64) {
	zones, nodes := 0, 0
	var loads []float64
	for _, g := range groups {
		by := map[string]int{}
		for _, n := range v.nodes {
			c := n.services[g.Service.ID]
			nodes += c * c
			by[n.Labels["zone"]] += c
		}
		for _, c := range by {
			zones += c * c
		}
	}
	for _, n := range v.nodes {
		loads = append(loads, n.load())
	}
	slices.SortFunc(loads, func(a, b float64) int { return cmp.Compare(b, a) })
	return append([]float64{float64(zones), float64(nodes)}, loads...)
}

func moveTo(v *View, groups []Group, m Move) {
	for i, g := range groups {
		if g.Service.ID != m.Service.ID {
			continue
		}
		groups[i].Tasks = slices.Clone(g.Tasks)
		for j, t := range g.Tasks {
			if t.ID == m.Task.ID {
				c := cluster.Copy(t)
				c.Node = m.To
				groups[i].Tasks[j] = c
				v.PutTask(c, &g.Revision.Spec)
			}
		}
	}
}

// TestRebalanceKeepsItsPromises fills a few nodes, adds others, and follows the moves to their end.
func TestRebalanceKeepsItsPromises(t *testing.T) {
	limits := RebalanceLimits{PerService: 1, Cluster: 3, Steady: time.Minute}
	rapid.Check(t, func(t *rapid.T) {
		v := testView(0, nil)
		var all []*cluster.Node
		add := func(n int) {
			for range n {
				node := testNode(len(all) + 1)
				node.Labels["disk"] = rapid.SampledFrom([]string{"ssd", "hdd"}).Draw(t, "disk")
				node.StateSince = now.Add(-time.Duration(rapid.IntRange(0, 2).Draw(t, "ready for")) * time.Minute)
				all = append(all, node)
				v.PutNode(node)
			}
		}
		add(rapid.IntRange(1, 4).Draw(t, "nodes"))
		var groups []Group
		for i := range rapid.IntRange(1, 5).Draw(t, "services") {
			g := testGroup(rapid.IntRange(0, 10).Draw(t, "tasks"), func(s *spec.Service) {
				s.Resources.Reservations.CPU = spec.MilliCPU(rapid.IntRange(0, 1500).Draw(t, "cpu"))
				s.Placement.MaxReplicasPerNode = rapid.IntRange(0, 3).Draw(t, "max")
				if rapid.Bool().Draw(t, "constrained") {
					s.Placement.Constraints = []string{"node.labels.disk == ssd"}
				}
				if rapid.Bool().Draw(t, "port") {
					s.Ports = []spec.Port{{Published: 80, Protocol: "tcp", Mode: spec.PortHost}}
				}
			})
			g.Service.ID = id('s', i+1)
			for j, task := range g.Tasks {
				task.ID, task.Service = id('t', i*100+j), g.Service.ID
			}
			groups = append(groups, running(v, g, Assign(v, g, rand.New(rand.NewSource(rapid.Int64().Draw(t, "seed"))))))
		}
		add(rapid.IntRange(0, 4).Draw(t, "new nodes"))
		for round := 0; ; round++ {
			was := uneven(v, groups)
			moves := Rebalance(v, groups, limits)
			if got := uneven(v, groups); !reflect.DeepEqual(was, got) {
				t.Fatalf("planning changed the view: %v, %v", was, got)
			}
			if len(moves) == 0 {
				break
			}
			if round > 300 || len(moves) > limits.Cluster {
				t.Fatalf("round %d: %d moves", round, len(moves))
			}
			seen := map[cluster.ID]bool{}
			for _, m := range moves {
				if seen[m.Service.ID] {
					t.Fatalf("two moves in one service: %+v", moves)
				}
				seen[m.Service.ID] = true
				i := slices.IndexFunc(groups, func(g Group) bool { return g.Service.ID == m.Service.ID })
				need, to := newNeed(v, groups[i]), v.byID[m.To]
				if r, refused := need.refuse(to); refused { // start-first: the older task is still where it was
					t.Fatalf("%s cannot take it: %s", to.Name, r)
				}
				if now.Sub(to.StateSince) < limits.Steady {
					t.Fatalf("%s is ready since %s only", to.Name, to.StateSince)
				}
				moveTo(v, groups, m)
				if got := uneven(v, groups); slices.Compare(got, was) >= 0 {
					t.Fatalf("not better: %v, then %v: %s", was, got, m.Reason)
				} else {
					was = got
				}
			}
		}
	})
}

func TestRebalanceFillsANewNode(t *testing.T) {
	v := testView(2, func(_ int, n *cluster.Node) { n.Labels = nil })
	g := running(v, testGroup(6, nil), Assign(v, testGroup(6, nil), rng()))
	young := testNode(3)
	young.Labels, young.StateSince = nil, now.Add(-30*time.Second)
	v.PutNode(young)
	limits := RebalanceLimits{PerService: 1, Cluster: 3, Steady: time.Minute}
	if moves := Rebalance(v, []Group{g}, limits); len(moves) != 0 {
		t.Fatalf("moved to a node that came half a minute ago: %+v", moves)
	}
	g.Now = now.Add(time.Minute)
	groups, reason := []Group{g}, ""
	for range 2 {
		moves := Rebalance(v, groups, limits)
		if len(moves) != 1 || moves[0].To != young.ID {
			t.Fatalf("moves %+v, want one to n3", moves)
		}
		reason = cmp.Or(reason, moves[0].Reason)
		moveTo(v, groups, moves[0])
	}
	if moves := Rebalance(v, groups, limits); len(moves) != 0 {
		t.Errorf("two each, and still %s", moves[0].Reason)
	}
	if !strings.HasSuffix(reason, "has 3 tasks of the service, n3 has 0") {
		t.Errorf("reason %q", reason)
	}
}

// crash lets a task of a service fail on a node.
func crash(v *View, g Group, node, n int) {
	task := &cluster.Task{Meta: cluster.Meta{ID: id('f', n)}, Service: g.Service.ID, Revision: g.Revision.ID, Node: id('n', node), Observed: cluster.ObservedFailed, Ended: now}
	v.PutTask(task, &g.Revision.Spec) // a new leader sees it only once it has ended
	v.PutTask(task, &g.Revision.Spec)
}

func TestNodeWhereSeveralServicesFailIsAvoided(t *testing.T) {
	v := testView(3, func(_ int, n *cluster.Node) { n.Labels = nil })
	for n := range 2 * suspectFailures {
		g := testGroup(0, nil)
		g.Service.ID = id('s', 10+n%suspectServices)
		crash(v, g, 2, n)
	}
	out := Assign(v, testGroup(9, nil), rng()) // of a service that has not failed yet
	for _, p := range out {
		if p.NodeName == "n2" {
			t.Fatalf("placed on %s", Explain(p))
		}
	}
	if got, want := Explain(out[0]), "n2 is avoided: tasks of 2 services failed there in the last 5 minutes, more often than anywhere else"; !strings.HasSuffix(got, want) {
		t.Errorf("it says %q, want %q at the end", got, want)
	}
	if got := v.Suspects(now.Add(2 * failureWindow)); len(got) != 0 {
		t.Errorf("still avoided when that is long ago: %v", got)
	}
}

// TestServicesThatCrashEverywhereSpeakAgainstNoNode draws failures; one service's, or equally many everywhere, prove nothing.
func TestServicesThatCrashEverywhereSpeakAgainstNoNode(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		nodes := rapid.IntRange(2, 6).Draw(t, "nodes")
		v, n := testView(nodes, nil), 0
		for s := range rapid.IntRange(0, 4).Draw(t, "services that crash everywhere") {
			g := testGroup(0, nil)
			g.Service.ID = id('s', 10+s)
			for range rapid.IntRange(1, failuresMax).Draw(t, "times") {
				for node := range nodes {
					crash(v, g, node+1, n)
					n++
				}
			}
		}
		for range rapid.IntRange(0, 20).Draw(t, "failures of one") {
			crash(v, testGroup(0, nil), rapid.IntRange(1, nodes).Draw(t, "node"), n)
			n++
		}
		if got := v.Suspects(now); len(got) != 0 {
			t.Fatalf("avoided: %v", got)
		}
	})
}

func TestZoneOfOneFailingNodeIsNoReasonToGoThere(t *testing.T) {
	v := testView(3, nil) // each in its own zone
	for n := range failuresDefer {
		crash(v, testGroup(0, nil), 1, n)
	}
	for _, p := range Assign(v, testGroup(4, nil), rng()) {
		if p.NodeName == "n1" {
			t.Fatalf("placed where it fails, to be even: %s", Explain(p))
		}
	}
}

func TestPreparedNodeComesFirst(t *testing.T) {
	for _, full := range []bool{false, true} {
		t.Run(fmt.Sprint("full=", full), func(t *testing.T) {
			v := testView(4, func(n int, node *cluster.Node) {
				node.Labels = nil
				if n == 3 && full {
					node.Availability = cluster.NodePause
				}
				if n != 3 {
					node.Description.Images = []string{"web:1"} // scores more
				}
			})
			g := testGroup(3, nil)
			g.Prefer = map[cluster.ID]cluster.ID{g.Tasks[1].ID: id('n', 3)}
			out := Assign(v, g, rng())
			if got := out[1].NodeName == "n3"; got == full || out[1].Node.IsZero() {
				t.Errorf("placed on %q", out[1].NodeName)
			}
			if out[0].NodeName == out[2].NodeName {
				t.Errorf("both others on %s", out[0].NodeName)
			}
		})
	}
}
