package compose

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"

	"baton/internal/model/spec"
)

var update = flag.Bool("update", false, "write the golden files")

// golden is what a golden file holds.
type golden struct {
	Warnings []string    `json:"warnings"`
	Stack    *spec.Stack `json:"stack"`
}

// TestGolden loads every testdata/*.yaml and testdata/*/compose.yaml and compares the stack with the golden file beside it.
func TestGolden(t *testing.T) {
	files, err := filepath.Glob("testdata/*.yaml")
	if err != nil {
		t.Fatal(err)
	}
	dirs, err := filepath.Glob("testdata/*/compose.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range append(files, dirs...) {
		t.Run(strings.TrimPrefix(f, "testdata/"), func(t *testing.T) {
			o := Options{Files: []string{f}, Env: map[string]string{"TOKEN": "t0ken", "GREETING": "hello"}}
			if extra := filepath.Join(filepath.Dir(f), "override.yaml"); filepath.Base(f) == "compose.yaml" && exists(extra) {
				o.Files = append(o.Files, extra)
			}
			res, err := Load(t.Context(), o)
			if err != nil {
				t.Fatalf("Load: %v", err)
			}
			g := golden{Stack: res.Stack}
			for _, w := range res.Warnings {
				g.Warnings = append(g.Warnings, w.String())
			}
			cwd, err := os.Getwd()
			if err != nil {
				t.Fatal(err)
			}
			got := bytes.ReplaceAll(encode(t, g), []byte(cwd), []byte("/DIR"))
			checkGolden(t, strings.TrimSuffix(f, ".yaml")+".golden.json", got)
			checkCanonical(t, f, res)
		})
	}
}

// checkCanonical loads the canonical file again: it must describe the same stack.
func checkCanonical(t *testing.T, file string, first *Result) {
	t.Helper()
	env := map[string]string{"TOKEN": "t0ken", "GREETING": "hello"}
	again, err := Load(t.Context(), Options{
		Content: []byte(first.Source), WorkingDir: filepath.Dir(file), Env: env,
	})
	if err != nil {
		t.Fatalf("loading the canonical file: %v\n%s", err, first.Source)
	}
	if diff := cmp.Diff(first.Stack, again.Stack); diff != "" {
		t.Errorf("the canonical file gives another stack (-first +again):\n%s", diff)
	}
}

func exists(f string) bool {
	_, err := os.Stat(f)
	return err == nil
}

func encode(t *testing.T, v any) []byte {
	t.Helper()
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func checkGolden(t *testing.T, file string, got []byte) {
	t.Helper()
	if *update {
		if err := os.WriteFile(file, got, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatalf("%v; run go test -update", err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("%s differs (-want +got); run go test -update if the change is meant:\n%s", file, diff)
	}
}

// TestErrors runs testdata/errors/*.txtar. Each holds the files of a stack and the file "want", one message per line. A
// comment line "# env NAME=value" sets a variable, "# files a b" names the files to load, "# profile p" activates one.
func TestErrors(t *testing.T) {
	files, err := filepath.Glob("testdata/errors/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no cases: %v", err)
	}
	for _, f := range files {
		t.Run(strings.TrimSuffix(filepath.Base(f), ".txtar"), func(t *testing.T) {
			ar, err := txtar.ParseFile(f)
			if err != nil {
				t.Fatal(err)
			}
			o, want := extract(t, ar)
			_, err = Load(t.Context(), o)
			var bad *Error
			if !errors.As(err, &bad) {
				t.Fatalf("Load returned %v, want an *Error", err)
			}
			got := err.Error() + "\n"
			got = strings.ReplaceAll(got, o.WorkingDir+"/", "")
			if *update {
				ar.Files[len(ar.Files)-1].Data = []byte(got)
				if err := os.WriteFile(f, txtar.Format(ar), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("messages differ (-want +got):\n%s", diff)
			}
		})
	}
}

// extract writes a case's files to a directory.
func extract(t *testing.T, ar *txtar.Archive) (o Options, want string) {
	t.Helper()
	o.Env, o.WorkingDir, o.ProjectName = map[string]string{}, t.TempDir(), "test"
	for _, line := range strings.Split(string(ar.Comment), "\n") {
		switch f := strings.Fields(line); {
		case len(f) == 3 && f[1] == "env":
			k, v, _ := strings.Cut(f[2], "=")
			o.Env[k] = v
		case len(f) > 2 && f[1] == "files":
			for _, n := range f[2:] {
				o.Files = append(o.Files, filepath.Join(o.WorkingDir, n))
			}
		case len(f) == 3 && f[1] == "profile":
			o.Profiles = append(o.Profiles, f[2])
		}
	}
	if o.Files == nil {
		o.Files = []string{filepath.Join(o.WorkingDir, "compose.yaml")}
	}
	for _, f := range ar.Files {
		if f.Name == "want" {
			want = string(f.Data)
			continue
		}
		p := filepath.Join(o.WorkingDir, f.Name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, f.Data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return o, want
}

// load loads a file given as text.
func load(t *testing.T, text string) (*Result, error) {
	t.Helper()
	return Load(t.Context(), Options{Content: []byte(text), WorkingDir: t.TempDir(), ProjectName: "test"})
}

func TestLimits(t *testing.T) {
	deep := "services: " + strings.Repeat("[", 5000) + strings.Repeat("]", 5000)
	bomb := "x-a: &a [1,1,1,1,1,1,1,1,1,1]\n"
	for i := 'b'; i < 'j'; i++ {
		bomb += fmt.Sprintf("x-%c: &%c [*%c,*%c,*%c,*%c,*%c,*%c,*%c,*%c,*%c]\n", i, i, i-1, i-1, i-1, i-1, i-1, i-1, i-1, i-1, i-1)
	}
	for name, tc := range map[string]struct{ text, want string }{
		"size":  {"services:\n  web:\n    image: a\n#" + strings.Repeat("x", MaxFileBytes), "stdin: the file is larger than 1024 KiB"},
		"depth": {deep, "nested more than 64 deep"},
		"bomb":  {bomb, "more than 100000 nodes"},
		"merge": {"x-a: &a\n  k: v\n  <<: [*a, *a]\nservices: {web: {image: a}}", ""},
		"cycle": {"x-a: &a [*a]\nservices: {web: {image: a}}", "nested more than 64 deep"},
	} {
		t.Run(name, func(t *testing.T) {
			start := time.Now()
			_, err := load(t, tc.text)
			if tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
				t.Errorf("got %v, want %q", err, tc.want)
			}
			if d := time.Since(start); d > 10*time.Second {
				t.Errorf("took %v", d)
			}
		})
	}
}

func TestCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Load(ctx, Options{Content: []byte("services: {a: {image: a}}")}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want context.Canceled", err)
	}
}

func TestSecretsStayOutOfSource(t *testing.T) {
	res, err := Load(t.Context(), Options{
		Content: []byte("services: {a: {image: a, secrets: [s]}}\nsecrets: {s: {environment: PASSWORD}}"), ProjectName: "test",
		WorkingDir: t.TempDir(), Env: map[string]string{"PASSWORD": "hunter2"},
	})
	if err != nil {
		t.Fatal(err)
	}
	if got := string(res.Stack.Secrets[0].Content); got != "hunter2" {
		t.Errorf("content is %q, want hunter2", got)
	}
	if strings.Contains(res.Source, "hunter2") {
		t.Errorf("the resolved file shows the secret:\n%s", res.Source)
	}
}
