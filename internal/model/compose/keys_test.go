package compose

import (
	"encoding/json"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	composeschema "github.com/compose-spec/compose-go/v2/schema"
	"github.com/google/go-cmp/cmp"
	"github.com/santhosh-tekuri/jsonschema/v6"
	"go.yaml.in/yaml/v4"
)

const extensionSchema = "../../../schema/baton-extensions.schema.json"

// TestEveryComposeKeyHasARule holds the key tables against the schema of compose-go: a key without a rule would be refused
// with no advice, a rule without a key is a typing error.
func TestEveryComposeKeyHasARule(t *testing.T) {
	var sch struct {
		Properties map[string]any `json:"properties"`
		Defs       map[string]struct {
			Properties map[string]any `json:"properties"`
		} `json:"$defs"`
	}
	if err := json.Unmarshal([]byte(composeschema.Schema), &sch); err != nil {
		t.Fatal(err)
	}
	r := newRules()
	for place, defs := range map[string][]string{
		"services.*":        {"service", "container_spec", "workload_spec"},
		"services.*.deploy": {"deployment"},
		"networks.*":        {"network"},
		"volumes.*":         {"volume"},
		"secrets.*":         {"secret"},
		"configs.*":         {"config"},
	} {
		var want []string
		for _, d := range defs {
			want = slices.AppendSeq(want, maps.Keys(sch.Defs[d].Properties))
		}
		slices.Sort(want)
		if diff := cmp.Diff(slices.Compact(want), r.under(place)); diff != "" {
			t.Errorf("keys of %s (-compose +rules):\n%s", place, diff)
		}
	}
	if diff := cmp.Diff(slices.Sorted(maps.Keys(sch.Properties)), r.under("")); diff != "" {
		t.Errorf("keys of the top level (-compose +rules):\n%s", diff)
	}
}

// TestRulesHaveAdvice checks that every message about a key says what to do.
func TestRulesHaveAdvice(t *testing.T) {
	seen := map[string]bool{}
	for _, k := range otherKeys {
		if k.advice == "" || k.verdict == honoured || seen[k.pattern] {
			t.Errorf("rule of %s has no advice, no verdict or stands twice", k.pattern)
		}
		seen[k.pattern] = true
	}
	for _, e := range extensions {
		if (e.advice == "") != (e.verdict == honoured) || len(e.levels) == 0 {
			t.Errorf("%s: advice %q with verdict %v", e.name, e.advice, e.verdict)
		}
		for _, k := range e.honours {
			if !slices.Contains(e.keys, k) {
				t.Errorf("%s honours %s, which is not among its keys", e.name, k)
			}
		}
	}
}

// TestNamesKeepApart checks that no key of ours counts as a misspelling of another.
func TestNamesKeepApart(t *testing.T) {
	for _, name := range []string{"x-common", "x-env", "x-logging", "x-app", "x-defaults", "x-service", "x-templates", "x-build", "x-volumes", "x-develop"} {
		if got := suggest(name, extensionNames()); got != "" {
			t.Errorf("%s, an ordinary name for anchors, is refused: %s", name, got)
		}
	}
}

// TestExtensionSchema holds the published schema against the loader's own lists.
func TestExtensionSchema(t *testing.T) {
	b, err := os.ReadFile(extensionSchema)
	if err != nil {
		t.Fatal(err)
	}
	type object struct {
		Ref        string                     `json:"$ref"`
		Properties map[string]json.RawMessage `json:"properties"`
		OneOf      []json.RawMessage          `json:"oneOf"`
		Items      *struct {
			Ref string `json:"$ref"`
		} `json:"items"`
	}
	var doc struct {
		Properties map[string]struct {
			Additional object `json:"additionalProperties"`
		} `json:"properties"`
		Defs map[string]object `json:"$defs"`
	}
	if err := json.Unmarshal(b, &doc); err != nil {
		t.Fatal(err)
	}
	at := map[string][]string{levelTop: {"x-baton"}}
	for level, p := range doc.Properties {
		if !strings.HasPrefix(level, "x-") {
			at[level] = slices.Sorted(maps.Keys(p.Additional.Properties))
		}
	}
	want := map[string][]string{}
	for _, e := range extensions {
		for _, l := range e.levels {
			want[l] = append(want[l], e.name)
			slices.Sort(want[l])
		}
		def, ok := doc.Defs[e.name]
		if !ok {
			t.Errorf("the schema does not define %s", e.name)
			continue
		}
		if def.Items != nil && def.Items.Ref != "" {
			def = doc.Defs[strings.TrimPrefix(def.Items.Ref, "#/$defs/")]
		}
		for _, alt := range def.OneOf {
			var o object
			switch {
			case json.Unmarshal(alt, &o) != nil:
			case o.Properties != nil:
				def = o
			case o.Ref != "":
				def = doc.Defs[strings.TrimPrefix(o.Ref, "#/$defs/")]
			}
		}
		if diff := cmp.Diff(slices.Sorted(slices.Values(e.keys)), slices.Sorted(maps.Keys(def.Properties))); diff != "" && len(e.keys)+len(def.Properties) > 0 {
			t.Errorf("keys of %s (-loader +schema):\n%s", e.name, diff)
		}
	}
	if diff := cmp.Diff(want, at); diff != "" {
		t.Errorf("places of the keys (-loader +schema):\n%s", diff)
	}
	probe := slices.Sorted(maps.Keys(doc.Defs["probe"].Properties))
	if diff := cmp.Diff(slices.Sorted(slices.Values(probeKeys)), probe); diff != "" {
		t.Errorf("keys of a probe (-loader +schema):\n%s", diff)
	}
}

// TestExtensionSchemaValidates runs the published schema over files.
func TestExtensionSchemaValidates(t *testing.T) {
	b, err := os.ReadFile(extensionSchema)
	if err != nil {
		t.Fatal(err)
	}
	doc, err := jsonschema.UnmarshalJSON(strings.NewReader(string(b)))
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	if err := c.AddResource("s.json", doc); err != nil {
		t.Fatal(err)
	}
	sch, err := c.Compile("s.json")
	if err != nil {
		t.Fatal(err)
	}
	shop, err := os.ReadFile("testdata/shop/compose.yaml")
	if err != nil {
		t.Fatal(err)
	}
	keys, err := os.ReadFile("testdata/keys.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name, text string
		valid      bool
	}{
		{"shop", string(shop), true},
		{"keys", string(keys), true},
		{"foreign", "services: {a: {x-mine: 1}}", true},
		{"key of a key", "services: {a: {x-probes: {redy: {tcp: 1}}}}", false},
		{"word", "services: {a: {x-placement: packed}}", false},
		{"access", "volumes: {a: {x-storage: {access: many}}}", false},
		{"http", "services: {a: {x-probes: {ready: {http: ready}}}}", false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var v any
			if err := yaml.Unmarshal([]byte(tc.text), &v); err != nil {
				t.Fatal(err)
			}
			if err := sch.Validate(plain(v)); (err == nil) != tc.valid {
				t.Errorf("got %v, want valid: %v", err, tc.valid)
			}
		})
	}
}

// TestPresenceWins checks that no honoured key is reported and every other key is, in a real file.
func TestPresenceWins(t *testing.T) {
	res, err := load(t, `
services:
  a:
    image: a
    container_name: one
    gpus: all
    blkio_config: { weight: 300 }
    networks: { n: { ipv4_address: 10.0.0.2 } }
    x-ingress: [{ host: example.com, port: 80, tls: auto }]
    x-allow-from: [b]
    post_start: [{ command: [x] }]
    links: ["b:database"]
    ports: ["81", "8080-8085:80"]
  b: { image: b, network_mode: bridge, pull_policy: daily, logging: { driver: syslog } }
networks: { n: { driver: macvlan, ipam: { config: [{ subnet: 10.0.0.0/24 }] } } }
configs: { c: { content: a, x-reload: signal } }
`)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, w := range res.Warnings {
		if w.Mend == "" || w.Line == 0 {
			t.Errorf("warning %q has no advice or no line", w)
		}
		got = append(got, w.Path)
	}
	want := []string{
		"services.a.container_name", "services.a.gpus", "services.a.blkio_config", "services.a.networks.n.ipv4_address",
		"services.a.x-allow-from", "services.a.post_start", "services.a.links[0]",
		"services.a.ports[0]", "services.a.ports[1]", "services.b.logging.driver", "services.b.network_mode", "services.b.pull_policy",
		"networks.n.driver", "networks.n.ipam", "configs.c.x-reload",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("warnings (-want +got):\n%s", diff)
	}
}
