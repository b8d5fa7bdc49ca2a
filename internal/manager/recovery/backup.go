// Package recovery takes a cluster through the loss of its managers: backups of its state with its keys, and what a state
// must look like so that one manager can go on with it alone.
//
// A backup is a tar with three files, in this order:
//
//	baton-backup.json  what it is: Manifest
//	seal.key           the cluster's sealing key, 32 bytes
//	state              the whole store (layout in package store); the authority's key is in it, sealed
//
// With the sealing key whoever reads a backup is the cluster, so it travels encrypted (filippo.io/age), by the server to the
// recipients that were asked for, or by the command line with a passphrase.
//
// Invariants: Read gives a state and key that belong together, of which every byte was checked, or an error. Versions of
// objects that are written after a restore or a recovery are higher than any that the old cluster can have given out: a
// node that knows more than its managers do is told everything anew.
//
// What it will not do: keep what volumes hold, or images.
//
// Concurrency: functions only.
package recovery

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"time"

	"baton/internal/manager/identity"
	"baton/internal/manager/store"
	"baton/internal/model/cluster"
	"baton/internal/seal"
)

const (
	manifestFile = "baton-backup.json"
	keyFile      = "seal.key"
	stateFile    = "state"
	// format changes when an older program cannot read what a newer one wrote.
	format      = 1
	manifestMax = 64 << 10
)

// Manifest says what a backup is of.
type Manifest struct {
	Format  int             `json:"format"`
	Cluster string          `json:"cluster"`
	Created time.Time       `json:"created"`
	Node    string          `json:"node"`    // name of the manager that made it
	Version string          `json:"version"` // of the program
	Applied cluster.Version `json:"applied"` // of the state
	Bytes   int64           `json:"bytes"`   // of the state
	SHA256  string          `json:"sha256"`  // of the key, then the state
}

// ErrDamaged says that a backup cannot be used: it is not one, or was changed or cut off on its way.
var ErrDamaged = errors.New("not a whole backup of baton")

func damaged(format string, args ...any) error {
	return fmt.Errorf("%w: %w", ErrDamaged, fmt.Errorf(format, args...))
}

// Write writes a backup of the state in clear. It reads the state twice, and keeps none of it in memory.
func Write(w io.Writer, m Manifest, key []byte, s store.Snapshot) error {
	sum := sha256.New()
	sum.Write(key)
	n, err := s.WriteTo(sum)
	if err != nil {
		return fmt.Errorf("backup: %w", err)
	}
	m.Format, m.Applied, m.Bytes, m.SHA256 = format, s.Version(), n, hex.EncodeToString(sum.Sum(nil))
	head, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return fmt.Errorf("backup: %w", err)
	}
	t := tar.NewWriter(w)
	put := func(name string, size int64, from io.WriterTo) error {
		if err := t.WriteHeader(&tar.Header{Name: name, Mode: 0o600, Size: size, ModTime: m.Created, Format: tar.FormatPAX}); err != nil {
			return err
		}
		_, err := from.WriteTo(t)
		return err
	}
	err = errors.Join(put(manifestFile, int64(len(head)), bytes.NewReader(head)), put(keyFile, int64(len(key)), bytes.NewReader(key)))
	if err == nil {
		err = put(stateFile, n, s)
	}
	if err = errors.Join(err, t.Close()); err != nil {
		return fmt.Errorf("backup: %w", err)
	}
	return nil
}

// Backup is what Read found.
type Backup struct {
	Manifest Manifest
	Key      []byte
	State    *store.Store
}

// Read reads a backup in clear to its end and checks all of it.
func Read(r io.Reader) (*Backup, error) {
	t := tar.NewReader(r)
	b := &Backup{State: store.New()}
	head, err := next(t, manifestFile, manifestMax)
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(head, &b.Manifest); err != nil {
		return nil, damaged("%s: %w", manifestFile, err)
	}
	if f := b.Manifest.Format; f != format {
		return nil, fmt.Errorf("the backup has format %d and this program reads %d: use version %s of it, which wrote the backup", f, format, b.Manifest.Version)
	}
	if b.Key, err = next(t, keyFile, seal.KeySize); err != nil {
		return nil, err
	}
	sum := sha256.New()
	sum.Write(b.Key)
	if err := b.readState(t, sum); err != nil {
		return nil, err
	}
	if got := hex.EncodeToString(sum.Sum(nil)); got != b.Manifest.SHA256 {
		return nil, damaged("its checksum is %s and should be %s", got, b.Manifest.SHA256)
	}
	if _, err := io.Copy(io.Discard, r); err != nil { // an encryption proves the end of what it holds there
		return nil, damaged("%w", err)
	}
	return b, b.check()
}

// next reads a small file of the tar, which must be the next one.
func next(t *tar.Reader, name string, limit int64) ([]byte, error) {
	h, err := t.Next()
	if err != nil {
		return nil, damaged("%s: %w", name, noEOF(err))
	}
	if h.Name != name || h.Size > limit {
		return nil, damaged("%s of %d bytes where %s should be", h.Name, h.Size, name)
	}
	data, err := io.ReadAll(t)
	if err != nil {
		return nil, damaged("%s: %w", name, err)
	}
	return data, nil
}

func (b *Backup) readState(t *tar.Reader, sum hash.Hash) error {
	h, err := t.Next()
	if err != nil {
		return damaged("%s: %w", stateFile, noEOF(err))
	}
	if h.Name != stateFile || h.Size != b.Manifest.Bytes {
		return damaged("%s of %d bytes where %s of %d should be", h.Name, h.Size, stateFile, b.Manifest.Bytes)
	}
	all := io.TeeReader(t, sum)
	if err := b.State.Restore(all); err != nil {
		return damaged("%w", err)
	}
	if _, err := io.Copy(io.Discard, all); err != nil {
		return damaged("%s: %w", stateFile, err)
	}
	switch h, err := t.Next(); {
	case err == nil:
		return damaged("%s comes after %s", h.Name, stateFile)
	case !errors.Is(err, io.EOF):
		return damaged("after %s: %w", stateFile, err)
	}
	return nil
}

// check proves that the key belongs to the state: with another one the cluster's secrets could not be opened.
func (b *Backup) check() error {
	a, ok := store.Get[*cluster.Authority](b.State.Snapshot(), cluster.AuthorityID)
	if !ok {
		return damaged("it holds no certificate authority")
	}
	sealer, err := identity.NewSealer(b.Key)
	if err == nil {
		_, err = identity.NewKeeper(sealer).Open(a)
	}
	if err != nil {
		return damaged("its key is not that of its state: %w", err)
	}
	return nil
}

// noEOF keeps an early end from looking like a regular one.
func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
