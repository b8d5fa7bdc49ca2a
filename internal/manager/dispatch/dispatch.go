// Package dispatch holds the managers' side of the agents' sessions.
//
// It reads the store through one cursor, works out what each connected node must know and sends it as a full set first and
// as differences after that. What agents report it turns into transactions: statuses, removed volumes, descriptions, notes.
//
// Invariants: a node is sent only its own tasks, and secrets only with a task that uses them; Acked never runs ahead of what
// every connected node said its load balancers follow; a status that would move a task backwards is dropped.
//
// Concurrency: Run owns one goroutine that reads the cursor and fills the sessions' mailboxes, and one that writes reports.
// Sessions are used by their agents' goroutines and share only the mailbox and a queue with them. Without Run, one goroutine
// may take its turns itself (Follow, WriteReports, Session.Poll), as the simulation does.
package dispatch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net/netip"
	"slices"
	"sync"
	"time"

	"baton/internal/manager/store"
	"baton/internal/model/cluster"
	"baton/internal/wire/agentapi"
)

// Log is what dispatch needs of consensus.
type Log interface {
	Propose(ctx context.Context, t store.Txn) (store.Version, error)
}

// Opener decrypts the contents of secrets and configs.
type Opener interface {
	Open(sealed []byte, kind cluster.Kind, id cluster.ID) ([]byte, error)
}

// Config is what a dispatcher is made of; all fields but Attendant, Measured and IDs are required.
type Config struct {
	Store  *store.Store
	Log    Log
	Opener Opener
	Logger *slog.Logger
	Now    func() time.Time
	// Attendant is told who is connected; nil where Acked is asked directly, as with a single manager in a simulation.
	Attendant Attendant
	// Measured is told the load of connected nodes; it must not block. Nil: nobody wants to know.
	Measured func(node cluster.ID, m agentapi.Measures)
	// IDs gives the ids of events; nil: the system's randomness.
	IDs io.Reader
}

const (
	reportsMax  = 256 // reports waiting to be written, over all sessions; a session waits when it is full
	proposeMax  = 64  // transactions of reports under way at once
	conflictMax = 16  // tries of one report against concurrent writes

	// resumeMax is how long after a session ended the node's next one may go on from what the node knows.
	resumeMax = 5 * time.Minute
)

// ErrClosed ends a session: the agent connected anew, or the dispatcher stopped.
var ErrClosed = errors.New("session closed")

// ErrLost sends an agent to another manager.
var ErrLost = errors.New("this manager does not reach the leader")

// Dispatcher serves agents.
type Dispatcher struct {
	cfg Config

	mu       sync.Mutex
	sessions map[cluster.ID]*Session
	ended    map[cluster.ID]ended // the last one of each node, for its next one to go on from
	joined   chan struct{}        // a session was added
	acks     chan struct{}        // the acknowledged version may have grown
	reports  chan nodeReport
	stopped  chan struct{}
	lost     bool // the leader has not been reached for a while: agents are to go elsewhere

	view *view // used by Follow only
}

// ended is a session that is over.
type ended struct {
	session *Session
	at      time.Time
}

type nodeReport struct {
	session *Session
	node    cluster.ID
	report  agentapi.Report
}

// New makes a dispatcher; Run makes it work.
func New(cfg Config) *Dispatcher {
	return &Dispatcher{
		cfg:      cfg,
		sessions: make(map[cluster.ID]*Session),
		ended:    make(map[cluster.ID]ended),
		joined:   make(chan struct{}, 1),
		acks:     make(chan struct{}, 1),
		reports:  make(chan nodeReport, reportsMax),
		stopped:  make(chan struct{}),
		view:     newView(cfg.Opener, cfg.Logger),
	}
}

var _ agentapi.Connector = (*Dispatcher)(nil)

// Run works until ctx ends and then closes all sessions.
func (d *Dispatcher) Run(ctx context.Context) error {
	var writer sync.WaitGroup
	writer.Add(1)
	go func() {
		defer writer.Done()
		d.write(ctx)
	}()
	if d.cfg.Attendant != nil {
		writer.Go(func() { d.attend(ctx) })
	}
	defer writer.Wait()
	defer close(d.stopped)
	cursor := d.cfg.Store.Changes(0, Watched())
	defer cursor.Close()
	for {
		select {
		case <-ctx.Done():
			d.closeAll()
			return nil
		case <-cursor.Wait():
		case <-d.joined:
		}
		d.Follow(cursor.Collect())
	}
}

// Watched is what a cursor for Follow must see.
func Watched() store.Filter {
	return store.Filter{Kinds: []cluster.Kind{
		cluster.KindTask, cluster.KindService, cluster.KindNetwork, cluster.KindVolume, cluster.KindNode, cluster.KindSettings,
		cluster.KindAuthority, cluster.KindRegistry, cluster.KindCertificate,
	}}
}

// Follow takes what changed in the store and posts to every session what its agent does not know yet. The changes must come
// in order from one cursor, the first from the beginning.
func (d *Dispatcher) Follow(delta store.Delta) {
	d.view.merge(delta)
	for _, s := range d.connected() {
		d.view.fill(s)
		d.refuse(s, d.view.unsendable)
	}
	d.acked()
}

// refuse ends tasks that cannot be sent to their node: nobody else would ever say why they do not start.
func (d *Dispatcher) refuse(s *Session, list []cluster.Status) {
	if len(list) == 0 {
		return
	}
	for i := range list {
		list[i].At = d.cfg.Now()
	}
	select {
	case d.reports <- nodeReport{session: s, node: s.node, report: agentapi.Report{Tasks: list}}:
	default: // Follow must not wait for the writer; the node's next session tries again
		d.cfg.Logger.Warn("too many reports wait; tasks that cannot be sent are told of later", "node", s.node, "tasks", len(list))
	}
}

// Connect implements agentapi.Connector for agents of the same process. An older session of the node is closed.
func (d *Dispatcher) Connect(ctx context.Context, h agentapi.Hello) (agentapi.Session, error) {
	if err := d.admit(h); err != nil {
		return nil, err
	}
	if err := d.register(ctx, h); err != nil {
		return nil, err
	}
	s := newSession(d, h)
	d.mu.Lock()
	old := d.sessions[h.Node]
	d.mu.Unlock()
	if old.newerThan(h) { // opened while this one was written down
		return nil, errOlder(h)
	}
	if old != nil {
		old.end() // before its place is taken, so that the new one can go on from it
	}
	d.mu.Lock()
	if last, ok := d.ended[h.Node]; ok && h.Known > 0 && d.cfg.Now().Sub(last.at) < resumeMax {
		s.before, s.known = last.session, h.Known
	}
	old = d.sessions[h.Node] // one that connected in between
	if old.newerThan(h) {
		d.mu.Unlock()
		return nil, errOlder(h)
	}
	delete(d.ended, h.Node)
	d.sessions[h.Node] = s
	d.mu.Unlock()
	if old != nil {
		old.end()
	}
	notify(d.joined)
	d.acked() // the leader is to hear of it at once
	return s, nil
}

// admit refuses a session before anything is written of it: agents are to go elsewhere, or the node has a newer one.
func (d *Dispatcher) admit(h agentapi.Hello) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case d.lost:
		return ErrLost
	case d.sessions[h.Node].newerThan(h):
		return errOlder(h)
	}
	return nil
}

func errOlder(h agentapi.Hello) error {
	return fmt.Errorf("node %s has opened another session since", h.Name)
}

// register writes what the node says of itself.
func (d *Dispatcher) register(ctx context.Context, h agentapi.Hello) error {
	return d.retry(ctx, func(snap store.Snapshot) (store.Txn, error) {
		var t store.Txn
		node, ok := store.Get[*cluster.Node](snap, h.Node)
		if !ok {
			return t, fmt.Errorf("node %s (%s) is not a member of this cluster", h.Name, h.Node.Short())
		}
		if settings, ok := snap.Settings(); ok {
			if err := settings.Admit(h.Description.Level); err != nil {
				return t, err
			}
		}
		n := cluster.Copy(node)
		now := d.cfg.Now()
		if n.State != cluster.NodeReady {
			n.State, n.StateSince = cluster.NodeReady, now
			t.Put(d.event(now, "node.ready", "the node connected", func(e *cluster.Event) { e.Node = n.ID }))
		}
		if _, taken := snap.NodeByName(h.Name); h.Name != "" && !taken {
			n.Name = h.Name
		}
		describe(n, h.Description)
		t.Put(n)
		return t, nil
	})
}

// describe takes what a node says of itself. Where its port is reached tells where its mesh is, too.
func describe(n *cluster.Node, d cluster.NodeDescription) {
	n.Description = d
	if at, err := netip.ParseAddrPort(d.Listen); err == nil {
		n.Address = at.Addr()
	}
}

// Acked is the lowest version that the load balancers of every connected node follow; zero while no node is connected.
func (d *Dispatcher) Acked() cluster.Version {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.sessions) == 0 {
		return 0
	}
	low := cluster.Version(math.MaxUint64)
	for _, s := range d.sessions {
		low = min(low, s.ackedVersion())
	}
	return low
}

// Acks gives a token when Acked may have grown.
func (d *Dispatcher) Acks() <-chan struct{} { return d.acks }

func (d *Dispatcher) acked() { notify(d.acks) }

func (d *Dispatcher) connected() []*Session {
	d.mu.Lock()
	defer d.mu.Unlock()
	out := make([]*Session, 0, len(d.sessions))
	for _, s := range d.sessions {
		out = append(out, s)
	}
	slices.SortFunc(out, func(a, b *Session) int { return compareIDs(a.node, b.node) })
	return out
}

func (d *Dispatcher) closeAll() {
	for _, s := range d.connected() {
		s.end()
	}
}

// leave takes a session off the list, unless the node has a newer one.
func (d *Dispatcher) leave(s *Session) {
	d.mu.Lock()
	if d.sessions[s.node] == s {
		delete(d.sessions, s.node)
		d.ended[s.node] = ended{session: s, at: d.cfg.Now()}
	}
	d.mu.Unlock()
}

// retry proposes what build makes of the newest snapshot, again after a conflict.
func (d *Dispatcher) retry(ctx context.Context, build func(store.Snapshot) (store.Txn, error)) error {
	var err error
	for range conflictMax {
		var t store.Txn
		if t, err = build(d.cfg.Store.Snapshot()); err != nil || t.Empty() {
			return err
		}
		if _, err = d.cfg.Log.Propose(ctx, t); !errors.Is(err, store.ErrConflict) {
			return err
		}
	}
	return err
}

func notify(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

func (d *Dispatcher) event(now time.Time, kind, message string, link func(*cluster.Event)) *cluster.Event {
	e := &cluster.Event{Meta: cluster.Meta{ID: cluster.NewID(d.cfg.IDs), Created: now}, At: now, Type: kind, Message: message, Who: "node"}
	link(e)
	return e
}
