package consensus

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	wal "github.com/hashicorp/raft-wal"
	"github.com/hashicorp/raft-wal/metadb"
	"golang.org/x/sync/semaphore"

	"baton/internal/manager/store"
)

const (
	walDir      = "wal"
	snapshotDir = "snapshots"
	// appendMax is how many entries raft writes or sends at once.
	appendMax = 1024
	// entriesInFlightMax is how many entries wait for the disk. While they do, the queue fills, and the next entry takes all of
	// it: the slower the disk, the larger the entries.
	entriesInFlightMax = 8
)

// core is one opened log: raft and its files, from opening to closing.
type core struct {
	owner *Raft
	raft  *raft.Raft
	wal   *wal.WAL
	meta  *metadb.BoltMetaDB
	disk  *diskLog
	room  *semaphore.Weighted // bytes on their way to disk
	sent  chan *group
	wider chan struct{} // closed when others join a manager that was alone

	mu     sync.Mutex
	caught uint64 // the term in which everything before it was applied here
}

// group is the proposals that share one entry, or one barrier.
type group struct {
	proposals []*proposal
	apply     raft.ApplyFuture // nil for a barrier
	barrier   raft.Future
	weight    int64
}

func (r *Raft) openCore() (*core, error) {
	cfg := r.cfg
	log := newHCLog(cfg.Logger)
	if err := os.MkdirAll(filepath.Join(cfg.Dir, walDir), 0o700); err != nil {
		return nil, diskError(cfg.Dir, err)
	}
	if err := dropUnfinished(filepath.Join(cfg.Dir, snapshotDir)); err != nil {
		return nil, diskError(cfg.Dir, err)
	}
	snaps, err := raft.NewFileSnapshotStoreWithLogger(cfg.Dir, snapshotsKept, log)
	if err != nil {
		return nil, diskError(cfg.Dir, err)
	}
	meta := new(metadb.BoltMetaDB) // raft-wal does not close the one it would make itself
	if err := finishRotation(filepath.Join(cfg.Dir, walDir), meta, cfg.SegmentBytes); err != nil {
		return nil, errors.Join(diskError(cfg.Dir, fmt.Errorf("log on disk: %w", err)), meta.Close())
	}
	w, err := wal.Open(filepath.Join(cfg.Dir, walDir), wal.WithSegmentSize(cfg.SegmentBytes), wal.WithLogger(log), wal.WithMetaStore(meta))
	if err != nil {
		return nil, errors.Join(diskError(cfg.Dir, fmt.Errorf("log on disk: %w", err)), meta.Close())
	}
	disk := newDiskLog(cfg.Dir, w)
	disk.before = cfg.DiskFault
	if cfg.hook != nil {
		cfg.hook(disk)
	}
	c := &core{owner: r, wal: w, meta: meta, disk: disk, room: semaphore.NewWeighted(InFlightBytesMax), sent: make(chan *group, entriesInFlightMax), wider: make(chan struct{})}
	if err := c.start(snaps, log); err != nil {
		return nil, errors.Join(diskError(cfg.Dir, err), w.Close(), meta.Close())
	}
	return c, nil
}

// dropUnfinished removes what a crash in the middle of a snapshot left.
func dropUnfinished(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), ".tmp") {
			err = errors.Join(err, os.RemoveAll(filepath.Join(dir, e.Name())))
		}
	}
	return err
}

func (c *core) start(snaps raft.SnapshotStore, log hclog.Logger) error {
	cfg := c.owner.cfg
	conf := raft.DefaultConfig()
	conf.LocalID = raft.ServerID(cfg.NodeID)
	conf.HeartbeatTimeout, conf.ElectionTimeout, conf.LeaderLeaseTimeout = cfg.Heartbeat, cfg.Election, cfg.Lease
	if c.owner.alone.Load() {
		conf.HeartbeatTimeout, conf.ElectionTimeout, conf.LeaderLeaseTimeout = aloneTimeout, aloneTimeout, aloneTimeout
	}
	conf.MaxAppendEntries, conf.BatchApplyCh = appendMax, true
	conf.SnapshotInterval, conf.SnapshotThreshold, conf.TrailingLogs = cfg.SnapshotEvery, cfg.SnapshotEntries, cfg.TrailingEntries
	conf.Logger, conf.NoLegacyTelemetry = log, true
	// A store that runs already has more than any snapshot on disk.
	conf.NoSnapshotRestoreOnStart = cfg.Store.Snapshot().Version() > 0

	trans, err := c.connect()
	if err != nil {
		return fmt.Errorf("transport: %w", err)
	}
	if err := c.bootstrap(conf, snaps, trans); err != nil {
		return fmt.Errorf("first start: %w", err)
	}
	if err := c.checkSnapshot(snaps); err != nil {
		return err
	}
	// No raft.LogCache in between: it would make plain text of the disk's errors.
	if c.raft, err = raft.NewRaft(conf, c.owner.fsm, c.disk, c.disk, snaps, trans); err != nil {
		return err
	}
	if err := c.checkMember(cfg.NodeID); err != nil {
		return errors.Join(err, c.raft.Shutdown().Error())
	}
	return nil
}

func (c *core) connect() (raft.Transport, error) {
	if c.owner.cfg.Transport != nil {
		return c.owner.cfg.Transport()
	}
	_, t := raft.NewInmemTransport(raft.ServerAddress(c.owner.cfg.NodeID))
	return t, nil
}

// bootstrap writes the first configuration into an empty log. A crash in the middle of that leaves a term and no entry,
// which is begun again: nothing can have been promised yet.
func (c *core) bootstrap(conf *raft.Config, snaps raft.SnapshotStore, trans raft.Transport) error {
	last, err := c.disk.LastIndex()
	if err != nil || last > 0 {
		return err
	}
	if kept, err := snaps.List(); err != nil || len(kept) > 0 || c.owner.cfg.Join {
		return err
	}
	if err := c.disk.stable(func() error { return c.wal.SetUint64([]byte(keyTerm), 0) }); err != nil {
		return err
	}
	servers := c.owner.cfg.Voters
	if len(servers) == 0 {
		servers = []raft.Server{{ID: conf.LocalID, Address: trans.LocalAddr()}}
	}
	if err := raft.BootstrapCluster(conf, c.disk, c.disk, snaps, trans, raft.Configuration{Servers: servers}); err != nil {
		return err
	}
	return c.disk.failure() // a term that was not written is no error to raft
}

// checkSnapshot refuses a directory whose newest snapshot cannot be used: raft would fall back to an older one, from which
// the log does not go on any more, and panic.
func (c *core) checkSnapshot(snaps raft.SnapshotStore) error {
	first, err := c.disk.FirstIndex()
	if err != nil {
		return err
	}
	const mend = "restore this manager from the others or from a backup"
	kept, err := snaps.List()
	if err != nil || len(kept) == 0 {
		if err == nil && first > 1 {
			err = fmt.Errorf("%w: it starts at entry %d and no readable snapshot comes before: %s", ErrDamaged, first, mend)
		}
		return err
	}
	if kept[0].Index+1 < first {
		return fmt.Errorf("%w: it starts at entry %d and the newest readable snapshot ends at %d: %s", ErrDamaged, first, kept[0].Index, mend)
	}
	_, r, err := snaps.Open(kept[0].ID) // reads and checks all of it
	if err != nil {
		return fmt.Errorf("%w: snapshot %s: %w: %s", ErrDamaged, kept[0].ID, err, mend)
	}
	return errors.Join(c.readable(r, mend), r.Close())
}

// readable reads a snapshot to its end: it may have been encrypted with another key.
func (c *core) readable(r io.Reader, mend string) error {
	plain, err := c.owner.fsm.vault.reader(r)
	if err == nil {
		_, err = io.Copy(io.Discard, plain)
	}
	if err != nil {
		return fmt.Errorf("snapshot: %w: %s", err, mend)
	}
	return nil
}

// checkMember refuses a directory that belongs to another node: this one could never win an election in it.
func (c *core) checkMember(id string) error {
	f := c.raft.GetConfiguration()
	if err := f.Error(); err != nil {
		return err
	}
	var others []string
	for _, s := range f.Configuration().Servers {
		if string(s.ID) == id {
			return nil
		}
		others = append(others, string(s.ID))
	}
	if len(others) > 0 && c.owner.cfg.Transport == nil {
		return fmt.Errorf("the log belongs to %s, not to %s: start with the node name it was made with, or choose another data directory",
			strings.Join(others, ", "), id)
	}
	return nil
}

// serve runs the log until the context ends or the disk fails, closes it, and returns why.
func (c *core) serve(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var wg sync.WaitGroup
	wg.Go(func() { c.watchLeadership(ctx) })
	wg.Go(func() { c.sendAll(ctx) })
	wg.Go(func() { c.answerAll() })
	cause := ErrClosed
	select {
	case <-ctx.Done():
	case <-c.disk.broken:
		cause = c.disk.failure()
	case <-c.wider:
		cause = errWider
	}
	cancel()
	// Raft forgets what is queued at its shutdown, so everything sent is answered first.
	wg.Wait()
	c.raft.Shutdown().Error() // always nil: it only waits
	if err := errors.Join(c.wal.Close(), c.meta.Close()); err != nil {
		c.owner.cfg.Logger.Error("close the log", "dir", c.owner.cfg.Dir, "err", err)
	}
	return cause
}

// sendAll turns the queue into entries until the context ends.
func (c *core) sendAll(ctx context.Context) {
	defer close(c.sent)
	var next *proposal // taken from the queue, and too large for the entry before
	for {
		p := next
		next = nil
		if p == nil {
			select {
			case <-ctx.Done():
				return
			case p = <-c.owner.queue:
			}
		}
		var barriers, txns []*proposal
		size := 0
		for p != nil {
			if p.txn == nil {
				barriers = append(barriers, p)
			} else if n := p.txn.Size(); len(txns) > 0 && size+n > EntryBytesMax {
				next = p
				break
			} else {
				size += n
				txns = append(txns, p)
			}
			if len(txns)+len(barriers) >= QueueMax {
				break
			}
			select {
			case p = <-c.owner.queue:
			default:
				p = nil
			}
		}
		c.send(ctx, txns, int64(size))
		c.sendBarrier(barriers)
	}
}

// send proposes the transactions as one entry.
func (c *core) send(ctx context.Context, all []*proposal, size int64) {
	if len(all) == 0 {
		return
	}
	if err := c.room.Acquire(ctx, size); err != nil {
		for _, p := range all {
			p.refuse(ErrClosed)
		}
		return
	}
	txns, batch := make([]store.Txn, 0, len(all)), make([]*proposal, 0, len(all))
	for _, p := range all {
		if p.take() {
			txns, batch = append(txns, *p.txn), append(batch, p)
		}
	}
	entry, err := encodeEntry(c.owner.fsm.vault, txns)
	if err != nil || len(batch) == 0 {
		c.room.Release(size)
		for _, p := range batch {
			p.finish(0, err)
		}
		return
	}
	c.sent <- &group{proposals: batch, apply: c.raft.Apply(entry, 0), weight: size}
}

func (c *core) sendBarrier(all []*proposal) {
	batch := make([]*proposal, 0, len(all))
	for _, p := range all {
		if p.take() {
			batch = append(batch, p)
		}
	}
	if len(batch) > 0 {
		c.sent <- &group{proposals: batch, barrier: c.raft.Barrier(0)}
	}
}

// answerAll waits for each entry in turn and answers its proposals, until sendAll has ended and all is answered.
func (c *core) answerAll() {
	for g := range c.sent {
		if g.apply == nil {
			err := c.translate(g.barrier.Error())
			for _, p := range g.proposals {
				p.finish(0, err)
			}
			continue
		}
		err := c.translate(g.apply.Error())
		c.room.Release(g.weight)
		var errs []error
		if err == nil {
			switch res := g.apply.Response().(type) {
			case []error:
				errs = res
			case error:
				err = unknown(res)
			}
		}
		for i, p := range g.proposals {
			switch {
			case err != nil:
				p.finish(0, err)
			case errs[i] != nil:
				p.finish(0, errs[i])
			default:
				p.finish(store.Version(g.apply.Index()), nil)
			}
		}
	}
}

// translate tells raft's errors of entries that were never written from those that leave the outcome open.
func (c *core) translate(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, raft.ErrNotLeader), errors.Is(err, raft.ErrLeadershipTransferInProgress):
		return ErrNotLeader
	case errors.Is(err, errRefused):
		return c.disk.failure()
	}
	return unknown(diskError(c.owner.cfg.Dir, err))
}

// watchLeadership follows raft's elections and announces a term once everything before it is applied here.
func (c *core) watchLeadership(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case leads := <-c.raft.LeaderCh():
			if leads && !c.catchUp(ctx) {
				continue // lost again; the next value says so
			}
			c.owner.announce()
		}
	}
}

func (c *core) catchUp(ctx context.Context) bool {
	term := c.raft.CurrentTerm()
	p := newProposal(nil)
	select {
	case c.owner.queue <- p:
	case <-ctx.Done():
		return false
	}
	select {
	case res := <-p.done:
		if res.err != nil || c.owner.fsm.failure() != nil {
			return false
		}
	case <-ctx.Done():
		p.withdraw()
		return false
	}
	c.mu.Lock()
	c.caught = term
	c.mu.Unlock()
	return true
}

func (c *core) term() Term {
	number := c.raft.CurrentTerm()
	c.mu.Lock()
	defer c.mu.Unlock()
	return Term{Number: number, Leader: c.raft.State() == raft.Leader && c.caught == number}
}

func (c *core) transfer(ctx context.Context, to string) error {
	if c.raft.State() != raft.Leader {
		return fmt.Errorf("transfer leadership: %w", ErrNotLeader)
	}
	conf := c.raft.GetConfiguration()
	if err := conf.Error(); err != nil {
		return fmt.Errorf("transfer leadership: %w", err)
	}
	var target *raft.Server
	voters := 0
	for _, s := range conf.Configuration().Servers {
		if s.Suffrage != raft.Voter || string(s.ID) == c.owner.cfg.NodeID {
			continue
		}
		voters++
		if string(s.ID) == to {
			target = &s
		}
	}
	if voters == 0 || to != "" && target == nil {
		return noPeer(to)
	}
	done := make(chan error, 1)
	go func() {
		if target != nil {
			done <- c.raft.LeadershipTransferToServer(target.ID, target.Address).Error()
			return
		}
		done <- c.raft.LeadershipTransfer().Error()
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (c *core) snapshot() error {
	if err := c.raft.Snapshot().Error(); err != nil && !errors.Is(err, raft.ErrNothingNewToSnapshot) {
		return fmt.Errorf("snapshot: %w", diskError(c.owner.cfg.Dir, err))
	}
	return nil
}

func (c *core) status(s *Status) {
	_, leader := c.raft.LeaderWithID()
	s.Leader, s.Last = string(leader), c.raft.LastIndex()
	if snaps, err := c.disk.FirstIndex(); err == nil && snaps > 0 {
		s.Snapshot = snaps - 1
	}
	if f := c.raft.GetConfiguration(); f.Error() == nil {
		for _, server := range f.Configuration().Servers {
			if server.Suffrage == raft.Voter {
				s.Voters = append(s.Voters, string(server.ID))
			}
		}
	}
	s.LastWrite, s.MaxWrite, s.Writing = c.disk.times()
}
