package spec

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
)

// The sizes that a stack may have. They keep one release within what one transaction of the store carries.
const (
	MaxServices     = 500
	MaxReplicas     = 100_000
	MaxContentBytes = 1 << 20 // of one secret or config
	MaxTotalBytes   = 8 << 20 // of all secrets and configs of a stack together
	maxList         = 1000    // entries of any list or map of a service
)

// FieldError says what is wrong with one field and how to mend it.
type FieldError struct {
	// Path names the field by the names of the JSON API, parts of a stack by their own names: services.web.ports[0].target.
	Path    string `json:"path"`
	Message string `json:"message"`
	Mend    string `json:"mend,omitempty"` // what to do, when there is something better to say than the message
}

func (e FieldError) Error() string {
	s := e.Path + ": " + e.Message
	if e.Mend != "" {
		s += "; " + e.Mend
	}
	return s
}

// InvalidError carries everything that is wrong with a stack, ordered as the stack is.
type InvalidError struct{ Fields []FieldError }

func (e *InvalidError) Error() string {
	lines := make([]string, len(e.Fields))
	for i, f := range e.Fields {
		lines[i] = f.Error()
	}
	return strings.Join(lines, "\n")
}

// Validate checks a stack that carries its defaults. The error is nil or an *InvalidError that names every fault, not only the
// first. It looks at nothing outside the stack: whether images, external volumes or suitable nodes exist is not its concern.
func (s *Stack) Validate() error {
	c := &checker{stack: s}
	if !nameRE.MatchString(s.Name) {
		c.add("name", "invalid stack name "+quote(s.Name), nameRule)
	}
	c.oneOf("onFailure", string(s.OnFailure), string(FailureRollback), string(FailurePause), string(FailureContinue))
	if len(s.Services) == 0 {
		c.add("services", "the stack has no service", "add one, or activate a profile")
	}
	if len(s.Services) > MaxServices {
		c.add("services", fmt.Sprintf("%d services, at most %d fit into one stack", len(s.Services), MaxServices), "split the stack")
	}
	c.parts(s)
	for i := range s.Services {
		c.service(&s.Services[i])
	}
	c.publishedPorts()
	c.ingressRules()
	c.cycles()
	if len(c.fields) == 0 {
		return nil
	}
	return &InvalidError{Fields: c.fields}
}

const nameRule = "use lower-case letters, digits, - and _, at most 63, starting and ending with a letter or digit"

var (
	nameRE = regexp.MustCompile(`^[a-z0-9]([a-z0-9_-]{0,61}[a-z0-9])?$`)
	keyRE  = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}$`)
)

// checker gathers faults. fail-early would make a user run the command once per typing error.
type checker struct {
	stack  *Stack
	fields []FieldError
}

func (c *checker) add(path, message, mend string) {
	c.fields = append(c.fields, FieldError{Path: path, Message: message, Mend: mend})
}

func (c *checker) addf(path, format string, args ...any) {
	c.add(path, fmt.Sprintf(format, args...), "")
}

// oneOf checks a word against those allowed.
func (c *checker) oneOf(path, got string, allowed ...string) {
	if slices.Contains(allowed, got) {
		return
	}
	mend := "use " + strings.Join(allowed, ", ")
	if near := Nearest(got, allowed); near != "" {
		mend = "did you mean " + quote(near) + "?"
	}
	c.add(path, "unknown value "+quote(got), mend)
}

// parts checks networks, volumes, secrets and configs.
func (c *checker) parts(s *Stack) {
	seen := map[string]bool{}
	key := func(kind, name, ref string) string {
		path := kind + "." + name
		if !keyRE.MatchString(name) {
			c.add(path, "invalid name "+quote(name), "use letters, digits, . - and _, starting with a letter or digit")
		}
		if ref != "" && !keyRE.MatchString(ref) {
			c.add(path+".ref", "invalid name "+quote(ref), "use letters, digits, . - and _, starting with a letter or digit")
		}
		if seen[path] {
			c.addf(path, "defined twice")
		}
		seen[path] = true
		return path
	}
	for _, n := range s.Networks {
		key("networks", n.Name, n.Ref)
	}
	for _, v := range s.Volumes {
		path := key("volumes", v.Name, v.Ref)
		if v.SingleWriter && v.Shared {
			c.add(path+".shared", "a volume cannot be single-writer and shared at once", "choose one")
		}
		switch {
		case v.OnLoss == "" || v.OnLoss == LossWait:
		case v.OnLoss != LossRecreate:
			c.add(path+".onLoss", "unknown value "+quote(string(v.OnLoss)), "use wait or recreate")
		case !v.SingleWriter:
			c.add(path+".onLoss", "only a volume with one writer at a time can begin anew elsewhere",
				"mount it in one service with one replica, or say x-storage: {access: single-writer}")
		}
	}
	total := 0
	content := func(path string, external bool, n int) {
		if external && n > 0 {
			c.add(path+".content", "an external one has its content already", "remove the content or external")
		}
		if n > MaxContentBytes {
			c.add(path+".content", fmt.Sprintf("%d bytes, at most %d are allowed", n, MaxContentBytes), "use a volume for large files")
		}
		total += n
	}
	for _, v := range s.Secrets {
		content(key("secrets", v.Name, v.Ref), v.External, len(v.Content))
	}
	for _, v := range s.Configs {
		content(key("configs", v.Name, v.Ref), v.External, len(v.Content))
	}
	if total > MaxTotalBytes {
		c.add("configs", fmt.Sprintf("secrets and configs take %d bytes together, at most %d are allowed", total, MaxTotalBytes),
			"use a volume for large files")
	}
	for i := range s.Services {
		v := &s.Services[i]
		path := "services." + v.Name
		if !nameRE.MatchString(v.Name) {
			c.add(path, "invalid service name "+quote(v.Name), nameRule)
		}
		if seen[path] {
			c.addf(path, "defined twice")
		}
		seen[path] = true
	}
}

// publishedPorts finds two services that want one port. Ingress ports are open on every node, so they collide with all.
func (c *checker) publishedPorts() {
	type claim struct {
		path, ip string
		service  string
		mode     PortMode
	}
	claims := map[string][]claim{}
	for i := range c.stack.Services {
		v := &c.stack.Services[i]
		for j, p := range v.Ports {
			if p.Published == 0 {
				continue
			}
			key := fmt.Sprintf("%d/%s", p.Published, p.Protocol)
			mine := claim{fmt.Sprintf("services.%s.ports[%d].published", v.Name, j), p.HostIP, v.Name, p.Mode}
			for _, other := range claims[key] {
				// Host ports of different services may be on different nodes: the scheduler keeps them apart.
				apart := p.Mode == PortHost && other.mode == PortHost && other.service != v.Name
				if !apart && sameAddress(p.HostIP, other.ip) {
					c.add(mine.path, fmt.Sprintf("port %s is published already by service %s", key, other.service), "choose another port")
					break
				}
			}
			claims[key] = append(claims[key], mine)
		}
	}
}

func sameAddress(a, b string) bool {
	everywhere := func(s string) bool { return s == "" || s == "0.0.0.0" || s == "::" }
	return a == b || everywhere(a) || everywhere(b)
}

// cycles finds services that wait for each other, each cycle once.
func (c *checker) cycles() {
	deps := map[string][]string{}
	for i := range c.stack.Services {
		for _, d := range c.stack.Services[i].DependsOn {
			deps[c.stack.Services[i].Name] = append(deps[c.stack.Services[i].Name], d.Service)
		}
	}
	const (
		open = 1
		done = 2
	)
	state := map[string]int{}
	var trail []string
	var visit func(name string)
	visit = func(name string) {
		if state[name] == done {
			return
		}
		if state[name] == open {
			cycle := append(slices.Clone(trail[slices.Index(trail, name):]), name)
			c.add("services."+cycle[0]+".dependsOn", "services wait for each other: "+strings.Join(cycle, " → "), "remove one of these dependencies")
			return
		}
		state[name] = open
		trail = append(trail, name)
		for _, d := range deps[name] {
			visit(d)
		}
		trail = trail[:len(trail)-1]
		state[name] = done
	}
	for _, name := range slices.Sorted(maps.Keys(deps)) {
		visit(name)
	}
}

// Nearest returns the candidate that word is most likely a misspelling of, or "".
func Nearest(word string, candidates []string) string {
	best, bestDist := "", 3
	if len(word) <= 4 {
		bestDist = 2
	}
	for _, c := range candidates {
		if d := distance(strings.ToLower(word), c, bestDist); d < bestDist {
			best, bestDist = c, d
		}
	}
	return best
}

// distance is the number of insertions, deletions, replacements and swaps of neighbours from a to b, or limit when there
// are that many or more.
func distance(a, b string, limit int) int {
	if len(a)-len(b) >= limit || len(b)-len(a) >= limit {
		return limit
	}
	var before, prev []int
	cur := make([]int, len(b)+1)
	for j := range cur {
		cur[j] = j
	}
	for i := 1; i <= len(a); i++ {
		before, prev, cur = prev, cur, make([]int, len(b)+1)
		cur[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			cur[j] = min(prev[j]+1, cur[j-1]+1, prev[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				cur[j] = min(cur[j], before[j-2]+1)
			}
		}
	}
	return min(cur[len(b)], limit)
}

func quote(s string) string { return fmt.Sprintf("%q", s) }
