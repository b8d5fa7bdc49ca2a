// Package seal encrypts what must not lie on a disk in clear, with a key of 32 random bytes kept in a file beside it.
//
//	sealed = version (1 byte) | nonce (12 bytes) | AES-256-GCM(content, additional data = label)
//
// Invariants: a sealed content opens only under the label it was sealed for, so that swapping two of them is noticed; keys
// for sealing and for digests are derived from the file separately (HKDF-SHA256).
//
// What it will not do: protect against who reads the key file. It keeps contents out of copies, backups and logs that do not hold it.
//
// Concurrency: a Sealer is immutable and may be used from any goroutine.
package seal

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

	"baton/internal/durable"
)

// KeySize is the length of the key material.
const KeySize = 32

// first is the format version, the first byte of what is sealed.
const first = 1

// ErrSealed says that a sealed content cannot be opened: another key, another label, or damage.
var ErrSealed = errors.New("the content cannot be opened with this key; was the key file replaced?")

// Sealer encrypts and decrypts with one key.
type Sealer struct {
	key    []byte
	aead   cipher.AEAD
	digest []byte
}

// New derives the keys from 32 bytes of key material.
func New(key []byte) (*Sealer, error) {
	if len(key) != KeySize {
		return nil, fmt.Errorf("sealing key: want %d bytes, got %d", KeySize, len(key))
	}
	sealing, err := hkdf.Key(sha256.New, key, nil, "baton seal", KeySize)
	if err != nil {
		return nil, fmt.Errorf("derive sealing key: %w", err)
	}
	digest, err := hkdf.Key(sha256.New, key, nil, "baton digest", KeySize)
	if err != nil {
		return nil, fmt.Errorf("derive digest key: %w", err)
	}
	block, err := aes.NewCipher(sealing)
	if err != nil {
		return nil, fmt.Errorf("sealing key: %w", err)
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		return nil, fmt.Errorf("sealing key: %w", err)
	}
	return &Sealer{key: bytes.Clone(key), aead: aead, digest: digest}, nil
}

// Key is the key material, for another machine that is to open the same.
func (s *Sealer) Key() []byte { return bytes.Clone(s.key) }

// Derive makes a key of KeySize bytes for another use.
func (s *Sealer) Derive(use string) ([]byte, error) {
	key, err := hkdf.Key(sha256.New, s.key, nil, use, KeySize)
	if err != nil {
		return nil, fmt.Errorf("derive a key for %s: %w", use, err)
	}
	return key, nil
}

// Install writes key material that came from another machine. A different key that is there already is an error: what it
// sealed would be lost.
func Install(path string, key []byte) error {
	if len(key) != KeySize {
		return fmt.Errorf("sealing key: want %d bytes, got %d", KeySize, len(key))
	}
	have, err := os.ReadFile(path)
	switch {
	case err == nil && bytes.Equal(have, key):
		return nil
	case err == nil:
		return fmt.Errorf("sealing key: %s is of another cluster: start with an empty data directory", path)
	case !errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("sealing key: %w", err)
	}
	if err := durable.Write(path, key, 0o600); err != nil {
		return fmt.Errorf("write sealing key: %w", err)
	}
	return nil
}

// Open reads the key file, or makes it on first use. A key file that others may read is an error.
func Open(path string) (*Sealer, error) {
	key, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		if key, err = create(path); err != nil {
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
	return New(key)
}

// create writes a new key so that a crash leaves either no file or a whole one.
func create(path string) ([]byte, error) {
	key := make([]byte, KeySize)
	if _, err := rand.Read(key); err != nil {
		return nil, fmt.Errorf("make sealing key: %w", err)
	}
	if err := durable.Write(path, key, 0o600); err != nil {
		return nil, fmt.Errorf("make sealing key: %w", err)
	}
	return key, nil
}

// Seal encrypts content for the label.
func (s *Sealer) Seal(content []byte, label string) ([]byte, error) {
	nonce := make([]byte, s.aead.NonceSize())
	if _, err := rand.Read(nonce); err != nil {
		return nil, fmt.Errorf("seal: %w", err)
	}
	out := append([]byte{first}, nonce...)
	return s.aead.Seal(out, nonce, content, []byte(label)), nil
}

// Open decrypts what Seal made for the same label; anything else is ErrSealed.
func (s *Sealer) Open(sealed []byte, label string) ([]byte, error) {
	n := s.aead.NonceSize()
	if len(sealed) < 1+n || sealed[0] != first {
		return nil, ErrSealed
	}
	content, err := s.aead.Open(nil, sealed[1:1+n], sealed[1+n:], []byte(label))
	if err != nil {
		return nil, ErrSealed
	}
	return content, nil
}

// Digest is a keyed hash: it tells equal contents without giving them away to who reads them.
func (s *Sealer) Digest(content []byte) []byte {
	h := hmac.New(sha256.New, s.digest)
	h.Write(content)
	return h.Sum(nil)
}
