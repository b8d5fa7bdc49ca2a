package compose

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/compose-spec/compose-go/v2/interpolation"
	"github.com/compose-spec/compose-go/v2/schema"
	"github.com/compose-spec/compose-go/v2/template"
	"github.com/compose-spec/compose-go/v2/tree"
	"github.com/santhosh-tekuri/jsonschema/v6"
	"github.com/santhosh-tekuri/jsonschema/v6/kind"
	"golang.org/x/text/language"
	"golang.org/x/text/message"
)

// checkSchema reports everything in the given files that the Compose schema refuses. compose-go stops at the first such fault
// and forgets its line; this runs only once it found one. It reports whether it found any.
func checkSchema(rep *report, interpolate interpolation.Options) bool {
	sch, err := composeSchema()
	if err != nil {
		return false
	}
	found := false
	interpolate = lenient(interpolate)
	for _, f := range rep.src.files {
		values, err := interpolation.Interpolate(f.tree, interpolate)
		if err != nil {
			continue
		}
		var invalid *jsonschema.ValidationError
		if errors.As(sch.Validate(plain(values)), &invalid) {
			for _, leaf := range leaves(invalid) {
				found = reportLeaf(rep, leaf) || found
			}
		}
	}
	return found
}

// lenient leaves values as they are that cannot be interpolated or converted; compose-go names those on its own.
func lenient(o interpolation.Options) interpolation.Options {
	substitute := o.Substitute
	o.Substitute = func(s string, m template.Mapping) (string, error) {
		if out, err := substitute(s, m); err == nil {
			return out, nil
		}
		return s, nil
	}
	casts := map[tree.Path]interpolation.Cast{}
	for p, cast := range o.TypeCastMapping {
		casts[p] = func(s string) (any, error) {
			if out, err := cast(s); err == nil {
				return out, nil
			}
			return s, nil
		}
	}
	o.TypeCastMapping = casts
	return o
}

// composeSchema is the compiled schema of Compose. Compiling takes 30 ms, so it is done once, and only for a faulty file.
var composeSchema = sync.OnceValues(compileSchema)

func compileSchema() (*jsonschema.Schema, error) {
	doc, err := jsonschema.UnmarshalJSON(strings.NewReader(schema.Schema))
	if err != nil {
		return nil, err
	}
	c := jsonschema.NewCompiler()
	if err := c.AddResource("compose-spec.json", doc); err != nil {
		return nil, err
	}
	return c.Compile("compose-spec.json")
}

// plain maps what YAML decodes to the types that the schema validator knows.
func plain(v any) any {
	switch v := v.(type) {
	case map[string]any:
		out := make(map[string]any, len(v))
		for k, e := range v {
			out[k] = plain(e)
		}
		return out
	case []any:
		out := make([]any, len(v))
		for i, e := range v {
			out[i] = plain(e)
		}
		return out
	case nil, bool, string, int, int64, uint64, float64, float32:
		return v
	}
	return fmt.Sprint(v)
}

// leaves lists the faults at the ends of a validation error. Of alternatives only the one that came furthest counts: the
// others describe shapes that the author did not mean.
func leaves(e *jsonschema.ValidationError) []*jsonschema.ValidationError {
	if len(e.Causes) == 0 {
		return []*jsonschema.ValidationError{e}
	}
	switch e.ErrorKind.(type) {
	case *kind.OneOf, *kind.AnyOf:
		var best []*jsonschema.ValidationError
		types := true
		for _, c := range e.Causes {
			l := leaves(c)
			_, isType := l[0].ErrorKind.(*kind.Type)
			types = types && isType && len(l[0].InstanceLocation) == len(e.InstanceLocation)
			if best == nil || depth(l[0]) > depth(best[0]) {
				best = l
			}
		}
		if types {
			return []*jsonschema.ValidationError{mergeTypes(e)}
		}
		return best
	}
	var out []*jsonschema.ValidationError
	for _, c := range e.Causes {
		out = append(out, leaves(c)...)
	}
	return out
}

// depth says how far an alternative came; one of another type came nowhere.
func depth(e *jsonschema.ValidationError) int {
	d := 2 * len(e.InstanceLocation)
	if _, ok := e.ErrorKind.(*kind.Type); !ok {
		d++
	}
	return d
}

// mergeTypes makes one fault of alternatives that each want another type.
func mergeTypes(e *jsonschema.ValidationError) *jsonschema.ValidationError {
	k := &kind.Type{}
	for _, c := range e.Causes {
		if t, ok := leaves(c)[0].ErrorKind.(*kind.Type); ok {
			k.Got = t.Got
			k.Want = append(k.Want, t.Want...)
		}
	}
	slices.Sort(k.Want)
	k.Want = slices.Compact(k.Want)
	return &jsonschema.ValidationError{InstanceLocation: e.InstanceLocation, ErrorKind: k}
}

// reportLeaf words one fault. It reports false for one that is only the consequence of another.
func reportLeaf(rep *report, e *jsonschema.ValidationError) bool {
	path, pattern := location(e.InstanceLocation)
	switch k := e.ErrorKind.(type) {
	case *kind.AdditionalProperties:
		for _, p := range k.Properties {
			unknownKey(rep, path, pattern, p)
		}
		return true
	case *kind.FalseSchema: // unevaluatedProperties: the key itself is the place
		r := newRules()
		if _, known := r.byPattern[pattern]; known {
			return false // its value is wrong, and that is reported
		}
		key := e.InstanceLocation[len(e.InstanceLocation)-1]
		unknownKey(rep, parentPath(path), parentPath(pattern), key)
		return true
	case *kind.Type:
		rep.errf(path, "must be %s, not %s", humanTypes(k.Want), humanType(k.Got))
	case *kind.Enum:
		var words []string
		for _, w := range k.Want {
			words = append(words, fmt.Sprint(w))
		}
		mend := suggest(fmt.Sprint(k.Got), words)
		if mend == "" {
			mend = "use " + strings.Join(words, ", ")
		}
		rep.err(path, fmt.Sprintf("unknown value %q", fmt.Sprint(k.Got)), mend)
	case *kind.Pattern:
		mend := ""
		if strings.HasSuffix(path, ".pull_policy") {
			mend = choose(k.Got, "missing", "always", "never")
		}
		rep.err(path, fmt.Sprintf("%q is not allowed here", k.Got), mend)
	case *kind.Minimum:
		rep.errf(path, "must be at least %s", k.Want.RatString())
	case *kind.Maximum:
		rep.errf(path, "must be at most %s", k.Want.RatString())
	case *kind.Required:
		rep.errf(path, "%s is missing", strings.Join(k.Missing, ", "))
	case *kind.UniqueItems:
		rep.errf(path, "has an entry twice")
	case *kind.Format:
		rep.errf(path, "%q is no %s", fmt.Sprint(k.Got), k.Want)
	default:
		rep.errf(path, "%s", e.ErrorKind.LocalizedString(message.NewPrinter(language.English)))
	}
	return true
}

func unknownKey(rep *report, path, pattern, key string) {
	candidates := newRules().under(pattern)
	switch pattern {
	case "":
		candidates = append(candidates, "x-baton")
	case "services.*":
		candidates = append(candidates, extensionNames()...)
	}
	if len(candidates) == 0 {
		candidates = nestedKeys[pattern[strings.LastIndexByte(pattern, '.')+1:]]
	}
	mend := suggest(key, candidates)
	if mend == "" && pattern == "" {
		mend = "the top level has services, networks, volumes, secrets and configs"
	}
	rep.err(join(path, key), fmt.Sprintf("unknown key %q", key), mend)
}

// nestedKeys serves suggestions below the places that the key tables cover.
var nestedKeys = map[string][]string{
	"healthcheck":     {"disable", "interval", "retries", "test", "timeout", "start_period", "start_interval"},
	"update_config":   {"parallelism", "delay", "failure_action", "monitor", "max_failure_ratio", "order"},
	"rollback_config": {"parallelism", "delay", "failure_action", "monitor", "max_failure_ratio", "order"},
	"restart_policy":  {"condition", "delay", "max_attempts", "window"},
	"logging":         {"driver", "options"},
}

// location gives an instance location as a path of a file and as a pattern of the key tables.
func location(loc []string) (path, pattern string) {
	for i, p := range loc {
		index := p != "" && strings.Trim(p, "0123456789") == "" && i > 1
		switch {
		case index:
			path += "[" + p + "]"
		default:
			path = join(path, p)
		}
		name := i == 1 || index || i == 3 && loc[2] == "networks"
		if name {
			p = "*"
		}
		pattern = join(pattern, p)
	}
	return path, pattern
}

func humanTypes(want []string) string {
	out := make([]string, len(want))
	for i, w := range want {
		out[i] = humanType(w)
	}
	if len(out) == 1 {
		return out[0]
	}
	return strings.Join(out[:len(out)-1], ", ") + " or " + out[len(out)-1]
}

func humanType(t string) string {
	switch t {
	case "object":
		return "a mapping"
	case "array":
		return "a list"
	case "null":
		return "empty"
	case "integer":
		return "a whole number"
	case "boolean":
		return "true or false"
	}
	return "a " + t
}
