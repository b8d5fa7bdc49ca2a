package cluster

import (
	"slices"
	"strings"
	"testing"
)

func TestLevelsAdmit(t *testing.T) {
	for _, try := range []struct {
		settings *Settings
		known    Level
		ok       bool
	}{
		{nil, 0, true},
		{&Settings{}, 0, true},          // both of the first version
		{&Settings{Level: 2}, 0, false}, // a node of the first version
		{&Settings{Level: 2}, 1, false},
		{&Settings{Level: 2}, 2, true},
		{&Settings{Level: 2}, 3, true}, // a node that is ahead waits for the others
	} {
		err := try.settings.Admit(try.known)
		if (err == nil) != try.ok {
			t.Errorf("%+v admits a node that knows %d: %v, want %v", try.settings, try.known, err, try.ok)
		}
		if err != nil && !strings.Contains(err.Error(), "install the version") {
			t.Errorf("the refusal does not tell the mend: %v", err)
		}
	}
}

func TestBehindIsSortedAndLeavesOutWhoKnows(t *testing.T) {
	node := func(name string, l Level) *Node {
		return &Node{Name: name, Description: NodeDescription{Level: l}}
	}
	nodes := []*Node{node("c", 1), node("b", 2), node("a", 0), node("d", 3)}
	var names []string
	for _, n := range Behind(slices.Values(nodes), 2) {
		names = append(names, n.Name)
	}
	if !slices.Equal(names, []string{"a", "c"}) {
		t.Errorf("behind level 2 are %v, want a and c", names)
	}
}
