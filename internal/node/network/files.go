package network

import (
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"

	"baton/internal/node/agent"
)

// dnsAddress is where a task asks for names, within its own namespace.
const dnsAddress = "127.0.0.11"

// resolvConf is the content of a task's /etc/resolv.conf. Without search domains of its own a task gets the node's.
func (n *Network) resolvConf(a agent.Attachment) []byte {
	search := a.DNSSearch
	if search == nil {
		if b, err := os.ReadFile(n.cfg.ResolvConf); err == nil {
			search = parseResolvConf(b).search
		}
	}
	options := slices.Clone(a.DNSOptions)
	for _, o := range []string{
		"ndots:0", // a service name is complete as it is
		// A question that comes while baton is being restarted is lost: asked again after a second it costs no more than that,
		// and not the five seconds that resolvers wait by themselves, within which many clients give up.
		"timeout:1", "attempts:5",
	} {
		name, _, _ := strings.Cut(o, ":")
		if !slices.ContainsFunc(options, func(have string) bool { return strings.HasPrefix(have, name+":") }) {
			options = append(options, o)
		}
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, "nameserver %s\n", dnsAddress)
	if len(search) > 0 && !slices.Equal(search, []string{"."}) {
		fmt.Fprintf(&b, "search %s\n", strings.Join(search, " "))
	}
	fmt.Fprintf(&b, "options %s\n", strings.Join(options, " "))
	return b.Bytes()
}

// hostsFile is the content of a task's /etc/hosts.
func hostsFile(a agent.Attachment, node netip.Addr) []byte {
	var b bytes.Buffer
	b.WriteString("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n")
	for _, extra := range a.ExtraHosts {
		if name, address, ok := strings.Cut(extra, "="); ok {
			if address == hostGateway {
				address = node.String()
			}
			fmt.Fprintf(&b, "%s\t%s\n", address, name)
		}
	}
	if a.Hostname != "" {
		short, _, qualified := strings.Cut(a.Hostname, ".")
		if qualified {
			fmt.Fprintf(&b, "%s\t%s %s\n", a.Address, a.Hostname, short)
		} else {
			fmt.Fprintf(&b, "%s\t%s\n", a.Address, a.Hostname)
		}
	}
	return b.Bytes()
}

// resolvers is what matters here of a resolv.conf.
type resolvers struct {
	servers []string
	search  []string
}

func parseResolvConf(b []byte) resolvers {
	var r resolvers
	for line := range strings.Lines(string(b)) {
		fields := strings.Fields(line)
		if len(fields) < 2 {
			continue
		}
		switch fields[0] {
		case "nameserver":
			r.servers = append(r.servers, fields[1])
		case "search", "domain":
			r.search = fields[1:]
		}
	}
	return r
}

// hostGateway stands for the node in ExtraHosts, as in docker.
const hostGateway = "host-gateway"
