package node

import (
	"context"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"baton/internal/model/cluster"
	"baton/internal/wire/agentapi"
)

const (
	wokenEvery = 100 * time.Millisecond // look at what came for services that rest, while there are such
	usedEvery  = 2 * time.Second        // look at the connections to the tasks of services that may rest
	wantEvery  = time.Second            // tell the managers of one service
)

// connections is what the wakener needs of the node's network.
type connections interface {
	Woken() ([]cluster.ID, error)
	Used(addresses []netip.Addr) (map[netip.Addr]bool, error)
}

// wakener tells the managers which services that may rest are wanted here: those that connections came for, and those whose tasks
// here have connections. What the edge tells goes the same way. A connection counts on the node of its task, so that there is one that
// knows of it whichever node it came by.
type wakener struct {
	self    cluster.ID
	network connections
	tell    func(service cluster.ID) // must not block
	log     *slog.Logger

	mu    sync.Mutex
	tasks map[netip.Addr]cluster.ID // address of a task here : its service, which may rest
	told  map[cluster.ID]time.Time
	said  string // the last error
}

// follow takes a new network state.
func (w *wakener) follow(s agentapi.NetworkState) {
	tasks := make(map[netip.Addr]cluster.ID)
	for i := range s.Services {
		svc := &s.Services[i]
		if !svc.Holds {
			continue
		}
		for _, e := range svc.Endpoints {
			if e.Node == w.self {
				tasks[e.Address] = svc.ID
			}
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.tasks = tasks
}

// want tells of one service, once a second at most.
func (w *wakener) want(service cluster.ID) {
	now := time.Now()
	w.mu.Lock()
	news := now.Sub(w.told[service]) >= wantEvery
	if news {
		if w.told == nil || len(w.told) > 4096 {
			w.told = make(map[cluster.ID]time.Time)
		}
		w.told[service] = now
	}
	w.mu.Unlock()
	if news {
		w.tell(service)
	}
}

// run looks until ctx ends.
func (w *wakener) run(ctx context.Context) {
	woken, used := time.NewTicker(wokenEvery), time.NewTicker(usedEvery)
	defer woken.Stop()
	defer used.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-woken.C:
			list, err := w.network.Woken()
			w.failed(err)
			for _, id := range list {
				w.want(id)
			}
		case <-used.C:
			w.failed(w.look())
		}
	}
}

// look finds the services whose tasks here are used.
func (w *wakener) look() error {
	w.mu.Lock()
	tasks := w.tasks
	w.mu.Unlock()
	if len(tasks) == 0 {
		return nil
	}
	addresses := make([]netip.Addr, 0, len(tasks))
	for a := range tasks {
		addresses = append(addresses, a)
	}
	used, err := w.network.Used(addresses)
	for a := range used {
		w.want(tasks[a])
	}
	if err != nil { // what is not known may be in use
		for _, id := range tasks {
			w.want(id)
		}
	}
	return err
}

// failed logs an error unless it was the last one too.
func (w *wakener) failed(err error) {
	if err != nil && err.Error() != w.said {
		w.said = err.Error()
		w.log.Warn("cannot see who wants services that rest", "err", err)
	}
}
