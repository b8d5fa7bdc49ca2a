package dispatch

import (
	"slices"
	"testing"
	"time"

	"baton/internal/manager/consensus"
	"baton/internal/manager/store"
	"baton/internal/model/cluster"
	"baton/internal/wire/agentapi"
)

// standIn is what node 1 made in the place of task 1.
func standIn() agentapi.StandIn {
	return agentapi.StandIn{
		For:      cluster.Status{Task: id('t', 1), Observed: cluster.ObservedFailed, Reason: "exited with code 3", Exit: &cluster.Exit{Code: 3}, At: start},
		Created:  start.Add(time.Hour), // its clock is off
		Failures: 2,
		Status:   cluster.Status{Task: id('t', 9), Observed: cluster.ObservedRunning, Ready: true, Started: start, At: start},
	}
}

func TestStandInIsTakenOver(t *testing.T) {
	w := newWorld(t)
	svc, _ := store.Get[*cluster.Service](w.st.Snapshot(), id('s', 1))
	svc = cluster.Copy(svc)
	svc.Replicas = 1
	w.put(w.task(1, 1), svc)
	s := w.connect(1)
	s.Poll()
	refusals := 2
	w.log.SetFault(func(*store.Txn) consensus.Fault { // others write first
		if refusals--; refusals >= 0 {
			return consensus.Fault{Refuse: store.ErrConflict}
		}
		return consensus.Fault{}
	})
	for range 2 { // the second time because the node did not hear of the first
		w.report(s, agentapi.Report{StandIns: []agentapi.StandIn{standIn()}})
	}
	old, heir := w.stored(1), w.stored(9)
	if old.Observed != cluster.ObservedFailed || old.Exit == nil || old.Exit.Code != 3 {
		t.Errorf("the task that ended is %+v", old)
	}
	if heir.Replaces != old.ID || heir.Slot != 1 || heir.Failures != 2 || heir.Address != old.Address || heir.Node != old.Node || !heir.Endpoint() ||
		heir.Created.After(start) || !heir.Created.After(old.Created) {
		t.Errorf("the stand-in is %+v, want it in the place of %+v", heir, old)
	}
	w.follow()
	u, _ := s.Poll()
	if !slices.ContainsFunc(u.Assignments, func(a agentapi.Assignment) bool { return a.Task.ID == heir.ID }) || len(u.Removed) != 0 {
		t.Errorf("the node is told %+v, want the stand-in as an assignment", u)
	}
}

func TestStandInIsRefusedWhenItsPlaceIsNotItsNodes(t *testing.T) {
	for name, change := range map[string]func(w *world, task *cluster.Task, svc *cluster.Service){
		"given up":        func(_ *world, task *cluster.Task, _ *cluster.Service) { task.Observed = cluster.ObservedLost },
		"told to go":      func(_ *world, task *cluster.Task, _ *cluster.Service) { task.Desired = cluster.DesiredDrain },
		"of another node": func(_ *world, task *cluster.Task, _ *cluster.Service) { task.Node = id('n', 2) },
		"scaled down":     func(_ *world, _ *cluster.Task, svc *cluster.Service) { svc.Replicas = 0 },
		"service goes":    func(_ *world, _ *cluster.Task, svc *cluster.Service) { svc.Removing = true },
		"another has it": func(w *world, _ *cluster.Task, _ *cluster.Service) {
			other := w.task(2, 2)
			other.Slot = 1
			w.put(other)
		},
		"not known at all": nil,
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			svc, _ := store.Get[*cluster.Service](w.st.Snapshot(), id('s', 1))
			svc, task := cluster.Copy(svc), w.task(1, 1)
			svc.Replicas = 1
			if change != nil {
				change(w, task, svc)
				w.put(task, svc)
			}
			s := w.connect(1)
			s.Poll()
			w.report(s, agentapi.Report{StandIns: []agentapi.StandIn{standIn()}})
			w.follow()
			if u, _ := s.Poll(); !slices.Contains(u.Removed, id('t', 9)) {
				t.Errorf("the node is told %+v, want it to remove its stand-in", u)
			}
			if _, ok := store.Get[*cluster.Task](w.st.Snapshot(), id('t', 9)); ok {
				t.Error("the stand-in is stored")
			}
		})
	}
}

func (w *world) reconnect(node int, known cluster.Version) *Session {
	w.t.Helper()
	s, err := w.d.Connect(w.t.Context(), agentapi.Hello{Node: id('n', node), Known: known})
	if err != nil {
		w.t.Fatal(err)
	}
	w.follow()
	return s.(*Session)
}

func TestSessionGoesOnFromWhatTheAgentKnows(t *testing.T) {
	w := newWorld(t)
	w.put(w.task(1, 1))
	s := w.connect(1)
	u, _ := s.Poll()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	gone := w.stored(1)
	gone.Desired = cluster.DesiredStop
	w.put(gone, w.task(2, 1))
	s = w.reconnect(1, u.Version)
	v, ok := s.Poll()
	if !ok || v.Full || len(v.Assignments) != 2 || v.Node != nil {
		t.Fatalf("got %+v, want only what changed meanwhile", v)
	}
	if got := w.d.Acked(); got != 0 {
		t.Errorf("acknowledged %d before the agent said anything", got)
	}
	w.report(s, agentapi.Report{Applied: v.Version})
	if got := w.d.Acked(); got < v.Version {
		t.Errorf("acknowledged %d, want %d", got, v.Version)
	}
	// Nothing new: an update comes all the same, so that the agent knows that it is connected.
	_ = s.Close()
	s = w.reconnect(1, v.Version)
	if u, ok := s.Poll(); !ok || u.Full || len(u.Assignments) != 0 || u.Network != nil {
		t.Errorf("got %+v, %v, want an empty update", u, ok)
	}
}

func TestSessionStartsOverWhenAnUpdateIsMissing(t *testing.T) {
	for name, c := range map[string]struct {
		unread bool
		known  func(cluster.Version) cluster.Version
		later  time.Duration
	}{
		"an update was not read":         {unread: true, known: func(v cluster.Version) cluster.Version { return v }},
		"the agent took an older one":    {known: func(v cluster.Version) cluster.Version { return v - 1 }},
		"the agent knows nothing":        {known: func(cluster.Version) cluster.Version { return 0 }},
		"the last session was long past": {known: func(v cluster.Version) cluster.Version { return v }, later: resumeMax},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			now := start
			w.d.cfg.Now = func() time.Time { return now }
			w.put(w.task(1, 1))
			s := w.connect(1)
			u, _ := s.Poll()
			if c.unread {
				w.put(w.task(2, 1))
				w.follow()
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			now = now.Add(c.later)
			s = w.reconnect(1, c.known(u.Version))
			if u, _ := s.Poll(); !u.Full || len(u.Assignments) == 0 || u.Network == nil {
				t.Errorf("got %+v, want everything", u)
			}
		})
	}
}
