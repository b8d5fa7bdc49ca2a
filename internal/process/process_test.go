package process

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestNodeKeepsItsIdentity(t *testing.T) {
	dir := t.TempDir()
	first, err := identify(dir, "one")
	if err != nil || first.get().ID.IsZero() || first.get().Name != "one" {
		t.Fatalf("got %+v, %v; want a new node called one", first.get(), err)
	}
	// A killed process may leave half of a file under the temporary name.
	if err := os.WriteFile(filepath.Join(dir, "node.json.new"), []byte(`{"id":`), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ name, want string }{{"", "one"}, {"two", "two"}, {"", "two"}} {
		got, err := identify(dir, c.name)
		if err != nil || got.get().ID != first.get().ID || got.get().Name != c.want {
			t.Errorf("started as %q: got %+v, %v; want %s with the same id", c.name, got.get(), err, c.want)
		}
	}
}

func TestBadIdentityIsRefused(t *testing.T) {
	for name, c := range map[string]struct{ content, node, want string }{
		"empty file":   {"", "", "damaged"},
		"no id":        {`{"name":"one"}`, "", "damaged"},
		"not JSON":     {"x", "one", "damaged"},
		"bad name":     {"-", "a b", "give another --name"},
		"name of dash": {"-", "-", "give another --name"},
		"long name":    {"-", strings.Repeat("n", 64), "give another --name"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, "node.json")
			if c.content != "-" {
				if err := os.WriteFile(path, []byte(c.content), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := identify(dir, c.node); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want an error with %q", err, c.want)
			}
			if data, err := os.ReadFile(path); c.content != "-" && (err != nil || string(data) != c.content) {
				t.Errorf("the file became %q, %v", data, err)
			}
		})
	}
}

func TestOneServerPerDirectory(t *testing.T) {
	dir := t.TempDir()
	unlock, err := lock(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := lock(dir); err == nil || !strings.Contains(err.Error(), "another baton server runs on "+dir) {
		t.Errorf("got %v, want the second refused", err)
	}
	unlock()
	again, err := lock(dir)
	if err != nil {
		t.Fatalf("after the first has ended: %v", err)
	}
	again()
}
