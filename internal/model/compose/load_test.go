package compose

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// write puts files into a new directory.
func write(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "My_Site")
	for name, text := range files {
		p := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestProjectName(t *testing.T) {
	for _, tc := range []struct {
		name, text string
		o          Options
		want       string
	}{
		{"option", "name: file\n", Options{ProjectName: "option", Env: map[string]string{"COMPOSE_PROJECT_NAME": "env"}}, "option"},
		{"environment", "name: file\n", Options{Env: map[string]string{"COMPOSE_PROJECT_NAME": "env"}}, "env"},
		{"file", "name: file\n", Options{}, "file"},
		{"interpolated", "name: ${WHO:-nobody}-x\n", Options{Env: map[string]string{"WHO": "me"}}, "me-x"},
		{"directory", "", Options{}, "my_site"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			tc.o.WorkingDir = write(t, map[string]string{"compose.yaml": tc.text + "services: {a: {image: a}}"})
			res, err := Load(t.Context(), tc.o)
			if err != nil {
				t.Fatal(err)
			}
			if res.Stack.Name != tc.want {
				t.Errorf("got %q, want %q", res.Stack.Name, tc.want)
			}
		})
	}
	dir := write(t, map[string]string{"compose.yaml": "services: {a: {image: a}}"})
	_, err := Load(t.Context(), Options{WorkingDir: dir, ProjectName: "My Shop"})
	if err == nil || !strings.Contains(err.Error(), `invalid project name "My Shop"`) {
		t.Errorf("got %v, want a refusal of the name", err)
	}
}

func TestVariables(t *testing.T) {
	file := "services: {a: {image: \"${A}-${B}-${C:-c}\"}}"
	for _, tc := range []struct {
		name  string
		files map[string]string
		o     Options
		want  string
		warns []string
	}{
		{"dotenv", map[string]string{".env": "A=1\nB=${A}2\n"}, Options{}, "1-12-c", nil},
		{"environment wins", map[string]string{".env": "A=1\nB=2\n"}, Options{Env: map[string]string{"A": "x"}}, "x-2-c", nil},
		{"named files", map[string]string{".env": "A=1\n", "one": "A=o\nB=o\n", "two": "B=t\n"}, Options{EnvFiles: []string{"one", "two"}}, "o-t-c", nil},
		{"unset", nil, Options{Env: map[string]string{"A": "x"}}, "x--c", []string{
			"compose.yaml:1: variable B is not set and counts as empty; set it, or write ${B:-default}",
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			files := map[string]string{"compose.yaml": file}
			for k, v := range tc.files {
				files[k] = v
			}
			dir := write(t, files)
			t.Chdir(dir)
			res, err := Load(t.Context(), tc.o)
			if err != nil {
				t.Fatal(err)
			}
			if got := res.Stack.Services[0].Image; got != tc.want {
				t.Errorf("got %q, want %q", got, tc.want)
			}
			var warns []string
			for _, w := range res.Warnings {
				warns = append(warns, w.String())
			}
			if diff := cmp.Diff(tc.warns, warns); diff != "" {
				t.Errorf("warnings (-want +got):\n%s", diff)
			}
		})
	}
}

func TestProfiles(t *testing.T) {
	text := "services: {a: {image: a}, b: {image: b, profiles: [x]}, c: {image: c, profiles: [y], x-cron: {schedule: \"* * * * *\"}}}"
	for _, tc := range []struct {
		name string
		o    Options
		want string
	}{
		{"none", Options{}, "a"},
		{"one", Options{Profiles: []string{"x"}}, "a b"},
		{"environment", Options{Env: map[string]string{"COMPOSE_PROFILES": "z,x"}}, "a b"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			tc.o.Content, tc.o.WorkingDir = []byte(text), t.TempDir()
			res, err := Load(t.Context(), tc.o)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, s := range res.Stack.Services {
				got = append(got, s.Name)
			}
			if strings.Join(got, " ") != tc.want {
				t.Errorf("got %v, want %s", got, tc.want)
			}
		})
	}
	// A key that is refused counts once its profile is active.
	if _, err := Load(t.Context(), Options{Content: []byte(text), WorkingDir: t.TempDir(), Profiles: []string{"y"}}); err == nil {
		t.Error("x-cron of an active service was accepted")
	}
}

func TestFiles(t *testing.T) {
	dir := write(t, map[string]string{
		"docker-compose.yml":          "services: {a: {image: one}}",
		"docker-compose.override.yml": "services: {a: {image: two}}",
		"big.yaml":                    "services: {a: {image: a}}\n#" + strings.Repeat("x", MaxFileBytes),
	})
	res, err := Load(t.Context(), Options{WorkingDir: dir})
	if err != nil || res.Stack.Services[0].Image != "two" {
		t.Errorf("with an override file: %v, %v", res, err)
	}
	for _, tc := range []struct{ name, file, want string }{
		{"missing", "gone.yaml", "the Compose file does not exist"},
		{"directory", ".", "the Compose file is a directory"},
		{"device", "/dev/zero", "the Compose file is not a regular file"},
		{"large", "big.yaml", "the Compose file is larger than 1024 KiB"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			file := tc.file
			if !filepath.IsAbs(file) {
				file = filepath.Join(dir, file)
			}
			if _, err := Load(t.Context(), Options{Files: []string{file}}); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want %q", err, tc.want)
			}
		})
	}
	if _, err := Load(t.Context(), Options{WorkingDir: t.TempDir()}); err == nil || !strings.Contains(err.Error(), "there is no compose.yaml here; name one with -f") {
		t.Errorf("in an empty directory: %v", err)
	}
	res, err = Load(t.Context(), Options{Files: []string{filepath.Join(dir, "docker-compose.yml"), "-"}, Content: []byte("services: {a: {image: three}}")})
	if err != nil || res.Stack.Services[0].Image != "three" {
		t.Errorf("merged with standard input: %v, %v", res, err)
	}
}

func TestLargeConfig(t *testing.T) {
	dir := write(t, map[string]string{
		"compose.yaml": "services: {a: {image: a}}\nconfigs: {c: {file: big}}\n",
		"big":          strings.Repeat("x", 1<<20+1),
	})
	want := "compose.yaml:2: configs.c.file: file big is larger than 1024 KiB"
	if _, err := Load(t.Context(), Options{WorkingDir: dir}); err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("got %v, want %q", err, want)
	}
}
