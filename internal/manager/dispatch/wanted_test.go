package dispatch

import (
	"slices"
	"testing"
	"time"

	"baton/internal/manager/store"
	"baton/internal/model/cluster"
	"baton/internal/model/spec"
	"baton/internal/wire/agentapi"
)

// TestWantedReachesTheLeader checks the way of a service that somebody wants: report, presence, roster; once.
func TestWantedReachesTheLeader(t *testing.T) {
	w := newWorld(t)
	s := w.connect(1)
	for range 2 {
		if err := s.Send(t.Context(), agentapi.Report{Wanted: []cluster.ID{id('s', 1), id('s', 2)}}); err != nil {
			t.Fatal(err)
		}
	}
	select {
	case <-w.d.acks:
	default:
		t.Error("the leader is told with the next heartbeat only")
	}
	list, _ := w.d.present()
	clock := &watch{at: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)}
	r := NewRoster(clock.now)
	began := clock.at
	clock.at = clock.at.Add(time.Second)
	r.Hear("a", list)
	select {
	case <-r.Acks():
	default:
		t.Error("the leader's loop is not woken")
	}
	for n := range 2 {
		if last, since := r.Wanted(id('s', n+1)); !last.Equal(clock.at) || !since.Equal(began) {
			t.Errorf("service %d was wanted at %v, known since %v; want %v, %v", n+1, last, since, clock.at, began)
		}
	}
	if last, _ := r.Wanted(id('s', 3)); !last.IsZero() {
		t.Errorf("a service that nobody wanted was wanted at %v", last)
	}
	if list, _ = w.d.present(); len(list) != 1 || len(list[0].Wanted) > 0 {
		t.Errorf("got %+v, want nothing told twice", list)
	}
	r.Begin()
	if last, since := r.Wanted(id('s', 1)); !last.IsZero() || !since.Equal(clock.at) {
		t.Errorf("a new term knows of %v, since %v", last, since)
	}
}

// TestWantedIsBounded checks that a node cannot make a manager remember without bound.
func TestWantedIsBounded(t *testing.T) {
	w := newWorld(t)
	s := w.connect(1)
	many := make([]cluster.ID, 1000)
	for range 10 {
		if err := s.Send(t.Context(), agentapi.Report{Wanted: many}); err != nil {
			t.Fatal(err)
		}
	}
	if list, _ := w.d.present(); len(list[0].Wanted) > wantedMax {
		t.Errorf("%d services are remembered", len(list[0].Wanted))
	}
}

// TestNodesHearWhatToHold checks that nodes hold for services that may rest, and not for those that somebody scaled by hand.
func TestNodesHearWhatToHold(t *testing.T) {
	w := newWorld(t)
	change := func(n, least int, byHand bool) {
		w.put(&cluster.Revision{
			Meta: cluster.Meta{ID: id('r', n)}, Service: id('s', 1), Number: n,
			Spec: spec.Service{Name: "web", Autoscale: &spec.Autoscale{Min: least, Max: 3, Hold: spec.ScaleHold{Wait: time.Second, Requests: 7}}},
		})
		svc, _ := store.Get[*cluster.Service](w.st.Snapshot(), id('s', 1))
		svc = cluster.Copy(svc)
		svc.Revision, svc.Scaled = id('r', n), byHand
		w.put(svc)
		w.follow()
	}
	change(2, 0, false)
	s := w.connect(1)
	var got []bool
	look := func() {
		if u, _ := s.Poll(); u.Network != nil {
			svc := u.Network.Services[0]
			got = append(got, svc.Holds && svc.HoldWait == time.Second && svc.HoldRequests == 7)
		}
	}
	look()
	change(3, 0, true)
	look()
	change(4, 0, false)
	look()
	change(5, 1, false)
	look()
	if want := []bool{true, false, true, false}; !slices.Equal(got, want) {
		t.Errorf("it is held: %v, want %v", got, want)
	}
}
