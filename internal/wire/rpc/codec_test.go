package rpc

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"testing"
	"time"

	"google.golang.org/grpc/mem"

	"baton/internal/wire/agentapi"
)

// messages are all that agents and managers exchange.
var messages = []any{
	agentapi.FromAgent{}, agentapi.Update{}, agentapi.JoinRequest{}, agentapi.JoinReply{}, agentapi.Renewal{}, agentapi.Certificate{}, agentapi.Kit{},
	agentapi.Empty{}, agentapi.LogOptions{}, agentapi.LogLine{}, agentapi.Image{}, agentapi.Stats{}, agentapi.Measures{},
}

// filler makes values in which no field is zero, so that a field that is lost on the way shows.
type filler struct {
	rng  *rand.Rand
	deep int
}

func (f *filler) fill(v reflect.Value) {
	f.deep++
	defer func() { f.deep-- }()
	switch v.Addr().Interface().(type) {
	case *time.Time:
		v.Set(reflect.ValueOf(time.Unix(f.rng.Int64N(4e9), f.rng.Int64N(1e9-1)+1).UTC()))
		return
	case *netip.Addr:
		v.Set(reflect.ValueOf(netip.AddrFrom4([4]byte{10, byte(f.rng.IntN(256)), 3, 4})))
		return
	case *netip.Prefix:
		v.Set(reflect.ValueOf(netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(f.rng.IntN(256)), 0, 0}), 22)))
		return
	case *netip.AddrPort:
		v.Set(reflect.ValueOf(netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 1, 2, 3}), uint16(1+f.rng.IntN(65535)))))
		return
	}
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			if sf := v.Type().Field(i); sf.IsExported() && sf.Tag.Get("cbor") != "-" && sf.Tag.Get("json") != "-" {
				f.fill(v.Field(i))
			}
		}
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		f.fill(v.Elem())
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 2, 2))
		for i := range v.Len() {
			f.fill(v.Index(i))
		}
	case reflect.Array:
		for i := range v.Len() {
			f.fill(v.Index(i))
		}
	case reflect.Map:
		v.Set(reflect.MakeMap(v.Type()))
		k, e := reflect.New(v.Type().Key()).Elem(), reflect.New(v.Type().Elem()).Elem()
		f.fill(k)
		f.fill(e)
		v.SetMapIndex(k, e)
	case reflect.String:
		v.SetString(fmt.Sprintf("s%d", f.rng.Uint32()))
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		v.SetInt(1 + f.rng.Int64N(3)) // enumerations have few values
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		v.SetUint(1 + f.rng.Uint64N(3))
	case reflect.Float32, reflect.Float64:
		v.SetFloat(0.1 + f.rng.Float64())
	default:
		panic("a message has a " + v.Type().String())
	}
}

func trip(t *testing.T, in any) any {
	t.Helper()
	c := newCodec()
	b, err := c.Marshal(in)
	if err != nil {
		t.Fatal(err)
	}
	out := reflect.New(reflect.TypeOf(in))
	if err := c.Unmarshal(b, out.Interface()); err != nil {
		t.Fatalf("%T: %v", in, err)
	}
	return out.Elem().Interface()
}

// Every field of every message arrives as it was, times to the nanosecond.
func TestMessagesArriveWhole(t *testing.T) {
	for _, m := range messages {
		t.Run(reflect.TypeOf(m).Name(), func(t *testing.T) {
			for seed := range uint64(20) {
				in := reflect.New(reflect.TypeOf(m))
				(&filler{rng: rand.New(rand.NewPCG(seed, 1))}).fill(in.Elem())
				if out := trip(t, in.Elem().Interface()); !reflect.DeepEqual(out, in.Elem().Interface()) {
					t.Fatalf("seed %d:\n got %+v\nwant %+v", seed, out, in.Elem().Interface())
				}
			}
			if out := trip(t, m); !reflect.DeepEqual(out, m) {
				t.Errorf("empty: got %+v", out)
			}
		})
	}
}

// A neighbour of another version may know more, or less.
func TestUnknownFieldsAreIgnored(t *testing.T) {
	type newer struct {
		Applied uint64         `json:"applied"`
		Extra   map[string]any `json:"extra"`
		Beat    uint64         `json:"beat"`
	}
	c := newCodec()
	b, err := c.Marshal(newer{Applied: 7, Extra: map[string]any{"x": []int{1}}, Beat: 9})
	if err != nil {
		t.Fatal(err)
	}
	var r agentapi.Report
	if err := c.Unmarshal(b, &r); err != nil || r.Applied != 7 || r.Beat != 9 {
		t.Errorf("%+v, %v", r, err)
	}
}

// Lines of a program's output are bytes; not all programs write UTF-8.
func TestTextNeedNotBeUTF8(t *testing.T) {
	in := agentapi.LogLine{Text: "caf\xe9 \xff\x00", Stream: "stdout"}
	if out := trip(t, in); !reflect.DeepEqual(out, in) {
		t.Errorf("got %q", out.(agentapi.LogLine).Text)
	}
}

func TestNestingHasALimit(t *testing.T) {
	deep := append(make([]byte, 0, 200), 0xa1, 0x61, 'x') // {"x": [[[…]]]}
	for range 100 {
		deep = append(deep, 0x81)
	}
	deep = append(deep, 0)
	var r agentapi.Report
	if err := newCodec().Unmarshal(mem.BufferSlice{mem.SliceBuffer(deep)}, &r); err == nil {
		t.Error("100 arrays in each other were read")
	}
}

// Bytes from outside are an error or a message that can be written again; never a panic.
func FuzzDecode(f *testing.F) {
	c := newCodec()
	for i, m := range messages {
		in := reflect.New(reflect.TypeOf(m))
		(&filler{rng: rand.New(rand.NewPCG(1, 1))}).fill(in.Elem())
		b, err := c.Marshal(in.Interface())
		if err != nil {
			f.Fatal(err)
		}
		f.Add(uint8(i), b.Materialize())
	}
	f.Fuzz(func(t *testing.T, kind uint8, data []byte) {
		out := reflect.New(reflect.TypeOf(messages[int(kind)%len(messages)])).Interface()
		if c.Unmarshal(mem.BufferSlice{mem.SliceBuffer(data)}, out) != nil {
			return
		}
		if _, err := c.Marshal(out); err != nil {
			t.Errorf("%T was read and cannot be written: %v", out, err)
		}
	})
}
