package compose

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"go.yaml.in/yaml/v4"
)

// oddValues are what a value is replaced by in TestOddValues.
var oddValues = []string{`null`, `-1`, `odd`, `[]`, `{}`, `[1]`, `{a: 1}`, `true`, `1e30`, `""`, `99999999999999999999`, `[[a]]`, `{a: {b: [c]}}`, `"${"`}

// TestOddValues replaces each value of a large file in turn. Whatever stands there, Load returns a valid stack or a message that
// has a place. This reaches compose-go's conversions, which random bytes hardly do.
func TestOddValues(t *testing.T) {
	b, err := os.ReadFile("testdata/keys.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var doc yaml.Node
	if err := yaml.Unmarshal(b, &doc); err != nil {
		t.Fatal(err)
	}
	leaves := 0
	var visit func(n *yaml.Node, path string)
	visit = func(n *yaml.Node, path string) {
		if n.Kind == yaml.AliasNode {
			return
		}
		if path != "" {
			// Each value meets one odd value per run of the loop; neighbours meet different ones.
			tryOdd(t, &doc, n, path, oddValues[leaves%len(oddValues)])
			tryOdd(t, &doc, n, path, oddValues[(leaves*5+3)%len(oddValues)])
			leaves++
		}
		for i, c := range n.Content {
			switch {
			case n.Kind == yaml.MappingNode && i%2 == 1:
				visit(c, join(path, n.Content[i-1].Value))
			case n.Kind == yaml.SequenceNode:
				visit(c, fmt.Sprintf("%s[%d]", path, i))
			}
		}
	}
	visit(doc.Content[0], "")
	if leaves < 200 {
		t.Errorf("only %d values were tried", leaves)
	}
}

func tryOdd(t *testing.T, doc, n *yaml.Node, path, value string) {
	t.Helper()
	var odd yaml.Node
	if err := yaml.Unmarshal([]byte(value), &odd); err != nil {
		t.Fatal(err)
	}
	keep := *n
	*n = *odd.Content[0]
	n.Anchor = keep.Anchor
	text, err := yaml.Marshal(doc)
	*n = keep
	if err != nil {
		t.Fatal(err)
	}
	_, err = Load(t.Context(), Options{Content: text, WorkingDir: "testdata", ProjectName: "odd", Env: map[string]string{"TOKEN": "x"}})
	if err == nil {
		return
	}
	var bad *Error
	if !errors.As(err, &bad) {
		t.Errorf("%s = %s: got %T %v", path, value, err, err)
		return
	}
	for _, d := range bad.Diagnostics {
		switch {
		case d.Line == 0 && !strings.Contains(d.Message, "has no service") && !strings.Contains(d.Message, "is empty"):
			t.Errorf("%s = %s: no line: %s", path, value, d)
		case strings.Contains(d.Message, "interface") || strings.Contains(d.Message, "strconv") || strings.Contains(d.Message, "wrong type; compare"):
			t.Errorf("%s = %s: words of the library: %s", path, value, d)
		}
	}
}
