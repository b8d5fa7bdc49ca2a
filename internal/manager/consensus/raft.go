package consensus

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
	"golang.org/x/sys/unix"

	"baton/internal/manager/store"
)

// Config says how a Raft log is run. Dir, NodeID and Store are required.
type Config struct {
	Dir    string       // made when missing
	NodeID string       // this manager's name in the log; it never changes
	Store  *store.Store // empty; everything committed is applied to it
	Logger *slog.Logger // default: none
	// Key, of KeyBytes bytes, encrypts entries and snapshots on disk and on their way to other managers, which need the same;
	// nil: everything is in clear. What was written in clear stays readable.
	Key []byte

	// Transport makes what connects the managers, anew each time that the log is opened, which closes it. The default, nil, is
	// a single voter that talks to nobody.
	Transport func() (raft.Transport, error)
	// Voters are the managers of a new cluster; default: this one alone. They count at the first start only, and must then
	// be the same on all.
	Voters []raft.Server
	// Join leaves an empty log empty: the leader of the cluster that this manager joins will fill it.
	Join bool
	// Alone says that this manager is, as far as anyone knows, its cluster's only one: elections need no patience. The first
	// other member ends that.
	Alone bool

	// Heartbeat is how long followers wait for a leader, Election how long a candidate waits for votes, Lease how long a
	// leader leads without a majority. Defaults: 500 ms, 500 ms, 250 ms; a single voter waits 50 ms for nobody.
	Heartbeat, Election, Lease time.Duration

	// A snapshot is written when SnapshotEntries (default 16,384) were committed since the last, looked at every
	// SnapshotEvery (default 1 min); TrailingEntries (default 8,192) stay in the log for followers that are slightly behind.
	SnapshotEntries, TrailingEntries uint64
	SnapshotEvery                    time.Duration

	SegmentBytes int // of one log file; default 32 MiB

	// DiskReserve is the free space, in bytes, below which writes are refused, so that the log can still be moved to a new
	// segment and be shortened. Default: two segments.
	DiskReserve uint64
	// StallMax is how long one write may take before this manager stops to lead. Default 2 s.
	StallMax time.Duration

	// DiskFault, when not nil, is called before each write of entries, which fails with its error. It is for simulations.
	DiskFault func() error

	hook func(*diskLog) // tests reach the disk through it
}

const (
	snapshotsKept = 2
	// reopenEvery is how often a log that stopped on a disk error is tried again.
	reopenEvery = 250 * time.Millisecond
	// freeSpaceEvery is how old the known free space may be.
	freeSpaceEvery = 100 * time.Millisecond
	defaultSegment = 32 << 20
	// aloneTimeout is all of raft's times for a manager that has nobody to wait for.
	aloneTimeout = 50 * time.Millisecond
)

func (c Config) withDefaults() (Config, error) {
	if c.Dir == "" || c.NodeID == "" || c.Store == nil {
		return c, errors.New("a log needs a directory, a node id and a store")
	}
	if v := c.Store.Snapshot().Version(); v != 0 {
		return c, fmt.Errorf("the store of a log must be empty, it is at version %d", v)
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	c.Alone = c.Alone || c.Transport == nil
	setDefault(&c.Heartbeat, 500*time.Millisecond)
	setDefault(&c.Election, max(500*time.Millisecond, c.Heartbeat))
	setDefault(&c.Lease, min(250*time.Millisecond, c.Heartbeat))
	setDefault(&c.SnapshotEntries, 16_384)
	setDefault(&c.TrailingEntries, 8_192)
	setDefault(&c.SnapshotEvery, time.Minute)
	setDefault(&c.SegmentBytes, defaultSegment)
	setDefault(&c.DiskReserve, uint64(2*c.SegmentBytes))
	setDefault(&c.StallMax, 2*time.Second)
	return c, nil
}

func setDefault[T comparable](v *T, to T) {
	var zero T
	if *v == zero {
		*v = to
	}
}

// Raft is the replicated log. Make one with Open.
type Raft struct {
	cfg  Config
	lock *os.File
	fsm  *machine
	free freeSpace

	queue   chan *proposal
	stop    context.CancelFunc
	stopped chan struct{} // everything has ended

	stalled atomic.Bool
	alone   atomic.Bool

	mu    sync.Mutex
	core  *core // nil while the disk is failing
	down  error // why there is none
	terms terms
}

var _ Log = (*Raft)(nil)

// Open starts the log in cfg.Dir, making it on the first start with this node as its only voter. When it is alone it
// returns when the store has everything that was ever committed, or with the context's error. The caller closes it.
func Open(ctx context.Context, cfg Config) (*Raft, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, fmt.Errorf("open log: %w", err)
	}
	vault, err := newVault(cfg.Key)
	if err != nil {
		return nil, fmt.Errorf("open log: %w", err)
	}
	lock, err := lockDir(cfg.Dir)
	if err != nil {
		return nil, fmt.Errorf("open log: %w", err)
	}
	r := &Raft{
		cfg: cfg, lock: lock, fsm: &machine{store: cfg.Store, vault: vault, log: cfg.Logger},
		queue: make(chan *proposal, QueueMax), stopped: make(chan struct{}), terms: newTerms(Term{}),
		free: freeSpace{dir: cfg.Dir, reserve: cfg.DiskReserve},
	}
	r.alone.Store(cfg.Alone)
	first, err := r.openCore()
	if err != nil {
		lock.Close()
		return nil, fmt.Errorf("open log in %s: %w", cfg.Dir, err)
	}
	life, stop := context.WithCancel(context.Background())
	r.stop, r.core = stop, first
	if r.alone.Load() && first.members() > 1 { // others were added in the moment before it ended last
		r.alone.Store(false)
		close(first.wider)
	}
	go r.run(life, first)
	if r.alone.Load() && !cfg.Join {
		if err := r.ready(ctx); err != nil {
			return nil, errors.Join(fmt.Errorf("open log in %s: %w", cfg.Dir, err), r.Close())
		}
	}
	return r, nil
}

// ready waits until a single voter has elected itself and applied its log.
func (r *Raft) ready(ctx context.Context) error {
	const poll = 5 * time.Millisecond
	tick := time.NewTicker(poll)
	defer tick.Stop()
	for {
		if err := r.fsm.failure(); err != nil {
			return err
		}
		r.mu.Lock()
		leads, down := r.terms.last.Leader, r.down
		r.mu.Unlock()
		switch {
		case leads:
			return nil
		case down != nil:
			return down
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for the first election: %w", ctx.Err())
		case <-tick.C:
		}
	}
}

// lockDir keeps a second process out: two writers would destroy the log.
func lockDir(dir string) (*os.File, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("%s is in use by another process (%w): stop that one, or choose another data directory", dir, err)
	}
	return f, nil
}

// run owns the cores, one after the other: a log that met a disk error is closed and opened again, because raft-wal
// cannot go on after a failed write.
func (r *Raft) run(ctx context.Context, c *core) {
	defer close(r.stopped)
	var watch sync.WaitGroup
	watch.Go(func() { r.watchDisk(ctx) })
	defer watch.Wait()
	for c != nil {
		cause := c.serve(ctx)
		r.mu.Lock()
		r.core, r.down = nil, cause
		r.mu.Unlock()
		r.announce() // also while it widens: until it is elected anew this manager does not lead
		if ctx.Err() != nil {
			break
		}
		if errors.Is(cause, errWider) {
			if next, err := r.openCore(); err == nil {
				r.use(next)
				c = next
				continue
			}
		}
		r.cfg.Logger.Error("the log stopped and will be opened again", "dir", r.cfg.Dir, "err", cause)
		c = r.reopen(ctx, cause)
	}
	r.refuseQueued(ErrClosed)
}

// reopen refuses what comes in until the log opens again; nil when the context ended first.
func (r *Raft) reopen(ctx context.Context, cause error) *core {
	tick := time.NewTicker(reopenEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case p := <-r.queue:
			p.refuse(cause)
			continue
		case <-tick.C:
		}
		if r.free.check() != nil {
			continue
		}
		c, err := r.openCore()
		if err != nil {
			r.cfg.Logger.Error("the log does not open", "dir", r.cfg.Dir, "err", err)
			continue
		}
		r.cfg.Logger.Info("the log is open again", "dir", r.cfg.Dir)
		r.use(c)
		return c
	}
}

// use makes an opened core the present one.
func (r *Raft) use(c *core) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.core, r.down = c, nil
}

func (r *Raft) refuseQueued(err error) {
	for {
		select {
		case p := <-r.queue:
			p.refuse(err)
		default:
			return
		}
	}
}

// Propose implements Log. Transactions proposed at the same time share entries and disk writes.
func (r *Raft) Propose(ctx context.Context, t store.Txn) (store.Version, error) {
	if err := admit(&t); err != nil {
		return 0, err
	}
	if err := r.free.check(); err != nil {
		return 0, err
	}
	return r.submit(ctx, newProposal(&t))
}

// Barrier implements Log.
func (r *Raft) Barrier(ctx context.Context) error {
	_, err := r.submit(ctx, newProposal(nil))
	if errors.Is(err, ErrUnknown) && ctx.Err() != nil {
		return ctx.Err() // there is no outcome to be unsure of
	}
	return err
}

func (r *Raft) submit(ctx context.Context, p *proposal) (store.Version, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	if r.stalled.Load() {
		return 0, fmt.Errorf("%w: a write to %s takes longer than %s: check the disk", ErrDiskStalled, r.cfg.Dir, r.cfg.StallMax)
	}
	select {
	case <-r.stopped:
		return 0, ErrClosed
	default:
	}
	select {
	case r.queue <- p:
	case <-ctx.Done():
		return 0, ctx.Err()
	case <-r.stopped:
		return 0, ErrClosed
	}
	select {
	case res := <-p.done:
		return res.version, res.err
	case <-ctx.Done():
		if p.withdraw() {
			return 0, ctx.Err()
		}
		return 0, unknown(ctx.Err())
	case <-r.stopped:
		// The answer and the end may have come together.
		select {
		case res := <-p.done:
			return res.version, res.err
		default:
		}
		if p.withdraw() {
			return 0, ErrClosed
		}
		return 0, unknown(ErrClosed)
	}
}

// Leadership implements Log.
func (r *Raft) Leadership() <-chan Term { return r.terms.ch }

// announce publishes whether this manager leads: it must have won, have applied everything before, and have a disk that
// answers.
func (r *Raft) announce() {
	r.mu.Lock()
	defer r.mu.Unlock()
	next := Term{Number: r.terms.last.Number}
	if r.core != nil {
		next = r.core.term()
	}
	if r.stalled.Load() {
		next.Leader = false
	}
	r.terms.set(next)
}

// Transfer implements Log.
func (r *Raft) Transfer(ctx context.Context, to string) error {
	r.mu.Lock()
	c, down := r.core, r.down
	r.mu.Unlock()
	if c == nil {
		return fmt.Errorf("transfer leadership: %w", down)
	}
	return c.transfer(ctx, to)
}

// Status is what there is to say about a log.
type Status struct {
	Term     Term
	Leader   string        // node id of the leader, if known
	Applied  store.Version // of the local store
	Last     uint64        // index of the last entry on disk
	Snapshot uint64        // index of the last snapshot
	Voters   []string

	DiskFree  uint64        // bytes, for the log
	LastWrite time.Duration // the time that the last write took to reach the disk
	MaxWrite  time.Duration // the longest since the start
	Writing   time.Duration // for how long the current write has been under way; zero when there is none
	Stalled   bool          // that is longer than the limit: this manager does not lead

	// Refusing says why writes are refused here, nil when they are not.
	Refusing error
}

// Status returns the current status. It reads no disk but for the free space.
func (r *Raft) Status() Status {
	s := Status{Applied: r.cfg.Store.Snapshot().Version(), Stalled: r.stalled.Load()}
	r.mu.Lock()
	c, down := r.core, r.down
	s.Term = r.terms.last
	r.mu.Unlock()
	full := r.free.check()
	s.DiskFree = r.free.bytes()
	switch {
	case r.fsm.failure() != nil:
		s.Refusing = r.fsm.failure()
	case down != nil:
		s.Refusing = down
	case full != nil:
		s.Refusing = full
	case s.Stalled:
		s.Refusing = ErrDiskStalled
	case !s.Term.Leader:
		s.Refusing = ErrNotLeader
	}
	if c != nil {
		c.status(&s)
	}
	return s
}

// Snapshot writes a snapshot of the store to disk now. It returns nil when there is nothing new.
func (r *Raft) Snapshot() error {
	r.mu.Lock()
	c, down := r.core, r.down
	r.mu.Unlock()
	if c == nil {
		return fmt.Errorf("snapshot: %w", down)
	}
	return c.snapshot()
}

// Close stops the log and waits for all its goroutines. What is proposed meanwhile is refused or unknown.
func (r *Raft) Close() error {
	r.stop()
	<-r.stopped
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.lock == nil {
		return nil
	}
	err := r.lock.Close()
	r.lock = nil
	r.down = ErrClosed
	close(r.terms.ch)
	return err
}
