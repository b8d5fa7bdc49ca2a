package server

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"baton/client/api"
	"baton/internal/manager/identity"
	"baton/internal/manager/store"
	"baton/internal/model/cluster"
)

func TestLockShowsItsKeyOnce(t *testing.T) {
	h := newHarness(t)
	var txn store.Txn
	txn.Put(&cluster.Settings{Meta: cluster.Meta{ID: cluster.SettingsID}, Name: "test"})
	if _, err := h.log.Propose(t.Context(), txn); err != nil {
		t.Fatal(err)
	}
	code, body := h.do(http.MethodPost, "/v1/cluster/lock", api.LockRequest{})
	var got api.LockResult
	if err := json.Unmarshal([]byte(body), &got); err != nil || code != http.StatusOK || !got.Locked {
		t.Fatalf("lock: %d %s", code, body)
	}
	key, err := identity.ParseUnlock(got.Key)
	if err != nil {
		t.Fatal(err)
	}
	settings, _ := h.st.Snapshot().Settings()
	sealer, err := identity.NewSealer(bytes.Repeat([]byte{1}, 32))
	if err != nil {
		t.Fatal(err)
	}
	if stored, err := sealer.Open(settings.Unlock, cluster.KindSettings, cluster.SettingsID); err != nil || !bytes.Equal(stored, key) {
		t.Errorf("the key that managers lock with is another one: %v", err)
	}
	for _, ask := range []struct {
		method, path string
		body         any
		code         int
	}{
		{http.MethodPost, "/v1/cluster/lock", api.LockRequest{}, http.StatusConflict},
		{http.MethodGet, "/v1/cluster", nil, http.StatusOK},
		{http.MethodGet, "/v1/events", nil, http.StatusOK},
		{http.MethodPost, "/v1/cluster/unlock", api.UnlockRequest{Key: got.Key}, http.StatusConflict},
		{http.MethodPost, "/v1/cluster/lock", api.LockRequest{Off: true}, http.StatusOK},
		{http.MethodPost, "/v1/cluster/lock", api.LockRequest{Off: true}, http.StatusOK},
	} {
		if code, body := h.do(ask.method, ask.path, ask.body); code != ask.code || strings.Contains(body, got.Key) {
			t.Errorf("%s %s: %d %s, want %d and no key", ask.method, ask.path, code, body, ask.code)
		}
	}
	if settings, _ := h.st.Snapshot().Settings(); len(settings.Unlock) > 0 {
		t.Error("the lock was not taken off")
	}
	if strings.Contains(h.logs.String(), got.Key) {
		t.Error("the key is in the log")
	}
}

func TestLockedManagerAnswersTheKeyOnly(t *testing.T) {
	h := LockedHandler(func(key string) error {
		if key != "right" {
			return fmt.Errorf("checked: %w", identity.ErrUnlockKey)
		}
		return nil
	})
	for _, ask := range []struct {
		method, path, body string
		code               int
		says               string
	}{
		{http.MethodGet, "/v1/nodes", "", http.StatusServiceUnavailable, "baton cluster unlock"},
		{http.MethodGet, "/v1/cluster/unlock", "", http.StatusServiceUnavailable, "locked"},
		{http.MethodPost, "/v1/cluster/unlock", "{", http.StatusUnprocessableEntity, "cannot be read"},
		{http.MethodPost, "/v1/cluster/unlock", `{"key":"wrong"}`, http.StatusUnprocessableEntity, "not the unlock key"},
		{http.MethodPost, "/v1/cluster/unlock", `{"key":"right"}`, http.StatusOK, "{}"},
	} {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(ask.method, ask.path, strings.NewReader(ask.body)))
		if w.Code != ask.code || !strings.Contains(w.Body.String(), ask.says) || strings.Contains(w.Body.String(), "wrong") {
			t.Errorf("%s %s %s: %d %s, want %d and %q", ask.method, ask.path, ask.body, w.Code, w.Body, ask.code, ask.says)
		}
	}
}

func TestBackupIsNotWrittenInClearUnasked(t *testing.T) {
	h := newHarness(t)
	for _, req := range []api.BackupRequest{{}, {Recipients: []string{"age1x"}}, {Recipients: make([]string, recipientsMax+1)}, {Unencrypted: true, Recipients: []string{"age1x"}}} {
		if code, body := h.do(http.MethodPost, "/v1/cluster/backup", req); code != http.StatusBadRequest && code != http.StatusUnprocessableEntity {
			t.Errorf("%+v: %d %s", req, code, body)
		}
	}
	if code, _ := h.do(http.MethodPost, "/v1/cluster/backup", api.BackupRequest{Unencrypted: true}); code == http.StatusOK {
		t.Error("a server without a cluster gave a backup")
	}
}
