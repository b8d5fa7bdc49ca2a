package release

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"baton/internal/model/cluster"
	"baton/internal/model/spec"
)

// Empty reports whether nothing changes.
func (d Diff) Empty() bool {
	changed := slices.ContainsFunc(d.Services, func(c ServiceChange) bool { return c.Action != ActionUnchanged })
	return !changed && !d.New && len(d.Networks) == 0 && len(d.Volumes) == 0
}

// String shows the diff for people, one service per line with its changed fields below.
func (d Diff) String() string {
	var b strings.Builder
	for _, n := range d.Networks {
		fmt.Fprintf(&b, "+ network %s\n", n)
	}
	for _, v := range d.Volumes {
		fmt.Fprintf(&b, "+ volume %s\n", v)
	}
	signs := map[Action]string{ActionCreate: "+", ActionRemove: "-", ActionUnchanged: " "}
	for _, c := range d.Services {
		sign, ok := signs[c.Action]
		if !ok {
			sign = "~"
		}
		fmt.Fprintf(&b, "%s %s %s", sign, c.Action, c.Service)
		if c.From != c.To {
			fmt.Fprintf(&b, " (replicas %d → %d)", c.From, c.To)
		}
		b.WriteByte('\n')
		for _, f := range c.Fields {
			fmt.Fprintf(&b, "    %s\n", f)
		}
	}
	return b.String()
}

// String is `image: a → b`.
func (f FieldChange) String() string {
	switch {
	case f.From == "":
		return f.Path + ": " + f.To
	case f.To == "":
		return f.Path + ": " + f.From + " → (none)"
	}
	return f.Path + ": " + f.From + " → " + f.To
}

// fields lists what differs between two revisions, sorted by path.
func fields(from, to *cluster.Revision) []FieldChange {
	a, b := flat(from), flat(to)
	all := maps.Clone(a)
	maps.Copy(all, b)
	delete(all, "replicas") // shown as the number of replicas
	var out []FieldChange
	for _, path := range slices.Sorted(maps.Keys(all)) {
		if a[path] != b[path] {
			out = append(out, FieldChange{Path: path, From: a[path], To: b[path]})
		}
	}
	return out
}

// flat writes a revision as path → value. Secret and config versions appear under their names, never their content.
func flat(r *cluster.Revision) map[string]string {
	out := make(map[string]string)
	if r == nil {
		return out
	}
	flatten(out, "", reflect.ValueOf(r.Spec))
	for kind, part := range map[string]map[string]cluster.ID{"secretVersions": r.Secrets, "configVersions": r.Configs} {
		for name, id := range part {
			out[kind+"."+name] = id.String()
		}
	}
	return out
}

// flatten walks a spec value and names each leaf by the JSON names on the way.
func flatten(out map[string]string, path string, v reflect.Value) {
	switch v.Kind() {
	case reflect.Pointer:
		if !v.IsNil() {
			flatten(out, path, v.Elem())
		}
	case reflect.Struct:
		for i := range v.NumField() {
			name, _, _ := strings.Cut(v.Type().Field(i).Tag.Get("json"), ",")
			flatten(out, join(path, name), v.Field(i))
		}
	case reflect.Map:
		for _, k := range v.MapKeys() {
			flatten(out, join(path, fmt.Sprint(k.Interface())), v.MapIndex(k))
		}
	case reflect.Slice:
		for i := range v.Len() {
			name, value := element(v.Index(i), i)
			if value != "" {
				out[join(path, name)] = value
				continue
			}
			flatten(out, join(path, name), v.Index(i))
		}
	default:
		if text := leaf(v); text != "" {
			out[path] = text
		}
	}
}

func join(path, name string) string {
	if path == "" || name == "" {
		return path + name
	}
	return path + "." + name
}

// element names a list's element by what tells it apart, so that an insertion does not shift the ones behind it. For
// KEY=VALUE entries and ingress rules it returns the value too.
func element(v reflect.Value, i int) (name, value string) {
	switch e := v.Interface().(type) {
	case string:
		if key, value, ok := strings.Cut(e, "="); ok && key != "" && value != "" {
			return key, value
		}
	case spec.Mount:
		return e.Target, ""
	case spec.FileRef:
		return e.Source, ""
	case spec.Attachment:
		return e.Network, ""
	case spec.Dependency:
		return e.Service, ""
	case spec.Port:
		return fmt.Sprintf("%d/%s", e.Published, e.Protocol), ""
	case spec.Ingress:
		return e.String(), e.Summary()
	}
	return strconv.Itoa(i), ""
}

func leaf(v reflect.Value) string {
	if v.IsZero() {
		return ""
	}
	if d, ok := v.Interface().(time.Duration); ok {
		return d.String()
	}
	return fmt.Sprint(v.Interface())
}
