package compose

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/txtar"

	"baton/internal/model/spec"
)

// FuzzLoad checks that no file makes Load panic, hang, return a stack that is not valid, or an error that is not an *Error
// with a readable message.
func FuzzLoad(f *testing.F) {
	files, err := filepath.Glob("testdata/*.yaml")
	if err != nil {
		f.Fatal(err)
	}
	shop, err := filepath.Glob("testdata/*/*.yaml")
	if err != nil {
		f.Fatal(err)
	}
	for _, name := range append(files, shop...) {
		b, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	cases, err := filepath.Glob("testdata/errors/*.txtar")
	if err != nil {
		f.Fatal(err)
	}
	for _, name := range cases {
		ar, err := txtar.ParseFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(ar.Files[0].Data)
	}
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > 64<<10 {
			t.Skip("longer inputs only make the fuzzer slow")
		}
		start := time.Now()
		res, err := Load(t.Context(), Options{Content: b, WorkingDir: dir, ProjectName: "fuzz", Env: map[string]string{"A": "1"}})
		if d := time.Since(start); d > 20*time.Second {
			t.Fatalf("took %v", d)
		}
		if err != nil {
			var bad *Error
			if !errors.As(err, &bad) || len(bad.Diagnostics) == 0 {
				t.Fatalf("got %T %v, want an *Error", err, err)
			}
			for _, d := range bad.Diagnostics {
				if d.Message == "" || strings.Contains(d.Message, "strconv.") || strings.Contains(d.Message, "mapstructure") {
					t.Fatalf("message %q", d)
				}
			}
			return
		}
		if err := res.Stack.Validate(); err != nil {
			t.Fatalf("the stack is not valid: %v", err)
		}
		for i := range res.Stack.Services {
			spec.Hash(&res.Stack.Services[i])
		}
	})
}
