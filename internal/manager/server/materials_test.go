package server

import (
	"errors"
	"testing"
	"time"

	"baton/client/api"
	"baton/internal/manager/store"
	"baton/internal/model/cluster"
)

// A deployment that takes a version as it found it is not written once the history let go of that version: its revision would
// point at nothing.
func TestDeploymentChecksTheVersionsItFound(t *testing.T) {
	h := newHarness(t)
	want := stack("shop")
	if code, body := h.do("PUT", "/v1/stacks/shop", api.UpRequest{Stack: want}); code != 200 {
		t.Fatalf("%d %s", code, body)
	}
	want.Services[0].Image = "web:2" // a new revision with the same secret
	for _, gone := range []bool{false, true} {
		p, err := h.srv.prepare(h.st.Snapshot(), api.UpRequest{Stack: want}, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		if gone {
			var txn store.Txn
			for secret := range store.All[*cluster.Secret](h.st.Snapshot()) {
				txn.Delete(secret)
			}
			if _, err := h.log.Propose(t.Context(), txn); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := h.log.Propose(t.Context(), p.txn); errors.Is(err, store.ErrConflict) != gone || err != nil != gone {
			t.Errorf("the secret is gone: %v; the deployment was answered with %v", gone, err)
		}
		want.Services[0].Image = "web:3"
	}
}
