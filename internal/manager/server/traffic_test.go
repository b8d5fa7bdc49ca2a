package server

import (
	"strings"
	"testing"
	"time"

	"baton/client/api"
	"baton/internal/manager/store"
	"baton/internal/model/cluster"
	"baton/internal/model/spec"
)

// A manager of an older version would let a rollout go on without a look at its requests.
func TestGatesNeedTheirLevel(t *testing.T) {
	for level, ok := range map[cluster.Level]bool{cluster.LevelAutoscale: false, cluster.LevelTraffic: true} {
		h := newHarness(t)
		h.at(t, level)
		s := stack("shop")
		s.Services[0].Ingress = []spec.Ingress{{Path: "/", Port: 80}}
		s.Services[0].Update.Gates.ErrorRate = 0.01
		_, err := h.srv.up(t.Context(), api.UpRequest{Stack: s})
		if ok != (err == nil) || err != nil && !strings.Contains(err.Error(), "services.web.x-rollout.gates needs feature level 5") {
			t.Errorf("at level %d: got %v", level, err)
		}
	}
}

// While a release goes on its numbers are those of now; once it is counted they are what was written.
func TestReleaseTellsItsTraffic(t *testing.T) {
	h := measuredHarness(t)
	h.at(t, cluster.LevelTraffic)
	now := time.Now()
	meta := func(n byte) cluster.Meta { return cluster.Meta{ID: cluster.ID{n}, Created: now.Add(-time.Minute)} }
	ruled := spec.Service{Name: "web", Ingress: []spec.Ingress{{Path: "/", Port: 80}}}
	var txn store.Txn
	for _, o := range []cluster.Object{
		&cluster.Revision{Meta: meta(20), Service: cluster.ID{4}, Number: 1, Spec: ruled},
		&cluster.Revision{Meta: meta(21), Service: cluster.ID{4}, Number: 2, Spec: ruled},
		&cluster.Release{Meta: meta(22), Stack: cluster.ID{3}, Number: 1, Services: map[string]cluster.ID{"web": {20}}, State: cluster.ReleaseComplete, Ended: now.Add(-time.Minute)},
		&cluster.Release{Meta: meta(23), Stack: cluster.ID{3}, Number: 2, Services: map[string]cluster.ID{"web": {21}}, State: cluster.ReleaseDeploying},
		&cluster.Release{Meta: meta(24), Stack: cluster.ID{3}, Number: 3, Services: map[string]cluster.ID{"web": {20}}, State: cluster.ReleaseComplete, Ended: now,
			Traffic: &cluster.Traffic{Services: []string{"web"}, Requested: cluster.Requested{Requests: 40, Unreached: 4}}},
	} {
		txn.Put(o)
	}
	if _, err := h.log.Propose(t.Context(), txn); err != nil {
		t.Fatal(err)
	}
	for number, want := range map[int]struct {
		requests, failed uint64
		counting         bool
	}{2: {9, 1, true}, 3: {40, 4, false}} {
		rel, err := h.srv.getRelease("shop", number)
		if err != nil {
			t.Fatal(err)
		}
		if n := rel.Traffic; n == nil || n.Requests != want.requests || n.Failed != want.failed || n.Counting != want.counting || n.Text == "" {
			t.Errorf("release %d: traffic %+v, want %+v", number, n, want)
		}
	}
	if rel, _ := h.srv.getRelease("shop", 1); rel.Traffic != nil {
		t.Errorf("the first release: %+v", rel.Traffic)
	}
}
