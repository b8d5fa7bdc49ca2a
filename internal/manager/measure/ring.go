package measure

import "time"

// resolution is how long a ring remembers, and in steps of what.
type resolution struct {
	step  time.Duration
	slots int64
}

// The rings of a service; a window is answered from the first that reaches back far enough.
var serviceRings = [...]resolution{{2 * time.Second, 300}, {15 * time.Second, 240}, {2 * time.Minute, 180}}

// taskRing is the only one of a task: 5 minutes.
var taskRing = resolution{10 * time.Second, 30}

// ring keeps the newest slots of a series. A slot is the sums of one step of time; nil: nothing happened.
type ring struct {
	resolution
	packed [][]byte // slot n is at n modulo the length
	newest int64    // slot
}

func newRing(r resolution) ring { return ring{resolution: r, packed: make([][]byte, r.slots)} }

func (r *ring) slot(t time.Time) int64 { return t.UnixNano() / int64(r.step) }

// oldest is the first slot that is remembered.
func (r *ring) oldest() int64 { return r.newest - r.slots + 1 }

// add spreads what happened between two times evenly over the slots there, exactly: the slots' sums are what was added, as far
// as they are remembered. At one time, it happened then.
func (r *ring) add(s *sums, from, to time.Time) {
	begin, end := from.UnixNano(), to.UnixNano()
	last := end / int64(r.step)
	if end > begin && end%int64(r.step) == 0 {
		last-- // the slot that would begin with the end has nothing of it
	}
	if last < r.oldest() { // the clock was set back by more than is remembered
		clear(r.packed)
		r.newest = last
	}
	r.forward(last)
	if end <= begin {
		r.put(last, s)
		return
	}
	var done sums
	first := max(begin/int64(r.step), r.oldest())
	if start := first * int64(r.step); start > begin && start < end {
		done = s.part(start-begin, end-begin)
	}
	for n := first; n <= last; n++ {
		upTo := s.part(min(end, (n+1)*int64(r.step))-begin, end-begin)
		piece := upTo
		piece.minus(&done)
		r.put(n, &piece)
		done = upTo
	}
}

// forward makes n the newest slot, unless there is a newer one.
func (r *ring) forward(n int64) {
	if n <= r.newest {
		return
	}
	for i := max(r.newest+1, n-r.slots+1); i <= n; i++ {
		r.packed[i%r.slots] = nil
	}
	r.newest = n
}

func (r *ring) put(n int64, s *sums) {
	if n < r.oldest() || s.zero() {
		return
	}
	all := *s
	all.unpack(r.packed[n%r.slots])
	r.packed[n%r.slots] = all.pack()
}

// sum adds up the slots from the one with from to the last one that begins before to, and tells the span that they are of.
func (r *ring) sum(from, to time.Time) (s sums, begin, end time.Time) {
	first := max(r.slot(from), r.oldest())
	last := (to.UnixNano() - 1) / int64(r.step)
	for n := first; n <= min(last, r.newest); n++ {
		s.unpack(r.packed[n%r.slots])
	}
	begin, end = time.Unix(0, first*int64(r.step)), time.Unix(0, (last+1)*int64(r.step))
	if last >= r.newest && to.Before(end) {
		end = to // its rest is yet to come
	}
	return s, begin, end
}

// reaches reports whether t is remembered.
func (r *ring) reaches(t time.Time) bool { return r.slot(t) >= r.oldest() }
