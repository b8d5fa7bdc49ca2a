package store

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"

	"github.com/fxamacker/cbor/v2"

	"baton/internal/model/cluster"
)

// Limits of what the decoders accept. They bound memory, not use: the log refuses far smaller transactions.
const (
	// ObjectBytesMax is the size of one stored object.
	ObjectBytesMax = 4 << 20
	// OpsMax is the number of operations of one transaction, and of transactions of one entry.
	OpsMax = 1 << 17
	// decodeDepthMax is how deep CBOR may nest; our structs nest less than ten levels.
	decodeDepthMax = 24
)

// codec is the pair of modes everything is stored with. They are built once; both are safe for concurrent use.
type codec struct {
	enc cbor.UserBufferEncMode
	dec cbor.DecMode
}

var modes = newCodec()

func newCodec() codec {
	eo := cbor.CoreDetEncOptions()
	// The default mode cuts times to seconds; a text with nanoseconds is the one lossless form the library has.
	eo.Time = cbor.TimeRFC3339NanoUTC
	enc, err := eo.UserBufferEncMode()
	if err != nil {
		panic(fmt.Sprintf("store: encoding options: %v", err))
	}
	dec, err := cbor.DecOptions{
		MaxArrayElements: OpsMax,
		MaxMapPairs:      OpsMax,
		MaxNestedLevels:  decodeDepthMax,
		IndefLength:      cbor.IndefLengthForbidden,
		// Reasons and messages carry what programs print, which need not be UTF-8; losing them would be worse.
		UTF8:              cbor.UTF8DecodeInvalid,
		FieldNameMatching: cbor.FieldNameMatchingCaseSensitive,
	}.DecMode()
	if err != nil {
		panic(fmt.Sprintf("store: decoding options: %v", err))
	}
	return codec{enc: enc, dec: dec}
}

// Marshal encodes one object as the store does, with its version.
func Marshal(o cluster.Object) ([]byte, error) {
	var buf bytes.Buffer
	if err := modes.enc.MarshalToBuffer(o, &buf); err != nil {
		return nil, fmt.Errorf("encode %s %s: %w", o.Kind(), o.GetMeta().ID.Short(), err)
	}
	return buf.Bytes(), nil
}

// Unmarshal decodes an object of the kind. Times come back in UTC; empty lists and maps may come back nil.
func Unmarshal(k cluster.Kind, data []byte) (cluster.Object, error) {
	o := cluster.New(k)
	if o == nil {
		return nil, fmt.Errorf("%w: unknown kind %d", ErrMalformed, uint8(k))
	}
	if len(data) > ObjectBytesMax {
		return nil, fmt.Errorf("%w: %s of %d bytes, at most %d are stored", ErrMalformed, k, len(data), ObjectBytesMax)
	}
	if err := modes.dec.Unmarshal(data, o); err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrMalformed, k, err)
	}
	return o, nil
}

// encodeBare encodes o without its version, which is how objects are logged and hashed.
func encodeBare(o cluster.Object) ([]byte, error) {
	if o.GetMeta().Version != 0 {
		o = o.Clone()
		o.GetMeta().Version = 0
	}
	return Marshal(o)
}

// EncodeTxns returns the bytes of one log entry.
func EncodeTxns(txns []Txn) ([]byte, error) {
	all := make([][]op, len(txns))
	size := 8
	for i := range txns {
		all[i] = txns[i].ops
		size += txns[i].Size()
	}
	buf := bytes.NewBuffer(make([]byte, 0, size))
	if err := modes.enc.MarshalToBuffer(all, buf); err != nil {
		return nil, fmt.Errorf("encode transactions: %w", err)
	}
	return buf.Bytes(), nil
}

// DecodeTxns reads one log entry. The transactions refer to data, which must not change afterwards.
func DecodeTxns(data []byte) ([]Txn, error) {
	var all [][]op
	if err := modes.dec.Unmarshal(data, &all); err != nil {
		return nil, fmt.Errorf("%w: transactions: %w", ErrMalformed, err)
	}
	txns := make([]Txn, len(all))
	for i, ops := range all {
		for j := range ops {
			if err := ops[j].normalise(); err != nil {
				return nil, fmt.Errorf("transaction %d, operation %d: %w", i, j, err)
			}
		}
		txns[i].ops = ops
	}
	return txns, nil
}

// sumOf hashes what is stored of an object. scratch is reused between calls.
func sumOf(scratch *[]byte, k cluster.Kind, id cluster.ID, v cluster.Version, data []byte) uint64 {
	b := append((*scratch)[:0], byte(k))
	b = append(b, id[:]...)
	b = binary.BigEndian.AppendUint64(b, uint64(v))
	b = append(b, data...)
	*scratch = b
	h := sha256.Sum256(b)
	return binary.BigEndian.Uint64(h[:8])
}
