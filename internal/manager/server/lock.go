package server

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"time"

	"baton/client/api"
	"baton/internal/manager/identity"
	"baton/internal/manager/store"
	"baton/internal/model/cluster"
	"baton/internal/seal"
)

// The path of the one thing that a locked manager does.
const unlockPath = "/v1/cluster/unlock"

func (s *Server) lockRoutes() {
	handle(s, operation{method: http.MethodPost, path: "/v1/cluster/lock", id: "lockCluster", summary: "Lock the sealing key on every manager's disk, or take the lock off", tag: "cluster"},
		func(ctx context.Context, in *struct{ Body api.LockRequest }) (api.LockResult, error) {
			return s.lock(ctx, in.Body)
		})
	handle(s, operation{method: http.MethodPost, path: unlockPath, id: "unlockManager", summary: "Let a locked manager open its state; on its local socket only", tag: "cluster"},
		func(context.Context, *struct{ Body api.UnlockRequest }) (done, error) {
			return done{}, api.Errorf(api.CodeConflict, "this manager is not locked").WithMend("a manager of a locked cluster asks for the key when it starts")
		})
}

// lock makes a new unlock key and shows it this once, or takes the lock off.
func (s *Server) lock(ctx context.Context, req api.LockRequest) (api.LockResult, error) {
	var key, sealed []byte
	if !req.Off {
		key = make([]byte, seal.KeySize)
		_, err := rand.Read(key)
		if err == nil {
			sealed, err = s.cfg.Sealer.Seal(key, cluster.KindSettings, cluster.SettingsID)
		}
		if err != nil {
			return api.LockResult{}, err
		}
	}
	tried := false
	err := s.retry(ctx, func(snap store.Snapshot, now time.Time) (store.Txn, error) {
		var txn store.Txn
		settings, ok := snap.Settings()
		switch {
		case !ok:
			return txn, api.Errorf(api.CodeUnsupported, "this server keeps no cluster")
		case tried && string(settings.Unlock) == string(sealed): // an earlier try did it
			return txn, nil
		case !req.Off && len(settings.Unlock) > 0:
			return txn, api.Errorf(api.CodeConflict, "the cluster is locked already").WithMend("for a new unlock key, take the lock off first: `baton cluster lock --off`")
		case req.Off && len(settings.Unlock) == 0:
			return txn, nil
		}
		tried = true
		c := cluster.Copy(settings)
		c.Unlock = sealed
		txn.Put(c)
		said := "the cluster was locked: managers that start need the unlock key"
		if req.Off {
			said = "the lock was taken off: managers start by themselves"
		}
		s.event(&txn, now, "cluster.lock", said, func(*cluster.Event) {})
		return txn, nil
	}, func(store.Version) {})
	if err != nil || req.Off {
		return api.LockResult{}, err
	}
	return api.LockResult{Locked: true, Key: identity.UnlockText(key)}, nil
}

// LockedHandler is the API of a manager that is locked: it takes the unlock key, and refuses everything else. unlock gets the
// key's text; identity.ErrUnlockKey says that it is not the one.
func LockedHandler(unlock func(key string) error) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) {
		writeError(w, api.Errorf(api.CodeUnavailable, "%s", identity.ErrLocked).WithMend("`baton cluster unlock` on this machine; containers keep running meanwhile"))
	})
	mux.HandleFunc("POST "+unlockPath, func(w http.ResponseWriter, r *http.Request) {
		var in api.UnlockRequest
		if err := json.NewDecoder(io.LimitReader(r.Body, 4<<10)).Decode(&in); err != nil {
			writeError(w, api.Errorf(api.CodeInvalid, "the request cannot be read").WithMend("see /v1/openapi.json of a manager that runs"))
			return
		}
		switch err := unlock(in.Key); {
		case errors.Is(err, identity.ErrUnlockKey):
			writeError(w, api.Errorf(api.CodeInvalid, "%s", err).At("key").WithMend("give the key that `baton cluster lock` printed"))
		case err != nil:
			writeError(w, api.Errorf(api.CodeInternal, "%s", err))
		default:
			writeJSON(w, struct{}{})
		}
	})
	return mux
}
