package agent

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"reflect"
	"slices"
	"time"

	"baton/internal/model/cluster"
	"baton/internal/wire/agentapi"
)

// imageKey names one wish for an image: each rollout has its own.
type imageKey struct {
	revision cluster.ID
	since    int64
}

func keyOf(w agentapi.ImageWant) imageKey { return imageKey{w.Revision, w.Since.UnixNano()} }

// wantedImage is an image that the node is to have before a rollout stops anything on it.
type wantedImage struct {
	want    agentapi.ImageWant
	have    cluster.Prepared
	cancel  func() // of the pull under way; nil: none
	tries   int
	retryAt time.Time
}

// takeImages makes the list what the node is to have. Pulls of what nobody waits for any more are broken off.
func (l *Loop) takeImages(list []agentapi.ImageWant) {
	old := l.images
	l.images = make(map[imageKey]*wantedImage, len(list))
	for _, w := range list {
		k := keyOf(w)
		im := old[k]
		if im == nil {
			im = &wantedImage{have: cluster.Prepared{Revision: w.Revision, Since: w.Since}}
		} else if !reflect.DeepEqual(im.want.Auth, w.Auth) {
			im.retryAt = time.Time{} // credentials may be what was missing
		}
		im.want = w
		l.images[k] = im
		delete(old, k)
	}
	for _, im := range old {
		if im.cancel != nil {
			im.cancel()
		}
	}
	l.tellImages()
}

// sortedImages lists the wanted images in a fixed order.
func (l *Loop) sortedImages() []*wantedImage {
	out := make([]*wantedImage, 0, len(l.images))
	for _, im := range l.images {
		out = append(out, im)
	}
	slices.SortFunc(out, func(a, b *wantedImage) int {
		return cmp.Or(bytes.Compare(a.want.Revision[:], b.want.Revision[:]), a.want.Since.Compare(b.want.Since))
	})
	return out
}

// getImages begins the pulls that are due and returns the time to the next one.
func (l *Loop) getImages(now time.Time) time.Duration {
	next := observeEvery
	for _, im := range l.sortedImages() {
		switch {
		case im.have.Present || im.cancel != nil:
		case now.Before(im.retryAt):
			next = min(next, im.retryAt.Sub(now))
		default:
			im.cancel = l.hands.Prepare(im.want)
		}
	}
	return next
}

// ImagePrepared takes the end of a pull.
func (l *Loop) ImagePrepared(r ImageResult, now time.Time) {
	im := l.images[keyOf(r.Want)]
	if im == nil || im.cancel == nil {
		return // nobody waits for it any more
	}
	im.cancel = nil
	var reject *RejectError
	switch {
	case r.Err == nil:
		im.have.Present, im.have.Rejected, im.have.Reason = true, false, ""
	default:
		im.tries++
		im.retryAt = now.Add(min(retryMin<<min(im.tries-1, 6), retryMax))
		im.have.Reason = r.Err.Error()
		if im.have.Rejected = errors.As(r.Err, &reject); im.have.Rejected {
			im.have.Reason = reject.Reason
			im.retryAt = now.Add(retryMax) // somebody may push it
		}
		l.log.Warn("an image that a rollout waits for could not be pulled", "image", im.want.Image, "try", im.tries, "err", r.Err)
	}
	l.tellImages()
}

// tellImages reports how every wanted image is.
func (l *Loop) tellImages() {
	list := make([]cluster.Prepared, 0, len(l.images))
	for _, im := range l.sortedImages() {
		list = append(list, im.have)
	}
	l.outbox.prepared(list)
}

// refreshed reports whether the image of a revision was asked for anew for the rollout that goes on: to do so again, with its
// predecessor stopped, would be the outage that preparing avoids.
func (l *Loop) refreshed(revision cluster.ID) bool {
	for _, im := range l.images {
		if im.want.Revision == revision && im.have.Present {
			return true
		}
	}
	return false
}

// ImageResult ends a pull that was begun by Hands.Prepare.
type ImageResult struct {
	Want agentapi.ImageWant
	Err  error
}

// Prepare implements Hands.
func (w *workers) Prepare(want agentapi.ImageWant) func() {
	ctx, cancel := context.WithCancel(w.ctx)
	w.agent.spawn(func() {
		defer cancel()
		err := w.agent.cfg.Executor.Pull(withAuth(ctx, want.Auth), want.Image, want.Policy)
		tell(w.ctx, w.agent.prepared, ImageResult{Want: want, Err: err})
	})
	return cancel
}

// authKey is the key of a context's registry credentials.
type authKey struct{}

// withAuth gives credentials to what is pulled with the context, and to nothing else.
func withAuth(ctx context.Context, a *agentapi.RegistryAuth) context.Context {
	if a == nil {
		return ctx
	}
	return context.WithValue(ctx, authKey{}, *a)
}

// Auth finds the credentials for a registry host that came with what is being pulled.
func Auth(ctx context.Context, host string) (agentapi.RegistryAuth, bool) {
	a, ok := ctx.Value(authKey{}).(agentapi.RegistryAuth)
	return a, ok && a.Host == host
}
