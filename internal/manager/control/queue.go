package control

import (
	"cmp"
	"container/heap"
	"slices"
	"time"

	"baton/internal/model/cluster"
)

// ranks is the order in which kinds are looked at.
var ranks = [...]cluster.Kind{cluster.KindNode, cluster.KindVolume, cluster.KindService, cluster.KindStack, cluster.KindSettings, cluster.KindEvent}

func (k key) compare(o key) int {
	return cmp.Or(cmp.Compare(slices.Index(ranks[:], k.kind), slices.Index(ranks[:], o.kind)), slices.Compare(k.id[:], o.id[:]), cmp.Compare(rank(k.scale), rank(o.scale)))
}

// rank puts a service's number before its tasks.
func rank(scale bool) int {
	if scale {
		return 0
	}
	return 1
}

// agenda is what must be looked at: now, and at a time. Both are heaps, for one change of a node can mark every service of
// the cluster, and a search through all of them for each of them would take minutes. An entry of a heap that is not in
// its map any more is stale and skipped.
type agenda struct {
	dirty map[key]bool
	wakes map[key]time.Time
	first keyHeap
	next  wakeHeap
}

func newAgenda() agenda { return agenda{dirty: make(map[key]bool), wakes: make(map[key]time.Time)} }

// mark makes k due now.
func (a *agenda) mark(k key) {
	if !a.dirty[k] {
		a.dirty[k] = true
		heap.Push(&a.first, k)
	}
}

// wake makes k due at a time, in place of the time set before.
func (a *agenda) wake(k key, at time.Time) {
	if old, ok := a.wakes[k]; !ok || !old.Equal(at) {
		a.wakes[k] = at
		heap.Push(&a.next, wakeEntry{k, at})
	}
}

// drop takes k off both lists.
func (a *agenda) drop(k key) {
	delete(a.dirty, k)
	delete(a.wakes, k)
}

// due marks what has come due.
func (a *agenda) due(now time.Time) {
	for at := a.wakeAt(); !at.IsZero() && !at.After(now); at = a.wakeAt() {
		k := heap.Pop(&a.next).(wakeEntry).key
		delete(a.wakes, k)
		a.mark(k)
	}
}

// wakeAt is when something comes due next; zero: never.
func (a *agenda) wakeAt() time.Time {
	for len(a.next) > 0 {
		top := a.next[0]
		if at, ok := a.wakes[top.key]; ok && at.Equal(top.at) {
			return top.at
		}
		heap.Pop(&a.next)
	}
	return time.Time{}
}

// take removes the first key that is due: nodes before services, services before stacks, and by id within a kind.
func (a *agenda) take() (key, bool) {
	for len(a.first) > 0 {
		k := heap.Pop(&a.first).(key)
		if a.dirty[k] {
			a.drop(k)
			return k, true
		}
	}
	return key{}, false
}

type keyHeap []key

func (h keyHeap) Len() int           { return len(h) }
func (h keyHeap) Less(i, j int) bool { return h[i].compare(h[j]) < 0 }
func (h keyHeap) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *keyHeap) Push(x any)        { *h = append(*h, x.(key)) }

func (h *keyHeap) Pop() any {
	last := (*h)[len(*h)-1]
	*h = (*h)[:len(*h)-1]
	return last
}

type wakeEntry struct {
	key key
	at  time.Time
}

type wakeHeap []wakeEntry

func (h wakeHeap) Len() int { return len(h) }
func (h wakeHeap) Less(i, j int) bool {
	return cmp.Or(h[i].at.Compare(h[j].at), h[i].key.compare(h[j].key)) < 0
}
func (h wakeHeap) Swap(i, j int) { h[i], h[j] = h[j], h[i] }
func (h *wakeHeap) Push(x any)   { *h = append(*h, x.(wakeEntry)) }

func (h *wakeHeap) Pop() any {
	last := (*h)[len(*h)-1]
	*h = (*h)[:len(*h)-1]
	return last
}
