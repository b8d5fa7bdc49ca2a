package edgeproc

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"baton/internal/model/cluster"
	"baton/internal/wire/agentapi"
)

// Config is what baton's side of the edge is made of; all but Failed, Restarted and Wake is required.
type Config struct {
	Dir     string // of the control sockets, on tmpfs; it is made
	Program string // the executable
	// Listen opens the port on which the rules are served, ListenTLS the one on which those with TLS are.
	Listen, ListenTLS func(ctx context.Context) (net.Listener, error)
	// Failed is told when the port cannot be opened or no process started, once until it can again.
	Failed func(error)
	// Restarted is told why another process had to take the place of one that served.
	Restarted func(reason string)
	// Wake is told that requests wait for a service that rests, again and again while they do. It must not block; may be nil.
	Wake func(service cluster.ID)
	Log  *slog.Logger

	answer time.Duration // the wait for a process' answer; zero: answerMax
}

// Edge is baton's way to the process.
type Edge struct {
	cfg     Config
	changed chan struct{} // there is something for Run to do
	adopted chan struct{} // closed once the processes of an earlier baton are known
	over    chan struct{} // closed when Run ends

	mu       sync.Mutex
	want     *table // nil until the first Apply
	seq      uint64 // of want
	done     uint64 // every process follows this one or a newer one
	progress chan struct{}
	peers    []*peer
}

// New makes an edge; Run brings it to life.
func New(cfg Config) *Edge {
	cfg.answer = cmp.Or(cfg.answer, answerMax)
	return &Edge{
		cfg: cfg, changed: make(chan struct{}, 1), adopted: make(chan struct{}), over: make(chan struct{}),
		progress: make(chan struct{}),
	}
}

var errOver = errors.New("the edge is not looked after any more: baton stops")

// Apply makes new requests follow s, and returns once they do in every process.
func (e *Edge) Apply(ctx context.Context, s agentapi.NetworkState) error {
	t := newTable(s)
	e.mu.Lock()
	e.seq++
	e.want = &t
	mine := e.seq
	e.mu.Unlock()
	e.look()
	for {
		e.mu.Lock()
		done, progress := e.done, e.progress
		e.mu.Unlock()
		if done >= mine {
			return nil
		}
		select {
		case <-progress:
		case <-e.over:
			return errOver
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Connections counts the requests that all processes have with the tasks of an address.
func (e *Edge) Connections(ctx context.Context, address netip.Addr) (sum int, err error) {
	err = e.each(ctx, func(p *peer) error {
		n := 0
		if err := p.call(ctx, callConnections, address, &n); err != nil {
			return err
		}
		sum += n
		return nil
	})
	return sum, err
}

// Measures are what all processes have counted; an error says that not all of them told it.
func (e *Edge) Measures(ctx context.Context) ([]agentapi.RequestMeasure, error) {
	var all []agentapi.RequestMeasure
	err := e.each(ctx, func(p *peer) error {
		var own []agentapi.RequestMeasure
		if err := p.call(ctx, callMeasures, nil, &own); err != nil {
			return err
		}
		all = append(all, own...)
		return nil
	})
	return all, err
}

// each calls ask for every process, once those of an earlier baton are known.
func (e *Edge) each(ctx context.Context, ask func(*peer) error) error {
	select {
	case <-e.adopted:
	case <-e.over:
		return errOver
	case <-ctx.Done():
		return ctx.Err()
	}
	e.mu.Lock()
	peers := slices.Clone(e.peers)
	e.mu.Unlock()
	for _, p := range peers {
		switch err := ask(p); {
		case errors.Is(err, errEnded) && !isClosed(e.over): // and its requests with it
		case err != nil:
			return fmt.Errorf("ask the edge: %w", err)
		}
	}
	return nil
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// look lets Run look at what there is to do.
func (e *Edge) look() {
	select {
	case e.changed <- struct{}{}:
	default:
	}
}

// Run looks after the processes until ctx ends; they serve on then.
func (e *Edge) Run(ctx context.Context) {
	k := &keeper{Edge: e, sockets: make(map[string]*os.File)}
	defer close(e.over)
	defer k.letGo()
	if err := k.adopt(ctx); err != nil {
		// Without its directory no process can be started: that is said when there is a rule.
		e.cfg.Log.Warn("the edge that runs cannot be looked for", "err", err)
	}
	close(e.adopted)
	for ctx.Err() == nil {
		k.step(ctx)
		var again <-chan time.Time
		if k.wait > 0 {
			again = time.After(k.wait)
		}
		select {
		case <-ctx.Done():
		case <-e.changed:
		case <-again:
		}
	}
}

// watch lets Run look when a process ends.
func (e *Edge) watch(p *peer) {
	e.mu.Lock()
	e.peers = append(e.peers, p)
	e.mu.Unlock()
	go func() { // it ends with the connection, which Run ends at the latest
		<-p.ended
		e.look()
	}()
}

// adopt finds the processes that an earlier baton left, and takes back their listeners.
func (k *keeper) adopt(ctx context.Context) error {
	if err := os.MkdirAll(filepath.Join(k.cfg.Dir, emptyDir), 0o755); err != nil {
		return err
	}
	if err := os.Chmod(k.cfg.Dir, 0o700); err != nil {
		return err
	}
	socks, err := filepath.Glob(filepath.Join(k.cfg.Dir, "*.sock"))
	if err != nil {
		return err
	}
	slices.Sort(socks) // the oldest first
	for _, path := range socks {
		id := strings.TrimSuffix(filepath.Base(path), ".sock")
		p, files, err := dialPeer(ctx, k.cfg, id)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil { // it has ended, or it is in no state to serve
			k.cfg.Log.Info("an edge is gone", "id", id, "err", err)
			if err := kill(k.cfg.Dir, id); err != nil {
				return err
			}
			removeFiles(k.cfg.Dir, id)
			continue
		}
		ports := p.hello.ports()
		for i, f := range files {
			if i < len(ports) && k.sockets[ports[i]] == nil {
				k.sockets[ports[i]] = f
			} else {
				_ = f.Close() // the same socket, while one process takes over from another
			}
		}
		k.cfg.Log.Info("an edge serves already", "pid", p.hello.PID, "build", p.hello.Program, "leaving", p.leaving)
		k.watch(p)
	}
	return nil
}
