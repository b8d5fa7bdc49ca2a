package spec

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"
)

// The bounds of a rule's further keys.
const (
	maxHeaders     = 64      // changes of headers per rule
	maxHeaderValue = 4 << 10 // bytes of a value
	maxPrefixes    = 256     // of allow and trusted
	maxRate        = 1e6     // requests in a second
	maxRuleTime    = 24 * time.Hour
)

// RuleKeys say what a rule does with a request besides leading it to a task. All are optional. They need feature level
// cluster.LevelTraffic: an edge that does not know one would serve the rule without it.
type RuleKeys struct {
	// Redirect answers requests instead of a task; then the rule has no port.
	Redirect *Redirect `json:"redirect,omitempty"`
	// RequestHeaders and ResponseHeaders change what the task and the client get.
	RequestHeaders  *HeaderChange `json:"requestHeaders,omitempty"`
	ResponseHeaders *HeaderChange `json:"responseHeaders,omitempty"`
	// BodyLimit bounds a request's body. Zero: no limit.
	BodyLimit Bytes        `json:"bodyLimit,omitempty"`
	Timeout   *RuleTimeout `json:"timeout,omitempty"`
	RateLimit *RateLimit   `json:"rateLimit,omitempty"`
	// Allow are the networks (CIDR) of the clients that are served; none: all.
	Allow []string `json:"allow,omitempty"`
	// Trusted are the networks of proxies in front of the edge whose X-Forwarded-For and -Proto are believed.
	Trusted []string `json:"trusted,omitempty"`
	// Sticky keeps a client with the task that it had, by a cookie.
	Sticky bool `json:"sticky,omitempty"`
	// Protocol is what tasks are spoken to in; empty: HTTP/1.1, and gRPC by its content type.
	Protocol Protocol `json:"protocol,omitempty"`
	// AccessLog says which requests are logged; empty: LogSampled.
	AccessLog AccessLog `json:"accessLog,omitempty"`
}

// Redirect is where a rule sends clients.
type Redirect struct {
	// URL is absolute. Without a path it is given that of the request, without a query the query.
	URL string `json:"url"`
	// Code is 301, 302, 303, 307 or 308, the default.
	Code int `json:"code"`
}

// HeaderChange changes a header: first Remove, then Set, then Add.
type HeaderChange struct {
	Remove []string          `json:"remove,omitempty"`
	Set    map[string]string `json:"set,omitempty"`
	Add    map[string]string `json:"add,omitempty"`
}

// RuleTimeout bounds how long a request takes; zero: no bound.
type RuleTimeout struct {
	Header time.Duration `json:"header,omitempty"` // until the task sends the header of its answer
	Idle   time.Duration `json:"idle,omitempty"`   // in which no byte of a body passes, either way
	Total  time.Duration `json:"total,omitempty"`
}

// RateLimit bounds how often one client is served by one node.
type RateLimit struct {
	Rate  float64 `json:"rate"`  // requests per second
	Burst int     `json:"burst"` // at once; default: Rate, at least 1
	// Header tells clients apart by its value; empty, or where a request has none: by address (IPv6: by /64).
	Header string `json:"header,omitempty"`
}

// Protocol is how an edge speaks to tasks.
type Protocol string

// The protocols.
const (
	ProtocolHTTP Protocol = "http" // HTTP/1.1
	ProtocolH2C  Protocol = "h2c"  // HTTP/2 without TLS
	ProtocolGRPC Protocol = "grpc" // the same
)

// AccessLog says which requests of a rule a node logs.
type AccessLog string

// The access logs.
const (
	LogSampled AccessLog = "sampled" // a few in a second, of all rules
	LogFull    AccessLog = "full"
	LogOff     AccessLog = "off"
)

// Further reports whether any of the keys is used.
func (k *RuleKeys) Further() bool {
	b, err := json.Marshal(k)
	if err != nil {
		panic(fmt.Sprintf("spec: keys of a rule cannot be encoded: %v", err))
	}
	return string(b) != "{}"
}

// Summary is what a rule does, for those who compare two of them: its port, and its further keys as JSON.
func (g Ingress) Summary() string {
	if !g.Further() {
		return fmt.Sprint(g.Port)
	}
	b, err := json.Marshal(g.RuleKeys)
	if err != nil {
		panic(fmt.Sprintf("spec: keys of a rule cannot be encoded: %v", err))
	}
	if g.Redirect != nil {
		return string(b)
	}
	return fmt.Sprintf("%d %s", g.Port, b)
}

func (k *RuleKeys) setDefaults() {
	if k.Redirect != nil {
		setDefault(&k.Redirect.Code, 308)
	}
	if l := k.RateLimit; l != nil {
		setDefault(&l.Burst, max(1, int(l.Rate)))
	}
}

var headerRE = regexp.MustCompile("^[A-Za-z0-9!#$%&'*+.^_`|~-]{1,128}$")

// headersKept are not a rule's to change: they say where a message ends, or belong to one connection.
var headersKept = []string{
	"connection", "content-length", "host", "http2-settings", "keep-alive", "proxy", "proxy-authenticate", "proxy-authorization",
	"proxy-connection", "te", "trailer", "transfer-encoding", "upgrade",
}

// ClaimsClient reports whether a header tells tasks who the client is, under whichever spelling: many programs see
// X_Forwarded_For as X-Forwarded-For.
func ClaimsClient(header string) bool {
	name := strings.ReplaceAll(strings.ToLower(header), "_", "-")
	switch name {
	case "forwarded", "x-real-ip", "true-client-ip":
		return true
	}
	return strings.HasPrefix(name, "x-forwarded-")
}

// ruleKeys checks the further keys of a rule; p ends with a dot.
func (c *checker) ruleKeys(p string, k *RuleKeys) {
	if k.Redirect != nil {
		c.redirect(p+"redirect.", k.Redirect)
	}
	c.headerChange(p+"requestHeaders.", k.RequestHeaders)
	c.headerChange(p+"responseHeaders.", k.ResponseHeaders)
	if k.BodyLimit < 0 {
		c.add(p+"bodyLimit", "a body cannot have fewer than 0 bytes", "write it as 10m")
	}
	if t := k.Timeout; t != nil {
		for _, d := range []struct {
			name string
			time.Duration
		}{{"header", t.Header}, {"idle", t.Idle}, {"total", t.Total}} {
			if d.Duration < 0 || d.Duration > maxRuleTime {
				c.add(p+"timeout."+d.name, fmt.Sprintf("%v is no time to wait", d.Duration), "use up to 24h; leave it out to wait as long as it takes")
			}
		}
	}
	if l := k.RateLimit; l != nil {
		if !(l.Rate > 0 && l.Rate <= maxRate) {
			c.add(p+"rateLimit.rate", fmt.Sprintf("%v requests per second is no rate", l.Rate), "write it as 10/s, 100/m or 1000/h")
		}
		if l.Burst < 1 || l.Burst > maxRate {
			c.add(p+"rateLimit.burst", fmt.Sprintf("%d requests at once are no burst", l.Burst), "use 1 or more")
		}
		if l.Header != "" && !headerRE.MatchString(l.Header) {
			c.add(p+"rateLimit.header", "invalid header name "+quote(l.Header), "write a name such as X-Api-Key")
		}
	}
	c.prefixes(p+"allow", k.Allow)
	c.prefixes(p+"trusted", k.Trusted)
	if k.Protocol != "" {
		c.oneOf(p+"protocol", string(k.Protocol), string(ProtocolHTTP), string(ProtocolH2C), string(ProtocolGRPC))
	}
	if k.AccessLog != "" {
		c.oneOf(p+"accessLog", string(k.AccessLog), string(LogFull), string(LogSampled), string(LogOff))
	}
}

func (c *checker) prefixes(at string, list []string) {
	if len(list) > maxPrefixes {
		c.add(at, fmt.Sprintf("%d networks; at most %d are allowed", len(list), maxPrefixes), "use wider ones")
	}
	for i, n := range list {
		if _, err := netip.ParsePrefix(n); err != nil {
			c.add(fmt.Sprintf("%s[%d]", at, i), "invalid network "+quote(n), "write a network such as 10.0.0.0/8")
		}
	}
}

func (c *checker) redirect(p string, r *Redirect) {
	u, err := url.Parse(r.URL)
	switch {
	case err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || u.Opaque != "":
		c.add(p+"url", "invalid URL "+quote(r.URL), "write where to, such as https://shop.example.com")
	case u.User != nil || u.Fragment != "":
		c.add(p+"url", "the URL has a user or a fragment", "leave them out")
	}
	if !slices.Contains([]int{301, 302, 303, 307, 308}, r.Code) {
		c.add(p+"code", fmt.Sprintf("status %d does not redirect", r.Code), "use 301, 302, 303, 307 or 308")
	}
}

func (c *checker) headerChange(p string, h *HeaderChange) {
	if h == nil {
		return
	}
	if n := len(h.Set) + len(h.Add) + len(h.Remove); n > maxHeaders {
		c.add(strings.TrimSuffix(p, "."), fmt.Sprintf("%d changes of headers; at most %d are allowed", n, maxHeaders), "let the tasks do some")
	}
	for _, name := range h.Remove {
		c.headerName(p+"remove", name)
	}
	for key, m := range map[string]map[string]string{"set": h.Set, "add": h.Add} {
		for _, name := range slices.Sorted(maps.Keys(m)) {
			c.headerName(p+key, name)
			if v := m[name]; len(v) > maxHeaderValue || strings.ContainsFunc(v, func(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f }) {
				c.add(p+key+"."+name, "invalid value", fmt.Sprintf("write one line of at most %d bytes", maxHeaderValue))
			}
		}
	}
}

func (c *checker) headerName(at, name string) {
	switch {
	case !headerRE.MatchString(name):
		c.add(at, "invalid header name "+quote(name), "write a name such as X-Frame-Options")
	case slices.Contains(headersKept, strings.ReplaceAll(strings.ToLower(name), "_", "-")):
		c.add(at, "header "+name+" belongs to the connection, or says where a message ends", "leave it out: the edge writes it")
	case ClaimsClient(name):
		c.add(at, "header "+name+" says who the client is", "leave it out: the edge writes it; `trusted` names proxies in front of it")
	}
}
