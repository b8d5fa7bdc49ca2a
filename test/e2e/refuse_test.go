package e2e

import (
	"strings"
	"testing"

	"baton/client/api"
)

// TestBadInputIsRefused gives what people get wrong, and wants a clear error with the mend, the right exit code, and nothing
// half-created.
func TestBadInputIsRefused(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	m.load("web-v1")
	for _, c := range []struct {
		name, file string
		want       []string
		code       int
	}{
		{"broken YAML", "name: bad\nservices:\n  web: [\n", []string{"compose.yaml:"}, api.ExitError},
		{"a misspelt key of ours", webFile("    x-probe: {ready: {http: /}}\n"), []string{"compose.yaml:5", "x-probe", "did you mean", "x-probes"}, api.ExitError},
		{"an unknown mode", webFile(deploy("mode: replicatd")), []string{"compose.yaml:5", "replicatd", "replicated"}, api.ExitError},
		{"an unknown network", webFile("    networks: [nowhere]\n"), []string{"nowhere"}, api.ExitError},
		{"a secret that does not exist", webFile("    secrets: [pw]\n") + "secrets: {pw: {external: true}}\n", []string{"pw", "baton secret set pw"}, api.ExitError},
		{"one port twice", webFile("    ports: [\"80:80\", \"80:81\"]\n"), []string{"80", "compose.yaml:"}, api.ExitError},
		{"a constraint that is none", webFile(deploy("placement: {constraints: [\"node.labels.zone\"]}")), []string{"node.labels.zone", "compose.yaml:5"}, api.ExitError},
	} {
		r := m.try("up", "-f", m.write("compose.yaml", c.file), "-y", "--timeout", "20s")
		if r.code != c.code {
			t.Errorf("%s: exit %d, want %d", c.name, r.code, c.code)
		}
		for _, w := range c.want {
			if !strings.Contains(r.stderr, w) {
				t.Errorf("%s: the error does not say %q:\n%s", c.name, w, r.stderr)
			}
		}
		if strings.Contains(r.stderr, "goroutine ") || strings.Contains(r.stderr, "panic") {
			t.Errorf("%s: a Go trace reaches the user:\n%s", c.name, r.stderr)
		}
	}
	if list := batonJSON[[]api.Stack](m, "ls", "--stacks"); len(list) != 0 {
		t.Errorf("refused stacks left something: %+v", list)
	}
}

// TestWhatCannotRunSaysWhy deploys what is valid but cannot run here.
func TestWhatCannotRunSaysWhy(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	m.load("web-v1")
	for _, c := range []struct {
		name, file string
		want       []string
	}{
		{"no node fits", webFile(deploy("placement: {constraints: [\"node.labels.zone == moon\"]}")), []string{"0 of 1 node", "node.labels.zone"}},
		{"an image that is not there", strings.ReplaceAll(webFile(), "web:v1", "nothing:v9"), []string{"baton.test/nothing:v9", "baton image load"}},
		{"more memory than there is", webFile(deploy("resources: {reservations: {memory: 900G}}")), []string{"0 of 1 node", "memory"}},
		{"a command that is not in the image", webFile("    entrypoint: [/no/such/program]\n"), []string{"/no/such/program"}},
	} {
		r := m.try("up", "-f", m.write("compose.yaml", c.file), "-y", "--timeout", "4s")
		if r.code != api.ExitTimeout && r.code != api.ExitError {
			t.Errorf("%s: exit %d, want %d or %d\n%s", c.name, r.code, api.ExitTimeout, api.ExitError, r.stderr)
		}
		why := m.baton("why", "web")
		for _, w := range c.want {
			if !strings.Contains(why, w) {
				t.Errorf("%s: why does not say %q:\n%s", c.name, w, why)
			}
		}
		m.baton("down", "-y", "site")
	}
}

func TestPortOfAnotherStackIsRefused(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	m.load("web-v1")
	m.baton("up", "-f", m.write("compose.yaml", webFile(published)), "-y")
	r := m.try("up", "-f", m.write("other.yaml", strings.ReplaceAll(webFile(published), "name: site", "name: other")), "-y")
	if r.code != api.ExitRefused || !strings.Contains(r.stderr, "8080") || !strings.Contains(r.stderr, "site") {
		t.Errorf("exit %d, want %d and an error that names port 8080 and stack site:\n%s", r.code, api.ExitRefused, r.stderr)
	}
}

// TestSecretsStaySecret looks for the content of a secret where it must not be.
func TestSecretsStaySecret(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	m.load("web-v1")
	const content = "swordfish-7c1e0"
	if r := m.tryIn([]byte(content), "secret", "set", "pw", "-"); r.code != 0 {
		t.Fatal(r.stderr)
	}
	m.baton("up", "-f", m.write("compose.yaml", webFile(published, "    secrets: [{source: pw, uid: \"65532\", mode: 0400}]\n")+"secrets: {pw: {external: true}}\n"), "-y")
	if body, err := m.ask(m.outside, url("/file?path=/run/secrets/pw")); err != nil || body != content {
		t.Errorf("the task reads %q, %v", body, err)
	}
	for _, args := range [][]string{{"secret", "ls"}, {"ps", "-o", "json"}, {"why", "web"}, {"events"}, {"config", "-f", m.dir + "/compose.yaml"}, {"node", "inspect", "n1"}} {
		if strings.Contains(m.baton(args...), content) {
			t.Errorf("baton %v shows the secret", args)
		}
	}
	if strings.Contains(m.log(1<<20), content) {
		t.Error("the server's log shows the secret")
	}
	for _, path := range filesWith(t, m.data, content) {
		if !strings.HasPrefix(path, m.data+"/files/") {
			t.Errorf("%s on disk holds the secret", path)
		}
	}
}
