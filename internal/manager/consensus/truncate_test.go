package consensus

import (
	"fmt"
	"testing"

	"github.com/hashicorp/raft"
	wal "github.com/hashicorp/raft-wal"
	"github.com/hashicorp/raft-wal/metadb"
)

// A follower drops entries that a new leader overrules. What it keeps must be there after a restart.
func TestLogSurvivesADroppedTailAndARestart(t *testing.T) {
	const segmentBytes = 64 << 10
	for _, c := range []struct{ written, kept, size int }{
		{10, 6, 10}, {10, 1, 1}, {10, 9, 1000}, {300, 299, 1000}, {300, 150, 1000}, {300, 64, 777},
	} {
		t.Run(fmt.Sprintf("%+v", c), func(t *testing.T) {
			dir := t.TempDir()
			open := func() (*wal.WAL, *metadb.BoltMetaDB) {
				t.Helper()
				meta := new(metadb.BoltMetaDB)
				if err := finishRotation(dir, meta, segmentBytes); err != nil {
					t.Fatal(err)
				}
				w, err := wal.Open(dir, wal.WithSegmentSize(segmentBytes), wal.WithMetaStore(meta))
				if err != nil {
					t.Fatal(err)
				}
				return w, meta
			}
			closeAll := func(w *wal.WAL, meta *metadb.BoltMetaDB) {
				t.Helper()
				if err := w.Close(); err != nil {
					t.Fatal(err)
				}
				if err := meta.Close(); err != nil {
					t.Fatal(err)
				}
			}
			data := func(i int, term byte) []byte {
				b := make([]byte, c.size)
				copy(b, fmt.Sprintf("%c%d", term, i))
				return b
			}
			write := func(w *wal.WAL, from, to int, term byte) {
				t.Helper()
				for i := from; i <= to; i++ {
					if err := w.StoreLogs([]*raft.Log{{Index: uint64(i), Term: uint64(term), Data: data(i, term)}}); err != nil {
						t.Fatal(err)
					}
				}
			}
			w, meta := open()
			write(w, 1, c.written, 'a')
			if err := w.DeleteRange(uint64(c.kept+1), uint64(c.written)); err != nil {
				t.Fatal(err)
			}
			write(w, c.kept+1, c.kept+5, 'b')
			for round := range 3 {
				closeAll(w, meta)
				w, meta = open()
				last, err := w.LastIndex()
				if want := uint64(c.kept + 5 + round); err != nil || last != want {
					t.Fatalf("the last entry is %d, %v; want %d", last, err, want)
				}
				for i := 1; i <= int(last); i++ {
					term := byte('a')
					if i > c.kept {
						term = 'b'
					}
					var l raft.Log
					if err := w.GetLog(uint64(i), &l); err != nil || string(l.Data) != string(data(i, term)) {
						t.Fatalf("round %d: entry %d: got %.10q, %v; want %.10q", round, i, l.Data, err, data(i, term))
					}
				}
				write(w, int(last)+1, int(last)+1, 'b')
			}
			closeAll(w, meta)
		})
	}
}
