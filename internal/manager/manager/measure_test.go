package manager

import (
	"testing"
	"time"

	"baton/internal/manager/measure"
	"baton/internal/model/cluster"
	"baton/internal/wire/agentapi"
)

func keeper() *measure.Keeper {
	return measure.New(measure.Config{
		Task: func(cluster.ID) (measure.Task, bool) { return measure.Task{}, false }, Service: func(cluster.ID) bool { return true },
		Nodes: func() []cluster.ID { return nil },
	})
}

// What waits for managers that are out of reach is bounded, and it is the older reports that go.
func TestSharedMeasuresAreBounded(t *testing.T) {
	m := &Manager{}
	m.load.keeper = keeper()
	big := agentapi.Measures{Use: &agentapi.NodeUse{Tasks: make([]agentapi.TaskUse, 999)}}
	for i := range 3 * weightMax / 1000 {
		big.At = time.Unix(int64(i), 0)
		m.measured(cluster.ID{1}, big)
	}
	list := m.load.take()
	if len(list) != weightMax/1000 || !list[len(list)-1].Measures.At.Equal(big.At) {
		t.Errorf("%d reports wait, the newest of %v", len(list), list[len(list)-1].Measures.At)
	}
	for range sharedMax + 5 {
		m.measured(cluster.ID{1}, agentapi.Measures{})
	}
	if list := m.load.take(); len(list) != sharedMax || m.load.weight != 0 || len(m.load.take()) != 0 {
		t.Errorf("%d reports wait", len(list))
	}
}

// Messages are neither empty nor too large, and have everything in its order.
func TestPartsOfMeasures(t *testing.T) {
	var list []nodeMeasures
	for i := range 300 {
		n := (i * 7919) % 500
		if i == 100 {
			n = 3 * messageWeight // alone too large
		}
		list = append(list, nodeMeasures{Node: cluster.ID{byte(i >> 8), byte(i)}, Measures: agentapi.Measures{Requests: make([]agentapi.RequestMeasure, n)}})
	}
	next := 0
	for part := range parts(list) {
		sum := 0
		for _, n := range part {
			if n.Node != list[next].Node {
				t.Fatalf("%d comes out of order", next)
			}
			next++
			sum += weight(n.Measures)
		}
		if len(part) == 0 || len(part) > 1 && sum > messageWeight {
			t.Errorf("a message of %d reports, weight %d", len(part), sum)
		}
	}
	if next != len(list) {
		t.Errorf("%d of %d reports", next, len(list))
	}
	if _, err := (&Manager{}).hearMeasures(t.Context(), measuresIn{make([]nodeMeasures, sharedMax+1)}); err == nil {
		t.Error("a message without bound is taken")
	}
}
