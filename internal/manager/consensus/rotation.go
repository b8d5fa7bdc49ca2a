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

// The layout of raft-wal's segments, of which this must know a little: frames with a header of a type byte, three spare ones
// and a length, each padded to eight bytes.
const (
	fileHeaderBytes  = 32
	frameHeaderBytes = 8
	frameEntry       = 1
	frameIndex       = 2
	frameCommit      = 3 // has a checksum where others have their length, and nothing behind it
	offsetBytes      = 4 // of one entry in an index
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
	if err := mendTruncation(dir, meta, &state); err != nil {
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
	size := binary.LittleEndian.Uint32(head[4:])
	if head[0] == frameIndex && last >= base && uint64(size) == (last-base+1)*offsetBytes {
		return true, nil
	}
	if _, err := f.WriteAt(make([]byte, frameHeaderBytes), start-frameHeaderBytes); err != nil {
		return false, err
	}
	return false, f.Sync()
}

// mendTruncation gives an index to segments that have none. A follower whose last entries a new leader overrules drops them;
// raft-wal then seals their segment without writing its index, reads it from memory as long as it runs, and cannot read it
// any more once it is opened again.
func mendTruncation(dir string, meta *metadb.BoltMetaDB, state *types.PersistentState) error {
	mended := false
	for i := range state.Segments {
		s := &state.Segments[i]
		if s.SealTime.IsZero() || s.IndexStart != 0 {
			continue
		}
		start, err := writeIndex(filepath.Join(dir, segment.FileName(*s)), int(s.MaxIndex-s.BaseIndex)+1)
		if err != nil {
			return err
		}
		s.IndexStart, mended = start, true
	}
	if !mended {
		return nil
	}
	return meta.CommitState(*state)
}

// writeIndex writes the index of the first entries of a segment behind the last of them, over what was dropped, and returns
// where it starts.
func writeIndex(path string, entries int) (start uint64, err error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	var index []byte
	at := int64(fileHeaderBytes)
	for len(index) < entries*offsetBytes {
		var head [frameHeaderBytes]byte
		if _, err := f.ReadAt(head[:], at); err != nil {
			return 0, fmt.Errorf("segment %s: %w", path, err)
		}
		size := int64(binary.LittleEndian.Uint32(head[4:]))
		switch head[0] {
		case frameEntry:
			index = binary.LittleEndian.AppendUint32(index, uint32(at))
		case frameIndex:
		case frameCommit:
			size = 0
		default:
			return 0, fmt.Errorf("%w: segment %s has %d of %d entries", ErrDamaged, path, len(index)/offsetBytes, entries)
		}
		at += frameHeaderBytes + (size+frameHeaderBytes-1)/frameHeaderBytes*frameHeaderBytes
	}
	frame := []byte{frameIndex, 0, 0, 0}
	frame = binary.LittleEndian.AppendUint32(frame, uint32(len(index)))
	frame = append(frame, index...)
	if _, err := f.WriteAt(frame, at); err != nil {
		return 0, err
	}
	return uint64(at + frameHeaderBytes), f.Sync()
}
