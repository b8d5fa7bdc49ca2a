package server

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"baton/internal/manager/store"
	"baton/internal/model/cluster"
)

func TestUnknownNamesItsList(t *testing.T) {
	for kind, want := range map[string]string{
		"volume": "`baton volume ls`", "secret": "`baton secret ls`", "config": "`baton cfg ls`", "image": "`baton image ls`",
		"node": "`baton node ls`", "stack": "`baton ls --stacks`", "service": "`baton ls`",
	} {
		if got := (resolver{}).unknown(kind, "nosuch", nil).Mend; !strings.Contains(got, want) {
			t.Errorf("%s: the mend is %q, want %s in it", kind, got, want)
		}
	}
}

// Between two attempts of a crash loop a slot has no live task: the list shows the one that failed last, and no older ones.
func TestTasksOfEmptySlots(t *testing.T) {
	h := newHarness(t)
	id := func(n byte) (id cluster.ID) { id[15] = n; return id }
	at := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	svc := &cluster.Service{Meta: cluster.Meta{ID: id(2)}, Stack: id(1), StackName: "shop", Name: "web", Replicas: 2}
	svc.Status.Desired = 2
	task := func(n byte, slot int, o cluster.Observed, ended time.Duration) *cluster.Task {
		return &cluster.Task{Meta: cluster.Meta{ID: id(n)}, Stack: id(1), Service: id(2), Slot: slot, Observed: o, Desired: cluster.DesiredRun, Ended: at.Add(ended)}
	}
	var txn store.Txn
	for _, o := range []cluster.Object{
		&cluster.Stack{Meta: cluster.Meta{ID: id(1)}, Name: "shop"}, svc,
		task(11, 1, cluster.ObservedFailed, 1), task(12, 1, cluster.ObservedFailed, 2), // the slot is empty
		task(21, 2, cluster.ObservedFailed, 3), task(22, 2, cluster.ObservedRunning, 0), // the slot is taken
		task(31, 3, cluster.ObservedFailed, 4), // the slot is not wanted any more
	} {
		txn.Put(o)
	}
	if _, err := h.log.Propose(context.Background(), txn); err != nil {
		t.Fatal(err)
	}
	list, err := h.srv.listTasks("shop", "web", false)
	if err != nil {
		t.Fatal(err)
	}
	var got []cluster.ID
	for _, x := range list {
		got = append(got, x.ID)
	}
	if want := []cluster.ID{id(12), id(22)}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}
