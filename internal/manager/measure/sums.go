package measure

import (
	"encoding/binary"
	"math/bits"

	"baton/internal/wire/agentapi"
)

// The things that are counted. All of them add up, over time, over nodes and over tasks: means are made when somebody asks.
const (
	noEndpoint = iota
	unreached
	broken
	classes                                                 // six of them
	inflight = classes + agentapi.RequestClasses + iota - 4 // requests × milliseconds
	received
	sent
	cpu         // microseconds
	cpuReserved // of it, that of tasks with a reservation
	reservation // what was reserved for these tasks: microseconds of one core
	memory      // KiB × milliseconds
	present     // tasks × milliseconds
	netReceived
	netSent
	reports
	took    // microseconds
	latency // the buckets of the histogram
	sumsLen = latency + agentapi.LatencyBuckets
)

// sums are counts of everything, of some span of time.
type sums [sumsLen]uint64

func (s *sums) add(o *sums) {
	for i, n := range o {
		s[i] += n
	}
}

// minus takes o away and reports whether nothing became less than zero.
func (s *sums) minus(o *sums) bool {
	for i, n := range o {
		if s[i] < n {
			return false
		}
		s[i] -= n
	}
	return true
}

func (s *sums) zero() bool { return *s == sums{} }

// part is the share of s of the first elapsed of span, rounded down. That of all of it is s.
func (s *sums) part(elapsed, span int64) (out sums) {
	for i, n := range s {
		if n == 0 {
			continue
		}
		high, low := bits.Mul64(n, uint64(elapsed))
		out[i], _ = bits.Div64(high, low, uint64(span)) // elapsed ≤ span: it fits
	}
	return out
}

// pack writes what is not zero, as pairs of the distance to the one before and the count: 30 to 100 bytes are usual.
func (s *sums) pack() []byte {
	var buf [sumsLen * (1 + binary.MaxVarintLen64)]byte
	b := buf[:0]
	last := 0
	for i, n := range s {
		if n > 0 {
			b = binary.AppendUvarint(append(b, byte(i-last)), n)
			last = i
		}
	}
	if len(b) == 0 {
		return nil
	}
	return append(make([]byte, 0, len(b)), b...)
}

// unpack adds what was packed.
func (s *sums) unpack(b []byte) {
	i := 0
	for len(b) > 0 {
		i += int(b[0])
		n, size := binary.Uvarint(b[1:])
		s[i] += n
		b = b[1+size:]
	}
}

// requests makes sums of what an edge has counted.
func requests(m *agentapi.RequestMeasure) (s sums, err error) {
	s[noEndpoint], s[unreached], s[broken] = m.NoEndpoint, m.Unreached, m.Broken
	copy(s[classes:], m.Classes[:])
	s[received], s[sent], s[took] = m.Received, m.Sent, uint64(max(0, m.Took).Microseconds())
	h, err := m.Latency.Histogram()
	copy(s[latency:], h[:])
	return s, err
}
