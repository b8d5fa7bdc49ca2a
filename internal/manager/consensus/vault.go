package consensus

import (
	"bufio"
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
)

// KeyBytes is the size of the key that encrypts the log and its snapshots.
const KeyBytes = 32

const (
	saltBytes  = 16
	chunkBytes = 64 << 10 // of a snapshot
	tagBytes   = 16
)

// snapshotMagic begins an encrypted snapshot.
var snapshotMagic = []byte("BTNSNAP1")

// vault encrypts what goes to disk. Every opening of the log, and every snapshot, has a key of its own, derived from the
// cluster's key and a random salt, so that nonces can simply count. A nil vault leaves everything in clear.
type vault struct {
	key   []byte
	salt  []byte // of this opening
	aead  cipher.AEAD
	count atomic.Uint64

	mu    sync.Mutex
	known map[string]cipher.AEAD // by salt
}

func newVault(key []byte) (*vault, error) {
	if len(key) == 0 {
		return nil, nil
	}
	if len(key) != KeyBytes {
		return nil, fmt.Errorf("key of the log: want %d bytes, got %d", KeyBytes, len(key))
	}
	v := &vault{key: bytes.Clone(key), salt: make([]byte, saltBytes), known: make(map[string]cipher.AEAD)}
	if _, err := rand.Read(v.salt); err != nil {
		return nil, err
	}
	var err error
	v.aead, err = v.derive(v.salt)
	return v, err
}

// derive makes the cipher that belongs to a salt.
func (v *vault) derive(salt []byte) (cipher.AEAD, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if a, ok := v.known[string(salt)]; ok {
		return a, nil
	}
	key, err := hkdf.Key(sha256.New, v.key, salt, "baton log", KeyBytes)
	if err != nil {
		return nil, err
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	a, err := cipher.NewGCM(block)
	if err != nil {
		return nil, err
	}
	const knownMax = 1024
	if len(v.known) >= knownMax { // of as many restarts; they are derived again when needed
		clear(v.known)
	}
	v.known[string(salt)] = a
	return a, nil
}

func nonce(n uint64) []byte {
	b := make([]byte, 12)
	binary.BigEndian.PutUint64(b[4:], n)
	return b
}

// seal encrypts one entry: salt | counter (8 bytes) | AES-256-GCM.
func (v *vault) seal(plain []byte) []byte {
	n := v.count.Add(1)
	out := make([]byte, 0, saltBytes+8+len(plain)+tagBytes)
	out = append(out, v.salt...)
	out = binary.BigEndian.AppendUint64(out, n)
	return v.aead.Seal(out, nonce(n), plain, nil)
}

// open decrypts what seal made.
func (v *vault) open(data []byte) ([]byte, error) {
	if len(data) < saltBytes+8 {
		return nil, fmt.Errorf("%w: an encrypted entry of %d bytes", ErrDamaged, len(data))
	}
	aead, err := v.derive(data[:saltBytes])
	if err != nil {
		return nil, err
	}
	plain, err := aead.Open(nil, nonce(binary.BigEndian.Uint64(data[saltBytes:])), data[saltBytes+8:], nil)
	if err != nil {
		return nil, fmt.Errorf("%w, or written with another key", ErrDamaged)
	}
	return plain, nil
}

// writer encrypts a stream: magic | salt | chunks, each of them length (4 bytes) | AES-256-GCM. The last chunk is marked in what
// is authenticated, so that a stream that was cut off does not read as a whole one. The caller closes it.
func (v *vault) writer(w io.Writer) (io.WriteCloser, error) {
	salt := make([]byte, saltBytes)
	if _, err := rand.Read(salt); err != nil {
		return nil, err
	}
	aead, err := v.derive(salt)
	if err != nil {
		return nil, err
	}
	if _, err := w.Write(append(bytes.Clone(snapshotMagic), salt...)); err != nil {
		return nil, err
	}
	return &sealing{w: w, aead: aead, buf: make([]byte, 0, chunkBytes)}, nil
}

type sealing struct {
	w     io.Writer
	aead  cipher.AEAD
	buf   []byte
	count uint64
}

// Write implements io.Writer.
func (s *sealing) Write(p []byte) (int, error) {
	n := len(p)
	for len(p) > 0 {
		if len(s.buf) == chunkBytes { // not before more comes: the last chunk is marked
			if err := s.flush(false); err != nil {
				return 0, err
			}
		}
		k := min(len(p), chunkBytes-len(s.buf))
		s.buf, p = append(s.buf, p[:k]...), p[k:]
	}
	return n, nil
}

func (s *sealing) flush(last bool) error {
	s.count++
	sealed := s.aead.Seal(nil, nonce(s.count), s.buf, mark(last))
	s.buf = s.buf[:0]
	var head [4]byte
	binary.BigEndian.PutUint32(head[:], uint32(len(sealed)))
	if _, err := s.w.Write(head[:]); err != nil {
		return err
	}
	_, err := s.w.Write(sealed)
	return err
}

// Close implements io.Closer.
func (s *sealing) Close() error { return s.flush(true) }

func mark(last bool) []byte {
	if last {
		return []byte{1}
	}
	return []byte{0}
}

// reader decrypts a stream; one that does not begin with the magic is passed on as it is.
func (v *vault) reader(r io.Reader) (io.Reader, error) {
	b := bufio.NewReaderSize(r, chunkBytes)
	head, err := b.Peek(len(snapshotMagic))
	if err != nil || !bytes.Equal(head, snapshotMagic) {
		return b, nil // of a version that did not encrypt; who reads it finds what is wrong with it
	}
	if v == nil {
		return nil, fmt.Errorf("%w: the snapshot is encrypted and there is no key", ErrDamaged)
	}
	salt := make([]byte, len(snapshotMagic)+saltBytes)
	if _, err := io.ReadFull(b, salt); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	aead, err := v.derive(salt[len(snapshotMagic):])
	if err != nil {
		return nil, err
	}
	return &opening{r: b, aead: aead}, nil
}

type opening struct {
	r     io.Reader
	aead  cipher.AEAD
	rest  []byte
	count uint64
	last  bool
}

// Read implements io.Reader.
func (o *opening) Read(p []byte) (int, error) {
	for len(o.rest) == 0 {
		if o.last {
			return 0, io.EOF
		}
		if err := o.next(); err != nil {
			return 0, err
		}
	}
	n := copy(p, o.rest)
	o.rest = o.rest[n:]
	return n, nil
}

func (o *opening) next() error {
	var head [4]byte
	if _, err := io.ReadFull(o.r, head[:]); err != nil {
		return fmt.Errorf("%w: an encrypted snapshot breaks off: %w", ErrDamaged, noEOF(err))
	}
	size := binary.BigEndian.Uint32(head[:])
	if size < tagBytes || size > chunkBytes+tagBytes {
		return fmt.Errorf("%w: a chunk of %d bytes in an encrypted snapshot", ErrDamaged, size)
	}
	sealed := make([]byte, size)
	if _, err := io.ReadFull(o.r, sealed); err != nil {
		return fmt.Errorf("%w: an encrypted snapshot breaks off: %w", ErrDamaged, noEOF(err))
	}
	o.count++
	for _, last := range []bool{false, true} {
		if plain, err := o.aead.Open(nil, nonce(o.count), sealed, mark(last)); err == nil {
			o.rest, o.last = plain, last
			return nil
		}
	}
	return fmt.Errorf("%w, or written with another key: chunk %d of an encrypted snapshot", ErrDamaged, o.count)
}

// noEOF keeps an early end from looking like a regular one.
func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
