package agent

import (
	"testing"

	"baton/internal/model/cluster"
)

// Being woken for what was looked at already is no reason to look at everything.
func TestLooksAreTakenOnce(t *testing.T) {
	a := New(Config{})
	one := cluster.ID{15: 1}
	a.look(one)
	if of, due := a.takeDue(false); !due || len(of) != 1 || of[0] != one {
		t.Errorf("due: %t, %v; want task 1 alone", due, of)
	}
	if of, due := a.takeDue(false); due {
		t.Errorf("taken again: %v", of)
	}
	a.look(one)
	a.look()
	if of, due := a.takeDue(false); !due || len(of) != 0 {
		t.Errorf("due: %t, %v; want all tasks", due, of)
	}
	if of, due := a.takeDue(true); !due || len(of) != 0 {
		t.Errorf("from time to time: %t, %v; want all tasks", due, of)
	}
}
