package rpc

import (
	"fmt"

	"github.com/fxamacker/cbor/v2"
	"google.golang.org/grpc/mem"
)

// Limits of what is decoded. They bound memory, not use.
const (
	elementsMax = 1 << 20
	depthMax    = 24
)

// codec implements grpc's encoding.CodecV2 with CBOR.
type codec struct {
	enc cbor.UserBufferEncMode
	dec cbor.DecMode
}

func newCodec() codec {
	eo := cbor.CoreDetEncOptions()
	eo.Time = cbor.TimeRFC3339NanoUTC // the lossless form
	enc, err := eo.UserBufferEncMode()
	if err != nil {
		panic(fmt.Sprintf("rpc: encoding options: %v", err))
	}
	dec, err := cbor.DecOptions{
		MaxArrayElements: elementsMax, MaxMapPairs: elementsMax, MaxNestedLevels: depthMax,
		IndefLength: cbor.IndefLengthForbidden, UTF8: cbor.UTF8DecodeInvalid,
		FieldNameMatching: cbor.FieldNameMatchingCaseSensitive,
	}.DecMode()
	if err != nil {
		panic(fmt.Sprintf("rpc: decoding options: %v", err))
	}
	return codec{enc: enc, dec: dec}
}

// Marshal implements encoding.CodecV2.
func (c codec) Marshal(v any) (mem.BufferSlice, error) {
	b, err := c.enc.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("encode %T: %w", v, err)
	}
	return mem.BufferSlice{mem.SliceBuffer(b)}, nil
}

// Unmarshal implements encoding.CodecV2.
func (c codec) Unmarshal(data mem.BufferSlice, v any) error {
	buf := data.MaterializeToBuffer(mem.DefaultBufferPool())
	defer buf.Free()
	if err := c.dec.Unmarshal(buf.ReadOnlyData(), v); err != nil {
		return fmt.Errorf("decode %T: %w", v, err)
	}
	return nil
}

// Name implements encoding.CodecV2.
func (codec) Name() string { return "cbor" }
