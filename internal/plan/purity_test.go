// Package plan_test checks what holds for every planner.
package plan_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// allowed are the imports that planners may use, besides packages of this module under model and plan. Each can only compute.
var allowed = map[string]bool{
	"cmp": true, "container/heap": true, "crypto/sha256": true, "encoding/binary": true, "encoding/hex": true, "errors": true,
	"fmt": true, "maps": true, "math": true, "math/bits": true, "math/rand": true, "net/netip": true, "reflect": true,
	"slices": true, "strconv": true, "strings": true, "time": true,
}

// forbidden are the functions of allowed packages that are not pure: clocks, timers, global randomness, printing.
var forbidden = map[string][]string{
	"time": {"Now", "Since", "Until", "Sleep", "After", "AfterFunc", "Tick", "NewTimer", "NewTicker"},
	"rand": {"Int", "Intn", "Int31", "Int31n", "Int63", "Int63n", "Uint32", "Uint64", "Float32", "Float64", "Perm", "Shuffle", "Seed", "Read", "NormFloat64", "ExpFloat64"},
	"fmt":  {"Print", "Printf", "Println", "Scan", "Scanf", "Scanln"},
}

// impurities lists what makes a planner's source impure.
func impurities(t *testing.T, name string, src any) []string {
	t.Helper()
	set := token.NewFileSet()
	file, err := parser.ParseFile(set, name, src, 0)
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, im := range file.Imports {
		path, _ := strconv.Unquote(im.Path.Value)
		own := strings.HasPrefix(path, "baton/internal/model/") || strings.HasPrefix(path, "baton/internal/plan/")
		if !own && !allowed[path] {
			found = append(found, set.Position(im.Pos()).String()+": imports "+path+", which is not known to be pure")
		}
	}
	ast.Inspect(file, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.GoStmt:
			found = append(found, set.Position(n.Pos()).String()+": starts a goroutine; return a value, and let control loop")
		case *ast.ChanType:
			found = append(found, set.Position(n.Pos()).String()+": uses a channel")
		case *ast.SelectorExpr:
			pkg, ok := n.X.(*ast.Ident)
			if !ok || pkg.Obj != nil {
				return true
			}
			for _, f := range forbidden[pkg.Name] {
				if n.Sel.Name == f {
					found = append(found, set.Position(n.Pos()).String()+": calls "+pkg.Name+"."+f+"; take the value as input")
				}
			}
		}
		return true
	})
	return found
}

func TestPlannersArePure(t *testing.T) {
	files := 0
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		files++
		for _, f := range impurities(t, path, nil) {
			t.Error(f)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if files < 8 {
		t.Fatalf("looked at %d files only: is this still the folder of the planners?", files)
	}
}

func TestImpuritiesAreSeen(t *testing.T) {
	for name, body := range map[string]string{
		"goroutine": `func f() { go f() }`,
		"clock":     `import "time"; func f() time.Time { return time.Now() }`,
		"random":    `import "math/rand"; func f() int { return rand.Intn(3) }`,
		"files":     `import "os"; func f() { os.Exit(1) }`,
		"logging":   `import "log/slog"; func f() { slog.Info("x") }`,
		"printing":  `import "fmt"; func f() { fmt.Println() }`,
		"channel":   `var c chan int`,
	} {
		t.Run(name, func(t *testing.T) {
			if len(impurities(t, "x.go", "package x; "+body)) == 0 {
				t.Errorf("%q passes as pure", body)
			}
		})
	}
	if got := impurities(t, "x.go", `package x; import "math/rand"; func f(r *rand.Rand) int { return r.Intn(3) }`); len(got) != 0 {
		t.Errorf("a given random source is refused: %v", got)
	}
}
