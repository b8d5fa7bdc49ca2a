package store

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io"

	"baton/internal/model/cluster"
)

const (
	dumpMagic  = "BATONSNP"
	dumpFormat = 2
	// dumpBuffer is how much is read or written at a time.
	dumpBuffer = 256 << 10
)

// ErrCorrupt means that a snapshot on disk is damaged or cut short.
var ErrCorrupt = errors.New("snapshot is damaged")

// WriteTo writes the whole state to w, in the layout of the package doc, while the store goes on. It implements
// io.WriterTo.
func (s Snapshot) WriteTo(w io.Writer) (int64, error) {
	d := newDumper(w)
	d.header(s)
	for k, rows := range s.t.rows {
		rows.Scan(func(r row) bool {
			d.row(cluster.Kind(k), r)
			return d.err == nil
		})
	}
	return d.finish()
}

type dumper struct {
	w       *bufio.Writer
	counter countingWriter
	hash    hash.Hash
	err     error
	buf     bytes.Buffer
	head    []byte
}

type countingWriter struct {
	w io.Writer
	n int64
}

func (c *countingWriter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	return n, err
}

func newDumper(w io.Writer) *dumper {
	d := &dumper{hash: sha256.New(), counter: countingWriter{w: w}}
	d.w = bufio.NewWriterSize(&d.counter, dumpBuffer)
	return d
}

func (d *dumper) write(p []byte) {
	if d.err != nil {
		return
	}
	d.hash.Write(p)
	if _, err := d.w.Write(p); err != nil {
		d.err = fmt.Errorf("write snapshot: %w", err)
	}
}

func (d *dumper) header(s Snapshot) {
	total := 0
	for _, rows := range s.t.rows {
		total += rows.Len()
	}
	b := append([]byte(nil), dumpMagic...)
	b = binary.BigEndian.AppendUint16(b, dumpFormat)
	b = binary.BigEndian.AppendUint64(b, uint64(s.Version()))
	d.write(binary.BigEndian.AppendUint64(b, uint64(total)))
}

func (d *dumper) row(k cluster.Kind, r row) {
	d.buf.Reset()
	// Version and hash stand before the object, so the object itself is written as it was logged.
	bare := r.obj.Clone()
	v := bare.GetMeta().Version
	bare.GetMeta().Version = 0
	if err := modes.enc.MarshalToBuffer(bare, &d.buf); err != nil {
		d.err = fmt.Errorf("encode %s %s: %w", k, r.id.Short(), err)
		return
	}
	h := append(d.head[:0], byte(k))
	h = binary.BigEndian.AppendUint64(h, r.sum)
	h = binary.AppendUvarint(h, uint64(v))
	h = binary.AppendUvarint(h, uint64(d.buf.Len()))
	d.head = h
	d.write(h)
	d.write(d.buf.Bytes())
}

func (d *dumper) finish() (int64, error) {
	d.write([]byte{0})
	sum := d.hash.Sum(nil)
	d.write(sum)
	if d.err == nil {
		if err := d.w.Flush(); err != nil {
			d.err = fmt.Errorf("write snapshot: %w", err)
		}
	}
	return d.counter.n, d.err
}

// Restore replaces the whole state by the one that WriteTo wrote to r. On an error (ErrCorrupt, or one of reading)
// nothing is replaced. Every cursor starts over with a full Delta.
func (s *Store) Restore(r io.Reader) error {
	next, err := load(r)
	if err != nil {
		return fmt.Errorf("restore snapshot: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.work, s.dirt = next, dirt{}
	s.published.Store(next.copy())
	s.history.batches, s.history.changes, s.history.floor = nil, 0, next.version
	s.cursors.each(func(c *Cursor) {
		c.full, c.seen = true, 0
		c.mark(next.version)
	})
	return nil
}

type loader struct {
	r    *bufio.Reader
	hash hash.Hash
	last key
	one  [1]byte
}

// ReadByte serves binary.ReadUvarint.
func (l *loader) ReadByte() (byte, error) {
	b, err := l.r.ReadByte()
	if err != nil {
		return 0, cut(err)
	}
	l.one[0] = b
	l.hash.Write(l.one[:])
	return b, nil
}

func (l *loader) read(p []byte) error {
	if _, err := io.ReadFull(l.r, p); err != nil {
		return cut(err)
	}
	l.hash.Write(p)
	return nil
}

func cut(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("%w: it ends too early", ErrCorrupt)
	}
	return err
}

func load(r io.Reader) (*tables, error) {
	l := &loader{r: bufio.NewReaderSize(r, dumpBuffer), hash: sha256.New()}
	var head [26]byte
	if err := l.read(head[:]); err != nil {
		return nil, err
	}
	if string(head[:8]) != dumpMagic {
		return nil, fmt.Errorf("%w: it does not start like one", ErrCorrupt)
	}
	if f := binary.BigEndian.Uint16(head[8:]); f != dumpFormat {
		return nil, fmt.Errorf("snapshot has format %d and this program reads %d: use the version of the program that wrote it", f, dumpFormat)
	}
	t := newTables()
	t.version = Version(binary.BigEndian.Uint64(head[10:]))
	want := binary.BigEndian.Uint64(head[18:])
	var have uint64
	for {
		more, err := l.row(t)
		if err != nil {
			return nil, err
		}
		if !more {
			break
		}
		have++
	}
	if have != want {
		return nil, fmt.Errorf("%w: it has %d objects and says %d", ErrCorrupt, have, want)
	}
	var sum [sha256.Size]byte
	expect := l.hash.Sum(nil)
	if err := l.read(sum[:]); err != nil {
		return nil, err
	}
	if !bytes.Equal(sum[:], expect) {
		return nil, fmt.Errorf("%w: its checksum does not match", ErrCorrupt)
	}
	return t, nil
}

// row reads one object into t; false is the end.
func (l *loader) row(t *tables) (bool, error) {
	k, err := l.ReadByte()
	if err != nil || k == 0 {
		return false, err
	}
	var sum [8]byte
	if err := l.read(sum[:]); err != nil {
		return false, err
	}
	v, err := binary.ReadUvarint(l)
	if err != nil {
		return false, l.varint(err)
	}
	n, err := binary.ReadUvarint(l)
	if err != nil {
		return false, l.varint(err)
	}
	if n > ObjectBytesMax || Version(v) > t.version || v == 0 {
		return false, fmt.Errorf("%w: an object of %d bytes at version %d", ErrCorrupt, n, v)
	}
	data := make([]byte, n)
	if err := l.read(data); err != nil {
		return false, err
	}
	o, err := Unmarshal(cluster.Kind(k), data)
	if err != nil {
		return false, fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	m := o.GetMeta()
	m.Version = Version(v)
	this := key{cluster.Kind(k), m.ID}
	if m.ID.IsZero() || this.kind < l.last.kind || this.kind == l.last.kind && bytes.Compare(this.id[:], l.last.id[:]) <= 0 {
		return false, fmt.Errorf("%w: %s %s is out of order", ErrCorrupt, this.kind, this.id.Short())
	}
	l.last = this
	if lb, ok := labelOf(o); ok {
		if owner, taken := t.labels.Get(lb); taken {
			return false, fmt.Errorf("%w: %w", ErrCorrupt, existsError(lb, owner.id))
		}
	}
	t.set(row{id: m.ID, obj: o, sum: binary.BigEndian.Uint64(sum[:])}, row{}, new(dirt))
	return true, nil
}

func (l *loader) varint(err error) error {
	if errors.Is(err, ErrCorrupt) {
		return err
	}
	return fmt.Errorf("%w: %w", ErrCorrupt, cut(err))
}
