// Package identity keeps the cluster's keys.
//
// For now it owns the sealing key: 32 random bytes in a file of the manager's data directory, readable by root only, with
// which the contents of secrets and configs are encrypted before they enter the log. Losing the file loses those contents;
// it belongs into the same backup as the data directory.
//
//	sealed = version (1 byte) | nonce (12 bytes) | AES-256-GCM(content, additional data = kind "/" id)
//
// Invariants: a sealed content opens only as the kind and under the id it was sealed for, so that swapping two stored
// secrets is noticed; keys for sealing and for digests are derived from the file separately (HKDF-SHA256).
//
// Concurrency: a Sealer is immutable and may be used from any goroutine.
package identity

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"baton/internal/model/cluster"
)

const (
	keySize   = 32
	keyFile   = "seal.key"
	sealFirst = 1 // format version, the first byte of what is sealed
)

// ErrSealed says that a sealed content cannot be opened: another key, another object, or damage.
var ErrSealed = errors.New("the content cannot be opened with this cluster's key; was the key file replaced?")

// Sealer encrypts the contents of secrets and configs.
type Sealer struct {
	key    []byte
	aead   cipher.AEAD
	digest []byte
	log    []byte
}

// NewSealer derives the keys from 32 bytes of key material.
func NewSealer(key []byte) (*Sealer, error) {
	if len(key) != keySize {
		return nil, fmt.Errorf("sealing key: want %d bytes, got %d", keySize, len(key))
	}
	seal, err := hkdf.Key(sha256.New, key, nil, "baton seal", keySize)
	if err != nil {
		return nil, fmt.Errorf("derive sealing key: %w", err)
	}
	digest, err := hkdf.Key(sha256.New, key, nil, "baton digest", keySize)
	if err != nil {
		return nil, fmt.Errorf("derive digest key: %w", err)
	}
	block, err := aes.NewCipher(seal)
	if err != nil {
		return nil, fmt.Errorf("sealing key: %w", err)
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		return nil, fmt.Errorf("sealing key: %w", err)
	}
	log, err := hkdf.Key(sha256.New, key, nil, "baton log", keySize)
	if err != nil {
		return nil, fmt.Errorf("derive the log's key: %w", err)
	}
	return &Sealer{key: bytes.Clone(key), aead: aead, digest: digest, log: log}, nil
}

// Key is the key material, for another manager of the same cluster.
func (s *Sealer) Key() []byte { return bytes.Clone(s.key) }

// LogKey is what the log and its snapshots are encrypted with.
func (s *Sealer) LogKey() []byte { return bytes.Clone(s.log) }

// InstallKey writes the key of the cluster that a manager joins. Another key that is there already is an error: what it
// sealed would be lost.
func InstallKey(dir string, key []byte) error {
	if len(key) != keySize {
		return fmt.Errorf("sealing key: want %d bytes, got %d", keySize, len(key))
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("sealing key: %w", err)
	}
	path := filepath.Join(dir, keyFile)
	have, err := os.ReadFile(path)
	switch {
	case err == nil && bytes.Equal(have, key):
		return nil
	case err == nil:
		return fmt.Errorf("sealing key: %s is of another cluster: start with an empty data directory", path)
	case !errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("sealing key: %w", err)
	}
	return writeKey(path, key)
}

// OpenSealer reads the key file in dir, or makes it on first use. A key file that others may read is an error.
func OpenSealer(dir string) (*Sealer, error) {
	path := filepath.Join(dir, keyFile)
	key, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		if key, err = createKey(path); err != nil {
			return nil, err
		}
	} else if err != nil {
		return nil, fmt.Errorf("sealing key: %w", err)
	}
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("sealing key: %w", err)
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		return nil, fmt.Errorf("sealing key %s has mode %04o: others may have read it; run `chmod 600 %s` and rotate your secrets", path, mode, path)
	}
	return NewSealer(key)
}

// createKey writes a new key so that a crash leaves either no file or a whole one.
func createKey(path string) ([]byte, error) {
	key := make([]byte, keySize)
	if _, err := rand.Read(key); err != nil {
		return nil, fmt.Errorf("make sealing key: %w", err)
	}
	return key, writeKey(path, key)
}

func writeKey(path string, key []byte) error {
	f, err := os.OpenFile(path+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("write sealing key: %w", err)
	}
	_, err = f.Write(key)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(path+".new", path)
	}
	if err == nil {
		err = syncDir(filepath.Dir(path))
	}
	if err != nil {
		return fmt.Errorf("write sealing key: %w", err)
	}
	return nil
}

// syncDir makes a new name in a directory survive a power cut.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// Seal encrypts content for the object of the given kind and id.
func (s *Sealer) Seal(content []byte, kind cluster.Kind, id cluster.ID) ([]byte, error) {
	nonce := make([]byte, s.aead.NonceSize())
	if _, err := rand.Read(nonce); err != nil {
		return nil, fmt.Errorf("seal: %w", err)
	}
	out := append([]byte{sealFirst}, nonce...)
	return s.aead.Seal(out, nonce, content, additional(kind, id)), nil
}

// Open decrypts what Seal made for the same kind and id; anything else is ErrSealed.
func (s *Sealer) Open(sealed []byte, kind cluster.Kind, id cluster.ID) ([]byte, error) {
	n := s.aead.NonceSize()
	if len(sealed) < 1+n || sealed[0] != sealFirst {
		return nil, ErrSealed
	}
	content, err := s.aead.Open(nil, sealed[1:1+n], sealed[1+n:], additional(kind, id))
	if err != nil {
		return nil, ErrSealed
	}
	return content, nil
}

// Digest is a keyed hash: it tells equal contents without giving them away to who reads the store.
func (s *Sealer) Digest(content []byte) []byte {
	h := hmac.New(sha256.New, s.digest)
	h.Write(content)
	return h.Sum(nil)
}

func additional(kind cluster.Kind, id cluster.ID) []byte {
	return []byte(kind.String() + "/" + id.String())
}
