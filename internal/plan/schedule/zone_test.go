package schedule

import (
	"fmt"
	"math/rand"
	"testing"

	"pgregory.net/rapid"

	"baton/internal/model/cluster"
	"baton/internal/model/spec"
)

func TestZonesThatAreEvenShareByScore(t *testing.T) {
	v := testView(3, func(n int, node *cluster.Node) { // each in its own zone
		if n == 2 {
			node.Description.Images = []string{"web:1"}
		}
	})
	if p := Assign(v, testGroup(1, nil), rng())[0]; p.NodeName != "n2" {
		t.Errorf("placed on %s, want n2, which has the image", p.NodeName)
	}
}

// TestServicesOfOneTaskFillAllZones places services that are even in any zone, with and without a preference, reserving
// something or nothing.
func TestServicesOfOneTaskFillAllZones(t *testing.T) {
	for _, reserved := range []spec.MilliCPU{0, 100} {
		for _, keys := range [][]string{nil, {"node.labels.zone"}} {
			t.Run(fmt.Sprint(reserved, keys), func(t *testing.T) {
				v, zones := testView(6, nil), map[string]int{}
				for i := range 12 {
					g := testGroup(1, func(s *spec.Service) {
						s.Placement.Spread, s.Resources.Reservations.CPU = keys, reserved
					})
					g.Service.ID, g.Tasks[0].ID, g.Tasks[0].Service = id('s', i+1), id('t', i+1), id('s', i+1)
					zones[v.byID[Assign(v, g, rng())[0].Node].Labels["zone"]]++
				}
				for zone, n := range zones {
					if n != 4 {
						t.Errorf("%d tasks in zone %s: %v", n, zone, zones)
					}
				}
			})
		}
	}
}

func TestFailuresOfOneRevisionSayNothingOfAnother(t *testing.T) {
	v := testView(3, func(n int, node *cluster.Node) {
		node.Labels = nil
		if n == 3 {
			node.Description.Images = []string{"web:1"}
		}
	})
	g := testGroup(1, nil)
	for n := range failuresDefer {
		crash(v, g, 3, n)
	}
	if p := Assign(v, g, rng())[0]; p.NodeName == "n3" {
		t.Fatalf("placed where it failed: %s", Explain(p))
	}
	v.RemoveTask(g.Tasks[0].ID)
	other := cluster.Copy(g.Revision)
	other.ID = id('r', 2)
	g.Revision = other
	if p := Assign(v, g, rng())[0]; p.NodeName != "n3" {
		t.Errorf("placed on %s, want n3: another revision failed there", p.NodeName)
	}
}

// TestZonesDifferByAtMostOneWhileTheyHaveRoom draws clusters with little room: only a full zone may have fewer tasks.
func TestZonesDifferByAtMostOneWhileTheyHaveRoom(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		v := testView(rapid.IntRange(3, 12).Draw(t, "nodes"), func(_ int, n *cluster.Node) {
			n.Description.CPU = spec.MilliCPU(rapid.IntRange(0, 5).Draw(t, "cpu")) * 1000
		})
		asked := rapid.Bool().Draw(t, "asked for")
		g := testGroup(rapid.IntRange(1, 40).Draw(t, "tasks"), func(s *spec.Service) {
			s.Resources.Reservations.CPU = 1000
			if asked {
				s.Placement.Spread = []string{"node.labels.zone"}
			}
		})
		count := map[string]int{}
		for _, p := range Assign(v, g, rand.New(rand.NewSource(rapid.Int64().Draw(t, "seed")))) {
			if !p.Node.IsZero() {
				count[v.byID[p.Node].Labels["zone"]]++
			}
		}
		room := map[string]bool{}
		for _, n := range v.nodes {
			cpu, _ := v.Free(n.ID)
			room[n.Labels["zone"]] = room[n.Labels["zone"]] || cpu >= 1000
		}
		for small := range room {
			for large, n := range count {
				if room[small] && n-count[small] > 1 {
					t.Fatalf("zone %s has %d and room, zone %s has %d", small, count[small], large, n)
				}
			}
		}
	})
}
