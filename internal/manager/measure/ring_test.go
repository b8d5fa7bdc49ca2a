package measure

import (
	"testing"
	"time"

	"pgregory.net/rapid"
)

// unit is one of the things that were counted: the naive model keeps each, and when it happened.
type unit struct{ at int64 }

// spread is what evenly means: the i-th of n things happens when (i+1)/n of the time is over, rounded up.
func spread(n uint64, from, to int64) []unit {
	var out []unit
	for i := range int64(n) {
		at := to
		if span := to - from; span > 0 {
			at = from + ((i+1)*span+int64(n)-1)/int64(n) - 1
		}
		out = append(out, unit{at})
	}
	return out
}

// Whatever is added, late, early, at once or over a long time: every window that is remembered has exactly what happened in its
// slots.
func TestRingAgainstANaiveModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		res := resolution{time.Duration(rapid.Int64Range(1, 20).Draw(t, "step")), rapid.Int64Range(1, 12).Draw(t, "slots")}
		r := newRing(res)
		var model []unit
		now := int64(10_000)
		for range rapid.IntRange(1, 40).Draw(t, "adds") {
			now += rapid.Int64Range(-30, 60).Draw(t, "pass")
			from := now - rapid.Int64Range(0, 300).Draw(t, "span")
			var s sums
			s[received] = rapid.Uint64Range(0, 50).Draw(t, "n")
			s[sumsLen-1] = 2 * s[received]
			last := now / int64(res.step)
			if now > from && now%int64(res.step) == 0 {
				last--
			}
			if last < r.oldest() {
				model = nil // the clock was set back: it begins anew
			}
			r.add(&s, time.Unix(0, from), time.Unix(0, now))
			model = append(model, spread(s[received], from, now)...)

			a := now - rapid.Int64Range(0, 400).Draw(t, "back")
			b := a + rapid.Int64Range(1, 400).Draw(t, "long")
			got, begin, end := r.sum(time.Unix(0, a), time.Unix(0, b))
			first := max(a/int64(res.step), r.oldest())
			last = min((b-1)/int64(res.step), r.newest)
			want := uint64(0)
			for _, u := range model {
				if n := u.at / int64(res.step); n >= first && n <= last {
					want++
				}
			}
			if got[received] != want {
				t.Fatalf("[%d, %d) has %d, want %d", a, b, got[received], want)
			}
			if begin.UnixNano() != first*int64(res.step) || end.UnixNano() < b && last < r.newest {
				t.Fatalf("[%d, %d) is said to be [%d, %d)", a, b, begin.UnixNano(), end.UnixNano())
			}
		}
	})
}

func TestPackedSumsComeBack(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var s sums
		for range rapid.IntRange(0, 20).Draw(t, "values") {
			s[rapid.IntRange(0, sumsLen-1).Draw(t, "at")] = rapid.Uint64().Draw(t, "n")
		}
		var back sums
		if back.unpack(s.pack()); back != s {
			t.Fatalf("%v came back as %v", s, back)
		}
		if whole := s.part(7, 7); whole != s {
			t.Fatalf("all of %v is %v", s, whole)
		}
	})
}
