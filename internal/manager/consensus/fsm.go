package consensus

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"log/slog"
	"sync"

	"github.com/hashicorp/raft"

	"baton/internal/manager/store"
)

const (
	entryClear  = 1 // format | CRC-32C | transactions
	entrySealed = 2 // format | what vault.seal makes of the transactions
	entryHeader = 5 // bytes before the transactions of a clear one
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// encodeEntry draws up one log entry; the layout is in the package doc.
func encodeEntry(v *vault, txns []store.Txn) ([]byte, error) {
	body, err := store.EncodeTxns(txns)
	if err != nil {
		return nil, err
	}
	if v != nil {
		return append([]byte{entrySealed}, v.seal(body)...), nil
	}
	e := make([]byte, 0, entryHeader+len(body))
	e = append(e, entryClear)
	e = binary.BigEndian.AppendUint32(e, crc32.Checksum(body, castagnoli))
	return append(e, body...), nil
}

// decodeEntry reads what encodeEntry wrote. raft-wal does not look at checksums when it reads, so this does.
func decodeEntry(v *vault, data []byte) ([]store.Txn, error) {
	if len(data) < entryHeader {
		return nil, fmt.Errorf("%w: an entry of %d bytes", ErrDamaged, len(data))
	}
	body := data[entryHeader:]
	switch data[0] {
	case entrySealed:
		if v == nil {
			return nil, fmt.Errorf("%w: an entry is encrypted and there is no key", ErrDamaged)
		}
		var err error
		if body, err = v.open(data[1:]); err != nil {
			return nil, err
		}
	case entryClear:
		if want, got := binary.BigEndian.Uint32(data[1:]), crc32.Checksum(body, castagnoli); want != got {
			return nil, fmt.Errorf("%w: an entry's checksum is %08x, want %08x", ErrDamaged, got, want)
		}
	default:
		return nil, fmt.Errorf("%w: an entry of format %d: use the version of the program that wrote it", ErrDamaged, data[0])
	}
	txns, err := store.DecodeTxns(body)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return txns, nil
}

// machine applies committed entries to the store. It outlives a reopened log, and then skips what the store has already.
type machine struct {
	store *store.Store
	vault *vault
	log   *slog.Logger

	mu     sync.Mutex
	failed error
}

var _ raft.BatchingFSM = (*machine)(nil)

// failure is why nothing is applied any more. An entry that cannot be read must stop everything: to skip it would make
// this manager's state differ from the others'.
func (m *machine) failure() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.failed
}

func (m *machine) fail(index uint64, err error) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.failed == nil {
		m.failed = fmt.Errorf("entry %d: %w", index, err)
		m.log.Error("a committed entry cannot be read; nothing after it is applied: restore this manager from the others or from a backup",
			"index", index, "err", err)
	}
	return m.failed
}

// Apply implements raft.FSM.
func (m *machine) Apply(l *raft.Log) any { return m.ApplyBatch([]*raft.Log{l})[0] }

// ApplyBatch implements raft.BatchingFSM. The response to a command is a []error, one per transaction, or an error.
func (m *machine) ApplyBatch(logs []*raft.Log) []any {
	responses := make([]any, len(logs))
	entries := make([]store.Entry, 0, len(logs))
	places := make([]int, 0, len(logs))
	at := m.store.Snapshot().Version()
	failed := m.failure()
	for i, l := range logs {
		if l.Type != raft.LogCommand || store.Version(l.Index) <= at {
			continue
		}
		if failed == nil {
			txns, err := decodeEntry(m.vault, l.Data)
			if err == nil {
				entries = append(entries, store.Entry{At: store.Version(l.Index), Txns: txns})
				places = append(places, i)
				continue
			}
			failed = m.fail(l.Index, err)
		}
		responses[i] = failed
	}
	for i, errs := range m.store.ApplyEntries(entries) {
		responses[places[i]] = errs
	}
	return responses
}

// Snapshot implements raft.FSM.
func (m *machine) Snapshot() (raft.FSMSnapshot, error) {
	if err := m.failure(); err != nil {
		return nil, err
	}
	return frozen{m.store.Snapshot(), m.vault}, nil
}

// Restore implements raft.FSM.
func (m *machine) Restore(r io.ReadCloser) error {
	plain, err := m.vault.reader(r)
	if err == nil {
		err = m.store.Restore(plain)
	}
	return errors.Join(err, r.Close())
}

// frozen is a snapshot on its way to disk.
type frozen struct {
	snap  store.Snapshot
	vault *vault
}

var _ raft.FSMSnapshot = frozen{}

// Persist implements raft.FSMSnapshot.
func (f frozen) Persist(sink raft.SnapshotSink) error {
	if err := f.write(sink); err != nil {
		return errors.Join(err, sink.Cancel())
	}
	return sink.Close()
}

func (f frozen) write(w io.Writer) error {
	if f.vault == nil {
		_, err := f.snap.WriteTo(w)
		return err
	}
	sealed, err := f.vault.writer(w)
	if err != nil {
		return err
	}
	if _, err := f.snap.WriteTo(sealed); err != nil {
		return err
	}
	return sealed.Close()
}

// Release implements raft.FSMSnapshot.
func (frozen) Release() {}
