package network

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/mdlayher/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// conntrack asks the kernel's connection tracking.
type conntrack struct {
	c *netlink.Conn
}

// flow is one tracked connection.
type flow struct {
	original, reply tuple
	protocol        uint8
	tcpState        uint8
	// The tuples as the kernel wrote them, to name the flow by.
	originalKey, replyKey []byte
}

type tuple struct {
	source, destination         netip.Addr
	sourcePort, destinationPort uint16
}

// open reports whether a TCP connection may still carry data or is closing down.
func (f flow) open() bool {
	return f.protocol == protoTCP && slices.Contains([]uint8{
		tcpSynSent, tcpSynReceived, tcpEstablished, tcpFinWait, tcpCloseWait, tcpLastAck,
	}, f.tcpState)
}

// The TCP states of connection tracking.
const (
	tcpSynSent     = 1
	tcpSynReceived = 2
	tcpEstablished = 3
	tcpFinWait     = 4
	tcpCloseWait   = 5
	tcpLastAck     = 6
)

// flowFilter is applied by the kernel (since 5.8) and again here; zero fields match everything.
type flowFilter struct {
	originalSource netip.Addr
	replySource    netip.Addr // the address that the client's packets arrive at
	protocol       uint8
}

func (w flowFilter) match(f flow) bool {
	return (!w.originalSource.IsValid() || w.originalSource == f.original.source) &&
		(!w.replySource.IsValid() || w.replySource == f.reply.source) &&
		(w.protocol == 0 || w.protocol == f.protocol)
}

// What ctnetlink calls things; the names are the kernel's.
const (
	subsysConntrack = 1 << 8
	ctGet           = subsysConntrack | 1
	ctDelete        = subsysConntrack | 2

	ctaTupleOrig  = 1
	ctaTupleReply = 2
	ctaProtoInfo  = 4
	ctaFilter     = 25

	ctaTupleIP      = 1
	ctaTupleProto   = 2
	ctaIPv4Source   = 1
	ctaIPv4Dest     = 2
	ctaProtoNum     = 1
	ctaProtoSource  = 2
	ctaProtoDest    = 3
	ctaProtoInfoTCP = 1
	ctaTCPState     = 1

	ctaFilterOrigFlags  = 1
	ctaFilterReplyFlags = 2
	filterIPSource      = 1 << 0
	filterProtoNum      = 1 << 3
)

func openConntrack(ns netns.NsHandle) (*conntrack, error) {
	c, err := netlink.Dial(unix.NETLINK_NETFILTER, &netlink.Config{NetNS: int(ns)})
	if err != nil {
		return nil, fmt.Errorf("connection tracking (needs root): %w", err)
	}
	if err := c.SetReadBuffer(receiveBuffer); err != nil {
		return nil, errors.Join(fmt.Errorf("connection tracking: %w", err), c.Close())
	}
	return &conntrack{c}, nil
}

func (t *conntrack) close() { _ = t.c.Close() }

func ctHeader() []byte { return []byte{unix.AF_INET, 0, 0, 0} }

// each calls f for every flow that matches, after the listing is complete.
func (t *conntrack) each(want flowFilter, f func(flow) error) error {
	ae := netlink.NewAttributeEncoder()
	want.encode(ae)
	attrs, err := ae.Encode()
	if err != nil {
		return fmt.Errorf("connection tracking: %w", err)
	}
	replies, err := t.c.Execute(netlink.Message{
		Header: netlink.Header{Type: ctGet, Flags: netlink.Request | netlink.Dump},
		Data:   append(ctHeader(), attrs...),
	})
	if err != nil {
		return fmt.Errorf("list tracked connections: %w", err)
	}
	for _, m := range replies {
		fl, err := parseFlow(m.Data)
		if err != nil {
			return err
		}
		if !want.match(fl) {
			continue
		}
		if err := f(fl); err != nil {
			return err
		}
	}
	return nil
}

// encode asks the kernel to list less. A tuple's address and protocol number are compared where a flag says so.
func (w flowFilter) encode(ae *netlink.AttributeEncoder) {
	tuple := func(a netip.Addr, protocol uint8) (flags uint32, f func(*netlink.AttributeEncoder) error) {
		if a.IsValid() {
			flags |= filterIPSource
		}
		if protocol != 0 {
			flags |= filterProtoNum
		}
		return flags, func(ae *netlink.AttributeEncoder) error {
			if a.IsValid() {
				ae.Nested(ctaTupleIP, func(ae *netlink.AttributeEncoder) error {
					ae.Bytes(ctaIPv4Source, a.AsSlice())
					return nil
				})
			}
			if protocol != 0 {
				ae.Nested(ctaTupleProto, func(ae *netlink.AttributeEncoder) error {
					ae.Uint8(ctaProtoNum, protocol)
					return nil
				})
			}
			return nil
		}
	}
	origFlags, orig := tuple(w.originalSource, 0)
	replyFlags, reply := tuple(w.replySource, w.protocol)
	if w.originalSource.IsValid() {
		origFlags, orig = tuple(w.originalSource, w.protocol)
		replyFlags, reply = tuple(w.replySource, 0)
	}
	if origFlags != 0 {
		ae.Nested(ctaTupleOrig, orig)
	}
	if replyFlags != 0 {
		ae.Nested(ctaTupleReply, reply)
	}
	ae.Nested(ctaFilter, func(ae *netlink.AttributeEncoder) error {
		ae.Uint32(ctaFilterOrigFlags, origFlags)
		ae.Uint32(ctaFilterReplyFlags, replyFlags)
		return nil
	})
}

// removeBySource forgets a flow that a gone address began.
func (t *conntrack) removeBySource(f flow) error { return t.remove(ctaTupleOrig, f.originalKey) }

// removeByTarget forgets a flow to a gone address. It names the flow by its reply: a client that uses its port again has, by
// now, a new flow with the same original tuple, which leads elsewhere and must live.
func (t *conntrack) removeByTarget(f flow) error { return t.remove(ctaTupleReply, f.replyKey) }

// remove forgets the flow of a tuple; that it is gone already is fine.
func (t *conntrack) remove(kind uint16, key []byte) error {
	attrs, err := netlink.MarshalAttributes([]netlink.Attribute{{Type: kind | netlink.Nested, Data: key}})
	if err != nil {
		return fmt.Errorf("connection tracking: %w", err)
	}
	_, err = t.c.Execute(netlink.Message{
		Header: netlink.Header{Type: ctDelete, Flags: netlink.Request | netlink.Acknowledge},
		Data:   append(ctHeader(), attrs...),
	})
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("forget tracked connection: %w", err)
	}
	return nil
}

func parseFlow(data []byte) (flow, error) {
	var f flow
	if len(data) < 4 {
		return f, errors.New("tracked connection: short message")
	}
	ad, err := netlink.NewAttributeDecoder(data[4:])
	if err != nil {
		return f, fmt.Errorf("tracked connection: %w", err)
	}
	for ad.Next() {
		switch ad.Type() {
		case ctaTupleOrig:
			f.originalKey = slices.Clone(ad.Bytes())
			ad.Nested(func(ad *netlink.AttributeDecoder) error { return parseTuple(ad, &f.original, &f.protocol) })
		case ctaTupleReply:
			f.replyKey = slices.Clone(ad.Bytes())
			ad.Nested(func(ad *netlink.AttributeDecoder) error { return parseTuple(ad, &f.reply, &f.protocol) })
		case ctaProtoInfo:
			ad.Nested(func(ad *netlink.AttributeDecoder) error { return parseProtoInfo(ad, &f) })
		}
	}
	if err := ad.Err(); err != nil {
		return f, fmt.Errorf("tracked connection: %w", err)
	}
	return f, nil
}

func parseTuple(ad *netlink.AttributeDecoder, t *tuple, protocol *uint8) error {
	port := func() uint16 {
		if b := ad.Bytes(); len(b) == 2 {
			return binary.BigEndian.Uint16(b)
		}
		return 0
	}
	for ad.Next() {
		switch ad.Type() {
		case ctaTupleIP:
			ad.Nested(func(ip *netlink.AttributeDecoder) error {
				for ip.Next() {
					a, _ := netip.AddrFromSlice(ip.Bytes())
					switch ip.Type() {
					case ctaIPv4Source:
						t.source = a
					case ctaIPv4Dest:
						t.destination = a
					}
				}
				return nil
			})
		case ctaTupleProto:
			outer := ad
			ad.Nested(func(proto *netlink.AttributeDecoder) error {
				ad = proto
				for ad.Next() {
					switch ad.Type() {
					case ctaProtoNum:
						*protocol = ad.Uint8()
					case ctaProtoSource:
						t.sourcePort = port()
					case ctaProtoDest:
						t.destinationPort = port()
					}
				}
				ad = outer
				return nil
			})
		}
	}
	return nil
}

func parseProtoInfo(ad *netlink.AttributeDecoder, f *flow) error {
	for ad.Next() {
		if ad.Type() != ctaProtoInfoTCP {
			continue
		}
		ad.Nested(func(tcp *netlink.AttributeDecoder) error {
			for tcp.Next() {
				if tcp.Type() == ctaTCPState {
					f.tcpState = tcp.Uint8()
				}
			}
			return nil
		})
	}
	return nil
}

// forgetConnections drops every flow from or to an address.
func (n *Network) forgetConnections(a netip.Addr) error {
	from, to := flowFilter{originalSource: a}, flowFilter{replySource: a}
	flows, err := n.forgot.flows(n.host, from, to)
	if err != nil || len(flows) == 0 {
		return err
	}
	t, err := openConntrack(n.host)
	if err != nil {
		return err
	}
	defer t.close()
	var errs []error
	for _, f := range flows {
		if from.match(f) {
			errs = append(errs, t.removeBySource(f))
		}
		if to.match(f) {
			errs = append(errs, t.removeByTarget(f))
		}
	}
	return errors.Join(errs...)
}

// forgetStale drops the UDP flows that the balancer would send elsewhere now, when moved says that there may be any: a sender
// that never pauses would keep its old target for good. It drops every flow of the addresses that left: a client of a task
// that died with its node would wait for answers for many minutes; this way its next packet is refused.
func (n *Network) forgetStale(moved bool, left map[netip.Addr]bool) error {
	want := flowFilter{protocol: protoUDP}
	switch {
	case len(left) > 0:
		want = flowFilter{}
	case !moved:
		return nil
	}
	t, err := openConntrack(n.host)
	if err != nil {
		return err
	}
	defer t.close()
	return t.each(want, func(f flow) error {
		switch {
		case left[f.original.source]:
			return t.removeBySource(f)
		case left[f.reply.source], moved && f.protocol == protoUDP && n.installed.balancer.misplaced(f, n.node.ServicePool, n.node.TaskPool):
			return t.removeByTarget(f)
		}
		return nil
	})
}

// misplaced reports whether a flow leads elsewhere than the balancer would send it.
func (b *balancer) misplaced(f flow, services, tasks netip.Prefix) bool {
	asked := f.original.destination
	if services.Contains(asked) {
		targets, ok := b.fronts[frontend{address: asked}]
		return !ok || !slices.Contains(targets, target{address: f.reply.source})
	}
	for _, a := range []netip.Addr{asked, anyAddress} {
		if targets, ok := b.fronts[frontend{a, f.protocol, f.original.destinationPort}]; ok && f.reply.source != asked {
			return !slices.Contains(targets, target{f.reply.source, f.reply.sourcePort})
		} else if ok && f.reply.destination == f.original.source {
			return len(targets) > 0 // tracked before the port was published
		}
	}
	return f.reply.source != asked && tasks.Contains(f.reply.source) // its port is published no more
}
