package consensus

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	wal "github.com/hashicorp/raft-wal"
	"github.com/hashicorp/raft-wal/metadb"

	"baton/internal/durable"
	"baton/internal/manager/store"
)

// rebuiltTerm is the term of a rebuilt log's snapshot: the first election of its only voter comes after it.
const rebuiltTerm = 1

// Rebuild writes a state as the log of a new cluster, whose only voter is the node, into dir, where nothing may be yet. The
// directory comes into being as a whole or not at all. Open goes on from it.
func Rebuild(dir, node string, key []byte, s store.Snapshot) (err error) {
	if _, err := os.Lstat(dir); !errors.Is(err, os.ErrNotExist) {
		return errors.Join(fmt.Errorf("rebuild the log: %s is there already", dir), err)
	}
	vault, err := newVault(key)
	if err != nil {
		return fmt.Errorf("rebuild the log: %w", err)
	}
	half := dir + durable.Suffix
	if err := os.RemoveAll(half); err != nil { // of a rebuild that was killed
		return fmt.Errorf("rebuild the log: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("rebuild the log: %w", err), os.RemoveAll(half))
		}
	}()
	if err := os.MkdirAll(half, 0o700); err != nil {
		return err
	}
	snaps, err := raft.NewFileSnapshotStoreWithLogger(half, snapshotsKept, hclog.NewNullLogger())
	if err != nil {
		return err
	}
	voter := raft.Server{ID: raft.ServerID(node), Address: raft.ServerAddress(node)}
	_, trans := raft.NewInmemTransport(voter.Address)
	defer trans.Close()
	sink, err := snaps.Create(raft.SnapshotVersionMax, uint64(s.Version()), rebuiltTerm, raft.Configuration{Servers: []raft.Server{voter}}, 1, trans)
	if err != nil {
		return err
	}
	if err := (frozen{s, vault}).Persist(sink); err != nil {
		return err
	}
	if err := os.Rename(half, dir); err != nil {
		return err
	}
	return durable.SyncDir(filepath.Dir(dir))
}

// Salvaged is what was found in a log that is not run.
type Salvaged struct {
	Last    uint64    // index of the last entry
	At      time.Time // when it was written by its leader; zero when only a snapshot is there
	Members []Member  // as of the last change of them that this log knows, committed or not
}

// Salvage reads everything that the stopped log in dir holds into an empty store, also the entries of which this manager
// cannot know whether a majority had them: who reported one of them as done must not be made a liar. It refuses while a
// process has the log open.
func Salvage(dir string, key []byte, s *store.Store) (found Salvaged, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("read the log in %s: %w", dir, err)
		}
	}()
	if _, err := os.Stat(dir); err != nil {
		return found, err
	}
	lock, err := lockDir(dir)
	if err != nil {
		return found, err
	}
	defer lock.Close()
	cfg, err := Config{Dir: dir, NodeID: "salvage", Store: s, Key: key}.withDefaults()
	if err != nil {
		return found, err
	}
	vault, err := newVault(key)
	if err != nil {
		return found, err
	}
	snaps, err := raft.NewFileSnapshotStoreWithLogger(dir, snapshotsKept, hclog.NewNullLogger())
	if err != nil {
		return found, err
	}
	m := &machine{store: s, vault: vault, log: cfg.Logger}
	conf, err := m.salvageSnapshot(snaps, &found)
	if err != nil {
		return found, err
	}
	if err := os.MkdirAll(filepath.Join(dir, walDir), 0o700); err != nil { // a rebuilt log that never ran has none
		return found, err
	}
	meta := new(metadb.BoltMetaDB)
	if err := finishRotation(filepath.Join(dir, walDir), meta, cfg.SegmentBytes); err != nil {
		return found, errors.Join(err, meta.Close())
	}
	w, err := wal.Open(filepath.Join(dir, walDir), wal.WithSegmentSize(cfg.SegmentBytes), wal.WithLogger(hclog.NewNullLogger()), wal.WithMetaStore(meta))
	if err != nil {
		return found, errors.Join(err, meta.Close())
	}
	err = errors.Join(m.salvageEntries(w, &conf, &found), w.Close(), meta.Close())
	if err == nil && found.Last == 0 {
		err = errors.New("it is empty: restore a backup")
	}
	for _, server := range conf.Servers {
		found.Members = append(found.Members, Member{ID: string(server.ID), Voter: server.Suffrage == raft.Voter})
	}
	return found, err
}

// salvageSnapshot reads the newest snapshot that can be read.
func (m *machine) salvageSnapshot(snaps raft.SnapshotStore, found *Salvaged) (raft.Configuration, error) {
	kept, err := snaps.List()
	if err != nil || len(kept) == 0 {
		return raft.Configuration{}, err
	}
	var errs error
	for _, k := range kept {
		var r io.ReadCloser
		if _, r, err = snaps.Open(k.ID); err == nil {
			if err = m.Restore(r); err == nil {
				found.Last = k.Index
				return k.Configuration, nil
			}
		}
		errs = errors.Join(errs, fmt.Errorf("snapshot %s: %w", k.ID, err))
	}
	return raft.Configuration{}, errs
}

// salvageEntries applies the entries behind the snapshot.
func (m *machine) salvageEntries(w *wal.WAL, conf *raft.Configuration, found *Salvaged) error {
	first, err := w.FirstIndex()
	if err != nil {
		return err
	}
	last, err := w.LastIndex()
	if err != nil {
		return err
	}
	if last > found.Last && first > found.Last+1 {
		return fmt.Errorf("%w: it starts at entry %d and the newest readable snapshot ends at %d: restore from a backup", ErrDamaged, first, found.Last)
	}
	for i := max(first, found.Last+1); i <= last; i++ {
		var l raft.Log
		if err := w.GetLog(i, &l); err != nil {
			return fmt.Errorf("%w: entry %d: %w", ErrDamaged, i, err)
		}
		switch l.Type {
		case raft.LogCommand:
			m.Apply(&l)
		case raft.LogConfiguration:
			*conf = raft.DecodeConfiguration(l.Data)
		}
		if err := m.failure(); err != nil {
			return err
		}
		found.Last, found.At = l.Index, l.AppendedAt
	}
	return nil
}
