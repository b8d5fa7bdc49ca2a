package agent

import (
	"slices"
	"testing"
	"time"

	"baton/internal/model/cluster"
	"baton/internal/wire/agentapi"
)

// What forgotten tasks left is swept at the start and once a day, and never what a task left that somebody remembers.
func TestSweepsKeepWhatIsRemembered(t *testing.T) {
	r := &recorder{}
	ended := assigned(1, cluster.DesiredStop)
	ended.Task.Observed = cluster.ObservedFailed
	l := ready(t, r, ended)
	keeps := func(w NetworkWork) bool { return slices.Equal(w.Keep, []cluster.ID{{15: 1}}) }
	if w := r.network[0]; w.Config == nil || !w.Sweep || !keeps(w) {
		t.Errorf("the first work is %+v, want a configuration with a sweep that keeps the ended task", w)
	}
	for i, c := range []struct {
		at   time.Time
		want bool
	}{{now.Add(time.Hour), false}, {now.Add(sweepEvery), true}, {now.Add(sweepEvery + time.Hour), false}} {
		l.NetworkDone(NetworkResult{}, c.at)
		l.Take(agentapi.Update{Version: cluster.Version(i + 2), Network: &agentapi.NetworkState{}})
		l.Step(c.at)
		w := r.network[len(r.network)-1]
		if w.State == nil || w.Sweep != c.want || c.want && !keeps(w) {
			t.Errorf("%s after the start: %+v, want a sweep: %v", c.at.Sub(now), w, c.want)
		}
	}
}
