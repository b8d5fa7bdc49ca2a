package consensus

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/hashicorp/raft-wal/fs"
	"github.com/hashicorp/raft-wal/metadb"
	"github.com/hashicorp/raft-wal/segment"
	"github.com/hashicorp/raft-wal/types"
)

const (
	frameHeaderBytes = 8
	frameIndex       = 2 // the type byte of an index frame
)

// finishRotation completes what a kill between two steps of raft-wal's rotation leaves: the last segment ends with its
// index, which seals it, and the list of segments does not say so. raft-wal opens such a log and then refuses every write
// ("segment is sealed"). It must run before the log is opened.
//
// When the index itself is from a write that was not completed, it is wiped out: raft-wal goes back to the write before but
// would still take the segment as sealed.
func finishRotation(dir string, meta *metadb.BoltMetaDB, segmentBytes int) error {
	state, err := meta.Load(dir)
	if err != nil || len(state.Segments) == 0 {
		return err
	}
	tail := &state.Segments[len(state.Segments)-1]
	if !tail.SealTime.IsZero() {
		return nil
	}
	w, err := segment.NewFiler(dir, fs.New()).RecoverTail(*tail)
	if errors.Is(err, os.ErrNotExist) {
		return nil // opening makes it
	}
	if err != nil {
		return err
	}
	sealed, indexStart, err := w.Sealed()
	last := w.LastIndex()
	if err := errors.Join(err, w.Close()); err != nil || !sealed {
		return err
	}
	path := filepath.Join(dir, segment.FileName(*tail))
	complete, err := checkIndex(path, int64(indexStart), tail.BaseIndex, last)
	if err != nil || !complete {
		return err
	}
	tail.SealTime, tail.MaxIndex, tail.IndexStart = time.Now(), last, indexStart
	state.Segments = append(state.Segments, types.SegmentInfo{
		ID: state.NextSegmentID, BaseIndex: last + 1, MinIndex: last + 1,
		SizeLimit: uint32(segmentBytes), Codec: tail.Codec, CreateTime: time.Now(),
	})
	state.NextSegmentID++
	return meta.CommitState(state)
}

// checkIndex reports whether the index has exactly the entries base..last; if not, it was never committed and is wiped.
func checkIndex(path string, start int64, base, last uint64) (bool, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return false, err
	}
	defer f.Close()
	var head [frameHeaderBytes]byte
	if _, err := f.ReadAt(head[:], start-frameHeaderBytes); err != nil {
		return false, fmt.Errorf("index of %s: %w", path, err)
	}
	const offsetBytes = 4
	size := binary.LittleEndian.Uint32(head[4:])
	if head[0] == frameIndex && last >= base && uint64(size) == (last-base+1)*offsetBytes {
		return true, nil
	}
	if _, err := f.WriteAt(make([]byte, frameHeaderBytes), start-frameHeaderBytes); err != nil {
		return false, err
	}
	return false, f.Sync()
}
