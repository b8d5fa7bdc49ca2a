package consensus

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"

	"baton/internal/manager/store"
	"baton/internal/model/cluster"
)

func testVault(t testing.TB, b byte) *vault {
	t.Helper()
	v, err := newVault(bytes.Repeat([]byte{b}, KeyBytes))
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func TestSealedEntriesOpenWithTheirKeyOnly(t *testing.T) {
	var txn store.Txn
	txn.Put(&cluster.Node{Meta: cluster.Meta{ID: cluster.NewID(nil)}, Name: "plaintext"})
	data, err := encodeEntry(testVault(t, 1), []store.Txn{txn})
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(data, []byte("plaintext")) {
		t.Error("the entry shows what is in it")
	}
	if _, err := decodeEntry(testVault(t, 1), data); err != nil { // another opening, with another salt
		t.Errorf("the same key: got %v", err)
	}
	for name, v := range map[string]*vault{"another key": testVault(t, 2), "no key": nil} {
		if _, err := decodeEntry(v, data); !errors.Is(err, ErrDamaged) {
			t.Errorf("%s: got %v", name, err)
		}
	}
	for i := range data {
		bad := bytes.Clone(data)
		bad[i] ^= 1
		if _, err := decodeEntry(testVault(t, 1), bad); !errors.Is(err, ErrDamaged) {
			t.Fatalf("byte %d changed: got %v", i, err)
		}
	}
}

func TestSealedStreams(t *testing.T) {
	for _, size := range []int{0, 1, chunkBytes - 1, chunkBytes, chunkBytes + 1, 3*chunkBytes + 17} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			plain := bytes.Repeat([]byte("baton"), size/5+1)[:size]
			var buf bytes.Buffer
			w, err := testVault(t, 1).writer(&buf)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := w.Write(plain); err != nil {
				t.Fatal(err)
			}
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
			read := func(v *vault, data []byte) ([]byte, error) {
				r, err := v.reader(bytes.NewReader(data))
				if err != nil {
					return nil, err
				}
				return io.ReadAll(r)
			}
			if got, err := read(testVault(t, 1), buf.Bytes()); err != nil || !bytes.Equal(got, plain) {
				t.Errorf("got %d bytes, %v; want the %d that went in", len(got), err, size)
			}
			if _, err := read(testVault(t, 2), buf.Bytes()); !errors.Is(err, ErrDamaged) {
				t.Errorf("another key: got %v", err)
			}
			// Cut off after any whole chunk, or anywhere else, it must not look complete.
			for _, cut := range []int{len(snapshotMagic) + saltBytes, buf.Len() - 1, buf.Len() - tagBytes - 4, len(snapshotMagic) + saltBytes + 4 + chunkBytes + tagBytes} {
				if cut >= buf.Len() {
					continue
				}
				if _, err := read(testVault(t, 1), buf.Bytes()[:cut]); !errors.Is(err, ErrDamaged) {
					t.Errorf("cut off at %d of %d: got %v", cut, buf.Len(), err)
				}
			}
		})
	}
}

func TestNothingOnDiskIsInClear(t *testing.T) {
	cfg := Config{Dir: t.TempDir(), NodeID: "n", Store: store.New(), Key: bytes.Repeat([]byte{7}, KeyBytes), SegmentBytes: 1 << 20}
	open := func() *Raft {
		cfg.Store = store.New()
		r, err := Open(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	r := open()
	var txn store.Txn
	node := &cluster.Node{Meta: cluster.Meta{ID: cluster.NewID(nil)}, Name: "name-in-clear"}
	txn.Put(node)
	if _, err := r.Propose(t.Context(), txn); err != nil {
		t.Fatal(err)
	}
	if err := r.Snapshot(); err != nil {
		t.Fatal(err)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	err := filepath.WalkDir(cfg.Dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		data, err := os.ReadFile(path)
		if bytes.Contains(data, []byte("name-in-clear")) {
			t.Errorf("%s shows what is stored", path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	r = open()
	if _, ok := cfg.Store.Snapshot().NodeByName("name-in-clear"); !ok {
		t.Error("the node is gone after a restart")
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	cfg.Key = bytes.Repeat([]byte{8}, KeyBytes)
	cfg.Store = store.New()
	if _, err := Open(t.Context(), cfg); !errors.Is(err, ErrDamaged) {
		t.Errorf("another key: got %v, want that it does not open", err)
	}
}
