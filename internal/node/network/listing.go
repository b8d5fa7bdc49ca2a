package network

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/mdlayher/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// walkFlows is how many flows cost about as much to list as a walk over the kernel's table does, which has a quarter of a million slots
// on a machine of common size and is walked whole even when a filter leaves nothing of it.
const walkFlows = 2000

// gatherMax is how long the forgetting of a gone task's connections waits for others to go. Tasks of a service that is removed, or rolled,
// end one after the other, some ten a second on each core.
const gatherMax = 50 * time.Millisecond

// listing lists tracked connections for several callers at once: those that ask while a listing is under way share the next one. When
// twenty tasks drain and go, the table is walked twice and not sixty times.
//
// The zero value is ready; it may be used from several goroutines.
type listing struct {
	mu   sync.Mutex
	next *round        // the round that has not begun yet
	last chan struct{} // closed once the newest round that has begun is over; nil: there was none

	gather time.Duration // how long a round waits for more callers before it begins
	// list asks the kernel; tests count with it. Nil: listFlows.
	list func(ns netns.NsHandle, want []flowFilter) ([]flow, error)
}

// round is one listing and those who wait for it.
type round struct {
	want  []flowFilter
	done  chan struct{}
	flows []flow
	err   error
}

// flows returns the flows that match any of the filters, from a listing that began after the call: a flow that was there then is in it.
func (l *listing) flows(ns netns.NsHandle, want ...flowFilter) ([]flow, error) {
	l.mu.Lock()
	r, first, before := l.next, l.next == nil, l.last
	if first {
		r = &round{done: make(chan struct{})}
		l.next = r
	}
	r.want = append(r.want, want...)
	l.mu.Unlock()
	if first {
		if l.gather > 0 {
			time.Sleep(l.gather)
		}
		if before != nil {
			<-before
		}
		l.mu.Lock()
		l.next, l.last = nil, r.done // who comes from here on may need what the walk has passed already
		l.mu.Unlock()
		list := l.list
		if list == nil {
			list = listFlows
		}
		r.flows, r.err = list(ns, r.want)
		close(r.done)
	}
	<-r.done
	if r.err != nil {
		return nil, r.err
	}
	var out []flow
	for _, f := range r.flows {
		if slices.ContainsFunc(want, func(w flowFilter) bool { return w.match(f) }) {
			out = append(out, f)
		}
	}
	return out, nil
}

// listFlows lists what matches any of the filters. The kernel applies only one at a time: with several, the whole table is listed
// unless that is more work than walking it once per filter.
func listFlows(ns netns.NsHandle, want []flowFilter) ([]flow, error) {
	t, err := openConntrack(ns)
	if err != nil {
		return nil, err
	}
	defer t.close()
	n, err := t.count()
	if err != nil || n == 0 {
		return nil, err
	}
	if len(want) > 1 && n < (len(want)-1)*walkFlows {
		want = []flowFilter{{}}
	}
	var out []flow
	for _, w := range want {
		err := t.each(w, func(f flow) error {
			out = append(out, f)
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	return out, nil
}

const (
	ctGetStats       = subsysConntrack | 5
	ctaGlobalEntries = 1
)

// count is the number of flows in the table of the namespace.
func (t *conntrack) count() (int, error) {
	// The kernel marks its answer as one of several and sends no other: the acknowledgement is what ends it.
	replies, err := t.c.Execute(netlink.Message{
		Header: netlink.Header{Type: ctGetStats, Flags: netlink.Request | netlink.Acknowledge},
		Data:   []byte{unix.AF_UNSPEC, 0, 0, 0},
	})
	if err != nil {
		return 0, fmt.Errorf("count tracked connections: %w", err)
	}
	for _, m := range replies {
		if m.Header.Type != ctGetStats || len(m.Data) < 4 {
			continue
		}
		ad, err := netlink.NewAttributeDecoder(m.Data[4:])
		if err != nil {
			return 0, fmt.Errorf("count tracked connections: %w", err)
		}
		for ad.Next() {
			if b := ad.Bytes(); ad.Type() == ctaGlobalEntries && len(b) == 4 {
				return int(binary.BigEndian.Uint32(b)), nil
			}
		}
	}
	return 0, errors.New("count tracked connections: the kernel does not tell the number")
}
