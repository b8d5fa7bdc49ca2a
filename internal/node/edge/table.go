package edge

import (
	"cmp"
	"iter"
	"maps"
	"math/rand/v2"
	"net"
	"net/netip"
	"path"
	"slices"
	"strings"
	"time"

	"baton/internal/model/cluster"
	"baton/internal/model/spec"
	"baton/internal/wire/agentapi"
)

// route is one rule with the endpoints that serve it.
type route struct {
	path     string
	service  string   // stack/service, for the log
	counter  *counter // of the requests that no task has
	hold     *hold    // nil: a request that finds no endpoint is refused
	tls      bool     // plain HTTP is sent to https
	backends []*backend
	policy   *policy // nil: the request goes to a task as it is
	sticky   *sticky // nil: every request may go to another task
}

// table says where requests go. It does not change once it is in use.
type table struct {
	exact map[string][]*route // by host
	wild  map[string][]*route // by what follows "*."
	any   []*route
	rules int
}

// sources give a table what outlives it.
type sources interface {
	backend(at netip.AddrPort, service, task cluster.ID) *backend
	counter(service cluster.ID) *counter
	limiter(g *spec.Ingress) *limiter
}

// newTable makes the table of services.
func newTable(services []agentapi.Service, from sources) *table {
	t := &table{exact: make(map[string][]*route), wild: make(map[string][]*route)}
	var ruled []*agentapi.Service
	for i := range services {
		if len(services[i].Ingress) > 0 {
			ruled = append(ruled, &services[i])
		}
	}
	// Managers refuse two services with one rule. If there are all the same, every node must choose the same one.
	slices.SortFunc(ruled, func(a, b *agentapi.Service) int { return slices.Compare(a.ID[:], b.ID[:]) })
	for _, s := range ruled {
		for _, g := range s.Ingress {
			r := &route{
				path: g.Path, service: s.Stack + "/" + s.Name, counter: from.counter(s.ID), hold: newHold(s), tls: g.TLS.Enabled(),
				policy: newPolicy(&g.RuleKeys, from.limiter(&g)),
			}
			if g.Sticky {
				r.sticky = newSticky(s.ID, g.Path)
			}
			for _, p := range s.Endpoints {
				if g.Redirect != nil {
					break // no request goes to them
				}
				b := from.backend(netip.AddrPortFrom(p.Address, g.Port), s.ID, p.Task)
				r.backends = append(r.backends, b)
				r.sticky.add(s.ID, p.Task, b)
			}
			t.rules++
			switch suffix, wild := strings.CutPrefix(g.Host, "*."); {
			case g.Host == "":
				t.any = append(t.any, r)
			case wild:
				t.wild[suffix] = append(t.wild[suffix], r)
			default:
				t.exact[g.Host] = append(t.exact[g.Host], r)
			}
		}
	}
	longestFirst(t.any)
	for _, m := range []map[string][]*route{t.exact, t.wild} {
		for _, list := range m {
			longestFirst(list)
		}
	}
	return t
}

// all are the rules, in no particular order.
func (t *table) all() iter.Seq[*route] {
	return func(yield func(*route) bool) {
		lists := slices.Collect(maps.Values(t.exact))
		lists = append(slices.AppendSeq(lists, maps.Values(t.wild)), t.any)
		for _, list := range lists {
			for _, r := range list {
				if !yield(r) {
					return
				}
			}
		}
	}
}

func longestFirst(list []*route) {
	slices.SortStableFunc(list, func(a, b *route) int { return cmp.Compare(len(b.path), len(a.path)) })
}

// find returns the rule for a request: of the more exact host, then of the longer path; nil when there is none.
func (t *table) find(host, urlPath string) *route {
	host = hostname(host)
	// Dots are resolved for the choice as the task will resolve them: /a/../b is a request for /b.
	clean := path.Clean(urlPath)
	_, parent, _ := strings.Cut(host, ".")
	for _, list := range [][]*route{t.exact[host], t.wild[parent], t.any} {
		for _, r := range list {
			if under(clean, r.path) {
				return r
			}
		}
	}
	return nil
}

// under reports whether a path begins with the segments of prefix.
func under(p, prefix string) bool {
	rest, ok := strings.CutPrefix(p, strings.TrimSuffix(prefix, "/"))
	return ok && (rest == "" || rest[0] == '/')
}

// hostname is a Host header as rules are written: without port and final dot, in lower case.
func hostname(host string) string {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	return strings.ToLower(strings.TrimSuffix(host, "."))
}

// pick chooses an endpoint that was not tried: of two at random the one with less to do. That spreads nearly as well as
// asking all, and does not send every node's requests to the same idle one.
func (r *route) pick(tried []*backend, now time.Time) *backend {
	list := r.backends
	if len(tried) > 0 {
		list = slices.DeleteFunc(slices.Clone(list), func(b *backend) bool { return slices.Contains(tried, b) })
	}
	switch len(list) {
	case 0:
		return nil
	case 1:
		return list[0]
	}
	i := rand.IntN(len(list))
	j := rand.IntN(len(list) - 1)
	if j >= i {
		j++
	}
	a, b := list[i], list[j]
	if b.load(now) < a.load(now) {
		return b
	}
	return a
}
