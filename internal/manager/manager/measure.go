package manager

import (
	"context"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"baton/internal/manager/control"
	"baton/internal/manager/measure"
	"baton/internal/manager/store"
	"baton/internal/model/cluster"
	"baton/internal/wire/agentapi"
)

// callMeasures tells a manager the load of nodes that are connected to another one. Every manager is told all, so that each
// can show it, and a new leader knows what the old one knew. A manager of an older version refuses the call, and knows only
// of its own nodes.
const callMeasures = "Measures"

type (
	measuresIn struct {
		Nodes []nodeMeasures `json:"nodes"`
	}
	nodeMeasures struct {
		Node     cluster.ID        `json:"node"`
		Measures agentapi.Measures `json:"measures"`
	}
)

const (
	shareEvery = time.Second     // between two messages to the other managers
	shareMax   = 2 * time.Second // for one
	// sharedMax and weightMax bound what waits for the other managers: reports, and series and tasks in them, of which each takes some 100
	// bytes. More is dropped, the older first: counts are cumulative, so the next report has it all.
	sharedMax = 20_000
	weightMax = 200_000
	// messageWeight bounds one message: a few megabytes.
	messageWeight = 20_000
	forgetEvery   = 30 * time.Second
)

// load is what a manager knows of the cluster's load.
type load struct {
	keeper *measure.Keeper

	mu     sync.Mutex
	shared []nodeMeasures // that the other managers are yet to be told
	weight int
}

func (m *Manager) newLoad() {
	m.load.keeper = measure.New(measure.Config{
		Task: func(id cluster.ID) (measure.Task, bool) {
			snap := m.store.Snapshot()
			t, ok := store.Get[*cluster.Task](snap, id)
			if !ok || t.Observed.Terminal() {
				return measure.Task{}, false
			}
			out := measure.Task{Service: t.Service, Node: t.Node, Ready: t.Ready}
			if rev, ok := store.Get[*cluster.Revision](snap, t.Revision); ok {
				out.CPU = rev.Spec.Resources.Reservations.CPU
			}
			return out, true
		},
		Service: func(id cluster.ID) bool {
			_, ok := store.Get[*cluster.Service](m.store.Snapshot(), id)
			return ok
		},
		Nodes: func() (out []cluster.ID) {
			for n := range store.All[*cluster.Node](m.store.Snapshot()) {
				if n.State == cluster.NodeReady && !n.Witness {
					out = append(out, n.ID)
				}
			}
			return out
		},
	})
}

// loads tells the autoscaler of the load, as far back as it is known in full.
type loads struct{ keeper *measure.Keeper }

// Window implements control.Measures.
func (k loads) Window(service cluster.ID, from, to time.Time) control.Load {
	l := k.keeper.Window(service, from.Add(-measure.Lag), to.Add(-measure.Lag))
	out := control.Load{
		Span: l.To.Sub(l.From), Counts: int(l.Samples), Weights: l.Tasks, Requests: float64(l.Requests), InFlight: l.InFlight,
		CPUUsed: l.CPUTask, Memory: float64(l.Memory), Missing: l.Missing,
	}
	if l.Requests > 0 {
		out.P95 = l.Quantile(0.95)
	}
	return out
}

// Measures is what this manager knows of the cluster's load.
func (m *Manager) Measures() *measure.Keeper { return m.load.keeper }

// measured takes the report of a node that is connected here.
func (m *Manager) measured(id cluster.ID, r agentapi.Measures) {
	m.load.keeper.Take(id, r, time.Now())
	l := &m.load
	l.mu.Lock()
	defer l.mu.Unlock()
	l.shared = append(l.shared, nodeMeasures{id, r})
	l.weight += weight(r)
	for len(l.shared) > sharedMax || l.weight > weightMax {
		l.weight -= weight(l.shared[0].Measures)
		l.shared = l.shared[1:]
	}
}

func weight(r agentapi.Measures) int {
	n := 1 + len(r.Requests)
	if r.Use != nil {
		n += len(r.Use.Tasks)
	}
	return n
}

func (l *load) take() []nodeMeasures {
	l.mu.Lock()
	defer l.mu.Unlock()
	list := l.shared
	l.shared, l.weight = nil, 0
	return list
}

// shareMeasures passes on what the nodes that are connected here report, and forgets what is gone, until ctx ends.
func (m *Manager) shareMeasures(ctx context.Context) {
	share, forget := time.NewTicker(shareEvery), time.NewTicker(forgetEvery)
	defer share.Stop()
	defer forget.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-forget.C:
			snap := m.store.Snapshot()
			m.load.keeper.Forget(func(id cluster.ID) bool {
				_, ok := store.Get[*cluster.Node](snap, id)
				return ok
			}, time.Now())
		case <-share.C:
			m.share(ctx, m.load.take())
		}
	}
}

// share tells all other managers at once, so that one that is slow holds up nobody but the next message.
func (m *Manager) share(ctx context.Context, list []nodeMeasures) {
	if len(list) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, shareMax)
	defer cancel()
	var all sync.WaitGroup
	for n := range store.All[*cluster.Node](m.store.Snapshot()) {
		if !n.Manager || n.ID == m.cfg.NodeID || n.Witness {
			continue
		}
		all.Go(func() {
			for part := range parts(list) {
				if _, _, err := call[agentapi.Empty](ctx, m.peers, n.ID.String(), callMeasures, measuresIn{part}); err != nil {
					m.cfg.Logger.Debug("a manager was not told of the load", "manager", n.Name, "err", err)
					return
				}
			}
		})
	}
	all.Wait()
}

// parts cuts a list into messages.
func parts(list []nodeMeasures) func(yield func([]nodeMeasures) bool) {
	return func(yield func([]nodeMeasures) bool) {
		for len(list) > 0 {
			n, sum := 0, 0
			for n < len(list) && (n == 0 || sum+weight(list[n].Measures) <= messageWeight) {
				sum += weight(list[n].Measures)
				n++
			}
			if !yield(slices.Clip(list[:n])) {
				return
			}
			list = list[n:]
		}
	}
}

// hearMeasures takes what another manager passes on.
func (m *Manager) hearMeasures(_ context.Context, in measuresIn) (agentapi.Empty, error) {
	if len(in.Nodes) > sharedMax {
		return agentapi.Empty{}, status.Error(codes.InvalidArgument, "too many reports in one message")
	}
	now := time.Now()
	for _, n := range in.Nodes {
		m.load.keeper.Take(n.Node, n.Measures, now)
	}
	return agentapi.Empty{}, nil
}

// watchFailures counts the tasks that fail, by service. Those that had failed before this manager knew of them do not count.
func (m *Manager) watchFailures(ctx context.Context) {
	cursor := m.store.Changes(0, store.Filter{Kinds: []cluster.Kind{cluster.KindTask}})
	defer cursor.Close()
	failed := make(map[cluster.ID]bool)
	began := time.Now()
	for {
		select {
		case <-ctx.Done():
			return
		case <-cursor.Wait():
		}
		d := cursor.Collect()
		if d.Full {
			clear(failed)
		}
		for _, o := range d.Changed {
			t := o.(*cluster.Task)
			bad := t.Observed == cluster.ObservedFailed || t.Observed == cluster.ObservedRejected || t.Observed == cluster.ObservedLost
			if !bad || failed[t.ID] {
				continue
			}
			failed[t.ID] = true
			// A full set says nothing of when, and a manager that starts catches up with what happened before.
			if !d.Full && !t.Ended.Before(began) {
				m.load.keeper.Ended(t.Service)
			}
		}
		for _, o := range d.Deleted {
			delete(failed, o.ID)
		}
	}
}
