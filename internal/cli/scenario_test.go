package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"baton/client/api"
	"baton/internal/manager/store"
	"baton/internal/model/cluster"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const webFile = `name: shop
services:
  web:
    image: web:1
    ports: ["8080:80"]
    configs: [{source: page, target: /page}]
    deploy:
      replicas: 2
      update_config: {monitor: 10ms}
      rollback_config: {monitor: 10ms}
configs:
  page: {content: "one"}
volumes:
  data: {}
`

func contains(t *testing.T, out string, parts ...string) {
	t.Helper()
	for _, p := range parts {
		if !strings.Contains(out, p) {
			t.Errorf("no %q in:\n%s", p, out)
		}
	}
}

// The life of a stack from its first deployment to its end.
func TestStackLife(t *testing.T) {
	c := newCluster(t, true)
	write(t, "compose.yaml", webFile)

	contains(t, c.want(api.ExitChanges, "plan"), "+ create service web", "create   web/1 on n1", "create config page")
	contains(t, c.want(0, "up", "-y"), "stack shop: release 1", "2/2 ready", "release 1 of shop is complete and healthy")
	contains(t, c.want(0, "plan"), "nothing would change")
	contains(t, c.want(0, "up", "-y"), "nothing changed (release 1)")
	contains(t, c.want(0, "ls"), "web", "replicated", "2/2", "*:8080->80/tcp", "ok")
	contains(t, c.want(0, "ps"), "web/1", "web/2", "running")
	contains(t, c.want(0, "status"), "stack shop: healthy")
	contains(t, c.want(0, "scale", "web=3"), "3/3 ready")
	contains(t, c.want(0, "restart", "web"), "3/3 ready")
	contains(t, c.want(0, "why", "web"), "service web is as wanted: 3 of 3 ready")
	contains(t, c.want(0, "cfg", "get", "page"), "one")

	write(t, "compose.yaml", strings.NewReplacer("web:1", "web:2", `"one"`, `"two"`).Replace(webFile))
	contains(t, c.want(0, "up", "-y"), "service web: update", "release 2 of shop is complete")
	contains(t, c.want(0, "cfg", "get", "page"), "two")
	contains(t, c.want(0, "rollback"), "release 3 of shop is complete")
	contains(t, c.want(0, "ls", "-o", "json"), `"web:1"`)
	contains(t, c.want(0, "releases"), "r3", "complete *", "back to r1")
	contains(t, c.want(0, "releases", "r2"), "web:2", "page@2")
	contains(t, c.want(0, "ps", "-a"), `\_ web/1`)

	contains(t, c.want(0, "down", "--volumes", "-y"), "stack shop is gone")
	contains(t, c.want(1, "status", "shop"), `no stack "shop"`)
	contains(t, c.want(0, "events"), "stack.deployed", "stack.removed")
	if err := c.store.Snapshot().Verify(); err != nil {
		t.Error(err)
	}
}

// A number set by hand stays until it is given back, over deployments too.
func TestScaleByHandAndAuto(t *testing.T) {
	c := newCluster(t, true)
	settings, _ := c.store.Snapshot().Settings()
	settings = cluster.Copy(settings)
	settings.Level = cluster.LevelTraffic
	c.put(settings)
	file := strings.Replace(webFile, "deploy:", "x-autoscale: { min: 1, max: 4, target: { rps: 50 } }\n    deploy:", 1)
	write(t, "compose.yaml", file)
	contains(t, c.want(api.ExitChanges, "plan"), "+ create service web", "from 1 to 4")
	contains(t, c.want(0, "up", "-y"), "2/2 ready")
	contains(t, c.want(0, "ls"), "2/2 (auto 1-4)")
	contains(t, c.want(0, "scale", "web=5"), "5/5 ready")
	contains(t, c.want(0, "ls"), "5/5 (by hand)")
	contains(t, c.want(0, "why", "web"), "its number, 5, was set by hand", "baton scale web=auto")
	write(t, "compose.yaml", strings.Replace(file, "rps: 50", "rps: 60", 1))
	contains(t, c.want(api.ExitChanges, "plan"), "autoscale.target.rps: 50 → 60")
	c.want(0, "up", "-y")
	contains(t, c.want(0, "status"), "5/5 (by hand)")
	contains(t, c.want(0, "scale", "web=auto"), "4/4 ready")
	contains(t, c.want(0, "why", "web"), "its number follows its load, from 1 to 4", "service web follows its load again, from 1 to 4; it has 4 now")

	write(t, "compose.yaml", webFile)
	c.want(0, "up", "-y")
	contains(t, c.want(0, "ls"), "2/2")
	_, errOut, code := c.run("", "scale", "web=auto")
	if code != api.ExitError {
		t.Errorf("exit code %d, want %d", code, api.ExitError)
	}
	contains(t, errOut, "has no x-autoscale")
}

// A release that fails is rolled back as a whole, and up says so.
func TestUpRolledBack(t *testing.T) {
	c := newCluster(t, true)
	write(t, "compose.yaml", webFile)
	c.want(0, "up", "-y")
	write(t, "compose.yaml", strings.NewReplacer("web:1", "bad:2", `"one"`, `"two"`).Replace(webFile))
	contains(t, c.want(api.ExitRolledBack, "up", "-y"), "failed and was rolled back to release 1", "baton events")
	contains(t, c.want(0, "ls", "-o", "json"), `"web:1"`)
	contains(t, c.want(0, "why"), "it undoes release 2")
}

// A plan is applied as it is, or refused when the state moved.
func TestPlanFile(t *testing.T) {
	c := newCluster(t, true)
	write(t, "compose.yaml", webFile)
	c.want(api.ExitChanges, "plan", "--out", "p1")
	if info, err := os.Stat("p1"); err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("plan file: %v, mode %v", err, info.Mode())
	}
	c.want(0, "up", "--plan", "p1")
	c.want(0, "up", "-y", "--scale", "web=5")
	write(t, "compose.yaml", strings.ReplaceAll(webFile, "web:1", "web:2"))
	c.want(api.ExitChanges, "plan", "--out", "p2")
	c.want(0, "scale", "web=1")
	contains(t, c.want(api.ExitRefused, "up", "--plan", "p2"), "the state of the cluster moved", "baton plan --out")
	contains(t, c.want(api.ExitError, "up", "--plan", "compose.yaml"), "this is not a plan")
}

// An up that cannot finish ends by its timeout, and the deployment goes on.
func TestUpTimeout(t *testing.T) {
	c := newCluster(t, true)
	write(t, "compose.yaml", strings.Replace(webFile, "deploy:", "deploy:\n      placement: {constraints: [node.labels.zone == eu]}", 1))
	contains(t, c.want(api.ExitTimeout, "up", "-y", "--timeout", "300ms"), "is not ready after 300ms", "goes on")
	contains(t, c.want(0, "why", "web"), "zone")
	c.want(0, "node", "label", "n1", "zone=eu")
	contains(t, c.want(0, "up", "-y"), "complete and healthy")
}

func TestUpJSON(t *testing.T) {
	c := newCluster(t, true)
	write(t, "compose.yaml", webFile)
	out, _, code := c.run("", "up", "-y", "--progress", "json")
	if code != 0 {
		t.Fatal(out)
	}
	var last map[string]any
	for line := range strings.Lines(out) {
		last = nil
		if err := json.Unmarshal([]byte(line), &last); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
	}
	if last["type"] != "end" || last["state"] != "complete" {
		t.Errorf("last line: %v", last)
	}
}

// A service on a volume for one task at a time is not scaled.
func TestScaleOfASingleWriterIsRefused(t *testing.T) {
	c := newCluster(t, true)
	write(t, "compose.yaml", "name: s\nservices: {db: {image: a:1, volumes: [\"data:/data\"]}}\nvolumes: {data: {}}\n")
	c.want(0, "up", "-y")
	_, errOut, code := c.run("", "scale", "db=2")
	if code != api.ExitRefused {
		t.Errorf("exit code %d, want %d\n%s", code, api.ExitRefused, errOut)
	}
	contains(t, errOut, "volume s_data", "access: shared")
	for s := range store.All[*cluster.Service](c.store.Snapshot()) {
		if s.Replicas != 1 {
			t.Errorf("the service has %d replicas, want 1", s.Replicas)
		}
	}
}

// What is wrong is refused before anything is stored, with the mend.
func TestRefusals(t *testing.T) {
	c := newCluster(t, true)
	write(t, "compose.yaml", webFile)
	write(t, "other.yaml", strings.Replace(webFile, "name: shop", "name: other", 1))
	write(t, "secret.yaml", "name: s\nservices: {a: {image: a:1, secrets: [pw]}}\nsecrets: {pw: {external: true}}\n")
	write(t, "guard.yaml", "name: g\nx-baton: {cluster: prod}\nservices: {a: {image: a:1}}\n")
	c.want(0, "up", "-y")
	before := c.store.Snapshot().Count(cluster.KindStack)
	for _, x := range []struct {
		name string
		code int
		args []string
		want []string
	}{
		{"port of another stack", api.ExitRefused, []string{"up", "-y", "-f", "other.yaml"}, []string{"8080/tcp is taken by service shop/web", "publish another port"}},
		{"missing secret", api.ExitError, []string{"up", "-y", "-f", "secret.yaml"}, []string{`secret "pw" does not exist`, "baton secret set pw"}},
		{"guard", api.ExitRefused, []string{"up", "-y", "-f", "guard.yaml"}, []string{`cluster "prod" only`}},
		{"misspelt service", api.ExitError, []string{"scale", "wep=2"}, []string{`did you mean "web"?`}},
		{"misspelt scale", api.ExitError, []string{"up", "-y", "--scale", "wep=2"}, []string{`did you mean "web"?`}},
		{"unknown node", api.ExitError, []string{"node", "inspect", "n2"}, []string{`no node "n2"`, `did you mean "n1"?`}},
		{"no command in image", api.ExitError, []string{"exec", "web", "--", "zsh"}, []string{"no such command"}},
		{"volume in use by nobody", api.ExitError, []string{"volume", "rm", "nope"}, []string{`no volume "nope"`}},
		{"no file", api.ExitError, []string{"up", "-y", "-f", "missing.yaml"}, []string{"missing.yaml"}},
		{"bad output", api.ExitError, []string{"ls", "-o", "xml"}, []string{"use -o table"}},
		{"bad address", api.ExitError, []string{"ls", "--host", "http://example.org"}, []string{"use https://"}},
		{"nobody there", api.ExitError, []string{"ls", "--host", "unix:///nowhere/s"}, []string{"there is no such socket", "baton server"}},
		{"unknown verb", api.ExitError, []string{"upp"}, []string{"unknown command"}},
	} {
		t.Run(x.name, func(t *testing.T) {
			out, errOut, code := c.run("", x.args...)
			if code != x.code {
				t.Errorf("exit code %d, want %d\n%s%s", code, x.code, out, errOut)
			}
			contains(t, errOut, x.want...)
			if now := c.store.Snapshot().Count(cluster.KindStack); now != before {
				t.Errorf("%d stacks, want %d", now, before)
			}
		})
	}
}

// Secrets come in by standard input or file only, and their content is never shown.
func TestMaterials(t *testing.T) {
	c := newCluster(t, true)
	set := func(in string, args ...string) string {
		t.Helper()
		out, errOut, code := c.run(in, args...)
		if code != 0 {
			t.Fatalf("%v: %s%s", args, out, errOut)
		}
		return out
	}
	contains(t, set("hunter2", "secret", "set", "pw", "-"), "version 1")
	contains(t, set("hunter2", "secret", "set", "pw", "-"), "unchanged")
	contains(t, set("hunter3", "secret", "set", "pw", "-"), "version 2")
	write(t, "compose.yaml", "name: s\nservices: {a: {image: a:1, secrets: [pw], deploy: {update_config: {monitor: 10ms}}}}\nsecrets: {pw: {external: true}}\n")
	c.want(0, "up", "-y")
	contains(t, c.want(api.ExitRefused, "secret", "rm", "pw"), "in use by s/a")
	for _, args := range [][]string{{"secret", "ls", "-o", "json"}, {"secret", "history", "pw", "-o", "yaml"}, {"events", "-o", "json"}, {"config", "-o", "json"}} {
		if out := c.want(0, args...); strings.Contains(out, "hunter") {
			t.Errorf("%v shows the content: %s", args, out)
		}
	}
	contains(t, c.want(0, "secret", "history", "pw"), "1", "2", "s/a")
	contains(t, set("body", "cfg", "set", "page", "-"), "config page has version 1")
	contains(t, c.want(0, "cfg", "get", "page"), "body")
}

func TestExec(t *testing.T) {
	c := newCluster(t, true)
	write(t, "compose.yaml", webFile)
	c.want(0, "up", "-y")
	if out, _, code := c.run("hello", "exec", "-i", "web/2", "--", "cat"); code != 0 || out != "hello" {
		t.Errorf("cat: %q, exit code %d", out, code)
	}
	if _, errOut, code := c.run("", "exec", "web", "false"); code != 42 || errOut != "no\n" {
		t.Errorf("false: %q, exit code %d", errOut, code)
	}
	if out, _, code := c.run("archive", "image", "load", "-"); code != 0 || !strings.Contains(out, "loaded docker.io/library/web:2 on n1") {
		t.Errorf("load: %q, exit code %d", out, code)
	}
	if _, errOut, code := c.run("rubbish", "image", "load", "-"); code != 1 || !strings.Contains(errOut, "no archive") {
		t.Errorf("load: %q, exit code %d", errOut, code)
	}
}

// Ctrl-C ends the waiting, not the deployment.
func TestUpInterrupted(t *testing.T) {
	c := newCluster(t, true)
	write(t, "compose.yaml", strings.Replace(webFile, "deploy:", "deploy:\n      placement: {constraints: [node.labels.zone == eu]}", 1))
	ctx, cancel := context.WithCancel(context.Background())
	var out, errOut bytes.Buffer
	a := newApp(strings.NewReader(""), writerFunc(func(p []byte) (int, error) {
		if strings.Contains(string(p), "0/2 ready") {
			cancel() // it waits now
		}
		return out.Write(p)
	}), &errOut, Hooks{})
	if code := a.run(ctx, []string{"up", "-y"}); code != api.ExitInterrupted {
		t.Errorf("exit code %d\n%s%s", code, out.String(), errOut.String())
	}
	contains(t, errOut.String(), "interrupted: the deployment goes on")
	c.want(0, "node", "label", "n1", "zone=eu")
	contains(t, c.want(0, "up", "-y"), "release 1 of shop is complete and healthy")
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }
