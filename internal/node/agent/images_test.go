package agent

import (
	"context"
	"errors"
	"testing"
	"time"

	"baton/internal/model/cluster"
	"baton/internal/wire/agentapi"
)

func want(rev byte, since time.Time) agentapi.ImageWant {
	return agentapi.ImageWant{Revision: cluster.ID{15: rev}, Since: since, Image: "web:2"}
}

// last is what is reported of the images now.
func last(t *testing.T, l *Loop) []cluster.Prepared {
	t.Helper()
	r, _ := l.Outbox().Collect()
	if r.Prepared == nil {
		t.Fatalf("nothing is reported of the images: %+v", r)
	}
	return r.Prepared.Images
}

func TestImagesAreHadAndToldOf(t *testing.T) {
	r := &recorder{}
	l := ready(t, r)
	l.Take(agentapi.Update{Version: 2, Prepare: &agentapi.Preparation{Images: []agentapi.ImageWant{want(1, now)}}})
	l.Step(now)
	l.Step(now)
	if len(r.pulls) != 1 {
		t.Fatalf("%d pulls, want one", len(r.pulls))
	}
	l.ImagePrepared(ImageResult{Want: r.pulls[0], Err: errors.New("no route to host")}, now)
	if got := last(t, l); len(got) != 1 || got[0].Present || got[0].Rejected || got[0].Reason != "no route to host" {
		t.Errorf("told %+v", got)
	}
	if l.Step(now); len(r.pulls) != 1 {
		t.Error("tried again at once")
	}
	l.Step(now.Add(retryMin))
	l.ImagePrepared(ImageResult{Want: r.pulls[1], Err: &RejectError{Reason: "the registry does not have it"}}, now)
	if got := last(t, l); !got[0].Rejected || got[0].Reason != "the registry does not have it" {
		t.Errorf("told %+v", got)
	}
	l.Step(now.Add(retryMax)) // somebody may have pushed it
	l.ImagePrepared(ImageResult{Want: r.pulls[2]}, now)
	if got := last(t, l); !got[0].Present || got[0].Rejected || got[0].Reason != "" {
		t.Errorf("told %+v", got)
	}
	l.Outbox().Resend()
	if got := last(t, l); !got[0].Present {
		t.Errorf("a new session is told %+v", got)
	}
}

func TestImageThatNobodyWaitsForIsBrokenOff(t *testing.T) {
	r := &recorder{}
	l := ready(t, r)
	l.Take(agentapi.Update{Version: 2, Prepare: &agentapi.Preparation{Images: []agentapi.ImageWant{want(1, now)}}})
	l.Step(now)
	l.Take(agentapi.Update{Version: 3, Prepare: &agentapi.Preparation{Images: []agentapi.ImageWant{want(1, now.Add(time.Hour))}}})
	l.ImagePrepared(ImageResult{Want: r.pulls[0]}, now)
	if got := last(t, l); len(r.broken) != 1 || len(got) != 1 || got[0].Present {
		t.Errorf("broke off %d, told %+v; want the pull of the earlier rollout broken off and not counted", len(r.broken), got)
	}
	if l.Step(now); len(r.pulls) != 2 {
		t.Errorf("%d pulls, want one for each rollout", len(r.pulls))
	}
}

func TestNewCredentialsAreTriedAtOnce(t *testing.T) {
	r := &recorder{}
	l := ready(t, r)
	w := want(1, now)
	l.Take(agentapi.Update{Version: 2, Prepare: &agentapi.Preparation{Images: []agentapi.ImageWant{w}}})
	l.Step(now)
	l.ImagePrepared(ImageResult{Want: w, Err: &RejectError{Reason: "the registry denies access"}}, now)
	w.Auth = &agentapi.RegistryAuth{Host: "r", Username: "u", Password: "p"}
	l.Take(agentapi.Update{Version: 3, Prepare: &agentapi.Preparation{Images: []agentapi.ImageWant{w}}})
	if l.Step(now); len(r.pulls) != 2 || r.pulls[1].Auth == nil {
		t.Errorf("pulls %+v, want a second one with the credentials", r.pulls)
	}
}

func TestImageIsNotAskedForAgainWhenItWasForTheRollout(t *testing.T) {
	r := &recorder{}
	l := ready(t, r)
	w := want(200, now)
	l.Take(agentapi.Update{Version: 2, Prepare: &agentapi.Preparation{Images: []agentapi.ImageWant{w}}})
	l.Step(now)
	l.ImagePrepared(ImageResult{Want: w}, now)
	one, other := assigned(1, cluster.DesiredRun), assigned(2, cluster.DesiredRun)
	one.Task.Revision = w.Revision
	l.Take(agentapi.Update{Version: 3, Assignments: []agentapi.Assignment{one, other}})
	l.Step(now)
	l.Step(now)
	for _, a := range r.acts {
		if a.Refreshed != (a.Task == one.Task.ID) {
			t.Errorf("task %s: refreshed %v", a.Task.Short(), a.Refreshed)
		}
	}
	if r.count(ActStart) != 2 {
		t.Errorf("did %+v", r.acts)
	}
}

func TestCredentialsGoToTheirHostAlone(t *testing.T) {
	ctx := withAuth(context.Background(), &agentapi.RegistryAuth{Host: "r.example", Username: "u", Password: "p"})
	if a, ok := Auth(ctx, "r.example"); !ok || a.Password != "p" {
		t.Errorf("got %v, %v", a, ok)
	}
	for _, c := range []context.Context{ctx, withAuth(context.Background(), nil)} {
		if a, ok := Auth(c, "evil.example"); ok {
			t.Errorf("another host gets %v", a)
		}
	}
}
