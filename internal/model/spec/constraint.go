package spec

import (
	"fmt"
	"strings"
)

// The node attributes that constraints and spread preferences may name, besides node.labels.<key>.
const (
	AttrID       = "node.id"
	AttrHostname = "node.hostname"
	AttrRole     = "node.role"          // manager or worker
	AttrOS       = "node.platform.os"   // linux
	AttrArch     = "node.platform.arch" // amd64, arm64…

	// AttrLabelPrefix is followed by the label's key.
	AttrLabelPrefix = "node.labels."
)

// nodeAttributes lists the fixed attributes in the order in which errors name them.
var nodeAttributes = []string{AttrID, AttrHostname, AttrRole, AttrOS, AttrArch}

// archAliases maps what kernels and people call an architecture to the name that nodes report.
var archAliases = map[string]string{"x86_64": "amd64", "x86-64": "amd64", "aarch64": "arm64", "armhf": "arm", "i386": "386"}

// Constraint is one parsed placement constraint.
type Constraint struct {
	Key    string // a node attribute: node.labels.zone
	Negate bool   // != rather than ==
	Value  string
}

// ParseConstraint reads a constraint in Swarm's language, `KEY == VALUE` or `KEY != VALUE`. Blanks around the parts do not
// matter. The error says which part is wrong and what may stand there.
func ParseConstraint(s string) (Constraint, error) {
	key, value, ok := strings.Cut(s, "==")
	var c Constraint
	if k, v, neg := strings.Cut(s, "!="); neg && (!ok || len(k) < len(key)) {
		key, value, ok, c.Negate = k, v, true, true
	}
	if !ok {
		return Constraint{}, fmt.Errorf("constraint %q has no operator; write it as node.labels.zone == eu or node.role != manager", s)
	}
	c.Key, c.Value = strings.TrimSpace(key), strings.TrimSpace(value)
	if err := checkAttribute(c.Key); err != nil {
		return Constraint{}, fmt.Errorf("constraint %q: %w", s, err)
	}
	if c.Value == "" {
		return Constraint{}, fmt.Errorf("constraint %q compares with nothing; give a value after the operator", s)
	}
	if i := strings.IndexFunc(c.Value, func(r rune) bool { return !attributeRune(r) }); i >= 0 {
		return Constraint{}, fmt.Errorf("constraint %q: value %q may hold only letters, digits and . _ - / : + @", s, c.Value)
	}
	if c.Key == AttrRole && !strings.EqualFold(c.Value, "manager") && !strings.EqualFold(c.Value, "worker") {
		return Constraint{}, fmt.Errorf("constraint %q: a role is manager or worker", s)
	}
	return c, nil
}

// Match reports whether a node satisfies the constraint. get returns the node's attribute of that key, "" when it has none.
// Values compare without regard to case, and architectures by any of their usual names.
func (c Constraint) Match(get func(key string) string) bool {
	have, want := get(c.Key), c.Value
	if c.Key == AttrArch {
		have, want = canonicalArch(have), canonicalArch(want)
	}
	return strings.EqualFold(have, want) != c.Negate
}

// String gives the constraint in its usual form.
func (c Constraint) String() string {
	op := "=="
	if c.Negate {
		op = "!="
	}
	return c.Key + " " + op + " " + c.Value
}

// checkAttribute says why key is no node attribute.
func checkAttribute(key string) error {
	for _, a := range nodeAttributes {
		if key == a {
			return nil
		}
	}
	if label, ok := strings.CutPrefix(key, AttrLabelPrefix); ok {
		if label == "" || strings.ContainsFunc(label, func(r rune) bool { return !attributeRune(r) }) {
			return fmt.Errorf("%q is no label key; use letters, digits and . _ - /", label)
		}
		return nil
	}
	return fmt.Errorf("unknown node attribute %q; use %s<key>, %s", key, AttrLabelPrefix, strings.Join(nodeAttributes, ", "))
}

func attributeRune(r rune) bool {
	return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("._-/:+@", r)
}

func canonicalArch(a string) string {
	a = strings.ToLower(a)
	if c, ok := archAliases[a]; ok {
		return c
	}
	return a
}
