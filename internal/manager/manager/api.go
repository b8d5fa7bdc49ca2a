package manager

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"time"

	"golang.org/x/sync/errgroup"

	"baton/client/api"
	"baton/internal/manager/recovery"
	"baton/internal/wire/transport"
)

// ServeLocal answers the public API on the local socket, where whoever may open it may use it, until Run ends.
func (m *Manager) ServeLocal(l net.Listener) error { return served(m.local.Serve(l)) }

// backup writes the state as it is here now, with the sealing key, in clear.
func (m *Manager) backup(w io.Writer) error {
	snap := m.store.Snapshot()
	return recovery.Write(w, recovery.Manifest{
		Cluster: recovery.ClusterName(snap), Created: time.Now().UTC(), Node: m.cfg.NodeName, Version: m.cfg.Version,
	}, m.sealer.Key(), snap)
}

const (
	// catchUpMax is how long after its start a manager lets callers wait until it has what the others have. Without a majority of
	// managers it never does, and shows what it has.
	catchUpMax   = 5 * time.Second
	catchUpPause = 50 * time.Millisecond
)

// catchUp closes caught once the store has everything that was committed before the start.
func (m *Manager) catchUp(ctx context.Context) {
	defer close(m.caught)
	ctx, cancel := context.WithTimeout(ctx, catchUpMax)
	defer cancel()
	for m.log.Barrier(ctx) != nil {
		select {
		case <-ctx.Done():
			return
		case <-time.After(catchUpPause):
		}
	}
}

// caughtUp lets requests wait while the store is behind: a manager that has just started would say that there is nothing.
func (m *Manager) caughtUp(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		select {
		case <-m.caught:
			next.ServeHTTP(w, r)
		case <-r.Context().Done():
		}
	})
}

func served(err error) error {
	if errors.Is(err, http.ErrServerClosed) || errors.Is(err, net.ErrClosed) {
		return nil
	}
	return fmt.Errorf("API: %w", err)
}

// serveAPI answers the public API on the port, where callers must show who they are, and ends it everywhere with ctx.
func (m *Manager) serveAPI(ctx context.Context, g *errgroup.Group) {
	remote := m.httpServer(authenticated(m.caughtUp(m.api.Handler())))
	g.Go(func() error { return served(remote.Serve(m.part(ctx, transport.ProtocolAPI))) })
	g.Go(func() error {
		<-ctx.Done()
		m.api.Close()
		end, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownMax)
		defer cancel()
		var errs error
		for _, s := range []*http.Server{m.local, remote} {
			if s.Shutdown(end) != nil {
				errs = errors.Join(errs, s.Close()) // somebody reads too slowly
			}
		}
		return errs
	})
}

func (m *Manager) httpServer(h http.Handler) *http.Server {
	return &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second, ErrorLog: slog.NewLogLogger(m.cfg.Logger.Handler(), slog.LevelDebug)}
}

// authenticated lets callers with an administrator's certificate pass. A node's certificate gives no right to the API.
func authenticated(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.TLS != nil && len(r.TLS.VerifiedChains) > 0 {
			if units := r.TLS.VerifiedChains[0][0].Subject.OrganizationalUnit; len(units) == 1 && units[0] == transport.RoleAdmin {
				next.ServeHTTP(w, r)
				return
			}
		}
		e := api.Errorf(api.CodeUnauthorized, "this address answers only callers with a certificate of this cluster").
			WithMend("make one on a manager with `baton context export`, or use the manager's local socket")
		w.Header().Set("Content-Type", e.ContentType(""))
		w.WriteHeader(e.Status)
		_ = json.NewEncoder(w).Encode(e) // a caller that is gone needs no answer
	})
}
