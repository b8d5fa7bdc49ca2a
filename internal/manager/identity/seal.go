// Package identity keeps the cluster's keys: the sealing key, the certificate authority, and the join tokens.
//
// The sealing key is a file of each manager's data directory, readable by root only, with which the contents of
// secrets and configs are encrypted before they enter the log (package seal). Losing the file loses those contents; it
// belongs into the same backup as the data directory. A cluster can be locked: then the file is sealed with an unlock key,
// which is on no disk in clear, and a manager that starts needs it once from its operator (Lock, Unlock).
//
// Invariants: a sealed content opens only as the kind and under the id it was sealed for: the label is kind "/" id.
//
// Concurrency: a Sealer is immutable and may be used from any goroutine.
package identity

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"baton/internal/model/cluster"
	"baton/internal/seal"
)

const keyFile = "seal.key"

// ErrSealed says that a sealed content cannot be opened: another key, another object, or damage.
var ErrSealed = fmt.Errorf("stored content: %w", seal.ErrSealed)

// Sealer encrypts the contents of secrets and configs.
type Sealer struct{ sealer *seal.Sealer }

// NewSealer derives the keys from 32 bytes of key material.
func NewSealer(key []byte) (*Sealer, error) {
	s, err := seal.New(key)
	if err != nil {
		return nil, err
	}
	return &Sealer{sealer: s}, nil
}

// OpenSealer reads the key file in dir, or makes it on first use. A key file that others may read is an error, and so is one
// that is locked (ErrLocked).
func OpenSealer(dir string) (*Sealer, error) {
	if is, err := Locked(dir); err != nil || is {
		return nil, errors.Join(err, ErrLocked)
	}
	s, err := seal.Open(filepath.Join(dir, keyFile))
	if err != nil {
		return nil, err
	}
	return &Sealer{sealer: s}, nil
}

// Key is the key material, for another manager of the same cluster.
func (s *Sealer) Key() []byte { return s.sealer.Key() }

// LogKey is what the log and its snapshots are encrypted with.
func (s *Sealer) LogKey() ([]byte, error) { return s.sealer.Derive("baton log") }

// InstallKey writes the key of the cluster that a manager joins into the manager's directory. Another key that is there
// already is an error.
func InstallKey(dir string, key []byte) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("sealing key: %w", err)
	}
	return seal.Install(filepath.Join(dir, keyFile), key)
}

// Seal encrypts content for the object of the given kind and id.
func (s *Sealer) Seal(content []byte, kind cluster.Kind, id cluster.ID) ([]byte, error) {
	return s.sealer.Seal(content, label(kind, id))
}

// Open decrypts what Seal made for the same kind and id; anything else is ErrSealed.
func (s *Sealer) Open(sealed []byte, kind cluster.Kind, id cluster.ID) ([]byte, error) {
	content, err := s.sealer.Open(sealed, label(kind, id))
	if err != nil {
		return nil, ErrSealed
	}
	return content, nil
}

// Digest is a keyed hash: it tells equal contents without giving them away to who reads the store.
func (s *Sealer) Digest(content []byte) []byte { return s.sealer.Digest(content) }

func label(kind cluster.Kind, id cluster.ID) string { return kind.String() + "/" + id.String() }
