package edge

import (
	"net"
	"net/http"
	"net/netip"
	"strings"
)

// peerOf is the address at the other end of a request's connection; the zero Addr when there is none.
func peerOf(r *http.Request) netip.Addr {
	a, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return netip.Addr{}
	}
	return a.Addr().Unmap().WithZone("")
}

// caller is who sent a request.
type caller struct {
	address netip.Addr
	proxied bool // by a proxy that the rule trusts
}

// callerOf finds the client of a request: of the addresses in X-Forwarded-For and the connection's the last one that is not a trusted proxy's.
// What stands before that the client may have made up.
func callerOf(r *http.Request, trusted []netip.Prefix) caller {
	c := caller{address: peerOf(r)}
	if len(trusted) == 0 || !within(trusted, c.address) {
		return c
	}
	c.proxied = true
	hops := r.Header["X-Forwarded-For"]
	for i := len(hops) - 1; i >= 0; i-- {
		rest := hops[i]
		for more := true; more; {
			var hop string
			if at := strings.LastIndexByte(rest, ','); at >= 0 {
				rest, hop = rest[:at], rest[at+1:]
			} else {
				hop, more = rest, false
			}
			a, ok := parseHop(hop)
			if !ok {
				return c
			}
			if c.address = a; !within(trusted, a) {
				return c
			}
		}
	}
	return c
}

// parseHop reads an address as proxies write it: some add a port, and brackets.
func parseHop(s string) (netip.Addr, bool) {
	s = strings.TrimSpace(s)
	if host, _, err := net.SplitHostPort(s); err == nil {
		s = host
	}
	s = strings.TrimSuffix(strings.TrimPrefix(s, "["), "]")
	a, err := netip.ParseAddr(s)
	return a.Unmap().WithZone(""), err == nil
}

// forwardedBy passes on what a trusted proxy says of the client: its list of addresses, which SetXForwarded then adds the proxy's to, and
// whether the client came with TLS. Proxies that know only X-Forwarded-For pass a Forwarded of the client's own on, so that one is never kept.
func forwardedBy(in, out http.Header) (proto string) {
	if hops := in["X-Forwarded-For"]; len(hops) > 0 {
		out["X-Forwarded-For"] = []string{strings.Join(hops, ", ")}
	}
	switch p := strings.ToLower(in.Get("X-Forwarded-Proto")); p {
	case "http", "https":
		return p
	}
	return ""
}

// forwarded is the part of the header of RFC 7239 that stands before the edge's own: the client that a trusted proxy named.
func (c caller) forwarded(proto string) string {
	if !c.proxied || !c.address.IsValid() {
		return ""
	}
	s := "for=" + c.address.String()
	if c.address.Is6() {
		s = `for="[` + c.address.String() + `]"`
	}
	if proto != "" {
		s += ";proto=" + proto
	}
	return s + ", "
}
