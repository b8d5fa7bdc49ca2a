package shim

import (
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestParse(t *testing.T) {
	whole := call{namespace: "n", address: "/a/c.sock", id: "x", bundle: "/b", action: "delete"}
	for _, c := range []struct {
		line string
		want call
		ok   bool
	}{
		{"-namespace n -address /a/c.sock -publish-binary /p -id x -bundle /b delete", whole, true},
		{"-namespace n -address /a/c.sock -id x start", call{"n", "/a/c.sock", "x", "", "start"}, true},
		{"-namespace n -address /a/c.sock -id x", call{}, false},
		{"-namespace n -address /a/c.sock -id x -debug start", call{}, false},
		{"-namespace n -id x start", call{}, false},
		{"-v", call{}, false},
		{"", call{}, false},
	} {
		got, ok := parse(strings.Fields(c.line))
		if ok != c.ok || ok && got != c.want {
			t.Errorf("%q: got %+v, %v; want %+v, %v", c.line, got, ok, c.want, c.ok)
		}
	}
}

// bundleOf writes the OCI spec of a task in a group.
func bundleOf(t *testing.T, group string) string {
	t.Helper()
	dir := t.TempDir()
	spec := map[string]any{"process": map[string]any{"env": []string{GroupAnnotation + `":"other`}}}
	if group != "" {
		spec["annotations"] = map[string]string{GroupAnnotation: group}
	}
	b, err := json.Marshal(spec)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "config.json"), b, 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestStart(t *testing.T) {
	run, err := os.MkdirTemp("/tmp", "baton-shim-") // socket paths are short
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(run)
	c := call{namespace: "n", address: filepath.Join(run, "c.sock"), id: "b"}
	if err := os.Mkdir(filepath.Join(run, SocketDir), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, group := range []string{"", "b"} {
		if answer, err := c.start(bundleOf(t, group)); answer != nil || err != nil {
			t.Errorf("group %q: %s, %v; want it to start a shim", group, answer, err)
		}
	}
	if answer, err := c.start(bundleOf(t, "a")); answer != nil || err == nil || !strings.Contains(err.Error(), GoneSign) {
		t.Errorf("a group without a shim: %s, %v; want that it is gone", answer, err)
	}
	socket := SocketPath(c.address, c.namespace, "a")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	answer, err := c.start(bundleOf(t, "a"))
	if want := `{"version":3,"address":"unix://` + socket + `","protocol":"ttrpc"}`; err != nil || string(answer) != want {
		t.Errorf("a group with a shim: %s, %v; want %s", answer, err, want)
	}
	if _, err := c.start(t.TempDir()); err == nil {
		t.Error("without a spec: no error")
	}
}

func TestNothingLeft(t *testing.T) {
	root, bundle := t.TempDir(), t.TempDir()
	c := call{namespace: "n", id: "x", bundle: bundle}
	options := filepath.Join(bundle, "options.json")
	check := func(what string, want bool) {
		t.Helper()
		if got := c.nothingLeft(); got != want {
			t.Errorf("%s: nothing left is %v, want %v", what, got, want)
		}
	}
	check("no options", false)
	if err := os.WriteFile(options, []byte(`{"root":"`+root+`"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	check("all gone", true)
	if err := os.MkdirAll(filepath.Join(bundle, "rootfs"), 0o700); err != nil {
		t.Fatal(err)
	}
	check("an empty root directory", true)
	if err := os.MkdirAll(filepath.Join(root, "n", "x"), 0o700); err != nil {
		t.Fatal(err)
	}
	check("runc knows it", false)
	if err := os.WriteFile(options, []byte(`{`), 0o600); err != nil {
		t.Fatal(err)
	}
	check("damaged options", false)
	c.bundle = ""
	check("no bundle", false)
	if !mounted("/", "proc") {
		t.Error("/proc counts as not mounted")
	}
}
