package server

import (
	"context"
	"net/http"
	"strconv"
	"time"

	"baton/client/api"
	"baton/internal/manager/consensus"
	"baton/internal/manager/store"
)

// versionWait is how long a request waits for this manager's store to have what its client has seen elsewhere: longer than an
// election takes, after which a follower catches up in milliseconds.
const versionWait = 5 * time.Second

// current waits until the store has what the client has seen already, on whichever manager that was: a client never reads
// what is older than what it has read or written before.
func (s *Server) current(r *http.Request) *api.Error {
	text := r.Header.Get(api.HeaderVersionMin)
	if text == "" {
		return nil
	}
	least, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		return api.Errorf(api.CodeInvalid, "the header %s is not a number", api.HeaderVersionMin).
			WithMend("send the highest %s that was answered, or leave it out", api.HeaderVersion)
	}
	ctx, cancel := context.WithTimeout(r.Context(), versionWait)
	defer cancel()
	stop := context.AfterFunc(s.closing, cancel)
	defer stop()
	if consensus.Await(ctx, s.cfg.Store, store.Version(least)) == nil {
		return nil
	}
	return api.Errorf(api.CodeUnavailable, "this manager is behind: its state is at version %d, the client has seen %d", s.cfg.Store.Snapshot().Version(), least).
		WithMend("ask another manager; look with `baton node ls` whether this one reaches the others; if the cluster was restored from a backup, start the client anew")
}

// stamp tells the client the version of the store, which is at least that of what it is answered.
func (r *recorder) stamp() {
	if !r.wrote && r.version != nil {
		r.Header().Set(api.HeaderVersion, strconv.FormatUint(uint64(r.version()), 10))
	}
}
